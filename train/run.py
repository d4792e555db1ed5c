"""A run: everything that can be refused is refused first, then the work is done, written down, and never done twice."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from rpg_ref import BASELINES, RECIPES, Recipe
from rpg_ref.verify import verify
from train.answering.checker import Checker
from train.config import Config
from train.evaluate import Accuracy, evaluate
from train.model import build_model
from train.policy_gradient import begin, sampling, train
from train.preset import dump, load
from train.problems.arithmetic import generate
from train.problems.files import write
from train.problems.tasks import Task, arithmetic, encode, read_split
from train.saving.checkpoint import load as load_snapshot
from train.saving.checkpoint import save
from train.saving.snapshot import restore, snapshot
from train.seeds import derive
from train.tokenizer import build_tokenizer
from train.warm_start import warm_start
from train.watching.curves import draw_curves
from train.watching.progress import follow

EXTENDABLE = ("steps", "checkpoint_every", "threads", "run_dir")
"""What a resumed run may change: nothing of it bears on the steps that are done."""


class Job(NamedTuple):
    """A run that may begin: its recipe is verified, its problems are read, its folder is there."""

    config: Config
    recipe: Recipe
    verdict: str
    tokenizer: PreTrainedTokenizerFast
    train: list[Task]
    test: list[Task]
    generated: dict[str, list[dict[str, Any]]]

    @property
    def problems(self) -> str:
        """A hash of all problems: a resumed run must have the same."""
        return hashlib.sha256(repr((self.train, self.test)).encode()).hexdigest()


class Result(NamedTuple):
    """Held-out accuracy after the warm start and after the policy gradient."""

    before: Accuracy
    after: Accuracy


def prepare(config: Config) -> Job:
    """Check everything of a new run, in this order: the recipe against the oracle, the run folder, the problems.

    Raises:
        ValueError: any of them is not as it must be; nothing has been written then.
    """
    folder = config.folder
    recipe, verdict = _verified(config)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(
            f"the run folder {folder} exists already; choose another with --run-dir, or go on with `resume {folder}`"
        )
    job = _with_problems(config, recipe, verdict)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the run folder {folder}: {error.strerror}; choose one with --run-dir") from error
    return job


def prepare_again(folder: Path, overrides: dict[str, Any]) -> Job:
    """Check everything of a run that goes on where it stopped.

    Args:
        folder: the run's folder.
        overrides: values by dotted key; only those of EXTENDABLE may differ from the run's own.

    Returns:
        The job.

    Raises:
        ValueError: the folder is no run's, or the config differs in what must stay; it says in what.
    """
    path = folder / "config.toml"
    if not path.is_file():
        raise ValueError(f"{folder} is no run's folder, it has no config.toml; pass the folder that `run` wrote")
    config = load(str(path), {"run_dir": str(folder)} | overrides)
    if config.folder != folder:
        raise ValueError(f"run_dir is {config.folder} and not {folder}; a run goes on in its own folder")
    return _with_problems(config, *_verified(config))


def _verified(config: Config) -> tuple[Recipe, str]:
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
    return recipe, row.verdict


def _with_problems(config: Config, recipe: Recipe, verdict: str) -> Job:
    tokenizer = build_tokenizer()
    generated = {}
    if config.data.train is None:
        generated = generate(derive(config.seed, "problems"), config.data.test_problems)
    split = arithmetic(generated) if generated else read_split(config.data)
    train_tasks, test_tasks = (encode(problems, tokenizer, config) for problems in split)
    return Job(config, recipe, verdict, tokenizer, train_tasks, test_tasks, generated)


def run(job: Job, console: Console) -> Result:
    """Warm start, train, and evaluate before and after; docs/training.md says what the run folder then holds.

    A folder with checkpoints goes on from the newest intact one, and does bit for bit what it would have done.

    Raises:
        ValueError: the checkpoint is of another configuration or of other problems; problems run out.
        Diverged: the gradient was not finite several times in a row.
    """
    config, folder = job.config, job.config.folder
    console.print(job.verdict, highlight=False, soft_wrap=True)
    logging.disable_progress_bar()
    if config.threads:
        torch.set_num_threads(config.threads)
    model = build_model(config.model, job.tokenizer, derive(config.seed, "weights"))
    parameters = sum(weight.numel() for weight in model.parameters())
    console.print(
        f"{parameters / 1e6:.1f} M parameters, {len(job.train)} problems, {len(job.test)} held out", soft_wrap=True
    )
    metrics = folder / "metrics.jsonl"
    log = _log(metrics)
    with Checker(config.data.rule) as checker:

        def measured(step: int) -> Accuracy:
            found = evaluate(
                model,
                job.tokenizer,
                checker,
                job.test,
                k=config.eval_samples,
                max_tokens=config.rollout.max_tokens,
                temperature=config.rollout.temperature,
                seed=derive(config.seed, "evaluation"),
            )
            accuracy, passed = found.mean_at_k, found.pass_at_k
            row = {
                "accuracy": accuracy.mean,
                "stderr": accuracy.stderr,
                "pass": passed.mean,
                "pass_stderr": passed.stderr,
            }
            log({"phase": "evaluation", "step": step, **row})
            return accuracy

        found = load_snapshot(folder / "checkpoints", warn=lambda text: console.print(text, soft_wrap=True))
        if found is None:
            _write_inputs(job)
            _keep(metrics, -1)
            starting = warm_start(model, job.tokenizer, job.train, config)
            for number, row in enumerate(follow(starting, "warm start", config.warm_start.steps, "loss", console), 1):
                log({"phase": "warm_start", "step": number, **row})
            before = measured(0)
            state = begin(model, config)
            save(folder / "checkpoints", snapshot(state, config, job.problems, before))
        else:
            _same_run(found.state, job)
            state = begin(model, config)
            restore(state, found)
            before = Accuracy(*found.state["before"])
            _keep(metrics, state.step)
            console.print(f"resumed after rollout batch {state.step}", highlight=False, soft_wrap=True)
        console.print(f"held-out accuracy before: {before}", highlight=False, soft_wrap=True)
        training = train(state, job.tokenizer, checker, job.train, job.recipe, config)
        left = config.steps - state.step
        for row in follow(training, config.recipe, left, "accuracy", console):
            log({"phase": "policy_gradient", "step": state.step, **row})
            if state.step % config.checkpoint_every == 0 or state.step == config.steps:
                save(folder / "checkpoints", snapshot(state, config, job.problems, before))
        sampling(state.optimizer)
        result = Result(before, measured(config.steps))
    for part in (model, job.tokenizer):
        part.save_pretrained(folder / "model")
    history = [row for row in _rows(metrics) if row["phase"] == "policy_gradient"]
    draw_curves(history, result.before, result.after, config, folder / "curves.png")
    return result


def _write_inputs(job: Job) -> None:
    folder = job.config.folder
    (folder / "config.toml").write_text(dump(job.config), encoding="utf-8")
    for name, rows in job.generated.items():
        (folder / "data").mkdir(exist_ok=True)
        write(folder / "data" / f"{name}.parquet", rows)


def _same_run(kept: dict[str, Any], job: Job) -> None:
    """Refuse a checkpoint of another run, and say in what it differs."""
    then, now = msgspec.toml.decode(kept["config"].encode()), msgspec.toml.decode(dump(job.config).encode())
    changed = [
        f"{key} {before!r} → {after!r}"
        for key, before, after in _differences(then, now)
        if key.partition(".")[0] not in EXTENDABLE
    ]
    if changed:
        raise ValueError(
            f"the run was begun with another configuration: {', '.join(changed)}; undo that, or begin anew"
        )
    if kept["problems"] != job.problems:
        raise ValueError("the problems are others than when the run began; give it the same data files, or begin anew")


def _differences(then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(then.keys() | now.keys()):
        before, after = then.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield prefix + key, before, after


def _log(path: Path) -> Callable[[dict[str, Any]], None]:
    """Return a function that appends one line of JSON; what is not finite becomes null."""

    def log(row: dict[str, Any]) -> None:
        with path.open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")

    return log


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows that were written whole; a process that was killed may have left half a line."""
    if path.exists():
        for line in path.read_bytes().splitlines():
            with suppress(msgspec.DecodeError):
                yield msgspec.json.decode(line)


def _keep(path: Path, step: int) -> None:
    """Drop the rows of what will be done again: all after a rollout batch, or all for −1."""
    last = {"warm_start": float("inf"), "evaluation": max(0, step - 1), "policy_gradient": step}
    kept = [row for row in _rows(path) if row["step"] <= last[row["phase"]]] if step >= 0 else []
    text = b"".join(msgspec.json.encode(row) + b"\n" for row in kept)
    fresh = path.with_suffix(".tmp")
    fresh.write_bytes(text)
    os.replace(fresh, path)
