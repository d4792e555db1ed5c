"""verl: every recipe as a policy loss, with ``actor_rollout_ref.model.external_lib=rpg_ref.integrations.verl``.

``actor_rollout_ref.actor.policy_loss.loss_mode`` then takes a recipe's name. A name that does not start with "rpg-"
gets "rpg-ref-" before it, as in "rpg-ref-gspo", so that no loss of verl's own is replaced. verl hands its policy losses
no reference: π_ref = π_old, the policy that drew the batch.
"""

from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, agg_loss, register_policy_loss

from rpg_ref.numerics import at_least_float32
from rpg_ref.ratios import WeightBound
from rpg_ref.recipe import Recipe
from rpg_ref.recipes import RECIPES


def loss_mode(recipe: Recipe) -> str:
    """Return the name that verl knows a recipe by.

    Args:
        recipe: any.

    Returns:
        What ``policy_loss.loss_mode`` takes.

    Source: ours.
    """
    return recipe.name if recipe.name.startswith("rpg-") else f"rpg-ref-{recipe.name}"


def aggregation(recipe: Recipe) -> str:
    """Return the ``loss_agg_mode`` that a recipe goes with; a response that is one sample is summed as one token.

    Args:
        recipe: any.

    Returns:
        A mode of verl's ``agg_loss``.

    Source: PAPER §7.
    """
    return recipe.aggregation if recipe.level in ("token", "prefix") else "seq-mean-token-sum"


def register(recipe: Recipe) -> str:
    """Make a recipe a policy loss of verl; the named ones are registered when this module is imported.

    Args:
        recipe: any, such as ``dataclasses.replace(RECIPES["rpg-urkl"], name="rpg-urkl-strong", beta=1e-2)``.

    Returns:
        Its name in verl.

    Raises:
        ValueError: verl has a policy loss of that name; the recipe bounds the sampler's weight, which verl does.

    Source: verl 0.9.1, ``trainer/ppo/core_algos.py``.
    """
    name = loss_mode(recipe)
    if name in POLICY_LOSS_REGISTRY:
        raise ValueError(f"verl has a policy loss {name!r} already; give the recipe another name")
    if recipe.sampler != WeightBound():
        raise ValueError(f"{name!r} bounds the sampler's weight by {recipe.sampler}; here rollout_correction does")

    @register_policy_loss(name)
    def policy_loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        keep = response_mask != 0
        if recipe.level != "token":
            advantages = _of_responses("advantages", advantages, keep, name)
        if recipe.beta > 0 and getattr(config, "use_kl_loss", False):
            raise ValueError(f"use_kl_loss is True, and {name!r} has a penalty of its own; set it to False")
        loss, alive, metrics = recipe.per_sample(log_prob, old_log_prob, None, advantages, keep)
        if loss_agg_mode.removesuffix("-norm") != aggregation(recipe):
            raise ValueError(
                f"loss_agg_mode is {loss_agg_mode!r}, and {name!r} goes with {aggregation(recipe)!r}; set it"
            )
        if rollout_is_weights is not None:
            if recipe.level != "token":
                rollout_is_weights = _of_responses("rollout_is_weights", rollout_is_weights, keep, name)[:, None]
            loss = loss * rollout_is_weights
        shared = {} if config is None else dict(config.global_batch_info)
        if loss_agg_mode.endswith("-norm") and shared.get("loss_scale_factor") is None:
            shared["loss_scale_factor"] = keep.shape[1]  # verl's own default, also where a response is one sample
        total = agg_loss(loss_mat=loss, loss_mask=alive, loss_agg_mode=loss_agg_mode, **shared)
        return total.to(at_least_float32(log_prob).dtype), {f"actor/{key}": x.item() for key, x in metrics.items()}

    return name


def _of_responses(what: str, x: Tensor, keep: Tensor, name: str) -> Tensor:
    """What all tokens of a response have in common, [B]."""
    common = torch.where(keep, x, -torch.inf).amax(1, keepdim=True)
    if bool((keep & (x != common)).any()):
        raise ValueError(f"{what} differ within a response, which {name!r} takes as one sample; use one per response")
    return torch.where(keep.any(1), common[:, 0], 0.0)


for _row in RECIPES.values():
    register(_row)
