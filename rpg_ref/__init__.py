"""rpg_ref: KL-regularised policy gradients for language models, each formula proved and each gradient checked.

Data flows one way: logits → token log-probs → ratios → divergence → weight → clip → aggregate → loss.
"""

from rpg_ref.advantages import BASELINES, advantages
from rpg_ref.aggregation import AGGREGATIONS, aggregate, count
from rpg_ref.checks import UnknownName, check_batch
from rpg_ref.clipping import DualClip, bounded_loss, clipped_loss, clipped_loss_as_printed
from rpg_ref.cpgd_pmd import cpgd_loss, pmd_mean_loss
from rpg_ref.divergences import DIVERGENCES, Divergence
from rpg_ref.estimators import k1, k2, k3
from rpg_ref.fused import FusedOutput, fused_logprobs, fused_loss
from rpg_ref.gates import gated_loss
from rpg_ref.logprobs import token_entropy, token_logprobs, with_rest
from rpg_ref.objective import Objective
from rpg_ref.ppo import grpo_corrected_loss, grpo_loss, k2_loss, kl_in_reward_loss, ppo_loss
from rpg_ref.prefix import per_decision_loss
from rpg_ref.ratios import BOUNDS, LEVELS, WeightBound, bounded_log_weight, log_ratios
from rpg_ref.recipe import LossOutput, Recipe, SampleLosses
from rpg_ref.recipes import RECIPES
from rpg_ref.reference import ReferenceRule, ReferenceState
from rpg_ref.surrogates import differentiable_loss, entropy_loss, reinforce_loss, weight

__all__ = [
    "AGGREGATIONS",
    "BASELINES",
    "BOUNDS",
    "DIVERGENCES",
    "LEVELS",
    "RECIPES",
    "Divergence",
    "DualClip",
    "FusedOutput",
    "LossOutput",
    "Objective",
    "Recipe",
    "ReferenceRule",
    "ReferenceState",
    "SampleLosses",
    "UnknownName",
    "WeightBound",
    "advantages",
    "aggregate",
    "bounded_log_weight",
    "bounded_loss",
    "check_batch",
    "clipped_loss",
    "clipped_loss_as_printed",
    "count",
    "cpgd_loss",
    "differentiable_loss",
    "entropy_loss",
    "fused_logprobs",
    "fused_loss",
    "gated_loss",
    "grpo_corrected_loss",
    "grpo_loss",
    "k1",
    "k2",
    "k2_loss",
    "k3",
    "kl_in_reward_loss",
    "log_ratios",
    "per_decision_loss",
    "pmd_mean_loss",
    "ppo_loss",
    "reinforce_loss",
    "token_entropy",
    "token_logprobs",
    "weight",
    "with_rest",
]
