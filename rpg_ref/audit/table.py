"""What an audit found: as text, as Markdown, as JSON, and where it differs from what was published."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from rpg_ref.audit.picture import draw
from rpg_ref.audit.present import Record, as_record, finding_record
from rpg_ref.audit.run import Row, same_objective
from rpg_ref.objective import Objective


def summary(table: Record) -> str:
    """Return one sentence on a target.

    Args:
        table: a ``record``.

    Returns:
        The sentence.

    Source: ours.
    """
    right = [case["as_documented"] for case in table["cases"]]
    first, both = sum(case["on_policy"] for case in right), sum(all(case.values()) for case in right)
    return f"{table['library']}: of {len(right)} settings {first} are as documented on-policy, {both} in both regimes."


def text_table(table: Record) -> str:
    """Return a table as plain text, its notes numbered below.

    Args:
        table: a ``record``.

    Returns:
        Text.

    Source: ours.
    """
    cells, notes = _cells(table)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    return "\n".join([summary(table), "", *lines, "", *(f"{n}  {note}" for note, n in notes.items())])


def markdown_table(table: Record) -> str:
    """Return a table as Markdown, its notes numbered below.

    Args:
        table: a ``record``.

    Returns:
        Markdown.

    Source: ours.
    """
    (header, *cells), notes = _cells(table)
    rows = [header, ("---",) * len(header), *cells]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([summary(table), "", *lines, "", *(f"{n}. {note}" for note, n in notes.items())])


_HEADER = ("option", "documented", "found on-policy", "found off-policy", "residual", "notes")


def _cells(table: Record) -> tuple[list[tuple[str, ...]], dict[str, int]]:
    """Return the header and the rows, and the number of each note."""
    numbers: dict[str, int] = {}
    rows: list[tuple[str, ...]] = []
    for case in table["cases"]:
        regimes, right = case["found"].values(), case["as_documented"].values()
        documented = [str(_objective(terms, case) or "none") for terms in case["documented"].values()]
        stated = documented[0] if documented[0] == documented[1] else "; off-policy ".join(documented)
        found = [_found(case, finding, as_documented) for finding, as_documented in zip(regimes, right, strict=True)]
        residual = " / ".join(_residual(finding) for finding in regimes if finding)
        notes = " ".join(map(str, sorted(numbers.setdefault(note, len(numbers) + 1) for note in case["notes"])))
        rows.append((case["option"], stated, *found, residual, notes))
    return [_HEADER, *rows], numbers


def _found(case: Record, finding: Record | None, as_documented: bool) -> str:
    if finding is None:
        return "error"
    objective = _objective(finding["objective"], case)
    nothing = "undecided" if finding.get("undecided") else "not finite" if finding["residual"] is None else "none"
    return f"{objective or nothing} {'✓' if as_documented else '✗'}"


def _residual(finding: Record) -> str:
    return "inf" if finding["residual"] is None else f"{finding['residual']:.0e}"


def _objective(terms: dict[str, float] | None, case: Record) -> Objective | None:
    return None if terms is None else Objective(terms, case["level"])


def record(library: str, rows: Sequence[Row]) -> Record:
    """Return everything that was found, ready for JSON; the tables are made from this alone.

    Args:
        library: its name and version.
        rows: its rows.

    Returns:
        A dict of plain values; a number that is not finite is None.

    Source: ours.
    """
    return {"library": library, "cases": [_record(row) for row in rows]}


def _record(row: Row) -> Record:
    regimes = dict(zip(("on_policy", "off_policy"), row.findings or (None, None), strict=True))
    documented = dict(zip(regimes, row.case.documented, strict=True))
    return {
        "option": row.case.option,
        "level": row.case.level,
        "documented": {name: objective and dict(objective.terms) for name, objective in documented.items()},
        "found": {name: finding and finding_record(finding) for name, finding in regimes.items()},
        "as_documented": dict(zip(regimes, row.as_documented, strict=True)),
        "notes": list(map(str, row.notes)),
        **({} if row.report is None else {"report": as_record(row.report)}),
    }


def changes(published: Record, found: Record) -> list[str]:
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
        cases = before[option], after[option]
        for regime in before[option]["found"]:
            where = f"{option}, {regime.replace('_', '-')}"
            old, new = (_objective((case["found"][regime] or {}).get("objective"), case) for case in cases)
            if not same_objective(old, new):
                lines.append(f"{where}: {old or 'none'} is published, {new or 'none'} found")
            old, new = (_objective(case["documented"][regime], case) for case in cases)
            if not same_objective(old, new):
                lines.append(f"{where}: {old or 'none'} is published as documented, now {new or 'none'}")
    return sorted(lines)


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
    found = record(library, rows)
    markdown.write_text(markdown_table(found) + "\n", encoding="utf-8")
    table.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(library, rows, picture)
    return [markdown, table, *([picture] if picture.exists() else [])]
