"""RPG-Style Clip: the same weight, and a region of w outside which its gradient is zero. Beside it the hard clip."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rpg_ref.checks import check_number
from rpg_ref.divergences import Divergence
from rpg_ref.numerics import rounded
from rpg_ref.ratios import WeightBound, bounded_log_weight
from rpg_ref.surrogates import PerSample, Terms, terms


@dataclass(frozen=True)
class DualClip:
    """Where a sample still moves the policy: w < 1 + high if it is to become likelier, else 1 − low < w < dual.

    Attributes:
        low: ε1 in (0, 1]; 1 never clips.
        high: ε2 > 0; inf never clips.
        dual: c > 1, the upper bound for samples that are to become less likely; inf never clips.

    Raises:
        ValueError: a bound is out of range, or so small that w = 1 is outside, where every on-policy sample is.

    Source: paper §3.3, §4.1, App. G; defaults (0.2, 0.28) of §5 and c = 10 of the released scripts.
    """

    low: float = 0.2
    high: float = 0.28
    dual: float = 10.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_number("low", self.low, 0.0, 1.0)
        check_number("high", self.high, 0.0, math.inf)
        check_number("dual", self.dual, 1.0, math.inf, "(]")
        for name, interior, direction in (("low", 1 - self.low < 1, "less"), ("high", 1 < 1 + self.high, "more")):
            if not interior:
                value = getattr(self, name)
                raise ValueError(
                    f"{name} is {value!r}, so that no sample at w = 1 could be made {direction} likely; pass {name} > 0"
                )


class Region(NamedTuple):
    """The clip at each sample: whether its ratio is inside, and the ratio clamped to the interval inside."""

    inside: Bool[Tensor, "*shape"]
    clamped_w: Float[Tensor, "*shape"]


def region(direction: Float[Tensor, "*shape"], w: Float[Tensor, "*shape"], clip: DualClip) -> Region:
    """Inside iff w < 1 + ε2 where direction ≥ 0, and iff 1 − ε1 < w < c where direction < 0; outside has no gradient.

    Args:
        direction: anything with the sign in which the sample pushes log π_θ (RPG: the weight; PPO: the advantage).
        w: importance ratio π_θ/π_old, same shape.
        clip: the bounds.

    Returns:
        Region of masks and clamped ratios, same shape; a sample exactly on a bound is outside.

    Source: paper Algorithm 2, whose ψ = A′·ℓ has the sign of the weight where ℓ = −log π_θ > 0. At ℓ = 0, where the
    gradient of a softmax's log π_θ is zero, ψ forgets the sign and we keep it, as Algorithm 1 does.
    """
    up, w_low, w_high = direction >= 0, 1 - clip.low, 1 + clip.high
    return Region(
        inside=torch.where(up, w < w_high, (w_low < w) & (w < clip.dual)),
        clamped_w=torch.where(up, w.clamp(max=w_high), w.clamp(w_low, clip.dual)),
    )


def clipped_ratio(
    direction: Float[Tensor, "*shape"], log_w: Float[Tensor, "*shape"], clip: DualClip
) -> Float[Tensor, "*shape"]:
    """Return w where it is inside, and its clamped value, a constant in θ, where it is not.

    Args:
        direction: as in ``region``.
        log_w: log importance ratio, same shape.
        clip: the bounds.

    Returns:
        The clipped ratio, same shape.

    Source: paper Algorithm 1's max and min, written as the region they select.
    """
    inside, clamped_w = region(direction, log_w.detach().exp(), clip)
    return torch.where(inside, torch.where(inside, log_w, 0.0).exp(), clamped_w)


def clipped_loss(
    logp: Float[Tensor, "*shape"],
    logp_old: Float[Tensor, "*shape"],
    advantage: PerSample,
    divergence: str | Divergence,
    beta: float,
    *,
    logp_ref: Float[Tensor, "*shape"] | None = None,
    clip: DualClip = DualClip(),
) -> Float[Tensor, "*shape"]:
    """SG(clamp(w)·A + C)·ℓ with ℓ = −log π_θ and C = −β·u·slope(log v), ℓ differentiated inside the region only.

    For w ≥ M = max(1 + ε2, c) no gradient flows whatever the sign, so log w is clamped at log M + 1 (strictly beyond
    M) before exp, and log v by as much, u being fixed: no w overflows, no gradient changes, and such samples
    report their value at that clamp.

    Args:
        logp: log π_θ of the samples in nats, ≤ 0, any shape; the only input that carries a gradient.
        logp_old: log π_old, same shape.
        advantage: A = R − b, same shape or one number, larger is better.
        divergence: a name in DIVERGENCES or a Divergence.
        beta: strength β ≥ 0 of the penalty, in reward per nat.
        logp_ref: log π_ref, same shape; None means π_ref = π_old.
        clip: the bounds.

    Returns:
        One loss per sample, same shape; its gradient is −1[inside]·weight·∇log π_θ.

    Raises:
        ValueError: as ``weight``.

    Source: paper Algorithm 2 and App. G.2.
    """
    t = terms(logp, logp_old, advantage, beta, logp_ref, divergence)
    log_w, log_v = t.log_w.detach(), t.log_v.detach()
    excess = (log_w - math.log(max(1 + clip.high, clip.dual)) - 1).clamp(min=0.0)
    w = (log_w - excess).exp()
    C = -beta * t.u * t.row.slope(log_v - excess)
    inside, clamped_w = region(w * t.advantage + C, w, clip)
    return rounded((clamped_w * t.advantage + C) * torch.where(inside, -t.logp, -t.logp.detach()), logp)


def clipped_loss_as_printed(
    logp: Float[Tensor, "*shape"],
    logp_old: Float[Tensor, "*shape"],
    advantage: PerSample,
    divergence: str | Divergence,
    beta: float,
    *,
    logp_ref: Float[Tensor, "*shape"] | None = None,
    clip: DualClip = DualClip(),
) -> Float[Tensor, "*shape"]:
    """−clamp(w)·Â with Â = A − β·f′(v) differentiated too: Algorithm 1 to the letter, which is not RPG's gradient.

    The expected penalty gradient is zero for fkl and ufkl; for rkl and urkl it is right, with extra variance; and
    samples outside the region still move through Â. With Â detached this is ``clipped_loss`` in gradient.

    Args and Raises: as ``clipped_loss``.

    Returns:
        One loss per sample, same shape.

    Source: paper Algorithm 1, lines 11–14, 27, 32; what is wrong with it is in the errata.
    """
    t = terms(logp, logp_old, advantage, beta, logp_ref, divergence)
    direction = _regularised(t, torch.zeros_like(t.log_w), beta).detach()
    inside, clamped_w = region(direction, t.log_w.detach().exp(), clip)
    return rounded(-_regularised(t, torch.where(inside, t.log_w, clamped_w.log()), beta), logp)


def bounded_loss(
    logp: Float[Tensor, "*shape"],
    logp_old: Float[Tensor, "*shape"],
    advantage: PerSample,
    divergence: str | Divergence,
    beta: float,
    *,
    logp_ref: Float[Tensor, "*shape"] | None = None,
    bound: WeightBound,
) -> Float[Tensor, "*shape"]:
    """−SG(w̄·(A − β·f′(v)))·log π_θ, w̄ the bounded importance weight: hard clip, truncation or mask, by the bound.

    Since weight = w·(A − β·f′(v)) this is the REINFORCE-style loss with w̄ in w's place. Samples outside the bound
    still move the policy, by a weight that is too small or too large, unless it masks them.

    Args:
        logp: log π_θ of the samples in nats, any shape; the only input that carries a gradient.
        logp_old: log π_old, same shape.
        advantage: A = R − b, same shape or one number, larger is better.
        divergence: a name in DIVERGENCES or a Divergence.
        beta: strength β ≥ 0 of the penalty, in reward per nat.
        logp_ref: log π_ref, same shape; None means π_ref = π_old.
        bound: what to do with weights outside [low, high].

    Returns:
        One loss per sample, same shape.

    Raises:
        ValueError: as ``weight``.

    Source: paper, remark after Prop. F.1 (hard clip); MiniMax 2025 (CISPO); PAPER §4.
    """
    t = terms(logp, logp_old, advantage, beta, logp_ref, divergence)
    return rounded(-_regularised(t, bounded_log_weight(t.log_w, bound), beta).detach() * t.logp, logp)


def _regularised(t: Terms, log_w: Float[Tensor, "*shape"], beta: float) -> Float[Tensor, "*shape"]:
    """w·(A − β·f′(v)) in float64 for any w. f′ = slope/v, and w/v is one exponential: it is finite where 1/v is not."""
    return log_w.exp() * t.advantage - beta * (log_w - t.log_v).exp() * t.row.slope(t.log_v)
