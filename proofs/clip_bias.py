"""The bias of clipping is what the clipped samples would have said: E[g_clip] − ∇J = −E_old[1_outside·weight·∇log π_θ].

Any set K of outcomes may be outside, at rest. Their reward term and their KL term are both lost, so "preserving the RPG
gradients" holds inside the region only. A bounded weight w̄, whatever it is, is biased by what it is short of w.

Source: ours; errata, paper row 5, on arXiv 2505.17508, §3.3, §4.1; for w̄ the remark after Prop. F.1.
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.language import SG, E, Grad, score
from proofs.one_idea import OBJECTIVE, SURROGATE, WEIGHT, reinforce_loss
from proofs.symbols import A, J, K, beta, bounded, f_prime, q, v, w


def _bias(loss: sp.Expr, value: sp.Expr | int) -> Statement:
    clipped = (1 - K) * loss + K * SG(loss)
    return equal(-Grad(E(q, clipped)) - Grad(J), value, J=OBJECTIVE)


def _over(outside: sp.Expr, weight: sp.Expr) -> sp.Expr:
    return -E(q, outside * weight * score())


CLAIM = Claim(
    id="clip_bias",
    source="ours; errata, paper row 5",
    statements=(
        _bias(SURROGATE, _over(K, WEIGHT)),
        _bias(reinforce_loss(WEIGHT), _over(K, WEIGHT)),
    ),
    near_misses={
        "unbiased": _bias(SURROGATE, 0),
        "the KL term survives": _bias(SURROGATE, _over(K, w * A)),
        "the reward term survives": _bias(SURROGATE, _over(K, WEIGHT - w * A)),
        "the other sign": _bias(SURROGATE, -_over(K, WEIGHT)),
        "over the samples inside": _bias(SURROGATE, _over(1 - K, WEIGHT)),
    },
    printed=1,
)

A_REG = A - beta * f_prime(v)


def _bounded(factor: sp.Expr) -> Statement:
    return equal(-Grad(E(q, reinforce_loss(bounded * A_REG))) - Grad(J), E(q, factor * score()), J=OBJECTIVE)


BOUNDED_WEIGHT = Claim(
    id="bounded_weight",
    source="arXiv 2505.17508, remark after Prop. F.1; MiniMax 2025 (CISPO)",
    statements=(_bounded((bounded - w) * A_REG),),
    near_misses={
        "unbiased": _bounded(sp.Integer(0)),
        "the reward's part alone": _bounded((bounded - w) * A),
        "the other sign": _bounded((w - bounded) * A_REG),
        "the weight that is left": _bounded(bounded * A_REG),
    },
)

CLAIMS = (CLAIM, BOUNDED_WEIGHT)
