"""A run: everything that can be refused is refused first, then the work is done, written down, and never done twice."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import msgspec
import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from rpg_ref import BASELINES, RECIPES, Recipe
from rpg_ref.verify import verify
from train import ranks
from train.answering.checker import Checker
from train.config import Config
from train.evaluate import Accuracy, evaluate, spread
from train.model import build_model, tokenizer_of
from train.policy_gradient import State, begin, follow_policy, sampling, train
from train.preset import dump, load
from train.problems.arithmetic import generate
from train.problems.files import write
from train.problems.tasks import Task, arithmetic, encode, read_split
from train.rollout import Rollout, transcripts
from train.saving.checkpoint import Snapshot, save
from train.saving.checkpoint import load as load_snapshot
from train.saving.durable import alone, replace
from train.saving.export import export
from train.saving.snapshot import restore, shared, snapshot, weights
from train.seeds import derive
from train.warm_start import warm_start
from train.watching.clock import Clock
from train.watching.curves import draw_curves
from train.watching.journal import append, flush, keep, rows
from train.watching.loggers import check_loggers, open_loggers
from train.watching.progress import follow

METRICS, TRANSCRIPTS = "metrics.jsonl", "transcripts.jsonl"
EXTENDABLE = frozenset("steps checkpoint_every eval_every transcripts loggers threads device timeout run_dir".split())
"""What a resumed run may change: nothing of it bears on the steps that are done."""


class Job(NamedTuple):
    """A run that may begin: its recipe is verified, its problems are read, its folder is there."""

    config: Config
    recipe: Recipe
    verdict: str
    tokenizer: PreTrainedTokenizerBase
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
    checked = ranks.everywhere(lambda: _checked(config))
    ranks.from_first(lambda: _refuse_used(folder))
    job = ranks.everywhere(lambda: _with_problems(config, *checked))
    ranks.from_first(lambda: _make(folder))
    return job


def _refuse_used(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(
            f"the run folder {folder} exists already; choose another with --run-dir, or go on with `resume {folder}`"
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the run folder {folder}: {error.strerror}; choose one with --run-dir") from error


def config_of(folder: Path, overrides: dict[str, Any]) -> Config:
    """Return the config of a run that is to go on where it stopped.

    Args:
        folder: the run's folder.
        overrides: values by dotted key; only those of EXTENDABLE may differ from the run's own.

    Raises:
        ValueError: the folder is no run's, or a value is out of range.
    """
    path = folder / "config.toml"
    if not path.is_file():
        raise ValueError(f"{folder} is no run's folder, it has no config.toml; pass the folder that `run` wrote")
    config = load(str(path), {"run_dir": str(folder)} | overrides)
    if config.folder != folder:
        raise ValueError(f"run_dir is {config.folder} and not {folder}; a run goes on in its own folder")
    return config


def prepare_again(config: Config) -> Job:
    """Check everything of a run that goes on where it stopped, but the config against that of its checkpoint.

    Raises:
        ValueError: something is not as it must be.
    """
    checked = ranks.everywhere(lambda: _checked(config))
    return ranks.everywhere(lambda: _with_problems(config, *checked))


def _checked(config: Config) -> tuple[Recipe, str]:
    check_loggers(config.loggers)
    Checker(config.data.rule)
    if config.optimizer.kind == "schedule-free" and find_spec("schedulefree") is None:
        raise ValueError("optimizer.kind is schedule-free, whose package is missing; pip install schedulefree")
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
    tokenizer = tokenizer_of(config.model)
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
        CheckpointError: a checkpoint or the model cannot be written.
        OSError: nor can metrics; the last checkpoint is intact.
    """
    with ExitStack() as stack:
        folder = job.config.folder
        ranks.everywhere(lambda: stack.enter_context(alone(folder)) if ranks.is_first() else None)
        return _run(job, console)


def _run(job: Job, console: Console) -> Result:
    config, folder = job.config, job.config.folder
    console.print(job.verdict, highlight=False, soft_wrap=True)
    logging.disable_progress_bar()
    if config.threads:
        torch.set_num_threads(config.threads)
    warn = partial(console.print, highlight=False, soft_wrap=True)
    model = ranks.everywhere(lambda: build_model(config.model, job.tokenizer, derive(config.seed, "weights")))
    state = begin(model, config)
    console.print(_described(state, job), soft_wrap=True)
    read = partial(load_snapshot, folder / "checkpoints", warn=warn)
    found = shared(ranks.everywhere(read if ranks.is_first() else lambda: None))
    ranks.from_first(lambda: _set_up(job, found))
    with (
        Checker(config.data.rule) as checker,
        open_loggers(
            config.loggers if ranks.is_first() else (),
            folder,
            f"{config.name}-seed{config.seed}",
            dataclasses.asdict(config),
            warn,
        ) as show,
    ):

        def log(phase: str, step: int, row: dict[str, Any]) -> None:
            row = {"phase": phase, "step": step, **row}
            if ranks.is_first():
                append(folder / METRICS, row)
                show(row)

        def save_state() -> None:
            now = snapshot(state, config, job.problems, before)
            ranks.from_first(lambda: _save(folder, now))

        if found is None:
            starting = warm_start(state.model, job.tokenizer, job.train, config)
            for number, row in enumerate(follow(starting, "warm start", config.warm_start.steps, "loss", console), 1):
                log("warm_start", number, row)
            follow_policy(state)
            before, row = _evaluation(state, job, checker)
            log("evaluation", 0, row)
            save_state()
        else:
            restore(state, found)
            before = Accuracy(*found.state["before"])
            del found  # as large as all that was restored from it
            console.print(f"resumed after rollout batch {state.step}", highlight=False, soft_wrap=True)
        console.print(f"held-out accuracy before: {before}", highlight=False, soft_wrap=True)
        training = train(state, job.tokenizer, checker, job.train, job.recipe, config)
        left = config.steps - state.step
        for row in follow(training, config.recipe, left, "accuracy", console):
            log("policy_gradient", state.step, row)
            rollout = cast(Rollout, state.rollout)  # train leaves it there before it yields
            if ranks.is_first():
                for said in transcripts(rollout, job.tokenizer, config.rollout.samples, config.transcripts):
                    append(folder / TRANSCRIPTS, {"phase": "policy_gradient", "step": state.step, **said})
            if _evaluates_after(state.step, config):
                log("evaluation", state.step, _evaluation(state, job, checker)[1])
            if state.step % config.checkpoint_every == 0 or state.step == config.steps:
                save_state()
        after = before
        if config.steps:
            after, row = _evaluation(state, job, checker)
            log("evaluation", config.steps, row)
        final = weights(state.model)
        ranks.from_first(lambda: _finish(job, state, final, before, after))
    return Result(before, after)


def _described(state: State, job: Job) -> str:
    size = sum(weight.numel() for weight in state.model.parameters())
    where = f", on {ranks.size()} × {state.model.device.type}" if ranks.size() > 1 else ""
    return f"{size / 1e6:.1f} M parameters{where}, {len(job.train)} problems, {len(job.test)} held out"


def _set_up(job: Job, found: Snapshot | None) -> None:
    """Refuse what is not this run's, and put the folder into the state that goes with the checkpoint."""
    config, folder = job.config, job.config.folder
    if found is not None:
        _same_run(found.state, job)
        if found.step > config.steps:
            raise ValueError(f"steps is {config.steps} but {found.step} are done; give more, or leave it out")
    elif any(row["phase"] == "policy_gradient" for row in rows(folder / METRICS)):
        raise ValueError(f"{folder} has rollout batches in {METRICS} but no checkpoint; begin anew in another folder")
    replace(folder / "config.toml", dump(config).encode())
    if found is None:
        _write_problems(job)
    for journal in (METRICS, TRANSCRIPTS):
        keep(folder / journal, lambda row: found is not None and _is_done(row, found, config))


def _save(folder: Path, now: Snapshot) -> None:
    for journal in (METRICS, TRANSCRIPTS):
        flush(folder / journal)
    save(folder / "checkpoints", now)


def _finish(job: Job, state: State, final: dict[str, Tensor], before: Accuracy, after: Accuracy) -> None:
    """Write the model, as one process has it, and the picture of the run."""
    folder = job.config.folder
    model = SimpleNamespace(save_pretrained=partial(state.model.model.save_pretrained, state_dict=final))
    export(folder / "model", model, job.tokenizer)
    history = [row for row in rows(folder / METRICS) if row["phase"] == "policy_gradient"]
    if history:
        draw_curves(history, before, after, job.config, folder / "curves.png")


def _evaluation(state: State, job: Job, checker: Checker) -> tuple[Accuracy, dict[str, float]]:
    """Return held-out accuracy, and the row of metrics."""
    config = job.config
    budget, temperature = config.optimizer.micro_tokens, config.rollout.temperature
    sampling(state.optimizer)
    clock = Clock()
    with clock("seconds"):
        found = evaluate(
            state.model,
            job.tokenizer,
            checker,
            job.test,
            k=config.eval_samples,
            max_tokens=config.rollout.max_tokens,
            temperature=temperature,
            seed=derive(config.seed, "evaluation"),
            at_once=config.rollout.at_once,
        )
        start = state.reference if config.reference.replace == "never" else None
        more = spread(state.model, start, found.batch, budget=budget, temperature=temperature)
    accuracy, passed = found.mean_at_k, found.pass_at_k
    shares = {"accuracy": accuracy.mean, "stderr": accuracy.stderr, "pass": passed.mean, "pass_stderr": passed.stderr}
    return accuracy, shares | more | clock.seconds


def _evaluates_after(step: int, config: Config) -> bool:
    """Say whether the run is evaluated there on its way; at its end it always is."""
    return config.eval_every > 0 and step % config.eval_every == 0 and step < config.steps


def _is_done(row: dict[str, Any], found: Snapshot, config: Config) -> bool:
    """Say whether a row is of what a checkpoint has behind it, rather than of what will be done again.

    The evaluation at the end is done again, or left out where the run has become longer and none is due there.
    """
    if row["phase"] == "warm_start":
        return True
    then = msgspec.toml.decode(found.state["config"].encode())
    at_the_end = row["phase"] == "evaluation" and row["step"] == then["steps"] > 0
    at_the_end = at_the_end and not _evaluates_after(row["step"], config)
    return bool(row["step"] <= found.step and not at_the_end)


def _write_problems(job: Job) -> None:
    for name, problems in job.generated.items():
        folder = job.config.folder / "data"
        folder.mkdir(exist_ok=True)
        write(folder / f"{name}.parquet", problems)


def _same_run(kept: Mapping[str, Any], job: Job) -> None:
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
