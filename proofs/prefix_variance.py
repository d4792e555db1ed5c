"""The prefix level's variance is not uniformly lower than the sequence level's: two exact policies, one each way.

Both estimate ∇KL(π_θ‖π_ref) of whole sequences without bias (`prefix_level`, `sequence_level`). θ is the first token's
logit. The probabilities are rational, so a variance is an exact sum of logarithms, which is enclosed.

Source: ours; on per-decision importance sampling, Precup et al. 2000.
"""

import sympy as sp

from proofs.certificate import EQUAL, LESS, POSITIVE, Claim, Statement, related
from proofs.language import THROUGH, at, over, score, variance
from proofs.symbols import p, q, r, t, v, w
from proofs.worlds import Tree

# Odds of token 0 after the empty history, after 0 and after 1, under π_θ, π_old and π_ref.
_QUARTER, _HALF = sp.Rational(1, 4), sp.Rational(1, 2)
PREFIX_BETTER = {p: (1, 4, 4), q: (1, _QUARTER, _QUARTER), r: (_HALF, 4, 4)}
PREFIX_WORSE = {p: (1, 2, 2), q: (1, _QUARTER, _QUARTER), r: (2, 1, 4)}
PREFIX = over(t, at(w, t, THROUGH) * sp.log(at(v, t)) * score(at(p, t, THROUGH)))
SEQUENCE = w * sp.log(v) * score()


def _policies(odds: dict[sp.Symbol, tuple[sp.Expr, ...]]) -> Tree:
    def step(odd: sp.Expr, *, moves: bool) -> tuple[tuple[sp.Expr, sp.Expr], ...]:
        first = sp.sympify(odd) / (1 + odd)
        rate = first * (1 - first) if moves else sp.Integer(0)
        return (first, 1 - first), (rate, -rate)

    states = ((), (0,), (1,))
    at_states = {
        policy: {state: step(odd, moves=state == ()) for state, odd in zip(states, values, strict=True)}
        for policy, values in odds.items()
    }
    return Tree(leaves=((0, 0), (0, 1), (1, 0), (1, 1)), at=at_states)


def _compared(relation: str, odds: dict[sp.Symbol, tuple[sp.Expr, ...]]) -> Statement:
    return related(variance(q, PREFIX), relation, variance(q, SEQUENCE), _policies(odds))


CLAIM = Claim(
    id="prefix_variance",
    source="ours; on Precup et al. 2000",
    statements=(_compared(LESS, PREFIX_BETTER), _compared(POSITIVE, PREFIX_WORSE)),
    near_misses={
        "never higher": _compared(LESS, PREFIX_WORSE),
        "always equal": _compared(EQUAL, PREFIX_WORSE),
        "equal where the prefix is better": _compared(EQUAL, PREFIX_BETTER),
    },
)
