"""Mirror descent with any generator's own Bregman divergence: it converges at every step size, and how fast.

D is f's divergence from π_ref, B its Bregman divergence. From p_k the next policy p maximises E[R] − β·D −
B(·, p_k)/η. Where it is interior, Lagrange's condition is R − λ = (β + 1/η)·f′(v) − f′(v_k)/η, v = p/π_ref. The optimum
p* has R − λ* = β·f′(v*). Eliminate R: f′(v) − f′(v*) is f′(v_k) − f′(v*) divided by 1 + ηβ, up to a constant.

The second equation takes R from Lagrange's condition at p, and holds for any policy in the place of p*. For the optimum
itself J(p*) − J(p) ≥ 0 and B(p, p_k) ≥ 0. So B(p*, p) ≤ B(p*, p_k)/(1 + ηβ), and J(p*) − J(p) ≤ B(p*, p_k)/η.

Source: ours; after Zhan et al. 2021, arXiv 2105.11066 (GPMD); Chen and Teboulle 1993 (three points).
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.convergence import eta
from proofs.language import E, Partial, Total
from proofs.optimum import BOLTZMANN
from proofs.symbols import R, best, beta, f, f_prime, lagrange, p, q_tilde, r, v

_multiplier = sp.Symbol("lambda_star", real=True)
OLD, STAR = q_tilde / r, best / r  # v_k and v*


def _bregman(first: sp.Expr, second: sp.Expr) -> sp.Expr:
    return r * (f(first / r) - f(second / r) - f_prime(second / r) * (first - second) / r)


def _far(first: sp.Expr, second: sp.Expr) -> sp.Expr:
    return Total(_bregman(first, second))


def _objective(policy: sp.Expr) -> sp.Expr:
    return E(policy, R) - beta * E(r, f(policy / r))


# f′(v) of the next policy, in the reward λ* + β·f′(v*)
NEXT = (_multiplier + beta * f_prime(STAR) - lagrange + f_prime(OLD) / eta) / (beta + 1 / eta)
REST = (beta + 1 / eta) * f_prime(v) - f_prime(OLD) / eta  # R − λ there
CONSTANT = eta * (_multiplier - lagrange) / (1 + eta * beta)


def _contracts(factor: sp.Expr, constant: sp.Expr = CONSTANT) -> Statement:  # noqa: B008
    return equal(NEXT - f_prime(STAR), factor * (f_prime(OLD) - f_prime(STAR)) + constant)


def _three_points(near: sp.Expr, gain: sp.Expr = eta) -> Statement:
    right = near * _far(best, p) + _far(p, q_tilde) + gain * (_objective(best) - _objective(p))
    return equal(_far(best, q_tilde), right, R=lagrange + REST)


def _rests(value: sp.Expr) -> Statement:
    inside = p * R - beta * r * f(v) - _bregman(p, q_tilde) / eta - lagrange * p
    return equal(Partial(inside), R - lagrange - value)


def _reverse(share: sp.Expr) -> Statement:
    """The reverse KL: f′ = log v + 1, so a step is a natural step of η/(1 + ηβ)."""
    step = q_tilde**share * (r * sp.exp(R / beta)) ** (1 - share)
    tilted = best * sp.exp((sp.log(q_tilde) - sp.log(best)) / (1 + eta * beta))
    return equal(step / Total(step), tilted / Total(tilted), best=BOLTZMANN)


_SHARE = 1 / (1 + eta * beta)
CLAIM = Claim(
    id="mirror_descent",
    source="ours; after arXiv 2105.11066",
    statements=(
        _contracts(1 / (1 + eta * beta)),
        _three_points(1 + eta * beta),
        _rests(REST),
        _reverse(_SHARE),
    ),
    near_misses={
        "1 − ηβ, as for an explicit step": _contracts(1 - eta * beta),
        "1/(1 + β/η)": _contracts(1 / (1 + beta / eta)),
        "no constant": _contracts(1 / (1 + eta * beta), sp.Integer(0)),
        "v for f′(v)": equal(NEXT - STAR, (OLD - STAR) / (1 + eta * beta) + CONSTANT),
        "three points: no contraction": _three_points(sp.Integer(1)),
        "three points: the gap undamped": _three_points(1 + eta * beta, sp.Integer(1)),
        "Bregman's divergence in the other order": _rests(beta * f_prime(v) + (f_prime(OLD) - f_prime(v)) / eta),
        "reverse KL: 1/(1 + η)": _reverse(1 / (1 + eta)),
    },
    printed=2,
)
