"""Run a command and hold its CPU-seconds to a budget that does not depend on the machine.

    python tests/budget.py make test

A fixed calibration loop runs before and after the command. The command's CPU-seconds divided by the loop's are nearly
the same number on a slow and on a fast machine. Exit status 1 if that ratio is more than twice TARGET, and the
command's own if it fails.
"""

import resource
import subprocess
import sys
import time

import torch

TARGET = 240 / 2.3
"""Two minutes on two cores, 240 CPU-seconds, on a machine whose calibration loop takes 2.3 s.

It took 1.2 s on the fastest machine that was measured and 4.1 s on the slowest; 2.3 s is their geometric mean.
"""
TOLERANCE = 2.0


def calibration() -> float:
    """CPU-seconds of a fixed load of the kind that the tests are: small tensors, autograd, and plain Python."""
    torch.set_num_threads(1)
    began = time.process_time()
    x = torch.linspace(-3.0, 3.0, 3000, dtype=torch.float64)
    for _ in range(6000):
        leaf = x.clone().requires_grad_()
        loss = (leaf.exp() * leaf - torch.expm1(leaf)).log1p().sum()
        torch.autograd.grad(loss, leaf)
    table: dict[int, int] = {}
    for k in range(12_000_000):
        table[k % 1009] = table.get(k % 1009, 0) + k
    return time.process_time() - began


def of_children() -> float:
    """CPU-seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(command: list[str]) -> int:
    """Run the command between two calibrations, and print both times."""
    before, earlier = calibration(), of_children()
    began = time.perf_counter()
    status = subprocess.run(command, check=False).returncode
    wall = time.perf_counter() - began
    spent = of_children() - earlier
    loop = (before + calibration()) / 2
    ratio = spent / loop
    print(
        f"{' '.join(command)}: {spent:.0f} CPU-seconds in {wall:.0f} s; the calibration loop: {loop:.2f}; "
        f"ratio {ratio:.1f}, target {TARGET:.1f}, limit {TOLERANCE * TARGET:.1f}",
        flush=True,
    )
    if status == 0 and ratio > TOLERANCE * TARGET:
        print("budget: over the limit; make the slowest tests faster (--durations=30) or mark them full", flush=True)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
