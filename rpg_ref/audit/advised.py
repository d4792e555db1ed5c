"""A sentence that the audit says, with its severity, its reason and its remedy."""

SEVERITIES = ("error", "warning", "note")
"""An error is wrong for every batch, a warning for some or unless it is meant; a note only tells."""


class Advised(str):
    """A sentence with advice.

    Attributes:
        severity: "error", "warning" or "note".
        why: one sentence on why it matters.
        fix: one sentence on what to do, with the line to write.

    Source: ours.
    """

    severity: str
    why: str
    fix: str

    def __new__(cls, sentence: str, severity: str = "note", why: str = "", fix: str = "") -> "Advised":
        """Attach the advice to the sentence."""
        self = super().__new__(cls, sentence)
        self.severity, self.why, self.fix = severity, why, fix
        return self

    def __getnewargs__(self) -> tuple[str, str, str, str]:  # type: ignore[override]
        """Say how to make a copy."""
        return str(self), self.severity, self.why, self.fix


def advice_lines(remarks: tuple[Advised, ...]) -> list[str]:
    """Return the remarks as text, the worst first.

    Args:
        remarks: what was found.

    Returns:
        A line for each sentence, and one each for why it matters and for what to do.

    Source: ours.
    """
    lines = []
    for remark in sorted(remarks, key=lambda remark: SEVERITIES.index(remark.severity)):
        lines.append(f"- {remark.severity}: {remark}")
        lines += [f"    {what}: {text}" for what, text in (("why", remark.why), ("fix", remark.fix)) if text]
    return lines


def advice_records(remarks: tuple[Advised, ...]) -> list[dict[str, str]]:
    """Return the remarks as plain values.

    Args:
        remarks: what was found.

    Returns:
        ``sentence``, ``severity``, ``why`` and ``fix`` of each.

    Source: ours.
    """
    return [{"sentence": str(x), "severity": x.severity, "why": x.why, "fix": x.fix} for x in remarks]
