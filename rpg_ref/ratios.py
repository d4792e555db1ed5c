"""Log-ratios between policies, bounds on importance weights, and the level at which a sample is one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rpg_ref.checks import Table, check_log_probs, check_number
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


# fmt: off
BOUNDS: Table[Callable[[Tensor, float, float], Tensor]] = Table("bound", {
    "clamp": lambda log_w, low, high: log_w.clamp(low, high),
    "mask":  lambda log_w, low, high: torch.where((low <= log_w) & (log_w <= high), log_w, -torch.inf),
})
# fmt: on
"""What becomes of a log-weight outside [low, high]: the nearest bound, or a weight of zero.

Source: truncated importance sampling (Ionides 2008); masking as in IcePop (2025); variants named in PAPER §4.
"""


@dataclass(frozen=True)
class WeightBound:
    """A bound on importance weights: what to do with those outside [low, high].

    Attributes:
        rule: "clamp" (with low = 0, truncated importance sampling) or "mask" (weight zero outside).
        low: smallest weight, ≥ 0.
        high: largest weight, > 0 and ≥ low; the defaults bound nothing.

    Raises:
        ValueError: an unknown rule, or a bound out of range.

    Source: PAPER §4, variants found in practice.
    """

    rule: str = "clamp"
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        """Check the rule and the interval."""
        BOUNDS.check(self.rule)
        check_number("low", self.low, 0.0, math.inf, "[)")
        check_number("high", self.high, 0.0, math.inf, "(]")
        check_number("high", self.high, self.low, math.inf)


def bounded_log_weight(log_w: Float[Tensor, "*shape"], bound: WeightBound) -> Float[Tensor, "*shape"]:
    """Return log of the bounded weight: log min(max(w, low), high), or −inf for a masked one.

    The bias is E[(bounded w − w)·…] over the samples outside the bound, and bounded variance is what it buys.

    Args:
        log_w: log importance ratio, any shape.
        bound: the bound.

    Returns:
        Same shape; its exp is the weight.

    Source: PAPER §4, variants found in practice.
    """
    low = math.log(bound.low) if bound.low > 0 else -math.inf
    return BOUNDS[bound.rule](log_w, low, math.log(bound.high))


class Level(NamedTuple):
    """What one sample is.

    Attributes:
        samples: (token log-probs [B, T], zero where masked; the mask) ↦ sample log-probs [B, S], S = T or 1.
        alive: mask [B, T] ↦ which samples there are, [B, S].
        reward: (advantage of a response [B, 1], mask) ↦ of its samples [B, S].
        objective: the level of the objectives its recipes may declare, "token" or "sequence".
        share: mask ↦ what multiplies the loss of each sample.
    """

    samples: Callable[[Float[Tensor, "B T"], Bool[Tensor, "B T"]], Float[Tensor, "B S"]]
    alive: Callable[[Bool[Tensor, "B T"]], Bool[Tensor, "B S"]]
    reward: Callable[[Float[Tensor, "B 1"], Bool[Tensor, "B T"]], Float[Tensor, "B S"]]
    objective: str
    share: Callable[[Bool[Tensor, "B T"]], Float[Tensor, "B 1"] | float] = lambda keep: 1.0


def _each(keep: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    return keep


def _any(keep: Bool[Tensor, "B T"]) -> Bool[Tensor, "B 1"]:
    return keep.any(1, keepdim=True)


def _mean(x: Float[Tensor, "B T"], keep: Bool[Tensor, "B T"]) -> Float[Tensor, "B 1"]:
    return x.sum(1, keepdim=True) / keep.sum(1, keepdim=True).clamp(min=1)


def _over_length(keep: Bool[Tensor, "B T"]) -> Float[Tensor, "B 1"]:
    return 1 / widest(keep.sum(1, keepdim=True).clamp(min=1))


def _everywhere(advantage: Float[Tensor, "B 1"], keep: Bool[Tensor, "B T"]) -> Float[Tensor, "B 1"]:
    return advantage


def _at_the_end(advantage: Float[Tensor, "B 1"], keep: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    last = keep & (keep.cumsum(1) == keep.sum(1, keepdim=True))
    return torch.where(last, advantage, 0.0)


# fmt: off
LEVELS: Table[Level] = Table("level", {
    "token":     Level(lambda x, keep: x,                      _each, _everywhere, "token"),
    "sequence":  Level(lambda x, keep: x.sum(1, keepdim=True), _any,  _everywhere, "sequence"),
    "prefix":    Level(lambda x, keep: x.cumsum(1),            _each, _at_the_end, "sequence"),
    "geometric": Level(_mean,                                  _any,  _everywhere, "sequence"),
    "sequence-over-length": Level(lambda x, keep: x.sum(1, keepdim=True), _any, _everywhere, "sequence", _over_length),
})
# fmt: on
"""What one sample is: a token, the response, the response up to a token (w_{1:t}), or the response by its geometric
mean (Π w_t)^{1/T}; or the response, its loss divided by its length.

Source: paper §2 writes x for a whole sample and applies its formulas to tokens; PAPER §5 for all four.
"""
