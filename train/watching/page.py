"""The page of a report: tables, transcripts, configs and definitions around the picture, in one file of HTML."""

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from train.preset import dump
from train.watching.groups import IGNORED, Estimate, Group, differing, results, show
from train.watching.metrics import METRICS
from train.watching.runs import SAMPLES, Run

LONGEST_TEXT = 1200
LAST_PART = 400
"""Of a text that is cut: its end is kept too, where the answer stands."""


class Stroke(NamedTuple):
    """How a group's lines look: a colour, and lengths of dash and gap, none for a solid line."""

    colour: str
    dashes: tuple[float, ...]


class Column(NamedTuple):
    """A column of the table of results.

    Attributes:
        key: of ``results``.
        title: above it.
        phase: of the metric in METRICS.
        metric: key of the metric in METRICS.
        which: the value it is, of each run.
        spread: whether the standard error is shown.
    """

    key: str
    title: str
    phase: str
    metric: str
    which: str
    spread: bool = True


COLUMNS = (
    Column("before", "Held-out accuracy before", "evaluation", "accuracy", "evaluation at step 0"),
    Column("after", "→ after", "evaluation", "accuracy", "last evaluation after step 0"),
    Column("reward", "Reward", "policy_gradient", "reward", "last rollout batch"),
    Column("k3", "Reverse KL to the reference (k3)", "policy_gradient", "k3", "last rollout batch"),
    Column("reverse_kl_start", "Reverse KL to the start", "evaluation", "reverse_kl_start", "last evaluation"),
    Column("entropy", "Entropy", "policy_gradient", "entropy", "last rollout batch"),
    Column(
        "tokens_per_second", "Tokens/s", "policy_gradient", "tokens_per_second", "mean over the steps", spread=False
    ),
    Column("minutes", "Minutes", "policy_gradient", "seconds", "sum over all phases", spread=False),
)


def page(groups: Sequence[Group], strokes: Sequence[Stroke], picture: str, shown: Sequence[tuple[str, str]]) -> str:
    """Return the page; it needs no other file, and what it quotes is escaped.

    Args:
        groups: of runs.
        strokes: of each group's lines in the picture.
        picture: an SVG element.
        shown: phase and key of the metrics in the picture.

    Returns:
        HTML.
    """
    folder = Path(__file__).parent
    # StrictUndefined: a misspelt name in the template is an error, and never an empty cell.
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "show": show}
    settings = [group.settings for group in groups]
    tables = [results(group.runs) for group in groups]
    columns = [column for column in COLUMNS if any(table[column.key] for table in tables)]
    metrics = dict.fromkeys([*shown, *((column.phase, column.metric) for column in columns), ("evaluation", "stderr")])
    return environment.get_template("report.html.jinja").render(
        groups=list(zip(groups, strokes, strict=True)),
        runs=sum(len(group.runs) for group in groups),
        picture=Markup(picture),
        columns=columns,
        cells=[
            [cell(table[column.key], column, len(group.runs)) for column in columns]
            for group, table in zip(groups, tables, strict=True)
        ],
        meanings={column.key: METRICS[column.phase][column.metric].meaning for column in columns},
        differing=differing(settings),
        ignored=IGNORED,
        transcripts=[transcripts(group) for group in groups],
        dump=dump,
        definitions=[(phase, key, METRICS[phase][key]) for phase, key in metrics],
    )


class Cell(NamedTuple):
    """A number of the table of results: it, and beneath it what its error is or how many runs it is of."""

    text: str
    below: str


def cell(value: Estimate | None, column: Column, runs: int) -> Cell:
    """Return a number with its standard error, if it has one, and what that is over.

    Args:
        value: the estimate; None for none.
        column: where it stands.
        runs: of the group.
    """
    if value is None:
        return Cell("—", "")
    text = numeral(value.mean, value.error if column.spread else None)
    # Only an accuracy has a standard error of its own; everywhere else there is but one over seeds.
    over = f"over {value.over}" if column.metric == "accuracy" and value.over else ""
    some = f"{value.runs} of {runs} seeds" if value.runs < runs else ""
    return Cell(text, ", ".join(part for part in (over, some) if part))


def numeral(value: float, error: float | None) -> str:
    """Return a number to three significant digits, or to the second digit of its error; to five decimals at most.

    Args:
        value: finite.
        error: its standard error; None for none.
    """
    largest = max(abs(value), error or 0.0)
    if largest and not 1e-3 <= largest < 1e6:
        power = math.floor(math.log10(largest))
        text = numeral(value / 10.0**power, None if error is None else error / 10.0**power)
        return (f"({text})" if error is not None else text) + "·10" + str(power).translate(RAISED)
    finest = error or largest
    digits = (1 if error else 2) - math.floor(math.log10(finest)) if finest else 0
    digits = min(max(digits, 0), 5)
    text = f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")
    return text.replace("-", "−")


RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Sample(NamedTuple):
    """A response, with the run it is of."""

    run: Run
    row: Mapping[str, Any]


def transcripts(group: Group) -> dict[int, list[Sample]]:
    """Return responses of the first and of the last step for which a run of the group has any: a few of each."""
    steps = sorted({step for run in group.runs for step in run.samples})
    return {
        step: [Sample(run, row) for run in group.runs for row in run.samples.get(step, [])][:SAMPLES]
        for step in steps[:1] + steps[-1:]
    }


def visible(value: object) -> Markup:
    """Return any value as safe HTML in which what cannot be seen is, and of which a long one lacks its middle.

    Args:
        value: a string, or what JSON may hold in its place.
    """
    text = value if isinstance(value, str) else "—" if value is None else json.dumps(value)
    if len(text) <= LONGEST_TEXT:
        return _marked(text)
    cut = f"{len(text) - LONGEST_TEXT:,} of {len(text):,} characters left out"
    parts = _marked(text[: LONGEST_TEXT - LAST_PART]), Markup('<span class="cut">{}</span>').format(cut)
    return Markup(" ").join((*parts, _marked(text[-LAST_PART:])))


def _marked(text: str) -> Markup:
    return Markup("").join(_mark(sign) if unicodedata.category(sign) in UNSEEN else escape(sign) for sign in text)


UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _mark(sign: str) -> Markup:
    if sign == "\n":
        return Markup('<span class="control">↵</span>\n')
    return Markup('<span class="control">{}</span>').format(sign.encode("unicode_escape").decode("ascii"))
