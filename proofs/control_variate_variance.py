"""The unnormalised KL's control variate (v − 1): what it does to the variance of the gradient.

The best multiple of any control variate is −Cov/Var, by completing the square. At π_θ = π_old = π_ref the multiple ±1
is best: a sample's penalty has no gradient at all, where a plain KL's is ∓∇log π_θ, of variance F. Near it the
variance is of second order in v − 1. Far off, ±1 may be worse than 0: two policies of two outcomes show it exactly.

Source: ours; arXiv 2505.17508, Remark 3.3 (variance of UFKL).
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.divergence_table import TABLE
from proofs.expectations import Equation, finite, gradient, pointwise, stop_gradient
from proofs.symbols import A, g, p, score, v

_c = sp.Symbol("c", real=True)
COVARIANCE = finite(p * g * A) - finite(p * g) * finite(p * A)

# π_θ gives the first of two outcomes the probability p and is moved by its logit; π_ref = π_old gives it r.
UFKL_WORSE = {"p": sp.Rational(1, 2), "r": sp.Rational(1, 100)}
URKL_WORSE = {"p": sp.Rational(1, 100), "r": sp.Rational(1, 2)}


def variance(x: sp.Expr) -> sp.Expr:
    """Return Var[x] = E[x²] − E[x]² under π_θ, which here is any distribution. Source: definition."""
    return finite(p * x**2) - finite(p * x) ** 2


def _least(multiple: sp.Expr) -> Equation:
    excess = variance(A) * (_c - multiple) ** 2
    return variance(g + _c * A), variance(g + multiple * A) + excess


def _at_equality(name: str) -> sp.Expr:
    anchor = stop_gradient(p)
    return gradient(pointwise, TABLE[name].definition(p, anchor) / anchor)


def _variance_far_off(name: str, *, p: sp.Expr, r: sp.Expr) -> sp.Expr:
    slope = v * TABLE[name].f_prime
    outcomes = [(r, p, 1 - p), (1 - r, 1 - p, -p)]  # π_ref(x), π_θ(x), ∂log π_θ(x)/∂logit
    per_sample = [(old, slope.subs(v, new / old) * s) for old, new, s in outcomes]
    return sum(old * x**2 for old, x in per_sample) - sum(old * x for old, x in per_sample) ** 2


def _identities() -> dict[str, Equation]:
    equations = {"Var(a + cb) is least at c = −Cov/Var": _least(-COVARIANCE / variance(A))}
    at_equality = {"fkl": -score, "rkl": score, **dict.fromkeys(("ufkl", "urkl", "jeffreys", "js", "chi2"), sp.S.Zero)}
    for name, per_sample in at_equality.items():
        equations[f"{name}: a sample's gradient at v = 1"] = (_at_equality(name), per_sample)
    for name in ("ufkl", "urkl"):
        squared = (v * TABLE[name].f_prime) ** 2
        equations |= {
            f"{name}: slope² = (v − 1)² + …, order {order}": (squared.diff(v, order).subs(v, 1), sp.Integer(value))
            for order, value in enumerate((0, 0, 2))
        }
    rare = URKL_WORSE["p"]
    return equations | {
        "at v = 1 a plain KL's variance is F": (variance(score), finite(p * score**2)),
        "far off, Var FKL − Var UFKL = −1151/198 < 0": (
            _variance_far_off("fkl", **UFKL_WORSE) - _variance_far_off("ufkl", **UFKL_WORSE),
            -sp.Rational(1151, 198),
        ),
        # log(2500/99) > 1, since 2500/99 > 25 > e.
        "far off, Var RKL − Var URKL = −4p²(1 − p)²(log(2500/99) − 1) < 0": (
            _variance_far_off("rkl", **URKL_WORSE) - _variance_far_off("urkl", **URKL_WORSE),
            -4 * (rare * (1 - rare)) ** 2 * (sp.log(sp.Rational(2500, 99)) - 1),
        ),
    }


CLAIM = Claim(
    id="control_variate_variance",
    statement="c = −Cov/Var is best; at v = 1 UFKL, URKL have gradient 0, FKL, RKL ∓∇log π_θ; far off ±1 may hurt",
    source="ours; arXiv 2505.17508, Remark 3.3",
    identities=_identities,
    near_misses=lambda: {
        "c = Cov/Var": _least(COVARIANCE / variance(A)),
        "c = −Cov": _least(-COVARIANCE),
        "c = −Cov/Var of the other": _least(-COVARIANCE / variance(g)),
        "c = 1": _least(sp.S.One),
        "c = −1": _least(sp.S.NegativeOne),
        "FKL has no gradient at v = 1": (_at_equality("fkl"), sp.S.Zero),
        "RKL has no gradient at v = 1": (_at_equality("rkl"), sp.S.Zero),
        "UFKL's variance is FKL's": (_variance_far_off("fkl", **UFKL_WORSE), _variance_far_off("ufkl", **UFKL_WORSE)),
    },
)
