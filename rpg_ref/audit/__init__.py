"""Ground truth for any loss: exact objectives by enumeration, and the objective that a loss is found to optimise."""

from rpg_ref.audit.assertion import assert_gradient
from rpg_ref.audit.batch import BatchReport, audit_batch
from rpg_ref.audit.identify import Finding, Report, identify
from rpg_ref.audit.model import identify_model
from rpg_ref.audit.prefix_lm import ModelBatch, PrefixTreeLM
from rpg_ref.audit.sampler import EngineReport, SamplerReport, audit_sampler, identify_sampler
from rpg_ref.audit.update import Split, UpdateReport, identify_update
from rpg_ref.objective import TERMS, Objective

__all__ = [
    "TERMS",
    "BatchReport",
    "EngineReport",
    "Finding",
    "ModelBatch",
    "Objective",
    "PrefixTreeLM",
    "Report",
    "SamplerReport",
    "Split",
    "UpdateReport",
    "assert_gradient",
    "audit_batch",
    "audit_sampler",
    "identify",
    "identify_model",
    "identify_sampler",
    "identify_update",
]
