"""The symbolic road: every claim of the project, stated in sympy and proved. `python -m proofs` prints the certificate.

It shares no code with the implementation it vouches for.

Source: arXiv 2505.17508; each module names its proposition.
"""

from proofs import (
    adam_scale,
    aggregation,
    algorithm_1_as_printed,
    baseline,
    baseline_shift,
    batch_reuse,
    clip_bias,
    clip_region,
    control_variate,
    control_variate_variance,
    curvature,
    divergence_table,
    group_advantages,
    grpo_mismatch,
    grpo_penalty,
    in_log_w,
    iterated_reference,
    k3_identity,
    kl_estimators,
    length_normalisation,
    mass_gradient,
    monte_carlo_rate,
    natural_gradient,
    no_kl,
    nonnegativity,
    one_idea,
    optimum,
    prefix_level,
    prefix_variance,
    prop_2_1,
    prop_3_2_ufkl,
    prop_3_6_urkl,
    prop_e_1_fkl,
    prop_e_3_rkl,
    reference_rule,
    regularised_advantage,
    reinforce,
    released_code,
    sampler_correction,
    sequence_level,
    softmax_fisher,
    softmax_head,
    token_level,
    token_mean,
    truncated_sampling,
    uneven_groups,
    unnormalised_anchor,
    zero_avoiding,
)

CLAIMS = {
    claim.id: claim
    for claim in (
        # One idea
        prop_2_1.CLAIM,
        baseline.CLAIM,
        one_idea.CLAIM,
        regularised_advantage.CLAIM,
        divergence_table.CLAIM,
        # What a divergence is
        nonnegativity.CLAIM,
        zero_avoiding.CLAIM,
        *k3_identity.CLAIMS,
        control_variate.CLAIM,
        control_variate_variance.CLAIM,
        baseline_shift.CLAIM,
        mass_gradient.CLAIM,
        unnormalised_anchor.CLAIM,
        # The paper's gradients and losses
        prop_3_2_ufkl.CLAIM,
        prop_3_6_urkl.CLAIM,
        *prop_e_1_fkl.CLAIMS,
        prop_e_3_rkl.CLAIM,
        *reinforce.CLAIMS,
        # Estimators of a KL in a loss or a reward
        *grpo_mismatch.CLAIMS,
        grpo_penalty.CLAIM,
        *kl_estimators.CLAIMS,
        no_kl.CLAIM,
        in_log_w.CLAIM,
        # Near the anchor, and at the optimum
        *curvature.CLAIMS,
        natural_gradient.CLAIM,
        softmax_fisher.CLAIM,
        optimum.CLAIM,
        iterated_reference.CLAIM,
        reference_rule.CLAIM,
        # Clipping
        *clip_region.CLAIMS,
        *clip_bias.CLAIMS,
        algorithm_1_as_printed.CLAIM,
        # Samples, groups, lengths
        monte_carlo_rate.CLAIM,
        sampler_correction.CLAIM,
        truncated_sampling.CLAIM,
        *group_advantages.CLAIMS,
        uneven_groups.CLAIM,
        adam_scale.CLAIM,
        batch_reuse.CLAIM,
        *aggregation.CLAIMS,
        length_normalisation.CLAIM,
        token_mean.CLAIM,
        *token_level.CLAIMS,
        *sequence_level.CLAIMS,
        *prefix_level.CLAIMS,
        prefix_variance.CLAIM,
        # From hidden states
        softmax_head.CLAIM,
        # Code that others run
        released_code.CLAIM,
    )
}
