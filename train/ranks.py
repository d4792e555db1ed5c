"""The processes of a run, one a device: torchrun starts several, and without it there is one.

What is drawn and judged is gathered to all, so that every rank holds the same batch and takes the same decisions; only
passes of the models are divided. What crosses between ranks here lies in the memory of the processor.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

Item = TypeVar("Item")


class Elsewhere(RuntimeError):
    """Something failed on another rank, which says it; this one only ends with it."""


@contextmanager
def joined(*, timeout: float, single: bool = False) -> Iterator[None]:
    """Join the processes that torchrun started with this one; without torchrun there is nothing to join.

    Args:
        timeout: seconds that a rank waits for another before it gives up.
        single: whether one process without torchrun is to be a group as well, which sharding wants.
    """
    launched = dist.is_torchelastic_launched()
    if not launched and not single:
        yield
        return
    # Each kind of tensor has its backend: what this module sends is on the CPU, what FSDP sends where the model is.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    alone: dict[str, Any] = {} if launched else {"store": HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout), **alone)
    yield
    # Not after an error: the others may wait in a collective, and would be waited for. vLLM's end may have done it.
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Say whether this is the process that reads, writes and speaks for all."""
    return rank() == 0


def device(name: str) -> torch.device:
    """Return where this rank computes.

    Args:
        name: cpu, cuda, or auto: cuda where there is one.

    Raises:
        ValueError: there is no GPU, or none for this rank.
    """
    if name == "cpu" or name == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    number, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= there:
        raise ValueError(f"device is {name!r}, but process {number} here finds {there} GPUs; start fewer, or pass cpu")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def share(number: int) -> slice:
    """Return which of so many neighbours are this rank's."""
    return slice(rank() * number // size(), (rank() + 1) * number // size())


def gather(item: Item) -> list[Item]:
    """Return every rank's item, in the order of ranks, on every rank."""
    if size() == 1:
        return [item]
    items: list[Item] = [item] * size()
    dist.all_gather_object(items, item)
    return items


def everywhere(do: Callable[[], Item]) -> Item:
    """Do something on every rank; where it fails on one, no rank goes on. It must not wait for other ranks itself.

    Raises:
        Elsewhere: it failed on another rank.
    """
    error = None
    try:
        found = do()
    except Exception as caught:
        error = caught
    try:
        said = gather(None if error is None else f"{type(error).__name__}: {error}")
    except RuntimeError:
        if error is not None:
            raise error from None  # the others are gone or stuck, and this is why
        raise
    failed = [number for number, sentence in enumerate(said) if sentence is not None]
    if error is not None and failed[0] == rank():
        raise error
    if failed:
        raise Elsewhere(f"rank {failed[0]} failed: {said[failed[0]]}")
    return found


def from_first(do: Callable[[], Item]) -> Item:
    """Do something on the first rank; every rank returns what it returned.

    Raises:
        Elsewhere: it failed, and this is not the first rank.
    """
    found = everywhere(do if is_first() else lambda: None)
    return gather(found)[0]  # type: ignore[return-value]


def first(x: Tensor) -> Tensor:
    """Return the first rank's tensor, which lies on the processor; the others' are overwritten."""
    if size() > 1:
        dist.broadcast(x, 0)
    return x


def total(x: Tensor) -> Tensor:
    """Return the sum of all ranks' tensors, on the processor; x itself may be overwritten."""
    x = x.cpu()
    if size() > 1:
        dist.all_reduce(x)
    return x
