"""From ragged lists of token ids to one padded batch, and from a model to the log-probabilities of its responses."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rpg_ref import token_logprobs

Ids = Sequence[int]


class Batch(NamedTuple):
    """Prompts padded on the left, responses on the right, so that every response starts in the same column.

    Attributes:
        tokens: ids of prompt and response, [B, P + R].
        attention: 1 for a token, 0 for padding, [B, P + R].
        mask: 1 for a token of the response, its end-of-text token included, [B, R].
    """

    tokens: Int[Tensor, "B L"]
    attention: Int[Tensor, "B L"]
    mask: Int[Tensor, "B R"]

    @property
    def responses(self) -> Int[Tensor, "B R"]:
        """The tokens of the responses, and padding."""
        return self.tokens[:, -self.mask.shape[1] :]

    def rows(self, chosen: slice) -> "Batch":
        """Return the chosen sequences, with the same padding."""
        return Batch(*(x[chosen] for x in self))

    def micro(self, budget: int) -> "list[Batch]":
        """Split into batches of neighbours of at most ``budget`` tokens each, padding counted, and at least one row.

        The padding stays: a row's numbers are then the same in every batch. A budget of 0 leaves the batch whole.
        """
        rows = max(1, budget // self.tokens.shape[1]) if budget else len(self.tokens)
        return [self.rows(slice(first, first + rows)) for first in range(0, len(self.tokens), rows)]


def pack(prompts: Sequence[Ids], responses: Sequence[Ids], pad_id: int) -> Batch:
    """Pad each prompt on the left and each response on the right to the longest of its kind."""
    P, R = max(map(len, prompts)), max(map(len, responses))
    tokens = torch.full((len(prompts), P + R), pad_id)
    attention = torch.zeros_like(tokens)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        here = slice(P - len(prompt), P + len(response))
        tokens[row, here] = torch.tensor([*prompt, *response])
        attention[row, here] = 1
    return Batch(tokens, attention, attention[:, P:])


def positions(attention: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """Return how many tokens come before each, so that padding on the left changes nothing."""
    return (attention.cumsum(-1) - 1).clamp(min=0)


def response_logits(model: nn.Module, batch: Batch) -> Float[Tensor, "B R V"]:
    """Return the logits that predict each response token from everything before it."""
    R = batch.mask.shape[1]
    # The logits at position t predict token t + 1: take one more than the response, and drop the last.
    inputs = {"input_ids": batch.tokens, "logits_to_keep": R + 1, "use_cache": False}
    # A token sees those before it only: padding on the right needs no mask, and no mask is faster.
    if not bool(batch.attention[:, :-R].all()):
        inputs |= {"attention_mask": batch.attention, "position_ids": positions(batch.attention)}
    logits: Tensor = model(**inputs).logits
    return logits[:, :-1]


def response_logprobs(model: nn.Module, batch: Batch, *, temperature: float = 1.0) -> Float[Tensor, "B R"]:
    """Return log π(token | everything before it) of each response token; where ``batch.mask`` is 0, of padding."""
    return token_logprobs(response_logits(model, batch), batch.responses, temperature=temperature)
