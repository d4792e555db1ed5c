"""The command line: ``rpg-ref verify``, ``rpg-ref explain`` and ``rpg-ref audit``."""

import argparse
import json
import math
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from rpg_ref.audit.advised import SEVERITIES
from rpg_ref.audit.curves import WeightCurves, draw_curves, weight_curves
from rpg_ref.audit.denominator import BIAS
from rpg_ref.audit.identify import identify
from rpg_ref.audit.model import identify_model
from rpg_ref.audit.present import as_markdown, as_text, reaches
from rpg_ref.audit.run import Row as Audited
from rpg_ref.audit.run import Unavailable, audit, cases_of, function_at, is_step
from rpg_ref.audit.statements import CHECKED_AGAINST
from rpg_ref.audit.table import changes, markdown_table, record, text_table, write
from rpg_ref.audit.targets import TARGETS, Case
from rpg_ref.audit.verify import Row, check_device, describe, verify
from rpg_ref.checks import check_number
from rpg_ref.ledger import LEDGER, Claim, explain
from rpg_ref.objective import Objective
from rpg_ref.progress import progress
from rpg_ref.recipes import RECIPES

VERIFY_SECONDS, AUDIT_SECONDS, LOAD_SECONDS = 2.0, 3.0, 15.0
"""What a recipe, a case of an audit and the import of a library usually take on two cores."""
HEADER = ("recipe", "declared", "found", "bias", "gradient error", "in float32", "in bfloat16", "checked against", "")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the line and exit with 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> Parser:
    """Return the parser of the command line.

    Returns:
        Its options have the attribute ``command``: verify, explain or audit.

    Source: ours.
    """
    whole = Parser("rpg-ref", description="Check KL-regularised policy gradients against ground truth.")
    commands = whole.add_subparsers(dest="command", required=True)
    check = commands.add_parser("verify", help="hold recipes against the exact oracle, on this machine")
    check.add_argument("recipes", nargs="*", metavar="RECIPE", help="default: all")
    check.add_argument("--device", default="cpu", help="where the recipes run (default: cpu)")
    check.add_argument("--seed", type=int, default=0, help="of the random policies (default: 0)")
    check.add_argument("--json", action="store_true", help="print JSON instead of a table")
    tell = commands.add_parser("explain", help="what is known of a recipe, a divergence or a claim")
    tell.add_argument("names", nargs="*", metavar="NAME", help="default: list all claims")
    look = commands.add_parser("audit", help="which objective a library, or a function of yours, really optimises")
    look.add_argument("target", metavar="TARGET", help=f"{', '.join(TARGETS)}, or PATH:FUNCTION")
    look.add_argument("--checkout", type=Path, metavar="DIR", help="where rpg-paper's code lies")
    look.add_argument("--level", default="token", help="of the terms for PATH:FUNCTION: token or sequence")
    look.add_argument("--seed", type=int, default=0, help="of the random policies (default: 0)")
    look.add_argument("--json", action="store_true", help="print JSON instead of a table")
    look.add_argument(
        "--markdown", action="store_true", help="print Markdown instead of text, such as for a CI summary"
    )
    look.add_argument(
        "--fail-on",
        choices=SEVERITIES,
        metavar="SEVERITY",
        help="exit with 1 for a finding as bad as this: error, warning or note",
    )
    look.add_argument("--out", type=Path, metavar="DIR", help="write Markdown, JSON and a picture there as well")
    look.add_argument("--check", type=Path, metavar="FILE", help="exit with 1 unless the findings are this JSON's")
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status.

    It is 0; 1 for what is not verified, not as published, or as bad as ``--fail-on``; or 2 for bad input, with one line
    on standard error.

    Args:
        arguments: the command's words, by default the process's.

    Returns:
        The exit status.

    Source: ours.
    """
    options = parser().parse_args(arguments)
    try:
        check_number("--seed", getattr(options, "seed", 0), 0.0, 2.0**63, "[)")
        if options.command == "audit":
            return _audit(options)
        if options.command == "explain":
            print("\n\n".join(map(explain, options.names)) if options.names else _index(LEDGER.values()))
            return 0
        chosen = [RECIPES[name] for name in options.recipes or RECIPES]
        device = check_device(options.device)
    except (ValueError, Unavailable) as error:
        print(f"rpg-ref: {error}", file=sys.stderr)
        return 2
    recipes, rows = dict.fromkeys(chosen), []
    with progress("verify", len(recipes), VERIFY_SECONDS) as begin:
        for recipe in recipes:
            begin(recipe.name)
            rows.append(verify(recipe, device=device, seed=options.seed))
    print(json.dumps([_record(row) for row in rows], indent=2) if options.json else _table(rows))
    return 0 if all(row.ok for row in rows) else 1


def _audit(options: argparse.Namespace) -> int:
    """Audit a target, or say what a function is."""
    published, curves = None if options.check is None else _published(options.check), None
    if ":" in options.target:
        function = function_at(options.target)
        run = identify_model if is_step(function) else identify
        with progress("audit", 1, AUDIT_SECONDS) as begin:
            begin(options.target)
            report = run(function, level=options.level, seed=options.seed)
        case = Case(options.target, (report.on_policy.objective, report.off_policy.objective), function, options.level)
        library, rows = options.target, [Audited(case, report)]
        shown = as_markdown(report, options.target) if options.markdown else as_text(report)
        curves = None if is_step(function) else _curves(function)
        if curves is not None:
            head = "\n\n**Importance weights**: " if options.markdown else "\nimportance weights: "
            shown = f"{shown.rstrip()}{head}{curves}"
    else:
        with progress("audit", 1, LOAD_SECONDS) as begin:
            begin(f"loading {options.target}")
            library, cases = cases_of(options.target, options.checkout)
        rows = []
        with progress("audit", len(cases), AUDIT_SECONDS) as begin:
            for case in cases:
                begin(case.option)
                rows.append(audit(case, seed=options.seed))
        shown = (markdown_table if options.markdown else text_table)(record(library, rows))
    print(json.dumps(record(library, rows), indent=1, ensure_ascii=False) if options.json else shown)
    if options.out is not None:
        for path in write(library, rows, options.out, Path(options.target.partition(":")[0]).stem):
            print(f"wrote {path}", file=sys.stderr)
        if isinstance(curves, WeightCurves):
            picture = options.out / f"{Path(options.target.partition(':')[0]).stem}-weights.png"
            draw_curves(curves, picture)
            print(f"wrote {picture}", file=sys.stderr)
    differences = [] if published is None else changes(published, record(library, rows))
    for line in differences:
        print(f"rpg-ref: {line}", file=sys.stderr)
    failed = [row for row in rows if options.fail_on and row.report and reaches(row.report, options.fail_on)]
    return 1 if differences or failed else 0


def _curves(function: Callable[..., Any]) -> WeightCurves | str:
    """The rule of a loss's importance weights, or why it cannot be read."""
    try:
        return weight_curves(function)
    except ValueError as error:
        return f"not read, since {error}"


def _published(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _ = [case["option"] for case in table["cases"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is no table that an audit wrote; write one with --out ({error})") from error
    return table


def _index(claims: Iterable[Claim]) -> str:
    return "\n".join(f"{claim.id:<28}  {claim.source}" for claim in claims)


def _by_regime(objectives: tuple[Objective | None, Objective | None]) -> str:
    on, off = map(describe, objectives)
    return on if on == off else f"{on}; off-policy {off}"


def _table(rows: Sequence[Row]) -> str:
    cells = [HEADER] + [
        (
            row.recipe,
            _by_regime(row.declared),
            "as declared" if row.ok else _by_regime(row.found),
            str(row.bias or ""),
            f"{row.gradient_error:.0e}",
            f"{row.float32_error:.0e}",
            f"{row.bfloat16_error:.0e}",
            row.checked_against,
            "ok" if row.ok else "FAILED",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)
    kinds = "; ".join(
        f"{name}: {CHECKED_AGAINST[name]}"
        for name in CHECKED_AGAINST
        if any(row.checked_against == name for row in rows)
    )
    notes = [BIAS + ".", f"checked against, far off-policy: {kinds}."]
    return "\n".join([*lines, "", *(line for note in notes for line in textwrap.wrap(note, 120))])


def _record(row: Row) -> dict[str, object]:
    regimes = ("on_policy", "off_policy")
    objectives = {
        key: dict(zip(regimes, (None if o is None else dict(o.terms) for o in pair), strict=True))
        for key, pair in (("declared", row.declared), ("found", row.found))
    }
    return {
        "recipe": row.recipe,
        "level": row.level,
        **objectives,
        "residual": dict(zip(regimes, map(_finite, row.residual), strict=True)),
        "spread": row.spread,
        "gradient_error": _finite(row.gradient_error),
        "float32_error": _finite(row.float32_error),
        "bfloat16_error": _finite(row.bfloat16_error),
        "checked_against": row.checked_against,
        "bias": row.bias and {**asdict(row.bias), "own": _finite(row.bias.own), "constant": _finite(row.bias.constant)},
        "ok": row.ok,
    }


def _finite(x: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return x if math.isfinite(x) else None
