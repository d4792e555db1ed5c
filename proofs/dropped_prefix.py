"""What a token's own weight costs where the prefix's weight is due: T(T − 1) terms, and the sharp constant.

The token-level estimator of ∇E[R], for one reward R at the end, weights token t by w_t alone. Its bias is a sum
over pairs: token t, and another token k whose weight is missing. In each pair the tokens before the later of the
two follow π_θ, token k contributes w_k − 1, and the tokens after them follow π_old.

Let δ be the largest total variation between the next-token policies of π_θ and π_old, over all histories. Let S be
the largest Σ_y |∇π_θ(y|h)|, and span(R) = max R − min R. A constant in R changes neither side, so that we may
assume |R| ≤ span(R)/2. Given its history, E_q|w_k − 1| is twice a total variation, at most 2δ, and E_p|∇log p_t| ≤
S. So each pair is at most δ·S·span(R), and the bias is at most T(T − 1)·δ·S·span(R), where T is the longest length.

No smaller constant will do. Let every token be one of two: the rare one has probability θ under π_θ and ε under
π_old. Let R be 1 for an odd number of rare tokens. Then S = 2, δ = θ − ε, E_p[R] = (1 − (1 − 2θ)^T)/2, and the bias
is T·((1 − 2ε)^(T−1) − (1 − 2θ)^(T−1)). At T = 2 it equals the bound. For every T its ratio to the bound tends to 1
as θ and ε fall to 0. T = 2 and T = 3 are enumerated below.

Source: ours; verl, docs/algo/rollout_corr_math.md, §3.3.1, states O(T²·δ).
"""

from itertools import product

import sympy as sp

from proofs.certificate import LESS, TREES, Claim, Statement, equal, related
from proofs.language import AFTER, BEFORE, NOT, PAST, E, Grad, at, over, score
from proofs.symbols import R, k, p, q, t, w
from proofs.worlds import Tree

W, W_PAST, MISSING = at(w, t), at(w, k, PAST), at(w, k) - 1
SCORE = score(at(p, t))
BIAS = E(q, over(t, W * R * SCORE)) - Grad(E(p, R))
LATER, EARLIER = over(k, W_PAST * MISSING, AFTER, t), W * over(k, W_PAST * MISSING, BEFORE, t)


def _is(pairs: sp.Expr) -> Statement:
    return equal(BIAS, -E(q, over(t, pairs * R * SCORE)), TREES)


RARE, RARE_OLD = sp.Rational(3, 10), sp.Rational(1, 10)  # θ and ε
APART = RARE - RARE_OLD


def _parity(length: int) -> Tree:
    """Return the tree of all responses of two tokens, R = 1 for an odd number of rare ones."""
    leaves = tuple(product((0, 1), repeat=length))
    histories = [history for n in range(length) for history in product((0, 1), repeat=n)]
    current = ((1 - RARE, RARE), (sp.Integer(-1), sp.Integer(1)))
    old = ((1 - RARE_OLD, RARE_OLD),)
    reward = {leaf: sp.Integer(sum(leaf) % 2) for leaf in leaves}
    policies = {p: dict.fromkeys(histories, current), q: dict.fromkeys(histories, old)}
    return Tree(leaves=leaves, old_is_normalised=True, at={**policies, R: reward})


def _bias_of(length: int) -> sp.Expr:
    return length * ((1 - 2 * RARE_OLD) ** (length - 1) - (1 - 2 * RARE) ** (length - 1))


def _bound(length: int) -> sp.Expr:
    return length * (length - 1) * APART * 2


CLAIM = Claim(
    id="dropped_prefix",
    source="ours; on verl, docs/algo/rollout_corr_math.md",
    statements=(
        _is(LATER + EARLIER),
        equal(BIAS, _bound(2), _parity(2)),
        equal(BIAS, _bias_of(3), _parity(3)),
        related(BIAS, LESS, _bound(3), _parity(3)),
    ),
    near_misses={
        "no bias": equal(BIAS, 0, TREES),
        "the missing weights of earlier tokens alone": _is(EARLIER),
        "the missing weights of later tokens alone": _is(LATER),
        "the missing weights, each by itself": _is(W * over(k, MISSING, NOT, t)),
        "half of the bound": related(BIAS, LESS, _bound(2) / 2, _parity(2)),
        "T·δ, as for independent errors": related(BIAS, LESS, 3 * APART * 2, _parity(3)),
    },
    printed=2,
)
