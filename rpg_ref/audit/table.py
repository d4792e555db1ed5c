"""What an audit found: as text, as Markdown, as JSON, and where it differs from what was published."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rpg_ref.audit.identify import Finding
from rpg_ref.audit.picture import draw
from rpg_ref.audit.run import Row, same_objective
from rpg_ref.objective import Objective


def describe(finding: Finding) -> str:
    """Return a finding in a table's cell.

    Args:
        finding: the finding.

    Returns:
        The objective, or "none" with what is known.

    Source: ours.
    """
    if finding.objective is not None:
        return str(finding.objective)
    if math.isinf(finding.residual):
        return "not finite"
    return "none" if finding.residual >= finding.no_fit else "undecided"


def _cells(row: Row, numbers: dict[str, int]) -> tuple[str, ...]:
    documented = [str(objective) if objective else "none" for objective in row.case.documented]
    stated = documented[0] if documented[0] == documented[1] else "; off-policy ".join(documented)
    found, residual = ["error", "error"], ""
    if row.findings is not None:
        marks = ("✓" if right else "✗" for right in row.as_documented)
        found = [f"{describe(finding)} {mark}" for finding, mark in zip(row.findings, marks, strict=True)]
        residual = " / ".join(f"{finding.residual:.0e}" for finding in row.findings)
    notes = " ".join(map(str, sorted(numbers.setdefault(note, len(numbers) + 1) for note in row.notes)))
    return row.case.option, stated, *found, residual, notes


_HEADER = ("option", "documented", "found on-policy", "found off-policy", "residual", "notes")


def summary(library: str, rows: Sequence[Row]) -> str:
    """Return one sentence on a target.

    Args:
        library: its name and version.
        rows: its rows.

    Returns:
        The sentence.

    Source: ours.
    """
    both = sum(all(row.as_documented) for row in rows)
    first = sum(row.as_documented[0] for row in rows)
    return f"{library}: of {len(rows)} settings {first} are as documented on-policy, {both} in both regimes."


def text_table(library: str, rows: Sequence[Row]) -> str:
    """Return the table as plain text, its notes numbered below.

    Args:
        library: its name and version.
        rows: its rows.

    Returns:
        Text.

    Source: ours.
    """
    numbers: dict[str, int] = {}
    cells = [_HEADER, *(_cells(row, numbers) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    return "\n".join([summary(library, rows), "", *lines, "", *(f"{n}  {note}" for note, n in numbers.items())])


def markdown_table(library: str, rows: Sequence[Row]) -> str:
    """Return the table as Markdown, its notes numbered below.

    Args:
        library: its name and version.
        rows: its rows.

    Returns:
        Markdown.

    Source: ours.
    """
    numbers: dict[str, int] = {}
    cells = [_HEADER, ("---",) * len(_HEADER), *(_cells(row, numbers) for row in rows)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells]
    return "\n".join([summary(library, rows), "", *lines, "", *(f"{n}. {note}" for note, n in numbers.items())])


def record(library: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Return everything that was found, ready for JSON.

    Args:
        library: its name and version.
        rows: its rows.

    Returns:
        A dict of plain values; what is not finite is None.

    Source: ours.
    """
    return {"library": library, "cases": [_record(row) for row in rows]}


def _record(row: Row) -> dict[str, Any]:
    regimes = dict(zip(("on_policy", "off_policy"), row.findings or (None, None), strict=True))
    documented = dict(zip(regimes, row.case.documented, strict=True))
    return {
        "option": row.case.option,
        "level": row.case.level,
        "documented": {name: objective and dict(objective.terms) for name, objective in documented.items()},
        "found": {name: finding and _finding(finding) for name, finding in regimes.items()},
        "as_documented": dict(zip(regimes, row.as_documented, strict=True)),
        "notes": list(row.notes),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    objective = finding.objective
    numbers = {name: getattr(finding, name) for name in ("residual", "scale", "condition", "spread")}
    return {
        "objective": objective and {name: float(f"{c:.6g}") for name, c in objective.terms.items()},
        **{name: float(f"{x:.2g}") if math.isfinite(x) else None for name, x in numbers.items()},
        "unidentified": list(finding.unidentified),
    }


def changes(published: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return where a published table and a new one differ in an objective, found or documented.

    Args:
        published: an earlier ``record``.
        found: the new one.

    Returns:
        A sentence each; none where they agree.

    Source: ours.
    """
    before, after = ({case["option"]: case for case in table["cases"]} for table in (published, found))
    lines = [f"{option} is not published" for option in after.keys() - before.keys()]
    lines += [f"{option} is gone" for option in before.keys() - after.keys()]
    for option in before.keys() & after.keys():
        for regime in before[option]["found"]:
            where = f"{option}, {regime.replace('_', '-')}"
            old, new = (_objective(table[option]["found"][regime]) for table in (before, after))
            if not same_objective(old, new):
                lines.append(f"{where}: {old or 'none'} is published, {new or 'none'} found")
            old, new = (table[option]["documented"][regime] for table in (before, after))
            if not same_objective(old and Objective(old), new and Objective(new)):
                lines.append(f"{where}: {old or 'none'} is published as documented, now {new or 'none'}")
    return sorted(lines)


def _objective(finding: dict[str, Any] | None) -> Objective | None:
    terms = finding and finding["objective"]
    return None if terms is None else Objective(terms)


def write(library: str, rows: Sequence[Row], folder: Path, name: str) -> Iterable[Path]:
    """Write Markdown, JSON and the picture.

    Args:
        library: its name and version.
        rows: its rows.
        folder: where; made if missing.
        name: of the files.

    Returns:
        The paths written.

    Source: ours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    markdown, table, picture = (folder / f"{name}.{suffix}" for suffix in ("md", "json", "png"))
    markdown.write_text(markdown_table(library, rows) + "\n", encoding="utf-8")
    table.write_text(json.dumps(record(library, rows), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(library, rows, picture)
    return [markdown, table, *([picture] if picture.exists() else [])]
