"""A normalised and an unnormalised KL differ by a baseline: sample by sample, their weights are equal at A ∓ β.

Adding κ·(v − 1) to any generator f subtracts κ·β from the advantage, since u·v = w. FKL becomes UFKL at κ = 1, and RKL
becomes URKL at κ = −1. No policy has to be normalised for that, and no expectation is taken. In expectation the shift
costs −κ·β·∇∫π_θ, which is 0 for a normalised π_θ as long as every sample counts alike.

The best baseline is the one that leaves the least second moment of a sample's gradient; of a normalised π_θ the mean is
the same for every baseline, so it leaves the least variance. The two rows have the same weights at baselines that are
κ·β apart. So their best baselines are κ·β apart too, and with these the rows are one estimator. The moments are taken
along one direction of θ. In several directions, numerator and denominator of the best baseline are sums over them.

Source: ours; on arXiv 2505.17508, Definitions 3.1, 3.4, Remark 3.3.
"""

import sympy as sp

from proofs.certificate import ANY, ANY_MASS, Claim, Statement, equal
from proofs.divergence_table import TABLE
from proofs.language import E, Grad, Slope, Total, score
from proofs.symbols import A, b, beta, f, f_prime, p, q, u, v, w
from proofs.worlds import Space

_kappa, _best = sp.Symbol("kappa", real=True), sp.Symbol("bstar", real=True)
SHIFTED = f(v) + _kappa * (v - 1)
PLAIN_SLOPE, SHIFTED_SLOPE = v * f_prime(v), v * (f_prime(v) + _kappa)


def _weight(slope: sp.Expr, advantage: sp.Expr = A) -> sp.Expr:
    return w * advantage - beta * u * slope


def _same(first: str, second: str, advantage: sp.Expr) -> Statement:
    slopes = (Slope(TABLE[name].f, v) for name in (first, second))
    return equal(_weight(next(slopes)), _weight(next(slopes), advantage), ANY_MASS)


def _any(advantage: sp.Expr) -> Statement:
    return equal(_weight(SHIFTED_SLOPE), _weight(PLAIN_SLOPE, advantage), ANY_MASS)


def _loss(generator: sp.Expr, advantage: sp.Expr = A) -> sp.Expr:
    return -w * advantage + beta * u * generator


def _cost(value: sp.Expr, world: Space) -> Statement:
    return equal(E(q, (_weight(SHIFTED_SLOPE) - _weight(PLAIN_SLOPE)) * score()), value, world)


def _best_of(slope: sp.Expr) -> sp.Expr:
    return E(q, w * _weight(slope) * score() ** 2) / E(q, w**2 * score() ** 2)


def _best_shift(value: sp.Expr) -> Statement:
    return equal(_best_of(SHIFTED_SLOPE), value, ANY_MASS, bstar=_best_of(PLAIN_SLOPE))


def _least(baseline: sp.Expr) -> Statement:
    left, at_best = (E(q, _weight(PLAIN_SLOPE, A - x) ** 2 * score() ** 2) for x in (b, _best))
    excess = E(q, w**2 * score() ** 2) * (b - _best) ** 2
    return equal(left, at_best + excess, ANY_MASS, bstar=baseline)


AT_BEST = _weight(PLAIN_SLOPE, A - _best_of(PLAIN_SLOPE))

CLAIM = Claim(
    id="baseline_shift",
    source="ours; on arXiv 2505.17508, Defs 3.1, 3.4, Remark 3.3",
    statements=(
        _same("ufkl", "fkl", A - beta),
        _same("urkl", "rkl", A + beta),
        _any(A - _kappa * beta),
        _cost(-_kappa * beta * Grad(Total(p)), ANY_MASS),
        _best_shift(_best - _kappa * beta),
        _cost(sp.Integer(0), ANY),
        equal(Grad(_loss(SHIFTED)), Grad(_loss(f(v), A - _kappa * beta)), ANY_MASS),
        _least(_best_of(PLAIN_SLOPE)),
        equal(_weight(SHIFTED_SLOPE, A - _best_of(SHIFTED_SLOPE)), AT_BEST, ANY_MASS),
    ),
    near_misses={
        "forward: the baseline −β": _same("ufkl", "fkl", A + beta),
        "reverse: the baseline β": _same("urkl", "rkl", A - beta),
        "a baseline of 1": _same("ufkl", "fkl", A - 1),
        "the two unnormalised rows": _same("urkl", "ufkl", A - beta),
        "equal sample by sample at one A": _same("ufkl", "fkl", A),
        "the losses' values": equal(_loss(SHIFTED), _loss(f(v), A - _kappa * beta), ANY_MASS),
        "π_θ of any mass": _cost(sp.Integer(0), ANY_MASS),
        "one best baseline for both": _best_shift(_best),
        "best baseline: E[weight]/E[w]": _least(E(q, _weight(PLAIN_SLOPE)) / E(q, w)),
    },
    printed=5,
)
