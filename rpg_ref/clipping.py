"""RPG-Style Clip: the same weight, and a region of w outside which its gradient is zero. Beside it the hard clip."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rpg_ref.checks import check_number
from rpg_ref.divergences import Divergence
from rpg_ref.numerics import at_least_float32
from rpg_ref.ratios import WeightBound, bounded_log_weight, log_ratios
from rpg_ref.surrogates import PerSample, terms, weight


@dataclass(frozen=True)
class DualClip:
    """Where a sample still moves the policy: w < 1 + high if it is to become likelier, else 1 − low < w < dual.

    Attributes:
        low: ε1 in [0, 1].
        high: ε2 ≥ 0; inf never clips.
        dual: c > 1, the upper bound for samples that are to become less likely; inf never clips.

    Raises:
        ValueError: a bound is out of range.

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


class Region(NamedTuple):
    """The clip at each sample: whether its gradient is live, and the ratio clamped to the live interval."""

    live: Bool[Tensor, "*shape"]
    clamped_w: Float[Tensor, "*shape"]


def region(direction: Float[Tensor, "*shape"], w: Float[Tensor, "*shape"], clip: DualClip) -> Region:
    """Live iff w < 1 + ε2 where direction ≥ 0, and iff 1 − ε1 < w < c where direction < 0.

    Args:
        direction: anything with the sign in which the sample pushes log π_θ (RPG: the weight; PPO: the advantage).
        w: importance ratio π_θ/π_old, same shape.
        clip: the bounds.

    Returns:
        Region of masks and clamped ratios, same shape; exactly on a bound a sample is not live.

    Source: paper Algorithm 2, whose ψ = A′·ℓ has the sign of the weight where ℓ = −log π_θ > 0. At ℓ = 0, where the
    gradient of a softmax's log π_θ is zero, ψ forgets the sign and we keep it, as Algorithm 1 does.
    """
    up, w_low, w_high = direction >= 0, 1 - clip.low, 1 + clip.high
    return Region(
        live=torch.where(up, w < w_high, (w_low < w) & (w < clip.dual)),
        clamped_w=torch.where(up, w.clamp(max=w_high), w.clamp(w_low, clip.dual)),
    )


def clipped_ratio(
    direction: Float[Tensor, "*shape"], log_w: Float[Tensor, "*shape"], clip: DualClip
) -> Float[Tensor, "*shape"]:
    """Return w where it is live, and its clamped value, a constant in θ, where it is not.

    Args:
        direction: as in ``region``.
        log_w: log importance ratio, same shape.
        clip: the bounds.

    Returns:
        The clipped ratio, same shape.

    Source: paper Algorithm 1's max and min, written as the region they select.
    """
    live, clamped_w = region(direction, log_w.detach().exp(), clip)
    return torch.where(live, torch.where(live, log_w, 0.0).exp(), clamped_w)


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
    M) before exp, and log v by as much, u being fixed: no w overflows, no gradient changes, and such dead samples
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
        One loss per sample, same shape; its gradient is −1[live]·weight·∇log π_θ.

    Raises:
        ValueError: as ``weight``.

    Source: paper Algorithm 2 and App. G.2.
    """
    _, A, log_w, log_v, u, row = terms(logp, logp_old, advantage, divergence, beta, logp_ref)
    log_w, log_v = log_w.detach(), log_v.detach()
    excess = (log_w - math.log(max(1 + clip.high, clip.dual)) - 1).clamp(min=0.0)
    w = (log_w - excess).exp()
    C = -beta * u * row.slope(log_v - excess)
    live, clamped_w = region(w * A + C, w, clip)
    nll = -at_least_float32(logp)
    return (clamped_w * A + C).to(nll.dtype) * torch.where(live, nll, nll.detach())


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
    _, A, log_w, log_v, _, row = terms(logp, logp_old, advantage, divergence, beta, logp_ref)
    regularised_advantage = A - beta * row.slope(log_v) * (-log_v).exp()
    loss = -clipped_ratio(regularised_advantage, log_w, clip) * regularised_advantage
    return loss.to(at_least_float32(logp).dtype)


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
    """−SG(w̄/w·weight)·log π_θ with w̄ the bounded importance weight: hard clip, truncation or mask, by the bound.

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
    log_w = log_ratios(logp, logp_old).log_w.detach()
    share = (bounded_log_weight(log_w, bound) - log_w).exp()
    live = weight(logp, logp_old, advantage, divergence, beta, logp_ref=logp_ref).detach()
    return (-share * live).to(live.dtype) * at_least_float32(logp)
