"""The symbolic road: every claim of the project, stated in sympy and proved. `python -m proofs` prints the certificate.

It shares no code with the implementation it vouches for.

Source: arXiv 2505.17508; each module names its proposition.
"""

from proofs import (
    aggregation,
    algorithm_1_as_printed,
    baseline,
    clip_bias,
    clip_region,
    control_variate,
    control_variate_variance,
    curvature,
    divergence_table,
    dropped_prefix,
    group_advantages,
    grpo_mismatch,
    grpo_penalty,
    in_log_w,
    iterated_reference,
    k3_identity,
    kl_estimators,
    length_normalisation,
    log_w_optima,
    loss_and_reward,
    mass_gradient,
    monte_carlo_rate,
    natural_gradient,
    no_kl,
    nonnegativity,
    normalised_after_fusion,
    one_idea,
    optimum,
    ppo_clip_two_arms,
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
    sequence_kl,
    sequence_level,
    softmax_fisher,
    softmax_head,
    stop_gradient,
    tail_bucket,
    token_level,
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
        tail_bucket.CLAIM,
        *k3_identity.CLAIMS,
        control_variate.CLAIM,
        control_variate_variance.CLAIM,
        mass_gradient.CLAIM,
        unnormalised_anchor.CLAIM,
        # The paper's gradients and losses
        prop_3_2_ufkl.CLAIM,
        prop_3_6_urkl.CLAIM,
        *prop_e_1_fkl.CLAIMS,
        prop_e_3_rkl.CLAIM,
        *reinforce.CLAIMS,
        stop_gradient.CLAIM,
        # Estimators of a KL in a loss or a reward
        *grpo_mismatch.CLAIMS,
        grpo_penalty.CLAIM,
        *kl_estimators.CLAIMS,
        loss_and_reward.CLAIM,
        no_kl.CLAIM,
        in_log_w.CLAIM,
        *log_w_optima.CLAIMS,
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
        ppo_clip_two_arms.CLAIM,
        # Samples, groups, lengths
        monte_carlo_rate.CLAIM,
        sampler_correction.CLAIM,
        *group_advantages.CLAIMS,
        normalised_after_fusion.CLAIM,
        *aggregation.CLAIMS,
        length_normalisation.CLAIM,
        *token_level.CLAIMS,
        *sequence_level.CLAIMS,
        *prefix_level.CLAIMS,
        dropped_prefix.CLAIM,
        sequence_kl.CLAIM,
        prefix_variance.CLAIM,
        # From hidden states
        softmax_head.CLAIM,
        # Code that others run
        released_code.CLAIM,
    )
}
