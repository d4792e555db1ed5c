"""Responses drawn from the policy itself, token by token, where the trainer has it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from train.batch import Ids, pack, positions
from train.engines.engine import Said
from train.policy import Policy, gathered
from train.seeds import derive
from train.tokenizer import ends

SPARE = 128
"""Tokens that keys and values get room for whenever they are moved."""


@dataclass
class Transformers:
    """The policy draws for itself: what is sampled is π_old, to rounding.

    Attributes:
        policy: the only one it ever holds.
        tokenizer: names the padding and end-of-text tokens.
        at_once: the most responses drawn at a time; 0: all.
    """

    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    at_once: int = 0

    def holding(self, policy: Policy) -> AbstractContextManager[None]:
        """Make the weights whole on every rank; there is nothing to copy."""
        return gathered(policy)

    def sample(
        self, prompts: Sequence[Ids], *, max_tokens: int, temperature: float, seed: int, first: int = 0
    ) -> list[Said]:
        """Draw, as ``Engine.sample``."""
        how: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "first": first}
        return sample(self.policy, self.tokenizer, prompts, **how, at_once=self.at_once)

    def close(self) -> None:
        """Do nothing: the weights are the trainer's."""


@torch.inference_mode()
def sample(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Ids],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    first: int = 0,
    at_once: int = 0,
) -> list[Said]:
    """Draw one response to each prompt from the tempered softmax itself: no top-k, no top-p, no penalty.

    Args:
        policy: the policy; a sharded one must be gathered.
        tokenizer: names the padding token and those that end a response.
        prompts: token ids of each prompt; one that is repeated is read once.
        max_tokens: the longest response.
        temperature: divides the logits, > 0.
        seed: the same seed draws the same responses, and the caller's random state stays as it was.
        first: number of the first prompt among all; a response's random numbers are of the seed and its number alone.
        at_once: the most responses drawn at a time; 0: all.

    Returns:
        A response to each.
    """
    size, ending = at_once or len(prompts), ends(tokenizer)
    drawn: list[Said] = []
    for start in range(0, len(prompts), size or 1):
        part = prompts[start : start + size]
        seeds = [derive(seed, first + start + row) for row in range(len(part))]
        tokens, logp = _draw(policy, part, tokenizer.pad_token_id, ending, max_tokens, temperature, seeds)
        for ids, of_ids in zip(tokens.tolist(), logp.tolist(), strict=True):
            length = next((place for place, id in enumerate(ids, 1) if id in ending), len(ids))
            drawn.append(Said(ids[:length], of_ids[:length]))
    return drawn


def _draw(
    policy: Policy,
    prompts: Sequence[Ids],
    pad: int,
    ending: Sequence[int],
    max_tokens: int,
    temperature: float,
    seeds: Sequence[int],
) -> tuple[Int[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Return responses and the log-probabilities of their tokens, with anything behind their ends."""
    device = policy.device
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    batch = pack(distinct, [()] * len(distinct), pad)
    cache = DynamicCache(config=policy.model.config)
    cache.layers = [_Roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    seen, new = batch.attention.to(device), batch.tokens.to(device)
    row_of = {prompt: row for row, prompt in enumerate(distinct)}
    rows = torch.tensor([row_of[tuple(prompt)] for prompt in prompts], device=device)
    alive, going = torch.arange(len(prompts), device=device), torch.ones(len(prompts), dtype=torch.bool, device=device)
    drawn = torch.full((len(prompts), max_tokens), ending[0], device=device)
    last = torch.tensor(ending, device=device)
    logp = torch.zeros(len(prompts), max_tokens, device=device)
    uniform = torch.stack([_uniform(max_tokens, seed) for seed in seeds]).to(device)
    for step in range(max_tokens):
        # Without padding there is nothing to mask, and the model counts by itself.
        padded = (
            {} if bool(seen.all()) else {"attention_mask": seen, "position_ids": positions(seen)[:, -new.shape[1] :]}
        )
        logits = policy(_last_logits, input_ids=new, past_key_values=cache, use_cache=True, **padded)
        if step == 0:
            logits, seen = logits[rows], _take(cache, seen, rows)
        logits = logits / temperature
        token = inverse_cdf(logits, uniform[alive, step])
        drawn[alive, step] = token
        logp[alive, step] = logits.gather(1, token[:, None]).squeeze(1) - logits.logsumexp(1)
        going &= ~torch.isin(token, last)
        if not bool(going.any()):
            break
        # Dropping the rows that have ended copies all others: worth it once they are a quarter.
        if going.sum() <= 0.75 * len(going):
            seen = _take(cache, seen, going.nonzero().squeeze(1))
            alive, token, going = alive[going], token[going], going[going]
        new, seen = token[:, None], torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
    return drawn, logp


def _uniform(number: int, seed: int) -> Float[Tensor, "R"]:
    """A response has its own numbers, whatever else is drawn beside it or on other ranks."""
    return torch.rand(number, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _last_logits(hidden: Float[Tensor, "B L d"], head: Float[Tensor, "V d"]) -> Float[Tensor, "B V"]:
    """In float32 as where the loss is taken: on a GPU half-precision factors are summed and kept in it."""
    last = hidden[:, -1]
    if last.is_cuda and last.dtype.itemsize == 2:
        return torch.mm(last, head.T, out_dtype=torch.float32)
    return (last @ head.T).float()


def _take(cache: DynamicCache, seen: Int[Tensor, "B T"], rows: Int[Tensor, "N"]) -> Int[Tensor, "N T"]:
    cache.batch_select_indices(rows)
    return seen[rows]


def inverse_cdf(logits: Float[Tensor, "B V"], uniform: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
    """Return the first token at which the cumulative probability exceeds a uniform number in [0, 1).

    A token of probability zero is never returned; where a logit is NaN, any token is.
    """
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    below = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, below, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


class _Roomy(DynamicLayer):
    """Keys and values with room to spare, so that a new token does not move all that came before it."""

    # The base class has None for both until there are any.
    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the states of new tokens; return all."""
        if self.is_initialized:
            self.keys, self.values = _append(self.keys, key_states), _append(self.values, value_states)
        else:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
        return self.keys, self.values


def _append(held: Float[Tensor, "B H T D"], new: Float[Tensor, "B H N D"]) -> Float[Tensor, "B H M D"]:
    """Return both, in the storage of what is held if that has room."""
    B, H, length, D = held.shape
    end = length + new.shape[2]
    if held.stride(1) // held.stride(2) >= end:
        both = held.as_strided((B, H, end, D), held.stride())
    else:
        both = held.new_empty(B, H, end + SPARE, D)[:, :, :end]
        both[:, :, :length] = held
    both[:, :, length:] = new
    return both
