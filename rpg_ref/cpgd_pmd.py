"""Related methods that follow log w where RPG follows w: policy mirror descent by regression, and CPGD."""

import torch
from jaxtyping import Float
from torch import Tensor

from rpg_ref.clipping import DualClip, region
from rpg_ref.divergences import Divergence
from rpg_ref.estimators import k2
from rpg_ref.numerics import at_least_float32
from rpg_ref.surrogates import PerSample, differentiable_loss, terms


def pmd_mean_loss(
    logp: Float[Tensor, "*shape"],
    logp_old: Float[Tensor, "*shape"],
    advantage: PerSample,
    divergence: str | Divergence,
    beta: float,
    *,
    logp_ref: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """−A·log w + β·½(log w)² = (A − β·log w)²/2β up to a constant in θ: regress log w on A/β, anchored at π_old.

    Its optimum is the mirror-descent step π_θ ∝ π_old·exp(R/β) when A = R − β·log Z; PMD-mean takes R − mean R.

    Args and Raises: as ``weight``; the divergence and ``logp_ref`` play no part, π_old being the anchor.

    Returns:
        One loss per sample, same shape.

    Source: Kimi Team 2025 (k1.5); Xu et al. 2026, arXiv 2602.05933 (PMD-mean).
    """
    _, A, log_w, _, _, _ = terms(logp, logp_old, advantage, divergence, beta, logp_ref)
    return (-A * log_w + beta * k2(log_w)).to(at_least_float32(logp).dtype)


def cpgd_loss(
    logp: Float[Tensor, "*shape"],
    logp_old: Float[Tensor, "*shape"],
    advantage: PerSample,
    divergence: str | Divergence,
    beta: float,
    *,
    logp_ref: Float[Tensor, "*shape"] | None = None,
    clip: DualClip,
) -> Float[Tensor, "*shape"]:
    """−A·log w, log w clipped as PPO clips w, + β·φ(log w): a drift penalty UKL(π_old‖π_θ) without importance weights.

    Args and Raises: as ``clipped_loss``; the divergence and ``logp_ref`` play no part, π_old being the anchor.

    Returns:
        One loss per sample, same shape.

    Source: Liu et al. 2025, arXiv 2505.12504 (CPGD), without its cap on the drift's weight w − 1.
    """
    _, A, log_w, _, _, _ = terms(logp, logp_old, advantage, divergence, beta, logp_ref)
    live, clamped_w = region(A, log_w.detach().exp(), clip)
    followed = -A * torch.where(live, log_w, clamped_w.log())
    return followed.to(at_least_float32(logp).dtype) + differentiable_loss(logp, logp_old, 0.0, "ufkl", beta)
