"""Five divergences are ≥ 0, and 0 only where the densities are equal, whatever their masses; the two plain KLs are not.

Taylor's remainder from 1 to v, f(v) = f(1) + (v − 1)f′(1) + ∫₀¹ (1 − s)(v − 1)² f″(t) ds at t = 1 + s(v − 1), is
shown by its antiderivative F(s) = f(t) + (1 − s)(v − 1)f′(t): F(1) = f(v), F′(s) is the integrand, and F(0) = 0 where
f(1) = f′(1) = 0. Each f″ below is a sum of positive terms and t > 0, so the integrand is positive unless v = 1. A
plain KL is its unnormalised one less a difference of masses: ≥ 0 only where the masses are equal.

Source: ours; arXiv 2505.17508, Definitions 3.1, 3.4 and Remark 3.5; Csiszár 1967.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.definitions import kl, ukl
from proofs.divergence_table import TABLE
from proofs.expectations import NORMALISED, Equation, finite
from proofs.symbols import RATIOS, f, f_prime, f_second, p, q_tilde, r, v

step = sp.Symbol("step", positive=True)  # from 0 to 1
T = 1 + step * (v - 1)
SECOND_DERIVATIVES = {
    "ufkl": 1 / v**2,
    "urkl": 1 / v,
    "jeffreys": 1 / v + 1 / v**2,
    "js": 1 / (2 * v * (1 + v)),
    "chi2": sp.Integer(2),
}


def remainder(generator: sp.Expr, slope: sp.Expr) -> sp.Expr:
    """Return F(s) for a generator and its derivative, both in v. Source: Taylor."""
    return generator.subs(v, T) + (1 - step) * (v - 1) * slope.subs(v, T)


def _identities() -> dict[str, Equation]:
    any_f = remainder(f(v), f_prime(v))
    equations = {
        "any f: F(1) = f(v)": (any_f.subs(step, 1), f(v)),
        "any f: F′(s)": (any_f.diff(step), (1 - step) * (v - 1) ** 2 * f_second(T)),
    }
    for name, f_2 in SECOND_DERIVATIVES.items():
        row = TABLE[name]
        taylor = remainder(row.f, row.f.diff(v))
        equations |= {
            f"{name}: D's integrand is π_ref·F(1)": (row.definition(p, r), (r * taylor.subs(step, 1)).subs(RATIOS)),
            f"{name}: F(0) = 0": (taylor.subs(step, 0), sp.S.Zero),
            f"{name}: F′(s)": (taylor.diff(step), (1 - step) * (v - 1) ** 2 * f_2.subs(v, T)),
        }
    for name, setting in NORMALISED.items():
        for direction, pair in {"forward": (q_tilde, p), "reverse": (p, q_tilde)}.items():
            equations[f"{name}: {direction} KL is UKL where both are normalised"] = (
                setting(kl(*pair)),
                setting(ukl(*pair)),
            )
    return equations | {
        "KL(π‖2π) = −log 2, masses 1 and 2": (finite(kl(q_tilde, 2 * q_tilde)), -sp.log(2)),
        "UKL(π‖2π) = 1 − log 2": (finite(ukl(q_tilde, 2 * q_tilde)), 1 - sp.log(2)),
    }


def _near_misses() -> dict[str, Equation]:
    zero_slope = {name: remainder(row.f, row.f.diff(v)).subs(step, 0) for name, row in TABLE.items()}
    return {
        "FKL is its own remainder, at any masses": (zero_slope["fkl"], sp.S.Zero),
        "RKL is its own remainder, at any masses": (zero_slope["rkl"], sp.S.Zero),
        "KL is UKL at any masses": (finite(kl(p, r)), finite(ukl(p, r))),
        "UKL(π‖2π) = 0: equal up to mass": (ukl(q_tilde, 2 * q_tilde), sp.S.Zero),
        "the remainder with f″ of the other direction": (
            remainder(TABLE["urkl"].f, TABLE["urkl"].f_prime).diff(step),
            (1 - step) * (v - 1) ** 2 / T**2,
        ),
    }


CLAIM = Claim(
    id="nonnegativity",
    statement="UFKL, URKL, Jeffreys, JS, χ² ≥ 0, = 0 iff equal, any masses, by Taylor's remainder; FKL, RKL not",
    source="ours; arXiv 2505.17508, Defs 3.1, 3.4",
    identities=_identities,
    near_misses=_near_misses,
)
