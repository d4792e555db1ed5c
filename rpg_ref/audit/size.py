"""What is a gradient divided by? The weight of every token of a batch, and the law by which a split changes it."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rpg_ref.checks import check_number

NORMALISERS = ("tokens", "sequences")
# Single precision knows a weight to about 1e-6.
_SAME = 1e-4


class Weights(NamedTuple):
    """How much a token weighs in a gradient, and whether a response's tokens share 1/T of its length T between them.

    Attributes:
        of_response: weight of each response, [B], > 0; that of a token is the same, or a T-th of it.
        shared: whether it is a T-th.

    Source: ours.
    """

    of_response: Float[Tensor, "B"]
    shared: bool

    def read_as(self, shared: bool, lengths: Tensor) -> "Weights":
        """Return the same weights of tokens, read as shared or not."""
        power = int(shared) - int(self.shared)
        return Weights(self.of_response * lengths.double() ** power, shared)


def weights(pull: Float[Tensor, "B T"], advantages: Float[Tensor, "B"], mask: Bool[Tensor, "B T"]) -> Weights | None:
    """Return the weight of each response in a gradient on-policy, where the importance ratios are 1.

    Args:
        pull: how hard each token's log-probability is pulled up, [B, T].
        advantages: that pull it, none of them 0, [B].
        mask: [B, T].

    Returns:
        Weights, or None where a response's tokens weigh differently, or one is pulled against its advantage.

    Source: ours.
    """
    per_token = pull / advantages[:, None]
    lengths = mask.sum(1)
    rows = [row[kept] for row, kept in zip(per_token, mask, strict=True)]
    mean = torch.stack([row.mean() for row in rows])
    if any(bool((row - row.mean()).abs().max() > _SAME * row.mean().abs()) for row in rows) or bool((mean <= 0).any()):
        return None
    spread = [float((x / x.mean() - 1).abs().max()) for x in (mean, mean * lengths)]
    return Weights(mean * lengths, True) if spread[1] < _SAME < spread[0] else Weights(mean, False)


def check_normaliser(normaliser: str | int | float) -> None:
    """Raise ValueError unless it is one of the two names or a number > 0."""
    if not isinstance(normaliser, str):
        check_number("normaliser", normaliser, 0.0, math.inf, "()")
    elif normaliser not in NORMALISERS:
        raise ValueError(f"normaliser must be 'tokens', 'sequences' or a number, got {normaliser!r}; choose one")


def wrong_size(found: Weights | None, lengths: Tensor, normaliser: str | int | float) -> Iterator[str]:
    """Compare the weights of a batch with those that a normaliser gives.

    Args:
        found: the weights.
        lengths: of the responses, [B].
        normaliser: "tokens" for the mean over all tokens; "sequences" for a mean over responses of their tokens' sum
            or mean; or the number that the sum over tokens is to be divided by.

    Yields:
        A sentence where they differ.

    Raises:
        ValueError: as ``check_normaliser``.

    Source: ours.
    """
    check_normaliser(normaliser)
    if found is None:
        yield "what the gradient is divided by cannot be told: the tokens of one response weigh differently"
        return
    tokens, rows = int(lengths.sum()), len(lengths)
    number = {"tokens": tokens, "sequences": rows}.get(str(normaliser), normaliser)
    wanted = torch.full_like(found.of_response, 1 / float(number))
    off = found.of_response / wanted
    if bool((off - 1).abs().max() < _SAME) and (normaliser == "sequences" or not found.shared):
        return
    meant = {"tokens": "the number of tokens", "sequences": "the number of responses"}.get(
        str(normaliser), f"{number:g}"
    )
    by = words(found, lengths)
    yield f"the sum over tokens is divided by {by}, not by {meant}"


def words(found: Weights, lengths: Tensor, width: int = 0) -> str:
    """Say what a batch's sum over tokens is divided by; with its width, padding counted, also whether that is it."""
    x, tokens, rows = found.of_response, int(lengths.sum()), len(lengths)
    each = "each response's length and " if found.shared else ""
    if bool((x / x.mean() - 1).abs().max() > _SAME):
        return "a number that differs between responses"
    number = 1 / float(x.mean())
    known = (
        {"the number of responses": rows} if each else {"the number of tokens": tokens, "the number of responses": rows}
    )
    if width and not each:
        known["the number of places, padding counted"] = rows * width
    for name, count in known.items():
        if abs(number / count - 1) < _SAME:
            return each + name
    name, count = next(iter(known.items()))
    times = round(number / count)
    known_factor = times > 1 and abs(number / count / times - 1) < _SAME
    return each + f"{number:.6g}" + (f", {times} times {name}" if known_factor else "")


class Part(NamedTuple):
    """How many tokens and responses one of a split's parts holds, and all parts that it is in.

    Attributes:
        rows: the responses of the micro-batch.
        step: those of its accumulation step on its rank.
        rank: those of its rank.
    """

    rows: tuple[int, ...]
    step: tuple[int, ...]
    rank: tuple[int, ...]


class Shape(NamedTuple):
    """A split: its number of ranks, accumulation steps and micro-batches, and its parts."""

    ranks: int
    accumulation: int
    micro_batches: int
    parts: Sequence[Part]


class Law(NamedTuple):
    """A token's weight is factor · ranksᵃ · accumulationᵇ · micro-batchesᶜ / count, in every split.

    Attributes:
        unit: what is counted: "tokens", "responses", or "a constant".
        scope: where it is counted: "micro-batch", "accumulation step", "rank" or "whole step".
        powers: a, b, c.
        factor: what is left; 1 where the count explains the size.
        shared: whether a response's tokens share its weight.

    Source: ours.
    """

    unit: str
    scope: str
    powers: tuple[int, int, int]
    factor: float
    shared: bool


_UNITS: dict[str, Callable[[Tensor, Sequence[int]], float]] = {
    "tokens": lambda lengths, rows: float(lengths[list(rows)].sum()),
    "responses": lambda lengths, rows: float(len(rows)),
    "a constant": lambda lengths, rows: 1.0,
}
_SCOPES = ("whole step", "rank", "accumulation step", "micro-batch")
MEANS = {"whole step": (0, 0, 0), "rank": (-1, 0, 0), "accumulation step": (-1, -1, 0), "micro-batch": (-1, -1, -1)}
"""The powers under which the weights of a scope add up to those of a mean of means."""


def law_of(found: Sequence[Weights], shapes: Sequence[Shape], lengths: Tensor) -> Law | None:
    """Find the law of a gradient's size over several splits of one batch.

    Args:
        found: the weights under each split, first those of the batch in one piece; NaN where one cannot be told.
        shapes: the splits.
        lengths: of the responses, [B].

    Returns:
        The simplest law that explains all weights, or None.

    Source: ours.
    """
    # Of the whole batch in one piece it can be told; under a split other denominators hide it.
    shared = found[0].shared
    logs = torch.cat([x.read_as(shared, lengths).of_response.log() for x in found])
    columns = torch.cat(
        [torch.tensor([[1.0, *map(float, shape[:3])]]).log().expand(len(lengths), 4) for shape in shapes]
    ).double()
    columns[:, 0] = 1.0
    known = logs.isfinite()
    for unit, count in _UNITS.items():
        for scope in _SCOPES:
            counts = torch.cat([_counts(shape, scope, lengths, count) for shape in shapes])
            target = (logs + counts.log())[known]
            solution = torch.linalg.lstsq(columns[known], target[:, None], driver="gelsd").solution.squeeze(1)
            a, b, c = (round(float(x)) for x in solution[1:])
            factor = (target - columns[known, 1:] @ torch.tensor([a, b, c], dtype=torch.float64)).mean()
            left = target - factor - columns[known, 1:] @ torch.tensor([a, b, c], dtype=torch.float64)
            if float(left.abs().max()) < _SAME:
                return Law(unit, scope, (a, b, c), float(factor.exp()), shared)
    return None


def _counts(shape: Shape, scope: str, lengths: Tensor, count: Callable[[Tensor, Sequence[int]], float]) -> Tensor:
    """What each response's own part counts, [B]."""
    result = torch.zeros(len(lengths), dtype=torch.float64)
    everyone = range(len(lengths))
    for part in shape.parts:
        where = {"micro-batch": part.rows, "accumulation step": part.step, "rank": part.rank}.get(scope, everyone)
        result[list(part.rows)] = count(lengths, list(where))
    return result
