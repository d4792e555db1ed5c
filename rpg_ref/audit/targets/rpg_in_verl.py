"""Every recipe among verl's policy losses, as ``rpg_ref.integrations.verl`` puts it there."""

from importlib import import_module
from typing import Any

from rpg_ref.audit.targets import Case
from rpg_ref.audit.targets.recipes import anchored_at_old
from rpg_ref.audit.targets.verl import CORRECTION, subject
from rpg_ref.objective import Objective
from rpg_ref.recipe import Recipe
from rpg_ref.recipes import RECIPES

DISTRIBUTION = "verl"
KNOWN = "0.9.1"
ENVIRONMENT = "verl"

_MODULE = "rpg_ref.integrations.verl"
# The sampler is an engine, and π_old is where π_θ stands: a KL to π_old has no gradient there, if its weight is right.
_CORRECTIONS = (("rpg-fkl", "token"), ("rpg-rkl", "token"), ("rpg-fkl-prefix", "sequence"), ("gspo", "sequence"))


def cases() -> list[Case]:
    """Return every recipe, anchored at π_old as verl's policy losses are, and some under the sampler's correction.

    Returns:
        Cases whose subjects are losses for ``identify``.

    Raises:
        ModuleNotFoundError: verl, or something that it imports, is not installed.

    Source: ours.
    """
    # As verl itself does with actor_rollout_ref.model.external_lib.
    import_module("verl.utils.import_utils").import_external_libs(_MODULE)
    return [
        *map(_case, RECIPES.values()),
        *(_case(RECIPES[name], {CORRECTION + "rollout_is": how}) for name, how in _CORRECTIONS),
    ]


def _case(row: Recipe, correction: dict[str, Any] | None = None) -> Case:
    integration = import_module(_MODULE)
    settings = {"policy_loss.loss_mode": integration.loss_mode(row), "loss_agg_mode": integration.aggregation(row)}
    on, off = (anchored_at_old(objective) for objective in (row.on_policy, row.off_policy))
    if on is None and row.on_policy is not None:  # a divergence from π_old without a name: on-policy it has no gradient
        on = Objective({"reward": 1.0}, row.measured_at)
    if correction:
        on = off = Objective({"reward": 1.0}, row.measured_at)
    option = " ".join(f"{key}={value}" for key, value in (settings | (correction or {})).items())
    return Case(option, (on, off), subject(settings | (correction or {})), row.measured_at)
