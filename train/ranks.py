"""The processes of a run, one a device: torchrun starts several, and without it there is one.

What is drawn and judged is gathered to all, so that every rank holds the same batch and takes the same decisions; only
passes of the models are divided. What crosses between ranks here lies in the memory of the processor.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from train.peers import Peer, gone, reachable

Item = TypeVar("Item")

GRACE = 5.0
"""Seconds after its own time-out until a start that does not end is ended."""


class Elsewhere(RuntimeError):
    """Something failed on another rank, which says it; this one only ends with it.

    Attributes:
        aloud: whether this rank is to say it too: nobody else on its node does.
    """

    def __init__(self, sentence: str, *, aloud: bool) -> None:
        super().__init__(sentence)
        self.aloud = aloud


@contextmanager
def joined(*, timeout: float, single: bool = False) -> Iterator[None]:
    """Join the processes that torchrun started with this one; without torchrun there is nothing to join.

    Args:
        timeout: seconds that a rank waits for another before it gives up.
        single: whether one process without torchrun is to be a group as well, which sharding wants.

    Raises:
        Elsewhere: another process is gone, or hangs.
        ValueError: torchrun has restarted the processes in a way in which they may not find one another.
    """
    launched = dist.is_torchelastic_launched()
    if not launched and not single:
        yield
        return
    # Each kind of tensor has its backend: what this module sends is on the CPU, what FSDP sends where the model is.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    alone: dict[str, Any] = {} if launched else {"store": HashStore(), "rank": 0, "world_size": 1}
    _refuse_old_store()
    with _losses([], timeout):
        with _at_most(timeout + GRACE, _loss([], timeout)):
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout), **alone)
        with reachable() if launched else nullcontext() as here, _losses(gather(here) if here else [], timeout):
            yield
    # Not after an error: the others may wait in a collective, and would be waited for. vLLM's end may have done it.
    if dist.is_initialized():
        dist.destroy_process_group()


def _refuse_old_store() -> None:
    """Refuse a restart with the store of the processes that are gone: their addresses are still in it."""
    restarts, kept = (os.environ.get(f"TORCHELASTIC_{name}") for name in ("RESTART_COUNT", "USE_AGENT_STORE"))
    if restarts not in (None, "0") and kept == "True":
        raise ValueError(
            "torchrun restarted the processes, but kept the addresses of those that are gone; give it --rdzv-backend "
            "c10d and the variable TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, or leave --max-restarts out"
        )


@contextmanager
def _at_most(seconds: float, sentence: str) -> Iterator[None]:
    """End the process if this takes longer: gloo waits for ever for one that is gone before all are connected."""

    def end() -> None:
        print(f"train: {sentence}", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _losses(peers: Sequence[Peer], timeout: float) -> Iterator[None]:
    """Say who is gone where ranks wait for one another in vain; before they know each other, that they do not."""
    try:
        yield
    except Elsewhere:
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # which raises no kind of its own
            raise
        why = str(error).partition("\n")[0].rpartition(".cc:")[2].partition("] ")[2] or str(error)
        raise Elsewhere(f"{_loss(peers, timeout)} ({why.partition('. ')[0]})", aloud=True) from error


def _loss(peers: Sequence[Peer], timeout: float) -> str:
    if not peers:
        waited = f"not all processes found one another within timeout = {timeout:g} s"
        return f"{waited}; see what each node says, and name the network in GLOO_SOCKET_IFNAME"
    if lost := gone(peers):
        return f"rank {rank()} lost {lost}; `resume` on all nodes goes on from the last checkpoint"
    return f"rank {rank()} waited in vain, but no rank is gone: one hangs, or the network does; or raise timeout"


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
    # cuDNN's attention makes a plan for each new shape, in some 50 ms; shapes are new at every token of a response.
    torch.backends.cuda.enable_cudnn_sdp(False)
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
        raise Elsewhere(f"rank {failed[0]} failed: {said[failed[0]]}", aloud=_is_first_here(failed[0]))
    return found


def _is_first_here(failed: int) -> bool:
    """Say whether this is the first rank of its node, and the failed one is on another."""
    number, here = (int(os.environ.get(name, 0)) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    return number == 0 and not rank() <= failed < rank() + here


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
