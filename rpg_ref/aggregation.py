"""From one loss per token to one number: the choices differ only in how a sequence's length weighs."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from rpg_ref.checks import Table, check_mask, check_number, check_tensor
from rpg_ref.numerics import at_least_float32, widest


class Aggregation(NamedTuple):
    """How one loss per token becomes one number.

    Attributes:
        of_sequence: (sum of a sequence's losses [B], its length [B]) ↦ what the sequence adds, [B].
        counted: length [B] ↦ what the sequence adds to the denominator, [B].
    """

    of_sequence: Callable[[Float[Tensor, "B"], Float[Tensor, "B"]], Float[Tensor, "B"]]
    counted: Callable[[Float[Tensor, "B"]], Float[Tensor, "B"]]


# fmt: off
AGGREGATIONS: Table[Aggregation] = Table("aggregation", {
    "token-mean":          Aggregation(lambda total, length: total,                       lambda length: length),
    "seq-mean-token-mean": Aggregation(lambda total, length: total / length.clamp(min=1), lambda length: length > 0),
    "seq-mean-token-sum":  Aggregation(lambda total, length: total,                       lambda length: length > 0),
})
# fmt: on

EXACT_UNDER = {
    "token-mean": "a constant denominator; its own count of tokens is not constant",
    "seq-mean-token-mean": "no denominator, unless all responses have one length",
    "seq-mean-token-sum": "a constant denominator, such as its own count of responses",
}
EXACT_UNDER |= {"sequence": EXACT_UNDER["seq-mean-token-sum"], "geometric": EXACT_UNDER["seq-mean-token-mean"]}
"""By aggregation, the denominator under which a mean over tokens has the expectation meant, at any lengths.

At the levels where a response is one sample the level alone decides: it is one term of a sum, or divided by its length.
E[Σ_t ∇log π_θ/N] is zero for a constant N, and not where N is random: the batch's own tokens, or the response's.
Source: ``proofs/length_normalisation.py``.
"""

CONSTANT_REMEDY = "pass one, such as the responses of the whole batch times the largest length allowed"
"""What to do where a method divides by a constant and none is given."""


def count(mask: Shaped[Tensor, "B T"], how: str) -> Float[Tensor, ""]:
    """Return the default denominator: unmasked tokens for token-mean, else sequences that have any.

    Sum it over micro-batches and ranks and pass the total as ``denominator``: the gradient then does not depend on
    how the batch was split.

    Args:
        mask: [B, T], nonzero for tokens that count.
        how: a name in AGGREGATIONS.

    Returns:
        The count, a float64 scalar.

    Raises:
        ValueError: the name is unknown, or the mask is no tensor.

    Source: paper §5 (token-mean); PAPER §7.
    """
    check_tensor("mask", mask)
    return widest(AGGREGATIONS[how].counted((mask != 0).sum(-1))).sum()


def aggregate(
    loss: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    how: str,
    *,
    denominator: float | Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Σ loss over unmasked tokens (per-sequence means first, for seq-mean-token-mean), over the denominator.

    Args:
        loss: one loss per token, [B, T]; masked entries are ignored, whatever they hold.
        mask: [B, T], nonzero for tokens that count.
        how: "token-mean", "seq-mean-token-mean" or "seq-mean-token-sum".
        denominator: the number of tokens or sequences of the *whole* batch, > 0; None counts those of this call.
            A constant here makes seq-mean-token-sum Dr. GRPO's aggregation.

    Returns:
        A scalar, in float32 at least.

    Raises:
        ValueError: shapes differ, the name is unknown, the denominator is not > 0, or there is no unmasked token
            and no denominator.

    Source: paper §5 (token-mean); PAPER §7.
    """
    check_tensor("loss", loss)
    check_mask(mask, loss.shape)
    of_sequence = AGGREGATIONS[how].of_sequence
    if denominator is None:
        denominator = count(mask, how)
        if denominator == 0:
            raise ValueError(f"mask of shape {tuple(mask.shape)} keeps no token; pass a denominator to allow that")
    elif not isinstance(denominator, Tensor):
        check_number("denominator", denominator, 0.0, math.inf, "()")
    elif denominator.ndim:
        raise ValueError(f"denominator must be one number, got shape {tuple(denominator.shape)}; sum it")
    keep = mask != 0
    totals = torch.where(keep, at_least_float32(loss), 0.0).sum(-1)
    return of_sequence(totals, keep.sum(-1)).sum() / denominator
