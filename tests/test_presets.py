"""The paper's presets, value by value, and what each line says of where its number is from."""

import re

import pytest

from rpg_ref import RECIPES
from train.preset import PRESETS, load, presets

PAPERS = ("qwen3_4b_2k", "qwen3_4b_4k", "qwen3_4b_8k", "qwen25_7b_instruct_2k")

# PAPER §8, in its order, unless another section is named.
ALL = {
    "optimizer.kind": "adamw",
    "optimizer.learning_rate": 1e-6,
    "optimizer.weight_decay": 0.1,
    "optimizer.max_grad_norm": 1.0,
    "optimizer.warm_up": 10 * 16,  # 10 steps, a step being one rollout batch of 16 optimiser steps
    "steps": 400,
    "rollout.prompts": 512,
    "rollout.samples": 16,
    "rollout.temperature": 1.0,
    "optimizer.prompts": 32,
    "rollout.filter": True,
    "rollout.oversample": 3,
    "rollout.draws": 20,
    "rollout.overlong_penalty": 1.0,
    "data.rule": "released",  # what follows the last "Answer:" in the last 300 characters
    "eval_samples": 32,
    "eval_every": 10,
    "data.train": "hub:math-dataset/DAPO-17k-Eng",  # the English part, in the copy that the released README names
    "data.test": ("data/aime-2024.parquet", "data/aime25.parquet", "data/amc-23.parquet"),
    "reference.replace": "rollout",  # π_ref = π_old at each rollout, as the released code has it
    "warm_start.steps": 0,
    "beta": None,  # the recipe's own
}
CONTEXTS = {
    "2k": {"model.context": 4096, "data.max_prompt_tokens": 2048, "rollout.max_tokens": 2048}
    | {"rollout.overlong_buffer": 512},
    "4k": {"model.context": 8192, "rollout.overlong_buffer": 1024},
    "8k": {"model.context": 16384, "rollout.overlong_buffer": 2048},
}
MODELS = {"qwen3": "hub:Qwen/Qwen3-4B", "qwen25": "hub:Qwen/Qwen2.5-7B-Instruct"}


def value(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("name", PAPERS)
def test_a_preset_has_the_paper_s_values(name):
    config = load(name, {})
    expected = ALL | CONTEXTS[name.rpartition("_")[2]] | {"model.path": MODELS[name.partition("_")[0]], "name": name}
    assert {key: value(config, key) for key in expected} == expected
    assert config.data.max_prompt_tokens + config.rollout.max_tokens == config.model.context


@pytest.mark.parametrize("name", PAPERS)
def test_a_preset_s_recipe_has_the_paper_s_values(name):
    """PAPER §4 and §8: (ε1, ε2) = (0.2, 0.28), c = 10 in the scripts, β = 1e-4, token-mean, group mean without std."""
    recipe = RECIPES[load(name, {}).recipe]
    assert (recipe.clip.low, recipe.clip.high, recipe.clip.dual) == (0.2, 0.28, 10.0)
    assert (recipe.beta, recipe.aggregation, recipe.baseline) == (1e-4, "token-mean", "group_mean")


@pytest.mark.parametrize("recipe", ["grpo", "dapo", "reinforce++", "reinforce++-baseline", "rpg-reinforce-ufkl-clip"])
@pytest.mark.parametrize("name", PAPERS)
def test_another_recipe_is_a_change_of_one_line(name, recipe):
    config = load(name, {"recipe": recipe})
    assert config.recipe == recipe and config.beta is None, "its own β, not that of the preset's recipe"


@pytest.mark.parametrize("name", PAPERS)
def test_each_line_says_where_its_number_is_from(name):
    lines = (PRESETS / f"{name}.toml").read_text().splitlines()
    values = [line for line in lines if "=" in line and not line.startswith(("#", "name", "extends"))]
    assert len(values) > 1
    for line in values:
        assert re.search(r"#.*(PAPER §\d|released|ours)", line), line
    cited = {int(number) for line in lines for number in re.findall(r"PAPER §(\d)", line)}
    assert cited <= set(range(1, 10))


def test_every_preset_that_ships_loads():
    assert set(PAPERS) | {"cpu_tiny", "cpu_smollm2"} == set(presets())
    for name in presets():
        assert load(name, {}).name == name


def test_a_preset_extends_another_table_by_table(tmp_path):
    (tmp_path / "a.toml").write_text('extends = "cpu_tiny"\nseed = 7\n[rollout]\nprompts = 32\n')
    (tmp_path / "b.toml").write_text(f'extends = "{tmp_path}/a.toml"\n[optimizer]\nprompts = 8\n')
    config, base = load(f"{tmp_path}/b.toml", {"steps": 3}), load("cpu_tiny", {})
    assert (config.seed, config.rollout.prompts, config.optimizer.prompts, config.steps) == (7, 32, 8, 3)
    assert config.rollout.samples == base.rollout.samples and config.model == base.model


@pytest.mark.parametrize("base", ['"a.toml"', "3", '"nowhere"'])
def test_what_cannot_be_extended_is_refused(tmp_path, base, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text(f"extends = {base}\n")
    with pytest.raises(ValueError, match="extends|unknown preset 'nowhere'"):
        load("a.toml", {})
