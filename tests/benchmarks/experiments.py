"""Four recipes, five seeds each, from one warm start: what the penalty does when a rollout batch gives 16 steps.

``make experiments`` runs it, in ten minutes on two cores, and writes docs/experiments and the table in
docs/experiments.md. A run that is there already is not done again. ``--small`` trains a tiny model with the first
recipe and one seed, and prints the table: it shows that everything still runs, and writes nothing into docs.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from train.watching.groups import Estimate, group_runs, results
from train.watching.report import report
from train.watching.runs import read_runs

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = Path("runs/experiments")
ARMS = {
    "urkl": "--recipe rpg-reinforce-urkl-clip",
    "ufkl": "--recipe rpg-reinforce-ufkl-clip",
    "grpo": "--recipe grpo",
    "none": "--recipe rpg-reinforce-urkl-clip --beta 0",
}
SEEDS = range(5)
TINY = "--model.width 32 --model.mlp-width 32 --model.layers 1 --model.heads 2 --model.key-value-heads 1"
SMALL = "--steps 1 --eval-every 1 --eval-samples 2 --rollout.prompts 8 --rollout.samples 2"
SMALL_START = f"{TINY} --warm-start.steps 2 --eval-samples 2 --data.test-problems 8"
"""What ``--small`` changes of a run, and of the run that they all begin with."""
AT_ONCE = 2
BEGIN, END = "<!-- table -->\n", "<!-- /table -->\n"
COLUMNS = {
    "accuracy": "after",
    "KL(π‖start), nats a response": "reverse_kl_start",
    "entropy, nats a token": "entropy",
    "minutes": "minutes",
}


def train(preset: Path, folder: Path, more: Sequence[str]) -> Path:
    """Train unless it is done; return the folder."""
    if not (ROOT / folder / "model").is_dir():
        verb = ["resume", str(folder)] if (ROOT / folder / "checkpoints").is_dir() else ["run", str(preset), *more]
        words = [sys.executable, "-m", "train", *verb, "--run-dir", str(folder)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}\n{done.stderr}")
    print(f"{folder} is done", flush=True)
    return folder


def table(folders: Sequence[Path]) -> str:
    """Return the results as Markdown: means over seeds ± their standard errors."""
    lines = ["| recipe, β | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for group in group_runs(read_runs(folders)):
        found = results(group.runs)
        beta = group.settings["beta"]
        lines.append(f"| {group.settings['recipe']}, {beta:g} | " + " | ".join(map(cell, pick(found))) + " |")
    return "\n".join(lines) + "\n"


def pick(found: dict[str, Estimate | None]) -> list[Estimate | None]:
    """Return the columns of a row."""
    return [found[key] for key in COLUMNS.values()]


def cell(value: Estimate | None) -> str:
    """Return a mean with its error."""
    return "" if value is None else f"{value.mean:.3f}" + (f" ± {value.error:.3f}" if value.error is not None else "")


def results_of(runs: Path, more: Sequence[str], start: Sequence[str], arms: dict[str, str], seeds: range) -> list[Path]:
    """Train the start, then every recipe with every seed from there; return the folders of the runs."""
    first = train(HERE / "start.toml", runs / "start", start)
    data = [f"--data.{name}={first / 'data' / name}.parquet" for name in ("train", "test")]
    from_there = [f"--model.path={first / 'model'}", *data, *more]
    jobs = [
        (runs / f"{arm}-{seed}", [*arms[arm].split(), f"--seed={seed}", *from_there]) for seed in seeds for arm in arms
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sorted(pool.map(lambda job: train(HERE / "experiments.toml", *job), jobs))


def publish(folders: Sequence[Path], page: Path) -> None:
    """Draw the curves into the folder beside a page, and write the table into the page."""
    report([ROOT / folder for folder in folders], page.with_suffix(""))
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    found = table([ROOT / folder for folder in folders])
    page.write_text(before + BEGIN + found + END + rest.split(END)[1], encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, draw, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="a tiny model, one recipe, one seed; docs stay as they are"
    )
    page = ROOT / "docs" / "experiments.md"
    if not parser.parse_args(arguments).small:
        publish(results_of(RUNS, [], [], ARMS, SEEDS), page)
        return
    with tempfile.TemporaryDirectory() as folder:
        first = dict(list(ARMS.items())[:1])
        folders = results_of(Path(folder), SMALL.split(), SMALL_START.split(), first, SEEDS[:1])
        copy = Path(shutil.copy(page, folder))
        publish(folders, copy)
        print(copy.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0])


if __name__ == "__main__":
    main()
