"""The real vLLM: `make check-vllm` runs these in an environment of its own, on the processor."""

import copy
import dataclasses
import math
import re
import subprocess
import sys
from collections import Counter

import pytest
import torch

pytest.importorskip("vllm")

from small_run import rows
from test_engines import PROMPTS, demands

import train.engines.by_vllm
from train.batch import logprobs, pack, padded
from train.config import EngineConfig, ModelConfig
from train.engines.by_vllm import VLLM, described
from train.engines.engine import StaleWeights
from train.model import build_model
from train.policy import Policy
from train.tokenizer import build_tokenizer
from train.watching.metrics import sampler_gap

TOKENIZER = build_tokenizer()
# vLLM's attention on a processor lists heads of 32 and more.
SHAPE = ModelConfig(width=64, mlp_width=96, layers=2, heads=2, key_value_heads=1)
SETTINGS = EngineConfig("vllm", kv_gib=0.1, timeout=120.0)
# Two float32 programs that add in different orders differ by a few of either one's errors.
ROUNDINGS = 8
SHORT = """--steps 2 --eval-samples 2 --data.test-problems 16 --warm-start.steps 20 --rollout.prompts 8
--optimizer.prompts 2 --threads 1 --checkpoint-every 2 --engine.kind vllm --engine.kv-gib 0.1""".split()


@pytest.fixture
def policy():
    return Policy(build_model(SHAPE, seed=0))


@pytest.fixture(scope="module")
def engine():
    engine = VLLM(Policy(build_model(SHAPE, seed=0)), TOKENIZER, SETTINGS, demands(context=400))
    yield engine
    engine.close()


def gap_and_rounding(policy, prompts, said, temperature):
    """Return the largest gap between sampler and trainer, and the trainer's own largest rounding error on these tokens.

    The rounding grows with the logits and with 1/temperature, so no fixed bound on the gap is right for all weights.
    """
    batch = pack(prompts, [ids for ids, _ in said], 258)
    drawn = padded([logp for _, logp in said], batch.mask.shape[1])
    single = logprobs(policy, batch, 0, temperature)
    double = logprobs(copy.deepcopy(policy).double(), batch, 0, temperature)
    return tuple(sampler_gap(x, single, batch.mask)["sampler_gap_max"] for x in (drawn, double))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_what_vllm_says_is_what_the_trainer_says_after_every_push(policy, engine, temperature):
    for factor in (1.0, 1.3, 1.3):
        with torch.no_grad():
            for weight in policy.parameters():
                weight *= factor
        with engine.holding(policy):
            said = engine.sample(PROMPTS * 8, max_tokens=40, temperature=temperature, seed=1)
        gap, rounding = gap_and_rounding(policy, PROMPTS * 8, said, temperature)
        assert gap < ROUNDINGS * rounding < 1e-3
    assert any(ids[-1] == 257 for ids, _ in said) and all(257 not in ids[:-1] for ids, _ in said)


def test_keys_and_values_of_older_weights_are_not_used(policy, engine, monkeypatch):
    """A prompt of several blocks would be found in the cache."""
    prompts = [[256, *range(1, 251), 5, 261]] * 4
    for factor in (1.0, 1.2):
        with torch.no_grad():
            for weight in policy.parameters():
                weight *= factor
        with engine.holding(policy):
            said = engine.sample(prompts, max_tokens=8, temperature=1.0, seed=1)
        gap, rounding = gap_and_rounding(policy, prompts, said, 1.0)
        assert gap < ROUNDINGS * rounding < 1e-3
    monkeypatch.setattr(engine.llm, "reset_prefix_cache", lambda: False)
    with pytest.raises(StaleWeights, match="keeps keys and values of older weights"):
        with engine.holding(policy):
            pass


def test_a_response_is_of_its_seed_and_its_number(policy, engine):
    how = {"max_tokens": 12, "temperature": 1.0}
    with engine.holding(policy):
        said = engine.sample(PROMPTS * 3, seed=1, **how)
        assert [ids for ids, _ in engine.sample(PROMPTS * 3, seed=1, **how)] == [ids for ids, _ in said]
        alone = engine.sample(PROMPTS[2:3], seed=1, first=7, **how)
        assert alone[0].ids == said[7].ids
        assert engine.sample(PROMPTS * 3, seed=2, **how) != said


def test_vllm_draws_from_the_trainer_s_distribution(policy, engine):
    prompt, n = PROMPTS[0], 4000
    with engine.holding(policy):
        drawn = engine.sample([prompt] * n, max_tokens=1, temperature=1.0, seed=0)
    with torch.no_grad():
        p = policy.model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    counts = Counter(ids[0] for ids, _ in drawn)
    frequency = torch.tensor([counts[token] / n for token in range(len(p))])
    # Expected total variation of n draws from p, and twice that for chance.
    assert (frequency - p).abs().sum() < 2 * (2 * p * (1 - p) / (math.pi * n)).sqrt().sum()


def test_a_push_that_does_nothing_trips_the_canary(policy, engine, monkeypatch):
    with engine.holding(policy):
        pass
    monkeypatch.setattr(engine.llm, "collective_rpc", lambda *_, **__: None)
    with pytest.raises(StaleWeights, match="zeros were pushed, but"):
        with engine.holding(policy):
            pass


def test_a_push_of_everything_but_a_layer_s_norm_trips_the_canary(policy, engine, monkeypatch):
    own = train.engines.by_vllm.canary.pushed

    def without(policy, *, blank):
        named = own(policy, blank=blank)
        return named if blank else ((k, x) for k, x in named if k != "model.layers.1.input_layernorm.weight")

    monkeypatch.setattr(train.engines.by_vllm.canary, "pushed", without)
    with pytest.raises(StaleWeights, match="left out model.layers.1.input_layernorm.weight"):
        with engine.holding(policy):
            pass


def test_a_tied_head_pushed_as_the_embedding_is_left_stale_by_this_version_of_vllm(monkeypatch):
    """Why the engine's model has a head of its own: where this one fails, that copy can go."""
    own = train.engines.by_vllm.canary.pushed

    def tied(policy):
        config = described(policy)
        config.tie_word_embeddings = True
        return config

    def once(policy, *, blank):
        return ((name, x) for name, x in own(policy, blank=blank) if name != "lm_head.weight")

    policy = Policy(build_model(dataclasses.replace(SHAPE, width=192, heads=6, key_value_heads=3), seed=0))
    monkeypatch.setattr(train.engines.by_vllm, "described", tied)
    monkeypatch.setattr(train.engines.by_vllm.canary, "pushed", once)
    engine = VLLM(policy, TOKENIZER, SETTINGS, demands())
    with pytest.raises(StaleWeights, match="does not have the weights it was given"):
        with engine.holding(policy):
            pass


# Whole runs, as processes of their own


def launch(*words, processes=1):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "train", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_resumed_is_the_run(tmp_path, processes):
    words = [*SHORT, "--steps", "4"]
    launch("run", "cpu_tiny", *words, "--run-dir", str(tmp_path / "whole"), processes=processes)
    launch("run", "cpu_tiny", *SHORT, "--run-dir", str(tmp_path / "halves"), processes=processes)
    launch("resume", str(tmp_path / "halves"), "--steps", "4", processes=processes)
    whole, halves = rows(tmp_path / "whole"), rows(tmp_path / "halves")
    assert [row for row in whole if row["phase"] == "policy_gradient"] == [
        row for row in halves if row["phase"] == "policy_gradient"
    ]
    assert all(row["sampler_gap_max"] < 1e-4 for row in whole if row["phase"] == "policy_gradient")


@pytest.mark.parametrize("rule", ["truncate", "mask"])
def test_bfloat16_has_a_gap_that_can_be_corrected(tmp_path, rule):
    words = ["--model.precision", "bfloat16", "--engine.correct", rule, "--run-dir", str(tmp_path / "run")]
    launch("run", "cpu_tiny", *SHORT, *words)
    for row in rows(tmp_path / "run"):
        if row["phase"] == "policy_gradient":
            assert 1e-5 < row["sampler_gap"] < 0.03 and row["sampler_bounded"] == 0


def test_cpu_tiny_reaches_the_accuracy_of_the_transformers_engine(tmp_path):
    """Runs of other random numbers: over seeds the accuracy after has a standard deviation of 0.03."""
    after = {}
    for kind in ("transformers", "vllm"):
        out = launch("run", "cpu_tiny", "--engine.kind", kind, "--run-dir", str(tmp_path / kind))
        before, after[kind] = map(float, re.search(r"accuracy ([\d.]+) ± [\d.]+ → ([\d.]+)", out).groups())
        assert before < 0.6
    assert after["vllm"] > max(0.8, after["transformers"] - 0.1), after
