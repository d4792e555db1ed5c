"""Runs of several seeds put together, and their means with standard errors."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import mean, stdev
from typing import Any, NamedTuple

from train.watching.runs import Row, Run

IGNORED = (
    *("name", "seed", "run_dir", "threads", "checkpoint_every", "steps", "transcripts", "loggers"),
    *("engine.kv_gib", "engine.max_gap", "engine.timeout"),
)
"""What runs of one group may differ in: the seed, and what bears on no step that two of them share."""

LONGEST_VALUE = 32
MOST_KEYS = 4


class Group(NamedTuple):
    """Runs that differ in no more than the keys of IGNORED, each of another seed.

    Attributes:
        label: in what the group differs from the others.
        settings: every other key, dotted, and its value.
        runs: in the order given.
    """

    label: str
    settings: dict[str, Any]
    runs: list[Run]


class Estimate(NamedTuple):
    """A mean over runs.

    Attributes:
        mean: over the runs that have a value.
        error: its standard error; None where there is none.
        runs: how many have a value.
        over: what the error is over: seeds, problems, or "" for no error.
    """

    mean: float
    error: float | None
    runs: int
    over: str


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Put runs together that differ in no more than the keys of IGNORED.

    Args:
        runs: at least one.

    Returns:
        The groups, in the order in which their first runs come.

    Raises:
        ValueError: two runs of a group have one seed, and would pass for two.
    """
    groups: dict[str, Group] = {}
    for run in runs:
        settings = dict(_flat(asdict(run.config)))
        members = groups.setdefault(repr(settings), Group("", settings, [])).runs
        for other in members:
            if other.config.seed == run.config.seed:
                raise ValueError(
                    f"{other.folder} and {run.folder} are one configuration and one seed, {run.config.seed}, "
                    "and would pass for two seeds; leave one of them out"
                )
        members.append(run)
    labels = _labels([group.settings for group in groups.values()])
    return [group._replace(label=label) for group, label in zip(groups.values(), labels, strict=True)]


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif prefix + key not in IGNORED:
            yield prefix + key, value


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values are not the same in all settings, the recipe first."""
    keys = [key for key in settings[0] if len({repr(each[key]) for each in settings}) > 1]
    return sorted(keys, key=lambda key: key != "recipe")


def _labels(settings: Sequence[dict[str, Any]]) -> list[str]:
    keys = differing(settings) or ["recipe"]
    told = keys if len(keys) <= MOST_KEYS else _distinguishing(keys, settings)
    more = ", …" if len(told) < len(keys) else ""
    short = [_label(told, each, LONGEST_VALUE) + more for each in settings]
    return short if len(set(short)) == len(short) else [_label(told, each, None) + more for each in settings]


def _label(keys: Sequence[str], settings: dict[str, Any], longest: int | None) -> str:
    """Return the keys with their values, those left out only where nothing else is there to say."""
    parts = [_part(key, settings[key], longest) for key in keys if settings[key] is not None]
    return ", ".join(parts or [f"{key} {show(None)}" for key in keys])


def _distinguishing(keys: Sequence[str], settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return the first of these keys that tell all settings apart."""
    kept: list[str] = []
    parts = 1
    for key in keys:
        finer = len({repr([each[name] for name in (*kept, key)]) for each in settings})
        if finer > parts:
            kept, parts = [*kept, key], finer
    return kept


def _part(key: str, value: Any, longest: int | None) -> str:
    text = show(value)
    if longest is not None and len(text) > longest:
        text = "…" + text[1 - longest :]
    return text if key == "recipe" else f"{key} = {text}"


def show(value: Any) -> str:
    """Return a setting's value as a line of text."""
    if value is None:
        return "left out"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in str(value))


def estimate(values: Sequence[float | None], errors: Sequence[float | None] = ()) -> Estimate | None:
    """Return the mean over runs, with its standard error over seeds where at least two runs have a value.

    Args:
        values: one a run; None where it has none.
        errors: for each, its own standard error over problems: that of the mean where only one run has a value.

    Returns:
        The mean; None where no run has a value.
    """
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    if len(numbers) > 1:
        return Estimate(mean(numbers), stdev(numbers) / math.sqrt(len(numbers)), len(numbers), "seeds")
    own = [error for value, error in zip(values, errors, strict=False) if value is not None and error is not None]
    return Estimate(numbers[0], own[0], 1, "problems") if own else Estimate(numbers[0], None, 1, "")


def estimate_rows(rows: Sequence[Row], keys: Sequence[str], error: str = "") -> Estimate | None:
    """Return the estimate of the sum of ``keys`` in one row a run; a key that a row has not counts as 0 beside others.

    Args:
        rows: one a run; empty where it has none.
        keys: of metrics.
        error: the key of a row's own standard error.
    """
    found = [[row[key] for key in keys if key in row] for row in rows]
    return estimate([sum(parts) if parts else None for parts in found], [row.get(error) for row in rows])


def curve(runs: Sequence[Run], phase: str, keys: Sequence[str], error: str = "") -> dict[int, Estimate | None]:
    """Return the estimate at every step that a run has a row for; None where no run has a finite number.

    Args:
        runs: of a group.
        phase: of METRICS.
        keys: whose sum is drawn.
        error: the key of a row's own standard error.
    """
    steps = sorted({step for run in runs for step in run.rows[phase]})
    return {step: estimate_rows([run.rows[phase].get(step, {}) for run in runs], keys, error) for step in steps}


def results(runs: Sequence[Run]) -> dict[str, Estimate | None]:
    """Return what a group of runs came to.

    Args:
        runs: of a group.

    Returns:
        Held-out accuracy ``before`` and ``after``, at each run's last evaluation; ``reward``, ``k3`` and
        ``entropy`` of its last rollout batch, ``reverse_kl_start`` of its last evaluation; ``tokens_per_second``, the
        mean over its steps; ``minutes``, the sum over all its rows.
    """
    first = [run.rows["evaluation"].get(0, {}) for run in runs]
    last = [_last(run.rows["evaluation"]) for run in runs]
    batch = [_last(run.rows["policy_gradient"]) for run in runs]
    speeds = [_values(run.rows["policy_gradient"], "tokens_per_second") for run in runs]
    seconds = [[second for rows in run.rows.values() for second in _values(rows, "seconds")] for run in runs]
    return {
        "before": estimate_rows(first, ["accuracy"], "stderr"),
        "after": estimate_rows(last, ["accuracy"], "stderr"),
        **{key: estimate_rows(batch, [key]) for key in ("reward", "k3", "entropy")},
        "reverse_kl_start": estimate_rows(last, ["reverse_kl_start"]),
        "tokens_per_second": estimate([mean(each) if each else None for each in speeds]),
        "minutes": estimate([sum(each) / 60 if each else None for each in seconds]),
    }


def _last(rows: Mapping[int, Row]) -> Row:
    """Return the row of the last step after step 0."""
    step = max(rows, default=0)
    return rows[step] if step > 0 else {}


def _values(rows: Mapping[int, Row], key: str) -> list[float]:
    return [row[key] for row in rows.values() if key in row]
