"""Per-decision importance sampling: a penalty whose every token is weighted by the prefix before it."""

import torch
from jaxtyping import Float
from torch import Tensor

from rpg_ref.divergences import Divergence
from rpg_ref.numerics import at_least_float32
from rpg_ref.surrogates import PerSample, terms


def per_decision_loss(
    logp: Float[Tensor, "*batch T"],
    logp_old: Float[Tensor, "*batch T"],
    advantage: PerSample,
    divergence: str | Divergence,
    beta: float,
    *,
    logp_ref: Float[Tensor, "*batch T"] | None = None,
) -> Float[Tensor, "*batch T"]:
    """−w_{1:t}·A_t + β·h_{<t}·u_t·f(v_t), h = w (live) or u: the chain rule of the sequence's KL, exact off-policy.

    For rkl the penalty is w_{1:t}·log v_t. Differentiated through the history as well, so that a token also answers
    for the divergence of the tokens after it.

    Args:
        logp: log π_θ(y_{1:t}) of each prefix of a response in nats, [..., T]: cumulative sums of token log-probs.
        logp_old: log π_old of the same prefixes.
        advantage: the reward at each token [..., T], or one number; one at the end belongs to the last token alone.
        divergence: a name in DIVERGENCES or a Divergence, with a chain rule: fkl, ufkl, rkl or urkl.
        beta: strength β ≥ 0 of the penalty, in reward per nat.
        logp_ref: log π_ref of the same prefixes; None means π_ref = π_old.

    Returns:
        One loss per prefix, same shape; its sum over the response estimates −J of the sequence level.

    Raises:
        ValueError: as ``weight``; or the divergence has no chain rule.

    Source: PAPER §5 (prefix); Precup et al. 2000 for per-decision weights.
    """
    _, A, log_w, log_v, _, row = terms(logp, logp_old, advantage, divergence, beta, logp_ref)
    if row.history is None:
        raise ValueError(f"divergence {row.name} has no chain rule over tokens; choose fkl, ufkl, rkl or urkl")
    log_u = (log_w - log_v).detach()
    before = _shifted({"current": log_w, "reference": log_u}[row.history])
    step_u, step_v = (x - _shifted(x) for x in (log_u, log_v))
    penalty = (before + step_u).exp() * row.f(step_v)
    return (-log_w.exp() * A + beta * penalty).to(at_least_float32(logp).dtype)


def _shifted(x: Float[Tensor, "*batch T"]) -> Float[Tensor, "*batch T"]:
    """The value at the token before, 0 before the first."""
    return torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], dim=-1)
