"""At π_θ = π_ref every divergence is flat, and curved by f″(1) times the Fisher information.

So the first step after a reference update does not see β. π_ref is the frozen copy of π_θ: equal, but constant.

Source: ours; for the KL, arXiv 2505.17508, Appendix B.
"""

import sympy as sp

from proofs.certificate import ANY_MASS, Claim, Statement, equal
from proofs.language import SG, E, Grad, Total, score
from proofs.symbols import A, beta, f, f_prime, f_second, p, r, v

V_AT_REST = p / SG(p)  # π_θ/π_ref where π_ref = π_θ
DIVERGENCE_AT_REST = E(SG(p), f(V_AT_REST))
FISHER = E(p, score() ** 2)


def _curved(value: sp.Expr) -> Statement:
    return equal(Grad(Grad(DIVERGENCE_AT_REST)), value)


CLAIM = Claim(
    id="curvature",
    source="ours; for KL arXiv 2505.17508, App. B",
    statements=(equal(Grad(DIVERGENCE_AT_REST), 0), _curved(f_second(1) * FISHER)),
    near_misses={
        "F alone": _curved(FISHER),
        "½ f″(1)·F": _curved(f_second(1) * FISHER / 2),
        "f′(1)·F": _curved(f_prime(1) * FISHER),
    },
)

FIRST_STEP = Claim(
    id="first_step",
    source="ours",
    statements=(
        equal(Grad(beta * DIVERGENCE_AT_REST), beta * f_prime(1) * Grad(Total(p))),
        equal(Grad(E(p, A) - beta * DIVERGENCE_AT_REST), Grad(E(p, A))),
    ),
    near_misses={
        "sample by sample": equal(Grad(beta * f(V_AT_REST)), 0),
        "a policy that is not normalised": equal(Grad(beta * DIVERGENCE_AT_REST), 0, ANY_MASS),
        "a reference that is not the policy": equal(Grad(E(p, A) - beta * E(r, f(v))), Grad(E(p, A))),
    },
)

CLAIMS = (CLAIM, FIRST_STEP)
