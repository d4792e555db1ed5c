"""The curvature of the expected reward on a softmax, and how far a gradient step can be trusted.

Let the logits move by a, and let a* = a − E_p[a]. The second derivative of E[R] is Cov_p(R, a*²). For 0 ≤ R ≤ 1 it lies
between −E[R]·Var_p(a) and (1 − E[R])·Var_p(a): each equation below is a bound plus an expectation that is ≥ 0. Taylor's
remainder ∫₀¹ (1 − s)·(second derivative at s) ds then bounds what a step gains: E_{θ+a}[R] − E_θ[R] ≥ ∇E[R]·a −
½·sup_s Var_s(a), and no less than with sup_s E_s[R]·Var_s(a). Outcomes are any, so a may be Δ·φ(x): the bound
holds for one decision whose logits are linear in any parameters, such as a last layer's.

Source: ours; after arXiv 2510.00819 (CAPO).
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.language import E, Grad, covariance, score, variance
from proofs.softmax_fisher import SOFTMAX
from proofs.symbols import R, a, p

SQUARED = (a - E(p, a)) ** 2
BEND = Grad(Grad(E(p, R), a), a)


def _bends(value: sp.Expr) -> Statement:
    return equal(BEND, value, **SOFTMAX)


CLAIM = Claim(
    id="reward_curvature",
    source="ours; after arXiv 2510.00819",
    statements=(
        _bends(covariance(p, R, SQUARED)),
        _bends(E(p, R * SQUARED) - E(p, R) * variance(p, a)),
        _bends((1 - E(p, R)) * variance(p, a) - E(p, (1 - R) * SQUARED)),
        equal(Grad(Grad(E(p, R))), E(p, R * (score() ** 2 + Grad(score())))),
    ),
    near_misses={
        "−Var(a), Fisher's": _bends(-variance(p, a)),
        "Cov(R, a²)": _bends(covariance(p, R, a**2)),
        "half of it": _bends(covariance(p, R, SQUARED) / 2),
        "never below −½·E[R]·Var(a)": _bends(E(p, R * SQUARED) - E(p, R) * variance(p, a) / 2),
        "without the score's own slope": equal(Grad(Grad(E(p, R))), E(p, R * score() ** 2)),
    },
    printed=3,
)
