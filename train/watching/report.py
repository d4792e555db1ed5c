"""The report on several runs: one picture of their curves, and one page with the picture, tables and transcripts."""

import io
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from train.watching.groups import Estimate, Group, curve, group_runs
from train.watching.metrics import METRICS
from train.watching.page import Stroke, page
from train.watching.runs import read_runs

# Okabe and Ito 2008, a palette for the colour-blind, without its yellow, which is too light for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ((), (5, 2), (1, 1.5))
INK, MUTED, GRID = "#1f2328", "#6b7280", "#e5e7eb"
LETTERS_PER_INCH = 12
MOST_MARKERS = 40
MOST_THICK = 300


class Panel(NamedTuple):
    """One panel of the picture.

    Attributes:
        title: above it.
        phase: of METRICS.
        keys: whose sum it shows.
        error: key of a row's own standard error, shown where a step has a single seed.
        scale: factor from METRICS' unit to ``unit``.
        label: of its axis; "" for the key.
        unit: "" for METRICS'.
    """

    title: str
    phase: str
    keys: tuple[str, ...]
    error: str = ""
    scale: float = 1.0
    label: str = ""
    unit: str = ""


PANELS = (
    Panel("Held-out accuracy", "evaluation", ("accuracy",), error="stderr"),
    Panel("Reward of the rollouts", "policy_gradient", ("reward",)),
    Panel("Reverse KL to the reference, a token (k3)", "policy_gradient", ("k3",)),
    Panel("Reverse KL to the start, a response", "evaluation", ("reverse_kl_start",)),
    Panel("Entropy of a token", "policy_gradient", ("entropy",)),
    Panel("Length of a response", "policy_gradient", ("response_length",)),
    Panel("Effective sample size", "policy_gradient", ("ess",)),
    Panel(
        "Clipped: tokens without gradient",
        "policy_gradient",
        ("clip_high", "clip_low", "clip_dual"),
        scale=100,
        label="clip_high + low + dual",
        unit="%",
    ),
    Panel("Norm of the gradient", "policy_gradient", ("grad_norm",)),
    Panel("Speed", "policy_gradient", ("tokens_per_second",)),
)


class Drawing(NamedTuple):
    """A panel and, for each group, its curve."""

    panel: Panel
    curves: Sequence[dict[int, Estimate | None]]


def report(folders: Sequence[Path], out: Path) -> Path:
    """Compare runs: write ``report.png`` and ``report.html``, which needs no other file.

    Args:
        folders: of the runs, in progress or complete.
        out: the folder to write; made if it is missing.

    Returns:
        The path of ``report.html``.

    Raises:
        ValueError: a folder that holds no run, one given twice, two runs of one configuration and seed, no finite
            number in any of them, or a folder that cannot be written.
    """
    if os.path.exists(out) and not os.path.isdir(out):
        raise ValueError(f"{out} is a file; choose a folder with --out")
    groups = group_runs(read_runs(folders))
    drawings = list(drawn(groups))
    if not drawings:
        names = ", ".join(str(folder) for folder in folders)
        raise ValueError(f"there is no finite number to draw in {names}; add a run that has one")
    strokes = strokes_of(groups)
    figure = draw(groups, drawings, strokes)
    shown = [(drawing.panel.phase, key) for drawing in drawings for key in drawing.panel.keys]
    text = page(groups, strokes, svg(figure, drawings), shown)
    png = io.BytesIO()
    with _any_glyph():
        figure.savefig(png, format="png")
    _write(out, {"report.png": png.getvalue(), "report.html": text.encode()})
    return out / "report.html"


def drawn(groups: Sequence[Group]) -> Iterator[Drawing]:
    """Yield the panels that a group has a finite number for, with each group's curve."""
    for panel in PANELS:
        curves = [curve(group.runs, panel.phase, panel.keys, panel.error) for group in groups]
        if any(point is not None for each in curves for point in each.values()):
            yield Drawing(panel, curves)


def strokes_of(groups: Sequence[Group]) -> list[Stroke]:
    """Return how each group's lines look: a colour of its own, and once those are spent other dashes."""
    return [
        Stroke(COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)])
        for number in range(len(groups))
    ]


def note(drawings: Sequence[Drawing]) -> str:
    """Return what the lines, bands and bars of these panels are."""
    over = {point.over for drawing in drawings for each in drawing.curves for point in each.values() if point}
    parts = []
    if "seeds" in over:
        parts.append("Line: mean over the seeds that have a value; band, bar: ± one standard error of that mean.")
    if "problems" in over:
        parts.append("Bar of a single seed: ± one standard error over held-out problems.")
    return " ".join(parts)


def draw(groups: Sequence[Group], drawings: Sequence[Drawing], strokes: Sequence[Stroke]) -> Figure:
    """Draw the panels on one axis of steps, under one legend.

    Args:
        groups: one line in each panel for each.
        drawings: one panel for each.
        strokes: how each group's lines look.

    Returns:
        The figure.
    """
    columns = _columns(len(drawings))
    rows = math.ceil(len(drawings) / columns)
    width = (4.9 if columns < 3 else 3.9) * columns
    labels, across = _legend(groups, int(LETTERS_PER_INCH * width))
    legend_lines = sum(1 + label.count("\n") for label in labels) / across
    figure = Figure(
        figsize=(width, 2.5 * rows + 0.24 * legend_lines + 0.5),
        layout="constrained",
        dpi=160,
    )
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number >= len(drawings):
            axes.remove()
            continue
        _panel(axes, drawings[number], strokes)
        if number + columns >= len(drawings):
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("step [rollout batches]", color=INK)
    handles = [
        Line2D([], [], color=stroke.colour, linewidth=2, dashes=stroke.dashes or (None, None)) for stroke in strokes
    ]
    legend = figure.legend(handles, labels, loc="outside upper left", ncols=across, frameon=False, handlelength=2.4)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.align_ylabels()
    figure.supxlabel(note(drawings), x=0.01, horizontalalignment="left", fontsize=8, color=MUTED)
    return figure


def _legend(groups: Sequence[Group], letters: int) -> tuple[list[str], int]:
    """Return the labels, wrapped, and how many go side by side."""
    handle = 8
    # fill never breaks a line at a no-break space.
    whole = [f"{group.label} (n = {len(group.runs)})".replace(" = ", "\xa0=\xa0") for group in groups]
    labels = [fill(label, letters - handle, break_on_hyphens=False).replace("\xa0", " ") for label in whole]
    widest = max(len(line) for label in labels for line in label.split("\n"))
    most = max(1, min(len(labels), letters // (widest + handle)))
    return labels, math.ceil(len(labels) / math.ceil(len(labels) / most))


def _columns(panels: int) -> int:
    """Return the number of columns, of 2 and 3, that leaves fewer places empty."""
    return min(panels, min((3, 2), key=lambda columns: -panels % columns))


def _panel(axes: Axes, drawing: Drawing, strokes: Sequence[Stroke]) -> None:
    panel = drawing.panel
    for points, stroke in zip(drawing.curves, strokes, strict=True):
        _line(axes, points, stroke, panel)
    unit = panel.unit or METRICS[panel.phase][panel.keys[0]].unit
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.set_ylabel((panel.label or panel.keys[0]) + (f" [{unit}]" if unit else ""), color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(color=MUTED, labelcolor=INK, labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.ticklabel_format(axis="y", scilimits=(-4, 6), useOffset=False)
    axes.set_gid(f"panel-{panel.keys[0]}")


def _line(axes: Axes, points: dict[int, Estimate | None], stroke: Stroke, panel: Panel) -> None:
    """Draw one group's curve, with a gap where no seed has a finite number."""
    nan = float("nan")
    steps = list(points)
    means = [panel.scale * point.mean if point else nan for point in points.values()]
    errors = [panel.scale * point.error if point and point.error is not None else nan for point in points.values()]
    width = 1.5 if len(steps) <= MOST_THICK else 0.8
    style: dict[str, Any] = {"color": stroke.colour, "dashes": stroke.dashes or (None, None), "linewidth": width}
    if panel.phase == "evaluation":
        axes.errorbar(steps, means, errors, **style, elinewidth=1.2, capsize=2.5, marker="o", markersize=4)
        return
    blank = [True, *(math.isnan(value) for value in means), True]
    marked = [at for at in range(len(means)) if len(means) <= MOST_MARKERS or blank[at] and blank[at + 2]]
    axes.plot(steps, means, **style, marker="o", markersize=3, markevery=marked)
    low, high = ([value + sign * error for value, error in zip(means, errors, strict=True)] for sign in (-1, 1))
    axes.fill_between(steps, low, high, color=stroke.colour, alpha=0.18, linewidth=0)


def svg(figure: Figure, drawings: Sequence[Drawing]) -> str:
    """Return the picture as an SVG element whose text is text, and whose panels say on hovering what they show."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}), _any_glyph():
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for panel, _ in drawings:
        opening = f'<g id="panel-{panel.keys[0]}">'
        meanings = " ".join(METRICS[panel.phase][key].meaning for key in panel.keys)
        text = text.replace(opening, f"{opening}<title>{escape(meanings)}</title>", 1)
    return text


@contextmanager
def _any_glyph() -> Iterator[None]:
    """Let a label hold what the font lacks: the picture shows a box, the page the text."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def _write(out: Path, files: dict[str, bytes]) -> None:
    """Write files of which a reader sees the old ones or the new ones, never a half."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            fresh = out / f"{name}.tmp"
            try:
                fresh.write_bytes(data)
                os.replace(fresh, out / name)
            finally:
                fresh.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot write the report to {out}: {error.strerror}; choose another folder with --out"
        ) from error
