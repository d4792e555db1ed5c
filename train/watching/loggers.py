"""Loggers beside ``metrics.jsonl``: TensorBoard, Weights & Biases, Trackio; each is imported only when asked for."""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rpg_ref.checks import Table

PROJECT = "rpg_ref"

Numbers = dict[str, float]
Log = Callable[[str, int, Numbers], None]
"""What an opener yields: it takes a phase, a step, and the numbers by their full name, such as ``warm_start/loss``."""


def check_loggers(names: Sequence[str]) -> None:
    """Refuse what open_loggers cannot open, before anything is written.

    Args:
        names: of LOGGERS.

    Raises:
        ValueError: a name is unknown or given twice, or its package is not installed; one sentence says which.
    """
    known = Table("logger", LOGGERS)
    for name in names:
        known.check(name)
        if names.count(name) > 1:
            raise ValueError(f"the logger {name} is named {names.count(name)} times; name it once")
        if find_spec(name) is None:
            raise ValueError(f"the logger {name} needs the package {name}, which is not installed; pip install {name}")


@contextmanager
def open_loggers(
    names: Sequence[str], folder: Path, name: str, config: dict[str, Any], warn: Callable[[str], None]
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Open loggers, and close them at the end, also on an exception.

    A logger that fails to open, to take a row or to close is left out from then on; training does not notice. A run
    that goes on in its folder goes on in each logger: TensorBoard then forgets the rows that are done again, the
    others show them twice. Nothing leaves the machine unless the user's environment or login says so.

    Args:
        names: of LOGGERS, each at most once.
        folder: of the run; the loggers write under it.
        name: of the run, to show.
        config: of the run, nested dicts of plain values.
        warn: called once for each logger that fails, with one sentence.

    Yields:
        A function that passes a row of ``metrics.jsonl`` on; numbers that are None or not finite are left out.

    Raises:
        ValueError: as check_loggers.
    """
    check_loggers(names)
    logs: dict[str, Log] = {}
    failed: set[str] = set()

    def attempt(logger: str, action: Callable[..., Any], *given: Any) -> Any:
        try:
            return action(*given)
        except Exception as error:
            if logger not in failed:
                why = " ".join(f"{type(error).__name__}: {error}".split())
                warn(f"the logger {logger} failed and is left out from here on, metrics.jsonl has every row: {why}")
            failed.add(logger)

    def log(row: dict[str, Any]) -> None:
        phase, step = row["phase"], row["step"]
        numbers = {
            f"{phase}/{key}": value
            for key, value in row.items()
            if key not in ("phase", "step") and isinstance(value, int | float) and math.isfinite(value)
        }
        for logger, take in logs.items():
            if logger not in failed:
                attempt(logger, take, phase, step, numbers)

    with ExitStack() as stack:
        for logger in names:
            opened = LOGGERS[logger](folder, name, config)
            stack.push(partial(attempt, logger, opened.__exit__))
            logs[logger] = attempt(logger, opened.__enter__)
        yield log


@contextmanager
def _tensorboard(folder: Path, name: str, config: dict[str, Any]) -> Iterator[Log]:
    """Write ``tensorboard/PHASE`` in the folder: purging hides all tags of a directory, and phases count apart."""
    from torch.utils.tensorboard import SummaryWriter

    with ExitStack() as stack:
        writers: dict[str, SummaryWriter] = {}

        def writer(phase: str, step: int) -> SummaryWriter:
            if phase not in writers:
                # A phase's steps only rise, so whatever is there from its first step on is about to be done again.
                writers[phase] = SummaryWriter(folder / "tensorboard" / phase, purge_step=step)
                stack.callback(writers[phase].close)
            return writers[phase]

        def log(phase: str, step: int, numbers: Numbers) -> None:
            for key, value in numbers.items():
                writer(phase, step).add_scalar(key, value, step)
            # A run may be killed; the rows before its checkpoint are not written again.
            writer(phase, step).flush()

        writer("", 0).add_text("config", f"{name}\n```\n{json.dumps(config, indent=2)}\n```", 0)
        writer("", 0).flush()
        yield log


@contextmanager
def _wandb(folder: Path, name: str, config: dict[str, Any]) -> Iterator[Log]:
    """Write ``wandb`` in the folder, and online if WANDB_MODE, WANDB_API_KEY or a login says so; wandb ≥ 0.31."""
    # Its error reports ask its server even offline; and without a network a finished run would wait for ever.
    for key, value in {"WANDB_ERROR_REPORTING": "false", "WANDB_FINISH_TIMEOUT": "300"}.items():
        os.environ.setdefault(key, value)
    import wandb

    settings = wandb.setup().settings
    undecided = settings.mode == "online" and "WANDB_MODE" not in os.environ
    earlier = sorted(folder.glob("wandb/*run-*/run-*.wandb"))
    run = wandb.init(
        project=settings.project or PROJECT,
        name=name,
        dir=folder,
        config=config,
        id=earlier[0].stem.removeprefix("run-") if earlier else None,
        resume="allow",
        mode="offline" if undecided and not wandb.login(prompt=False, verify=False) else None,
    )
    defined: set[str] = set()

    def log(phase: str, step: int, numbers: Numbers) -> None:
        if phase not in defined:
            defined.add(phase)
            run.define_metric(f"{phase}/step", hidden=True)
            run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        run.log(numbers | {f"{phase}/step": step})

    try:
        yield log
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


@contextmanager
def _trackio(folder: Path, name: str, config: dict[str, Any]) -> Iterator[Log]:
    """Write ``trackio`` in the folder, or where TRACKIO_DIR, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says."""
    ours = (folder / "trackio").resolve()
    home = Path(os.environ.get("TRACKIO_DIR") or ours)
    # Where runs share a home, another of this name may be there: the folder, empty or not, says that ours is.
    resume = "allow" if ours.exists() else "never"
    ours.mkdir(exist_ok=True)
    # Read once, when the package is imported.
    with _set(os.environ, "TRACKIO_DIR", str(home)):
        import trackio
    if home != trackio.utils.TRACKIO_DIR:
        raise RuntimeError(f"trackio writes to {trackio.utils.TRACKIO_DIR} in this process; begin another for {home}")
    from huggingface_hub import constants

    # It asks the hub for the name of whoever is logged in.
    remote = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
    with nullcontext() if remote else _set(vars(constants), "HF_HUB_OFFLINE", True):
        run = trackio.init(project=PROJECT, name=name, config=config, resume=resume)
    try:
        yield lambda phase, step, numbers: run.log(numbers, step=step)
    finally:
        trackio.finish()


@contextmanager
def _set(names: Any, key: str, value: Any) -> Iterator[None]:
    """Set one name for a while."""
    before = names.get(key)
    names[key] = value
    try:
        yield
    finally:
        if before is None:
            del names[key]
        else:
            names[key] = before


LOGGERS: dict[str, Callable[[Path, str, dict[str, Any]], AbstractContextManager[Log]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}
"""Each under the name of its package, with what opens it: the run's folder, its name, its config."""
