"""Taking each optimum as the next reference: k rounds at k·β reach the reverse KL's optimum of one round at β.

By induction: after j rounds π_j ∝ π_ref·e^{jR/(kβ)}, which holds at j = 0, and one more round gives j + 1. The
forward KL does not compose: one round makes π_ref/π* affine in R, two rounds quadratic, whatever the strengths and
the multipliers.

Source: ours; arXiv 2505.17508, §3.3 and App. G (iterative reference).
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.expectations import finite
from proofs.symbols import R, beta, r

_j, _k = sp.symbols("j k", positive=True)
_l1, _l2 = sp.symbols("lambda_1 lambda_2", real=True)


def _normalise(numerator: sp.Expr) -> sp.Expr:
    return numerator / finite(numerator)


def best_response(reference: sp.Expr, strength: sp.Expr) -> sp.Expr:
    """Return the optimum of E[R] − strength·KL(π‖reference). Source: `optimum`."""
    return _normalise(reference * sp.exp(R / strength))


def _after(rounds: sp.Expr) -> sp.Expr:
    return _normalise(r * sp.exp(rounds * R / (_k * beta)))


def _forward(reference: sp.Expr, strength: sp.Expr, multiplier: sp.Expr) -> sp.Expr:
    return strength * reference / (multiplier - R)


def _second_difference(policy: sp.Expr) -> sp.Expr:
    at = [(r / policy).subs(R, reward) for reward in (0, 1, 2)]
    return at[0] - 2 * at[1] + at[2]


ONE_ROUND = _forward(r, beta, _l1)
TWO_ROUNDS = _forward(_forward(r, 2 * beta, _l1), 2 * beta, _l2)


CLAIM = Claim(
    id="iterated_reference",
    statement="k exact rounds at k·β with π_ref ← π* reach the reverse KL's optimum at β; the forward KL's never",
    source="ours; on arXiv 2505.17508, §3.3, App. G",
    identities=lambda: {
        "reverse: j = 0": (_after(sp.S.Zero), _normalise(r)),
        "reverse: j → j + 1": (best_response(_after(_j), _k * beta), _after(_j + 1)),
        "reverse: j = k": (_after(_k), best_response(r, beta)),
        "forward: one round, π_ref/π* is affine in R": (_second_difference(ONE_ROUND), sp.S.Zero),
        "forward: two rounds, its second difference": (_second_difference(TWO_ROUNDS), 1 / (2 * beta**2)),
    },
    near_misses=lambda: {
        "forward composes": (_second_difference(TWO_ROUNDS), sp.S.Zero),
        "reverse: rounds at β": (best_response(_after(_j), beta), _after(_j + 1)),
        "reverse: rounds at β/k": (best_response(_after(_j), beta / _k), _after(_j + 1)),
        "reverse: the reference stays": (best_response(r, _k * beta), best_response(r, beta)),
    },
)
