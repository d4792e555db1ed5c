"""How the reverse KL's optimum moves with β and with the reward: each derivative is a variance.

p* is π_ref·e^{R/β} over its sum, and J* its objective. As β grows, KL(p*‖π_ref) falls, strictly unless R is constant.
By continuity it takes every value between its limits once: 0 as β → ∞ (a normalised π_ref), and −log π_ref(the best
outcomes) as β → 0. So a target between them fixes β. In 1/β its slope is Var_{p*}(R)/β; with Var ≤ range²/4, the
integral is KL ≤ range(R)²/(8β²).

A wrong reward R + ε·h has the optimum p̂. Its shortfall under R is β·KL(p̂‖p*), by `optimum`; it is zero at ε = 0 and
its slope there is ε·Var_{p̂}(h)/β. So it is the integral of that slope: ε²·Var_{p*}(h)/(2β) to leading order, and at
most ε²·range(h)²/(8β). With s·ε for ε, it is β·∫₀¹ s·Var_{p_s}(εh/β) ds.

Source: ours; after arXiv 2502.07460 (a wrong reward); Popoviciu 1935.
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.language import KL, By, E, Total, variance
from proofs.optimum import BOLTZMANN, NUMERATOR
from proofs.symbols import R, best, beta, h, p, r

_least, _most = sp.symbols("h_min h_max", real=True)
epsilon = sp.Symbol("epsilon", real=True)
J_STAR = E(best, R) - beta * KL(best, r)


def _kl_moves(value: sp.Expr) -> Statement:
    return equal(By(KL(best, r), beta), value, best=BOLTZMANN)


def _objective_moves(value: sp.Expr) -> Statement:
    return equal(By(J_STAR, beta), value, best=BOLTZMANN)


def _reward_moves(value: sp.Expr) -> Statement:
    return equal(By(E(best, R), beta), value, best=BOLTZMANN)


def _least_variance(rest: sp.Expr) -> Statement:
    return equal(variance(p, h), (_most - _least) ** 2 / 4 - rest)


_POPOVICIU = E(p, (_most - h) * (h - _least)) + (E(p, h) - (_most + _least) / 2) ** 2
BETA = Claim(
    id="choosing_beta",
    source="ours",
    statements=(
        _kl_moves(-variance(best, R) / beta**3),
        _objective_moves(-KL(best, r)),
        _reward_moves(-variance(best, R) / beta**2),
        equal(J_STAR, beta * sp.log(Total(NUMERATOR)), best=BOLTZMANN),
        _least_variance(_POPOVICIU),
    ),
    near_misses={
        "over β²": _kl_moves(-variance(best, R) / beta**2),
        "KL rises with β": _kl_moves(variance(best, R) / beta**3),
        "π_ref's variance": _kl_moves(-variance(r, R) / beta**3),
        "J* moves with β·KL": _objective_moves(-beta * KL(best, r)),
        "J* moves with the reward too": _objective_moves(-KL(best, r) - variance(best, R) / beta**2),
        "KL(π_ref‖p*)": _objective_moves(-KL(r, best)),
        "variance: the square of the range over 4": _least_variance(sp.Integer(0)),
    },
    printed=4,
)

_hat = sp.Symbol("p_hat", positive=True)
_wrong = r * sp.exp((R + epsilon * h) / beta)
WRONG = _wrong / Total(_wrong)
SHORT = (E(best, R) - beta * KL(best, r)) - (E(_hat, R) - beta * KL(_hat, r))


def _falls_short(value: sp.Expr) -> Statement:
    return equal(SHORT, value, best=BOLTZMANN, p_hat=WRONG)


def _slope(value: sp.Expr) -> Statement:
    return equal(By(E(_hat, R) - beta * KL(_hat, r), epsilon), value, best=BOLTZMANN, p_hat=WRONG)


REWARD = Claim(
    id="wrong_reward",
    source="ours; after arXiv 2502.07460",
    statements=(
        _falls_short(beta * KL(_hat, best)),
        _slope(-epsilon * variance(_hat, h) / beta),
        equal(WRONG, best * sp.exp(epsilon * h / beta) / Total(best * sp.exp(epsilon * h / beta)), best=BOLTZMANN),
    ),
    near_misses={
        "β·KL(p*‖p̂)": _falls_short(beta * KL(best, _hat)),
        "of first order in ε": _slope(-variance(_hat, h) / beta),
        "p*'s variance at every ε": _slope(-epsilon * variance(best, h) / beta),
        "no 1/β": _slope(-epsilon * variance(_hat, h)),
        "the second moment": _slope(-epsilon * E(_hat, h**2) / beta),
    },
    printed=2,
)

CLAIMS = (BETA, REWARD)
