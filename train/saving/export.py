"""The model in Hugging Face format: the whole folder, or none."""

import os
import shutil
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError

from train.saving.checkpoint import CheckpointError
from train.saving.durable import discard, hidden, reason, sync


class Part(Protocol):
    """A model or a tokenizer."""

    def save_pretrained(self, save_directory: Path) -> object:
        """Write it into a folder."""


def export(folder: Path, *parts: Part) -> None:
    """Write a model and its tokenizer; a folder that is there is replaced once the new one is complete.

    Raises:
        CheckpointError: the disk is full or does not take it.
    """
    fresh = hidden(folder.with_name(f"{folder.name}.new"))
    for left in folder.parent.glob(f".{folder.name}.new.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    try:
        for part in parts:
            part.save_pretrained(fresh)
        discard(folder)
        os.rename(fresh, folder)
        sync(folder.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {folder}: {reason(error)}; make room, then resume the run") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
