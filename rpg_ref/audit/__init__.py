"""Ground truth for any loss: exact objectives by enumeration, and the objective that a loss is found to optimise."""

from rpg_ref.audit.assertion import assert_gradient, same_gradient
from rpg_ref.audit.batch import BatchReport, audit_batch
from rpg_ref.audit.curves import Curve, Rule, WeightCurves, draw_curves, weight_curves
from rpg_ref.audit.identify import Finding, Report, identify
from rpg_ref.audit.model import identify_model
from rpg_ref.audit.prefix_lm import ModelBatch, PrefixTreeLM
from rpg_ref.audit.present import as_markdown, as_record, as_text
from rpg_ref.audit.remarks import Remark
from rpg_ref.audit.sampler import EngineReport, SamplerReport, audit_sampler, identify_sampler
from rpg_ref.audit.update import Split, UpdateReport, identify_update
from rpg_ref.objective import TERMS, Objective

__all__ = [
    "TERMS",
    "BatchReport",
    "Curve",
    "EngineReport",
    "Finding",
    "ModelBatch",
    "Objective",
    "PrefixTreeLM",
    "Remark",
    "Report",
    "Rule",
    "SamplerReport",
    "Split",
    "UpdateReport",
    "WeightCurves",
    "as_markdown",
    "as_record",
    "as_text",
    "assert_gradient",
    "audit_batch",
    "audit_sampler",
    "draw_curves",
    "identify",
    "identify_model",
    "identify_sampler",
    "identify_update",
    "same_gradient",
    "weight_curves",
]
