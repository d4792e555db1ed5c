"""The small run that the tests of the driver start: a tiny model, eight held-out problems, a few steps."""

import json
from types import SimpleNamespace

SMALL = """--steps 2 --eval-samples 2 --data.test-problems 8 --warm-start.steps 3 --warm-start.batch 4
--rollout.prompts 4 --rollout.samples 2 --optimizer.prompts 2
--model.width 32 --model.mlp-width 32 --model.layers 1 --model.heads 2 --model.key-value-heads 1""".split()


def small(more=""):
    """The options of a small run and then more of them: of two values for one key the later one counts."""
    return [*SMALL, *more.split()]


def verified_elsewhere(recipe):
    """Stand in for train.job.verify, which takes seconds."""
    return SimpleNamespace(ok=True, verdict="verified elsewhere")


def rows(folder):
    """The rows of a run's metrics without their clocks: two runs of one seed have the same."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    clocks = ("seconds", "tokens_per_second")
    return [{key: x for key, x in json.loads(line).items() if not key.startswith(clocks)} for line in lines]
