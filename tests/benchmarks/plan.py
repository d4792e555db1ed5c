"""A plan beside what happened: memory and time of small runs on this machine's processor, planned and measured.

``make bench-plan`` runs it, in six minutes on two cores. A random
model of 39 million parameters is trained for three rollout batches. The plan is given the mean length that the run had,
which nobody can know before, and the speed of the processor just before and just after the run, in the mean. Memory is
the largest resident set of the process, less that of the same run with a model of next to nothing; glibc is told to
hand back what is freed, which it otherwise keeps for later. ``--small`` trains a small model for one rollout batch: it
shows that plan and run still fit together, and its ratios mean nothing.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from train.planning.devices import Device, Devices
from train.planning.devices import measured as measured_cpu
from train.planning.plan import Plan, of_case, plan_run
from train.preset import load

COMMON = {
    "steps": 3,
    "eval_samples": 1,
    "transcripts": 0,
    "data.test_problems": 8,
    "data.max_prompt_tokens": 8,
    "warm_start.steps": 0,
    "rollout.prompts": 8,
    "rollout.samples": 8,
    "rollout.max_tokens": 96,
    "optimizer.prompts": 2,
}
BIG = {"width": 512, "mlp_width": 2048, "layers": 10, "heads": 8, "key_value_heads": 4}
SMALL = {"steps": 1, "rollout.max_tokens": 8}
SMALL_MODEL = {"width": 64, "mlp_width": 128, "layers": 2, "heads": 4, "key_value_heads": 2}
TINY = {"width": 16, "mlp_width": 16, "layers": 1, "heads": 2, "key_value_heads": 1}
CASES = {
    "float32": {},
    "float32, recompute": {"optimizer.recompute": True},
    "bfloat16, recompute": {"optimizer.recompute": True, "model.precision": "bfloat16"},
}
HAND_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
PHASES = {
    "seconds_draw": ("draw: prefill", "draw: decode"),
    "seconds_old": ("old log-probs",),
    "seconds_learn": ("learn",),
}


def settings(shape: dict[str, int], more: dict[str, object]) -> dict[str, object]:
    """Return what a run changes of cpu_tiny."""
    return COMMON | {f"model.{name}": size for name, size in shape.items()} | more


def measured(shape: dict[str, int], more: dict[str, object], folder: Path) -> tuple[int, list[dict[str, float]]]:
    """Train in a process of its own; return its largest resident set in bytes, and the rows of its metrics."""
    words = [word for key, value in settings(shape, more).items() for word in (f"--{key}", json.dumps(value))]
    command = [sys.executable, "-m", "train", "run", "cpu_tiny", *words, "--run-dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | HAND_BACK)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return used.ru_maxrss * 1024, [row for row in rows if row["phase"] == "policy_gradient"]


def planned(shape: dict[str, int], more: dict[str, object], length: float, before: Device, after: Device) -> Plan:
    """Plan the same run, for a processor whose speed is the mean of two measurements."""
    plan = plan_run(load("cpu_tiny", settings(shape, more)), "cpu", round(length))
    precision = plan.case.config.model.precision
    mean = dataclasses.replace(
        before,
        flops={precision: (before.flops[precision] + after.flops[precision]) / 2},
        bandwidth=(before.bandwidth + after.bandwidth) / 2,
    )
    return of_case(dataclasses.replace(plan.case, devices=Devices(1, mean)))


def line(what: str, expected: float, found: float, unit: str) -> None:
    """Print what was planned beside what was measured, and how many times as much was planned."""
    ratio = expected / found
    print(
        f"  {what:<14} planned {expected:8.2f} {unit:<3} measured {found:8.2f} {unit:<3} ratio {ratio:5.2f}", flush=True
    )


def show(name: str, plan: Plan, peak: int, rows: list[dict[str, float]]) -> None:
    """Print a case."""
    device = plan.case.devices.each
    print(f"{name}: {device.flops[plan.case.config.model.precision] / 1e9:.0f} GFLOP/s")
    line("memory", max(moment.bytes for moment in plan.moments) / 2**20, peak / 2**20, "MiB")
    seconds = {phase.name: phase.seconds for phase in plan.phases}
    for key, names in PHASES.items():
        line(key, sum(seconds[phase] for phase in names), statistics.median(row[key] for row in rows), "s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run each case after the run that its memory is counted from."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"{'; '.join(CASES)} (default: all, or with --small the first)"
    )
    parser.add_argument("--small", action="store_true", help="a small model, one rollout batch")
    choices = parser.parse_args(arguments)
    shape, reduced = (SMALL_MODEL, SMALL) if choices.small else (BIG, {})
    for name in choices.cases or list(CASES)[: 1 if choices.small else None]:
        more = reduced | CASES[name]
        precision = str(more.get("model.precision", "float32"))
        with tempfile.TemporaryDirectory() as folder:
            nothing, _ = measured(TINY, more, Path(folder) / "tiny")
            before = measured_cpu(1, precision)
            peak, rows = measured(shape, more, Path(folder) / "big")
            after = measured_cpu(1, precision)
        length = statistics.mean(row["response_length"] for row in rows)
        show(name, planned(shape, more, length, before, after), peak - nothing, rows)


if __name__ == "__main__":
    main()
