"""From one loss per token to one number: the choices differ only in how a sequence's length weighs."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from rpg_ref.checks import Table, check_mask, check_number

AGGREGATIONS: Table[tuple[bool, bool]] = Table(
    "aggregation",
    {  #                        each sequence's sum is divided by its length; the batch is counted in tokens
        "token-mean": (False, True),
        "seq-mean-token-mean": (True, False),
        "seq-mean-token-sum": (False, False),
    },
)


def count(mask: Shaped[Tensor, "B T"], how: str) -> Float[Tensor, ""]:
    """Return the default denominator: unmasked tokens for token-mean, else sequences that have any.

    Sum it over micro-batches and ranks and pass the total as ``denominator``: the gradient then does not depend on
    how the batch was split.

    Args:
        mask: [B, T], nonzero for tokens that count.
        how: a name in AGGREGATIONS.

    Returns:
        The count, a float32 scalar (exact up to 2²⁴).

    Raises:
        ValueError: the name is unknown.

    Source: paper §5 (token-mean); PAPER §7.
    """
    _, by_token = AGGREGATIONS[how]
    counted = mask != 0 if by_token else (mask != 0).any(-1)
    return counted.sum().float()


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
        A scalar.

    Raises:
        ValueError: shapes differ, the name is unknown, the denominator is not > 0, or there is no unmasked token
            and no denominator.

    Source: paper §5 (token-mean); PAPER §7.
    """
    check_mask(mask, loss.shape)
    per_sequence_mean, _ = AGGREGATIONS[how]
    if denominator is None:
        denominator = count(mask, how)
        if denominator == 0:
            raise ValueError(
                f"mask of shape {tuple(mask.shape)} has no unmasked token; pass a denominator to allow that"
            )
    elif not isinstance(denominator, Tensor):
        check_number("denominator", denominator, 0.0, math.inf, "()")
    sums = torch.where(mask != 0, loss, 0.0).sum(-1)
    if per_sequence_mean:
        sums = sums / (mask != 0).sum(-1).clamp(min=1)
    return sums.sum() / denominator
