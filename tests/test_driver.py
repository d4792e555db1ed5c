"""The loop: filtered groups, long responses, micro-batches, references, broken gradients, going on after a kill."""

import dataclasses
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_run import rows, small, verified_elsewhere
from tiers import full

import train.job
import train.run
from rpg_ref import RECIPES, ReferenceState, token_entropy, token_logprobs
from train.answering.checker import Checker
from train.batch import logprobs, pack
from train.cli import main
from train.config import ModelConfig, RolloutConfig
from train.engines.by_transformers import sample
from train.engines.engine import Said
from train.evaluate import Accuracy, summarise
from train.model import build_model, open_model
from train.optim import learning_rate
from train.policy import Policy, blocks
from train.policy_gradient import Diverged, accumulate, begin, improve, reference_rule, sampling
from train.preset import dump, load
from train.problems.tasks import Task, deal, deal_from
from train.rollout import Rollout, draw, judge, overlong
from train.saving.durable import alone
from train.saving.snapshot import refuse_incomplete, snapshot
from train.tokenizer import answer_ids, build_tokenizer
from train.watching.clock import Clock
from train.watching.journal import keep

SMALL = small("--steps 4 --warm-start.steps 2 --checkpoint-every 1")


@pytest.fixture(autouse=True)
def no_verification(monkeypatch):
    monkeypatch.setattr(train.job, "verify", verified_elsewhere)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def small_model(tokenizer):
    return build_model(ModelConfig(width=32, mlp_width=64, layers=1, heads=2, key_value_heads=1), seed=0)


def command(folder, *more):
    return ["run", "cpu_tiny", *SMALL, "--run-dir", str(folder), *more]


# Drawing


def drawing(tokenizer, said, **settings):
    """A draw in which the engine answers from a list, whatever it is asked."""
    answers = iter(said)

    def sample(prompts, **_):
        ids = [answer_ids(tokenizer, next(answers)) for _ in prompts]
        return [Said(one, [-float(token) for token in one]) for one in ids]

    given = {"rollout.prompts": 2, "rollout.samples": 2, "optimizer.prompts": 1}
    config = load("cpu_tiny", given | {f"rollout.{key}": value for key, value in settings.items()})
    tasks = [Task([i], "46") for i in range(7)]
    engine = SimpleNamespace(sample=sample)
    return draw(engine, tokenizer, Checker("exact"), tasks, RECIPES[config.recipe], config, 0, 3, Clock())


def test_groups_without_a_difference_are_drawn_again(tokenizer):
    said = ["46", "46", "46", "1", "1", "1", "46", "2", "3", "3", "46", "46"]
    found = drawing(tokenizer, said, filter=True)
    assert found.right.tolist() == [1, 0, 1, 0] and found.draws == 2 and found.dealt == 7
    assert found.groups == (0.25, 0.25)
    assert found.advantage.tolist() == [1, -1, 1, -1]


def test_what_is_left_over_is_dropped(tokenizer):
    found = drawing(tokenizer, ["46", "1"] * 6, filter=True, oversample=3)
    assert len(found.right) == 4 and found.dealt == 9 and found.draws == 1


def test_starvation_is_an_error_with_the_pass_rate(tokenizer):
    with pytest.raises(
        ValueError, match="step 1 has 0 of 2 groups after 3 draws: 50% were all right and 50% all wrong"
    ):
        drawing(tokenizer, ["46", "46", "1", "1"] * 3, filter=True, draws=3)


def test_an_unfiltered_step_keeps_every_group(tokenizer):
    found = drawing(tokenizer, ["46", "46", "1", "1"])
    assert found.right.tolist() == [1, 1, 0, 0] and found.advantage.tolist() == [0, 0, 0, 0]


def test_answers_that_the_rule_does_not_judge_are_counted(tokenizer, monkeypatch):
    """Before, only the checker knew: a run was slow, and nothing said why."""
    counts = iter([0, 1, 1, 2])
    monkeypatch.setattr(Checker, "unjudged", property(lambda _: next(counts)))
    found = drawing(tokenizer, ["46", "46", "1", "1", "46", "1", "1", "46"], filter=True)
    assert found.draws == 2 and found.unjudged == 2 / 8


@pytest.mark.full
def test_a_run_and_an_evaluation_warn_of_answers_that_were_not_judged(tmp_path, monkeypatch, capsys):
    count = iter(range(10**6))
    monkeypatch.setattr(Checker, "unjudged", property(lambda _: next(count)))
    assert main(["run", "cpu_tiny", *small("--steps 1"), "--run-dir", str(tmp_path / "run")]) == 0
    assert (
        "rollout batch 1: 12.5% of the responses count as wrong because data.rule = exact " in capsys.readouterr().out
    )
    model, test = tmp_path / "run" / "model", tmp_path / "run" / "data" / "test.parquet"
    assert main(["eval", str(model), str(test), "--k", "1", "--max-tokens", "4", "--rule", "exact"]) == 0
    assert "\nwarning: 1 responses count as wrong because the rule exact hung" in capsys.readouterr().out


def test_the_overlong_penalty_is_the_papers():
    """PAPER §8 with L_max 2048 and B 512."""
    settings = RolloutConfig(prompts=1, samples=1, max_tokens=2048, overlong_buffer=512)
    lengths = torch.tensor([1.0, 1536.0, 1792.0, 2048.0])
    assert overlong(lengths, settings).tolist() == [0.0, 0.0, -0.5, -1.0]
    halved = dataclasses.replace(settings, overlong_penalty=0.5)
    assert overlong(lengths, halved).tolist() == [0.0, 0.0, -0.25, -0.5]
    assert not overlong(lengths, dataclasses.replace(settings, overlong_buffer=0)).any()


def test_dealing_from_a_place_is_dealing_step_by_step():
    items = list("abcdefg")
    whole = deal_from(items, 0, 30, seed=1)
    assert whole == [x for step in range(6) for x in deal(items, 5, step, 1)]
    assert deal_from(items, 11, 7, seed=1) == whole[11:18]


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("rollout.overlong_buffer", 5, "overlong_buffer 5 exceeds max_tokens 4"),
        ("reference.replace", "often", "reference"),
        ("data.rule", "eval", "rule"),
    ],
)
def test_bad_settings_are_refused(key, value, message):
    with pytest.raises(ValueError, match=message):
        load("cpu_tiny", {key: value})


# Steps


def rollout_of(tokenizer, n=8):
    rng = random.Random(0)
    prompts = [[256, *(rng.randrange(256) for _ in range(rng.randrange(1, 5)))] for _ in range(n)]
    responses = [[rng.randrange(256) for _ in range(rng.randrange(1, 5))] for _ in range(n)]
    batch = pack(prompts, responses, tokenizer.pad_token_id)
    A = torch.tensor([rng.gauss(0, 1) for _ in range(n)])
    return Rollout(
        batch,
        [Task(prompt, "") for prompt in prompts],
        batch.mask * -1.0,
        A * 0,
        (A > 0).float(),
        A,
        A,
        (0.0, 0.0),
        1,
        n,
    )


@pytest.mark.parametrize("name", ["rpg-reinforce-urkl-clip", "grpo", "gspo", "dr-grpo", "rpg-urkl-prefix"])
@pytest.mark.parametrize("budget", [1, 20, 40])
def test_micro_batches_change_nothing(tokenizer, name, budget):
    recipe = dataclasses.replace(RECIPES[name], beta=0.1) if RECIPES[name].beta else RECIPES[name]
    model, rollout = Policy(small_model(tokenizer)).double(), rollout_of(tokenizer)
    old = logprobs(model, rollout.batch, 0, 1.0) + 0.01
    found = []
    for tokens in (0, budget):
        model.zero_grad()
        metrics = accumulate(model, rollout.batch, old, old - 0.1, rollout.advantage.double(), recipe, tokens, 1.0)
        found.append((torch.cat([w.grad.flatten() for w in model.parameters()]), metrics))
    (whole, of_whole), (parts, of_parts) = found
    assert (whole - parts).abs().max() < 1e-12 * whole.abs().max()
    assert of_parts == pytest.approx(of_whole, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["rpg-reinforce-urkl-clip", "gspo"])
def test_the_gradient_is_the_recipes_on_the_models_own_logits(tokenizer, name, tied):
    """Sequence by sequence, without padding, through transformers' own head."""
    recipe, rollout = RECIPES[name], rollout_of(tokenizer)
    model = small_model(tokenizer).double()
    if not tied:
        model.config.tie_word_embeddings = False
        own = torch.randn_like(model.lm_head.weight) / 6
        model.lm_head.weight = torch.nn.Parameter(own)
    old = logprobs(Policy(model), rollout.batch, 0, 0.7) + 0.01
    A = rollout.advantage.double()
    metrics = accumulate(Policy(model), rollout.batch, old, None, A, recipe, 30, 0.7)
    found = {key: weight.grad.clone() for key, weight in model.named_parameters()}
    assert ("lm_head.weight" in found) != tied
    model.zero_grad()
    losses, entropies = [], []
    for row, (prompt, length) in enumerate(rollout.batch.lengths):
        ids = rollout.batch.tokens[row][rollout.batch.attention[row] != 0]
        logits = model(input_ids=ids[None]).logits[:, prompt - 1 : -1]
        logp = token_logprobs(logits, ids[None, prompt:], temperature=0.7)
        kept = slice(row, row + 1)
        mask, denominator = torch.ones_like(logp), recipe.count(rollout.batch.mask)
        losses.append(recipe(logp, old[kept, :length], None, A[kept], mask, denominator=denominator).loss)
        entropies.append(token_entropy(logits.detach(), temperature=0.7).flatten())
    sum(losses).backward()
    for key, weight in model.named_parameters():
        assert torch.allclose(found[key], weight.grad, rtol=1e-10, atol=1e-14), key
    assert metrics["loss"] == pytest.approx(sum(losses).item(), rel=1e-10)
    assert metrics["entropy"] == pytest.approx(torch.cat(entropies).mean().item(), rel=1e-10)


@pytest.mark.parametrize("again", [False, True])
def test_blocks_are_computed_again_on_the_way_back(tokenizer, again):
    """transformers' own switch does nothing to a model in evaluation mode, and says nothing of it."""
    state, config = improving(tokenizer, **{"optimizer.recompute": again, "reference.replace": "never"})
    calls = []
    for block in blocks(state.model):
        block.mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    rollout = rollout_of(tokenizer)
    logprobs(state.reference, rollout.batch, 0, 1.0)
    assert not calls, "the reference has blocks of its own"
    accumulate(state.model, rollout.batch, None, None, rollout.advantage, RECIPES["grpo"], 0, 1.0)
    assert calls == [True] * (2 if again else 1)
    sample(state.model, tokenizer, [[1, 2]], max_tokens=2, temperature=1.0, seed=0)


def improving(tokenizer, **given):
    config = load("cpu_tiny", {"rollout.prompts": 4, "rollout.samples": 2, "optimizer.prompts": 1} | given)
    state = begin(small_model(tokenizer), config)
    return state, config


def improve_once(state, config, tokenizer):
    rule = reference_rule(config.reference)
    return improve(state, rollout_of(tokenizer), RECIPES[config.recipe], rule, config, Clock())


def distance(a, b):
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return sum(float((x.cpu() - y.cpu()).detach().abs().sum()) for x, y in pairs)


@pytest.mark.parametrize("replace, moved", [("never", False), ("steps", True), ("kl", True)])
def test_a_reference_is_replaced_by_its_rule(tokenizer, replace, moved):
    given = {
        "reference.replace": replace,
        "reference.every": 4,
        "reference.kappa": 1e-9,
        "optimizer.learning_rate": 1e-2,
    }
    state, config = improving(tokenizer, **given)
    first = small_model(tokenizer)
    assert distance(state.reference, first) == 0
    improve_once(state, config, tokenizer)
    assert (distance(state.reference, first) > 0) == moved
    if replace == "steps":
        assert distance(state.reference, state.model) == 0 and state.drift == ReferenceState()


def test_a_reference_that_is_kept_is_what_the_penalty_looks_at(tokenizer):
    state, config = improving(tokenizer, **{"reference.replace": "never", "beta": 1.0, "optimizer.learning_rate": 1e-2})
    for _ in range(3):
        metrics = improve_once(state, config, tokenizer)
    assert metrics["reverse_kl"] > 0.01
    state, config = improving(tokenizer, **{"beta": 1.0, "optimizer.learning_rate": 1e-4})
    assert improve_once(state, config, tokenizer)["reverse_kl"] < 0.01


def test_three_broken_gradients_in_a_row_end_the_run(tokenizer):
    state, config = improving(tokenizer)
    with torch.no_grad():
        next(state.model.parameters()).mul_(math.nan)
    with pytest.raises((Diverged, ValueError)):
        improve_once(state, config, tokenizer)
    state, config = improving(tokenizer)
    poisoned = iter([math.inf, math.inf, 1.0, math.inf, math.inf, math.inf])
    next(state.model.parameters()).register_hook(lambda g: g * next(poisoned))
    before = [w.clone() for w in state.model.parameters()]
    with pytest.raises(Diverged, match="3 times in a row, in rollout batch 1"):
        improve_once(state, config, tokenizer)
        improve_once(state, config, tokenizer)
    assert state.taken == 1 and state.skipped_in_a_row == 3
    assert next(poisoned, None) is None, "a step that was taken begins the count anew"
    assert all(bool(w.isfinite().all()) for w in state.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))


def test_schedule_free_samples_from_its_average(tokenizer):
    pytest.importorskip("schedulefree")
    state, config = improving(tokenizer, **{"optimizer.kind": "schedule-free", "optimizer.learning_rate": 1e-2})
    assert state.optimizer.averages
    metrics = improve_once(state, config, tokenizer)
    assert metrics["skipped_steps"] == 0
    at_gradient = [w.clone() for w in state.model.parameters()]
    state.optimizer.rule.eval()
    assert any(not torch.equal(a, b) for a, b in zip(at_gradient, state.model.parameters(), strict=True))


@pytest.mark.parametrize("kind, passes", [("adamw", False), ("schedule-free", True)])
def test_one_mini_batch_is_on_policy_unless_the_gradient_is_taken_elsewhere(tokenizer, kind, passes):
    given = {"optimizer.prompts": 4, "optimizer.kind": kind, "optimizer.learning_rate": 1e-2, "optimizer.warm_up": 9}
    state, config = improving(tokenizer, **given)
    for _ in range(3):
        sampling(state.optimizer)
        clock = Clock()
        rule = reference_rule(config.reference)
        metrics = improve(state, rollout_of(tokenizer), RECIPES[config.recipe], rule, config, clock)
    assert ("seconds_old" in clock.seconds) == passes
    assert (metrics["ratio_max"] == 1.0) != passes
    assert learning_rate(state.optimizer) == pytest.approx(1e-2 * 3 / 9)


# Evaluation


def test_mean_and_pass_at_k():
    right = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]]).float()
    mean_at_k, pass_at_k = summarise(right)
    assert mean_at_k.mean == pytest.approx(7 / 16) and pass_at_k.mean == 0.75
    assert pass_at_k.stderr == pytest.approx((0.75 * 0.25 / 3) ** 0.5)
    assert mean_at_k.stderr == pytest.approx(torch.tensor([0.25, 0, 1, 0.5]).std().item() / 2)
    assert math.isnan(summarise(right[:1])[0].stderr), "one problem tells nothing of the others"


@pytest.mark.full
def test_eval_of_a_run_s_model(tmp_path, capsys):
    assert main(command(tmp_path / "run", "--steps", "1")) == 0
    capsys.readouterr()
    test = str(tmp_path / "run" / "data" / "test.parquet")
    words = ["eval", str(tmp_path / "run" / "model"), test, "--k", "2", "--max-tokens", "4", "--rule", "exact"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("Mean@2 0.") and "Pass@2 0." in out
    length, cut_off = re.search(r"responses: (\S+) tokens on average, (\S+)% cut off at 4\n", out).groups()
    assert 1 <= float(length) <= 4 and 0 < float(cut_off) <= 100
    for bad, message in (
        (["eval"], "eval needs a model's folder"),
        (["eval", str(tmp_path), test], "there is no model at"),
        (["eval", str(tmp_path), "nowhere.parquet"], "cannot read nowhere.parquet"),
        ([*words, "--kk", "3"], "unknown key 'kk'"),
        ([*words, "--k", "0"], "k = 0"),
        ([*words, "--max-tokens", "600"], "exceed the 512 of"),
    ):
        assert main(bad) == 2
        assert message in capsys.readouterr().err


# Going on


@pytest.mark.parametrize("line", ["[]", "3", "null", '{"step": 1}', '{"phase": "evaluation"}', '{"a'])
def test_a_line_that_is_no_row_is_passed_over(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    whole = {"phase": "evaluation", "step": 0}
    path.write_text(f"{line}\n{json.dumps(whole)}\n")
    keep(path, lambda row: row["phase"] == "evaluation" and row["step"] == 0)
    assert rows(tmp_path) == [whole]


@pytest.mark.parametrize(
    "key", ["config", "problems", "before", "drift", "optimizer", "dealt", "model/model.embed_tokens.weight"]
)
def test_a_checkpoint_that_lacks_a_key_is_damaged(tokenizer, key):
    config = load("cpu_tiny", {})
    state = begin(small_model(tokenizer), config)
    found = snapshot(state, config, "hash", Accuracy(0.5, 0.1))
    refuse_incomplete(state, found)
    of, _, name = key.rpartition("/")
    del (found.tensors[of] if of else found.state)[name]
    with pytest.raises(ValueError, match=f"checkpoint of step 0 is damaged, it lacks {key}; remove its folder and"):
        refuse_incomplete(state, found)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["adamw", "schedule-free"])
def test_a_run_that_stopped_goes_on_bit_for_bit(tmp_path, kind):
    whole, half = tmp_path / "whole", tmp_path / "half"
    reference = ("--reference.replace", "kl", "--reference.kappa", "1e-6", "--optimizer.kind", kind)
    assert main(command(whole, *reference)) == 0
    assert main(command(half, *reference, "--steps", "2")) == 0
    assert main(["resume", str(half), "--steps", "4"]) == 0
    assert rows(half) == rows(whole)
    assert (half / "transcripts.jsonl").read_bytes() == (whole / "transcripts.jsonl").read_bytes()
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (whole, half)]
    assert weights[0] == weights[1]


@pytest.mark.full
def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(command(folder)) == 0
    expected = rows(folder), (folder / "model" / "model.safetensors").read_bytes()
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    weights = newest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    capsys.readouterr()
    assert main(["resume", str(folder)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "model.safetensors" in out and "resumed after rollout batch 3" in out
    assert (rows(folder), (folder / "model" / "model.safetensors").read_bytes()) == expected


@pytest.mark.parametrize(
    "words, message",
    [
        (["--beta", "0.5"], "another configuration: beta None → 0.5"),
        full(["--optimizer.learning-rate", "1e-9"], "optimizer.learning_rate 0.0003 → 1e-09"),
        full(["--seed", "5"], "seed 0 → 5"),
        full(["--run-dir", "elsewhere"], "a run goes on in its own folder"),
    ],
)
def test_a_changed_configuration_is_refused(tmp_path, capsys, words, message):
    folder = tmp_path / "run"
    assert main(command(folder, "--steps", "1")) == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["resume", str(folder), *words]) == 2
    assert message in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.full
def test_an_evaluation_is_neither_lost_nor_done_twice(tmp_path, capsys):
    folder = tmp_path / "run"

    def evaluated():
        return [row["step"] for row in rows(folder) if row["phase"] == "evaluation"]

    assert main(command(folder, "--eval-every", "1")) == 0 and evaluated() == [0, 1, 2, 3, 4]
    assert main(["resume", str(folder), "--eval-every", "0"]) == 0 and evaluated() == [0, 1, 2, 3, 4]
    assert main(["resume", str(folder), "--steps", "2"]) == 2
    assert "steps is 2 but 4 are done" in capsys.readouterr().err
    assert main(["resume", str(folder), "--steps", "5"]) == 0 and evaluated() == [0, 1, 2, 3, 5]
    assert main(["resume", str(folder), "--steps", "6", "--eval-every", "5"]) == 0
    assert evaluated() == [0, 1, 2, 3, 5, 6]
    assert main(command(tmp_path / "start", "--steps", "0")) == 0
    assert main(["resume", str(tmp_path / "start")]) == 0
    assert [row["step"] for row in rows(tmp_path / "start") if row["phase"] == "evaluation"] == [0]


@pytest.mark.full
def test_a_run_that_lost_its_checkpoints_is_not_begun_anew(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(command(folder, "--steps", "1")) == 0
    before = (folder / "metrics.jsonl").read_bytes()
    shutil.rmtree(folder / "checkpoints")
    assert main(["resume", str(folder)]) == 2
    assert "has rollout batches in metrics.jsonl but no checkpoint" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.full
def test_two_processes_do_not_work_in_one_folder(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(command(folder, "--steps", "1")) == 0
    before = (folder / "metrics.jsonl").read_bytes()
    with alone(folder):
        assert main(["resume", str(folder), "--steps", "2"]) == 2
    assert "another process is at work in" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert main(["resume", str(folder), "--help"]) == 0 and "usage" in capsys.readouterr().out
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_name_of_any_letters_comes_back(tmp_path):
    config = load("cpu_tiny", {"name": 'a"b\\c\x7f\n🙂é'})
    (tmp_path / "config.toml").write_bytes(dump(config).encode())
    assert load(str(tmp_path / "config.toml"), {}) == config


def test_a_broken_policy_ends_the_run_and_says_what_to_do(tmp_path, capsys):
    assert main(command(tmp_path / "run", "--optimizer.learning-rate", "1e6")) == 1
    assert "begin a new run with a lower optimizer.learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    "kind, changes, by",
    [
        ("Gemma2", {}, "final_logit_softcapping = 30.0 in its config.json"),
        ("Granite", {"logits_scaling": 2.0}, "logits_scaling = 2.0 in its config.json"),
        ("Cohere", {}, "logit_scale = 0.0625 in its config.json"),
        ("Phi", {}, "a bias of its head"),
    ],
)
def test_a_model_whose_logits_are_no_product_is_refused(tmp_path, kind, changes, by):
    """Capped, scaled, and with a bias (which random weights leave at zero)."""
    import transformers

    sizes = {"vocab_size": 262, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    config = getattr(transformers, f"{kind}Config")(**sizes, **heads, **changes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    if model.lm_head.bias is not None:
        torch.nn.init.ones_(model.lm_head.bias[:9])
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"caps, scales or shifts its logits by {by}, which"):
        open_model(str(tmp_path))


def test_a_model_with_a_state_of_its_own_is_refused(tmp_path, tokenizer):
    from transformers import MambaConfig, MambaForCausalLM

    MambaForCausalLM(MambaConfig(vocab_size=262, hidden_size=8, num_hidden_layers=1)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pass a model that is attention alone"):
        open_model(str(tmp_path))


def test_an_id_that_only_the_model_knows_is_no_answer(tokenizer):
    four, six = answer_ids(tokenizer, "46")[:2]
    said = [[four, six, 257], [four, len(tokenizer) + 3, six, 257]]
    assert judge(tokenizer, Checker("exact"), said, [Task([1], "46")] * 2).tolist() == [1, 0]


def test_other_problems_are_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    problems = [
        {"prompt": [{"role": "user", "content": f"{i}"}], "reward_model": {"ground_truth": "1"}} for i in range(40)
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, problems)))
    assert main(command(folder, "--steps", "1", "--data.train", str(file))) == 0
    file.write_text("\n".join(map(json.dumps, problems[1:])))
    capsys.readouterr()
    assert main(["resume", str(folder)]) == 2
    assert "the problems are others than when the run began" in capsys.readouterr().err


def test_what_is_no_run_is_refused(tmp_path, capsys):
    for words, message in (
        ([], "resume needs a run's folder"),
        ([str(tmp_path)], "it has no config.toml"),
    ):
        assert main(["resume", *words]) == 2
        assert message in capsys.readouterr().err


SCRIPT = """
import sys
import train.job
import train.run
from tests.small_run import verified_elsewhere
from train.cli import main
train.job.verify = verified_elsewhere
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_it_ends_the_same(tmp_path, seed):
    """kill −9 again and again, also during saves; what is resumed ends bit for bit as what was never killed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", SCRIPT, *command(whole, "--steps", "6")], check=True, capture_output=True)
    undisturbed = time.perf_counter() - start
    rng = random.Random(seed)
    words = command(killed, "--steps", "6")
    for _ in range(60):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, *words], stdout=subprocess.DEVNULL)
        try:
            code = process.wait(timeout=undisturbed * rng.uniform(0.6, 1.1))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            if (killed / "config.toml").exists():
                words = ["resume", str(killed)]
            else:
                shutil.rmtree(killed, ignore_errors=True)
            time.sleep(0.05)
            continue
        assert code == 0
        break
    else:
        pytest.fail("it never ended")
    assert rows(killed) == rows(whole)
    assert (killed / "transcripts.jsonl").read_bytes() == (whole / "transcripts.jsonl").read_bytes()
    names = ("model.safetensors", "config.json")
    assert all((killed / "model" / name).read_bytes() == (whole / "model" / name).read_bytes() for name in names)


def may_mount():
    words = ["unshare", "-rm", "true"]
    return shutil.which("unshare") is not None and subprocess.run(words, capture_output=True).returncode == 0


FULL = """
import io, json, subprocess, sys
from contextlib import redirect_stderr
import train.job
import train.run
from pathlib import Path
from tests.small_run import verified_elsewhere
from train.cli import main
train.job.verify = verified_elsewhere
disk, kept, *words = sys.argv[1:]
told = []
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
for size in range(128, 4096, 64):
    err = io.StringIO()
    with redirect_stderr(err):
        code = main(words)
    told.append([code, err.getvalue()])
    if code == 0:
        break
    subprocess.run(["mount", "-o", f"remount,size={size}k", disk], check=True)
    if Path(disk, "run", "config.toml").exists():
        words = ["resume", f"{disk}/run"]
subprocess.run(["cp", "-r", f"{disk}/run", kept], check=True)
print(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="may not mount a small disk")
def test_on_a_disk_that_fills_up_again_and_again_it_ends_the_same(tmp_path):
    """Each time a little room is made, and the run goes on; it never ends otherwise than with one line."""
    whole, disk, found = tmp_path / "whole", tmp_path / "disk", tmp_path / "found"
    assert main(command(whole, "--steps", "4")) == 0
    disk.mkdir()
    words = [
        "unshare",
        "-rm",
        sys.executable,
        "-c",
        FULL,
        str(disk),
        str(found),
        *command(disk / "run", "--steps", "4"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    failures = [line for code, line in told if code]
    assert len(failures) > 3 and told[-1] == [0, ""]
    assert all(line.startswith("train: ") and line.count("\n") == 1 for line in failures), failures
    assert sum("No space left on device" in line for line in failures) > 3, failures
    assert rows(found) == rows(whole)
    assert (found / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()


# Models that exist


@pytest.mark.full
def test_a_run_goes_on_from_another_run_s_model(tmp_path, capsys):
    assert main(command(tmp_path / "start", "--steps", "0")) == 0
    start = tmp_path / "start"
    assert not (start / "curves.png").exists()
    path = tmp_path / "mine.toml"
    path.write_text(
        f"""name = "mine"
recipe = "grpo"
steps = 1
eval_samples = 2
[model]
path = "{start}/model"
[data]
train = "{start}/data/train.parquet"
test = "{start}/data/test.parquet"
[warm_start]
steps = 0
batch = 1
learning_rate = 1.0
[rollout]
prompts = 2
samples = 2
max_tokens = 4
[optimizer]
prompts = 2
learning_rate = 1e-3
"""
    )
    assert main(["run", str(path), "--run-dir", str(tmp_path / "run")]) == 0
    before = [row for row in rows(tmp_path / "run") if row["phase"] == "evaluation"][0]
    after = [row for row in rows(start) if row["phase"] == "evaluation"][-1]
    assert before == after | {"step": 0}
    capsys.readouterr()
    for words, message in (
        (["--model.path", str(tmp_path / "nowhere")], "there is no model at"),
        (["--model.path", str(path)], "there is no model at"),
        (["--model.path", "package:no-such-package"], "the package no-such-package is not installed; `pip install"),
        (["--model.path", "package:numpy"], "the package numpy holds 0 .gguf files"),
        (["--model.width", "32"], "whose shape is its own; leave out width"),
        (["--model.context", "9999"], "9999 tokens, prompt and response, exceed the 512 of"),
    ):
        assert main(["run", str(path), "--run-dir", str(tmp_path / "no"), *words]) == 2
        assert message in capsys.readouterr().err
    path.write_text(path.read_text().replace(f'path = "{start}/model"', "width = 32"))
    assert main(["run", str(path)]) == 2
    assert "a random model lacks mlp_width, layers, heads, key_value_heads" in capsys.readouterr().err


@pytest.mark.slow
def test_smollm2_takes_a_few_steps(tmp_path):
    pytest.importorskip("gguf")
    folder = tmp_path / "run"
    words = "--steps 2 --warm-start.steps 3 --rollout.prompts 4 --optimizer.prompts 2 --data.test-problems 8".split()
    assert main(["run", "cpu_smollm2", *words, "--checkpoint-every", "1", "--run-dir", str(folder)]) == 0
    steps = [row for row in rows(folder) if row["phase"] == "policy_gradient"]
    assert len(steps) == 2 and all(0.9 < row["ratio_mean"] < 1.1 and row["skipped_steps"] == 0 for row in steps)
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["model_type"] == "llama" and "quantization_config" not in config
    test = str(folder / "data" / "test.parquet")
    assert main(["eval", str(folder / "model"), test, "--k", "1", "--max-tokens", "4", "--rule", "exact"]) == 0


@pytest.mark.full
def test_report_from_the_command_line(tmp_path, capsys):
    for seed in ("0", "1"):
        assert main(command(tmp_path / seed, "--steps", "1", "--seed", seed)) == 0
    capsys.readouterr()
    folders = [str(tmp_path / seed) for seed in ("0", "1")]
    assert main(["report", *folders, "--out", str(tmp_path / "report")]) == 0
    assert capsys.readouterr().out.startswith("written to ")
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.png", "report.html"}
    for words, message in (
        (["report"], "no run's folder is given"),
        (["report", *folders, "--ot", "x"], "unknown key 'ot'; the nearest are out"),
        (["report", str(tmp_path)], "config.toml"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err
