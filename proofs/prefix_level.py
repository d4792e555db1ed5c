"""Prefix level: the weight of a token is that of its history and itself; and the chain rules it rests on.

Policies, old policy, anchor and rewards are arbitrary at every state of the tree. Left-hand sides are what a trainer
computes, sums over samples of π_old; right-hand sides are definitions.

χ² and Jeffreys obey a chain rule too, with other weights of the history than one ratio's: w²_{<t}/u_{<t} for χ², and
for Jeffreys w_{<t} and u_{<t}, one for each KL. No rule is known for JS: the weight of one ratio fails, and that is all
that is shown here.

Source: ours; the paper (arXiv 2505.17508) writes x for a whole sample and applies its formulas token by token.
"""

import sympy as sp

from proofs.certificate import TREES, Claim, Statement, equal
from proofs.language import AFTER, FROM, JS, KL, LAST, PAST, SG, THROUGH, ChiSquare, E, Grad, Jeffreys, at, over, score
from proofs.symbols import R, k, p, q, r, t, u, v, w

W_TO, LOG_V = at(w, t, THROUGH), sp.log(at(v, t))


def _reverse(loss: sp.Expr) -> Statement:
    return equal(Grad(E(q, loss)), Grad(KL(p, r)), TREES)


def _paid_at_the_end(weight: sp.Expr) -> Statement:
    return equal(E(q, over(t, weight * R * score(at(p, t)))), Grad(E(p, R)), TREES)


def _paid_at_each_step(weight: sp.Expr) -> Statement:
    return equal(Grad(E(q, over(t, weight * at(R, t)))), Grad(E(p, over(t, at(R, t)))), TREES)


KL_TO_GO = over(k, at(w, k, THROUGH) * sp.log(at(v, k)), FROM, t)
PREFIX_LEVEL = Claim(
    id="prefix_level",
    source="ours; per-decision importance sampling of Precup et al. 2000",
    statements=(
        _reverse(over(t, W_TO * LOG_V)),
        _reverse(over(t, SG(KL_TO_GO) * sp.log(at(p, t)))),
        equal(E(q, over(t, W_TO * LOG_V)), KL(p, r), TREES),
        _paid_at_each_step(W_TO),
        _paid_at_the_end(w),
    ),
    near_misses={
        "detached weight": _reverse(over(t, SG(W_TO) * LOG_V)),
        "detached history": _reverse(over(t, SG(at(w, t, PAST)) * at(w, t) * LOG_V)),
        "the token's own weight": _reverse(over(t, at(w, t) * LOG_V)),
        "the history's weight alone": _reverse(over(t, at(w, t, PAST) * LOG_V)),
        "no weight": _reverse(over(t, LOG_V)),
        "a reward paid at the end with w_{1:t}": _paid_at_the_end(W_TO),
    },
)


def _forward(weight: sp.Expr, generator: sp.Expr) -> Statement:
    return equal(Grad(E(q, over(t, weight * at(u, t) * generator))), Grad(KL(r, p)), TREES)


FKL, UFKL, CHI2 = -LOG_V, at(v, t) - 1 - LOG_V, (at(v, t) - 1) ** 2
U_PAST, W_PAST = at(u, t, PAST), at(w, t, PAST)
PREFIX_FORWARD_KL = Claim(
    id="prefix_forward_kl",
    source="ours",
    statements=(_forward(U_PAST, FKL), _forward(U_PAST, UFKL)),
    near_misses={
        "history weighted by w": _forward(W_PAST, FKL),
        "history weighted by SG(w)": _forward(SG(W_PAST), FKL),
        "no history weight": _forward(sp.Integer(1), FKL),
        "the last token's weight for the history's": _forward(at(u, t, LAST), FKL),
        "χ²": equal(Grad(E(q, over(t, U_PAST * at(u, t) * CHI2))), Grad(ChiSquare(p, r)), TREES),
    },
)


def _chain(kind: type, first: sp.Expr, second: sp.Expr, histories: sp.Expr) -> Statement:
    return equal(kind(first, second), E(histories, over(t, kind(at(first, t), at(second, t)))), TREES)


def _to_go(relation: sp.Symbol) -> Statement:
    value = over(t, score(at(p, t)) * over(k, sp.log(at(v, k)), relation, t))
    return equal(E(p, value), Grad(KL(p, r)), TREES)


def _weighted(divergence: type, loss: sp.Expr) -> tuple[Statement, Statement]:
    return (
        equal(divergence(p, r), E(q, over(t, loss)), TREES),
        equal(Grad(divergence(p, r)), Grad(E(q, over(t, loss))), TREES),
    )


RKL = at(v, t) * LOG_V
CHI2_LOSS = W_PAST**2 / U_PAST * at(u, t) * CHI2
JEFFREYS_LOSS = W_PAST * at(u, t) * RKL + U_PAST * at(u, t) * FKL
CHAIN_RULE = Claim(
    id="chain_rule",
    source="ours; Cover and Thomas 2006, Thm 2.5.3",
    statements=(
        _chain(KL, p, r, p),
        _chain(KL, r, p, r),
        _to_go(FROM),
        *_weighted(ChiSquare, CHI2_LOSS),
        *_weighted(Jeffreys, JEFFREYS_LOSS),
    ),
    near_misses={
        "KL(π_θ‖π_ref), histories of π_ref": _chain(KL, p, r, r),
        "KL(π_ref‖π_θ), histories of π_θ": _chain(KL, r, p, p),
        "χ², histories of π_θ": _chain(ChiSquare, p, r, p),
        "χ², histories of π_ref": _chain(ChiSquare, p, r, r),
        "χ², history weighted by w": _weighted(ChiSquare, W_PAST * at(u, t) * CHI2)[0],
        "Jeffreys, histories of π_θ": _chain(Jeffreys, p, r, p),
        "JS, histories of π_θ": _chain(JS, p, r, p),
        "JS, histories of π_ref": _chain(JS, p, r, r),
        "KL from the next token on": _to_go(AFTER),
    },
)

CLAIMS = (PREFIX_LEVEL, PREFIX_FORWARD_KL, CHAIN_RULE)
