"""The forward KL is zero-avoiding, the reverse KL zero-forcing; arXiv 2505.17508, §2.1, calls the forward zero-forcing.

Two outcomes. Let π_θ abandon one that π_ref has: KL(π_ref‖π_θ) grows as π_ref·log(1/π_θ), KL(π_θ‖π_ref) stays finite.
Let π_ref abandon one that π_θ has: the same limits with the names exchanged, so the reverse KL forces π_θ to zero
there.

Source: errata, paper row 7 (ours), on arXiv 2505.17508, §2.1.
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.definitions import kl
from proofs.language import Limit
from proofs.worlds import Numbers

_epsilon, _odds, _kept = sp.symbols("epsilon o kept", positive=True)
KEPT = _odds / (1 + _odds)  # the probability of the outcome under the policy that keeps it; o are its odds
FORWARD = kl(_kept, _epsilon) + kl(1 - _kept, 1 - _epsilon)  # of the policy that keeps it from the one that abandons it
REVERSE = kl(_epsilon, _kept) + kl(1 - _epsilon, 1 - _kept)


def _limit(value: sp.Expr, limit: sp.Expr | int) -> Statement:
    return equal(Limit(value.subs(_kept, KEPT), _epsilon), sp.sympify(limit).subs(_kept, KEPT), Numbers())


CLAIM = Claim(
    id="zero_avoiding",
    source="errata, paper row 7; on arXiv 2505.17508, §2.1",
    statements=(
        _limit(FORWARD / sp.log(1 / _epsilon), _kept),
        _limit(REVERSE, -sp.log(1 - _kept)),
        _limit(REVERSE / sp.log(1 / _epsilon), 0),
    ),
    near_misses={
        "π_θ abandons: KL(π_ref‖π_θ) stays finite": _limit(FORWARD / sp.log(1 / _epsilon), 0),
        "π_θ abandons: KL(π_θ‖π_ref) → ∞": _limit(REVERSE / sp.log(1 / _epsilon), _kept),
        "π_θ abandons: KL(π_θ‖π_ref) → 0": _limit(REVERSE, 0),
    },
    printed=2,
)
