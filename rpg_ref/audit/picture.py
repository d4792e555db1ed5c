"""The picture of an audit: bars of the coefficients found, ticks where the documented ones are."""

from collections.abc import Sequence
from pathlib import Path

from rpg_ref.audit.objective import GAINS, TERMS, Objective
from rpg_ref.audit.run import Row

_REGIMES = ("on-policy", "off-policy")


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
    from matplotlib import colormaps, lines, patches, pyplot

    drawn = [row for row in rows if row.findings is not None and _terms(row)]
    if not drawn:
        return
    names = [name for name in TERMS if any(name in _terms(row) for row in drawn)]
    colours = dict(zip(TERMS, map(colormaps["tab10"], range(10)), strict=False))
    thick = 0.8 / len(names)
    figure, panels = pyplot.subplots(
        1, 2, sharex=True, sharey=True, figsize=(12, 1.6 + 0.42 * len(drawn)), layout="constrained"
    )
    for regime, (panel, title) in enumerate(zip(panels, _REGIMES, strict=True)):
        for y, row in enumerate(drawn):
            assert row.findings is not None
            found, documented = row.findings[regime].objective, row.case.documented[regime]
            for place, name in enumerate(names):
                at = y + (place - (len(names) - 1) / 2) * thick
                if found is not None:
                    panel.barh(at, _signed(found, name), thick, color=colours[name], label=name if y == 0 else None)
                if documented is not None and documented.terms.get(name):
                    panel.plot([_signed(documented, name)] * 2, [at - thick / 2, at + thick / 2], color="black", lw=2)
            if found is None:
                panel.text(0, y, " no known objective", va="center", fontsize=8, style="italic", color="firebrick")
        panel.axvline(0, color="black", lw=0.5)
        panel.set_title(f"{title}, coefficient in J beside E[R]", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(drawn)), [row.case.option for row in drawn], fontsize=8)
    panels[0].invert_yaxis()
    handles = [patches.Rectangle((0, 0), 1, 1, color=colours[name]) for name in names]
    ticks = lines.Line2D([], [], color="black", lw=2)
    figure.legend(
        [*handles, ticks],
        [*(TERMS[name] for name in names), "documented"],
        loc="outside lower center",
        ncols=len(names) + 1,
        frameon=False,
        fontsize=9,
    )
    figure.suptitle(library)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _terms(row: Row) -> set[str]:
    """Names of the terms beside the reward, documented or found."""
    findings = [finding.objective for finding in row.findings or ()]
    return {name for objective in (*findings, *row.case.documented) if objective for name in objective.terms} - {
        "reward"
    }


def _signed(objective: Objective, name: str) -> float:
    return objective.terms.get(name, 0.0) * (1 if name in GAINS else -1)
