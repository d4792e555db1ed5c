"""The symbolic road: every claim of the project proved in sympy. `python -m proofs` prints the certificate.

It shares no code with the implementation it vouches for.

Source: arXiv 2505.17508; each module names its proposition.
"""

from proofs import (
    baseline,
    control_variate,
    curvature,
    divergence_table,
    grpo_mismatch,
    k3_identity,
    kl_estimators,
    natural_gradient,
    one_idea,
    prop_2_1,
    prop_3_2_ufkl,
    prop_3_6_urkl,
    prop_e_1_fkl,
    prop_e_3_rkl,
    reinforce,
    unnormalised_anchor,
)

CLAIMS = {
    claim.id: claim
    for claim in (
        prop_2_1.CLAIM,
        baseline.CLAIM,
        one_idea.CLAIM,
        divergence_table.CLAIM,
        k3_identity.CLAIM,
        control_variate.CLAIM,
        prop_3_2_ufkl.CLAIM,
        prop_3_6_urkl.CLAIM,
        prop_e_1_fkl.CLAIM,
        prop_e_3_rkl.CLAIM,
        *reinforce.CLAIMS,
        *grpo_mismatch.CLAIMS,
        kl_estimators.CLAIM,
        unnormalised_anchor.CLAIM,
        curvature.CLAIM,
        natural_gradient.CLAIM,
    )
}
