"""A run: everything that can be refused is refused first, then the work is done and written down."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from rpg_ref import BASELINES, RECIPES, Recipe
from rpg_ref.verify import verify
from train.arithmetic import generate
from train.config import Config
from train.curves import draw_curves
from train.data import write
from train.evaluate import Accuracy, evaluate
from train.model import build_model
from train.policy_gradient import train
from train.preset import dump
from train.problems import Task, arithmetic, encode, read_split
from train.progress import follow
from train.seeds import derive
from train.tokenizer import build_tokenizer
from train.warm_start import warm_start


class Job(NamedTuple):
    """A run that may begin: its recipe is verified, its problems are read, its folder is there and empty."""

    config: Config
    recipe: Recipe
    verdict: str
    tokenizer: PreTrainedTokenizerFast
    train: list[Task]
    test: list[Task]
    generated: dict[str, list[dict[str, Any]]]


class Result(NamedTuple):
    """Held-out accuracy after the warm start and after the policy gradient."""

    before: Accuracy
    after: Accuracy


def prepare(config: Config) -> Job:
    """Check everything, in this order: the recipe against the oracle, the run folder, the problems.

    Raises:
        ValueError: any of them is not as it must be; nothing has been written then.
    """
    recipe = RECIPES[config.recipe]
    if config.beta is not None:
        recipe = dataclasses.replace(recipe, beta=config.beta)
    smallest = BASELINES[recipe.baseline].smallest_group
    if config.rollout.samples < smallest:
        raise ValueError(
            f"rollout.samples is {config.rollout.samples} but {recipe.baseline} needs {smallest}; raise it"
        )
    row = verify(recipe)
    if not row.ok:
        raise ValueError(f"refusing to train: {row.verdict}")
    folder = config.folder
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"the run folder {folder} exists already; choose another with --run-dir, or remove it")
    tokenizer = build_tokenizer()
    generated = {}
    if config.data.train is None:
        generated = generate(derive(config.seed, "problems"), config.data.test_problems)
    split = arithmetic(generated) if generated else read_split(config.data)
    train_tasks, test_tasks = (encode(problems, tokenizer, config) for problems in split)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the run folder {folder}: {error.strerror}; choose one with --run-dir") from error
    return Job(config, recipe, row.verdict, tokenizer, train_tasks, test_tasks, generated)


def run(job: Job, console: Console) -> Result:
    """Warm start, train, and evaluate before and after; docs/training.md says what the run folder then holds."""
    config, folder = job.config, job.config.folder
    console.print(job.verdict, highlight=False, soft_wrap=True)
    logging.disable_progress_bar()
    if config.threads:
        torch.set_num_threads(config.threads)
    (folder / "config.toml").write_text(dump(config), encoding="utf-8")
    for name, rows in job.generated.items():
        (folder / "data").mkdir(exist_ok=True)
        write(folder / "data" / f"{name}.parquet", rows)
    model = build_model(config.model, job.tokenizer, derive(config.seed, "weights"))
    parameters = sum(weight.numel() for weight in model.parameters())
    console.print(
        f"{parameters / 1e6:.1f} M parameters, {len(job.train)} problems, {len(job.test)} held out", soft_wrap=True
    )
    log = _log(folder / "metrics.jsonl")

    def measured(step: int) -> Accuracy:
        accuracy = evaluate(model, job.tokenizer, job.test, config)
        log({"phase": "evaluation", "step": step, "accuracy": accuracy.mean, "stderr": accuracy.stderr})
        return accuracy

    starting = warm_start(model, job.tokenizer, job.train, config)
    for number, row in enumerate(follow(starting, "warm start", config.warm_start.steps, "loss", console), start=1):
        log({"phase": "warm_start", "step": number, **row})
    before = measured(0)
    console.print(f"held-out accuracy before: {before}", highlight=False, soft_wrap=True)
    history = []
    training = train(model, job.tokenizer, job.train, job.recipe, config)
    for number, row in enumerate(follow(training, config.recipe, config.steps, "accuracy", console), start=1):
        log({"phase": "policy_gradient", "step": number, **row})
        history.append(row)
    result = Result(before, measured(config.steps))
    for part in (model, job.tokenizer):
        part.save_pretrained(folder / "checkpoint")
    draw_curves(history, result.before, result.after, config, folder / "curves.png")
    return result


def _log(path: Path) -> Callable[[dict[str, Any]], None]:
    """Return a function that appends one line of JSON; what is not finite becomes null."""

    def log(row: dict[str, Any]) -> None:
        with path.open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")

    return log
