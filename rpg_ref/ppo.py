"""PPO's clip, which looks at the advantage alone, and GRPO's penalty beside it, without and with its weight."""

from jaxtyping import Float
from torch import Tensor

from rpg_ref.clipping import DualClip, clipped_ratio
from rpg_ref.divergences import Divergence
from rpg_ref.numerics import at_least_float32
from rpg_ref.ratios import log_ratios
from rpg_ref.surrogates import PerSample, differentiable_loss, per_sample, terms


def ppo_loss(
    logp: Float[Tensor, "*shape"],
    logp_old: Float[Tensor, "*shape"],
    advantage: PerSample,
    *,
    clip: DualClip = DualClip(),
) -> Float[Tensor, "*shape"]:
    """−clamp(w)·A, differentiated inside the region of the advantage's sign: −min(w·A, clip(w)·A), dual-clipped at c.

    Args:
        logp: log π_θ of the samples in nats, any shape; the only input that carries a gradient.
        logp_old: log π_old, same shape.
        advantage: A = R − b, same shape or one number, larger is better.
        clip: the bounds; ``dual=math.inf`` is plain PPO.

    Returns:
        One loss per sample, same shape.

    Raises:
        ValueError: shapes or dtypes do not fit.

    Source: paper §2.2 (GRPO's clipped term); Schulman et al. 2017, Eq. 7.
    """
    log_w, A = log_ratios(logp, logp_old).log_w, per_sample("advantage", advantage, logp)
    return (-clipped_ratio(A, log_w, clip) * A).to(at_least_float32(logp).dtype)


def grpo_loss(
    logp: Float[Tensor, "*shape"],
    logp_old: Float[Tensor, "*shape"],
    advantage: PerSample,
    divergence: str | Divergence,
    beta: float,
    *,
    logp_ref: Float[Tensor, "*shape"] | None = None,
    clip: DualClip,
) -> Float[Tensor, "*shape"]:
    """PPO's clipped term + β·f(v)/v: an estimate of D for samples of π_θ, used without weight on those of π_old.

    For urkl f(v)/v is k3(π_ref/π_θ), GRPO's penalty, whose on-policy gradient is that of the *forward* KL.

    Args and Raises: as ``clipped_loss``.

    Returns:
        One loss per sample, same shape.

    Source: paper §2.2; Shao et al. 2024 (DeepSeekMath), Eqs. 3 and 4.
    """
    _, _, _, log_v, _, row = terms(logp, logp_old, advantage, divergence, beta, logp_ref)
    penalty = row.f(log_v) * (-log_v).exp()
    return ppo_loss(logp, logp_old, advantage, clip=clip) + (beta * penalty).to(at_least_float32(logp).dtype)


def grpo_corrected_loss(
    logp: Float[Tensor, "*shape"],
    logp_old: Float[Tensor, "*shape"],
    advantage: PerSample,
    divergence: str | Divergence,
    beta: float,
    *,
    logp_ref: Float[Tensor, "*shape"] | None = None,
    clip: DualClip,
) -> Float[Tensor, "*shape"]:
    """PPO's clipped term + β·w·f(v)/v = β·u·f(v), w differentiated too: the penalty of the RPG surrogate, unclipped.

    Args and Raises: as ``clipped_loss``.

    Returns:
        One loss per sample, same shape.

    Source: paper §2.2, the corrected estimator E_old[w·k3(π_ref/π_θ)].
    """
    penalty = differentiable_loss(logp, logp_old, 0.0, divergence, beta, logp_ref=logp_ref)
    return ppo_loss(logp, logp_old, advantage, clip=clip) + penalty
