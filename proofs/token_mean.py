"""Dividing by a batch's own number of tokens: the expected gradient, exactly, and how it differs from a constant's.

A batch is G independent responses; h is a response's token sum of weight·∇log π, of one alone; T is its length. The
batch's estimate is Σh/ΣT. By linearity it is a sum of G terms. They are alike, and given its own response the others of
a term are independent of it. So E[Σh/ΣT] = E[h·H(T)] for every G, with H(t) = G·E[1/(t + S)], S the sum of G − 1
lengths; it is listed for G = 2, 3, 4. On-policy a reward then ascends E[R·H(T)] with H held fixed, and a baseline does
not vanish. An advantage that depends on the others of its group is not covered: there the expectation goes over whole
groups.

In a large batch μ·H(t) = 1 − (t − μ)/(Gμ) + σ²/(Gμ²) + O(G⁻²). Write D = S − (G − 1)μ and m = t + (G − 1)μ, so that
t + S is m + D. Expand 1/(m + D) to the fourth order, exactly. The moments of D, a sum of G − 1 independent terms, are
the statements about powers of Σ(T − μ), of any number of terms. Every length is at least 1, so m + D ≥ G and m ≥ G.
Hence E[D⁴]/(m⁴·(m + D)) and E[D³]/m⁴ are O(G⁻³), and G times them is O(G⁻²). What is left of μ·H(t) is μG/m plus
μG(G − 1)σ²/m³, the left side of the statement about y without its first three terms. Its right side is O(G⁻²).

Source: ours; for the ratio of two sums, Cochran 1977.
"""

import sympy as sp

from proofs.certificate import GROUPS, Claim, Statement, equal
from proofs.language import SG, E, Grad, OfGroup, OfOthers, at, over, score
from proofs.symbols import G, R, T, b, h, i, j, k, p, q
from proofs.worlds import Listed, Numbers

_l = sp.Symbol("l", integer=True)
_mu, _m, _sigma = sp.symbols("mu m sigma_T", positive=True)
_length, _y, _D = sp.symbols("length y D", real=True)
_old, _now = sp.symbols("H_q H_p", positive=True)
TOKENS = over(j, at(T, j))


def _batch(size: int, *, equal_lengths: bool = False) -> Listed:
    return Listed(group=size, old_is_normalised=True, equal_lengths=equal_lengths)


SHARES = {f"H_{measure}": G * OfOthers(measure, 1 / (T + TOKENS)) for measure in (q, p)}


def _mean(size: int, value: sp.Expr) -> Statement:
    return equal(OfGroup(q, over(i, at(h, i)) / TOKENS), value, _batch(size), **SHARES)


def _reward(size: int, value: sp.Expr, advantage: sp.Expr = R) -> Statement:
    terms = over(i, at(advantage, i) * score(at(p, i)))
    return equal(OfGroup(p, terms / TOKENS), value, _batch(size), **SHARES)


ASCENDS = Grad(E(p, R * SG(_now)))


def _moment(order: int, value: sp.Expr) -> Statement:
    deviation, product = T - _mu, sp.Integer(1)
    for index in (i, j, k, _l)[:order]:
        product = over(index, at(deviation, index) * product)
    return equal(OfGroup(q, product), value, GROUPS, mu=E(q, T))


def _power(order: int) -> sp.Expr:
    return E(q, (T - _mu) ** order)


def _fourth_order(last: int) -> Statement:
    terms = 1 / _m - _D / _m**2 + _D**2 / _m**3 - _D**3 / _m**4 + _D**4 / (_m**last * (_m + _D))
    return equal(1 / (_m + _D), terms, Numbers())


DEVIATION = (_length - _mu) / _mu
LEADING = 1 / (1 + _y / G) + _sigma**2 * (G - 1) / (G**2 * _mu**2 * (1 + _y / G) ** 3)
SPREAD = _sigma**2 / _mu**2
REST = _y**2 / (1 + _y / G) - SPREAD * (1 + 3 * _y + 3 * _y**2 / G + _y**3 / G**2) / (1 + _y / G) ** 3


def _expansion(first: sp.Expr) -> Statement:
    return equal(LEADING - first, REST / G**2, Numbers(), y=DEVIATION)


FIRST = 1 - (_length - _mu) / (G * _mu)
CLAIM = Claim(
    id="token_mean",
    source="ours; ratio estimators, Cochran 1977",
    statements=(
        _mean(2, E(q, h * _old)),
        _mean(3, E(q, h * _old)),
        _reward(2, ASCENDS),
        _reward(3, ASCENDS),
        _expansion(FIRST + _sigma**2 / (G * _mu**2)),
        _mean(4, E(q, h * _old)),
        _reward(2, ASCENDS - b * Grad(E(p, SG(_now))), R - b),
        equal(OfGroup(q, over(i, at(h, i)) / TOKENS), E(q, h) / T, _batch(3, equal_lengths=True)),
        _fourth_order(4),
        _moment(1, sp.Integer(0)),
        _moment(2, G * _power(2)),
        _moment(3, G * _power(3)),
        _moment(4, G * _power(4) + 3 * G * (G - 1) * _power(2) ** 2),
    ),
    near_misses={
        "E[Σh]/E[ΣT]": _mean(2, E(q, h) / E(q, T)),
        "E[h/T]": _mean(2, E(q, h / T)),
        "as if the own length were not in the sum": _mean(2, E(q, h * G * OfOthers(q, 1 / TOKENS))),
        "the gradient of E[R]/E[T]": _reward(2, Grad(E(p, R)) / E(p, T)),
        "the gradient of E[R·H(T)], H live": _reward(2, Grad(E(p, R * _now))),
        "a baseline is free": _reward(2, ASCENDS, R - b),
        "long responses count more": _expansion(2 - FIRST + _sigma**2 / (G * _mu**2)),
        "no variance": _expansion(FIRST),
        "no third order": equal(1 / (_m + _D), 1 / _m - _D / _m**2 + _D**2 / _m**3, Numbers()),
        "E[D⁴] = 3G²σ⁴": _moment(4, 3 * G**2 * _power(2) ** 2),
    },
    printed=5,
)
