"""Related methods that follow log w where RPG follows w: policy mirror descent by regression, and CPGD."""

import torch
from jaxtyping import Float
from torch import Tensor

from rpg_ref.clipping import DualClip, region
from rpg_ref.estimators import k2, k3
from rpg_ref.numerics import rounded
from rpg_ref.surrogates import PerSample, terms


def pmd_mean_loss(
    logp: Float[Tensor, "*shape"], logp_old: Float[Tensor, "*shape"], advantage: PerSample, beta: float
) -> Float[Tensor, "*shape"]:
    """−A·log w + β·½(log w)² = (A − β·log w)²/2β up to a constant in θ: regress log w on A/β, anchored at π_old.

    Its optimum is the mirror-descent step π_θ ∝ π_old·exp(R/β) when A = R − β·log Z. PMD-mean takes R − mean R. It
    rests where log w + c·w = A/β, with c = KL(π_old‖π_θ).

    Args and Raises: as ``weight``.

    Returns:
        One loss per sample, same shape.

    Source: Kimi Team 2025 (k1.5); Xu et al. 2026, arXiv 2602.05933 (PMD-mean).
    """
    t = terms(logp, logp_old, advantage, beta)
    return rounded(-t.advantage * t.log_w + beta * k2(t.log_w), logp)


def cpgd_loss(
    logp: Float[Tensor, "*shape"],
    logp_old: Float[Tensor, "*shape"],
    advantage: PerSample,
    beta: float,
    *,
    clip: DualClip,
) -> Float[Tensor, "*shape"]:
    """−A·log w, log w clipped as PPO clips w, + β·k3(w): a drift penalty UKL(π_old‖π_θ) without importance weights.

    Unclipped it ascends E_old[(A + β)·log π_θ], which is unbounded above where A + β < 0 for some sample.

    Args and Raises: as ``clipped_loss``.

    Returns:
        One loss per sample, same shape.

    Source: Liu et al. 2025, arXiv 2505.12504 (CPGD), without its cap on the drift's weight w − 1.
    """
    t = terms(logp, logp_old, advantage, beta)
    inside, clamped_w = region(t.advantage, t.log_w.detach().exp(), clip)
    followed = -t.advantage * torch.where(inside, t.log_w, clamped_w.log())
    return rounded(followed + beta * k3(t.log_w), logp)
