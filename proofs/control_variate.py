"""The unnormalised KL is the KL plus a control variate: the difference of masses, constant for a normalised π_θ.

Hence their expected gradients agree whatever the mass of the anchor, and only the variance differs: contrary to
Remark 3.3, the unnormalised KL cannot pull π_θ towards that mass.

Source: arXiv 2505.17508, Definitions 3.1, 3.4 and Remark 3.3.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.definitions import kl, ukl
from proofs.expectations import ANY_MASS, NORMALISED, Equation, Setting, finite, gradient, pointwise
from proofs.symbols import p, r

FORWARD = (ukl(r, p), kl(r, p))
REVERSE = (ukl(p, r), kl(p, r))


def _gradients(setting: Setting, divergences: tuple[sp.Expr, sp.Expr]) -> Equation:
    unnormalised, normalised = divergences
    return gradient(setting, unnormalised), gradient(setting, normalised)


CLAIM = Claim(
    id="control_variate",
    statement="∇UKL(π_ref‖π_θ) = ∇KL(π_ref‖π_θ) and ∇UKL(π_θ‖π_ref) = ∇KL(π_θ‖π_ref) in expectation, any mass of π_ref",
    source="arXiv 2505.17508, Defs 3.1, 3.4, Remark 3.3",
    identities=lambda: {
        f"{name}: {direction}": _gradients(setting, divergences)
        for name, setting in NORMALISED.items()
        for direction, divergences in {"forward": FORWARD, "reverse": REVERSE}.items()
    },
    near_misses=lambda: {
        "forward, sample by sample": _gradients(pointwise, FORWARD),
        "reverse, sample by sample": _gradients(pointwise, REVERSE),
        "π_θ of any mass": _gradients(ANY_MASS["finite"], FORWARD),
        "equal values": (finite(ukl(r, p)), finite(kl(r, p))),
    },
)
