"""The unnormalised KL's control variate (v − 1): what it does to the variance of the gradient.

The best multiple of any control variate is −Cov/Var, by completing the square. At π_θ = π_old = π_ref the multiple ±1
is best: a sample's penalty has no gradient at all, where a plain KL's is ∓∇log π_θ. Far off, ±1 may be worse than 0:
two policies of two outcomes show it exactly.

Source: ours; arXiv 2505.17508, Remark 3.3 (variance of UFKL).
"""

import sympy as sp

from proofs.certificate import ANY, LESS, Claim, Statement, equal, related
from proofs.divergence_table import AT_ONE, TABLE
from proofs.language import Grad, Slope, covariance, variance
from proofs.symbols import A, h, p, r, v
from proofs.worlds import Listed

_c, _best = sp.Symbol("c", real=True), sp.Symbol("cstar")
BEST = -covariance(p, h, A) / variance(p, A)


def _least(multiple: sp.Expr) -> Statement:
    excess = variance(p, A) * (_c - _best) ** 2
    return equal(variance(p, h + _c * A), variance(p, h + _best * A) + excess, ANY, cstar=multiple)


# π_θ gives the first of two outcomes this probability and is moved by its logit; π_ref = π_old gives it another.
def _two(first: sp.Expr, anchor: sp.Expr) -> Listed:
    rate = first * (1 - first)
    return Listed(outcomes=2, at={p: ((first, 1 - first), (rate, -rate)), r: (anchor, 1 - anchor)})


UFKL_WORSE, URKL_WORSE = (sp.Rational(1, 2), sp.Rational(1, 100)), (sp.Rational(1, 100), sp.Rational(1, 2))


def _slope(name: str, value: int) -> Statement:
    return equal(Slope(TABLE[name].f, v), value, AT_ONE)


def _compared(first: str, relation: str, second: str, policies: tuple[sp.Expr, sp.Expr]) -> Statement:
    sides = [variance(r, Grad(TABLE[name].f)) for name in (first, second)]
    return related(sides[0], relation, sides[1], _two(*policies))


CLAIM = Claim(
    id="control_variate_variance",
    source="ours; arXiv 2505.17508, Remark 3.3",
    statements=(
        _least(BEST),
        *(_slope(name, value) for name, value in {"ufkl": 0, "urkl": 0, "fkl": -1, "rkl": 1}.items()),
        _compared("fkl", LESS, "ufkl", UFKL_WORSE),
        _compared("rkl", LESS, "urkl", URKL_WORSE),
        *(_slope(name, 0) for name in ("jeffreys", "js", "chi2")),
    ),
    near_misses={
        "c = Cov/Var": _least(-BEST),
        "c = −Cov": _least(-covariance(p, h, A)),
        "c = −Cov/Var of the other": _least(-covariance(p, h, A) / variance(p, h)),
        "c = 1": _least(sp.Integer(1)),
        "c = −1": _least(sp.Integer(-1)),
        "FKL has no gradient at v = 1": _slope("fkl", 0),
        "RKL has no gradient at v = 1": _slope("rkl", 0),
        "UFKL's variance is never larger": _compared("ufkl", LESS, "fkl", UFKL_WORSE),
    },
    printed=7,
)
