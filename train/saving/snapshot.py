"""A run's state as tensors and JSON, and back: what a checkpoint holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rpg_ref import ReferenceState
from train import ranks
from train.config import Config
from train.evaluate import Accuracy
from train.policy import Policy, parameters, placed, whole
from train.policy_gradient import State
from train.preset import dump
from train.saving.checkpoint import Snapshot, optimizer_tensors, restore_optimizer


def snapshot(state: State, config: Config, problems: str, before: Accuracy) -> Snapshot:
    """Return all that the run needs to go on bit for bit; every random number is derived from the seed and the step.

    Every rank must ask; the first holds the tensors, as they would be in one process, the others none.

    Args:
        state: between two rollout batches.
        config: the run's.
        problems: their hash.
        before: held-out accuracy after the warm start.

    Returns:
        The snapshot.
    """
    moments, settings = optimizer_tensors(state.optimizer.rule)
    tensors = {"model": weights(state.model), "optimizer": _collected(moments)}
    if state.reference is not None:
        tensors["reference"] = weights(state.reference)
    kept: dict[str, Any] = {name: getattr(state, name) for name in _COUNTERS}
    drift = {"steps": state.drift.steps, "average": state.drift.average}
    more = {"drift": drift, "optimizer": settings, "config": dump(config), "problems": problems, "before": list(before)}
    return Snapshot(state.step, tensors, kept | more)


def shared(found: Snapshot | None) -> Snapshot | None:
    """Tell the other ranks of what the first has read: all of it but what is in the tensors."""
    if ranks.size() == 1:
        return found
    outline = None
    if found is not None:
        empty = {of: {name: x.to("meta") for name, x in tensors.items()} for of, tensors in found.tensors.items()}
        outline = Snapshot(found.step, empty, found.state)
    outline = ranks.gather(outline)[0]
    return found if ranks.is_first() else outline


def refuse_incomplete(state: State, found: Snapshot) -> None:
    """Refuse a checkpoint that lacks a part of a run's state, though its hashes are right.

    Raises:
        ValueError: it does.
    """
    kept = {*found.state, *(f"{of}/{name}" for of, tensors in found.tensors.items() for name in tensors)}
    models = {"model": state.model} | ({} if state.reference is None else {"reference": state.reference})
    wanted = {f"{of}/{name}" for of, policy in models.items() for name, _ in policy.model.named_parameters()}
    lacking = sorted((wanted | {*_COUNTERS, *_SETTINGS}) - kept)
    if lacking:
        raise ValueError(
            f"the checkpoint of step {found.step} is damaged, it lacks {', '.join(lacking[:3])}; remove its folder and "
            "resume from the one before it"
        )


def restore(state: State, found: Snapshot) -> None:
    """Put a snapshot back into a state that was just begun with the same configuration; every rank must ask."""
    _fill(state.model, found.tensors["model"])
    if state.reference is not None:
        _fill(state.reference, found.tensors["reference"])
    moments = found.tensors["optimizer"]
    moments = {name: placed(x, _whose(name, x, state.optimizer.parameters)) for name, x in moments.items()}
    restore_optimizer(state.optimizer.rule, moments, found.state["optimizer"])
    for name in _COUNTERS:
        setattr(state, name, found.state[name])
    state.drift = ReferenceState(**found.state["drift"])


_COUNTERS = ("step", "dealt", "taken", "skipped_in_a_row")
_SETTINGS = ("drift", "optimizer", "config", "problems", "before")


def weights(policy: Policy) -> dict[str, Tensor]:
    """Return parameters by name, tied ones once, and what else its file holds; on ranks but the first nothing."""
    kept = policy.model.state_dict().keys()
    buffers = {name: x for name, x in policy.model.named_buffers() if name in kept}
    return _collected(parameters(policy) | buffers)


def _collected(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, x in tensors.items():
        x = whole(x.detach())
        if ranks.is_first():
            found[name] = x.cpu()
    return found


def _fill(policy: Policy, kept: Mapping[str, Tensor]) -> None:
    for name, weight in parameters(policy).items():
        weight.data.copy_(placed(kept[name], weight))


def _whose(name: str, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return the parameter that an optimiser's tensor is one number for each entry of, or else the tensor."""
    kind, index, _ = name.split(".", 2)
    parameter = parameters[int(index)] if kind == "state" else x
    return parameter if parameter.shape == x.shape else x
