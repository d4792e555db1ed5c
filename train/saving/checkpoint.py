"""Checkpoints that are whole or not there: written aside, renamed, and believed as far as their hashes go."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
from torch import Tensor

from train.saving.durable import delete, discard, hidden, make, reason, sync
from train.saving.exact import dumps, loads, optimizer_tensors, pack, restore_optimizer
from train.saving.manifest import (
    PICKLES,
    STATE,
    TENSORS,
    Damage,
    Found,
    is_intact,
    list_folders,
    read_folder,
    write_folder,
)

__all__ = ["CheckpointError", "Snapshot", "load", "optimizer_tensors", "restore_optimizer", "save"]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or its folder cannot be listed."""


@dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on from the end of a step.

    Attributes:
        step: rollout batches done.
        tensors: by file, then by name; they come back on the CPU, contiguous, none sharing memory with another.
        state: plain values, as train.saving.exact.to_json takes them.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


class _Inside(msgspec.Struct, forbid_unknown_fields=True):
    step: int
    tensors: list[str]
    state: dict[str, Any]


def save(folder: Path, snapshot: Snapshot, *, keep: int = 2) -> Path:
    """Write a checkpoint; whenever it is interrupted, what was there is intact, or the new one is.

    A save that was killed leaves a hidden folder, which the next one removes. One process at a time may save, any
    number may load. On top of the snapshot this takes the memory of its largest file, twice if that is on a GPU.

    Args:
        folder: where checkpoints are; made if it is missing.
        snapshot: what to keep; a checkpoint of the same step is replaced.
        keep: how many intact ones stay, this one included; older ones go once this one has been read back.

    Returns:
        The checkpoint: ``folder/step-00000010`` for step 10.

    Raises:
        ValueError: the snapshot holds what cannot be kept, or its step or ``keep`` is out of range.
        CheckpointError: the disk is full or does not take it, or an intact checkpoint of a later step is there.
    """
    if keep < 1 or snapshot.step < 0:
        raise ValueError(f"keep is {keep} and the step {snapshot.step}; keep at least 1, and count steps from 0")
    final = Path(folder) / f"step-{snapshot.step:08d}"
    temporary = hidden(final)
    try:
        make(final.parent)
        for leftover in final.parent.glob(".step-*.tmp"):
            delete(leftover)
        for found in list_folders(final.parent):
            if found.step > snapshot.step and is_intact(found.path, found.step):
                raise CheckpointError(f"{found.path} is later than step {snapshot.step}; resume from it or remove it")
        write_folder(temporary, snapshot.step, _contents(snapshot))
        _publish(temporary, final, snapshot.step)
    except (OSError, Damage) as error:
        needed = sum(tensor.nbytes for tensors in snapshot.tensors.values() for tensor in tensors.values())
        raise CheckpointError(
            f"cannot save {final}: {reason(error)}; at least {needed:,} bytes are needed; {_last(final.parent)}; "
            "make room or choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    try:
        _prune(final, snapshot.step, keep)
    except OSError as error:
        raise CheckpointError(f"{final} is saved, but older ones cannot be removed: {reason(error)}") from error
    return final


def load(folder: Path, *, warn: Callable[[str], None]) -> Snapshot | None:
    """Read the newest intact checkpoint; another process may be saving.

    Args:
        folder: where checkpoints are.
        warn: called with a sentence for each damaged checkpoint passed over, and for each pickle beside them.

    Returns:
        The snapshot, or None if there is no checkpoint.

    Raises:
        ValueError: there are checkpoints, and all are damaged.
        CheckpointError: the folder cannot be listed.
    """
    folder, before = Path(folder), None
    try:
        # What was replaced or removed while it was read is not damaged, and a name that moves may be listed nowhere.
        while (listed := list_folders(folder)) != before:
            before, snapshot, damaged = listed, None, []
            for found in listed:
                try:
                    snapshot = _read(found)
                    break
                except Damage as damage:
                    damaged.append(f"{found.path} is damaged: {damage}")
            if snapshot and not damaged:
                break
            time.sleep(0.02)
    except OSError as error:
        raise CheckpointError(f"cannot list checkpoints: {reason(error)}; name a folder that can be read") from error
    for sentence in damaged:
        warn(f"{sentence}; it is passed over")
    for path in sorted(folder.glob("*")):
        if path.suffix in PICKLES:
            warn(f"{path} is not read: it may be a pickle, which can run any code; move it away")
    if damaged and snapshot is None:
        raise ValueError(f"no checkpoint in {folder} is intact: {damaged[0]}; start anew in another folder")
    return snapshot


def _contents(snapshot: Snapshot) -> Iterator[tuple[str, bytes]]:
    inside = {"step": snapshot.step, "tensors": list(snapshot.tensors), "state": snapshot.state}
    yield STATE, dumps(inside)
    for name, tensors in snapshot.tensors.items():
        if not TENSORS.fullmatch(f"{name}.safetensors"):
            raise ValueError(f"{name!r} cannot be the name of a file of tensors; use letters, digits, - and _")
        yield f"{name}.safetensors", pack(tensors)


def _read(found: Found) -> Snapshot:
    tensors, inside = {}, None
    for name, data in read_folder(found.path, found.step):
        try:
            if name == STATE:
                inside = msgspec.convert(loads(data), _Inside)
            else:
                tensors[name.removesuffix(".safetensors")] = safetensors.torch.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError, RecursionError) as error:
            raise Damage(f"{name} is as it was written, but cannot be understood: {error}") from error
    if inside is None or inside.step != found.step or sorted(inside.tensors) != sorted(tensors):
        raise Damage(f"{STATE} is of another checkpoint: its step or its tensors' files are not those beside it")
    return Snapshot(inside.step, {name: tensors[name] for name in inside.tensors}, inside.state)


def _publish(temporary: Path, final: Path, step: int) -> None:
    """Put a complete folder in its place and read it back; if that fails, put back what was there."""
    aside = final.with_name(f"{final.name}.old")
    try:
        if os.path.lexists(final):
            discard(aside)
            os.rename(final, aside)  # no folder can be renamed onto another; load knows both names
        os.rename(temporary, final)
        sync(final.parent)
        for _ in read_folder(final, step):
            pass
    except (OSError, Damage):
        with suppress(OSError):
            if not os.path.lexists(temporary):
                os.rename(final, temporary)
            if os.path.lexists(aside) and not os.path.lexists(final):
                os.rename(aside, final)
        raise


def _prune(final: Path, step: int, keep: int) -> None:
    """Remove what is older than the newest ``keep`` intact ones; damaged ones of later steps wait for theirs."""
    kept = {step}
    for found in list_folders(final.parent):
        if found.path == final or found.step > step:
            continue
        if len(kept) < keep and found.step not in kept and is_intact(found.path, found.step):
            kept.add(found.step)
        else:
            discard(found.path)
    sync(final.parent)


def _last(folder: Path) -> str:
    with suppress(OSError):
        for found in list_folders(folder):
            if is_intact(found.path, found.step):
                return f"the last checkpoint, {found.path.name}, is intact"
    return "no intact checkpoint is there"
