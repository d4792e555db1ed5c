"""The objective that a loss is found to follow, without the probes of `identify`: where only that is asserted."""

from functools import partial

from rpg_ref.audit.identify import Report, descent, find
from rpg_ref.audit.population import Loss, as_loss, population


def fit(loss_fn: Loss, *, level: str = "token", seed: int = 0) -> Report:
    """As `identify`, but ``faults`` is empty and ``hazards`` holds only what the fit itself says."""
    batch = population(seed)
    return find(partial(descent, as_loss(loss_fn), batch), batch, level)
