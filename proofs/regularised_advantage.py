"""The regularised advantage A_reg = A − β·f′(v): how much J gains from a little more probability of one outcome.

Hence weight = w·A_reg, whatever π_old is.

Source: arXiv 2505.17508, Algorithms 1 and 2; any generator f: ours.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.divergence_table import TABLE, weight
from proofs.expectations import Equation, pointwise
from proofs.one_idea import OBJECTIVE
from proofs.symbols import A, R, Z, beta, f_prime, p, u, v, w


def _gain() -> sp.Expr:
    probability = sp.Symbol("probability", positive=True)
    return pointwise(OBJECTIVE).subs(p, probability).diff(probability).subs(probability, p)


def _identities() -> dict[str, Equation]:
    equations = {"any f: ∂J/∂π_θ(x)": (_gain(), pointwise(R - beta * f_prime(v)))}
    for name, row in TABLE.items():
        a_reg = A - beta * row.f_prime.subs(v, w / u)
        equations[f"{name}: weight = w·A_reg"] = (weight(name), Z * w * a_reg)
    return equations


CLAIM = Claim(
    id="regularised_advantage",
    statement="∂J/∂π_θ(x) = R − β f′(v), and weight = w·(A − β f′(v)) for all seven rows, π_ref ≠ π_old",
    source="arXiv 2505.17508, Algorithms 1, 2; any generator ours",
    identities=_identities,
    near_misses=lambda: {
        "slope v f′(v) for f′(v)": (_gain(), pointwise(R - beta * v * f_prime(v))),
        "f′ at w": (_gain(), pointwise(R - beta * f_prime(w))),
        "penalty's sign flipped": (_gain(), pointwise(R + beta * f_prime(v))),
        "RKL without the 1": (weight("rkl"), Z * w * (A - beta * sp.log(w / u))),
        "UFKL at w instead of v": (weight("ufkl"), Z * w * (A - beta * (1 - 1 / w))),
        "weight without w": (weight("urkl"), Z * (A - beta * sp.log(w / u))),
    },
)
