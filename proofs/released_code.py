"""What the released code and other libraries compute where they part from their names.

`rpg_js`, ½(RKL − FKL), changes sign with its arguments and is concave below v = 1: no divergence at all. `rpg_ujs`,
½(UFKL + URKL), is half Jeffreys. A clamp of the penalty's value has no slope beyond ±10. A reference that is missing
and read as log π_ref = 0 turns k1 in the reward into an entropy bonus.

Source: errata, released-code rows 3 and 4, and the row of AReaL (ours).
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.clip_region import clip
from proofs.definitions import jeffreys, jensen_shannon, k1, kl, ukl
from proofs.divergence_table import TABLE
from proofs.expectations import Equation, expectation_old, finite, gradient
from proofs.reinforce import reinforce_loss
from proofs.symbols import R, beta, p, r, theta, v, w

_t = sp.Function("t", positive=True)(theta)
BEYOND, BELOW, WITHIN = 10 + _t, -10 - _t, 10 * (_t - 1) / (_t + 1)  # a penalty over 10, under −10, in between
NO_REFERENCE = sp.S.One  # exp 0


def rpg_js(first: sp.Expr, second: sp.Expr) -> sp.Expr:
    """Return ½(RKL − FKL). Source: errata, released-code row 3."""
    return (kl(first, second) - kl(second, first)) / 2


def rpg_ujs(first: sp.Expr, second: sp.Expr) -> sp.Expr:
    """Return ½(URKL + UFKL). Source: errata, released-code row 3."""
    return (ukl(first, second) + ukl(second, first)) / 2


def _clamped(penalty: sp.Expr) -> sp.Expr:
    return clip(penalty, sp.Integer(-10), sp.Integer(10))


def _slope(penalty: sp.Expr) -> sp.Expr:
    return _clamped(penalty).diff(theta)


def _rewarded(reference: sp.Expr, target: sp.Expr) -> Equation:
    loss = reinforce_loss(w * (R - beta * k1(reference / p)))
    return -gradient(finite, expectation_old(loss)), gradient(finite, p * R + beta * target)


_GENERATOR = (TABLE["rkl"].f - TABLE["fkl"].f) / 2
CLAIM = Claim(
    id="released_code",
    statement="½(RKL − FKL) is not JS; ½(UFKL + URKL) is ½ Jeffreys; a clamp has no slope; no π_ref: entropy bonus",
    source="errata, released-code rows 3, 4; other libraries",
    identities=lambda: {
        "rpg_js changes sign with its arguments": (rpg_js(p, r), -rpg_js(r, p)),
        "JS does not": (jensen_shannon(p, r), jensen_shannon(r, p)),
        "rpg_js: f″ = (v − 1)/2v², negative below 1": (_GENERATOR.diff(v, 2), (v - 1) / (2 * v**2)),
        "rpg_ujs is half Jeffreys, any masses": (rpg_ujs(p, r), jeffreys(p, r) / 2),
        "clamp, over 10": (_slope(BEYOND), sp.S.Zero),
        "clamp, under −10": (_slope(BELOW), sp.S.Zero),
        "clamp, in between": (_slope(WITHIN), WITHIN.diff(theta)),
        "clamp: RKL's w log w is over 10 at w = 6": (_clamped(6 * sp.log(6)), sp.Integer(10)),
        "no reference: entropy bonus": _rewarded(NO_REFERENCE, -p * sp.log(p)),
        "no reference: as a uniform one": _rewarded(NO_REFERENCE, -kl(p, sp.Rational(1, 3))),
    },
    near_misses=lambda: {
        "rpg_js is JS": (rpg_js(p, r), jensen_shannon(p, r)),
        "rpg_ujs is JS": (rpg_ujs(p, r), jensen_shannon(p, r)),
        "rpg_ujs is Jeffreys": (rpg_ujs(p, r), jeffreys(p, r)),
        "clamp, over 10: the slope stays": (_slope(BEYOND), BEYOND.diff(theta)),
        "no reference: no penalty": _rewarded(NO_REFERENCE, sp.S.Zero),
        "no reference: penalty to π_ref": _rewarded(NO_REFERENCE, -kl(p, r)),
        "a reference: entropy bonus": _rewarded(r, -p * sp.log(p)),
    },
)
