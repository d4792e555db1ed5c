"""From ragged lists of token ids to padded batches, each rank's parts of them, and log-probs of their responses."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from rpg_ref import fused_logprobs
from train import ranks
from train.policy import Policy, Then

Ids = Sequence[int]
Found = TypeVar("Found")


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

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """Tokens of each prompt and of its response."""
        responses = self.mask.sum(1)
        return list(zip((self.attention.sum(1) - responses).tolist(), responses.tolist(), strict=True))

    def rows(self, chosen: slice) -> "Batch":
        """Return the chosen sequences, with the same padding."""
        return Batch(*(x[chosen] for x in self))

    def trimmed(self, chosen: Sequence[int]) -> "Batch":
        """Return the chosen sequences, padded to the longest prompt and the longest response among them."""
        lengths = self.lengths
        prompt, response = (max(lengths[row][of] for row in chosen) for of in (0, 1))
        start = self.tokens.shape[1] - self.mask.shape[1]
        columns = slice(start - prompt, start + max(1, response))
        rows = torch.tensor(chosen)
        return Batch(self.tokens[rows, columns], self.attention[rows, columns], self.mask[rows, : max(1, response)])


class Part(NamedTuple):
    """A part of a batch that goes through a model at a time.

    Attributes:
        rows: which sequences of the batch.
        batch: these, trimmed, on the model's device; all masked where a rank only keeps the others company.
    """

    rows: Int[Tensor, "N"]
    batch: Batch

    def take(self, x: Shaped[Tensor, "B *R"] | None) -> Any:
        """Return its rows of what belongs to the whole batch, and of its columns those it has; None of None."""
        if x is None:
            return None
        x = x[self.rows] if x.ndim == 1 else x[self.rows, : self.batch.mask.shape[1]]
        return x.to(self.batch.tokens.device)

    def add(self, to: Float[Tensor, "B R"], x: Float[Tensor, "N T"]) -> None:
        """Add its rows, which are 0 where masked, to those of the whole batch."""
        to[self.rows, : x.shape[1]] += x.to(to.device)


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


def padded(rows: Sequence[Sequence[float]], width: int) -> Float[Tensor, "B R"]:
    """Return ragged rows as one tensor, zeros at their ends."""
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows])


def parts(batch: Batch, budget: int, device: torch.device) -> list[Part]:
    """Return this rank's parts of a batch; every rank has as many.

    Args:
        batch: the same on every rank.
        budget: the most tokens of a part, padding counted, unless one sequence is longer; 0: no bound.
        device: where they go.
    """
    lengths = batch.lengths
    found = []
    for rows in split(lengths, budget, ranks.size())[ranks.rank()]:
        # A rank that has run out takes the shortest sequence, so that all make the same passes, and masks it.
        chosen = rows or [min(range(len(lengths)), key=lambda row: sum(lengths[row]))]
        part = batch.trimmed(chosen)
        if not rows:
            part = part._replace(mask=torch.zeros_like(part.mask))
        found.append(Part(torch.tensor(chosen), Batch(*(x.to(device) for x in part))))
    return found


def split(lengths: Sequence[tuple[int, int]], budget: int, number: int) -> list[list[list[int]]]:
    """Deal sequences to ranks, longest first in turns, and cut what each has into parts that fit a budget of tokens.

    Args:
        lengths: tokens of each prompt and of its response.
        budget: as ``parts``.
        number: of ranks.

    Returns:
        For each rank equally many lists of rows; those that it does not need are empty.
    """
    order = sorted(range(len(lengths)), key=lambda row: -sum(lengths[row]))
    dealt = [_cut(order[first::number], lengths, budget) for first in range(number)]
    most = max(map(len, dealt))
    return [of_rank + [[] for _ in range(most - len(of_rank))] for of_rank in dealt]


def _cut(rows: Sequence[int], lengths: Sequence[tuple[int, int]], budget: int) -> list[list[int]]:
    cut: list[list[int]] = []
    prompt = response = 0
    for row in rows:
        prompt, response = max(prompt, lengths[row][0]), max(response, lengths[row][1])
        if cut and (not budget or (len(cut[-1]) + 1) * (prompt + response) <= budget):
            cut[-1].append(row)
        else:
            cut.append([row])
            prompt, response = lengths[row]
    return cut


def positions(attention: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """Return how many tokens come before each, so that padding on the left changes nothing."""
    return (attention.cumsum(-1) - 1).clamp(min=0)


def through(policy: Policy, batch: Batch, then: Then[Found]) -> Found:
    """Return then(hidden states [B, R, d], head [V, d]), the states being those that predict each response token."""
    R = batch.mask.shape[1]
    inputs = {"input_ids": batch.tokens, "use_cache": False}
    # A token sees those before it only: padding on the right needs no mask, and no mask is faster.
    if not bool(batch.attention[:, :-R].all()):
        inputs |= {"attention_mask": batch.attention, "position_ids": positions(batch.attention)}
    # The state at position t predicts token t + 1: take those from the last of the prompt, and drop the last of all.
    return policy(lambda hidden, head: then(hidden[:, -R - 1 : -1], head), **inputs)  # type: ignore[no-any-return]


def response_logprobs(policy: Policy, batch: Batch, *, temperature: float = 1.0) -> Float[Tensor, "B R"]:
    """Return log π(token | everything before it) of each response token; 0 where ``batch.mask`` is."""
    return through(
        policy,
        batch,
        lambda hidden, head: fused_logprobs(hidden, head, batch.responses, batch.mask, temperature=temperature),
    )


@torch.no_grad()
def logprobs(policy: Policy, batch: Batch, budget: int, temperature: float) -> Float[Tensor, "B R"]:
    """Return the log-probabilities of a batch's responses, every rank having passed its own parts; 0 where masked."""
    found = torch.zeros(batch.mask.shape, dtype=policy.wide)
    for part in parts(batch, budget, policy.device):
        part.add(found, response_logprobs(policy, part.batch, temperature=temperature))
    return ranks.total(found)
