"""Liger-Kernel: the chunked GRPO loss; its hidden states are the exact policy's logits, its head the identity."""

from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from rpg_ref.audit.targets import Case
from rpg_ref.objective import Objective

DISTRIBUTION = "liger-kernel"
KNOWN = "0.8.5"
ENVIRONMENT = "trl"

Settings = dict[str, Any]

_PLAIN: Settings = {"beta": 0.04, "use_bias_correction_kl": False}
_CORRECTED: Settings = {"beta": 0.04, "use_bias_correction_kl": True}
_GSPO: Settings = {"loss_type": "grpo", "importance_sampling_level": "sequence"}

_ROWS: tuple[Settings, ...] = (
    *(
        {"loss_type": name, "beta": 0.0}
        for name in ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")
    ),
    {"loss_type": "cispo", "epsilon_high": 5.0, "beta": 0.0},
    {"delta": 4.0, "beta": 0.0},
    {**_GSPO, "beta": 0.0},
    _PLAIN,
    _CORRECTED,
    *({"loss_type": name, **_CORRECTED} for name in ("grpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")),
    {"loss_type": "cispo", "epsilon_high": 5.0, **_CORRECTED},
    {**_GSPO, **_PLAIN},
    {**_GSPO, **_CORRECTED},
)
# Off-policy these follow a gradient of their own, and their papers say so.
_OWN_SURROGATE = {"sapo", "vespo", "sequence"}


def cases() -> list[Case]:
    """Return every setting of the loss that is audited.

    Returns:
        Cases whose subjects are steps for ``identify_model``.

    Raises:
        ModuleNotFoundError: liger-kernel, or a package that it needs, is not installed.

    Source: ours; the loss's documentation calls its penalty an approximation of KL(π_θ‖π_ref).
    """
    import_module("liger_kernel")
    return [_case(row) for row in _ROWS]


def _case(settings: Settings) -> Case:
    level = settings.get("importance_sampling_level", "token")
    terms = {"reward": 1.0, "reverse_kl": settings["beta"]}
    objective = Objective({term: c for term, c in terms.items() if c}, level)
    documented = (objective, None) if _OWN_SURROGATE & set(settings.values()) else (objective, objective)
    option = " ".join(["GRPO", *(f"{key}={value}" for key, value in settings.items())])
    return Case(option, documented, partial(_step, settings), level, whole_model=True)


def _step(settings: Settings, model: Any, batch: Any) -> Tensor:
    rows, width = batch.completion_ids.shape
    loss_fn = import_module("liger_kernel.chunked_loss").LigerFusedLinearGRPOLoss(
        compiled=False,
        chunk_size=max(1, rows // 4),
        max_completion_length=width,
        temperature=batch.temperature,
        **settings,
    )
    out = model(batch.input_ids, attention_mask=batch.attention_mask, logits_to_keep=width + 1)
    loss, _ = loss_fn(
        out.logits[:, :-1],
        torch.eye(model.config.vocab_size, device=model.device, dtype=model.dtype),
        batch.completion_ids,
        batch.completion_mask,
        batch.advantages,
        old_per_token_logps=batch.logp_old,
        ref_per_token_logps=batch.logp_ref,
    )
    result: Tensor = loss
    return result
