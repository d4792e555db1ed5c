"""Runs read back from their folders, in progress or complete."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from train.config import Config
from train.preset import load

SAMPLES = 4

Row = dict[str, float]


class Run(NamedTuple):
    """What a run's folder holds.

    Attributes:
        folder: as it was given.
        config: the run's.
        rows: the finite numbers of metrics.jsonl, by phase and step.
        samples: the first few rows of transcripts.jsonl at its first and at its last step, by step.
    """

    folder: Path
    config: Config
    rows: Mapping[str, Mapping[int, Row]]
    samples: Mapping[int, Sequence[dict[str, Any]]]

    @property
    def done(self) -> int:
        """Rollout batches that are done."""
        return max(self.rows["policy_gradient"], default=0)

    @property
    def complete(self) -> bool:
        """Whether all configured rollout batches are done, and the policy was evaluated after the last."""
        return self.done >= self.config.steps and self.done in self.rows["evaluation"]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs, in progress or complete.

    Args:
        folders: of runs.

    Returns:
        The runs, in that order.

    Raises:
        ValueError: no folder, one given twice, or one that holds no run; one sentence each.
    """
    if not folders:
        raise ValueError("no run's folder is given; name at least one, such as runs/cpu_tiny-seed0")
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise ValueError(f"{folder} is given twice; name each run's folder once")
        seen.add(folder.resolve())
    return [_read(folder) for folder in folders]


def _read(folder: Path) -> Run:
    config, metrics, transcripts = (folder / name for name in ("config.toml", "metrics.jsonl", "transcripts.jsonl"))
    if not os.path.isfile(config):
        raise ValueError(f"{folder} is no run's folder, it has no config.toml; pass the folder that `run` wrote")
    if not os.path.isfile(metrics):
        raise ValueError(f"{folder} has no metrics.jsonl, no step is done yet; leave it out until one is")
    try:
        settings = load(str(config), {})
    except ValueError as error:
        raise ValueError(
            f"the configuration of {folder} no longer loads, leave it out or correct it: {error}"
        ) from error
    rows: dict[str, dict[int, Row]] = {"evaluation": {}, "warm_start": {}, "policy_gradient": {}}
    for step, row in _lines(metrics):
        if isinstance(row.get("phase"), str) and row["phase"] in rows:
            rows[row["phase"]][step] = {
                key: value for key, value in row.items() if isinstance(value, float) and math.isfinite(value)
            }
    if not rows["policy_gradient"] and not rows["evaluation"]:
        raise ValueError(
            f"{metrics} has no row of the phase policy_gradient or evaluation; leave {folder} out until it has one"
        )
    return Run(folder, settings, rows, _samples(transcripts) if os.path.isfile(transcripts) else {})


def _samples(path: Path) -> dict[int, list[dict[str, Any]]]:
    """Return a few rows of the first and of the last step; a long run's others would fill the memory."""
    samples: dict[int, list[dict[str, Any]]] = {}
    for step, row in _lines(path):
        if len(samples.setdefault(step, [])) < SAMPLES:
            samples[step].append(row)
        samples = {step: samples[step] for step in {min(samples), max(samples)}}
    return samples


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield step and row of every line that was written whole; a process that was killed may have left half a line."""
    try:
        with path.open("rb") as file:
            for line in file:
                with suppress(ValueError, RecursionError):
                    row = json.loads(line, parse_int=float)
                    if isinstance(row, dict) and isinstance(row.get("step"), float) and row["step"].is_integer():
                        yield int(row["step"]), row
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; make it readable, or leave the run out") from error
