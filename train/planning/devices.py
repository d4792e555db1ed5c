"""What runs are planned for: the memory and the speed of a device, and what part of its speed a run reaches."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rpg_ref.checks import Table

GIB = 2**30
USABLE = 0.92
"""The share of a GPU's memory that tensors get: the rest is CUDA's and NCCL's own (about 2 GiB) and fragments."""


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: as its maker calls it.
        memory: bytes that tensors may take.
        flops: operations a second at most, by precision of the passes, dense.
        bandwidth: bytes a second to and from its memory.
        link: bytes a second that it sends to the others of its machine.
        learning: the share of ``flops`` that passes and their way back reach.
        reading: the share of ``flops`` that passes alone reach.
        drawing: the share of ``bandwidth`` that drawing token by token reaches.
        source: where the numbers are from.
    """

    name: str
    memory: float
    flops: dict[str, float]
    bandwidth: float
    link: float
    learning: float = 0.4
    reading: float = 0.5
    drawing: float = 0.6
    source: str = ""


def _gpu(name: str, gib: float, bf16: float, fp32: float, bandwidth: float, link: float, source: str) -> Device:
    flops = {"bfloat16": bf16 * 1e12, "float32": fp32 * 1e12}
    return Device(name, USABLE * gib * GIB, flops, bandwidth * 1e12, link * 1e9, source=source)


# GiB are those of torch's total_memory; of sparse TFLOP/s half is dense; float32 is without TF32, as torch multiplies
# unless told otherwise; a link is one direction of NVLink, or of PCIe where there is none.
DEVICES = Table(
    "GPU",
    {
        "h100": _gpu("H100", 79.1, 989, 67, 3.35, 450, "NVIDIA H100 data sheet, SXM 80 GB"),
        "h200": _gpu("H200", 139.8, 989, 67, 4.8, 450, "NVIDIA H200 data sheet, SXM 141 GB"),
        "b200": _gpu("B200", 178.3, 2250, 75, 7.7, 900, "NVIDIA HGX B200 data sheet, 180 GB"),
        "a100": _gpu("A100", 79.1, 312, 19.5, 2.04, 300, "NVIDIA A100 data sheet, SXM 80 GB"),
        "a100-40gb": _gpu("A100-40GB", 39.4, 312, 19.5, 1.555, 300, "NVIDIA A100 data sheet, SXM 40 GB"),
        "l40s": _gpu("L40S", 44.4, 362, 91.6, 0.864, 32, "NVIDIA L40S data sheet"),
        "l4": _gpu("L4", 22.0, 121, 30.3, 0.3, 32, "NVIDIA L4 data sheet"),
        "rtx4090": _gpu("RTX4090", 23.6, 165, 82.6, 1.008, 32, "NVIDIA Ada GPU architecture, table of the RTX 4090"),
    },
)
CPU = "cpu"
REACHED = {"float32": 0.6, "bfloat16": 0.4}
"""The share of a measured matrix product's speed that passes reach on a processor: where products are fast, all else
weighs more. From tests/benchmarks/plan.py."""


@dataclass(frozen=True)
class Devices:
    """Equal devices, one a process.

    Attributes:
        number: how many.
        each: one of them.
    """

    number: int
    each: Device

    def __str__(self) -> str:
        """As ``--gpus`` takes it."""
        return f"{self.number}x{self.each.name}"

    @property
    def is_cpu(self) -> bool:
        """Whether they are a processor."""
        return self.each.name == CPU


def devices(words: object, precision: str) -> Devices:
    """Read ``8xH100``, ``H100`` or ``2xcpu``; a cpu is measured on the spot.

    Args:
        words: what ``--gpus`` was given, or None: what is on this machine.
        precision: of the passes.

    Returns:
        The devices.

    Raises:
        ValueError: the words are no number and name, or the name is in no row of the table.
    """
    if words is None:
        words = _here()
    found = re.fullmatch(r"(?:([1-9][0-9]{0,4})x)?([a-z][\w-]*)", str(words), re.IGNORECASE)
    if found is None:
        raise ValueError(f"gpus is {words!r}; write a number and a name, such as 8xH100 or 2xcpu")
    number, name = int(found[1] or 1), found[2].lower()
    return Devices(number, measured(number, precision) if name == CPU else _in_table(name))


def _in_table(name: str) -> Device:
    return Table("GPU", {**DEVICES, CPU: DEVICES["h100"]})[name]


def _here() -> str:
    """Name this machine's GPUs as the table does, by the longest name that theirs holds."""
    if not torch.cuda.is_available():
        return f"1x{CPU}"
    said = torch.cuda.get_device_name(0)
    plain = re.sub(r"[^a-z0-9]", "", said.lower())
    small = "40gb" in plain and "a100" in plain
    known = [name for name in DEVICES if name in plain]
    name = "a100-40gb" if small else max(known, key=len, default=said.replace(" ", "-"))
    return f"{torch.cuda.device_count()}x{name}"


def measured(number: int, precision: str) -> Device:
    """Measure one of so many processes on this machine's processor: a matrix product and a copy, a second in all."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, long = torch.ones(1024, 1024, dtype=dtype), torch.ones(2**26)
    there = torch.empty_like(long)
    products, copies = _rate(lambda: torch.mm(a, a)), _rate(lambda: there.copy_(long))
    bandwidth = 2 * long.nbytes * copies / number
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / number
    return Device(
        name=CPU,
        memory=memory,
        flops={precision: 2 * 1024**3 * products / number},
        bandwidth=bandwidth,
        link=bandwidth / 2,
        learning=REACHED[precision],
        reading=REACHED[precision],
        drawing=0.6,
        source="a matrix product of 1024³ and a copy of 256 MiB, measured just now",
    )


def _rate(do: Callable[[], object], seconds: float = 0.4) -> float:
    """Return how often a second something can be done, at its best of what was tried."""
    do()
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        do()
        best = min(best, time.perf_counter() - start)
    return 1 / best
