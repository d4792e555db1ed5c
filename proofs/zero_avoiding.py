"""The forward KL is zero-avoiding, the reverse KL zero-forcing; arXiv 2505.17508, §2.1, calls the forward zero-forcing.

Two outcomes. Let π_θ abandon one that π_ref has: KL(π_ref‖π_θ) grows as π_ref·log(1/π_θ), KL(π_θ‖π_ref) stays finite.
Let π_ref abandon one that π_θ has: the same limits with the names exchanged, so the reverse KL forces π_θ to zero
there.

Source: errata, paper row 7 (ours), on arXiv 2505.17508, §2.1.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.definitions import kl

_epsilon, _odds = sp.symbols("epsilon odds", positive=True)
KEPT = _odds / (1 + _odds)  # the probability of the outcome under the policy that keeps it
KEEPS, ABANDONS = (KEPT, 1 - KEPT), (_epsilon, 1 - _epsilon)


def _kl(first: tuple[sp.Expr, ...], second: tuple[sp.Expr, ...]) -> sp.Expr:
    return sum(kl(a, b) for a, b in zip(first, second, strict=True))


def _limit(value: sp.Expr) -> sp.Expr:
    return sp.limit(sp.expand_log(value.factor(deep=True)), _epsilon, 0, "+")


def _value(first: tuple[sp.Expr, ...], second: tuple[sp.Expr, ...]) -> sp.Expr:
    return _limit(_kl(first, second))


def _rate(first: tuple[sp.Expr, ...], second: tuple[sp.Expr, ...]) -> sp.Expr:
    return _limit(_kl(first, second) / sp.log(1 / _epsilon))


CLAIM = Claim(
    id="zero_avoiding",
    statement="as π_θ(x) → 0 < π_ref(x): KL(π_ref‖π_θ) → ∞ and KL(π_θ‖π_ref) stays finite; π_ref(x) → 0: the reverse",
    source="errata, paper row 7; on arXiv 2505.17508, §2.1",
    identities=lambda: {
        "π_θ abandons: KL(π_ref‖π_θ)/log(1/π_θ) → π_ref": (_rate(KEEPS, ABANDONS), KEPT),
        "π_θ abandons: KL(π_θ‖π_ref) → −log(1 − π_ref)": (_value(ABANDONS, KEEPS), -sp.log(1 - KEPT)),
        "π_θ abandons: KL(π_θ‖π_ref)/log(1/π_θ) → 0": (_rate(ABANDONS, KEEPS), sp.S.Zero),
    },
    near_misses=lambda: {
        "π_θ abandons: KL(π_ref‖π_θ) stays finite": (_rate(KEEPS, ABANDONS), sp.S.Zero),
        "π_θ abandons: KL(π_θ‖π_ref) → ∞": (_rate(ABANDONS, KEEPS), KEPT),
        "π_θ abandons: KL(π_θ‖π_ref) → 0": (_value(ABANDONS, KEEPS), sp.S.Zero),
    },
)
