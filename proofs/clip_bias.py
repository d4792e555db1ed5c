"""The bias of clipping is what the clipped samples would have said: E[g_clip] − ∇J = −E_old[1_outside·weight·∇log π_θ].

Any set of outcomes may be outside, at rest. Their reward term and their KL term are both lost, so "preserving the RPG
gradients" holds inside the region only.

Source: ours; errata, paper row 5, on arXiv 2505.17508, §3.3, §4.1.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.expectations import OUTCOMES, at_outcome, expectation_old, finite, gradient, stop_gradient
from proofs.one_idea import OBJECTIVE, SURROGATE, WEIGHT
from proofs.reinforce import reinforce_loss
from proofs.symbols import R, score, w

OUTSIDE = {"none outside": (), "one": (0,), "two": (0, 2), "all": (0, 1, 2)}


def _bias(outside: tuple[int, ...], loss: sp.Expr) -> sp.Expr:
    def clipped(integrand: sp.Expr) -> sp.Expr:
        return sum(at_outcome(x, stop_gradient(integrand) if x in outside else integrand) for x in OUTCOMES)

    return -gradient(clipped, expectation_old(loss)) - gradient(finite, OBJECTIVE)


def _over(outcomes: tuple[int, ...], weight: sp.Expr) -> sp.Expr:
    return sum((at_outcome(x, expectation_old(weight * score)) for x in outcomes), sp.S.Zero)


CLAIM = Claim(
    id="clip_bias",
    statement="E[g_clip] − ∇J = −E_old[1_outside·weight·∇log π_θ], the KL's part included, any f and any region",
    source="ours; errata, paper row 5",
    identities=lambda: {
        f"{name}, {where}": (_bias(outside, loss), -_over(outside, WEIGHT))
        for name, loss in {"surrogate": SURROGATE, "REINFORCE": reinforce_loss(WEIGHT)}.items()
        for where, outside in OUTSIDE.items()
    },
    near_misses=lambda: {
        "unbiased": (_bias((0,), SURROGATE), sp.S.Zero),
        "the KL term survives": (_bias((0,), SURROGATE), -_over((0,), w * R)),
        "the reward term survives": (_bias((0,), SURROGATE), -_over((0,), WEIGHT - w * R)),
        "the other sign": (_bias((0,), SURROGATE), _over((0,), WEIGHT)),
        "over the samples inside": (_bias((0,), SURROGATE), -_over((1, 2), WEIGHT)),
    },
)
