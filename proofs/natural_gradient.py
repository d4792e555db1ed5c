"""Appendix B: the linear objective less the quadratic KL is maximal at the natural gradient, Δ* = F⁻¹∇J/β.

σ is a policy's score along a step, σ* along the step Δ*. Then F(Δ, Δ′) = E_p[σσ′], and FΔ* = ∇J/β says that ∇J·Δ =
β·E_p[σ*σ] for every step. So it holds for any number of parameters, and for a singular F wherever such a step exists.
`curvature` shows that F is the Hessian of the KL.

Source: arXiv 2505.17508, Appendix B.
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.language import E
from proofs.symbols import along, along_best, beta, p


def _model(score_along: sp.Expr) -> sp.Expr:
    return beta * E(p, along_best * score_along) - beta / 2 * E(p, score_along**2)


def _falls_short_of(best: sp.Expr) -> Statement:
    return equal(_model(along), _model(best) - beta / 2 * E(p, (along - best) ** 2))


CLAIM = Claim(
    id="natural_gradient",
    source="arXiv 2505.17508, App. B",
    statements=(_falls_short_of(along_best), equal(_model(along_best), beta / 2 * E(p, along_best**2))),
    near_misses={
        "twice the step": _falls_short_of(2 * along_best),
        "no step": _falls_short_of(0 * along_best),
        "the other direction": _falls_short_of(-along_best),
        "no 1/β": _falls_short_of(beta * along_best),
    },
)
