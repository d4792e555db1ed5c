"""Per-decision importance sampling: a penalty whose every token is weighted by the prefix before it."""

import torch
from jaxtyping import Float
from torch import Tensor

from rpg_ref.divergences import DIVERGENCES, Divergence
from rpg_ref.numerics import rounded
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
    """−w_{1:t}·A_t + β·Σ w_{<t}^a·u_{<t}^b·u_t·f(v_t): the divergence of responses by its chain rule, exact off-policy.

    The sum runs over the terms (a, b, f) of ``Divergence.history``: (1, 0) for rkl and urkl, whose penalty is
    w_{1:t}·log v_t; (0, 1) for fkl and ufkl; both for jeffreys; (2, −1) for chi2. The gradient also flows through the
    history weight w_{<t}, so a token affects the penalties of later tokens.

    Args:
        logp: log π_θ(y_{1:t}) of each prefix of a response in nats, [..., T]: cumulative sums of token log-probs.
        logp_old: log π_old of the same prefixes.
        advantage: the reward at each token [..., T], or one number; one at the end belongs to the last token alone.
        divergence: a name in DIVERGENCES or a Divergence, with a chain rule: any but js.
        beta: strength β ≥ 0 of the penalty, in reward per nat.
        logp_ref: log π_ref of the same prefixes; None means π_ref = π_old.

    Returns:
        One loss per prefix, same shape; its sum over the response estimates −J of the sequence level.

    Raises:
        ValueError: as ``weight``; or no chain rule of the divergence is known.

    Source: PAPER §5 (prefix); Precup et al. 2000 for per-decision weights.
    """
    t = terms(logp, logp_old, advantage, beta, logp_ref, divergence)
    if not t.row.history:
        known = ", ".join(row.name for row in DIVERGENCES.values() if row.history)
        raise ValueError(f"no chain rule over tokens is known for divergence {t.row.name}; choose one of {known}")
    log_u = (t.log_w - t.log_v).detach()
    w_before, u_before = _shifted(t.log_w), _shifted(log_u)
    step_u, step_v = log_u - u_before, t.log_v - _shifted(t.log_v)
    penalty = sum((a * w_before + b * u_before + step_u).exp() * f(step_v) for a, b, f in t.row.history)
    return rounded(-t.log_w.exp() * t.advantage + beta * penalty, logp)


def _shifted(x: Float[Tensor, "*batch T"]) -> Float[Tensor, "*batch T"]:
    """The value at the token before, 0 before the first."""
    return torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], dim=-1)
