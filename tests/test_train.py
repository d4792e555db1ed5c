import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import pytest
import torch
from small_run import SMALL, verified_elsewhere
from tiers import quick
from transformers import AutoModelForCausalLM, AutoTokenizer

import train.job
import train.run
from rpg_ref import RECIPES
from rpg_ref.audit.verify import verify
from train import rollout as rollout_module
from train.answering.checker import Checker
from train.batch import pack, response_logprobs
from train.cli import main, overrides
from train.config import ModelConfig, OptimizerConfig
from train.engines.by_transformers import inverse_cdf
from train.engines.by_transformers import sample as said_by
from train.engines.engine import Said
from train.model import build_model
from train.optim import build_optimizer, step
from train.policy import Policy
from train.preset import dump, load
from train.problems.files import Message, Problem, read
from train.problems.tasks import Task, tasks_of
from train.seeds import derive
from train.tokenizer import answer_ids, build_tokenizer, prompt_ids
from train.warm_start import demonstrate
from train.watching.clock import Clock


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    shape = ModelConfig(width=32, mlp_width=64, layers=2, heads=2, key_value_heads=1)
    return build_model(shape, seed=0)


def command(folder, *more):
    return ["run", "cpu_tiny", *SMALL, "--run-dir", str(folder), *more]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def refusal(capsys, *arguments):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("train: ") and captured.err.count("\n") == 1 and captured.out == ""
    return captured.err


def sample(*arguments, **words):
    return [ids for ids, _ in said_by(*arguments, **words)]


# Tokens


@pytest.mark.parametrize("text", ["47+38", "", " a  b\n", "é∑ 数学 🙂", "$\\boxed{42}$"])
def test_any_text_round_trips(tokenizer, text):
    ids = answer_ids(tokenizer, text)
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.decode(ids[:-1]) == text
    assert len(ids) == len(text.encode()) + 1


def test_a_prompt_is_the_chat_template_and_a_long_one_loses_its_beginning(tokenizer):
    turns = (Message("system", "add"), Message("user", "47+38"))
    ids = prompt_ids(tokenizer, turns)
    assert tokenizer.decode(ids) == "<|bos|><|system|>add<|user|>47+38<|assistant|>"
    warnings, problems = [], [Problem(turns, "85"), Problem(turns[1:], "85")]
    found = tasks_of(problems, tokenizer, len(ids) - 1, warnings.append, "training prompts", "data.max_prompt_tokens")
    assert found == [Task(ids[1:], "85"), Task(prompt_ids(tokenizer, turns[1:]), "85")]
    assert warnings == [
        f"1 of 2 training prompts are longer than data.max_prompt_tokens = {len(ids) - 1} and lose their beginning, "
        "such as the role's header and the first words of the problem; raise it"
    ]


def test_right_is_the_whole_answer_ended(tokenizer):
    def right(*said):
        tasks = [Task([1], "85")] * len(said)
        return rollout_module.judge(tokenizer, Checker("exact"), said, tasks).tolist()

    ids = [answer_ids(tokenizer, text) for text in ("85", " 85\n", "58", "8", "850", "85.", "<|pad|>85", "85<|user|>")]
    assert right(*ids) == [1, 1, 0, 0, 0, 0, 0, 0]
    # "850" cut off before its end is not "85" and an end.
    assert right(ids[0][:-1], ids[0], ids[0][-1:], ids[4][:-1]) == [0, 1, 0, 0]


# Log-probabilities


PROMPTS, RESPONSES = [[256, 260, 19, 261], [256, 7, 8, 9, 10, 11, 261]], [[20, 21, 257], [22]]


def by_hand(model, prompt, response):
    """log π of each response token, the model called once a token on what stands before it, without padding."""
    logps = []
    for i, token in enumerate(response):
        logits = model(torch.tensor([prompt + response[:i]])).logits[0, -1]
        logps.append(logits.log_softmax(-1)[token].item())
    return logps


@torch.no_grad()
def test_log_probs_are_those_of_the_tokens_themselves_whatever_the_padding(model):
    batch = pack(PROMPTS, RESPONSES, pad_id=258)
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    logp = response_logprobs(Policy(model), batch)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        expected = by_hand(model, prompt, response)
        assert logp[row, : len(response)].tolist() == pytest.approx(expected, abs=1e-5)
    shifted = by_hand(model, PROMPTS[0][:-1], [PROMPTS[0][-1], *RESPONSES[0][:-1]])
    assert abs(shifted[0] - logp[0, 0]) > 1e-2, "a label shifted by one would go unnoticed here"


@torch.no_grad()
def test_log_probs_are_tempered(model):
    batch = pack(PROMPTS[:1], RESPONSES[:1], pad_id=258)
    logits = model(batch.tokens).logits[0, 3:6] / 0.5
    expected = logits.log_softmax(-1)[range(3), RESPONSES[0]]
    assert torch.allclose(response_logprobs(Policy(model), batch, temperature=0.5)[0], expected, atol=1e-5)


def test_positions_count_from_each_sequence_s_own_first_token():
    """Rotary positions are relative, so only a look at them tells; models with absolute ones would differ."""
    seen = {}

    def policy(then, **inputs):
        seen.update(inputs)
        return then(torch.zeros(2, 10, 4), torch.zeros(262, 4))

    response_logprobs(policy, pack(PROMPTS, RESPONSES, pad_id=258))
    assert seen["position_ids"].tolist() == [[0, 0, 0, 0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6, 7, 7, 7]]
    assert seen["attention_mask"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]]


def draw(model, tokenizer, prompts, seed=0, temperature=1.0):
    return sample(Policy(model), tokenizer, prompts, max_tokens=2, temperature=temperature, seed=seed)


def test_the_sampler_draws_from_the_trainer_s_distribution_left_padding_included(model, tokenizer):
    prompt, n = PROMPTS[0], 4000
    drawn = draw(model, tokenizer, [prompt] * n + [PROMPTS[1]])[:n]
    with torch.no_grad():
        p = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    counts = Counter(first for first, *_ in drawn)
    assert len(counts) > 100, "a top-k of 50 would be a default's"
    frequency = torch.tensor([counts[token] / n for token in range(len(p))])
    # Expected total variation of n draws from p, and twice that for chance.
    assert (frequency - p).abs().sum() < 2 * (2 * p * (1 - p) / (math.pi * n)).sqrt().sum()


def test_samples_end_with_the_end_and_repeat_with_the_seed_alone(model, tokenizer):
    state = torch.get_rng_state()
    drawn = draw(model, tokenizer, [PROMPTS[0]] * 3000)
    assert torch.equal(state, torch.get_rng_state())
    assert drawn == draw(model, tokenizer, [PROMPTS[0]] * 3000) != draw(model, tokenizer, [PROMPTS[0]] * 3000, seed=1)
    assert {len(ids) for ids in drawn if ids[-1] == 257} == {1, 2} and all(257 not in ids[:-1] for ids in drawn)


@pytest.mark.full
def test_what_a_row_says_depends_on_no_other_row(model, tokenizer):
    """Rows that end are dropped on the way; prompts are shared; batches are split: none of it changes a row."""
    prompts = [PROMPTS[i % 2] for i in range(40)]
    words = {"max_tokens": 100, "temperature": 0.5, "seed": 5}
    tokens = Counter(token for said in sample(Policy(model), tokenizer, prompts, **words) for token in said)
    tokenizer = SimpleNamespace(pad_token_id=258, eos_token_id=tokens.most_common(1)[0][0])
    drawn = sample(Policy(model), tokenizer, prompts, **words)
    lengths = sorted(map(len, drawn))
    assert lengths[0] < lengths[len(lengths) // 2] < 100, "rows must be dropped at several moments"
    keep = [row for row in range(40) if row % 2]
    alone = {row: drawn[row] for row in keep}
    others_gone = sample(Policy(model), tokenizer, [PROMPTS[1]] * 40, **words)
    assert [others_gone[row] for row in keep] == list(alone.values())
    assert sample(Policy(model), tokenizer, prompts, **words, at_once=7) == drawn, "how many are drawn at a time"
    assert sample(Policy(model), tokenizer, prompts[10:17], **words, first=10) == drawn[10:17], "a rank's share"


def test_the_sampler_follows_the_model_along_long_responses(model, tokenizer):
    """Every token is the one that the inverse distribution function gives under the model's logits without a cache."""
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    drawn = sample(Policy(model), tokenizer, prompts, max_tokens=150, temperature=1e-4, seed=0)
    for prompt, said in zip(prompts, drawn, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
        best = logits.topk(2, dim=-1)
        clear = best.values[:, 0] - best.values[:, 1] > 0.01
        assert torch.equal(best.indices[:, 0][clear], torch.tensor(said)[clear]) and clear.float().mean() > 0.9


def test_the_inverse_distribution_function_is_exact():
    logits = torch.tensor([-math.inf, 0.0, math.log(2.0), -math.inf, 0.0, -math.inf])
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    found = inverse_cdf(logits.expand(4000, -1), u)
    assert torch.bincount(found, minlength=6).tolist() == [0, 1000, 2000, 0, 1000, 0]
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(logits.expand(2, -1), edges).tolist() == [1, 4]
    assert inverse_cdf(torch.full((2, 3), math.nan), edges).max() < 3


# Steps


def test_a_broken_gradient_moves_nothing_and_a_long_one_is_shortened():
    layer = torch.nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(layer, OptimizerConfig(learning_rate=0.1, prompts=1, warm_up=2, weight_decay=0.0))
    before = layer.weight.clone()
    (layer.weight.sum() * math.inf).backward()
    assert not step(optimizer, 0) < math.inf
    assert torch.equal(layer.weight, before) and layer.weight.grad is None
    (layer.weight.sum() * 100).backward()
    assert step(optimizer, 0) == pytest.approx(100 * 2**0.5)
    assert optimizer.rule.state[layer.weight]["exp_avg"].norm() == pytest.approx(0.1, abs=1e-4)
    # AdamW's first step is its learning rate, here half way up the warm-up.
    assert (before - layer.weight).flatten().tolist() == pytest.approx([0.05, 0.05], abs=1e-5)


def test_a_slip_changes_one_digit():
    rng = random.Random(0)
    shown = [demonstrate("x=85", 0.5, rng) for _ in range(2000)]
    slips = [answer for answer in shown if answer != "x=85"]
    assert len(slips) == pytest.approx(1000, abs=100)
    assert all(re.fullmatch(r"x=(8[0-9]|[0-9]5)", answer) for answer in slips) and len(set(slips)) == 18
    assert demonstrate("pi", 1.0, rng) == "pi" and demonstrate("7", 0.0, rng) == "7"


def test_derived_seeds_are_fixed_and_differ():
    assert derive(0, "rollout", 1) == 226755915249339
    assert len({derive(seed, name, i) for seed in (0, 1) for name in "ab" for i in range(50)}) == 200


# Whole runs


def test_a_small_run_writes_everything_and_its_checkpoint_reloads(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(command(folder)) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "rpg-reinforce-urkl-clip is verified" in out
    assert re.search(r"accuracy [\d.]+ ± [\d.]+ → [\d.]+ ± [\d.]+ on 8 held-out problems", out)
    assert {path.name for path in folder.iterdir()} == {
        "config.toml",
        "data",
        "metrics.jsonl",
        "transcripts.jsonl",
        "checkpoints",
        "model",
        "curves.png",
    }
    assert len(read(folder / "data" / "test.parquet")) == 8
    rows = metrics(folder)
    assert Counter(row["phase"] for row in rows) == {"warm_start": 3, "evaluation": 2, "policy_gradient": 2}
    for row in rows:
        assert all(isinstance(x, int | float) for key, x in row.items() if key != "phase"), row
    assert matplotlib.image.imread(folder / "curves.png").shape[1] == 1200

    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    mine, turns = build_tokenizer(), [{"role": "user", "content": "47+38"}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert tokenizer(text)["input_ids"] == prompt_ids(mine, (Message("user", "47+38"),))
    assert model.dtype == torch.float32 and model.config.eos_token_id == mine.eos_token_id


@pytest.mark.full
def test_the_checkpoint_is_the_model_that_was_trained(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(train.job, "verify", verified_elsewhere)
    monkeypatch.setattr(train.run, "build_model", lambda *a: trained.append(build_model(*a)) or trained[0])
    assert main(command(tmp_path / "run")) == 0
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    ids = torch.tensor(PROMPTS[:1])
    with torch.no_grad():
        assert torch.equal(reloaded(ids).logits, trained[0].cpu().eval()(ids).logits)


@pytest.mark.full
def test_the_same_seed_gives_the_same_numbers_and_another_gives_others(tmp_path, monkeypatch):
    monkeypatch.setattr(train.job, "verify", verified_elsewhere)
    runs = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert main(command(tmp_path / name, "--seed", seed)) == 0
        clocks = ("seconds", "tokens_per_second")
        runs.append([{k: v for k, v in row.items() if not k.startswith(clocks)} for row in metrics(tmp_path / name)])
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("recipe", quick(["rpg-rkl", "grpo", "rpg-ufkl-clip-as-printed"], ["rpg-rkl"]))
def test_other_recipes_run_on_a_user_s_own_file(tmp_path, monkeypatch, recipe):
    monkeypatch.setattr(train.job, "verify", verified_elsewhere)
    path = tmp_path / "mine.jsonl"
    rows = [
        {"prompt": [{"role": "user", "content": f"say {i}"}], "reward_model": {"ground_truth": str(i)}}
        for i in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(command(tmp_path / "run", "--data.train", str(path), f"--recipe={recipe}")) == 0
    row = metrics(tmp_path / "run")[-2]
    assert ("clip_high" in row) == (RECIPES[recipe].clip is not None) and row["skipped_steps"] == 0
    assert not (tmp_path / "run" / "data").exists()


# Refusals


def test_a_recipe_that_is_not_what_it_says_is_refused_before_anything_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        train.job, "verify", lambda recipe: SimpleNamespace(ok=False, verdict=f"{recipe.name} is wrong")
    )
    message = refusal(capsys, *command(tmp_path / "run"))
    assert "refusing to train: rpg-reinforce-urkl-clip is wrong" in message and not (tmp_path / "run").exists()


def test_a_recipe_for_a_critic_is_refused(tmp_path, capsys):
    message = refusal(capsys, *command(tmp_path / "run"), "--recipe=ppo")
    assert "recipe ppo takes the advantages of a critic" in message and "dapo" in message


def test_the_recipe_that_is_verified_is_the_one_with_the_run_s_beta(tmp_path, monkeypatch):
    seen = []

    def fail(recipe):
        seen.append(recipe)
        return SimpleNamespace(ok=False, verdict="")

    monkeypatch.setattr(train.job, "verify", fail)
    main(command(tmp_path / "run", "--beta", "0.5"))
    main(command(tmp_path / "run", "--recipe", "grpo"))
    assert [recipe.beta for recipe in seen] == [0.5, RECIPES["grpo"].beta]


def test_a_run_folder_is_never_overwritten(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train.job, "verify", verified_elsewhere)
    (tmp_path / "precious").write_text("x")
    for folder in (tmp_path, tmp_path / "precious"):
        assert "exists already; choose another with --run-dir" in refusal(capsys, *command(folder))
    assert "cannot make the run folder" in refusal(capsys, *command(tmp_path / "precious" / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_file_is_no_run_folder_and_nothing_to_go_on_with(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train.job, "verify", verified_elsewhere)
    file = tmp_path / "README.md"
    file.write_text("mine")
    error = refusal(capsys, *command(file))
    assert "choose another with --run-dir: this one is a file" in error and "resume" not in error
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run", "run needs a preset first"),
        ("run --seed 1", "run needs a preset first"),
        ("rum cpu_tiny", "unknown command 'rum'; the nearest are run"),
        ("run cpu_tny", "unknown preset 'cpu_tny'; the nearest are cpu_tiny"),
        (
            "run none/such.toml",
            "cannot read the preset none/such.toml: No such file or directory; presets are cpu_smollm2",
        ),
        ("run cpu_tiny --sede 1", "unknown key 'sede'; the nearest are seed"),
        ("run cpu_tiny --optimizer.lerning-rate 1", "the nearest are optimizer.learning_rate"),
        ("run cpu_tiny --optimizer 1", "unknown key 'optimizer'"),
        ("run cpu_tiny --recipe rpg-urlk", "unknown recipe 'rpg-urlk'; the nearest are rpg-urkl"),
        ("run cpu_tiny seed=1", "'seed=1' is not an option; write --key value"),
        ("run cpu_tiny --seed", "--seed has no value"),
        ("run cpu_tiny --seed one", 'seed = "one": Expected int, got str'),
        ("run cpu_tiny --seed 2024-05-01", 'seed = "2024-05-01": Expected int, got str'),
        ("run cpu_tiny --steps 07:32:00", 'steps = "07:32:00": Expected int, got str'),
        (
            "run cpu_tiny --rollout.filter 1979-05-27T07:32:00Z",
            'filter = "1979-05-27T07:32:00Z": Expected bool, got str',
        ),
        ("run cpu_tiny --data.rule mathverify", 'data.rule = "mathverify": choose exact, math-verify or released'),
        ("run cpu_tiny --device tpu", 'device = "tpu": choose auto, cpu or cuda'),
        ('run cpu_tiny --loggers ["mlflow"]', 'loggers = ["mlflow"]: choose tensorboard, wandb or trackio'),
        ("run cpu_tiny --loggers wandb", 'loggers = "wandb": Expected array, got str'),
        ("run cpu_tiny --device 5", "device = 5: Expected str, got int"),
        ("eval m p --rule mathverify", 'rule = "mathverify": choose exact, math-verify or released'),
        ("run cpu_tiny --seed -1", "seed = -1: Expected int >= 0"),
        ("run cpu_tiny --beta=-0.1", "beta = -0.1: Expected float >= 0"),
        ("run cpu_tiny --optimizer.learning-rate nan", "optimizer.learning_rate = NaN: Expected float > 0"),
        ("run cpu_tiny --optimizer.learning-rate 0", "optimizer.learning_rate = 0: Expected float > 0"),
        ("run cpu_tiny --optimizer.prompts 5", "optimizer.prompts 5 does not divide rollout.prompts 64"),
        ("run cpu_tiny --model.heads 5", "[model]: width 192 is not a multiple of 2 x heads = 10"),
        ("run cpu_tiny --model.key-value-heads 4", "heads 6 is not a multiple of key_value_heads 4"),
        ("run cpu_tiny --rollout.max-tokens 400", "= 848 exceeds model.context 512"),
        ("run cpu_tiny --rollout.max-tokens 2", "rollout.max_tokens is 2 but the answer '"),
        ("run cpu_tiny --data.test x.jsonl", "[data]: test is 'x.jsonl' but train is left out"),
        ("run cpu_tiny --data.train none.jsonl", "cannot read none.jsonl"),
        ("run cpu_tiny --data.test-problems 9999", "data.test_problems is 9999; hold out fewer"),
        ("run cpu_tiny --recipe grpo --rollout.samples 1", "group_std needs 2"),
    ],
)
def test_bad_input_is_one_line_that_names_it_and_its_remedy(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.setattr(train.job, "verify", verified_elsewhere)
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, *arguments.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is not TOML"),
        ("name = 'x'\nrecpe = 'y'", "unknown key 'recpe'; the nearest are recipe"),
        ("name = 'x'\n[optimizer]\nlr = 1", "unknown key 'optimizer.lr'"),
        ("model = 3", "unknown key 'model'"),
        ("name = 2024-05-01", 'name = "2024-05-01": Expected str, got date'),
        ("name = 'x'\nseed = 07:32:00", 'seed = "07:32:00": Expected int, got time'),
        (
            "name = 'x'\nloggers = [2024-05-01T00:00:00]",
            'loggers = ["2024-05-01 00:00:00"]: Expected str, got datetime',
        ),
        ("name = 'x'", "missing required field recipe"),
    ],
)
def test_a_bad_preset_is_named(capsys, tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert message in refusal(capsys, "run", str(path))


def test_help_lists_keys_with_their_meaning(capsys):
    assert main(["--help"]) == 0 and "cpu_tiny" in capsys.readouterr().out
    assert main([]) == 2 and "usage" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        main(["run", "cpu_tiny", "--help"])
    out = capsys.readouterr().out
    assert done.value.code == 0 and "--optimizer.learning-rate" in out and "rollout batches" in out


def test_a_dumped_config_loads_as_itself(tmp_path):
    config = load("cpu_tiny", {"seed": 3, "beta": 1e-5, "run_dir": 'a "b"\\é', "data.train": "x.jsonl"})
    path = tmp_path / "config.toml"
    path.write_text(dump(config), encoding="utf-8")
    assert load(str(path), {}) == config


@pytest.mark.slow
def test_seed_0_learns(tmp_path):
    assert main(["run", "cpu_tiny", "--run-dir", str(tmp_path / "run")]) == 0
    before, after = (row["accuracy"] for row in metrics(tmp_path / "run") if row["phase"] == "evaluation")
    assert after - before >= 0.25


def test_the_preset_s_recipe_is_verified_by_the_real_oracle():
    assert verify(RECIPES[load("cpu_tiny", {}).recipe]).ok


def test_a_rollout_is_rewarded_one_or_minus_one():
    """One right response of two: ±1 less the group's mean 0; both right: nothing to learn."""
    tokenizer = build_tokenizer()
    right, wrong = (answer_ids(tokenizer, text) for text in ("46", "47"))
    drawn = [Said(ids, [-float(token) for token in ids]) for ids in (right, wrong, right, right)]
    engine = SimpleNamespace(sample=lambda *_, **__: drawn)
    config = load("cpu_tiny", {"rollout.prompts": 2, "rollout.samples": 2, "optimizer.prompts": 1})
    tasks = [Task([1, 2], "46"), Task([3], "46")]
    rollout = rollout_module.draw(
        engine, tokenizer, Checker("exact"), tasks, RECIPES[config.recipe], config, 0, 0, Clock()
    )
    assert torch.equal(rollout.logp_sampler, -rollout.batch.responses.float())
    assert rollout.right.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert rollout.advantage.tolist() == [1.0, -1.0, 0.0, 0.0]


@pytest.mark.parametrize("text", ["5", "1e3", "07", "true", "2024-05-01", "07:32:00", "a b", "[x]", "inf", "'", "0x10"])
def test_text_is_taken_where_text_is_due(text):
    """As the shell gave it: a folder of the name 1e3 is not 1000.0."""
    keys = ("run_dir", "name", "data.train", "model.path", "out", "gpus")
    found = overrides([word for key in keys for word in (f"--{key.replace('_', '-')}", text)])
    assert found == dict.fromkeys(keys, text)
    assert load("cpu_tiny", {"run_dir": text, "name": text}).folder == Path(text)
    assert overrides(["--name", '"5"', "--data.test", '["a", "b"]', "--steps", "5", "--k=7"]) == {
        **{"name": "5", "data.test": ["a", "b"], "steps": 5, "k": 7}
    }
