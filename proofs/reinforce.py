"""The REINFORCE-style losses: −E_old[SG(weight)·log π_θ] has the differentiable loss's gradient, row by row.

Objective and weight are those of the differentiable propositions; only the loss is new.

Source: arXiv 2505.17508, Propositions 4.1, F.1, F.3, F.4, F.5.
"""

from types import ModuleType

import sympy as sp

from proofs import prop_3_2_ufkl, prop_3_6_urkl, prop_e_1_fkl, prop_e_3_rkl
from proofs.certificate import Claim
from proofs.expectations import PROPOSITION, expectation_old, gradient, stop_gradient, wrong_losses
from proofs.symbols import Z, beta, p, w


def reinforce_loss(weight: sp.Expr) -> sp.Expr:
    """Return −SG(weight)·log π_θ. Source: arXiv 2505.17508, Propositions 4.1, F.1, F.3, F.4, F.5."""
    return -stop_gradient(weight) * sp.log(p)


def _claim(divergence: str, differentiable: ModuleType) -> Claim:
    objective, weight = differentiable.OBJECTIVE, differentiable.WEIGHT
    loss = reinforce_loss(weight)
    return Claim(
        id=f"reinforce_{divergence}",
        statement=f"−E_old[SG(weight)·log π_θ] has the gradient −∇J of {differentiable.CLAIM.id}, and of its loss",
        source="arXiv 2505.17508, one of Props 4.1, F.1, F.3–F.5",
        identities=lambda: {
            f"{name}: {what}": (gradient(setting, expectation_old(loss)), gradient(setting, other))
            for name, setting in PROPOSITION.items()
            for what, other in {"−∇J": -objective, "loss": expectation_old(differentiable.LOSS)}.items()
        },
        near_misses=lambda: wrong_losses(
            objective,
            {
                "weight not detached": -weight * sp.log(p),
                "A_reg for w·A_reg": reinforce_loss(weight / w),
                "penalty's sign flipped": reinforce_loss(weight.subs(beta, -beta)),
                "no mass Z": reinforce_loss(weight / Z),
            },
        ),
    )


CLAIMS = (
    _claim("ufkl", prop_3_2_ufkl),
    _claim("urkl", prop_3_6_urkl),
    _claim("fkl", prop_e_1_fkl),
    _claim("rkl", prop_e_3_rkl),
)
