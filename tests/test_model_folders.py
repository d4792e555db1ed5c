"""Model folders as people have them: several ends, missing weights, templates that raise, code, damage."""

import dataclasses
import json
import math
import sys
from io import StringIO
from types import SimpleNamespace

import fake_vllm
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import verified_elsewhere
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

import train.job
from train.answering.checker import Checker
from train.architecture import architecture
from train.cli import main
from train.config import EngineConfig, ModelConfig
from train.engines.engine import Demands
from train.engines.opening import open_engine
from train.model import check_length, open_model, open_tokenizer
from train.policy import Policy
from train.preset import PRESETS, load
from train.problems.files import Message, Problem
from train.problems.tasks import Task, encode
from train.rollout import has_ended, judge
from train.tokenizer import answer_ids, build_tokenizer, end_of_turn, ends, warnings_of

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EOS, TURN = 257, 263
SHAPE = ("width", "mlp_width", "layers", "heads", "key_value_heads")


def tokenizer_folder(folder, template=CHATML):
    """Write a tokenizer whose end of text is <|eos|>, and whose template ends a turn with <|im_end|>."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_model(folder, eos=None, **changes):
    """Write a small Llama with that tokenizer; eos is what its generation config lists."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    given = {"vocab_size": 264, "num_hidden_layers": 2, "max_position_embeddings": 128, "eos_token_id": EOS}
    model = LlamaForCausalLM(LlamaConfig(**sizes | given | changes))
    model.save_pretrained(folder)
    tokenizer_folder(folder)
    if eos is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    return model


def run_from(model, problems, folder, *more):
    """The words of a short run from a model's folder on a file of problems."""
    settings = f"""--data.train {problems} --data.test-problems 2 --model.path {model} --steps 1 --warm-start.steps 1
    --eval-samples 2 --rollout.prompts 2 --rollout.samples 2 --optimizer.prompts 2 --data.max-prompt-tokens 60
    --model.context 64 --rollout.max-tokens 4 --run-dir {folder}"""
    preset = folder.parent / "preset.toml"
    kept = [line for line in (PRESETS / "cpu_tiny.toml").read_text().splitlines() if not line.startswith(SHAPE)]
    preset.write_text("\n".join(kept))
    return ["run", str(preset), *settings.split(), *more]


# What ends a response


@pytest.mark.parametrize("eos, expected", [(None, (EOS,)), ([EOS, TURN], (TURN, EOS)), (TURN, (TURN, EOS))])
def test_every_id_that_the_generation_config_lists_ends_a_response(tmp_path, eos, expected):
    write_model(tmp_path, eos)
    tokenizer = open_tokenizer(str(tmp_path))
    assert ends(tokenizer) == expected and end_of_turn(tokenizer) == TURN
    said = [*b"7"]
    right = judge(tokenizer, Checker("exact"), [answer_ids(tokenizer, "7")], [Task([1], "7")])
    assert right.tolist() == [1.0]
    assert answer_ids(tokenizer, "7")[-1] == (TURN if TURN in expected else EOS)
    assert [has_ended(tokenizer, [*said, end]) for end in (EOS, TURN)] == [True, TURN in expected]


def test_a_model_without_a_generation_config_ends_as_its_config_says(tmp_path):
    write_model(tmp_path, eos_token_id=[EOS, TURN])
    (tmp_path / "generation_config.json").unlink()
    assert ends(open_tokenizer(str(tmp_path))) == (TURN, EOS)


def test_a_template_that_ends_turns_otherwise_is_warned_of(tmp_path):
    write_model(tmp_path, EOS)
    (warning,) = warnings_of(open_tokenizer(str(tmp_path)))
    assert "ends a turn with <|im_end|>, but a response ends only at <|eos|>" in warning
    assert f"add {TURN} to eos_token_id" in warning
    write_model(tmp_path, [EOS, TURN])
    assert warnings_of(open_tokenizer(str(tmp_path))) == [] == warnings_of(build_tokenizer())


@pytest.mark.parametrize("kind", ["transformers", "vllm"])
def test_an_engine_ends_a_response_at_each_of_them(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm.module())
    write_model(tmp_path, [EOS, TURN], num_hidden_layers=1)
    tokenizer, policy = open_tokenizer(str(tmp_path)), Policy(open_model(str(tmp_path)))
    prompts = [[256, row] for row in range(12)]
    demands = Demands(64, "float32", 0, 1.0, 0, prompts)
    with open_engine(EngineConfig(kind), policy, tokenizer, demands) as engine, engine.holding(policy):
        said = [ids for ids, _ in engine.sample(prompts, max_tokens=60, temperature=1.0, seed=1)]
    assert {ids[-1] for ids in said if len(ids) < 60} == {EOS, TURN}
    assert not {EOS, TURN} & {id for ids in said for id in ids[:-1]}


@pytest.mark.full
def test_run_and_eval_say_what_would_be_cut_off(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train.job, "verify", verified_elsewhere)
    write_model(tmp_path / "start", EOS)
    rows = [{"prompt": [{"role": "user", "content": f"{i}"}], "reward_model": {"ground_truth": "7"}} for i in range(9)]
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = run_from(tmp_path / "start", problems, tmp_path / "run", "--data.max-prompt-tokens", "19")
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "\nwarning: the chat template ends a turn with <|im_end|>, " in out
    assert "\nwarning: 7 of 7 training prompts are longer than data.max_prompt_tokens = 19 and lose " in out
    assert "\nwarning: 2 of 2 held-out prompts are longer than data.max_prompt_tokens = 19 and lose " in out
    asked = ["eval", str(tmp_path / "start"), str(problems), "--k", "2", "--max-tokens", "3"]
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert out.startswith("warning: the chat template ends a turn with <|im_end|>, ") and out.count("warning") == 1
    assert main([*asked, "--max-prompt-tokens", "15"]) == 0
    assert "\nwarning: 9 of 9 prompts are longer than max_prompt_tokens = 15 and lose" in capsys.readouterr().out


# Weights


def rewritten(folder, change, **changes):
    """Write a model whose file of weights has been changed."""
    write_model(folder, tie_word_embeddings=False, **changes)
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def with_more_layers(weights):
    more = {name.replace("layers.1", "layers.2"): x.clone() for name, x in weights.items() if "layers.1" in name}
    return weights | more


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda weights: {name: x for name, x in weights.items() if name != "lm_head.weight"},
            r"its files lack lm_head\.weight; fetch",
        ),
        (
            lambda weights: {name: x for name, x in weights.items() if "layers.1" not in name},
            r"its files lack model\.layers\.1\.input_layernorm\.weight, \S+, \S+ and 6 more; fetch",
        ),
        (
            with_more_layers,
            r"hold model\.layers\.2\.input_layernorm\.weight, \S+, \S+ and 6 more, which its config.json",
        ),
        (
            lambda weights: weights | {"lm_head.weight": torch.zeros(3, 16)},
            r"have another shape of lm_head\.weight than its config.json",
        ),
    ],
)
def test_weights_that_are_not_the_configs_are_refused_by_name(tmp_path, capfd, change, message):
    rewritten(tmp_path, change)
    capfd.readouterr()
    with pytest.raises(ValueError, match=message) as error:
        open_model(str(tmp_path))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    assert capfd.readouterr().err == "", "transformers' own table is not shown besides"


def test_a_classifier_is_no_policy(tmp_path):
    model = write_model(tmp_path, tie_word_embeddings=False)
    LlamaForSequenceClassification(model.config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"its files lack lm_head\.weight and hold score\.weight, which"):
        open_model(str(tmp_path))


@pytest.mark.parametrize("tied", [True, False])
def test_whole_weights_are_read_as_they_are(tmp_path, tied):
    model = write_model(tmp_path, tie_word_embeddings=tied)
    found = open_model(str(tmp_path))
    assert all(torch.equal(x, dict(found.named_parameters())[name]) for name, x in model.named_parameters())


# Chat templates


def problems_file(path, *prompts):
    """Write problems of the answer 7, each a list of (role, words)."""
    rows = [
        {"prompt": [{"role": role, "content": words} for role, words in turns], "reward_model": {"ground_truth": "7"}}
        for turns in prompts
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "template, words",
    [
        (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}x",
            "problems.jsonl, row 2: the chat template refuses the prompt: System role not supported; ",
        ),
        ("{% if %}x", "problems.jsonl, row 1: the chat template refuses the prompt: Expected an expression, "),
        (
            "{{ messages[0].nobody.name }}",
            "problems.jsonl, row 1: the chat template refuses the prompt: 'dict object' ",
        ),
        ("{{ messages[0]['content'] + 1 }}", "problems.jsonl, row 1: the chat template refuses the prompt: can only "),
        ("{% for m in messages %}{% endfor %}", "problems.jsonl, row 1: the chat template makes an empty prompt; "),
    ],
)
@pytest.mark.parametrize("command", ["run", "eval"])
def test_a_template_that_refuses_a_prompt_is_one_sentence_with_the_row(
    tmp_path, capsys, monkeypatch, template, words, command
):
    monkeypatch.setattr(train.job, "verify", verified_elsewhere)
    monkeypatch.setattr("train.run.build_model", lambda *_: pytest.fail("no model is loaded before"))
    monkeypatch.setattr("train.score.open_model", lambda *_: pytest.fail("no model is loaded before"))
    write_model(tmp_path / "start")
    tokenizer_folder(tmp_path / "start", template)
    asked = ([("user", "a")], [("system", "s"), ("user", "b")], [("user", "c")])
    path = problems_file(tmp_path / "problems.jsonl", *asked)
    capsys.readouterr()
    with monkeypatch.context() as here:
        here.chdir(tmp_path)
        evaluated = ["eval", str(tmp_path / "start"), path.name]
        ran = run_from(tmp_path / "start", path.name, tmp_path / "run", "--data.test-problems", "1")
        assert main(ran if command == "run" else evaluated) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"train: {words}") and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


# Code, damage, and weights that are not numbers


@pytest.mark.parametrize("kind", ["config", "model", "tokenizer"])
def test_code_of_a_folder_is_not_run_whatever_stdin_says(tmp_path, monkeypatch, kind):
    write_model(tmp_path)
    mark = tmp_path / "was run"
    (tmp_path / "own.py").write_text(
        f"open({str(mark)!r}, 'w')\nfrom transformers import PretrainedConfig\n"
        "class Own(PretrainedConfig):\n    model_type = 'own'\n"
    )
    config, tokenizer = tmp_path / "config.json", tmp_path / "tokenizer_config.json"
    described, of_tokenizer = json.loads(config.read_text()), json.loads(tokenizer.read_text())
    if kind == "tokenizer":
        of_tokenizer |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
        described["model_type"] = "own"
    described["auto_map"] = {"AutoConfig": "own.Own"} if kind == "config" else {"AutoModelForCausalLM": "own.Own"}
    described["model_type"] = "own" if kind == "config" else described["model_type"]
    config.write_text(json.dumps(described))
    tokenizer.write_text(json.dumps(of_tokenizer))
    monkeypatch.setattr("sys.stdin", StringIO("y\n" * 9))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for opened in (open_tokenizer, open_model, lambda path: architecture(ModelConfig(path=path))):
        try:
            opened(str(tmp_path))
        except ValueError as error:
            assert "\n" not in str(error) and "trust_remote_code" not in str(error)
    assert not mark.exists()


@pytest.mark.parametrize("opened", [open_tokenizer, open_model, lambda path: architecture(ModelConfig(path=path))])
def test_a_model_that_needs_code_of_its_own_is_refused(tmp_path, opened):
    write_model(tmp_path)
    (tmp_path / "own.py").write_text("class Own: pass")
    config = tmp_path / "config.json"
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | own))
    with pytest.raises(ValueError, match="needs code of its own, which this driver never runs; take a model that"):
        opened(str(tmp_path))


class Evil:
    def __reduce__(self):
        return pytest.fail, ("code of a pickle was run",)


def truncated(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])


def broken(folder, value):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][3] = value
    save_file(weights, path, metadata={"format": "pt"})


def pickled(folder, name):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Evil()}, folder / name)


@pytest.mark.parametrize(
    "damage, words",
    [
        (
            lambda folder: truncated(folder, 3000),
            "a file of weights is damaged (Error while deserializing header: incomplete ",
        ),
        (lambda folder: truncated(folder, 5), "is damaged (Error while deserializing header: header too small); fetch"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load a model from "),
        (lambda folder: broken(folder, math.nan), "has weights that are not finite, in model.norm.weight; fetch it "),
        (lambda folder: broken(folder, -math.inf), "has weights that are not finite, in model.norm.weight; fetch it "),
        (
            lambda folder: pickled(folder, "pytorch_model.bin"),
            "its weights are in pytorch_model.bin alone: pickled weights may hold code ",
        ),
        (
            lambda folder: pickled(folder, "model.pt"),
            "its weights are in model.pt alone: pickled weights may hold code and are ",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "Error no file named model.safetensors found"),
    ],
)
def test_damaged_weights_are_one_sentence(tmp_path, damage, words):
    write_model(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError) as error:
        open_model(str(tmp_path))
    assert words in str(error.value) and "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"])
@pytest.mark.parametrize("text", ["{", '{"eos_token_id": "x"}', "[]"])
def test_a_damaged_tokenizer_is_one_sentence(tmp_path, file, text):
    write_model(tmp_path, EOS)
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError) as error:
        open_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


# A tokenizer and a model that do not fit, and models of other kinds


@pytest.mark.parametrize("command", ["run", "eval"])
@pytest.mark.parametrize(
    "vocabulary, words",
    [
        (262, "problems.jsonl, row 2: the prompt holds the token '<|im_start|>', whose id is 262, but "),
        (200, "the padding token '<|pad|>' has the id 258, but the embedding of the model has 200 rows; "),
    ],
)
def test_ids_that_the_embedding_lacks_are_refused_before_the_model_is_read(
    tmp_path, capsys, monkeypatch, command, vocabulary, words
):
    monkeypatch.setattr(train.job, "verify", verified_elsewhere)
    write_model(tmp_path / "start", vocab_size=vocabulary)
    tokenizer_folder(tmp_path / "start", "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    problems_file(tmp_path / "problems.jsonl", [("user", "a")], [("user", "b<|im_start|>")], [("user", "c")])
    (tmp_path / "start" / "model.safetensors").unlink()
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    evaluated = ["eval", str(tmp_path / "start"), "problems.jsonl"]
    ran = run_from(tmp_path / "start", "problems.jsonl", tmp_path / "run", "--data.test-problems", "1")
    assert main(ran if command == "run" else evaluated) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"train: {words}") and error.count("\n") == 1


def test_an_answer_of_ids_that_the_embedding_lacks_is_refused(tmp_path):
    write_model(tmp_path)
    config = load("cpu_tiny", {})
    config = dataclasses.replace(config, model=ModelConfig(path=str(tmp_path)))
    problems = [Problem((Message("user", "a"),), "7<|im_end|>", place="x, row 1")]
    assert len(encode(problems, open_tokenizer(str(tmp_path)), config)) == 1
    write_model(tmp_path, vocab_size=263)
    with pytest.raises(ValueError, match="x, row 1: the answer holds the token '<|im_end|>', whose id is 263"):
        encode(problems, open_tokenizer(str(tmp_path)), config)


def test_a_model_that_makes_no_plain_pass_is_refused(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "intermediate_size_mlp": 16, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2, "num_hidden_layers": 2}
    Llama4ForCausalLM(Llama4TextConfig(vocab_size=264, **sizes, **heads)).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="a model of the kind llama4_text makes no forward pass here: .*; take another"
    ):
        open_model(str(tmp_path))


def test_a_model_that_looks_ahead_is_refused(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertLMHeadModel(BertConfig(vocab_size=264, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no causal language model: its tokens see those behind them; take"):
        open_model(str(tmp_path))


# What is exported


@pytest.mark.full
@pytest.mark.parametrize(
    "said, kept",
    [
        ({"do_sample": True, "temperature": 0.6, "top_k": 7}, True),
        ({"do_sample": False, "temperature": 0.6}, False),
    ],
)
def test_the_exported_model_keeps_its_dtype_and_what_its_folder_says_of_sampling(tmp_path, monkeypatch, said, kept):
    """What contradicts itself, transformers refuses to save: of that the ends are kept."""
    monkeypatch.setattr(train.job, "verify", verified_elsewhere)
    model = write_model(tmp_path / "start", EOS)
    model.bfloat16().save_pretrained(tmp_path / "start")
    said = {"eos_token_id": [EOS, TURN]} | said
    (tmp_path / "start" / "generation_config.json").write_text(json.dumps(said))
    path = problems_file(tmp_path / "problems.jsonl", *([("user", f"{i}")] for i in range(9)))
    assert main(run_from(tmp_path / "start", path, tmp_path / "run")) == 0
    found = json.loads((tmp_path / "run" / "model" / "generation_config.json").read_text())
    assert {key: found.get(key) for key in said} == (said if kept else said | {"temperature": None, "do_sample": None})
    assert {x.dtype for x in load_file(tmp_path / "run" / "model" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    assert ends(open_tokenizer(str(tmp_path / "run" / "model"))) == (TURN, EOS)


def test_a_limit_that_sits_in_a_part_of_the_config_is_kept_to(tmp_path):
    """As in vision models, whose config describes the language model in text_config."""
    described = SimpleNamespace(max_position_embeddings=256)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: described))
    check_length(model, 256, "it")
    with pytest.raises(ValueError, match="4096 tokens, prompt and response, exceed the 256 of it"):
        check_length(model, 4096, "it")


def test_eval_leaves_contradicted_prompts_out_on_request(tmp_path, capsys):
    write_model(tmp_path)
    row = {"prompt": [{"role": "user", "content": "a"}], "reward_model": {"ground_truth": "1"}}
    rows = [row, row | {"reward_model": {"ground_truth": "2"}}]
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    words = ["eval", str(tmp_path), str(path)]
    assert main(words) == 2
    assert 'with contradictions = "drop"' in capsys.readouterr().err
    assert main([*words, "--contradictions", "drop"]) == 2
    assert "holds no row that counts" in capsys.readouterr().err
