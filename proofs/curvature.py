"""At π_θ = π_ref every divergence is flat, and curved by f″(1) times the Fisher information.

So the first step after a reference update does not see β. π_ref is the frozen copy of π_θ: equal, but constant.

Source: ours; for the KL, arXiv 2505.17508, Appendix B.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.expectations import finite, gradient, stop_gradient
from proofs.symbols import f, f_prime, f_second, p, score, theta, theta_frozen

ANCHOR = stop_gradient(p)
DIVERGENCE = ANCHOR * f(p / ANCHOR)
FISHER = p * score**2


def _hessian() -> sp.Expr:
    return finite(DIVERGENCE).diff(theta, 2).xreplace({theta_frozen: theta})


CLAIM = Claim(
    id="curvature",
    statement="at π_θ = π_ref: ∇D = 0 and ∇²D = f″(1)·F, any generator f",
    source="ours; for KL arXiv 2505.17508, App. B",
    identities=lambda: {
        "∇D = 0": (gradient(finite, DIVERGENCE), sp.S.Zero),
        "∇²D = f″(1)·F": (_hessian(), f_second(1) * finite(FISHER)),
    },
    near_misses=lambda: {
        "F alone": (_hessian(), finite(FISHER)),
        "½ f″(1)·F": (_hessian(), f_second(1) * finite(FISHER) / 2),
        "f′(1)·F": (_hessian(), f_prime(1) * finite(FISHER)),
    },
)
