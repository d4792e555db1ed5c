"""A step as a loss: a model whose every log-probability is dictated, so that a step is given what a loss is given."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rpg_ref.audit.prefix_lm import BOS, EOS, FIRST, PAD, ModelBatch, PrefixTreeLM, Step, run_step

_TOKENS = 4
_DIGITS = 6
_STRAY_ROWS = 257


class ScriptedLM(PrefixTreeLM):
    """A causal language model that gives each response token the log-probability that a table says.

    Args:
        logp: of each response's tokens, [B, T].
        batch: whose rows have prompts of their own.
        pad: token id of the padding.

    Attributes:
        logp: the parameter, [B, T].

    Source: ours.
    """

    def __init__(self, logp: Float[Tensor, "B T"], batch: ModelBatch, pad: int) -> None:
        nn.Module.__init__(self)
        vocabulary = FIRST + _TOKENS
        rng = torch.Generator().manual_seed(0)
        self.logp = nn.Parameter(logp.detach().clone())
        self.stray = nn.Parameter(torch.randn((_STRAY_ROWS, vocabulary), generator=rng, dtype=torch.float64))
        self.labels, self.temperature = batch.completion_ids, batch.temperature
        self.states, self.absolute = logp.numel(), False
        self.config = SimpleNamespace(
            vocab_size=vocabulary, pad_token_id=pad, eos_token_id=EOS, bos_token_id=BOS, model_type="scripted"
        )
        rows = zip(batch.prompt_ids.tolist(), batch.prompt_mask.sum(1).tolist(), self.labels.tolist(), strict=True)
        self._row_of = {
            tuple(prompt[len(prompt) - length :] + ids[:t]): i * len(ids) + t
            for i, (prompt, length, ids) in enumerate(rows)
            for t in range(len(ids))
        }
        self.calls = []

    @property
    def rows(self) -> Float[Tensor, "S V"]:  # type: ignore[override]
        """The logits: the label's log-probability, and what is left in equal parts for the other tokens."""
        logp = self.logp.flatten()[:, None]
        others = (-logp.exp()).log1p() - math.log(FIRST + _TOKENS - 1)
        is_label = torch.nn.functional.one_hot(self.labels.flatten(), FIRST + _TOKENS).bool()
        return self.temperature * torch.where(is_label, logp, others)


def scripted_batch(
    q: Float[Tensor, "B T"],
    r: Float[Tensor, "B T"],
    advantages: Tensor,
    mask: Bool[Tensor, "B T"],
    temperature: float,
    pad: int = PAD,
) -> ModelBatch:
    """Make the batch of a step from the tensors of a loss.

    Each row has a prompt of its own, and each response ends with EOS. A hole in the mask is a token that the model sees
    and the policy did not write, such as a tool's.

    Args:
        q: log π_old, [B, T].
        r: log π_ref, [B, T].
        advantages: [B] or [B, T].
        mask: [B, T]; what follows the last kept token is padding.
        temperature: of the batch.
        pad: token id of the padding.

    Returns:
        The batch.

    Source: ours.
    """
    count, length = mask.shape
    digits = torch.arange(count)[:, None] // _TOKENS ** torch.arange(_DIGITS) % _TOKENS + FIRST
    begin = torch.full((count, 2), BOS)
    prompt_mask = torch.ones((count, 2 + _DIGITS), dtype=torch.long)
    prompt_mask[::2, 0] = 0  # every other prompt is shorter
    prompt_ids = torch.cat([begin, digits], 1).where(prompt_mask == 1, pad)
    end = length - mask.flip(1).long().argmax(1, keepdim=True)
    place = torch.arange(length)
    inside = place < end
    ids = (torch.arange(count)[:, None] + place) % _TOKENS + FIRST
    ids = torch.where(place == end - 1, EOS, ids).where(inside, pad)
    kept = mask.long()
    return ModelBatch(
        prompt_ids,
        prompt_mask,
        ids,
        kept,
        torch.cat([prompt_ids, ids], 1),
        torch.cat([prompt_mask, inside.long()], 1),
        torch.cat([torch.full_like(prompt_ids, -100), ids.where(mask, -100)], 1),
        q,
        r,
        advantages,
        temperature,
    )


def step_as_loss(step: Step, temperature: float, pad: int = PAD) -> Callable[..., Tensor]:
    """Return a step as a loss of five tensors, for the probes of ``identify``.

    Args:
        step: as for ``identify_model``.
        temperature: of the batch.
        pad: token id of the padding, which may be EOS.

    Returns:
        loss(logp, logp_old, logp_ref, advantages, mask) ↦ a scalar with the step's value, or 0 where it returns none,
        and its gradient at the log-probabilities.

    Source: ours.
    """

    def loss(p: Tensor, q: Tensor, r: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        # A model's own log-probabilities are finite on padding.
        logp = torch.where(p.detach().isfinite(), p.detach(), -1.0)
        batch = scripted_batch(q, r, advantages, mask.bool(), temperature, pad)
        model = ScriptedLM(logp, batch, pad)
        value = run_step(step, model, batch, may_be_nan=True)
        gradient = torch.zeros_like(logp) if model.logp.grad is None else model.logp.grad
        return value + (gradient * (p - p.detach())).sum()

    return loss
