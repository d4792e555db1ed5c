"""Sequence level: the whole sequence is the sample x of the paper; and the geometric mean of its weights.

Policies, old policy, anchor and rewards are arbitrary at every state of the tree. Left-hand sides are what a trainer
computes, sums over samples of π_old; right-hand sides are definitions. The geometric mean w^{1/T} is a function of the
response, so that one decision is enough, among any responses of any lengths.

Source: ours; the paper (arXiv 2505.17508) writes x for a whole sample and applies its formulas token by token.
"""

import sympy as sp

from proofs.certificate import DIFFERENT, NORMALISED, TREES, Claim, Statement, equal, related
from proofs.definitions import k3
from proofs.language import KL, SG, E, Grad, Total, at, over, score
from proofs.symbols import J, R, T, b, beta, f, f_prime, p, q, r, t, u, v, w
from proofs.worlds import Space

LOG_V, SCORES = over(t, sp.log(at(v, t))), over(t, score(at(p, t)))
TOKEN_SURROGATE = over(t, -at(w, t) * R + beta * at(u, t) * f(at(v, t)))
WEIGHT = w * R - beta * u * v * f_prime(v)
SURROGATE = -w * R + beta * u * f(v)
OBJECTIVE = E(p, R) - beta * E(r, f(v))


def _descends(loss: sp.Expr) -> Statement:
    return equal(Grad(E(q, loss)), -Grad(J), TREES, J=OBJECTIVE)


def _weighted(weight: sp.Expr, scores: sp.Expr) -> Statement:
    return equal(E(q, weight * scores), Grad(J), TREES, J=OBJECTIVE)


def _reverse(loss: sp.Expr) -> Statement:
    return equal(Grad(E(q, loss)), Grad(KL(p, r)), TREES)


TOKEN_K3 = over(t, k3(1 / at(v, t)))
SEQUENCE_LEVEL = Claim(
    id="sequence_level",
    source="ours; arXiv 2505.17508, Props 3.2, 3.6, E.1, E.3 with x a sequence",
    statements=(
        _weighted(WEIGHT, SCORES),
        _descends(SURROGATE),
        _reverse(w * LOG_V),
        _reverse(w * TOKEN_K3),
        equal(sp.log(v), LOG_V, TREES),
        equal(score(), SCORES, TREES),
    ),
    near_misses={
        "Σ_t k3, sequence weight detached: reverse KL": _reverse(SG(w) * TOKEN_K3),
        "Σ_t k3, geometric weight: reverse KL": _reverse(sp.sqrt(w) * TOKEN_K3),
        "token sums": _descends(TOKEN_SURROGATE),
        "divided by the length": _descends(SURROGATE / T),
        "weight without w": _weighted(WEIGHT / w, SCORES),
    },
    printed=2,
)


def _geometric(measure: sp.Expr, weight: sp.Expr, value: sp.Expr | int) -> Statement:
    return equal(Grad(E(measure, weight ** (1 / T) * R)), value, NORMALISED)


ON = p / SG(p)
OFF = Grad(E(q, w ** (1 / T) * R))
GEOMETRIC_LEVEL = Claim(
    id="geometric_level",
    source="ours; weight of Zheng et al. 2025 (GSPO)",
    statements=(
        _geometric(SG(p), ON, Grad(E(p, R / T))),
        related(OFF, DIFFERENT, Grad(E(p, R / T)), NORMALISED),
        related(Grad(E(q, w ** (1 / T) * b)), DIFFERENT, 0, Space(old_is_normalised=True, equal_lengths=True)),
        equal(Grad(E(q, sp.sqrt(w) * R)), Grad(Total(sp.sqrt(q * p) * R)), NORMALISED),
    ),
    near_misses={
        "on-policy, ∇E[R]": _geometric(SG(p), ON, Grad(E(p, R))),
        "on-policy, a multiple of ∇E[R]": _geometric(SG(p), ON, Grad(E(p, R)) / 2),
        "off-policy, ∇E[R/T]": _geometric(q, w, Grad(E(p, R / T))),
        "off-policy, ∇E[R]": _geometric(q, w, Grad(E(p, R))),
        "off-policy, T = 2, a baseline costs nothing": equal(Grad(E(q, sp.sqrt(w) * b)), 0, NORMALISED),
    },
    printed=3,
)

CLAIMS = (SEQUENCE_LEVEL, GEOMETRIC_LEVEL)
