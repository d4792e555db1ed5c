"""Proposition 2.1: the generalised policy gradient, for an integrand that depends on θ too.

Source: arXiv 2505.17508, Proposition 2.1.
"""

from proofs.certificate import ANY_MASS, Claim, equal
from proofs.language import E, Grad, score
from proofs.symbols import g, p

CLAIM = Claim(
    id="prop_2_1",
    source="arXiv 2505.17508, Prop. 2.1",
    statements=(
        equal(Grad(E(p, g)), E(p, g * score() + Grad(g))),
        equal(Grad(E(p, g)), E(p, g * score() + Grad(g)), ANY_MASS),
    ),
    near_misses={
        "θ in g forgotten": equal(Grad(E(p, g)), E(p, g * score())),
        "θ in the sampling forgotten": equal(Grad(E(p, g)), E(p, Grad(g))),
        "score with the other sign": equal(Grad(E(p, g)), E(p, Grad(g) - g * score())),
    },
)
