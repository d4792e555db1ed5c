"""PPO's clip, which looks at the advantage alone, and the penalties found beside it: in the loss and in the reward."""

from jaxtyping import Float
from torch import Tensor

from rpg_ref.clipping import DualClip, clipped_ratio
from rpg_ref.divergences import Divergence
from rpg_ref.estimators import k2
from rpg_ref.numerics import rounded
from rpg_ref.surrogates import PerSample, Terms, penalty, terms


def _clipped_term(t: Terms, clip: DualClip) -> Tensor:
    """−clamp(w)·A in float64."""
    return -clipped_ratio(t.advantage, t.log_w, clip) * t.advantage


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
    return rounded(_clipped_term(terms(logp, logp_old, advantage, 0.0), clip), logp)


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
    t = terms(logp, logp_old, advantage, beta, logp_ref, divergence)
    unweighted = t.row.f(t.log_v) * (-t.log_v).exp()
    return rounded(_clipped_term(t, clip) + beta * unweighted, logp)


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
    t = terms(logp, logp_old, advantage, beta, logp_ref, divergence)
    return rounded(_clipped_term(t, clip) + penalty(t, beta), logp)


def k2_loss(
    logp: Float[Tensor, "*shape"],
    logp_old: Float[Tensor, "*shape"],
    advantage: PerSample,
    beta: float,
    *,
    logp_ref: Float[Tensor, "*shape"] | None = None,
    clip: DualClip,
) -> Float[Tensor, "*shape"]:
    """PPO's clipped term + β·½(log v)², unweighted: on-policy the reverse KL's gradient, off-policy that of no KL.

    Args and Raises: as ``clipped_loss``.

    Returns:
        One loss per sample, same shape.

    Source: Hu et al. 2025 (the baseline form of REINFORCE++); PAPER §3.
    """
    t = terms(logp, logp_old, advantage, beta, logp_ref)
    return rounded(_clipped_term(t, clip) + beta * k2(t.log_v), logp)


def kl_in_reward_loss(
    logp: Float[Tensor, "*batch T"],
    logp_old: Float[Tensor, "*batch T"],
    advantage: PerSample,
    beta: float,
    *,
    logp_ref: Float[Tensor, "*batch T"] | None = None,
    clip: DualClip,
) -> Float[Tensor, "*batch T"]:
    """PPO's clipped term on A − β·Σ_{s≥t} log(π_old/π_ref)_s: k1 as a reward of each token, frozen at the sampler.

    On-policy this is the gradient of the *sequence's* reverse KL, future tokens included. Off-policy one sample a
    sequence descends KL(π_θ‖π_ref) − KL(π_θ‖π_old), and one a token no known objective.

    Args and Raises: as ``clipped_loss``, the last axis being the samples of one sequence in order.

    Returns:
        One loss per sample, same shape.

    Source: Ouyang et al. 2022 (InstructGPT); Hu et al. 2025 (REINFORCE++); Ahmadian et al. 2024 (RLOO).
    """
    t = terms(logp, logp_old, advantage, beta, logp_ref)
    to_go = (t.log_v - t.log_w).detach().flip(-1).cumsum(-1).flip(-1)
    return rounded(_clipped_term(t._replace(advantage=t.advantage - beta * to_go), clip), logp)
