"""Taking each optimum as the next reference: k rounds at k·β reach the reverse KL's optimum of one round at β.

By induction: after j rounds π_j ∝ π_ref·e^{jR/(kβ)}, which holds at j = 0, and one more round gives j + 1.

The forward KL composes for no reference if three rewards differ. One round makes π_ref/π* = (λ − R)/β, affine in R; k
rounds make it a product of k such factors, each positive and falling. Let F be a product of some: positive, falling,
and convex. One more factor makes it fall still, and strictly convex, since F″·(λ − R) ≥ 0 and −2F′ > 0. Such a function
meets an affine one at most twice. With two rewards it may happen, for isolated references: R = ±5/6, β = 1, π_ref =
(1/5, 4/5) is one, in exact numbers.

Source: ours; arXiv 2505.17508, §3.3 and App. G (iterative reference).
"""

import sympy as sp

from proofs.certificate import POSITIVE, Claim, Statement, equal, related
from proofs.language import InReward, Total
from proofs.symbols import R, beta, falling, r, to_lagrange
from proofs.worlds import Listed, Numbers

_j, _k, _now, _once, _twice = sp.symbols("j k p_j p_once p_twice", positive=True)


def _tilted(reference: sp.Expr, exponent: sp.Expr) -> sp.Expr:
    return reference * sp.exp(exponent) / Total(reference * sp.exp(exponent))


def _after(rounds: sp.Expr) -> sp.Expr:
    return _tilted(r, rounds * R / (_k * beta))


def _round(strength: sp.Expr) -> Statement:
    return equal(_tilted(_now, R / strength), _after(_j + 1), p_j=_after(_j))


PRODUCT = falling * to_lagrange

# Two arms. One round of the forward KL at β: π* = β·π_ref/(λ − R), λ so that it adds up to one.
TWO_ARMS = Listed(
    outcomes=2,
    at={R: (sp.Rational(5, 6), -sp.Rational(5, 6)), r: (sp.Rational(1, 5), sp.Rational(4, 5)), beta: sp.Integer(1)},
)


def _forward(reference: sp.Expr, strength: sp.Expr, multiplier: sp.Expr) -> sp.Expr:
    return strength * reference / (multiplier - R)


ONCE = _forward(r, beta, sp.Rational(7, 6))
FIRST = _forward(r, 2 * beta, sp.Rational(11, 6))
SECOND = _forward(FIRST, 2 * beta, sp.Rational(13, 6))

CLAIM = Claim(
    id="iterated_reference",
    source="ours; on arXiv 2505.17508, §3.3, App. G",
    statements=(
        _round(_k * beta),
        equal(
            InReward(InReward(PRODUCT)), to_lagrange * InReward(InReward(falling)) - 2 * InReward(falling), Numbers()
        ),
        related(InReward(InReward(PRODUCT)), POSITIVE, 0, Numbers()),
        related(-InReward(PRODUCT), POSITIVE, 0, Numbers()),
        equal(Total((_twice - _once) ** 2), 0, TWO_ARMS, p_once=ONCE, p_twice=SECOND),
        *(equal(Total(policy), 1, TWO_ARMS) for policy in (ONCE, FIRST, SECOND)),
        equal(_after(_k), _tilted(r, R / beta)),
        equal(_after(sp.Integer(0)), r / Total(r)),
    ),
    near_misses={
        "forward: two rounds are affine in R": equal(InReward(InReward(to_lagrange**2)), 0, Numbers()),
        "forward: the first of two rounds is the whole": equal(Total((FIRST - ONCE) ** 2), 0, TWO_ARMS),
        "reverse: rounds at β": _round(beta),
        "reverse: rounds at β/k": _round(beta / _k),
        "reverse: the reference stays": equal(_tilted(r, R / (_k * beta)), _tilted(r, R / beta)),
    },
    printed=5,
)
