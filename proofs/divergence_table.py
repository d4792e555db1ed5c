"""The table from which every loss follows: seven divergences, each the generator f of D = ∫π_ref f(π_θ/π_ref).

`GENERATORS`, `slope` and `weight` are sympy expressions, to be lambdified and held against code.

Source: arXiv 2505.17508, Propositions 3.2, 3.6, E.1, E.3 (four rows); Jeffreys, Jensen–Shannon and Pearson χ² are ours.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import sympy as sp

from proofs.certificate import ANY_MASS, Claim, Statement, equal
from proofs.definitions import jeffreys, jensen_shannon, kl, pearson_chi2, ukl
from proofs.language import E, Grad, Slope, Total, score
from proofs.symbols import MOVING, A, Z, beta, f, f_prime, log_v, p, r, u, v, w
from proofs.worlds import Numbers


@dataclass(frozen=True)
class Row:
    """One divergence: its textbook integrand in (π_θ, π_ref), and f, f′, f″(1) as tabulated.

    Source: arXiv 2505.17508, Propositions 3.2, 3.6, E.1, E.3, in the form D = ∫π_ref f(π_θ/π_ref).
    """

    definition: Callable[[sp.Expr, sp.Expr], sp.Expr]
    f: sp.Expr
    f_prime: sp.Expr
    curvature: sp.Expr


_log = sp.log(v)
_js = (v * _log - (1 + v) * sp.log((1 + v) / 2)) / 2
TABLE = {
    "fkl": Row(lambda policy, anchor: kl(anchor, policy), -_log, -1 / v, sp.Integer(1)),
    "ufkl": Row(lambda policy, anchor: ukl(anchor, policy), v - 1 - _log, 1 - 1 / v, sp.Integer(1)),
    "rkl": Row(kl, v * _log, _log + 1, sp.Integer(1)),
    "urkl": Row(ukl, v * _log - v + 1, _log, sp.Integer(1)),
    "jeffreys": Row(jeffreys, (v - 1) * _log, _log + 1 - 1 / v, sp.Integer(2)),
    "js": Row(jensen_shannon, _js, sp.log(2 * v / (1 + v)) / 2, sp.Rational(1, 4)),
    "chi2": Row(pearson_chi2, (v - 1) ** 2, 2 * (v - 1), sp.Integer(2)),
}
GENERATORS = {name: row.f for name, row in TABLE.items()}
AT_ONE = Numbers(region=((v, "v=1", MOVING),), at={MOVING: sp.Integer(1)})

# The paper's weights, for π_ref = π_old, where the propositions print them.
PRINTED_WEIGHTS = {
    "fkl": w * A + beta,
    "ufkl": w * A - beta * (w - 1),
    "rkl": w * (A - beta * (sp.log(w) + 1)),
    "urkl": w * (A - beta * sp.log(w)),
}


def slope(name: str) -> sp.Expr:
    """Return ∂f/∂log v = v·f′(v), in the symbol log_v. Source: `one_idea`."""
    return GENERATORS[name].subs(v, sp.exp(log_v)).diff(log_v)


def surrogate(name: str) -> sp.Expr:
    """Return the differentiable loss Z·(−w·A + β·u·f(w/u)), in w, u, A, β, Z. Source: `one_idea`."""
    return Z * (-w * A + beta * u * GENERATORS[name].subs(v, w / u))


def weight(name: str) -> sp.Expr:
    """Return the coefficient of ∇log π_θ, −∂surrogate/∂log π_θ at constant u, in w, u, A, β, Z. Source: `one_idea`."""
    return -w * surrogate(name).diff(w)


def defined(name: str, f: sp.Expr) -> Statement:
    """Return D(π_θ, π_ref) = E_ref[f(v)], at any masses. Source: the definitions."""
    return equal(Total(TABLE[name].definition(p, r)), E(r, f), ANY_MASS)


def _slope(name: str, value: sp.Expr) -> Statement:
    return equal(Slope(GENERATORS[name], v), value, Numbers())


def _printed(name: str, value: sp.Expr) -> Statement:
    return equal(-Grad((surrogate(name) / Z).subs(u, 1)), value * score(), Numbers(region=((p, "", w),)))


def _rows() -> Iterator[Statement]:
    for name, row in TABLE.items():
        yield equal(row.f, 0, AT_ONE)
        yield equal(Grad(Grad(row.f)), row.curvature, AT_ONE)
        yield equal(Grad(surrogate(name)), -weight(name) * score())
    for name, printed in PRINTED_WEIGHTS.items():
        yield _printed(name, printed)


CLAIM = Claim(
    id="divergence_table",
    source="arXiv 2505.17508, Props 3.2, 3.6, E.1, E.3; Jeffreys, JS, χ² ours",
    statements=(
        *(defined(name, row.f) for name, row in TABLE.items()),
        equal(Slope(f(v), v), v * f_prime(v), Numbers()),
        *(_slope(name, v * row.f_prime) for name, row in TABLE.items()),
        *_rows(),
    ),
    near_misses={
        "FKL for RKL": defined("rkl", GENERATORS["fkl"]),
        "UFKL for URKL": defined("urkl", GENERATORS["ufkl"]),
        "RKL for URKL": defined("urkl", GENERATORS["rkl"]),
        "control variate with the other sign": defined("urkl", GENERATORS["rkl"] + v - 1),
        "JS as ½(RKL − FKL)": defined("js", (GENERATORS["rkl"] - GENERATORS["fkl"]) / 2),
        "JS as half Jeffreys": defined("js", GENERATORS["jeffreys"] / 2),
        "Neyman's χ² for Pearson's": defined("chi2", (1 / v - 1) ** 2 * v),
        "f′ for the slope": _slope("urkl", TABLE["urkl"].f_prime),
        "URKL's printed weight for RKL": _printed("rkl", PRINTED_WEIGHTS["urkl"]),
    },
    printed=8,
)
