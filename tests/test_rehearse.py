"""Rehearsals: the preset's choices in small, its own commands, and no success that is none."""

import dataclasses
import subprocess
from types import SimpleNamespace

import pyarrow.parquet as parquet
import pytest
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

import train.rehearse
from train.architecture import architecture
from train.cli import main
from train.planning.devices import devices
from train.preset import load
from train.problems.files import read
from train.rehearse import fitting, rehearse, small

PAPERS = ("qwen3_4b_2k", "qwen3_4b_4k", "qwen3_4b_8k", "qwen25_7b_instruct_2k")


@pytest.mark.parametrize("name", PAPERS)
def test_in_small_every_choice_is_the_preset_s(name, tmp_path):
    """What differs is what has a size, where it is read and written, and the start; a new key must be thought of."""
    meant = load(name, {})
    found = small(meant, tmp_path, 16)
    changed = {
        "": {"name", "steps", "eval_samples", "eval_every", "checkpoint_every", "run_dir"},
        "model": {"path", "context"},
        "rollout": {"prompts", "samples", "max_tokens", "at_once", "overlong_buffer"},
        "optimizer": {"prompts", "micro_tokens"},
        "data": {"train", "test", "max_prompt_tokens"},
        "engine": {"kv_gib", "kind"},
        "reference": set(),
        "warm_start": {"steps", "batch", "learning_rate", "warm_up", "slip"},
    }
    for section, keys in changed.items():
        ours, theirs = (getattr(x, section) if section else x for x in (found, meant))
        for field in dataclasses.fields(ours):
            if field.name not in keys | (changed.keys() if not section else set()):
                assert getattr(ours, field.name) == getattr(theirs, field.name), (section, field.name)
    assert found.rollout.prompts // found.optimizer.prompts > 1, "several optimiser steps a rollout batch, as there"
    assert found.rollout.overlong_buffer / found.rollout.max_tokens == pytest.approx(0.25)
    assert len(found.data.test) == 3


def test_the_greatest_model_that_fits_is_rehearsed():
    sizes = {gpu: fitting(load("qwen25_7b_instruct_2k", {}), devices(gpu, "bfloat16")) for gpu in ("1xh100", "1xl4")}
    assert sizes["1xh100"] == 1 < sizes["1xl4"]


def run_as(monkeypatch, codes):
    """Let commands end with these codes, and write them down."""
    said, codes = [], iter(codes)

    def run(words, check):
        said.append(words[words.index("train") + 1 :])
        return SimpleNamespace(returncode=next(codes))

    monkeypatch.setattr(subprocess, "run", run)
    return said


@pytest.mark.parametrize("name", PAPERS)
def test_what_is_written_is_the_architecture_with_few_widths_and_repeated_problems(name, tmp_path, monkeypatch, capsys):
    said = run_as(monkeypatch, [0, 0, 0])
    monkeypatch.setattr(train.rehearse, "multiplies_bfloat16", lambda: True)
    assert not rehearse(load(name, {}), tmp_path, divide=32, processes=2, console=Console())
    assert "lacks evaluation of step 0 in metrics.jsonl" in capsys.readouterr().out, "codes alone are no success"
    meant, found = (
        architecture(load(name, {}).model).to_dict(),
        AutoConfig.from_pretrained(tmp_path / "start").to_dict(),
    )
    kept = ("vocab_size", "rope_parameters", "rms_norm_eps", "hidden_act", "tie_word_embeddings", "model_type")
    assert {key: found[key] for key in kept} == {key: meant[key] for key in kept}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "start").config.num_hidden_layers == 2
    assert parquet.read_metadata(tmp_path / "train.parquet").num_rows == 3 * 64
    assert len(read(tmp_path / "train.parquet")) == 64 and len(read(tmp_path / "aime25.parquet")) == 2
    assert [words[0] for words in said] == ["run", "resume", "eval"]
    preset = load(str(tmp_path / "preset.toml"), {})
    assert preset == small(load(name, {}), tmp_path, 32)


def test_a_processor_without_bfloat16_rehearses_in_float32(tmp_path, monkeypatch, capsys):
    said = run_as(monkeypatch, [0, 0, 0])
    monkeypatch.setattr(train.rehearse, "multiplies_bfloat16", lambda: False)
    main(["rehearse", "cpu_tiny", "--model.precision", "bfloat16", "--divide", "4", "--out", str(tmp_path / "out")])
    assert "model.precision is float32 here" in capsys.readouterr().out
    assert load(str(tmp_path / "out/preset.toml"), {}).model.precision == "float32"
    assert said[-1][said[-1].index("--precision") + 1] == "float32"


@pytest.mark.parametrize("codes", [[1], [0, 2], [0, 0, 137]])
def test_a_command_that_fails_ends_the_rehearsal(codes, tmp_path, monkeypatch, capsys):
    said = run_as(monkeypatch, codes)
    words = ["rehearse", "cpu_tiny", "--divide", "4", "--out", str(tmp_path / "out")]
    assert main(words) == 1 and len(said) == len(codes)
    assert f"(exit code {codes[-1]})" in capsys.readouterr().out
    assert main(words) == 2 and "is not empty; choose another with --out" in capsys.readouterr().err


@pytest.mark.full
def test_a_rehearsal_of_a_preset_of_one_s_own_is_a_run_for_real(tmp_path, capfd):
    words = ["--divide", "2", "--processes", "1", "--rollout.filter", "true", "--model.precision", "bfloat16"]
    assert main(["rehearse", "cpu_tiny", *words, "--out", str(tmp_path / "out")]) == 0
    out = capfd.readouterr().out
    assert "cpu_tiny is rehearsed" in out and "resumed after rollout batch 1" in out and "Mean@2" in out


@pytest.mark.parametrize("words", [["--divide", "0"], ["--processes", "x"], ["--divide", "1.5"]])
def test_bad_sizes_are_refused(words, capsys):
    assert main(["rehearse", "cpu_tiny", *words]) == 2
    assert "pass a whole number from 1" in capsys.readouterr().err
