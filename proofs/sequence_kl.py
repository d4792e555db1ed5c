"""The reverse KL of whole responses has token estimators that are exact on samples of any π_old.

E_q[w_{≤t}·X] = E_p[X] for every X of the tokens up to t. So the chain rule KL = Σ_t E_p[log v_t] gives the first
estimator: the weight of a token is w_{≤t}, and it is live. k3 may stand for k1. The KL of the whole next-token
distribution may stand for both: it needs w_{<t} alone, and has no noise of its own token. A live weight makes a
token answer for the tokens after it. The detached form writes this out: the cost of token t is Σ_{k≥t} w_{≤k}·log
v_k, the KL to go. The whole response's weight times Σ_{k≥t} log v_k is exact too.

The usual placements of k1 and k3, token by token in the loss or in the reward, are not exact. Neither the token's
own weight nor a missing one makes them so.

Source: ours; it answers a question that Shah et al. 2025, arXiv 2512.21852, leave open.
"""

import sympy as sp

from proofs.certificate import TREES, Claim, Statement, equal
from proofs.definitions import k1, k3
from proofs.language import AFTER, FROM, KL, PAST, SG, THROUGH, E, Grad, at, over
from proofs.symbols import k, p, q, r, t, v, w

Y = 1 / at(v, t)
W, W_TO, W_PAST = at(w, t), at(w, t, THROUGH), at(w, t, PAST)
NEXT_KL = KL(at(p, t), at(r, t))


def _reverse(loss: sp.Expr) -> Statement:
    return equal(Grad(E(q, over(t, loss))), Grad(KL(p, r)), TREES)


def _value(estimate: sp.Expr) -> Statement:
    return equal(E(q, over(t, estimate)), KL(p, r), TREES)


def _in_the_reward(cost: sp.Expr) -> sp.Expr:
    return SG(cost) * sp.log(at(p, t))


def _to_go(weight: sp.Expr, relation: sp.Symbol = FROM) -> sp.Expr:
    return over(k, weight * sp.log(at(v, k)), relation, t)


CLAIM = Claim(
    id="sequence_kl",
    source="ours; a question of Shah et al. 2025, arXiv 2512.21852",
    statements=(
        _reverse(W_TO * k1(Y)),
        _reverse(W_TO * k3(Y)),
        _reverse(W_PAST * NEXT_KL),
        _reverse(_in_the_reward(_to_go(at(w, k, THROUGH)))),
        _reverse(_in_the_reward(w * _to_go(sp.Integer(1)))),
        _value(W_TO * k1(Y)),
        _value(W_TO * k3(Y)),
        _value(W_PAST * NEXT_KL),
    ),
    near_misses={
        "k1 in the loss": _reverse(k1(Y)),
        "k3 in the loss": _reverse(k3(Y)),
        "k1 in the loss, the token's weight": _reverse(W * k1(Y)),
        "k3 in the loss, the token's weight": _reverse(W * k3(Y)),
        "k1 in each token's reward": _reverse(_in_the_reward(W * k1(Y))),
        "k3 in each token's reward": _reverse(_in_the_reward(W * k3(Y))),
        "k1 in each token's reward, the whole weight": _reverse(_in_the_reward(w * k1(Y))),
        "the KL to go, the token's weight": _reverse(_in_the_reward(W * _to_go(sp.Integer(1)))),
        "the KL to go, the prefix's weight": _reverse(_in_the_reward(W_TO * _to_go(sp.Integer(1)))),
        "the KL to go from the next token on": _reverse(_in_the_reward(_to_go(at(w, k, THROUGH), AFTER))),
        "the next token's KL without a weight": _reverse(NEXT_KL),
        "the next token's KL with a detached weight": _reverse(SG(W_PAST) * NEXT_KL),
        "k3 with a detached prefix weight": _reverse(SG(W_TO) * k3(Y)),
    },
    printed=5,
)
