"""Small checkpoints for the tests of train.saving: snapshots that tell their step, and folders with two of them."""

import math
import os
import tempfile
from pathlib import Path

import pytest
import torch

from train.saving.checkpoint import Snapshot, save


def content(step, size=16):
    """A snapshot that tells its step by every part."""
    draw = torch.Generator().manual_seed(step)
    tensors = {
        "model": {"weight": torch.randn(size, generator=draw), "bias": torch.tensor(float(step))},
        "optimizer": {"0.exp_avg": torch.randn(size, generator=draw).bfloat16()},
    }
    return Snapshot(step, tensors, {"counter": step, "average": step / 7, "groups": [[step, "a"], math.inf]})


def refuse(sentence):
    raise AssertionError(sentence)


def same_bits(a, b):
    def raw(x):
        return x.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).tolist()

    return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)


def assert_same(found, expected):
    assert found.step == expected.step and repr(found.state) == repr(expected.state)
    assert list(found.tensors) == list(expected.tensors)
    for file, tensors in expected.tensors.items():
        assert found.tensors[file].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert same_bits(found.tensors[file][name], tensor), (file, name)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def two(folder, size=16):
    """Save checkpoints of steps 1 and 2 into a folder; return the folder."""
    for step in (1, 2):
        save(folder, content(step, size))
    return folder


def flip(path, at=-1, bit=0):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


@pytest.fixture
def tmp_path(tmp_path):
    """In memory where that is possible: a disk takes a while over each of thousands of fsyncs."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)
