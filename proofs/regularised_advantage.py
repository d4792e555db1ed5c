"""The regularised advantage A_reg = A − β·f′(v): how much J gains from a little more probability of one outcome.

Hence weight = w·A_reg, whatever π_old is.

Source: arXiv 2505.17508, Algorithms 1 and 2; any generator f: ours.
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.divergence_table import TABLE
from proofs.language import Grad, Partial, score
from proofs.symbols import A, beta, f, f_prime, p, r, u, v, w


def _gain(advantage: sp.Expr) -> Statement:
    return equal(Partial(p * A - beta * r * f(v)), advantage)


def _weight(name: str, weight: sp.Expr) -> Statement:
    row = TABLE[name]
    return equal(Grad(w * A - beta * u * row.f), weight * score())


CLAIM = Claim(
    id="regularised_advantage",
    source="arXiv 2505.17508, Algorithms 1, 2; any generator ours",
    statements=(
        _gain(A - beta * f_prime(v)),
        equal(Grad(w * A - beta * u * f(v)), w * (A - beta * f_prime(v)) * score()),
        *(_weight(name, w * (A - beta * row.f_prime)) for name, row in TABLE.items()),
    ),
    near_misses={
        "slope v f′(v) for f′(v)": _gain(A - beta * v * f_prime(v)),
        "f′ at w": _gain(A - beta * f_prime(w)),
        "penalty's sign flipped": _gain(A + beta * f_prime(v)),
        "RKL without the 1": _weight("rkl", w * (A - beta * sp.log(v))),
        "UFKL at w instead of v": _weight("ufkl", w * (A - beta * (1 - 1 / w))),
        "weight without w": _weight("urkl", A - beta * sp.log(v)),
    },
    printed=2,
)
