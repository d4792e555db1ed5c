"""Every recipe inside TRL's trainer, as ``rpg_ref.integrations.trl`` puts it there."""

from functools import partial
from importlib import import_module
from typing import Any

from rpg_ref.audit.targets import Case
from rpg_ref.audit.targets.recipes import anchored_at_old
from rpg_ref.audit.targets.trl import step
from rpg_ref.recipe import Recipe
from rpg_ref.recipes import RECIPES

DISTRIBUTION = "trl"
KNOWN = "1.16.0"
ENVIRONMENT = "trl"

# A bound that ignores the advantage's sign leaves the gradient linear in the advantages, so that `identify` reads these
# rows beyond their bound off-policy; it reads nearer only where the residual is rounding in double precision, and TRL
# computes in single. The same rows are held in double precision by the audits of rpg_ref and of verl.
_NOT_TOLD = ("tis-sequence", "mis-sequence", "icepop")
# A weight of the whole response is for objectives of responses.
_CORRECTIONS = (
    ("rpg-urkl", "token_truncate"),
    ("rpg-urkl-prefix", "token_truncate"),
    ("rpg-urkl-prefix", "sequence_mask"),
    ("gspo", "token_truncate"),
    ("pmd-mean", "token_truncate"),
)


def cases() -> list[Case]:
    """Return every recipe with TRL's reference model, one with π_ref = π_old, some with the sampler's correction.

    Returns:
        Cases whose subjects are steps for ``identify_model``.

    Raises:
        ModuleNotFoundError: trl, or a package that it needs, is not installed.

    Source: ours.
    """
    import_module("trl")
    return [
        *(_case(row) for name, row in RECIPES.items() if name not in _NOT_TOLD),
        _case(RECIPES["rpg-urkl"], reference="old"),
        *(_case(RECIPES[name], use_vllm=True, vllm_importance_sampling_mode=mode) for name, mode in _CORRECTIONS),
    ]


def _case(row: Recipe, **settings: Any) -> Case:
    settings = {"recipe": row.name, **({"reference": "model"} if row.beta else {}), **settings}
    option = " ".join(f"{key}={value}" for key, value in settings.items())
    on, off = row.on_policy, row.off_policy
    if settings.get("reference") == "old":
        on, off = anchored_at_old(on), anchored_at_old(off)
    if "use_vllm" in settings:
        off = on  # the sampler is an engine, and π_old is where π_θ stands
    return Case(option, (on, off), partial(step, "RPG", settings), row.measured_at, whole_model=True)
