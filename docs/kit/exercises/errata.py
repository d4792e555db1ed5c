"""Mend Algorithm 1 as printed with one call."""

from collections.abc import Callable
from typing import Any

from rpg_ref.audit import Objective, identify
from rpg_ref.audit.run import same_objective

WANTED = Objective({"reward": 1.0, "forward_kl": 0.1})


def check(loss: Callable[..., Any]) -> str | None:
    """Return None where the loss has the gradient of E[R] − 0.1·KL(π_ref‖π_θ) in both regimes."""
    report = identify(loss)
    for finding, regime in ((report.on_policy, "on-policy"), (report.off_policy, "off-policy")):
        if not same_objective(finding.objective, WANTED):
            return f"{regime} it is {finding.verdict}"
    return None
