"""The REINFORCE-style losses: −E_old[SG(weight)·log π_θ] has the differentiable loss's gradient, row by row.

Objective and weight are those of the differentiable propositions; only the loss is new.

Source: arXiv 2505.17508, Propositions 4.1, F.1, F.3, F.4, F.5.
"""

from types import ModuleType

import sympy as sp

from proofs import prop_3_2_ufkl, prop_3_6_urkl, prop_e_1_fkl, prop_e_3_rkl
from proofs.certificate import Claim, equal
from proofs.language import E, Grad
from proofs.one_idea import reinforce_loss
from proofs.propositions import descended
from proofs.symbols import Z, beta, p, q_tilde, w


def _claim(divergence: str, differentiable: ModuleType) -> Claim:
    objective, weight = differentiable.OBJECTIVE, differentiable.WEIGHT
    return Claim(
        id=f"reinforce_{divergence}",
        source="arXiv 2505.17508, one of Props 4.1, F.1, F.3–F.5",
        statements=(
            descended(objective, reinforce_loss(weight)),
            equal(Grad(Z * E(q_tilde, reinforce_loss(weight))), Grad(Z * E(q_tilde, differentiable.LOSS))),
        ),
        near_misses={
            "weight not detached": descended(objective, -weight * sp.log(p)),
            "A_reg for w·A_reg": descended(objective, reinforce_loss(weight / w)),
            "penalty's sign flipped": descended(objective, reinforce_loss(weight.subs(beta, -beta))),
            "no mass Z": descended(objective, reinforce_loss(weight / Z)),
        },
        printed=1,
    )


CLAIMS = (
    _claim("ufkl", prop_3_2_ufkl),
    _claim("urkl", prop_3_6_urkl),
    _claim("fkl", prop_e_1_fkl),
    _claim("rkl", prop_e_3_rkl),
)
