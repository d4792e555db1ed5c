"""A rehearsal: a preset's own code path in small, before it is given a cluster.

The model has the architecture, vocabulary and settings of the preset's, two blocks and a part of its widths, and random
weights. Lengths, batch and data are divided; everything else is the preset's. What is run are the commands that a user
would run: one step on several processes, with its evaluation, checkpoint and export; resumed; and the exported model
evaluated.
"""

import dataclasses
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging

from rpg_ref.progress import duration, progress
from train.architecture import architecture, divided, sizes
from train.config import Config, ModelConfig, WarmStartConfig
from train.planning.case import Case
from train.planning.devices import Devices, devices
from train.planning.plan import of_case
from train.preset import dump
from train.problems.files import name_of, write
from train.seeds import derive
from train.tokenizer import build_tokenizer
from train.watching.journal import rows

ON_CPU = 8
"""What the model's widths are divided by on a processor."""
LENGTHS, BATCH = 128, 64
"""What lengths and numbers of problems are divided by."""
RESPONSE, PROMPT = 12, 32
"""Tokens that there is room for all the same, at one token a byte: an answer, and a short question."""
KV_GIB = 0.25
PROBLEMS, REPEATED = 64, 3
"""Problems to train on, and how often each stands in the file, as the published ones do many times."""
SLIP = 0.9
"""Share of wrong demonstrations: so few groups vary that the filter mostly asks for another draw."""
STAGE_SECONDS = 60.0
"""A stage's expected seconds on two cores before one has been timed; without fast bfloat16 it takes minutes."""
WARM_STEPS, WARM_RATE = 28, 0.6
"""Optimiser steps of a warm start, and its learning rate times the model's width: wider ones learn as fast.

A random policy would never be right, every group would be all wrong, and the filter would starve.
"""


class Stage(NamedTuple):
    """A command of the rehearsal.

    Attributes:
        name: what it shows.
        arguments: of ``python -m train``.
    """

    name: str
    arguments: list[str]


def small(config: Config, folder: Path, divide: int) -> Config:
    """Return the preset's configuration in small.

    Args:
        config: the preset's.
        folder: where what it reads will be written, and its run.
        divide: what the model's widths are divided by.

    Returns:
        A configuration of the same choices.
    """
    rollout, optimizer, data = config.rollout, config.optimizer, config.data
    width, prompts = divided(architecture(config.model), divide).hidden_size, max(1, rollout.prompts // BATCH)
    length, prompt = max(RESPONSE, rollout.max_tokens // LENGTHS), max(PROMPT, data.max_prompt_tokens // LENGTHS)
    return dataclasses.replace(
        config,
        name=f"{config.name}_rehearsal",
        steps=1,
        eval_samples=2,
        eval_every=1 if config.eval_every else 0,
        checkpoint_every=1,
        run_dir=str(folder / "run"),
        model=ModelConfig(path=str(folder / "start"), context=length + prompt, precision=config.model.precision),
        data=dataclasses.replace(
            data,
            train=str(folder / "train.parquet"),
            test=tuple(str(folder / f"{name}.parquet") for name in _tests(config)),
            max_prompt_tokens=prompt,
        ),
        rollout=dataclasses.replace(
            rollout,
            prompts=prompts,
            samples=max(2, rollout.samples // 4),
            max_tokens=length,
            at_once=rollout.at_once // BATCH,
            overlong_buffer=rollout.overlong_buffer * length // rollout.max_tokens,
        ),
        engine=dataclasses.replace(config.engine, kind=_engine(config), kv_gib=KV_GIB),
        optimizer=dataclasses.replace(
            optimizer,
            prompts=max(1, optimizer.prompts * prompts // rollout.prompts),
            micro_tokens=length + prompt if optimizer.micro_tokens else 0,  # so that a mini-batch takes several passes
        ),
        warm_start=WarmStartConfig(steps=WARM_STEPS, batch=16, learning_rate=WARM_RATE / width, warm_up=5, slip=SLIP),
    )


def fitting(config: Config, of: Devices) -> int:
    """Return the least power of two that divides the widths of the preset's model so that the rehearsal fits.

    Args:
        config: the preset's.
        of: the devices it is to fit on.

    Raises:
        ValueError: none does.
    """
    for divide in (2**power for power in range(10)):
        rehearsed, shape = small(config, Path(), divide), divided(architecture(config.model), divide)
        lengths = rehearsed.data.max_prompt_tokens, rehearsed.rollout.max_tokens
        if of_case(Case(rehearsed, sizes(shape), of, *lengths)).fits:
            return int(divide)
    raise ValueError(f"no rehearsal of {config.name} fits on {of}; take others, or name a size with --divide")


def _engine(config: Config) -> Any:
    return config.engine.kind if find_spec(config.engine.kind) is not None else "transformers"


def _tests(config: Config) -> list[str]:
    """Return the names of the test sets."""
    test = config.data.test
    sources = (test,) if isinstance(test, str) else test or ("test",)
    return [name_of(source) for source in sources]


def _write_model(config: Config, folder: Path, divide: int) -> None:
    """Write the preset's architecture in small, with random weights and the tokenizer of one token a byte."""
    tokenizer, shape = build_tokenizer(), divided(architecture(config.model), divide)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(shape, name, getattr(tokenizer, name))
    with torch.random.fork_rng():
        torch.manual_seed(derive(config.seed, "weights"))
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    model.generation_config = GenerationConfig.from_model_config(shape)
    for part in (model, tokenizer):
        part.save_pretrained(folder)


def _write_problems(folder: Path, tests: Sequence[str], seed: int) -> None:
    rng = random.Random(derive(seed, "problems"))
    write(folder / "train.parquet", [_row("train", i, rng) for i in range(PROBLEMS)] * REPEATED)
    for name in tests:
        write(folder / f"{name}.parquet", [_row(name, i, rng) for i in range(2)] * REPEATED)


def _row(split: str, index: int, rng: random.Random) -> dict[str, Any]:
    digit = str(rng.randrange(2))
    return {
        "data_source": "rehearsal",
        "prompt": [{"content": f"{split} {index}: {digit}", "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": digit, "style": "rehearsal"},
        "extra_info": {"index": index, "raw_problem": digit, "split": split},
    }


def stages(config: Config, folder: Path) -> Iterator[Stage]:
    """Yield the commands, in their order, that a small configuration is rehearsed by."""
    preset = folder / "preset.toml"
    preset.write_text(dump(config), encoding="utf-8")
    run = config.run_dir or ""
    test = config.data.test[0] if isinstance(config.data.test, tuple) else ""
    yield Stage("one step, checkpoint, export, evaluation", ["run", str(preset)])
    yield Stage("resume, two more steps", ["resume", run, "--steps", "3"])
    asked = {
        "k": 2,
        "rule": config.data.rule,
        "max-tokens": config.rollout.max_tokens,
        "max-prompt-tokens": config.data.max_prompt_tokens,
        "engine.kind": config.engine.kind,
        "engine.kv-gib": config.engine.kv_gib,
        "precision": config.model.precision,
        "device": config.device,
    }
    words = [word for key, value in asked.items() for word in (f"--{key}", str(value))]
    yield Stage("the exported model evaluated", ["eval", f"{run}/model", test, *words])


def rehearse(config: Config, folder: Path, *, divide: int | None, processes: int | None, console: Console) -> bool:
    """Rehearse a preset; what a command says goes to the terminal.

    Args:
        config: the preset's.
        folder: to write; new or empty.
        divide: what the model's widths are divided by; None: on GPUs the least that fits, else ON_CPU.
        processes: how many; None: one a GPU, else two.
        console: where to say what is done.

    Returns:
        Whether every command did its work and wrote what it should.

    Raises:
        ValueError: the folder is not empty, the model's architecture is not known, or nothing fits.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"the folder {folder} is not empty; choose another with --out")
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    if processes is None:
        processes = torch.cuda.device_count() if on_gpu else 2
    if divide is None:
        divide = fitting(config, devices(None, config.model.precision)) if on_gpu else ON_CPU
    say = partial(console.print, highlight=False, soft_wrap=True)
    if config.model.precision == "bfloat16" and not on_gpu and not multiplies_bfloat16():
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, precision="float32"))
        say("model.precision is float32 here: this processor has no bfloat16 instructions and would be 20 times slower")
    rehearsed = small(config, folder, divide)
    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    say(f"{config.name} in small: widths divided by {divide}, two blocks, {processes} processes")
    if rehearsed.engine.kind != config.engine.kind:
        say(f"{config.engine.kind} is not installed here: {rehearsed.engine.kind} draws")
    commands = list(stages(rehearsed, folder))
    with progress(f"rehearse {config.name}", 1 + len(commands), STAGE_SECONDS) as begin:
        begin("writing the model and the problems")
        _write_model(config, folder / "start", divide)
        _write_problems(folder, _tests(config), config.seed)
        for stage in commands:
            begin(stage.name)
            say(f"\n{stage.name}: train {' '.join(stage.arguments)}")
            start = time.perf_counter()
            code = subprocess.run([*_launcher(processes), "-m", "train", *stage.arguments], check=False).returncode
            if code:
                say(f"{config.name} failed: {stage.name} (exit code {code})")
                return False
            say(f"{stage.name}: {duration(time.perf_counter() - start)}")
    lacking = _lacking(rehearsed, folder / "run")
    say(f"{config.name} lacks {lacking}" if lacking else f"{config.name} is rehearsed")
    return not lacking


def multiplies_bfloat16() -> bool:
    """Return whether this processor has instructions for products in bfloat16."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _launcher(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def _lacking(config: Config, run: Path) -> str:
    """Return what the run should have written and has not, or nothing."""
    done = [(row["phase"], row["step"]) for row in rows(run / "metrics.jsonl")]
    evaluated = (0, 1, 2, 3) if config.eval_every else (0, 3)
    wanted = [("evaluation", step) for step in evaluated] + [("policy_gradient", step) for step in (1, 2, 3)]
    missing = [f"{phase} of step {step} in metrics.jsonl" for phase, step in wanted if (phase, step) not in done]
    files = ["model/config.json", "checkpoints/step-00000002", "checkpoints/step-00000003"]
    return ", ".join(missing + [name for name in files if not (run / name).exists()])
