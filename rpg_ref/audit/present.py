"""A report as text, as Markdown and as plain values: each finding with its severity, its reason and its remedy."""

import math
from typing import Any

from rpg_ref.audit.advised import SEVERITIES
from rpg_ref.audit.identify import Finding, Report

Record = dict[str, Any]
"""Plain values, as a JSON file holds them."""

FORMAT = 1
"""Of a report's record; it rises when a field changes its meaning or goes."""


def finding_record(finding: Finding) -> Record:
    """Return what was found in one regime, ready for JSON.

    Args:
        finding: the finding.

    Returns:
        A dict of plain values; a number that is not finite is None.

    Source: ours.
    """
    objective = finding.objective
    numbers = {name: getattr(finding, name) for name in ("residual", "scale", "condition", "spread")}
    return {
        "objective": objective and {name: float(f"{c:.6g}") for name, c in objective.terms.items()},
        **{name: float(f"{x:.2g}") if math.isfinite(x) else None for name, x in numbers.items()},
        "unidentified": list(finding.unidentified),
        **({"undecided": True} if finding.undecided else {}),
    }


def worst(report: Report) -> str:
    """Return the severity of the worst finding: "error", "warning", "note" or "none".

    Args:
        report: a report.

    Returns:
        The severity.

    Source: ours.
    """
    found = {remark.severity for remark in report.all_remarks}
    return next((severity for severity in SEVERITIES if severity in found), "none")


def reaches(report: Report, severity: str) -> bool:
    """Return whether any finding is as bad as a severity, or worse.

    Args:
        report: a report.
        severity: "error", "warning" or "note".

    Returns:
        True if there is one.

    Raises:
        ValueError: the severity is unknown.

    Source: ours.
    """
    if severity not in SEVERITIES:
        raise ValueError(f"unknown severity {severity!r}; choose one of {', '.join(SEVERITIES)}")
    found = worst(report)
    return found != "none" and SEVERITIES.index(found) <= SEVERITIES.index(severity)


def as_record(report: Report) -> Record:
    """Return a whole report, ready for JSON.

    Args:
        report: a report.

    Returns:
        A dict of plain values: the verdict and the numbers of each regime, the worst severity, what the loss divides
        by, the share of the gradient that is wrong at each distance from π_old, the number of calls, and every remark.

    Source: ours.
    """
    normaliser = report.normaliser
    return {
        "format": FORMAT,
        "level": report.on_policy.level,
        "on_policy": {"verdict": report.on_policy.verdict, **finding_record(report.on_policy)},
        "off_policy": {"verdict": report.off_policy.verdict, **finding_record(report.off_policy)},
        "severity": worst(report),
        "normaliser": normaliser and {"kind": normaliser.kind, "factor": float(f"{normaliser.factor:.6g}")},
        "share_wrong": {f"{at:g}": float(f"{share:.2g}") for at, share in report.share_wrong.items()},
        "calls": dict(report.calls),
        "remarks": [
            {
                "kind": remark.kind,
                "severity": remark.severity,
                "sentence": str(remark),
                "why": remark.why,
                "fix": remark.fix,
            }
            for remark in report.all_remarks
        ],
    }


def as_text(report: Report) -> str:
    """Return a report as text, each finding with its severity, its reason and its remedy.

    Args:
        report: a report.

    Returns:
        Text of several lines; the first one is the verdict.

    Source: ours.
    """
    lines = [str(report).splitlines()[0], *_shares(report)]
    for remark in report.all_remarks:
        lines += ["", f"{remark.severity}: {remark}", f"    Why: {remark.why}", f"    Fix: {remark.fix}"]
    return "\n".join(lines)


def as_markdown(report: Report, title: str = "Audit") -> str:
    """Return a report as Markdown, such as for the summary of a CI run.

    Args:
        report: a report.
        title: of the page.

    Returns:
        Markdown.

    Source: ours.
    """
    verdicts = [f"- **on-policy**: {report.on_policy.verdict}", f"- **off-policy**: {report.off_policy.verdict}"]
    lines = [f"# {title}", "", *verdicts, *(f"- {line}" for line in _shares(report)), ""]
    if not report.all_remarks:
        return "\n".join([*lines, "Nothing else was found."])
    lines += ["| severity | finding | why it matters | what to do |", "| --- | --- | --- | --- |"]
    for remark in report.all_remarks:
        cells = (cell.replace("|", "\\|") for cell in (remark.severity, remark, remark.why, remark.fix))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shares(report: Report) -> list[str]:
    """Return one sentence on how much of the gradient is wrong, if any is."""
    if not report.share_wrong:
        return []
    shares = ", ".join(f"{share:.0%} at {at:g}" for at, share in report.share_wrong.items())
    return [f"Share of the gradient that is not the on-policy objective's, by the largest |log π/π_old|: {shares}."]
