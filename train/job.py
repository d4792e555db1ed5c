"""What can be refused before a run begins: its recipe, its folder, its problems, a checkpoint that is not its own."""

import dataclasses
import hashlib
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from transformers import PreTrainedTokenizerBase

from rpg_ref import BASELINES, RECIPES, Recipe, WeightBound
from rpg_ref.audit.verify import verify
from train import ranks
from train.answering.checker import Checker
from train.config import Config, EngineConfig
from train.engines.opening import check_engine
from train.model import tokenizer_of
from train.preset import dump, load
from train.problems.arithmetic import generate
from train.problems.tasks import Task, arithmetic, encode, read_split
from train.saving.durable import hidden
from train.seeds import derive
from train.tokenizer import warnings_of
from train.watching.loggers import check_loggers

EXTENDABLE = frozenset(
    "steps checkpoint_every eval_every transcripts loggers threads device timeout run_dir "
    "engine.kv_gib engine.max_gap engine.timeout".split()
)
"""What a resumed run may change: nothing of it bears on the steps that are done."""
PATIENCE = 5.0
"""Seconds until a file of one node must be seen on another."""


class Job(NamedTuple):
    """A run that may begin: its recipe is verified, its problems are read, its folder is there."""

    config: Config
    recipe: Recipe
    verdict: str
    tokenizer: PreTrainedTokenizerBase
    train: list[Task]
    test: list[Task]
    generated: dict[str, list[dict[str, Any]]]
    warnings: Sequence[str] = ()

    @property
    def problems(self) -> str:
        """A hash of all problems: a resumed run must have the same."""
        return hashlib.sha256(repr((self.train, self.test)).encode()).hexdigest()


def prepare(config: Config) -> Job:
    """Check everything of a new run, in this order: the recipe against the oracle, the run folder, the problems.

    Raises:
        ValueError: any of them is not as it must be; nothing has been written then.
    """
    folder = config.folder
    checked = _checked_alike(config)
    ranks.from_first(lambda: _refuse_used(folder))
    job = _with_problems_alike(config, *checked)
    ranks.from_first(lambda: _make(folder))
    _refuse_unshared(folder)
    return job


def prepare_either(config: Config) -> Job:
    """Check everything of a new run, or of one that goes on if its folder holds one: as a cluster starts it each time.

    Raises:
        ValueError: as ``prepare`` or ``prepare_again``.
    """
    begun = ranks.from_first(lambda: (config.folder / "config.toml").is_file())
    return (prepare_again if begun else prepare)(config)


def _refuse_used(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the run folder {folder} exists already; choose another with --run-dir: this one is a file")
    if folder.exists() and not (folder.is_dir() and all(path.suffix == ".tmp" for path in folder.iterdir())):
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
    job = _with_problems_alike(config, *_checked_alike(config))
    _refuse_unshared(config.folder)
    return job


def _checked_alike(config: Config) -> tuple[Recipe, str]:
    """Check the config, and that every rank was given the same."""
    first = ranks.gather(dump(config))[0]

    def check() -> tuple[Recipe, str]:
        if changed := _changes(first, dump(config)):
            raise ValueError(
                f"rank {ranks.rank()} has another configuration than rank 0: {changed}; give all nodes one command"
            )
        return _checked(config)

    return ranks.everywhere(check)


def _with_problems_alike(config: Config, recipe: Recipe, verdict: str) -> Job:
    """Read the problems, and check that every rank has the same."""
    job = ranks.everywhere(lambda: _with_problems(config, recipe, verdict))
    refuse_unlike("problems", job.problems)
    return job


def refuse_unlike(what: str, mine: object) -> None:
    """Refuse what is not the first rank's: every rank takes the same decisions, or they part.

    Raises:
        ValueError: it is not.
    """
    theirs = ranks.gather(mine)[0]

    def check() -> None:
        if mine != theirs:
            raise ValueError(f"rank {ranks.rank()} has other {what} than rank 0; give every node the same files")

    ranks.everywhere(check)


def _refuse_unshared(folder: Path) -> None:
    """Refuse a folder that not every rank sees: the first rank may be on another node when the run goes on."""
    if ranks.size() == 1:
        return
    mark = ranks.from_first(lambda: _mark(folder))

    def look() -> None:
        until = time.monotonic() + PATIENCE
        while not mark.exists() and time.monotonic() < until:
            time.sleep(0.1)
        if not mark.exists():
            raise ValueError(
                f"the run folder {folder} of rank 0 is not there for rank {ranks.rank()} (on {socket.gethostname()}); "
                "put it on a disk that all nodes share, with --run-dir"
            )

    try:
        ranks.everywhere(look)
    finally:
        if ranks.is_first():
            mark.unlink(missing_ok=True)


def _mark(folder: Path) -> Path:
    mark = hidden(folder / "seen")
    mark.touch()
    return mark


def _checked(config: Config) -> tuple[Recipe, str]:
    ranks.device(config.device)
    check_loggers(config.loggers)
    check_engine(config.engine)
    Checker(config.data.rule)
    if config.optimizer.kind == "schedule-free" and find_spec("schedulefree") is None:
        raise ValueError("optimizer.kind is schedule-free, whose package is missing; pip install schedulefree")
    recipe = dataclasses.replace(RECIPES[config.recipe], sampler=correction(config.engine))
    if config.beta is not None:
        recipe = dataclasses.replace(recipe, beta=config.beta)
    if recipe.critic:
        raise ValueError(
            f"recipe {recipe.name} takes the advantages of a critic, which this driver has not; choose dapo or another"
        )
    smallest = BASELINES[recipe.baseline].smallest_group
    if config.rollout.samples < smallest:
        raise ValueError(
            f"rollout.samples is {config.rollout.samples} but {recipe.baseline} needs {smallest}; raise it"
        )
    row = verify(recipe)
    if not row.ok:
        raise ValueError(f"refusing to train: {row.verdict}")
    return recipe, row.verdict


def correction(settings: EngineConfig) -> WeightBound:
    """Return the bound of π_old/π_sampler, by the core's rule of that name."""
    return {
        "none": WeightBound(),
        "truncate": WeightBound("clamp", high=settings.high),
        "mask": WeightBound("mask", settings.low, settings.high),
    }[settings.correct]


def _with_problems(config: Config, recipe: Recipe, verdict: str) -> Job:
    tokenizer = tokenizer_of(config.model)
    generated = {}
    if config.data.train is None:
        generated = generate(derive(config.seed, "problems"), config.data.test_problems)
    split = arithmetic(generated) if generated else read_split(config.data)
    warnings = warnings_of(tokenizer)
    train_tasks, test_tasks = (
        encode(problems, tokenizer, config, warnings.append, f"{name} prompts")
        for name, problems in zip(("training", "held-out"), split, strict=True)
    )
    return Job(config, recipe, verdict, tokenizer, train_tasks, test_tasks, generated, warnings)


def refuse_other_run(kept: Mapping[str, Any], job: Job) -> None:
    """Refuse a checkpoint of another run, and say in what it differs."""
    changed = _changes(kept["config"], dump(job.config), but=EXTENDABLE)
    if changed:
        raise ValueError(f"the run was begun with another configuration: {changed}; undo that, or begin anew")
    if kept["problems"] != job.problems:
        raise ValueError("the problems are others than when the run began; give it the same data files, or begin anew")


def _changes(then: str, now: str, but: Collection[str] = ()) -> str:
    """Return in what two configs differ, or nothing."""
    found = _differences(*(msgspec.toml.decode(config.encode()) for config in (then, now)))
    return ", ".join(f"{key} {before!r} → {after!r}" for key, before, after in found if key not in but)


def _differences(then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(then.keys() | now.keys()):
        before, after = then.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield prefix + key, before, after
