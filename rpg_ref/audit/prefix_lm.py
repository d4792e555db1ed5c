"""A causal language model whose every probability is known, and the batch that a trainer's step is given with it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rpg_ref.audit.oracle import PrefixTree
from rpg_ref.audit.population import scalar_of

PAD, EOS, BOS, FIRST = 0, 1, 2, 3
"""Token ids: padding, end of a response, start of a prompt; token k of the tree is FIRST + k."""

# The probability of a token outside the tree is e⁻⁶⁰ at temperature 1: no row of the population is missing.
_NEVER = -60.0
_STRAY_ROWS = 257


@dataclass(eq=False)
class ModelBatch(Mapping[str, Any]):
    """What a trainer's loss computation takes; its fields are also items, ``batch["input_ids"]``, ``**batch``.

    Attributes:
        prompt_ids: [B, P], padded on the left.
        prompt_mask: [B, P], 1 for tokens and 0 for padding.
        completion_ids: [B, T], padded on the right; ends with EOS unless it was cut off.
        completion_mask: [B, T], 1 for tokens, EOS included, and 0 for padding.
        input_ids: [B, P + T], prompt and completion.
        attention_mask: [B, P + T], the two masks.
        labels: [B, P + T], the completion's ids in their places in ``input_ids`` and −100 elsewhere.
        logp_old: log π_old of the completion's tokens at ``temperature``, [B, T], 0 behind the end.
        logp_ref: log π_ref of them, at ``temperature``, [B, T], 0 behind the end.
        advantages: one per response, [B]; some probes give one per token, [B, T], to a step that takes both.
        temperature: what the logits are divided by before the softmax, in π_θ, π_old and π_ref.

    Source: ours.
    """

    prompt_ids: Int[Tensor, "B P"]
    prompt_mask: Int[Tensor, "B P"]
    completion_ids: Int[Tensor, "B T"]
    completion_mask: Int[Tensor, "B T"]
    input_ids: Int[Tensor, "B L"]
    attention_mask: Int[Tensor, "B L"]
    labels: Int[Tensor, "B L"]
    logp_old: Float[Tensor, "B T"]
    logp_ref: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B"] | Float[Tensor, "B T"]
    temperature: float

    def __getitem__(self, name: str) -> Any:
        """Return the field of that name."""
        return vars(self)[name]

    def __setitem__(self, name: str, value: Any) -> None:
        """Replace or add an item; the batch is the step's own copy."""
        setattr(self, name, value)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(vars(self))

    def __len__(self) -> int:
        """Return the number of fields."""
        return len(vars(self))

    def copy(self) -> "ModelBatch":
        """Return a batch that may be written into."""
        fields: dict[str, Any] = {name: x.clone() if isinstance(x, Tensor) else x for name, x in self.items()}
        return ModelBatch(**fields)


class Output(NamedTuple):
    """What the model returns, with the field of transformers' outputs that a loss needs."""

    logits: Float[Tensor, "B K V"]


class PrefixTreeLM(nn.Module):
    """A causal language model that is a table: one row of logits for each prefix of a tree after one prompt.

    Every other context (a prompt's own tokens, what follows EOS, a context that shows padding or lost its positions)
    has a row of its own in ``stray``, chosen by a hash of the context, so that a gradient there is a finding.

    Args:
        tree: the responses.
        prompts: token ids of each prompt; all have the same rows.
        absolute: whether the first token seen must stand at position 0, as for learnt absolute positions; where no
            position_ids are passed, positions then count the padding.

    Raises:
        ValueError: a prompt followed by a response is another prompt.

    Attributes:
        rows: logits [S, V] of the tree's states, over all token ids.
        stray: logits of every other context.
        config: ``vocab_size``, ``pad_token_id``, ``eos_token_id``, ``bos_token_id``.

    Source: ours; PAPER §5 for the tree.
    """

    def __init__(
        self, tree: PrefixTree, prompts: tuple[tuple[int, ...], ...] = ((BOS, FIRST),), *, absolute: bool = False
    ) -> None:
        super().__init__()
        self.states, self.absolute = tree.states, absolute
        vocabulary = FIRST + tree.vocabulary
        rng = torch.Generator().manual_seed(0)
        self.tree = tree
        self.rows = nn.Parameter(torch.zeros((tree.states, vocabulary), dtype=torch.float64))
        self.stray = nn.Parameter(torch.randn((_STRAY_ROWS, vocabulary), generator=rng, dtype=torch.float64))
        self.config = SimpleNamespace(
            vocab_size=vocabulary, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=BOS, model_type="prefix_tree"
        )
        prefixes = {
            tuple(FIRST + token for token in response[:t].tolist()): int(state[t])
            for response, state in zip(tree.tokens, tree.state, strict=True)
            for t in range(tree.horizon)
        }
        self._row_of = {prompt + prefix: row for prompt in prompts for prefix, row in prefixes.items()}
        if len(self._row_of) < len(prompts) * len(prefixes):
            raise ValueError(
                f"one of the prompts {prompts} continues another; choose prompts that no response leads to"
            )
        self.calls: list[Call] = []

    @property
    def device(self) -> torch.device:
        """The parameters' device."""
        return self.stray.device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype, float64."""
        return self.stray.dtype

    def set_policy(self, logits: Float[Tensor, "S V"], temperature: float = 1.0) -> None:
        """Make softmax(logits) the distribution at a temperature; tokens outside the tree get none.

        Args:
            logits: of the tree's tokens, [S, V].
            temperature: τ > 0: the model's own logits are τ times as large.

        Source: ours.
        """
        with torch.no_grad():
            self.rows.fill_(_NEVER)
            self.rows[:, FIRST:] = temperature * logits

    def forward(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **ignored: Any,
    ) -> Output:
        """Return ``.logits`` [B, L, V], of the last ``logits_to_keep`` positions if that is not 0.

        Args:
            input_ids: token ids [B, L].
            attention_mask: [B, L], 1 for the tokens that are seen; None: all are.
            position_ids: [B, L]; a position that does not follow its predecessor's makes a context another, and a
                position 0 begins a new one, as in packed rows.
            logits_to_keep: as in transformers.
            ignored: what else transformers' models take.

        Returns:
            An object with ``.logits``.

        Source: the calling convention of transformers' causal language models.
        """
        seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        if seen.ndim != 2:
            raise ValueError(
                f"attention_mask has shape {tuple(seen.shape)}; pass [B, L], 1 for the tokens that are seen"
            )
        # From 1: without position_ids no context begins anew.
        counted = torch.arange(1, seen.shape[1] + 1).expand_as(seen) if self.absolute else seen.cumsum(1)
        places = counted if position_ids is None else position_ids.expand_as(input_ids)
        first = 1 if position_ids is None else 0
        unique, inverse = torch.unique(torch.stack([input_ids, seen, places], 1), dim=0, return_inverse=True)
        index = torch.tensor([self._rows_along(*row, first=first) for row in unique.tolist()], device=self.device)[
            inverse
        ]
        logits = torch.cat([self.rows, self.stray])[index]
        if logits.requires_grad:
            logits.retain_grad()
            begins = torch.zeros_like(seen) if position_ids is None else (places == 0) & (seen == 1)
            self.calls.append(Call(input_ids, begins.bool(), index < self.states, logits))
        last = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        # A copy: what the caller does to it in place is not done to the logits that are read.
        return Output(logits[:, last].clone())

    def __getstate__(self) -> dict[str, Any]:
        """Leave the recorded calls out of copies."""
        return self.__dict__ | {"calls": []}

    def _rows_along(self, ids: list[int], seen: list[int], places: list[int], first: int) -> list[int]:
        """The row of each position, from the tokens seen up to it and the gaps between their places."""
        rows, context = [], list[tuple[int, int]]()
        for token, visible, place in zip(ids, seen, places, strict=True):
            if visible and place == 0:
                context = []
            if visible:
                context.append((token, place))
            gaps = {after[1] - before[1] for before, after in pairwise(context)}
            displaced = self.absolute and context[:1] != [] and context[0][1] != first
            ordinary = visible and gaps <= {1} and not displaced
            known = self._row_of.get(tuple(token for token, _ in context)) if ordinary else None
            stray = self.states + hash((visible, *context)) % _STRAY_ROWS
            rows.append(stray if known is None else known)
        return rows


class Call(NamedTuple):
    """One call of the model: ids [B, L], where packed sequences begin, which contexts are a response's own, logits."""

    ids: Int[Tensor, "B L"]
    begins: Tensor
    ordinary: Tensor
    logits: Float[Tensor, "B L V"]


Step = Callable[[PrefixTreeLM, ModelBatch], Any]
"""step(model, batch) ↦ a scalar loss, or anything with one as ``.loss``; or it calls backward itself."""


def model_batch(
    prompts: Sequence[tuple[int, ...]],
    completions: Sequence[tuple[int, ...]],
    logp_old: Float[Tensor, "B T"],
    logp_ref: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B"],
    temperature: float,
) -> ModelBatch:
    """Pad prompts on the left and completions on the right.

    Args:
        prompts: token ids of each row.
        completions: token ids of each row.
        logp_old: [B, T].
        logp_ref: [B, T].
        advantages: [B].
        temperature: τ.

    Returns:
        The batch.

    Source: ours.
    """
    width, length = max(map(len, prompts)), logp_old.shape[1]
    prompt_ids = torch.tensor([(PAD,) * (width - len(row)) + row for row in prompts])
    completion_ids = torch.tensor([row + (PAD,) * (length - len(row)) for row in completions])
    prompt_mask, completion_mask = (prompt_ids != PAD).long(), (completion_ids != PAD).long()
    return ModelBatch(
        prompt_ids,
        prompt_mask,
        completion_ids,
        completion_mask,
        torch.cat([prompt_ids, completion_ids], 1),
        torch.cat([prompt_mask, completion_mask], 1),
        torch.cat([torch.full_like(prompt_ids, -100), completion_ids.where(completion_mask == 1, -100)], 1),
        logp_old.where(completion_mask == 1, 0.0),
        logp_ref.where(completion_mask == 1, 0.0),
        advantages,
        temperature,
    )


def run_step(step: Step, model: PrefixTreeLM, batch: ModelBatch, *, may_be_nan: bool = False) -> float:
    """Run a trainer's step and leave its gradients in the model's parameters and recorded calls.

    Args:
        step: the step.
        model: its model.
        batch: its batch.
        may_be_nan: whether a loss of NaN is an answer, as for a batch that holds NaN.

    Returns:
        The loss, or 0 where the step returns none and calls backward itself.

    Raises:
        ValueError: it returns no scalar tensor, NaN, or nothing that depends on the model.

    Source: ours.
    """
    model.calls.clear()
    model.zero_grad()
    output = step(model, batch.copy())
    if any(p.grad is not None for p in model.parameters()):
        return 0.0
    loss = scalar_of(output, "step")
    if bool(loss.isnan()) and not may_be_nan:
        raise ValueError("the step returned NaN for finite log-probabilities and advantages; nothing can be said of it")
    torch.autograd.backward(loss)
    return float(loss.detach())
