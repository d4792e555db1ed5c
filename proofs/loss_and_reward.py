"""On-policy a penalty k(d) in the loss has the gradient of its derivative k′(d) in the reward, where d = log v.

k is any function of v. It is written f below, so that k′(d) = v·f′(v). In the loss the samples are held fixed, and
only the slope of k acts. In the reward the value acts, detached: a cost c in the reward adds SG(w·c)·log π_θ to the
loss. The two gradients are equal where w = 1. Off-policy they are equal if SG(w) multiplies the penalty in the
loss. On a tree this holds token by token: the slope of a token's penalty stands in the reward of that token alone.

So k1 in the loss is the constant 1 in the reward, which has no gradient. k2 in the loss is k1 in the reward: the
reverse KL. k3 in the loss is 1 − 1/v in the reward: the forward KL. That coefficient is below 1, and it is below −M
at v = 1/(2 + M), for every M > 0. It is less than k1, and k3 is the difference. So a token that became too likely
is drawn back with less force than by k1, and a token that became too unlikely is drawn back with more.

Source: ours; after Liu et al. 2025, arXiv 2510.01555.
"""

import sympy as sp

from proofs.certificate import DIVERGENCE, LESS, POSITIVE, TREES, Claim, Statement, equal, related
from proofs.definitions import k1, k2, k3
from proofs.language import KL, SG, E, Grad, at, over, score
from proofs.symbols import f, f_prime, p, q, r, t, v, w
from proofs.worlds import Numbers

PENALTY, SLOPE = f(v), v * f_prime(v)
TOKEN_PENALTY, TOKEN_SLOPE = f(at(v, t)), at(v, t) * f_prime(at(v, t))
Y = 1 / v
_M = sp.Symbol("M", positive=True)


def _in_the_reward(coefficient: sp.Expr) -> sp.Expr:
    return E(SG(p), SG(coefficient) * sp.log(p))  # on-policy, where w = 1


def _is_on_policy(penalty: sp.Expr, coefficient: sp.Expr) -> Statement:
    return equal(Grad(E(SG(p), penalty)), Grad(_in_the_reward(coefficient)))


def _is_off_policy(penalty: sp.Expr, coefficient: sp.Expr) -> Statement:
    return equal(Grad(E(q, penalty)), Grad(E(q, SG(w * coefficient) * sp.log(p))))


def _by_token(coefficient: sp.Expr) -> Statement:
    found = E(SG(p), over(t, TOKEN_PENALTY))
    return equal(Grad(found), E(p, over(t, coefficient * score(at(p, t)))), TREES)


def _below(bound: sp.Expr, value: sp.Expr, text: str) -> Statement:
    return related(1 - 1 / v, LESS, bound, Numbers(region=((v, text, value),)))


AT_M = _below(-_M, 1 / (2 + _M), r"v=\frac{1}{2+M}")

CLAIM = Claim(
    id="loss_and_reward",
    source="ours; after Liu et al. 2025, arXiv 2510.01555",
    statements=(
        _is_on_policy(PENALTY, SLOPE),
        _is_off_policy(SG(w) * PENALTY, SLOPE),
        _by_token(TOKEN_SLOPE),
        _is_on_policy(k2(Y), k1(Y)),
        _is_on_policy(k3(Y), 1 - 1 / v),
        related(1 - 1 / v, LESS, 1, Numbers()),
        AT_M,
        related(sp.log(v) - (1 - 1 / v), DIVERGENCE, 0, Numbers()),
        _is_on_policy(k1(Y), sp.Integer(1)),
        equal(Grad(E(SG(p), k1(Y))), 0),
        equal(Grad(_in_the_reward(k1(Y))), Grad(KL(p, r))),
        equal(Grad(_in_the_reward(1 - 1 / v)), Grad(KL(r, p))),
        equal(sp.log(v) - (1 - 1 / v), k3(Y), Numbers()),
    ),
    near_misses={
        "k itself in the reward": _is_on_policy(PENALTY, PENALTY),
        "k1 in the loss is k1 in the reward": _is_on_policy(k1(Y), k1(Y)),
        "k3 in the loss is k3 in the reward": _is_on_policy(k3(Y), k3(Y)),
        "the derivative in v": _is_on_policy(PENALTY, f_prime(v)),
        "the other sign": _is_on_policy(PENALTY, -SLOPE),
        "off-policy without a weight": _is_off_policy(PENALTY, SLOPE),
        "off-policy with a live weight": _is_off_policy(w * PENALTY, SLOPE),
        "k3's coefficient is bounded below": related(1 - 1 / v, POSITIVE, -1, Numbers()),
        "a token's reward holds the whole response's slopes": _by_token(over(t, TOKEN_SLOPE)),
    },
    printed=8,
)
