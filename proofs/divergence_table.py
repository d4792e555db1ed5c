"""The table from which every loss follows: seven divergences, each the generator f of D = ∫π_ref f(π_θ/π_ref).

`GENERATORS`, `slope` and `weight` are sympy expressions, to be lambdified and held against code.

Source: arXiv 2505.17508, Propositions 3.2, 3.6, E.1, E.3 (four rows); Jeffreys, Jensen–Shannon and Pearson χ² are ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import sympy as sp

from proofs import prop_3_2_ufkl, prop_3_6_urkl, prop_e_1_fkl, prop_e_3_rkl
from proofs.certificate import Claim
from proofs.definitions import jeffreys, jensen_shannon, kl, pearson_chi2, ukl
from proofs.expectations import Equation
from proofs.symbols import RATIOS, A, R, Z, beta, log_v, p, r, u, v, w


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

# The paper's weights, for π_ref = π_old, where the propositions print them.
PRINTED_WEIGHTS = {
    name: proposition.WEIGHT.subs(R, A)
    for name, proposition in {
        "fkl": prop_e_1_fkl,
        "ufkl": prop_3_2_ufkl,
        "rkl": prop_e_3_rkl,
        "urkl": prop_3_6_urkl,
    }.items()
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


def _identities() -> dict[str, Equation]:
    equations = {}
    for name, row in TABLE.items():
        equations |= {
            f"{name}: definition": (row.definition(p, r), r * row.f.subs(RATIOS)),
            f"{name}: f(1) = 0": (row.f.subs(v, 1), sp.S.Zero),
            f"{name}: f′": (row.f.diff(v), row.f_prime),
            f"{name}: f″(1)": (row.f.diff(v, 2).subs(v, 1), row.curvature),
            f"{name}: slope": (slope(name).subs(log_v, _log), v * row.f_prime),
            f"{name}: weight": (weight(name), Z * (w * A - beta * u * slope(name).subs(log_v, sp.log(w / u)))),
        }
    for name, printed in PRINTED_WEIGHTS.items():
        equations[f"{name}: printed weight"] = (weight(name).subs(u, 1), Z * printed)
    return equations


def _near_misses() -> dict[str, Equation]:
    definitions = {name: row.definition(p, r) for name, row in TABLE.items()}
    generated = {name: r * f.subs(RATIOS) for name, f in GENERATORS.items()}
    return {
        "FKL for RKL": (definitions["rkl"], generated["fkl"]),
        "UFKL for URKL": (definitions["urkl"], generated["ufkl"]),
        "RKL for URKL": (definitions["urkl"], generated["rkl"]),
        "control variate with the other sign": (definitions["urkl"], r * (GENERATORS["rkl"] + v - 1).subs(RATIOS)),
        "JS as ½(RKL − FKL)": (definitions["js"], (generated["rkl"] - generated["fkl"]) / 2),
        "JS as half Jeffreys": (definitions["js"], generated["jeffreys"] / 2),
        "Neyman's χ² for Pearson's": (pearson_chi2(r, p), generated["chi2"]),
        "f′ for the slope": (slope("urkl").subs(log_v, _log), TABLE["urkl"].f_prime),
        "URKL's printed weight for RKL": (weight("rkl").subs(u, 1), Z * PRINTED_WEIGHTS["urkl"]),
    }


CLAIM = Claim(
    id="divergence_table",
    statement="seven rows: f from the definition, f(1) = 0, f′, f″(1), slope = v f′(v), weight, the printed weights",
    source="arXiv 2505.17508, Props 3.2, 3.6, E.1, E.3; Jeffreys, JS, χ² ours",
    identities=_identities,
    near_misses=_near_misses,
)
