"""Plots in one style, as SVG that takes its ink from the page, light or dark."""

import html
import io
import re
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.figure import Figure

COLOURS = {
    "fkl": "#4477aa",
    "ufkl": "#66aadd",
    "rkl": "#cc5533",
    "urkl": "#ee9955",
    "jeffreys": "#aa6699",
    "js": "#779944",
    "chi2": "#888888",
}
"""One colour a divergence: forward blue, reverse red, the unnormalised lighter."""

_INK = "#010203"
_STYLE: dict[str, Any] = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _INK,
    "axes.titlesize": 11,
    "font.family": "sans-serif",
    "font.size": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def panels(rows: int = 1, columns: int = 1, *, width: float = 8.0, height: float = 3.0, **options: Any) -> Any:
    """Return a figure and its axes in the house's style.

    Args:
        rows: of axes.
        columns: of axes.
        width: inches.
        height: inches.
        options: of ``pyplot.subplots``.

    Returns:
        (figure, axes), as ``pyplot.subplots``.

    Source: ours.
    """
    matplotlib.rcParams.update(matplotlib.rcParamsDefault | _STYLE)
    return pyplot.subplots(rows, columns, figsize=(width, height), layout="constrained", **options)


def drawn(figure: Figure, caption: str) -> str:
    """Return a figure as HTML, to be printed by a page.

    Args:
        figure: from ``panels``; it is closed.
        caption: plain text, which is also what a reader without the picture gets.

    Returns:
        HTML on lines of its own.

    Source: ours.
    """
    matplotlib.rcParams["svg.hashsalt"] = caption  # no two figures of a page share an id
    text = io.StringIO()
    figure.savefig(text, format="svg")
    pyplot.close(figure)
    svg = text.getvalue()[text.getvalue().index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', svg, count=1)
    label = html.escape(caption, quote=True)
    flat = " ".join(svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).split())
    return f'<figure class="plot">{flat}<figcaption>{html.escape(caption)}</figcaption></figure>\n'
