"""A run's state as tensors and JSON, and back: what a checkpoint holds."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rpg_ref import ReferenceState
from train.config import Config
from train.evaluate import Accuracy
from train.policy_gradient import State
from train.preset import dump
from train.saving.checkpoint import Snapshot, optimizer_tensors, restore_optimizer


def snapshot(state: State, config: Config, problems: str, before: Accuracy) -> Snapshot:
    """Return all that the run needs to go on bit for bit; every random number is derived from the seed and the step.

    Args:
        state: between two rollout batches.
        config: the run's.
        problems: their hash.
        before: held-out accuracy after the warm start.

    Returns:
        The snapshot.
    """
    moments, settings = optimizer_tensors(state.optimizer.rule)
    tensors: dict[str, dict[str, Tensor]] = {"model": _weights(state.model), "optimizer": moments}
    if state.reference is not None:
        tensors["reference"] = _weights(state.reference)
    kept: dict[str, Any] = {name: getattr(state, name) for name in _COUNTERS}
    drift = {"steps": state.drift.steps, "average": state.drift.average}
    more = {"drift": drift, "optimizer": settings, "config": dump(config), "problems": problems, "before": list(before)}
    return Snapshot(state.step, tensors, kept | more)


def restore(state: State, found: Snapshot) -> None:
    """Put a snapshot back into a state that was just begun with the same configuration."""
    _fill(state.model, found.tensors["model"])
    if state.reference is not None:
        _fill(state.reference, found.tensors["reference"])
    restore_optimizer(state.optimizer.rule, found.tensors["optimizer"], found.state["optimizer"])
    for name in _COUNTERS:
        setattr(state, name, found.state[name])
    state.drift = ReferenceState(**found.state["drift"])


_COUNTERS = ("step", "dealt", "taken", "skipped_in_a_row")


def _weights(model: Any) -> dict[str, Tensor]:
    """Parameters by name; tied ones stand once."""
    return {name: weight.detach() for name, weight in model.named_parameters()}


def _fill(model: Any, weights: Mapping[str, Tensor]) -> None:
    for name, weight in model.named_parameters():
        weight.data.copy_(weights[name])
