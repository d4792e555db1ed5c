"""The whole training loop beside TRL's GRPOTrainer: tokens a second, each in its own environment, in turns.

``make bench`` runs it. One model of 1.7 million parameters, 32 responses in groups of 8, at most 64 new tokens, one
optimiser step a rollout batch, no reference model, float32. ``--small`` runs one round of two steps, with 4 new tokens:
it shows that both sides still run, and its rates mean nothing. A side without its environment is left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SIDES = {
    "train": ("", {}),
    "trl as it comes": (".audit/trl", {}),
    "trl in float32": (".audit/trl", {"bf16": False}),
    "trl in float32, no checkpointing": (".audit/trl", {"bf16": False, "gradient_checkpointing": False}),
}
"""Each side: its environment ("" is this one), and what its GRPOConfig has besides the common settings."""
GROUPS, SAMPLES = 4, 8


class Size(NamedTuple):
    """How much is run: rounds, the steps of each, how many of these are not counted, and the tokens of a response."""

    rounds: int
    steps: int
    warm_up: int
    tokens: int


FULL, SMALL = Size(3, 12, 2, 64), Size(1, 2, 1, 4)


def ours(folder: str, size: Size, **_: object) -> list[dict[str, float]]:
    """Return what each step of the driver took."""
    from rpg_ref import RECIPES
    from train.answering.checker import Checker
    from train.config import Config, ModelConfig, OptimizerConfig, RolloutConfig, WarmStartConfig
    from train.engines.by_transformers import Transformers
    from train.model import build_model, tokenizer_of
    from train.policy_gradient import begin, train
    from train.problems.tasks import Task

    config = Config(
        name="bench",
        recipe="grpo",
        beta=0.0,
        steps=size.steps,
        model=ModelConfig(path=folder),
        warm_start=WarmStartConfig(steps=0, batch=1, learning_rate=1.0),
        rollout=RolloutConfig(prompts=GROUPS, samples=SAMPLES, max_tokens=size.tokens),
        optimizer=OptimizerConfig(learning_rate=1e-6, prompts=GROUPS, weight_decay=0.0),
    )
    tokenizer = tokenizer_of(config.model)
    model = build_model(config.model, seed=0)
    tasks = [Task(tokenizer(prompt)["input_ids"], "0") for prompt in prompts()]
    with Checker("exact") as checker:
        state = begin(model, config)
        engine = Transformers(state.model, tokenizer, config.rollout.at_once)
        rows = list(train(state, engine, tokenizer, checker, tasks, RECIPES["grpo"], config))
    return [
        {"tokens": row["tokens_per_second"] * row["seconds"], "seconds": row["seconds"], "draw": row["seconds_draw"]}
        for row in rows
    ]


def trl(folder: str, size: Size, **choices: object) -> list[dict[str, float]]:
    """Return what each step of GRPOTrainer took, from one call of its reward function to the next."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    calls: list[tuple[float, int]] = []
    drawing: list[float] = []

    def reward(completion_ids: list[list[int]], **_: object) -> list[float]:
        calls.append((time.perf_counter(), sum(map(len, completion_ids))))
        return [float(ids[0] % 2) for ids in completion_ids]

    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=GROUPS * SAMPLES,
        num_generations=SAMPLES,
        max_completion_length=size.tokens,
        max_steps=size.steps + 1,
        beta=0.0,
        temperature=1.0,
        learning_rate=1e-6,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=size.steps + 1,
        **choices,
    )
    data = Dataset.from_dict({"prompt": prompts()})
    trainer = GRPOTrainer(model, reward, args=settings, train_dataset=data, processing_class=tokenizer)
    generate = trainer._generate_single_turn

    def timed(*arguments: object, **named: object) -> object:
        start = time.perf_counter()
        found = generate(*arguments, **named)
        drawing.append(time.perf_counter() - start)
        return found

    trainer._generate_single_turn = timed
    trainer.train()
    return [
        {"tokens": tokens, "seconds": then - now, "draw": draw}
        for (now, tokens), (then, _), draw in zip(calls, calls[1:], drawing[1:], strict=False)
    ]


def prompts() -> list[str]:
    """Return questions of one length."""
    return [f"<|bos|><|user|>{a}+{b}<|assistant|>" for a in range(10, 50) for b in range(10, 50)]


def write_model(folder: str) -> None:
    """Write the model that both train."""
    from train.config import ModelConfig
    from train.model import build_model
    from train.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    shape = ModelConfig(width=192, mlp_width=768, layers=3, heads=4, key_value_heads=2)
    for part in (build_model(shape, seed=0), tokenizer):
        part.save_pretrained(folder)


def python_of(side: str) -> Path:
    """Return the interpreter of a side's environment."""
    environment, _ = SIDES[side]
    return ROOT / environment / "bin/python" if environment else Path(sys.executable)


def one_round(side: str, folder: str, size: Size) -> list[dict[str, float]]:
    """Run one side in its own environment."""
    _, choices = SIDES[side]
    words = [str(python_of(side)), "-P", __file__, "--side", json.dumps([side.split()[0], folder, size, choices])]
    quiet = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(words, env=quiet, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])[size.warm_up :]


def main(arguments: Sequence[str] | None = None) -> None:
    """Take turns; print the median rates of each round, and the median over rounds of their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="one round of two steps")
    parser.add_argument("--side", metavar="JSON", help="run this side alone: how the benchmark starts itself")
    chosen = parser.parse_args(arguments)
    if chosen.side:
        who, folder, size, choices = json.loads(chosen.side)
        print(json.dumps({"train": ours, "trl": trl}[who](folder, Size(*size), **choices)))
        return
    size = SMALL if chosen.small else FULL
    rates: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES if python_of(side).exists()}
    for side in (side for side in SIDES if side not in rates):
        print(f"{side} is left out: there is no {python_of(side)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder)
        for number in range(1, size.rounds + 1):
            for side, found in rates.items():
                steps = one_round(side, folder, size)
                whole, draw = (
                    statistics.median(step["tokens"] / step[of] for step in steps) for of in ("seconds", "draw")
                )
                found.append((whole, draw))
                print(f"round {number}  {side:<33} {whole:6.0f} tok/s, drawing alone {draw:6.0f} tok/s", flush=True)
    for side in list(rates)[1:]:
        ratios = [(a / c, b / d) for (a, b), (c, d) in zip(rates["train"], rates[side], strict=True)]
        whole, draw = (statistics.median(of) for of in zip(*ratios, strict=True))
        print(f"train / {side}: the whole loop {whole:.2f}, drawing alone {draw:.2f}")


if __name__ == "__main__":
    main()
