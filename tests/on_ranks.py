"""What test_ranks.py asks of one process, and of each of two: the same functions, their answers as JSON or tensors."""

import dataclasses
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.distributed.tensor import DTensor

from rpg_ref import RECIPES
from train import ranks
from train.answering.checker import Checker
from train.batch import logprobs, pack
from train.config import ModelConfig
from train.engines.by_transformers import Transformers
from train.engines.engine import Said
from train.evaluate import Accuracy, spread
from train.model import build_model
from train.optim import step
from train.policy import parameters, whole
from train.policy_gradient import accumulate, begin, improve, reference_rule
from train.preset import load
from train.problems.tasks import Task
from train.rollout import Rollout, answers, draw
from train.saving.checkpoint import load as load_snapshot
from train.saving.checkpoint import save
from train.saving.snapshot import restore, shared, snapshot
from train.seeds import derive
from train.tokenizer import answer_ids, build_tokenizer
from train.watching.clock import Clock

TOKENIZER = build_tokenizer()
SHAPE = {"width": 32, "mlp_width": 48, "layers": 2, "heads": 2, "key_value_heads": 1}
ROWS = (1, 3, 8)
BUDGETS = (0, 25)
NAMES = ("rpg-urkl-clip", "grpo", "gspo", "reinforce++")


def state_of(*, dtype=torch.float64, **given):
    usual = {"optimizer.learning_rate": 1e-2, "rollout.prompts": 4, "rollout.samples": 2, "optimizer.prompts": 1}
    config = load("cpu_tiny", usual | given)
    model = build_model(ModelConfig(**SHAPE), seed=0).to(dtype)
    return begin(model, config), config


def rollout_of(n, dtype=torch.float64):
    rng = random.Random(n)
    prompts = [[256, *(rng.randrange(256) for _ in range(rng.randrange(1, 9)))] for _ in range(n)]
    responses = [[rng.randrange(256) for _ in range(rng.randrange(1, 12))] for _ in range(n)]
    A = torch.tensor([rng.gauss(0, 1) for _ in range(n)], dtype=dtype)
    batch = pack(prompts, responses, TOKENIZER.pad_token_id)
    tasks, drawn = [Task(prompt, "") for prompt in prompts], batch.mask * -1.0
    return Rollout(batch, tasks, drawn, A * 0, (A > 0).float(), A, A, (0.0, 0.0), 1, n)


def numbers(policy, of=lambda weight: weight.detach()):
    return torch.cat([whole(of(weight)).flatten().cpu() for weight in parameters(policy).values()])


def gradients():
    """Loss, metrics, gradient and next weights: of recipes, for one row (the other rank has none) to eight."""
    found = {}
    for rows in ROWS:
        for budget in BUDGETS:
            for name in NAMES:
                recipe = RECIPES[name]
                recipe = dataclasses.replace(recipe, beta=0.3) if recipe.beta else recipe
                state, _ = state_of(**{"optimizer.recompute": budget == 25})
                rollout = rollout_of(rows)
                old = logprobs(state.model, rollout.batch, budget, 0.7) + 0.05
                metrics = accumulate(state.model, rollout.batch, old, old - 0.1, rollout.advantage, recipe, budget, 0.7)
                gradient = numbers(state.model, lambda weight: weight.grad)
                norm = step(state.optimizer, 0)
                found[f"{name}, {rows} rows, budget {budget}"] = {
                    "old": old,
                    "gradient": gradient,
                    "weights": numbers(state.model),
                    "metrics": torch.tensor([norm, *metrics.values()], dtype=torch.float64),
                }
    return found


def loops():
    """Whole steps in float32, with a reference that is kept, one that follows, and an averaging optimiser."""
    found = {}
    for title, given in {
        "kept": {"reference.replace": "never", "beta": 1.0},
        "followed": {"reference.replace": "steps", "reference.every": 2, "beta": 1.0},
        "averaged": {"optimizer.kind": "schedule-free"},
        "on-policy": {"optimizer.prompts": 4, "optimizer.micro_tokens": 30},
    }.items():
        state, config = state_of(dtype=torch.float32, **given)
        rule = reference_rule(config.reference)
        for n in (8, 8):
            metrics = improve(state, rollout_of(n, torch.float32), RECIPES[config.recipe], rule, config, Clock())
        far = spread(state.model, state.reference, rollout_of(5).batch, budget=20, temperature=1.0)
        found[title] = {
            "weights": numbers(state.model),
            "metrics": torch.tensor([*metrics.values(), *far.values()]).double(),
        }
    return found


def half():
    """The same gradient by passes in float32 and in bfloat16; the weights that are moved are float32 in both."""
    found = {}
    for precision in ("float32", "bfloat16"):
        given = {"model.precision": precision, "optimizer.recompute": True}
        state, _ = state_of(dtype=torch.float32, **given)
        rollout = rollout_of(8, torch.float32)
        old = logprobs(state.model, rollout.batch, 25, 1.0)
        metrics = accumulate(state.model, rollout.batch, old, None, rollout.advantage, RECIPES["grpo"], 25, 1.0)
        assert numbers(state.model).dtype == torch.float32 and metrics["ratio_max"] == 1.0
        found[precision] = {"gradient": numbers(state.model, lambda weight: weight.grad), "old": old}
    return found


def draws():
    """Filtered groups, of which each rank has judged its share, and what a model says to a rank's share of prompts."""

    def said(prompts: Sequence, *, first, seed, **_):
        right = [derive(seed, first + row) % 3 == 0 for row in range(len(prompts))]
        ids = [answer_ids(TOKENIZER, "46" if x else "1") for x in right]
        return [Said(one, [-float(first + row)] * len(one)) for row, one in enumerate(ids)]

    given = {"rollout.prompts": 5, "rollout.samples": 3, "optimizer.prompts": 1, "rollout.filter": True}
    config = load("cpu_tiny", given)
    tasks = [Task([i], "46") for i in range(17)]
    with Checker("exact") as checker:
        engine = SimpleNamespace(sample=said)
        rollout = draw(engine, TOKENIZER, checker, tasks, RECIPES[config.recipe], config, 0, 0, Clock())
        state, _ = state_of()
        asked = [Task([256, 1 + i % 4, 7], "46") for i in range(11)]
        words = {"max_tokens": 20, "temperature": 1.0, "seed": 3}
        engine = Transformers(state.model, TOKENIZER, at_once=2)
        with engine.holding(state.model):
            drawn, _, _ = answers(engine, TOKENIZER, checker, asked, **words, clock=Clock())
    everything = [
        *rollout.batch,
        rollout.logp_sampler,
        rollout.right,
        rollout.advantage,
        torch.tensor([rollout.draws, rollout.dealt]),
    ]
    return {
        "filtered": {str(i): x for i, x in enumerate(everything)},
        "said": {"ids": torch.tensor([token for ids, _ in drawn for token in ids])},
    }


def broken():
    """A gradient that is not a number on the last rank alone."""
    state, config = state_of(**{"optimizer.prompts": 4})
    before, rollout = numbers(state.model), rollout_of(8)
    if ranks.rank() == ranks.size() - 1:
        rollout = rollout._replace(advantage=rollout.advantage * math.nan)
    rule = reference_rule(config.reference)
    metrics = improve(state, rollout, RECIPES["grpo"], rule, config, Clock())
    same = torch.equal(before, numbers(state.model))
    return {"skipped": {"": torch.tensor([metrics["skipped_steps"], state.taken, state.skipped_in_a_row, same])}}


def saved(folder: Path):
    """A checkpoint after three optimiser steps, and what two more make of it."""
    found = {}
    for kind in ("adamw", "schedule-free"):
        given = {"optimizer.kind": kind, "reference.replace": "never", "optimizer.prompts": 2}
        state, config = state_of(dtype=torch.float32, **given)
        here, rule = folder / f"{kind}-{ranks.size()}", reference_rule(config.reference)
        improve(state, rollout_of(8, torch.float32), RECIPES[config.recipe], rule, config, Clock())
        now = snapshot(state, config, "", Accuracy(0.0, 0.0))
        assert bool(now.tensors["model"]) == ranks.is_first()
        ranks.from_first(lambda here=here, now=now: save(here, now))
        improve(state, rollout_of(4, torch.float32), RECIPES[config.recipe], rule, config, Clock())
        found[kind] = {"weights": numbers(state.model)}
        for other in sorted(folder.glob(f"{kind}-*")):
            state, config = state_of(dtype=torch.float32, **given)
            restore(state, shared(load_snapshot(other, warn=print) if ranks.is_first() else None))
            kinds = {type(x) for row in state.optimizer.rule.state.values() for x in row.values() if x.ndim}
            assert kinds == ({DTensor} if ranks.size() > 1 else {torch.Tensor})
            improve(state, rollout_of(4, torch.float32), RECIPES[config.recipe], rule, config, Clock())
            found[f"resumed from {other.name}"] = {"weights": numbers(state.model)}
    return found


def failing():
    """An engine that fails on the last rank; what each rank hears of it."""

    def engine():
        if ranks.rank() == ranks.size() - 1:
            raise RuntimeError("the engine is out of memory")
        return ranks.rank()

    try:
        ranks.everywhere(engine)
    except ranks.Elsewhere as error:
        return {"heard": {"": str(error)}}
    except RuntimeError as error:
        return {"own": {"": str(error)}}


CASES = {case.__name__: case for case in (gradients, half, loops, draws, broken, failing)}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with ranks.joined(timeout=60, single=True):
        found = {name: case() for name, case in CASES.items()} | {"saved": saved(folder)}
        torch.save(found, folder / f"{ranks.size()}-{ranks.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
