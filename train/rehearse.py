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
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, GenerationConfig

from train.architecture import architecture, divided
from train.config import Config, ModelConfig, WarmStartConfig
from train.preset import dump
from train.problems.files import name_of, write
from train.seeds import derive
from train.tokenizer import build_tokenizer
from train.watching.journal import rows

LENGTHS, BATCH = 128, 64
"""What lengths and numbers of problems are divided by."""
MIN_RESPONSE, MIN_PROMPT = 16, 32
"""Room for an answer and for a short question, at one token a byte."""
PROBLEMS, REPEATED = 64, 3
"""Problems to train on, and how often each stands in the file, as the published ones do many times."""
WARM_START = WarmStartConfig(steps=30, batch=16, learning_rate=3e-3, warm_up=5, slip=0.5)
"""A policy that is right at random: of a random one every group would be all wrong, and the filter would starve."""


class Stage(NamedTuple):
    """A command of the rehearsal.

    Attributes:
        name: what it shows.
        arguments: of ``python -m train``.
    """

    name: str
    arguments: list[str]


def small(config: Config, folder: Path, divide: int) -> Config:
    """Return the preset's configuration in small, and write what it reads: a model's folder and files of problems.

    Args:
        config: the preset's.
        folder: where to write; made if missing.
        divide: what the model's widths are divided by.

    Returns:
        A configuration of the same choices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rollout, optimizer, data, tests = config.rollout, config.optimizer, config.data, _tests(config)
    prompts = max(1, rollout.prompts // BATCH)
    mini = max(1, optimizer.prompts * prompts // rollout.prompts)
    length, prompt = (
        max(least, most // LENGTHS)
        for least, most in (
            (MIN_RESPONSE, rollout.max_tokens),
            (MIN_PROMPT, data.max_prompt_tokens),
        )
    )
    _write_model(config, folder / "start", length + prompt, divide)
    _write_problems(folder, tests, config.seed)
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
            test=tuple(str(folder / f"{name}.parquet") for name in tests),
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
        engine=dataclasses.replace(config.engine, kind=_engine(config), kv_gib=0.25),
        optimizer=dataclasses.replace(optimizer, prompts=mini, micro_tokens=optimizer.micro_tokens // LENGTHS),
        warm_start=WARM_START,
    )


def _engine(config: Config) -> Any:
    return config.engine.kind if find_spec(config.engine.kind) is not None else "transformers"


def _tests(config: Config) -> list[str]:
    """Return the names of the test sets."""
    test = config.data.test
    sources = (test,) if isinstance(test, str) else test or ("test",)
    return [name_of(source) for source in sources]


def _write_model(config: Config, folder: Path, context: int, divide: int) -> None:
    tokenizer, shape = build_tokenizer(), divided(architecture(config.model), divide)
    shape.vocab_size = max(shape.vocab_size, len(tokenizer))
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
    digit = str(rng.randrange(10))
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
    yield Stage("resume, another step", ["resume", run, "--steps", "2"])
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


def rehearse(config: Config, folder: Path, *, divide: int, processes: int, console: Console) -> bool:
    """Rehearse a preset; what a command says goes to the terminal.

    Args:
        config: the preset's.
        folder: to write; new or empty.
        divide: what the model's widths are divided by.
        processes: how many, one a GPU or on the processor.
        console: where to say what is done.

    Returns:
        Whether every command did its work and the run's rows are there.

    Raises:
        ValueError: the folder is not empty, or the model's architecture is not known.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"the folder {folder} is not empty; choose another with --out")
    rehearsed = small(config, folder, divide)
    if rehearsed.engine.kind != config.engine.kind:
        console.print(f"{config.engine.kind} is not installed here: transformers draws", highlight=False)
    for stage in stages(rehearsed, folder):
        start = time.perf_counter()
        console.print(f"[bold]{stage.name}[/bold]: train {' '.join(stage.arguments)}", highlight=False, soft_wrap=True)
        code = subprocess.run([*_launcher(processes), "-m", "train", *stage.arguments], check=False).returncode
        console.print(f"{stage.name}: {time.perf_counter() - start:.0f} s", highlight=False)
        if code:
            console.print(f"{config.name} failed at: {stage.name} (exit code {code})", highlight=False)
            return False
    lacking = _lacking(rehearsed, folder / "run")
    console.print(f"{config.name} rehearsed" if not lacking else f"{config.name} lacks {lacking}", highlight=False)
    return not lacking


def _launcher(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def _lacking(config: Config, run: Path) -> str:
    """Return what the run should have written and has not, or nothing."""
    done = [(row["phase"], row["step"]) for row in rows(run / "metrics.jsonl")]
    wanted = [("evaluation", step) for step in range(3)] + [("policy_gradient", step) for step in (1, 2)]
    missing = [f"{phase} of step {step} in metrics.jsonl" for phase, step in wanted if (phase, step) not in done]
    files = ["model/config.json", "checkpoints/step-00000001", "checkpoints/step-00000002"]
    return ", ".join(missing + [name for name in files if not (run / name).exists()])
