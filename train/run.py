"""A run: the work is done, written down, and never done twice."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
import torch
from rich.console import Console
from transformers.utils import logging

from train import ranks
from train.answering.checker import Checker
from train.config import Config
from train.engines.engine import Demands, Engine
from train.engines.opening import open_engine
from train.evaluate import Accuracy, evaluate, spread
from train.job import Job, refuse_other_run, refuse_unlike
from train.model import build_model, kept_dtype
from train.policy_gradient import State, begin, follow_policy, sampling, train
from train.preset import dump
from train.problems.files import write
from train.rollout import Rollout, transcripts
from train.saving.checkpoint import Snapshot, save
from train.saving.checkpoint import load as load_snapshot
from train.saving.durable import alone, replace
from train.saving.export import Weights, export
from train.saving.snapshot import refuse_incomplete, restore, shared, snapshot, weights
from train.seeds import derive
from train.warm_start import warm_start
from train.watching.clock import Clock
from train.watching.curves import draw_curves
from train.watching.journal import append, flush, keep, rows
from train.watching.loggers import open_loggers
from train.watching.progress import follow

METRICS, TRANSCRIPTS = "metrics.jsonl", "transcripts.jsonl"


class Result(NamedTuple):
    """Held-out accuracy after the warm start and after the policy gradient."""

    before: Accuracy
    after: Accuracy


def run(job: Job, console: Console) -> Result:
    """Warm start, train, and evaluate before and after; docs/training.md says what the run folder then holds.

    A folder with checkpoints goes on from the newest intact one, and does bit for bit what it would have done.

    Raises:
        ValueError: the checkpoint is of another configuration or of other problems; problems run out.
        Diverged: the gradient was not finite several times in a row.
        CheckpointError: a checkpoint or the model cannot be written.
        OSError: nor can metrics; the last checkpoint is intact.
    """
    with ExitStack() as stack:
        folder = job.config.folder
        ranks.everywhere(lambda: stack.enter_context(alone(folder)) if ranks.is_first() else None)
        return _run(job, console)


def _run(job: Job, console: Console) -> Result:
    config, folder = job.config, job.config.folder
    warn = partial(console.print, highlight=False, soft_wrap=True)
    for line in (job.verdict, *(f"warning: {text}" for text in job.warnings)):
        warn(line)
    logging.disable_progress_bar()
    if config.threads:
        torch.set_num_threads(config.threads)
    model = ranks.everywhere(lambda: build_model(config.model, derive(config.seed, "weights")))
    refuse_unlike("weights", [torch.hash_tensor(x).view(torch.int64).item() for x in model.parameters()])
    dtype = kept_dtype(config.model)
    state = begin(model, config)
    console.print(_described(state, job), soft_wrap=True)
    read = partial(load_snapshot, folder / "checkpoints", warn=warn)
    found = shared(ranks.everywhere(read if ranks.is_first() else lambda: None))
    with ExitStack() as stack:
        # Before anything is written: with what an engine refuses, nothing is begun.
        engine = stack.enter_context(open_engine(config.engine, state.model, job.tokenizer, _demands(job)))
        ranks.from_first(lambda: _set_up(job, state, found))
        checker = stack.enter_context(Checker(config.data.rule))
        show = stack.enter_context(
            open_loggers(
                config.loggers if ranks.is_first() else (),
                folder,
                f"{config.name}-seed{config.seed}",
                dataclasses.asdict(config),
                warn,
            )
        )

        def log(phase: str, step: int, row: dict[str, Any]) -> None:
            row = {"phase": phase, "step": step, **row}
            if ranks.is_first():
                append(folder / METRICS, row)
                show(row)

        def save_state() -> None:
            now = snapshot(state, config, job.problems, before)
            ranks.from_first(lambda: _save(folder, now))

        if found is None:
            starting = warm_start(state.model, job.tokenizer, job.train, config)
            for number, row in enumerate(follow(starting, "warm start", config.warm_start.steps, "loss", console), 1):
                log("warm_start", number, row)
            follow_policy(state)
            before, row = _evaluation(state, engine, job, checker)
            log("evaluation", 0, row)
            save_state()
        else:
            restore(state, found)
            before = Accuracy(*found.state["before"])
            del found  # as large as all that was restored from it
            console.print(f"resumed after rollout batch {state.step}", highlight=False, soft_wrap=True)
        console.print(f"held-out accuracy before: {before}", highlight=False, soft_wrap=True)
        training = train(state, engine, job.tokenizer, checker, job.train, job.recipe, config)
        left = config.steps - state.step
        for row in follow(training, config.recipe, left, "accuracy", console):
            log("policy_gradient", state.step, row)
            _warn_of_gap(state.step, row["sampler_gap"], config, warn)
            if row["unjudged"]:
                warn(
                    f"rollout batch {state.step}: {row['unjudged']:.1%} of the responses count as wrong because "
                    f"data.rule = {config.data.rule} hung, died or raised; each that hangs takes seconds"
                )
            rollout = cast(Rollout, state.rollout)  # train leaves it there before it yields
            if ranks.is_first():
                for said in transcripts(rollout, job.tokenizer, config.rollout.samples, config.transcripts):
                    append(folder / TRANSCRIPTS, {"phase": "policy_gradient", "step": state.step, **said})
            if _evaluates_after(state.step, config):
                log("evaluation", state.step, _evaluation(state, engine, job, checker)[1])
            if state.step % config.checkpoint_every == 0 or state.step == config.steps:
                save_state()
        after = before
        if config.steps:
            after, row = _evaluation(state, engine, job, checker)
            log("evaluation", config.steps, row)
        final = weights(state.model)
        ranks.from_first(lambda: _finish(job, Weights(state.model.model, final, dtype), before, after))
    return Result(before, after)


def _described(state: State, job: Job) -> str:
    size = sum(weight.numel() for weight in state.model.parameters())
    where = f", on {ranks.size()} × {state.model.device.type}" if ranks.size() > 1 else ""
    return f"{size / 1e6:.1f} M parameters{where}, {len(job.train)} problems, {len(job.test)} held out"


def _set_up(job: Job, state: State, found: Snapshot | None) -> None:
    """Refuse what is not this run's, and put the folder into the state that goes with the checkpoint."""
    config, folder = job.config, job.config.folder
    if found is not None:
        refuse_incomplete(state, found)
        refuse_other_run(found.state, job)
        if found.step > config.steps:
            raise ValueError(f"steps is {config.steps} but {found.step} are done; give more, or leave it out")
    elif any(row["phase"] == "policy_gradient" for row in rows(folder / METRICS)):
        raise ValueError(f"{folder} has rollout batches in {METRICS} but no checkpoint; begin anew in another folder")
    replace(folder / "config.toml", dump(config).encode())
    if found is None:
        _write_problems(job)
    for journal in (METRICS, TRANSCRIPTS):
        keep(folder / journal, lambda row: found is not None and _is_done(row, found, config))


def _save(folder: Path, now: Snapshot) -> None:
    for journal in (METRICS, TRANSCRIPTS):
        flush(folder / journal)
    save(folder / "checkpoints", now)


def _finish(job: Job, final: Weights, before: Accuracy, after: Accuracy) -> None:
    """Write the model, as one process has it, and the picture of the run."""
    folder = job.config.folder
    export(folder / "model", final, job.tokenizer)
    history = [row for row in rows(folder / METRICS) if row["phase"] == "policy_gradient"]
    if history:
        draw_curves(history, before, after, job.config, folder / "curves.png")


def _demands(job: Job) -> Demands:
    """Return what this run will ask of an engine."""
    config = job.config
    return Demands(
        context=config.model.context,
        precision=config.model.precision,
        at_once=config.rollout.at_once,
        temperature=config.rollout.temperature,
        budget=config.optimizer.micro_tokens,
        prompts=[task.prompt for task in job.train],
    )


def _warn_of_gap(step: int, gap: float | None, config: Config, warn: Callable[[str], None]) -> None:
    most = config.engine.gap(config.model.precision)
    if gap is not None and not gap <= most:
        warn(
            f"rollout batch {step}: the sampler's log-probabilities are {gap:.3g} nats a token from the "
            f"trainer's, over engine.max_gap = {most:g}; engine.correct makes up for it"
        )


def _evaluation(state: State, engine: Engine, job: Job, checker: Checker) -> tuple[Accuracy, dict[str, float]]:
    """Return held-out accuracy, and the row of metrics."""
    config = job.config
    budget, temperature = config.optimizer.micro_tokens, config.rollout.temperature
    sampling(state.optimizer)
    clock = Clock()
    with clock("seconds"):
        found = evaluate(
            engine,
            state.model,
            job.tokenizer,
            checker,
            job.test,
            k=config.eval_samples,
            max_tokens=config.rollout.max_tokens,
            temperature=temperature,
            seed=derive(config.seed, "evaluation"),
        )
        start = state.reference if config.reference.replace == "never" else None
        more = spread(state.model, start, found.batch, budget=budget, temperature=temperature)
    accuracy, passed = found.mean_at_k, found.pass_at_k
    shares = {"accuracy": accuracy.mean, "stderr": accuracy.stderr, "pass": passed.mean, "pass_stderr": passed.stderr}
    return accuracy, shares | found.of_sets | more | clock.seconds


def _evaluates_after(step: int, config: Config) -> bool:
    """Say whether the run is evaluated there on its way; at its end it always is."""
    return config.eval_every > 0 and step % config.eval_every == 0 and step < config.steps


def _is_done(row: dict[str, Any], found: Snapshot, config: Config) -> bool:
    """Say whether a row is of what a checkpoint has behind it, rather than of what will be done again.

    The evaluation at the end is done again, or left out where the run has become longer and none is due there.
    """
    if row["phase"] == "warm_start":
        return True
    then = msgspec.toml.decode(found.state["config"].encode())
    at_the_end = row["phase"] == "evaluation" and row["step"] == then["steps"] > 0
    at_the_end = at_the_end and not _evaluates_after(row["step"], config)
    return bool(row["step"] <= found.step and not at_the_end)


def _write_problems(job: Job) -> None:
    for name, problems in job.generated.items():
        folder = job.config.folder / "data"
        folder.mkdir(exist_ok=True)
        write(folder / f"{name}.parquet", problems)
