"""Remark 3.5 and Appendix D: k3 averaged over the first argument is the unnormalised KL, whatever the two masses.

Source: arXiv 2505.17508, Remark 3.5 and Appendix D; UKL by Definitions 3.1 and 3.4.
"""

from proofs.certificate import Claim
from proofs.definitions import k3, kl, ukl
from proofs.expectations import ANY_MASS, Equation, gradient, stop_gradient
from proofs.symbols import p, q, q_tilde, w

UNNORMALISED = ANY_MASS["finite"]


def _identities() -> dict[str, Equation]:
    equations = {}
    for name, setting in ANY_MASS.items():
        for direction, estimator, divergence in (
            ("UKL(π_old‖π_θ)", q * k3(w), ukl(q, p)),
            ("UKL(π_θ‖π_old)", p * k3(1 / w), ukl(p, q)),
        ):
            equations[f"{name}: {direction}"] = (setting(estimator), setting(divergence))
            equations[f"{name}: ∇{direction}"] = (gradient(setting, estimator), gradient(setting, divergence))
    return equations


CLAIM = Claim(
    id="k3_identity",
    statement="E_old[k3(w)] = UKL(π_old‖π_θ) and E_πθ[k3(1/w)] = UKL(π_θ‖π_old), values and gradients, any masses",
    source="arXiv 2505.17508, Remark 3.5, App. D",
    identities=_identities,
    near_misses=lambda: {
        "KL(π_old‖π_θ) where the masses differ": (UNNORMALISED(q * k3(w)), UNNORMALISED(kl(q, p))),
        "KL(π_θ‖π_old) where the masses differ": (UNNORMALISED(p * k3(1 / w)), UNNORMALISED(kl(p, q))),
        "the other direction": (UNNORMALISED(q * k3(w)), UNNORMALISED(ukl(p, q))),
        "k3 of the inverse ratio": (UNNORMALISED(q * k3(1 / w)), UNNORMALISED(ukl(q, p))),
        "mean over π̃_old without Z": (UNNORMALISED(q_tilde * k3(w)), UNNORMALISED(ukl(q, p))),
        "θ in the sampling frozen": (
            gradient(UNNORMALISED, stop_gradient(p) * k3(1 / w)),
            gradient(UNNORMALISED, ukl(p, q)),
        ),
    },
)
