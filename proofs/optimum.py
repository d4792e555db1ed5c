"""The best of all policies, any generator f: π* = π_ref·(f′)⁻¹((R − λ)/β), and how far every other falls short of it.

Write R = λ + β·f′(π*/π_ref), which is what stationarity asks. The shortfall is then β times f's Bregman divergence,
positive by `nonnegativity` wherever f is convex; for the reverse KL it is β·KL(π_θ‖π*). Hence π* is the global optimum.

Source: ours; for the reverse KL, Ziebart 2010 and Rafailov et al. 2023 (DPO), Eq. 4.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.definitions import kl
from proofs.divergence_table import TABLE
from proofs.expectations import Equation, finite, pointwise
from proofs.one_idea import OBJECTIVE
from proofs.symbols import R, beta, f, f_prime, p, q_tilde, r, v

lagrange = sp.Symbol("lambda", real=True)  # λ, which makes the optimum add up to one
NUMERATOR = r * sp.exp(R / beta)
_N = sp.Symbol("N", positive=True)
BOLTZMANN = NUMERATOR / _N  # π_ref·e^{R/β} over its sum

_y = sp.Symbol("y", real=True)  # (R − λ)/β
INVERSES = {  # (f′)⁻¹(y); Jeffreys' is not elementary
    "fkl": -1 / _y,
    "ufkl": 1 / (1 - _y),
    "rkl": sp.exp(_y - 1),
    "urkl": sp.exp(_y),
    "js": sp.exp(2 * _y) / (2 - sp.exp(2 * _y)),
    "chi2": 1 + _y / 2,
}


def _stationarity() -> Equation:
    probability = sp.Symbol("probability", positive=True)
    lagrangian = pointwise(OBJECTIVE - lagrange * p).subs(p, probability)
    return lagrangian.diff(probability).subs(probability, p), R - lagrange - beta * f_prime(p / r)


def _shortfall(reward: sp.Expr) -> Equation:
    best, objective = q_tilde, OBJECTIVE.subs(R, reward)
    bregman = r * (f(p / r) - f(best / r)) - f_prime(best / r) * (p - best)
    return finite(objective.subs(p, best)) - finite(objective), beta * finite(bregman)


def _reverse_shortfall(best: sp.Expr, distance: sp.Expr) -> Equation:
    def total(integrand: sp.Expr) -> sp.Expr:
        return finite(integrand).subs(_N, finite(NUMERATOR))

    return total(best * R - beta * kl(best, r)) - total(p * R - beta * kl(p, r)), total(distance)


def _identities() -> dict[str, Equation]:
    equations = {
        "any f: ∂(J − λ∫π)/∂π(x)": _stationarity(),
        "any f: J(π*) − J(π) = β·Bregman": _shortfall(lagrange + beta * f_prime(q_tilde / r)),
        "reverse KL: J(π*) − J(π) = β·KL(π‖π*)": _reverse_shortfall(BOLTZMANN, beta * kl(p, BOLTZMANN)),
    }
    for name, inverse in INVERSES.items():
        equations[f"{name}: f′ of (f′)⁻¹"] = (TABLE[name].f_prime.subs(v, inverse), _y)
    at = {_y: (R - lagrange) / beta}
    return equations | {
        "forward KL: π* = β·π_ref/(λ − R)": ((r * INVERSES["fkl"]).subs(at), beta * r / (lagrange - R)),
        "reverse KL: π* ∝ π_ref·e^{R/β}": (
            (r * INVERSES["rkl"]).subs(at),
            NUMERATOR * sp.exp(-lagrange / beta - 1),
        ),
    }


CLAIM = Claim(
    id="optimum",
    statement="J(π*) − J(π) = β·Bregman_f ≥ 0, π* = π_ref (f′)⁻¹((R − λ)/β); RKL: β·KL(π‖π*), π* ∝ π_ref e^{R/β}",
    source="ours; reverse KL: Rafailov et al. 2023, Eq. 4",
    identities=_identities,
    near_misses=lambda: {
        "any f, slope v f′(v) for f′(v)": _shortfall(lagrange + beta * q_tilde / r * f_prime(q_tilde / r)),
        "any f, no β": _shortfall(lagrange + f_prime(q_tilde / r)),
        "reverse KL: KL(π*‖π)": _reverse_shortfall(BOLTZMANN, beta * kl(BOLTZMANN, p)),
        "reverse KL: no β": _reverse_shortfall(BOLTZMANN, kl(p, BOLTZMANN)),
        "reverse KL: any other policy for π*": _reverse_shortfall(q_tilde, beta * kl(p, q_tilde)),
        "forward KL: ∝ π_ref·e^{R/β}": (TABLE["fkl"].f_prime.subs(v, INVERSES["urkl"]), _y),
    },
)
