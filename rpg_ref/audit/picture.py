"""The picture of an audit: bars of the coefficients found, ticks where the documented ones are."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from rpg_ref.audit.run import Row
from rpg_ref.objective import GAINS, TERMS, Objective

_LABEL_WIDTH = 48
_COLOURS = {name: f"C{i}" for i, name in enumerate(TERMS)}


def draw(library: str, rows: Sequence[Row], path: Path) -> None:
    """Draw the coefficients found, beside those documented, and write the picture.

    Args:
        library: its name and version.
        rows: its rows; those that neither document nor have a term beside the reward are left out.
        path: where to write; its suffix is the format.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.

    Source: ours.
    """
    from matplotlib import lines, patches, pyplot

    drawn = [row for row in rows if row.findings is not None and _terms(row)]
    if not drawn:
        return
    labels = [textwrap.fill(row.case.option, _LABEL_WIDTH) for row in drawn]
    heights = [0.22 + 0.16 * (label.count("\n") + 1) for label in labels]
    places = [sum(heights[:i]) + height / 2 for i, height in enumerate(heights)]
    figure, panels = pyplot.subplots(
        1, 2, sharex=True, sharey=True, figsize=(12, 1.4 + sum(heights)), layout="constrained"
    )
    for regime, (panel, title) in enumerate(zip(panels, ("on-policy", "off-policy"), strict=True)):
        for y, row in zip(places, drawn, strict=True):
            assert row.findings is not None
            found, documented = row.findings[regime].objective, row.documented[regime]
            vanishing = _terms_of(row.case.documented[regime]) - _terms_of(documented)
            names = [name for name in TERMS if name in _terms_of(found) | _terms_of(documented)]
            unit = _unit(row)
            thick = 0.26 / max(len(names), 1)
            for at, name in ((y + (i - (len(names) - 1) / 2) * thick, name) for i, name in enumerate(names)):
                if name in _terms_of(found):
                    panel.barh(at, _signed(found, name) / unit, thick, color=_COLOURS[name])
                if name in _terms_of(documented):
                    tick = _signed(documented, name) / unit
                    panel.plot([tick, tick], [at - thick / 2, at + thick / 2], color="black", lw=2)
            if found is None or vanishing:
                colour = "dimgrey" if documented is None or vanishing else "firebrick"
                text = "no known objective" + (", as documented" if documented is None else "")
                text = "no gradient here: π is π_old" if vanishing else text
                panel.text(
                    *(0.99, y, text),
                    transform=panel.get_yaxis_transform(),
                    **{"ha": "right", "va": "center", "fontsize": 8, "color": colour},
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                )
        panel.axvline(0, color="black", lw=0.5)
        panel.margins(x=0.1)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("coefficient in J, in units of the documented one", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(places, labels, fontsize=8)
    panels[0].set_ylim(sum(heights), 0)
    used = [name for name in TERMS if any(name in _terms(row) for row in drawn)]
    figure.legend(
        [*(patches.Patch(color=_COLOURS[name]) for name in used), lines.Line2D([], [], color="black", lw=2)],
        [*(TERMS[name] for name in used), "documented"],
        loc="outside lower center",
        ncols=len(used) + 1,
        frameon=False,
        fontsize=9,
    )
    figure.suptitle(library)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _terms_of(objective: Objective | None) -> set[str]:
    """Names of an objective's terms beside the reward."""
    return set() if objective is None else {name for name, c in objective.terms.items() if c} - {"reward"}


def _terms(row: Row) -> set[str]:
    """The same, of all that is documented or found."""
    found = [finding.objective for finding in row.findings or ()]
    return set[str]().union(*map(_terms_of, (*found, *row.case.documented)))


def _unit(row: Row) -> float:
    """The largest coefficient documented beside the reward's, or found where none is."""
    found = [finding.objective for finding in row.findings or ()]
    sizes = ([abs(o.terms[name]) for o in pair if o for name in _terms_of(o)] for pair in (row.case.documented, found))
    return next(max(size) for size in sizes if size)


def _signed(objective: Objective | None, name: str) -> float:
    """A term's coefficient in J, gains positive."""
    return 0.0 if objective is None else objective.terms[name] * (1 if name in GAINS else -1)
