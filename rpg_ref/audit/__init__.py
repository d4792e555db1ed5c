"""Ground truth for any loss: exact objectives by enumeration, and the objective that a loss is found to optimise."""

from rpg_ref.audit.identify import Finding, Report, identify
from rpg_ref.audit.objective import TERMS, Objective

__all__ = ["TERMS", "Finding", "Objective", "Report", "identify"]
