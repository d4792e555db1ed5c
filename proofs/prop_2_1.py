"""Proposition 2.1: the generalised policy gradient, for an integrand that depends on θ too.

Source: arXiv 2505.17508, Proposition 2.1.
"""

from proofs.certificate import Claim
from proofs.expectations import ANY_MASS, NORMALISED, finite, gradient
from proofs.symbols import g, p, score, theta

EXPECTED_GRADIENT = p * (g * score + g.diff(theta))

CLAIM = Claim(
    id="prop_2_1",
    statement="∇E_πθ[g(x,θ)] = E_πθ[g ∇log π_θ + ∇g]",
    source="arXiv 2505.17508, Prop. 2.1",
    identities=lambda: {
        f"{name}, {mass}": (gradient(setting, p * g), setting(EXPECTED_GRADIENT))
        for mass, settings in (("any mass", ANY_MASS), ("normalised", NORMALISED))
        for name, setting in settings.items()
    },
    near_misses=lambda: {
        name: (gradient(finite, p * g), finite(wrong))
        for name, wrong in {
            "θ in g forgotten": p * g * score,
            "θ in the sampling forgotten": p * g.diff(theta),
            "score with the other sign": p * (g.diff(theta) - g * score),
        }.items()
    },
)
