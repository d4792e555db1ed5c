"""Engines: what they draw and say of it; the canary; the sampler's gap, and its correction in a run."""

import copy
import dataclasses
import json
import math
import os
import sys
from types import SimpleNamespace

import fake_vllm
import pytest
import torch
from small_run import small, verified_elsewhere
from tiers import quick

import train.engines.by_vllm
import train.job
from rpg_ref import RECIPES, WeightBound
from train import ranks
from train.batch import logprobs, pack, padded, response_logprobs
from train.cli import main
from train.config import EngineConfig, ModelConfig
from train.engines import canary
from train.engines.by_transformers import Transformers, _last_logits
from train.engines.engine import Demands, Said, StaleWeights
from train.engines.opening import open_engine
from train.model import build_model
from train.policy import Policy
from train.policy_gradient import accumulate
from train.preset import load
from train.tokenizer import build_tokenizer
from train.watching.metrics import sampler_gap

SHAPE = ModelConfig(width=32, mlp_width=48, layers=2, heads=2, key_value_heads=1)
PROMPTS = [[256, 260, 19, 261], [256, 7, 8, 9, 10, 11, 261], [256, 1, 261], [256, 2, 261], [256, 3, 261]]
SMALL = small("--model.layers 2")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def policy_of(tokenizer, *, tied=True, seed=0):
    model = build_model(SHAPE, seed=seed)
    if not tied:
        described = copy.deepcopy(model.config)
        described.tie_word_embeddings = False
        untied = type(model)(described).eval()
        untied.load_state_dict(model.state_dict() | {"lm_head.weight": -model.state_dict()["lm_head.weight"]})
        model = untied
    return Policy(model)


def demands(**given):
    return Demands(
        **{"context": 64, "precision": "float32", "at_once": 0, "temperature": 0.7, "budget": 40, "prompts": PROMPTS}
        | given
    )


@pytest.fixture
def vllm(monkeypatch):
    """Put the stand-in, with a fault or without, in the place of vLLM."""
    fake_vllm.LLM.started.clear()

    def installed(fault=None):
        monkeypatch.setitem(sys.modules, "vllm", fake_vllm.module(fault))
        monkeypatch.setattr("train.engines.opening.find_spec", lambda name: name)

    for name in train.engines.by_vllm.ENVIRONMENT:
        monkeypatch.setenv(name, "kept")
    return installed


# What an engine says


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@torch.no_grad()
def test_an_engine_says_the_log_probability_of_each_token_it_drew(tokenizer, temperature):
    policy = policy_of(tokenizer)
    said = Transformers(policy, tokenizer, at_once=2).sample(PROMPTS, max_tokens=9, temperature=temperature, seed=3)
    batch = pack(PROMPTS, [ids for ids, _ in said], 258)
    expected = response_logprobs(policy, batch, temperature=temperature)
    found = padded([logp for _, logp in said], batch.mask.shape[1])
    assert torch.allclose(found, expected, atol=1e-5) and found.abs().max() > 1
    assert all(len(ids) == len(logp) for ids, logp in said)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_tokens_are_drawn_from_logits_that_are_not_rounded():
    """Logits of 16 and more, as a model has that is sure, are 0.06 off where they are rounded, and so is log π."""
    hidden, head = (10 * torch.randn(shape, device="cuda").bfloat16() for shape in ((5, 3, 64), (100, 64)))
    exact = hidden[:, -1].double() @ head.T.double()
    error = (_last_logits(hidden, head) - exact).norm() / exact.norm()
    rounding = (exact.bfloat16() - exact).norm() / exact.norm()
    assert error < 1e-6 < 1e-4 < rounding


@pytest.mark.full
@pytest.mark.parametrize("tied", [True, False])
def test_vllm_draws_from_the_policy_with_the_policy_s_end_and_seeds(tokenizer, vllm, tied):
    vllm()
    policy = policy_of(tokenizer, tied=tied)
    with open_engine(EngineConfig("vllm"), policy, tokenizer, demands()) as engine:
        with engine.holding(policy):
            said = engine.sample(PROMPTS * 20, max_tokens=9, temperature=0.7, seed=3)
            assert engine.sample(PROMPTS * 20, max_tokens=9, temperature=0.7, seed=3) == said
            assert engine.sample(PROMPTS[3:], max_tokens=9, temperature=0.7, seed=3, first=3) == said[3:5]
            assert engine.sample(PROMPTS * 20, max_tokens=9, temperature=0.7, seed=4) != said
            assert engine.sample([], max_tokens=9, temperature=0.7, seed=3) == []
    ends = [ids.index(257) for ids, _ in said if 257 in ids]
    assert ends and all(ids[-1] == 257 or len(ids) == 9 for ids, _ in said)
    batch = pack(PROMPTS * 20, [ids for ids, _ in said], 258)
    gap = sampler_gap(logprobs(policy, batch, 0, 0.7), padded([x for _, x in said], 9), batch.mask)
    assert gap["sampler_gap_max"] < 1e-5


def test_what_vllm_is_asked_for(tokenizer, vllm):
    vllm()
    policy = policy_of(tokenizer)
    settings = EngineConfig("vllm", kv_gib=0.5)
    with open_engine(settings, policy, tokenizer, demands(at_once=17, precision="bfloat16")):
        (started,) = fake_vllm.LLM.started
    given = started.given
    assert (given["dtype"], given["max_model_len"], given["max_num_seqs"]) == ("bfloat16", 64, 17)
    assert given["kv_cache_memory_bytes"] == 2**29 and given["logprobs_mode"] == "processed_logprobs"
    assert "distributed_executor_backend" not in given and not given["enable_sleep_mode"]
    assert not started.model.config.tie_word_embeddings and started.said == ["shutdown"]


def test_vllm_is_in_this_process_leaves_its_threads_and_is_one_of_several(tokenizer, vllm, monkeypatch):
    vllm()
    policy, threads = policy_of(tokenizer), torch.get_num_threads()
    own = sys.modules["vllm"].LLM

    def greedy(**given):
        torch.set_num_threads(threads + 1)
        return own(**given)

    monkeypatch.setattr(sys.modules["vllm"], "LLM", greedy)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setattr(train.engines.by_vllm.ranks, "size", lambda: 2)
    try:
        with open_engine(EngineConfig("vllm"), policy, tokenizer, demands()):
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(threads)
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0" and os.environ["VLLM_LOGGING_LEVEL"] == "kept"
    assert fake_vllm.LLM.started[0].given["distributed_executor_backend"] == "external_launcher"


@pytest.mark.full
def test_on_a_gpu_vllm_sleeps_while_the_trainer_learns(tokenizer, vllm, monkeypatch):
    """The stand-in loses its weights when it sleeps, and refuses to work before it is awake."""
    vllm()
    monkeypatch.setattr(train.engines.by_vllm, "can_sleep", lambda policy: True)
    policy = policy_of(tokenizer)
    with open_engine(EngineConfig("vllm"), policy, tokenizer, demands()) as engine:
        for _ in range(2):
            with engine.holding(policy):
                engine.sample(PROMPTS, max_tokens=2, temperature=1.0, seed=0)
    (started,) = fake_vllm.LLM.started
    wake, look = ["wake weights", "push", "reset", "wake kv_cache", "draw 5"], ["push", "reset", "draw 5"]
    drawn = [*wake, *look, "draw 5", "sleep 2"]
    assert started.said == ["sleep 2", *drawn, *drawn, "wake weights,kv_cache", "shutdown"]
    assert started.given["enable_sleep_mode"] and not started.given["enforce_eager"]
    assert started.given["gpu_memory_utilization"] < 0.1, "else it wants most of the GPU free, where the trainer is"


def test_an_engine_is_not_closed_after_an_error(tokenizer, vllm):
    """Its end waits for the other ranks, which may wait for this one."""
    vllm()
    policy = policy_of(tokenizer)
    with pytest.raises(RuntimeError, match="the reason"):
        with open_engine(EngineConfig("vllm"), policy, tokenizer, demands()):
            raise RuntimeError("the reason")
    assert fake_vllm.LLM.started[0].said == []


# The canary


@pytest.mark.parametrize("fault", fake_vllm.FAULTS)
@pytest.mark.parametrize("tied", quick([True, False], [True]))
def test_a_push_that_does_not_arrive_trips_the_canary(tokenizer, vllm, fault, tied):
    """Also where the weights have not moved at all, so that stale ones would say the very same."""
    vllm(fault)
    policy = policy_of(tokenizer, tied=tied)
    with open_engine(EngineConfig("vllm"), policy, tokenizer, demands()) as engine:
        fake_vllm.LLM.started[0].model.load_state_dict(
            {"lm_head.weight": policy.model.lm_head.weight} | policy.model.state_dict()
        )
        with pytest.raises(
            StaleWeights,
            match="push did not reach|does not have the weights|left out .* which is zero|keeps keys and values",
        ):
            with engine.holding(policy):
                pytest.fail("an engine with stale weights may not draw")


@pytest.mark.full
def test_a_push_later_in_a_run_is_proved_as_well(tokenizer, vllm):
    """A step of 1e-6 would move no log-probability visibly: the zeros do."""
    vllm()
    policy = policy_of(tokenizer)
    with open_engine(EngineConfig("vllm"), policy, tokenizer, demands()) as engine:
        with engine.holding(policy):
            pass
        with torch.no_grad():
            for weight in policy.parameters():
                weight *= 1 + 1e-6
        fake_vllm.LLM.started[0].collective_rpc = lambda method, kwargs: None
        with pytest.raises(StaleWeights, match="zeros were pushed, but a log-probability is .* nats"):
            with engine.holding(policy):
                pass


def test_the_limit_is_that_of_the_precision():
    assert [EngineConfig().gap(x) for x in ("float32", "bfloat16")] == [0.001, 0.03]
    assert EngineConfig(max_gap=0.2).gap("float32") == 0.2


@pytest.mark.parametrize("logps, fine", [([0, 0], True), ([9e-4, 0], True), ([0, 2e-3], False), ([0, math.nan], False)])
def test_every_token_of_a_zero_model_is_checked_against_the_logarithm(tokenizer, logps, fine):
    policy, said = policy_of(tokenizer), [Said([1, 2], [x - math.log(262) for x in logps])]
    if fine:
        canary.check_blank(said, policy)
    else:
        with pytest.raises(StaleWeights, match="zeros were pushed"):
            canary.check_blank(said, policy)


@pytest.mark.parametrize("gap, fine", [(0.49, True), (0.51, False), (math.nan, False)])
def test_the_canary_s_limit_is_five_times_the_gap_that_is_warned_of(tokenizer, gap, fine):
    policy = policy_of(tokenizer)
    said = Transformers(policy, tokenizer).sample(PROMPTS, max_tokens=5, temperature=1.0, seed=0)
    off = [Said(ids, [x + gap for x in logp]) for ids, logp in said]
    words = {"max_gap": 0.1, "budget": 0, "temperature": 1.0, "pad": 258}
    if fine:
        canary.check_pushed(off, PROMPTS, policy, **words)
    else:
        with pytest.raises(StaleWeights, match="more than 5 x engine.max_gap = 0.5"):
            canary.check_pushed(off, PROMPTS, policy, **words)


def test_the_worst_engine_of_all_ranks_is_checked_against_the_limit(tokenizer, monkeypatch):
    policy = policy_of(tokenizer)
    said = Transformers(policy, tokenizer).sample(PROMPTS, max_tokens=5, temperature=1.0, seed=0)
    off = [Said(ids, [x + 0.6 for x in logp]) for ids, logp in said]
    batch = pack(PROMPTS * 2, [ids for ids, _ in said] * 2, 258)
    true = logprobs(policy, batch, 0, 1.0)
    monkeypatch.setattr(canary, "logprobs", lambda *_: true)
    monkeypatch.setattr(canary, "ranks", SimpleNamespace(size=lambda: 2, gather=lambda own: [own, off]))
    with pytest.raises(StaleWeights, match="its log-probabilities are 0.6 nats"):
        canary.check_pushed(said, PROMPTS, policy, max_gap=0.1, budget=0, temperature=1.0, pad=258)


def test_what_failed_here_is_said_though_the_others_are_gone(monkeypatch):
    def gone(_):
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(ranks, "gather", gone)
    with pytest.raises(ZeroDivisionError):
        ranks.everywhere(lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="closed by peer"):
        ranks.everywhere(lambda: 1)


def test_the_policy_draws_as_many_at_once_as_it_was_told(tokenizer, monkeypatch):
    asked = {}
    monkeypatch.setattr("train.engines.by_transformers.sample", lambda *_, **words: asked.update(words))
    with open_engine(EngineConfig(), policy_of(tokenizer), tokenizer, demands(at_once=3)) as engine:
        engine.sample(PROMPTS, max_tokens=2, temperature=0.5, seed=7, first=11)
    assert asked == {"max_tokens": 2, "temperature": 0.5, "seed": 7, "first": 11, "at_once": 3}


def test_a_canary_that_trips_ends_the_run_with_a_sentence(tmp_path, capfd, vllm, monkeypatch):
    vllm("second dead")
    monkeypatch.setattr(train.job, "verify", verified_elsewhere)
    assert main(["run", "cpu_tiny", *SMALL, "--engine.kind", "vllm", "--run-dir", str(tmp_path / "run")]) == 1
    assert capfd.readouterr().err.startswith("train: a push left out model.embed_tokens.weight of the sampler")


@pytest.mark.full
def test_an_engine_that_hangs_ends_the_process_with_its_stacks(tmp_path):
    """As a process of its own, since it is one that ends."""
    import subprocess

    code = """
import sys, time, types
sys.path[:0] = ["tests"]
import fake_vllm
sys.modules["vllm"] = fake_vllm.module()
import test_engines as t
from train.config import EngineConfig
from train.engines.opening import open_engine
tokenizer = t.build_tokenizer()
policy = t.policy_of(tokenizer)
with open_engine(EngineConfig("vllm", timeout=2.0), policy, tokenizer, t.demands()) as engine:
    engine.llm.generate = lambda *_, **__: time.sleep(60)
    with engine.holding(policy):
        pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Timeout" in done.stderr and "by_vllm.py" in done.stderr


@pytest.mark.full
def test_what_vllm_refuses_is_said_before_anything_is_written(tmp_path, capfd, vllm, monkeypatch):
    vllm()
    monkeypatch.setattr(train.job, "verify", verified_elsewhere)

    def refuse(**given):
        raise ValueError("No available memory for the cache blocks. Try increasing what is called otherwise here.")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", refuse)
    folder = tmp_path / "run"
    words = ["run", "cpu_tiny", *SMALL, "--engine.kind", "vllm", "--run-dir", str(folder)]
    assert main(words) == 2
    expected = "train: vLLM does not start: No available memory for the cache blocks; change engine.kv_gib, "
    assert capfd.readouterr().err.startswith(expected) and not any(folder.iterdir())
    vllm()
    assert main(words) == 0, "the folder is as it was"
    assert main(["resume", str(folder), "--steps", "3", "--engine.kv-gib", "2", "--engine.max-gap", "0.5"]) == 0
    assert main(["resume", str(folder), "--steps", "4", "--engine.correct", "mask"]) == 2
    assert "engine.correct 'none' → 'mask'" in capfd.readouterr().err


def test_an_engine_that_is_missing_is_refused_before_anything(capsys, monkeypatch):
    monkeypatch.setattr("train.engines.opening.find_spec", lambda name: None)
    for words in (["run", "cpu_tiny"], ["eval", "nowhere", "nothing.parquet"]):
        assert main([*words, "--engine.kind", "vllm"]) == 2
        assert "engine.kind is vllm, whose package is missing; pip install '.[vllm]'" in capsys.readouterr().err


# The gap and its correction


def test_the_gap_is_over_the_tokens_that_count():
    old, drawn = torch.tensor([[-1.0, -2.0], [-3.0, math.nan]]), torch.tensor([[-1.5, -2.0], [-2.0, 7.0]])
    assert sampler_gap(old, drawn, torch.tensor([[1, 1], [1, 0]])) == {"sampler_gap": 0.5, "sampler_gap_max": 1.0}


@pytest.mark.parametrize(
    "given, bound",
    [
        ({}, WeightBound()),
        ({"engine.correct": "truncate", "engine.high": 3.0}, WeightBound("clamp", 0.0, 3.0)),
        ({"engine.correct": "mask", "engine.low": 0.25}, WeightBound("mask", 0.25, 2.0)),
    ],
)
def test_the_correction_is_the_core_s_rule(given, bound):
    assert train.job.correction(load("cpu_tiny", given).engine) == bound


@pytest.mark.parametrize("correct", [False, True])
def test_a_corrected_step_s_gradient_is_the_recipe_s_with_the_sampler(tokenizer, correct):
    policy = policy_of(tokenizer)
    policy.model.double()
    torch.manual_seed(0)
    batch = pack(PROMPTS, [[1, 2, 257], [3, 257], [4], [5, 6], [7]], 258)
    sampler = logprobs(policy, batch, 0, 1.0) + 0.7 * torch.randn(batch.mask.shape)
    old, A = logprobs(policy, batch, 0, 1.0) + 0.1, torch.randn(5, dtype=torch.float64)
    recipe = dataclasses.replace(RECIPES["rpg-urkl"], sampler=WeightBound("mask", 0.5, 2.0), beta=0.3)
    metrics = accumulate(policy, batch, old, None, A, recipe, 12, 1.0, logp_sampler=sampler.double(), correct=correct)
    found = [weight.grad.clone() for weight in policy.parameters()]
    policy.zero_grad()
    told = sampler.double() if correct else None
    loss, expected = recipe(response_logprobs(policy, batch), old, None, A, batch.mask, logp_sampler=told)
    loss.backward()
    for ours, weight in zip(found, policy.parameters(), strict=True):
        assert torch.allclose(ours, weight.grad, rtol=1e-9, atol=1e-14)
    assert ("sampler_bounded" in metrics) == correct and metrics["sampler_gap"] > 0.1
    if correct:
        drift = (old - sampler)[batch.mask != 0]
        outside = ((drift < math.log(0.5)) | (drift > math.log(2.0))).double().mean()
        assert 0 < metrics["sampler_bounded"] == pytest.approx(float(outside))
        assert metrics["loss"] == pytest.approx(float(loss.detach()))


@pytest.mark.full
def test_a_gap_is_measured_every_step_and_warned_of(tmp_path, capsys, monkeypatch):
    """An engine whose log-probabilities are 0.2 off is under the canary's limit and over the one that warns."""
    monkeypatch.setattr(train.job, "verify", verified_elsewhere)
    own = Transformers.sample

    def off(self, *words, **named):
        return [Said(ids, [x - 0.2 for x in logp]) for ids, logp in own(self, *words, **named)]

    monkeypatch.setattr(Transformers, "sample", off)
    folder = tmp_path / "run"
    words = ["--engine.correct", "truncate", "--engine.high", "1.1", "--engine.max-gap", "0.1"]
    assert main(["run", "cpu_tiny", *SMALL, "--run-dir", str(folder), *words]) == 0
    out = capsys.readouterr().out
    for step in (1, 2):
        assert f"rollout batch {step}: the sampler's log-probabilities are 0.2 nats a token from the trainer's" in out
    assert "gap 0.2" in out
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["phase"] == "policy_gradient"]
    for row in rows:
        assert row["sampler_gap"] == pytest.approx(0.2, abs=1e-4) and row["sampler_gap_max"] < 0.21
        assert row["sampler_bounded"] == 1 and row["seconds_push"] >= 0, "exp(0.2) is over 1.1 everywhere"
