"""The model in Hugging Face format: the whole folder, or none."""

import copy
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from train.saving.checkpoint import CheckpointError
from train.saving.durable import discard, hidden, reason, sync


class Part(Protocol):
    """A model or a tokenizer."""

    def save_pretrained(self, save_directory: Path) -> object:
        """Write it into a folder."""


class Weights(NamedTuple):
    """A model's weights, as one process has them.

    Attributes:
        model: says what the model is like; its own weights may be sharded.
        tensors: the weights.
        dtype: to write them in.
    """

    model: PreTrainedModel
    tensors: Mapping[str, Tensor]
    dtype: torch.dtype

    def save_pretrained(self, save_directory: Path) -> None:
        """Write them, and a config that names their dtype."""
        rounded = {name: x.to(self.dtype) if x.is_floating_point() else x for name, x in self.tensors.items()}
        self.model.save_pretrained(save_directory, state_dict=rounded)
        config = copy.deepcopy(self.model.config)
        config.dtype = self.dtype
        config.save_pretrained(save_directory)


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
