"""The unnormalised KL cannot teach a policy its anchor's mass: ∇∫(π_θ − π_old) = 0, since π_θ is normalised.

In value, UKL to an anchor Z·π̃_old is KL to π̃_old, times Z in the forward direction, plus a number that π_θ cannot
move.

Source: errata, paper row 10 (ours), on arXiv 2505.17508, Remark 3.3 and Definitions 3.1, 3.4.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.definitions import kl, ukl
from proofs.expectations import ANY_MASS, NORMALISED, Equation, finite, gradient
from proofs.symbols import Z, p, q, q_tilde


def _identities() -> dict[str, Equation]:
    equations = {}
    for name, setting in NORMALISED.items():
        equations |= {
            f"{name}: ∇∫(π_θ − π_old) = 0": (gradient(setting, p - q), sp.S.Zero),
            f"{name}: UKL(π_old‖π_θ)": (setting(ukl(q, p)), Z * setting(kl(q_tilde, p)) + Z * sp.log(Z) + 1 - Z),
            f"{name}: UKL(π_θ‖π_old)": (setting(ukl(p, q)), setting(kl(p, q_tilde)) - sp.log(Z) + Z - 1),
        }
    return equations


CLAIM = Claim(
    id="mass_gradient",
    statement="∇∫(π_θ − π_old) = 0: UKL to an anchor of mass Z is Z^(1 or 0)·KL to π̃_old plus a constant",
    source="errata, paper row 10; on arXiv 2505.17508, Remark 3.3",
    identities=_identities,
    near_misses=lambda: {
        "π_θ of any mass": (gradient(ANY_MASS["finite"], p - q), sp.S.Zero),
        "UKL(π_old‖π_θ) does not see Z": (finite(ukl(q, p)), finite(kl(q_tilde, p))),
        "UKL(π_old‖π_θ) scaled by Z alone": (finite(ukl(q, p)), Z * finite(kl(q_tilde, p))),
        "UKL(π_θ‖π_old) scaled by Z": (gradient(finite, ukl(p, q)), Z * gradient(finite, kl(p, q_tilde))),
    },
)
