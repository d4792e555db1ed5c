"""Log-ratios between policies, and the level (token or whole sequence) at which a sample is one."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from rpg_ref.checks import Table, check_log_probs
from rpg_ref.numerics import widest


class LogRatios(NamedTuple):
    """log w = log π_θ/π_old, log v = log π_θ/π_ref (both differentiable), log u = log π_ref/π_old (constant)."""

    log_w: Tensor
    log_v: Tensor
    log_u: Tensor


def log_ratios(
    logp: Float[Tensor, "*shape"], logp_old: Float[Tensor, "*shape"], logp_ref: Float[Tensor, "*shape"] | None = None
) -> LogRatios:
    """Return log w, log v and log u = log w − log v, in float64; only ``logp`` carries a gradient.

    Args:
        logp: log π_θ of the samples, any shape.
        logp_old: log π_old, same shape, of the policy that drew the samples (unnormalised if its mass is not 1).
        logp_ref: log π_ref, same shape; None means π_ref = π_old, so that v = w and u = 1.

    Returns:
        LogRatios, each of logp's shape.

    Raises:
        ValueError: shapes differ, or a dtype is not floating point.

    Source: paper §2, notation.
    """
    check_log_probs(logp, logp_old=logp_old, logp_ref=logp_ref)
    old = widest(logp_old.detach())
    ref = old if logp_ref is None else widest(logp_ref.detach())
    current = widest(logp)
    return LogRatios(current - old, current - ref, ref - old)


def truncate(log_w: Float[Tensor, "*shape"], cap: float) -> Float[Tensor, "*shape"]:
    """min(w, cap), the truncated importance weight: bounded variance, bias E[(w − cap)₊·…].

    Args:
        log_w: log importance ratio, any shape.
        cap: largest weight, > 0; ``math.inf`` truncates nothing.

    Returns:
        The weight, in (0, cap], same shape.

    Source: truncated importance sampling (Ionides 2008), a variant named in PAPER §4.
    """
    return log_w.exp().clamp(max=cap)


# fmt: off
LEVELS: Table[Callable[[Float[Tensor, "B T"]], Float[Tensor, "B S"]]] = Table("level", {
    "token":    lambda x: x,
    "sequence": lambda x: x.sum(-1, keepdim=True),
})
# fmt: on
"""What one sample is: token log-probs [B, T], zero where masked, ↦ sample log-probs [B, S], S = T or 1.

Source: paper §2 writes x for a whole sample and applies its formulas to tokens; both readings are rows here.
"""
