"""The main loop: draw from the policy, judge, and take several optimiser steps of the recipe on what was drawn."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rpg_ref import FusedOutput, Recipe, ReferenceRule, ReferenceState, check_batch, fused_loss
from train import ranks
from train.answering.checker import Checker
from train.batch import Batch, Part, logprobs, parts, through
from train.config import Config, ReferenceConfig
from train.engines.engine import Engine
from train.optim import Optimizer, build_optimizer, learning_rate, step
from train.policy import Policy, Then, recompute, shard
from train.problems.tasks import Task
from train.rollout import Rollout, draw
from train.watching.clock import Clock
from train.watching.metrics import drift, sampler_gap

FATAL = 3
"""Gradients in a row that are not finite, after which the run ends."""
REMEDY = "begin a new run with a lower optimizer.learning_rate or a longer warm_up"


class Diverged(RuntimeError):
    """The gradient was not finite several times in a row."""


@dataclass
class State:
    """All that a run carries from one rollout batch to the next.

    Attributes:
        model: the policy.
        optimizer: what moves it.
        reference: π_ref where it outlives the rollout, else None.
        step: rollout batches done.
        dealt: problems dealt.
        taken: optimiser steps taken.
        skipped_in_a_row: the last optimiser steps that were left out.
        drift: of the policy from the reference.
        rollout: what was drawn last; no checkpoint holds it.
    """

    model: Policy
    optimizer: Optimizer
    reference: Policy | None
    step: int = 0
    dealt: int = 0
    taken: int = 0
    skipped_in_a_row: int = 0
    drift: ReferenceState = ReferenceState()
    rollout: Rollout | None = None


def begin(model: PreTrainedModel, config: Config) -> State:
    """Return the state before the first rollout batch: the model on its device, sharded if there are several ranks.

    Raises:
        ValueError: the device is not there.
    """
    policy = Policy(model).to(ranks.device(config.device))
    outlives = config.reference.replace != "rollout"
    reference = copy.deepcopy(policy).requires_grad_(False) if outlives else None
    for each in (policy, reference):
        if each is not None:
            shard(each, config.model.precision)
    if config.optimizer.recompute:
        recompute(policy)
    return State(policy, build_optimizer(policy, config.optimizer), reference)


def train(
    state: State,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    checker: Checker,
    tasks: Sequence[Task],
    recipe: Recipe,
    config: Config,
) -> Iterator[dict[str, Any]]:
    """Train the model in place and yield metrics after each rollout batch; docs/training.md says what each means.

    π_old is the policy at the start of the step; π_ref is π_old too, unless ``reference`` says otherwise.

    Raises:
        Diverged: the gradient was not finite FATAL times in a row.
        ValueError: as ``draw``.
    """
    rule = reference_rule(config.reference)
    while state.step < config.steps:
        clock = Clock()
        with clock("seconds"):
            sampling(state.optimizer)
            with ExitStack() as held:
                with clock("seconds_push"):
                    held.enter_context(engine.holding(state.model))
                rollout = draw(engine, tokenizer, checker, tasks, recipe, config, state.step, state.dealt, clock)
            metrics = improve(state, rollout, recipe, rule, config, clock)
        state.step, state.dealt, state.rollout = state.step + 1, rollout.dealt, rollout
        lengths = rollout.batch.mask.sum(1)
        yield {
            "reward": rollout.reward.mean().item(),
            "accuracy": rollout.right.mean().item(),
            "all_right": rollout.groups[0],
            "all_wrong": rollout.groups[1],
            "draws": rollout.draws,
            "response_length": lengths.double().mean().item(),
            "truncated": 1 - rollout.ended.mean().item(),
            "unjudged": rollout.unjudged,
            **metrics,
            "learning_rate": learning_rate(state.optimizer),
            "tokens_per_second": int(lengths.sum()) / clock.seconds["seconds"],
            **clock.seconds,
        }


def sampling(optimizer: Optimizer) -> None:
    """Put the weights to sample, evaluate and keep in place, where they are not those that the gradient is taken at."""
    if optimizer.averages:
        optimizer.rule.eval()  # type: ignore[attr-defined]


def reference_rule(settings: ReferenceConfig) -> ReferenceRule:
    """Return the rule that replaces a reference which outlives its rollout."""
    return {
        "rollout": ReferenceRule(),
        "never": ReferenceRule(),
        "steps": ReferenceRule(every=settings.every),
        "kl": ReferenceRule(kappa=settings.kappa, decay=settings.decay),
    }[settings.replace]


def improve(
    state: State, rollout: Rollout, recipe: Recipe, rule: ReferenceRule, config: Config, clock: Clock
) -> dict[str, float | None]:
    """Take one optimiser step on each mini-batch of a rollout; return each metric's mean, or its maximum.

    log π_old is the trainer's own, on the same mini-batches: the first ratio is then exactly 1, whatever engine drew.
    """
    size = config.optimizer.prompts * config.rollout.samples
    budget, temperature = config.optimizer.micro_tokens, config.rollout.temperature
    chosen = [slice(first, first + size) for first in range(0, len(rollout.right), size)]
    old: list[Tensor] | list[None] = [None]
    # A single mini-batch is on-policy: the pass that its gradient takes gives log π_old.
    if len(chosen) > 1 or state.optimizer.averages:
        with clock("seconds_old"):
            old = [logprobs(state.model, rollout.batch.rows(rows), budget, temperature) for rows in chosen]
        _check(torch.cat(old), rollout, state.step)
    if state.optimizer.averages:
        state.optimizer.rule.train()  # type: ignore[attr-defined]
    steps: list[dict[str, float]] = []
    for rows, logp_old in zip(chosen, old, strict=True):
        batch, advantage, logp_sampler = rollout.batch.rows(rows), rollout.advantage[rows], rollout.logp_sampler[rows]
        logp_ref = None
        if state.reference is not None:
            with clock("seconds_reference"):
                logp_ref = logprobs(state.reference, batch, budget, temperature)
        with clock("seconds_learn"):
            metrics = accumulate(
                state.model,
                batch,
                logp_old,
                logp_ref,
                advantage,
                recipe,
                budget,
                temperature,
                logp_sampler=logp_sampler,
                correct=config.engine.correct != "none",
            )
            norm = step(state.optimizer, state.taken)
        steps.append({"grad_norm": norm, **metrics})
        if norm < float("inf"):
            state.taken, state.skipped_in_a_row = state.taken + 1, 0
            _replace_reference(state, rule, metrics["reverse_kl"])
        else:
            state.skipped_in_a_row += 1
            if state.skipped_in_a_row >= FATAL:
                raise Diverged(
                    f"the gradient was not finite {FATAL} times in a row, in rollout batch {state.step + 1}; {REMEDY}"
                )
    taken = [metrics for metrics in steps if metrics["grad_norm"] < float("inf")]
    means = {name: sum(m[name] for m in taken) / len(taken) if taken else None for name in steps[0]}
    return means | {
        **{name: max((m[name] for m in taken), default=None) for name in ("ratio_max", "sampler_gap_max")},
        "skipped_steps": len(steps) - len(taken),
    }


def _check(logp_old: Float[Tensor, "B R"], rollout: Rollout, number: int) -> None:
    try:
        check_batch(logp_old, logp_old, None, rollout.advantage, rollout.batch.mask)
    except ValueError as error:
        raise Diverged(f"the policy is broken before rollout batch {number + 1} ({error}); {REMEDY}") from error


def follow_policy(state: State) -> None:
    """Make π_ref the policy as it is now, where it outlives the rollout."""
    if state.reference is not None:
        state.reference.load_state_dict(state.model.state_dict())


def _replace_reference(state: State, rule: ReferenceRule, token_kl: float) -> None:
    if state.reference is None:
        return
    due, state.drift = rule.step(state.drift, token_kl)
    if due:
        follow_policy(state)


def accumulate(
    policy: Policy,
    batch: Batch,
    logp_old: Float[Tensor, "B R"] | None,
    logp_ref: Float[Tensor, "B R"] | None,
    advantage: Float[Tensor, "B"],
    recipe: Recipe,
    budget: int,
    temperature: float,
    *,
    logp_sampler: Float[Tensor, "B R"] | None = None,
    correct: bool = False,
) -> dict[str, float]:
    """Add the gradient of a mini-batch's loss to the parameters', each rank passing its parts, with one denominator.

    Where logp_old is None, π_old = π_θ; where logp_ref is None, π_ref = π_old. With ``correct`` the recipe is told of
    logp_sampler; without, it is only compared.

    Returns:
        The loss, the recipe's metrics over the mini-batch, the entropy, the drift and the sampler's gap; alike on every
        rank.
    """
    denominator, correction = recipe.count(batch.mask), logp_sampler if correct else None
    logp, entropy = torch.zeros((2, *batch.mask.shape), dtype=policy.wide)

    def loss_of(part: Part) -> Then[FusedOutput]:
        return lambda hidden, head: fused_loss(
            recipe,
            hidden,
            head,
            part.batch.responses,
            part.take(logp_old),
            part.take(logp_ref),
            part.take(advantage),
            part.batch.mask,
            temperature=temperature,
            logp_sampler=part.take(correction),
            denominator=denominator.to(hidden.device),
        )

    for part in parts(batch, budget, policy.device):
        out = through(policy, part.batch, loss_of(part))
        out.loss.backward()
        part.add(logp, out.logp)
        part.add(entropy, out.entropy)
    logp, entropy = ranks.total(torch.stack([logp, entropy]))
    old = logp if logp_old is None else logp_old
    policies = (logp, old, logp_ref)
    loss, metrics = recipe(*policies, advantage, batch.mask, logp_sampler=correction, denominator=denominator)
    return {
        "loss": loss.item(),
        **{name: x.item() for name, x in metrics.items()},
        "entropy": entropy[batch.mask != 0].mean().item(),
        **drift(logp, old, old if logp_ref is None else logp_ref, batch.mask),
        **({} if logp_sampler is None else sampler_gap(old, logp_sampler, batch.mask)),
    }
