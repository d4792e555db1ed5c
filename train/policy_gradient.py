"""The main loop: draw from the policy, judge, and take several optimiser steps of the recipe on what was drawn."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rpg_ref import Recipe, advantages, check_batch
from train.batch import Batch, pack, response_logprobs
from train.config import Config
from train.optim import Optimizer, build_optimizer, step
from train.problems import Task, deal
from train.sampling import sample
from train.seeds import derive
from train.tokenizer import is_right


class Rollout(NamedTuple):
    """What was drawn from π_old: the sequences, whether each is right, and their advantages."""

    batch: Batch
    right: Float[Tensor, "B"]
    advantage: Float[Tensor, "B"]


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[Task],
    recipe: Recipe,
    config: Config,
) -> Iterator[dict[str, Any]]:
    """Train the model in place and yield metrics after each rollout batch; docs/training.md says what each means.

    π_old is the policy at the start of the step, and so is π_ref: the reference is replaced at every step.
    """
    settings = config.optimizer
    optimizer = build_optimizer(
        model,
        learning_rate=settings.learning_rate,
        warm_up=settings.warm_up,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
    )
    for number in range(config.steps):
        start = time.perf_counter()
        rollout = draw(model, tokenizer, tasks, recipe, config, number)
        drawn = time.perf_counter()
        metrics = improve(model, optimizer, rollout, recipe, config)
        tokens = int(rollout.batch.mask.sum())
        yield {
            "reward": 2 * rollout.right.mean().item() - 1,
            "accuracy": rollout.right.mean().item(),
            **metrics,
            "response_length": tokens / len(rollout.right),
            "tokens_per_second": tokens / (drawn - start),
            "seconds": time.perf_counter() - start,
        }


def draw(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[Task],
    recipe: Recipe,
    config: Config,
    number: int,
) -> Rollout:
    """Draw a group of responses to each of a step's problems, and judge them: reward 1 if right, else −1."""
    dealt = deal(tasks, config.rollout.prompts, number, derive(config.seed, "prompts"))
    repeated = [task for task in dealt for _ in range(config.rollout.samples)]
    prompts = [task.prompt for task in repeated]
    responses = sample(
        model,
        tokenizer,
        prompts,
        max_tokens=config.rollout.max_tokens,
        temperature=config.rollout.temperature,
        seed=derive(config.seed, "rollout", number),
    )
    judged = [is_right(tokenizer, said, task.answer) for said, task in zip(responses, repeated, strict=True)]
    right = torch.tensor(judged, dtype=torch.float32)
    groups = torch.arange(len(dealt)).repeat_interleave(config.rollout.samples)
    return Rollout(
        pack(prompts, responses, tokenizer.pad_token_id), right, advantages(2 * right - 1, groups, recipe.baseline)
    )


def improve(
    model: PreTrainedModel, optimizer: Optimizer, rollout: Rollout, recipe: Recipe, config: Config
) -> dict[str, float | None]:
    """Take one optimiser step on each mini-batch of a rollout; return the mean of each metric, the largest ratio_max.

    log π_old is the trainer's own, on the same mini-batches: the first ratio is then exactly 1, whatever engine drew.
    """
    size = config.optimizer.prompts * config.rollout.samples
    chosen = [slice(first, first + size) for first in range(0, len(rollout.right), size)]
    temperature = config.rollout.temperature
    with torch.no_grad():
        old = [response_logprobs(model, rollout.batch.rows(rows), temperature=temperature) for rows in chosen]
    check_batch(torch.cat(old), torch.cat(old), None, rollout.advantage, rollout.batch.mask)
    steps: list[dict[str, float]] = []
    for rows, logp_old in zip(chosen, old, strict=True):
        batch = rollout.batch.rows(rows)
        logp = response_logprobs(model, batch, temperature=temperature)
        # logp_ref None: π_ref = π_old. The denominator is that of the mini-batch, whose mean this step descends.
        loss, metrics = recipe(
            logp, logp_old, None, rollout.advantage[rows], batch.mask, denominator=recipe.count(batch.mask)
        )
        norm = step(optimizer, loss)
        steps.append({"loss": loss.item(), "grad_norm": norm} | {name: x.item() for name, x in metrics.items()})
    taken = [metrics for metrics in steps if metrics["grad_norm"] < float("inf")]
    means = {name: sum(m[name] for m in taken) / len(taken) if taken else None for name in steps[0]}
    return means | {
        "ratio_max": max((m["ratio_max"] for m in taken), default=None),
        "skipped_steps": len(steps) - len(taken),
    }
