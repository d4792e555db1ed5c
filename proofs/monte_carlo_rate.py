"""The Monte-Carlo error falls as G^(−1/2) around the estimator's own mean, and a bias does not fall at all.

G independent samples of an estimate with a finite variance, any G: a square of a sum is a sum over pairs, of which G
are of one sample and G(G − 1) of two.

Source: Bienaymé 1853.
"""

import sympy as sp

from proofs.certificate import GROUPS, Claim, Statement, equal
from proofs.language import E, OfGroup, at, over, variance
from proofs.symbols import G, R, i, j, p

_target, _mean = sp.Symbol("target", real=True), sp.Symbol("mu")


def _spread(centre: sp.Expr, value: sp.Expr) -> Statement:
    squared = over(i, (at(R, i) - centre) * over(j, at(R, j) - centre)) / G**2
    return equal(OfGroup(p, squared), value, GROUPS, mu=E(p, R))


VARIANCE = variance(p, R)
BIAS = E(p, R) - _target
CLAIM = Claim(
    id="monte_carlo_rate",
    source="Bienaymé 1853",
    statements=(
        equal(OfGroup(p, over(i, at(R, i)) / G), E(p, R), GROUPS),
        _spread(_mean, VARIANCE / G),
        _spread(_target, VARIANCE / G + BIAS**2),
    ),
    near_misses={
        "σ²/G²": _spread(_mean, VARIANCE / G**2),
        "σ²: no gain": _spread(_mean, VARIANCE),
        "σ²/(G − 1)": _spread(_mean, VARIANCE / (G - 1)),
        "bias falls with G": _spread(_target, (VARIANCE + BIAS**2) / G),
        "bias vanishes": _spread(_target, VARIANCE / G),
    },
)
