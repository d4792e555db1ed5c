"""The best of all policies, any generator f: π* = π_ref·(f′)⁻¹((R − λ)/β), and how far every other falls short of it.

Stationarity asks for R = λ + β·f′(π*/π_ref). The shortfall is then β times f's Bregman divergence, positive by
`nonnegativity` wherever f is convex; for the reverse KL it is β·KL(π_θ‖π*). Hence π* is the global optimum. π* is
positive everywhere: where an optimum gives an outcome no probability, this is not the shortfall.

Source: ours; for the reverse KL, Ziebart 2010 and Rafailov et al. 2023 (DPO), Eq. 4.
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.divergence_table import TABLE
from proofs.language import KL, E, Partial, Total
from proofs.symbols import R, best, beta, f, f_prime, lagrange, p, q_tilde, r, v

NUMERATOR = r * sp.exp(R / beta)
BOLTZMANN = NUMERATOR / Total(NUMERATOR)  # π_ref·e^{R/β} over its sum
BREGMAN = E(r, f(v) - f(best / r) - f_prime(best / r) * (p - best) / r)
_y = (R - lagrange) / beta
INVERSES = {  # (f′)⁻¹(y); Jeffreys' is not elementary
    "fkl": -1 / _y,
    "ufkl": 1 / (1 - _y),
    "rkl": sp.exp(_y - 1),
    "urkl": sp.exp(_y),
    "js": sp.exp(2 * _y) / (2 - sp.exp(2 * _y)),
    "chi2": 1 + _y / 2,
}


def _shortfall(reward: sp.Expr) -> Statement:
    left = (E(best, R) - beta * E(r, f(best / r))) - (E(p, R) - beta * E(r, f(v)))
    return equal(left, beta * BREGMAN, R=reward)


def _reverse(policy: sp.Expr, distance: sp.Expr) -> Statement:
    left = (E(best, R) - beta * KL(best, r)) - (E(p, R) - beta * KL(p, r))
    return equal(left, distance, best=policy)


def _rests(name: str, ratio: sp.Expr) -> Statement:
    return equal(lagrange + beta * TABLE[name].f_prime.subs(v, ratio), R)


CLAIM = Claim(
    id="optimum",
    source="ours; reverse KL: Rafailov et al. 2023, Eq. 4",
    statements=(
        _shortfall(lagrange + beta * f_prime(best / r)),
        _reverse(BOLTZMANN, beta * KL(p, best)),
        equal(Partial(p * R - beta * r * f(v) - lagrange * p), R - lagrange - beta * f_prime(v)),
        *(_rests(name, inverse) for name, inverse in INVERSES.items()),
    ),
    near_misses={
        "any f, slope v f′(v) for f′(v)": _shortfall(lagrange + beta * best / r * f_prime(best / r)),
        "any f, no β": _shortfall(lagrange + f_prime(best / r)),
        "reverse KL: KL(π*‖π)": _reverse(BOLTZMANN, beta * KL(best, p)),
        "reverse KL: no β": _reverse(BOLTZMANN, KL(p, best)),
        "reverse KL: any other policy for π*": _reverse(q_tilde, beta * KL(p, best)),
        "forward KL: ∝ π_ref·e^{R/β}": _rests("fkl", INVERSES["urkl"]),
    },
    printed=3,
)
