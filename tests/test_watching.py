"""What a run measures: every metric is named and means what it says."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import small, verified_elsewhere

import train.job
import train.run
from train.batch import pack, response_logprobs
from train.cli import main
from train.config import ModelConfig
from train.engines.by_transformers import sample
from train.evaluate import spread
from train.model import build_model
from train.policy import Policy
from train.problems.arithmetic import generate
from train.problems.tasks import arithmetic
from train.tokenizer import build_tokenizer
from train.watching.clock import Clock
from train.watching.journal import append, keep, rows
from train.watching.metrics import METRICS, drift, page

ROOT = Path(__file__).parents[1]
SHAPE = ModelConfig(width=32, mlp_width=32, layers=1, heads=2, key_value_heads=1)
SMALL = small("--steps 3 --warm-start.steps 2 --eval-every 2 --reference.replace never")


@pytest.fixture(autouse=True)
def no_verification(monkeypatch):
    monkeypatch.setattr(train.job, "verify", verified_elsewhere)


@pytest.mark.full
@pytest.mark.parametrize("recipe", ["rpg-reinforce-urkl-clip", "cispo"])
def test_every_metric_that_is_written_is_in_the_table(tmp_path, recipe):
    folder = tmp_path / "run"
    assert main(["run", "cpu_tiny", *SMALL, "--recipe", recipe, "--run-dir", str(folder)]) == 0
    found = list(rows(folder / "metrics.jsonl"))
    for row in found:
        assert set(row) - {"phase", "step"} <= set(METRICS[row["phase"]])
    written = {phase: set().union(*(row for row in found if row["phase"] == phase)) for phase in METRICS}
    only_some = {"clip_high", "clip_low", "clip_dual", "above_bound", "below_bound", "sampler_bounded"}
    only_some |= {key for key in METRICS["evaluation"] if key.endswith(".NAME")}
    assert all(set(METRICS[phase]) - written[phase] <= only_some for phase in METRICS)
    assert [row["step"] for row in found if row["phase"] == "evaluation"] == [0, 2, 3]
    said = [json.loads(line) for line in (folder / "transcripts.jsonl").read_text().splitlines()]
    assert [row["step"] for row in said] == [1, 1, 2, 2, 3, 3]
    for row in said:
        assert re.fullmatch(r"<\|bos\|><\|user\|>\d\d\+\d\d<\|assistant\|>", row["prompt"])
        assert row["reward"] == (1.0 if row["right"] else -1.0)


@pytest.mark.full
def test_each_of_several_test_sets_is_evaluated_by_its_name_and_reported(tmp_path):
    split = arithmetic(generate(0, 8))
    for name, problems in {"train": split.train, "first": split.test[:3], "second.v2": split.test[3:]}.items():
        write_problems(tmp_path / f"{name}.jsonl", problems)
    names = json.dumps([str(tmp_path / "first.jsonl"), str(tmp_path / "second.v2.jsonl")])
    words = ["--steps", "1", "--data.train", str(tmp_path / "train.jsonl"), "--data.test", names]
    folder = tmp_path / "run"
    assert main(["run", "cpu_tiny", *SMALL, *words, "--run-dir", str(folder)]) == 0
    evaluations = [row for row in rows(folder / "metrics.jsonl") if row["phase"] == "evaluation"]
    assert len(evaluations) == 2
    for row in evaluations:
        for key in ("accuracy", "pass"):
            pooled = (3 * row[f"{key}.first"] + 5 * row[f"{key}.second.v2"]) / 8
            assert row[key] == pytest.approx(pooled) and {f"{key}.first", f"{key}.second.v2"} <= set(row)
        assert {re.sub(r"\.(first|second\.v2)$", ".NAME", key) for key in row} - {"phase", "step"} <= set(
            METRICS["evaluation"]
        )
    assert main(["resume", str(folder), "--steps", "2"]) == 0
    assert main(["report", str(folder), "--out", str(tmp_path / "report")]) == 0


def write_problems(path, problems):
    rows = [
        {"prompt": [vars(turn) for turn in problem.prompt], "reward_model": {"ground_truth": problem.answer}}
        for problem in problems
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_missing_logger_is_refused_before_anything_is_written(tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["run", "cpu_tiny", *SMALL, "--loggers", '["tensorboard", "tensorboard"]', "--run-dir", str(folder)]
    assert main(words) == 2 and "tensorboard" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.full
def test_the_time_of_the_phases_is_the_time_of_the_step(tmp_path):
    folder = tmp_path / "run"
    assert main(["run", "cpu_tiny", *SMALL, "--run-dir", str(folder)]) == 0
    for row in rows(folder / "metrics.jsonl"):
        if row["phase"] == "policy_gradient":
            phases = sum(value for key, value in row.items() if key.startswith("seconds_"))
            assert row["truncated"] > 0.5, "a random policy hardly ever ends within four tokens"
            assert 0.5 * row["seconds"] < phases <= row["seconds"]
            assert row["tokens_per_second"] == pytest.approx(row["response_length"] * 8 / row["seconds"])


def test_the_page_is_the_table():
    """The meaning of a metric stands in one place; `make ledger` writes the page."""
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == page()


def drift_of(log_w, log_y, mask):
    """As METRICS has it, with log π_old = 0, in NumPy."""
    w, log_y = np.exp(log_w[mask]), log_y[mask]
    return {
        "ratio_p99": np.sort(w)[math.ceil(0.99 * len(w)) - 1],
        "ess": w.sum() ** 2 / (w**2).sum() / len(w),
        "k1": -log_y.mean(),
        "k2": (log_y**2).mean() / 2,
        "k3": (np.exp(log_y) - 1 - log_y).mean(),
    }


@pytest.mark.parametrize("size", [1, 3, 300])
def test_drift_is_what_it_says(size):
    rng = np.random.default_rng(size)
    log_w, log_ref = rng.normal(size=(2, 4, size))
    mask = rng.random((4, size)) < 0.8
    mask[0, 0] = True
    logp, ref = torch.tensor(log_w), torch.tensor(log_ref)
    dirty = torch.where(torch.tensor(mask), logp, math.nan)
    found = drift(dirty, torch.zeros_like(logp), ref, torch.tensor(mask).long())
    assert found == pytest.approx(drift_of(log_w, log_ref - log_w, mask), rel=1e-9)


def test_drift_of_the_policy_itself_and_of_a_far_one():
    zero, one = torch.zeros(2, 3), torch.ones(2, 3).long()
    assert drift(zero, zero, zero, one) == {"ratio_p99": 1.0, "ess": 1.0, "k1": 0.0, "k2": 0.0, "k3": 0.0}
    far = drift(torch.tensor([[800.0, 0.0, 0.0]]), torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, 3).long())
    assert far["ess"] == pytest.approx(1 / 3) and far["k2"] == pytest.approx(800**2 / 6)


def naive_spread(model, start, sequences, temperature):
    """One sequence at a time, without padding; each distribution over the whole vocabulary in NumPy."""
    entropy, divergence, tokens = 0.0, 0.0, 0
    for prompt, response in sequences:
        with torch.no_grad():
            logits = [
                m(torch.tensor([prompt + response])).logits[0].double().numpy() / temperature for m in (model, start)
            ]
        for place in range(len(prompt) - 1, len(prompt) + len(response) - 1):
            p, q = (np.exp(x[place] - x[place].max()) / np.exp(x[place] - x[place].max()).sum() for x in logits)
            entropy -= (p * np.log(p)).sum()
            divergence += (p * np.log(p / q)).sum()
            tokens += 1
    return {
        "length": tokens / len(sequences),
        "entropy": entropy / tokens,
        "reverse_kl_start": divergence / len(sequences),
    }


@pytest.mark.parametrize("budget", [0, 1, 20])
def test_spread_is_exact_along_the_responses(budget):
    tokenizer = build_tokenizer()
    model, start = (Policy(build_model(SHAPE, seed)) for seed in (0, 1))
    sequences = [([256, 5, 9], [7, 8, 260]), ([256, 1], [3]), ([4] * 6, [1, 2, 3, 4, 5])]
    batch = pack(*zip(*sequences, strict=True), tokenizer.pad_token_id)
    found = spread(model, start, batch, budget=budget, temperature=0.7)
    assert found == pytest.approx(naive_spread(model.model, start.model, sequences, 0.7), rel=1e-5)
    assert spread(model, model, batch, budget=0, temperature=0.7)["reverse_kl_start"] == 0
    assert "reverse_kl_start" not in spread(model, None, batch, budget=0, temperature=0.7)


def test_spread_is_the_divergence_that_samples_estimate():
    tokenizer = build_tokenizer()
    model, start = (Policy(build_model(SHAPE, seed)) for seed in (0, 1))
    prompts = [[256, 5, 9]] * 2000
    said = sample(model, tokenizer, prompts, max_tokens=3, temperature=1.0, seed=0)
    batch = pack(prompts, [ids for ids, _ in said], tokenizer.pad_token_id)
    with torch.no_grad():
        log_ratio = ((response_logprobs(model, batch) - response_logprobs(start, batch)) * batch.mask).sum(1)
    exact = spread(model, start, batch, budget=0, temperature=1.0)["reverse_kl_start"]
    error = float(log_ratio.std()) / len(prompts) ** 0.5
    assert abs(float(log_ratio.mean()) - exact) < 4 * error


def test_a_clock_adds_up_and_counts_what_failed():
    clock = Clock()
    for _ in range(2):
        with pytest.raises(KeyError), clock("a"):
            raise KeyError
    assert clock.seconds["a"] > 0 and set(clock.seconds) == {"a"}


def test_a_journal_survives_half_a_line(tmp_path):
    path = tmp_path / "x.jsonl"
    assert list(rows(path)) == []
    for step in range(3):
        append(path, {"phase": "x", "step": step, "value": math.nan})
    with path.open("ab") as file:
        file.write(b'{"step": 3, "val')
    assert [row["step"] for row in rows(path)] == [0, 1, 2]
    keep(path, lambda row: row["step"] < 2)
    assert path.read_text() == '{"phase":"x","step":0,"value":null}\n{"phase":"x","step":1,"value":null}\n'
    assert not list(tmp_path.glob("*.tmp"))
