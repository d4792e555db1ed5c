"""TRL: a GRPOTrainer whose loss is a recipe.

Generation, vLLM, rewards, PEFT, FSDP, DeepSpeed, checkpoints and logging stay TRL's.
"""

import copy
import inspect
import math
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from rpg_ref.advantages import BASELINES, advantages
from rpg_ref.aggregation import aggregate
from rpg_ref.checks import Table
from rpg_ref.numerics import widest
from rpg_ref.ratios import LEVELS, WeightBound
from rpg_ref.recipe import Recipe
from rpg_ref.recipes import RECIPES

Inputs = dict[str, Any]

# fmt: off
_DECIDED = (
    "beta", "delta", "entropy_coef", "epsilon", "epsilon_high", "importance_sampling_level", "loss_type",
    "multi_objective_aggregation", "off_policy_mask_threshold", "sapo_temperature_neg", "sapo_temperature_pos",
    "scale_rewards", "top_entropy_quantile", "use_adaptive_entropy", "use_bias_correction_kl", "vespo_k_neg",
    "vespo_k_pos", "vespo_lambda_neg", "vespo_lambda_pos",
)
"""What a recipe decides, so that GRPOConfig must leave it alone."""

REFERENCES: Table[bool] = Table("reference", {"old": False, "model": True})
"""Names of π_ref, and whether it is a model of its own."""
# fmt: on


class RPGTrainer(GRPOTrainer):
    """TRL's GRPOTrainer, its baseline, loss and normaliser replaced by a recipe's.

    Args:
        model: as ``GRPOTrainer`` takes it.
        reward_funcs: likewise.
        args: likewise; what the recipe decides is left at TRL's defaults.
        others: everything else that ``GRPOTrainer`` takes, in its order.
        recipe: a name in RECIPES, or a Recipe; β is the recipe's: ``dataclasses.replace(RECIPES[name], beta=1e-3)``.
        reference: "old" for π_ref = π_old, the policy that drew the batch, and no second model; "model" for TRL's
            reference model: the policy as it was at the start (PEFT's base), or what ``sync_ref_model`` makes of it.
        named: likewise, by name.

    Raises:
        ValueError: an unknown name; ``args`` sets what the recipe decides; a reference model is asked for by a recipe
            without a penalty.

    Source: paper §3–4; TRL 1.16.0 for everything else.
    """

    _tag_names = ["trl", "rpg"]
    _name = "RPG"
    _paper = {
        "title": "On the Design of KL-Regularized Policy Gradient Algorithms for LLM Reasoning",
        "id": "2505.17508",
    }

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *others: Any,
        recipe: str | Recipe = "rpg-reinforce-urkl-clip",
        reference: str = "old",
        **named: Any,
    ) -> None:
        if not isinstance(recipe, str | Recipe):
            raise ValueError(f"recipe is {recipe!r}; pass a name in RECIPES or a Recipe")
        self.recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
        args = copy.copy(GRPOConfig("rpg") if args is None else args)
        _check(args, self.recipe, reference)
        # TRL builds a reference model where its beta is not zero, and asks it for every batch.
        args.beta = self.recipe.beta if REFERENCES[reference] else 0.0
        if REFERENCES[reference] and self.recipe.beta == 0:
            raise ValueError(f"the recipe {self.recipe.name!r} has beta 0 and needs no reference; leave it out")
        super().__init__(model, reward_funcs, args, *others, **named)
        self._window = range(0)

    def train(self, *args: Any, **named: Any) -> Any:
        """As TRL's; an update that an earlier call left unfinished is not gone on with."""
        self._window = range(0)
        return super().train(*args, **named)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL's, which would log the mean of the largest ratios."""
        for values in self._metrics.values():
            seen = [ratio for ratio in values.get("ratio_max", []) if not math.isnan(ratio)]
            if seen:
                values["ratio_max"] = [max(seen)]
        super().log(logs, start_time)

    def _prepare_inputs(self, generation_batch: Inputs) -> Inputs:
        inputs: Inputs = super()._prepare_inputs(generation_batch)
        return inputs | {"denominator": self._denominator()} if self.model.training else inputs

    def _denominator(self) -> Tensor:
        """What this optimiser step's micro-batches count, over all processes.

        Of a rollout that is not drawn yet nothing is known: its micro-batches are taken to count what those at hand
        do, so that each rollout weighs the same.
        """
        if self._step not in self._window:
            self._window = range(self._step, self._step + self.current_gradient_accumulation_steps)
        parts = self.args.steps_per_generation
        rollout = self._step // (parts * self.num_iterations)
        known = [step for step in self._window if step // (parts * self.num_iterations) == rollout]
        counted = [self.recipe.count(_mask(self._buffered_inputs[step % parts])) for step in known]
        share = len(known) / len(self._window)
        denominator: Tensor = self.accelerator.reduce(torch.stack(counted).sum() / share, reduction="sum")
        return denominator

    def _calculate_rewards(self, *args: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(*args)
        self._rewards = rewards
        return rewards

    def _generate_and_score_completions(self, inputs: list[Inputs]) -> Inputs:
        output: Inputs = super()._generate_and_score_completions(inputs)
        size = self.num_generations if self.model.training else self.num_generations_eval
        of_all = _advantages(self._rewards, self.reward_weights, size, self.recipe.baseline)
        logged = self._logs["advantages"]
        for _ in range(min(len(of_all), len(logged))):
            logged.pop()
        logged.extend(of_all.tolist())
        here = self.accelerator.process_index * len(inputs)
        return output | {"advantages": of_all[here : here + len(inputs)]}

    def _compute_loss(self, model: Any, inputs: Inputs) -> Tensor:
        mask = _mask(inputs)
        takes = inspect.signature(self._get_per_token_logps_and_entropies).parameters
        logp, entropy, aux_loss = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].shape[1],
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: inputs[name] for name in takes if name in inputs},
        )
        # TRL keeps no log π_old where nothing is updated between a rollout and its loss.
        logp_old = inputs.get("old_per_token_logps", logp.detach())
        logp_ref = inputs.get("ref_per_token_logps")
        loss, alive, metrics = self.recipe.per_sample(logp, logp_old, logp_ref, inputs["advantages"], mask)
        if "importance_sampling_ratio" in inputs:
            loss = loss * _of_samples(inputs["importance_sampling_ratio"], mask, self.recipe)
        self._log(metrics, alive)
        self._log({"entropy": (entropy * mask).sum() / mask.sum().clamp(min=1)}, mask != 0)
        denominator = inputs.get("denominator")
        if denominator is None:  # an evaluation, in which every batch is by itself
            denominator = self.accelerator.reduce(self.recipe.count(mask), reduction="sum")
        whole = aggregate(loss, alive, self.recipe.aggregation, denominator=denominator.clamp(min=1))
        # Gradients are averaged over processes.
        total: Tensor = whole.to(logp.dtype) * self.accelerator.num_processes
        if self.aux_loss_enabled:
            self._log({"aux_loss": aux_loss}, alive)
            steps = self.current_gradient_accumulation_steps if self.model.training else 1
            total = total + self.router_aux_loss_coef * aux_loss / steps
        return total

    def _log(self, means: dict[str, Tensor], alive: Tensor) -> None:
        """Log means over this process's samples as means over all processes' samples, and maxima as maxima."""
        names = sorted(means)
        here = torch.stack([widest(x.detach()) for x in (*(means[name] for name in names), alive.sum())])
        each = self.accelerator.gather(here[None])
        values, sizes = each[:, :-1], each[:, -1:]
        maxima = torch.tensor([name.endswith("_max") for name in names], device=each.device)
        largest = torch.where(sizes > 0, values, -torch.inf).amax(0)
        whole = torch.where(maxima, largest, (values * sizes).sum(0) / sizes.sum())
        # TRL averages over micro-batches, and leaves out what is NaN: one without a sample.
        whole = torch.where(sizes.sum() > 0, whole, torch.nan)
        for name, value in zip(names, whole.tolist(), strict=True):
            self._metrics["train" if self.model.training else "eval"][name].append(value)


def _check(args: GRPOConfig, recipe: Recipe, reference: str) -> None:
    if args.sync_ref_model and not REFERENCES[reference]:
        raise ValueError(
            f"sync_ref_model moves a reference model and reference is {reference!r}; pass reference='model'"
        )
    for name in _DECIDED:
        value, default = getattr(args, name), GRPOConfig.__dataclass_fields__[name].default
        if value != default:
            raise ValueError(
                f"{name} is {value!r}, which the recipe {recipe.name!r} decides; leave it out, and change the recipe "
                "with dataclasses.replace"
            )
    if (
        (args.use_vllm and args.vllm_importance_sampling_correction and recipe.beta > 0)
        and recipe.level == "token"
        and args.vllm_importance_sampling_mode.startswith("sequence")
    ):
        raise ValueError(
            f"vllm_importance_sampling_mode is {args.vllm_importance_sampling_mode!r}, a weight of whole responses, "
            f"and {recipe.name!r} penalises tokens; set 'token_mask' or 'token_truncate', or take a prefix recipe"
        )
    if recipe.sampler != WeightBound():
        raise ValueError(
            f"the recipe bounds the sampler's weight by {recipe.sampler}; here vllm_importance_sampling_* do"
        )


def _mask(inputs: Inputs) -> Tensor:
    mask: Tensor = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


def _of_samples(ratio: Tensor, mask: Tensor, recipe: Recipe) -> Tensor:
    """π_old/π_sampler of the recipe's samples, as TRL bounded it: of each token [B, T], or of each response [B, 1]."""
    if ratio.shape != mask.shape:
        return ratio
    keep = mask != 0
    # The weight of a response is no geometric mean, whatever its recipe makes of π_θ/π_old.
    level = LEVELS["sequence" if recipe.level == "geometric" else recipe.level]
    return level.samples(torch.where(keep, ratio.log(), 0.0), keep).exp()


def _advantages(rewards: Tensor, weights: Tensor, size: int, baseline: str) -> Tensor:
    """Advantages of all processes' responses from each function's rewards, [B, F].

    A response that no function scored moves nothing, nor does one whose group is too small for the baseline without it.
    """
    scored = ~rewards.isnan().all(1)
    enough = scored.view(-1, size).sum(1) >= BASELINES[baseline].smallest_group
    kept = scored & enough.repeat_interleave(size)
    total = (rewards * weights.to(rewards.device)).nansum(1)
    groups = torch.arange(len(total), device=total.device) // size
    found = torch.zeros_like(total)
    if bool(kept.any()):
        found[kept] = advantages(total[kept], groups[kept], baseline).to(found.dtype)
    return found
