"""A progress bar in a terminal; in a log file, ten lines."""

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def follow(
    rows: Iterable[dict[str, Any]], what: str, total: int, key: str, console: Console
) -> Iterator[dict[str, Any]]:
    """Pass rows of metrics on as they come, showing how far they are and the latest value of ``key``.

    Args:
        rows: metrics, one dict a step.
        what: the name of the phase.
        total: how many rows will come.
        key: the metric to show.
        console: where to show it.

    Yields:
        The same rows.
    """
    if not console.is_terminal:
        for number, row in enumerate(rows, start=1):
            if number * 10 // total > (number - 1) * 10 // total:
                console.print(f"{what} {number}/{total}: {_shown(row, key)}", highlight=False, soft_wrap=True)
            yield row
        return
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total, shown="")
        for row in rows:
            bar.update(task, advance=1, shown=_shown(row, key))
            yield row


def _shown(row: dict[str, Any], key: str) -> str:
    parts = [f"{key} {row[key]:.3f}"]
    if "tokens_per_second" in row:
        parts.append(f"{row['tokens_per_second']:.0f} tok/s")
    if row.get("sampler_gap") is not None:
        parts.append(f"gap {row['sampler_gap']:.1g}")
    return ", ".join(parts)
