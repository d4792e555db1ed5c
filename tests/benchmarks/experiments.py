"""Four recipes, five seeds each, from one warm start: what the penalty does when a rollout batch gives 16 steps.

``make experiments`` runs it, in ten minutes on two cores, and writes docs/experiments and the table in
docs/experiments.md. A run that is there already is not done again.
"""

import subprocess
import sys
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


def main() -> None:
    """Train, draw, and write the table."""
    train(HERE / "start.toml", RUNS / "start", [])
    jobs = [
        (RUNS / f"{arm}-{seed}", [*words.split(), "--seed", str(seed)]) for seed in SEEDS for arm, words in ARMS.items()
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        folders = sorted(pool.map(lambda job: train(HERE / "experiments.toml", *job), jobs))
    out = ROOT / "docs" / "experiments"
    report([ROOT / folder for folder in folders], out)
    page = out.with_suffix(".md")
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    found = table([ROOT / folder for folder in folders])
    page.write_text(before + BEGIN + found + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
