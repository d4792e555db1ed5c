"""What the released code and other libraries compute where they part from their names.

`rpg_js`, ½(RKL − FKL), changes sign with its arguments and is concave below v = 1: no divergence at all. `rpg_ujs`,
½(UFKL + URKL), is half Jeffreys. A clamp of the penalty's value has no slope beyond ±10. A reference that is missing
and read as log π_ref = 0 turns k1 in the reward into an entropy bonus.

Source: errata, released-code rows 3 and 4, and the row of AReaL (ours).
"""

import sympy as sp

from proofs.certificate import ANY_MASS, DIFFERENT, Claim, Statement, equal, related
from proofs.definitions import k1
from proofs.divergence_table import TABLE
from proofs.language import JS, KL, UKL, E, Grad, Jeffreys, Larger, Smaller
from proofs.one_idea import reinforce_loss
from proofs.symbols import MOVING, R, beta, p, q, r, v, w
from proofs.worlds import Numbers

_penalty = sp.Symbol("x", real=True)
CLAMP = Larger(-10, Smaller(_penalty, 10))


def _within(text: str, value: sp.Expr) -> Numbers:
    return Numbers(region=((_penalty, text, value),))


BEYOND = _within("x>10", 10 + MOVING)
BELOW = _within("x<-10", -10 - MOVING)
WITHIN = _within("-10<x<10", 10 * (MOVING - 1) / (MOVING + 1))
AT_V = Numbers(region=((v, "", MOVING),))


def rpg_js(first: sp.Expr, second: sp.Expr) -> sp.Expr:
    """Return ½(RKL − FKL). Source: errata, released-code row 3."""
    return (KL(first, second) - KL(second, first)) / 2


def rpg_ujs(first: sp.Expr, second: sp.Expr) -> sp.Expr:
    """Return ½(URKL + UFKL). Source: errata, released-code row 3."""
    return (UKL(first, second) + UKL(second, first)) / 2


def _rewarded(reference: sp.Expr | int, target: sp.Expr | int) -> Statement:
    loss = reinforce_loss(w * (R - beta * k1(reference / p)))
    return equal(-Grad(E(q, loss)), Grad(E(p, R) + beta * target))


_GENERATOR = (TABLE["rkl"].f - TABLE["fkl"].f) / 2
ENTROPY = -E(p, sp.log(p))
CLAIM = Claim(
    id="released_code",
    source="errata, released-code rows 3, 4; other libraries",
    statements=(
        related(rpg_js(p, r), DIFFERENT, JS(p, r), ANY_MASS),
        equal(rpg_ujs(p, r), Jeffreys(p, r) / 2, ANY_MASS),
        equal(Grad(CLAMP), 0, BEYOND),
        equal(Grad(CLAMP), 0, BELOW),
        _rewarded(1, ENTROPY),
        equal(rpg_js(p, r), -rpg_js(r, p), ANY_MASS),
        equal(JS(p, r), JS(r, p), ANY_MASS),
        equal(Grad(Grad(_GENERATOR)), (v - 1) / (2 * v**2), AT_V),
        equal(Grad(CLAMP), Grad(_penalty), WITHIN),
    ),
    near_misses={
        "rpg_js is JS": equal(rpg_js(p, r), JS(p, r), ANY_MASS),
        "rpg_ujs is JS": equal(rpg_ujs(p, r), JS(p, r), ANY_MASS),
        "rpg_ujs is Jeffreys": equal(rpg_ujs(p, r), Jeffreys(p, r), ANY_MASS),
        "clamp, over 10: the slope stays": equal(Grad(CLAMP), Grad(_penalty), BEYOND),
        "no reference: no penalty": _rewarded(1, 0),
        "no reference: penalty to π_ref": _rewarded(1, -KL(p, r)),
        "a reference: entropy bonus": _rewarded(r, ENTROPY),
    },
    printed=5,
)
