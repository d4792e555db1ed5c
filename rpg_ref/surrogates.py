"""One idea: the weight on ∇log π_θ. Surrogate and REINFORCE-style loss share it, one value per sample each."""

import math
from numbers import Real
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rpg_ref.checks import check_log_probs, check_number
from rpg_ref.divergences import Divergence, resolve
from rpg_ref.numerics import rounded, widest
from rpg_ref.ratios import log_ratios

PerSample = Float[Tensor, "*shape"] | Float[Tensor, ""] | float
"""A tensor shaped like the samples, or one number for all of them."""


def constant(logp: Float[Tensor, "*shape"], x: PerSample, name: str) -> Float[Tensor, "*shape"]:
    """Return x as a float64 constant of logp's shape; raise ValueError if its shape is neither () nor logp's.

    Args:
        logp: the samples.
        x: one value per sample, or one number for all.
        name: the argument's name, for the message.

    Returns:
        x detached, logp's shape.

    Source: paper §2: rewards, baselines and masses do not depend on θ.
    """
    if not isinstance(x, Tensor | Real) or (isinstance(x, Tensor) and x.is_complex()):
        raise ValueError(f"{name} must be a real tensor or a number, got {type(x).__name__}; convert it")
    shape = tuple(x.shape) if isinstance(x, Tensor) else ()
    if shape not in ((), tuple(logp.shape)):
        raise ValueError(f"{name} has shape {shape} but logp has {tuple(logp.shape)}; pass equal shapes or one number")
    constant = torch.as_tensor(x, dtype=None if isinstance(x, Tensor) else torch.float64, device=logp.device)
    return widest(constant.detach()).expand(logp.shape)


class Terms(NamedTuple):
    """The checked ingredients of every loss, in float64: log π_θ, Z, A, log w, log v, u, and the divergence's row.

    log π_θ, log w and log v share one conversion from logp, so that logp's gradient is rounded once.
    """

    logp: Tensor
    mass: Tensor
    advantage: Tensor
    log_w: Tensor
    log_v: Tensor
    u: Tensor
    row: Divergence


def terms(
    logp: Float[Tensor, "*shape"],
    logp_old: Float[Tensor, "*shape"],
    advantage: PerSample,
    beta: float,
    logp_ref: Float[Tensor, "*shape"] | None = None,
    divergence: str | Divergence = "urkl",
    log_mass_old: PerSample = 0.0,
) -> Terms:
    """Check the arguments of ``weight`` and form its ingredients.

    Args and Raises: as ``weight``.

    Returns:
        Terms; only log π_θ, log w and log v carry a gradient.

    Source: paper §2, notation.
    """
    check_number("beta", beta, 0.0, math.inf, "[)")
    check_log_probs(logp, logp_old=logp_old, logp_ref=logp_ref)
    current = widest(logp)
    log_w, log_v, log_u = log_ratios(current, logp_old, logp_ref)
    A, mass = constant(logp, advantage, "advantage"), constant(logp, log_mass_old, "log_mass_old").exp()
    return Terms(current, mass, A, log_w, log_v, log_u.exp(), resolve(divergence))


def coefficient(t: Terms, beta: float) -> Float[Tensor, "*shape"]:
    """Return ``weight`` before it is rounded: Z·(w·A − β·u·slope(log v)) in float64."""
    return t.mass * (t.log_w.exp() * t.advantage - beta * t.u * t.row.slope(t.log_v))


def penalty(t: Terms, beta: float) -> Float[Tensor, "*shape"]:
    """Return β·u·f(v) in float64; its mean over samples of π_old is β·D."""
    return beta * t.u * t.row.f(t.log_v)


def _surrogate(t: Terms, beta: float) -> Float[Tensor, "*shape"]:
    return t.mass * (-t.log_w.exp() * t.advantage + penalty(t, beta))


def weight(
    logp: Float[Tensor, "*shape"],
    logp_old: Float[Tensor, "*shape"],
    advantage: PerSample,
    divergence: str | Divergence,
    beta: float,
    *,
    logp_ref: Float[Tensor, "*shape"] | None = None,
    log_mass_old: PerSample = 0.0,
) -> Float[Tensor, "*shape"]:
    """Z·(w·A − β·u·slope(log v)), the coefficient of ∇log π_θ in the policy gradient.

    Args:
        logp: log π_θ of the samples in nats, any shape; the only input that carries a gradient.
        logp_old: log π_old, same shape; unnormalised if ``log_mass_old`` is not 0.
        advantage: A = R − b, same shape or one number, larger is better.
        divergence: a name in DIVERGENCES or a Divergence.
        beta: strength β ≥ 0 of the penalty, in reward per nat.
        logp_ref: log π_ref, same shape; None means π_ref = π_old.
        log_mass_old: log Z_old, same shape or one number; the samples are drawn from π_old/Z_old.

    Returns:
        The weight, same shape, positive where a sample is to become likelier; ∇J is the mean of weight·∇log π_θ.

    Raises:
        ValueError: shapes or dtypes do not fit, β < 0, or the divergence is unknown.

    Source: paper Table 1; Props 3.2 (ufkl), 3.6 (urkl), E.1 (fkl), E.3 (rkl). The other rows are ours.
    """
    t = terms(logp, logp_old, advantage, beta, logp_ref, divergence, log_mass_old)
    return rounded(coefficient(t, beta), logp)


def differentiable_loss(
    logp: Float[Tensor, "*shape"],
    logp_old: Float[Tensor, "*shape"],
    advantage: PerSample,
    divergence: str | Divergence,
    beta: float,
    *,
    logp_ref: Float[Tensor, "*shape"] | None = None,
    log_mass_old: PerSample = 0.0,
) -> Float[Tensor, "*shape"]:
    """Z·(−w·A + β·u·f(v)), the fully differentiable surrogate: its gradient is −weight·∇log π_θ sample by sample.

    Args and Raises: as ``weight``.

    Returns:
        One loss per sample, same shape, to be minimised; its mean over samples of π_old/Z_old is −J.

    Source: paper Table 1; Props 3.2 (ufkl), 3.6 (urkl), E.1 (fkl), E.3 (rkl), up to constants in θ.
    """
    t = terms(logp, logp_old, advantage, beta, logp_ref, divergence, log_mass_old)
    return rounded(_surrogate(t, beta), logp)


def reinforce_loss(
    logp: Float[Tensor, "*shape"],
    logp_old: Float[Tensor, "*shape"],
    advantage: PerSample,
    divergence: str | Divergence,
    beta: float,
    *,
    logp_ref: Float[Tensor, "*shape"] | None = None,
    log_mass_old: PerSample = 0.0,
) -> Float[Tensor, "*shape"]:
    """−SG(weight)·log π_θ, the REINFORCE-style loss: the same gradient, only log π_θ being differentiated.

    Args and Raises: as ``weight``.

    Returns:
        One loss per sample, same shape, to be minimised; its value is no estimate of −J.

    Source: paper Table 2; Props 4.1, F.1, F.3, F.4, F.5.
    """
    t = terms(logp, logp_old, advantage, beta, logp_ref, divergence, log_mass_old)
    return rounded(-coefficient(t, beta).detach() * t.logp, logp)


def entropy_loss(
    logp: Float[Tensor, "*shape"],
    logp_old: Float[Tensor, "*shape"],
    advantage: PerSample,
    divergence: str | Divergence,
    beta: float,
    *,
    logp_ref: Float[Tensor, "*shape"] | None = None,
    entropy: float,
) -> Float[Tensor, "*shape"]:
    """``differentiable_loss`` + c·(w·log π_θ − w + 1), whose mean over samples of π_old is −c·H(π_θ): an entropy bonus.

    The entropy is, up to its sign, the reverse KL to the counting measure, whose log-probability is 0 everywhere. So
    the bonus is a second anchor; its coefficient of ∇log π_θ is −c·w·log π_θ.

    Args:
        logp: log π_θ of the samples in nats, any shape; the only input that carries a gradient.
        logp_old: log π_old, same shape.
        advantage: A = R − b, same shape or one number, larger is better.
        divergence: a name in DIVERGENCES or a Divergence.
        beta: strength β ≥ 0 of the penalty, in reward per nat.
        logp_ref: log π_ref, same shape; None means π_ref = π_old.
        entropy: strength c ≥ 0 of the entropy bonus, in reward per nat.

    Returns:
        One loss per sample, same shape, to be minimised.

    Raises:
        ValueError: as ``weight``; or c is out of range.

    Source: ours; Williams and Peng 1991 for the bonus.
    """
    check_number("entropy", entropy, 0.0, math.inf, "[)")
    t = terms(logp, logp_old, advantage, beta, logp_ref, divergence)
    w = t.log_w.exp()
    return rounded(_surrogate(t, beta) + entropy * (w * t.logp - w + 1), logp)
