"""Appendix C.1: a baseline that does not depend on the action leaves the policy gradient unbiased.

The state is fixed throughout: b(s) is one number, the same for every action.

Source: arXiv 2505.17508, Appendix C.1.
"""

from proofs.certificate import ANY_MASS, Claim, equal
from proofs.language import E, Grad, score
from proofs.symbols import R, b, p, q, w

CLAIM = Claim(
    id="baseline",
    source="arXiv 2505.17508, App. C.1",
    statements=(
        equal(E(p, b * score()), 0),
        equal(Grad(E(p, R)), E(p, (R - b) * score())),
        equal(Grad(E(p, R)), E(q, w * (R - b) * score())),
    ),
    near_misses={
        "off-policy, baseline without w": equal(Grad(E(p, R)), E(q, (w * R - b) * score())),
        "baseline that depends on the action": equal(E(p, R * score()), 0),
        "policy that is not normalised": equal(E(p, b * score()), 0, ANY_MASS),
    },
)
