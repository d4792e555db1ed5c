"""The command line: ``python -m train run | run-or-resume | plan | rehearse | resume | eval | report``."""

import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from datetime import date
from datetime import time as clock
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from rpg_ref.checks import Table
from train.config import Config, EvalConfig
from train.preset import convert, load, nested, presets, texts

TEXTS = frozenset({*texts(Config), *texts(EvalConfig), "out", "gpus"})
"""Options whose values are text."""
A_DAY = 86400.0
"""How long the processes of an evaluation wait for one another, in seconds."""

USAGE = """usage: python -m train run PRESET [--key value ...]
       python -m train run-or-resume PRESET [--key value ...]
       python -m train plan PRESET [--gpus 8xH100] [--length N] [--prompt N] [--key value ...]
       python -m train rehearse PRESET [--processes N] [--divide N] [--out FOLDER] [--key value ...]
       python -m train resume FOLDER [--steps N]
       python -m train eval MODEL FILE [--key value ...]
       python -m train report FOLDER [FOLDER ...] [--out FOLDER]
       torchrun --nproc-per-node N -m train run | run-or-resume | resume | eval ...

run trains a policy. PRESET is a TOML file or one of: {presets}.
Every key of the preset can be changed: --seed 1 --steps 5 --optimizer.learning-rate 1e-4
`python -m train run PRESET --help` lists the keys with their meaning and their values in that preset.
plan says what memory and time the run will take on those GPUs, and what to change if it does not fit (exit code 1).
rehearse runs the preset in small: its architecture with random weights, two processes, a step, resumed, evaluated.
resume goes on with a run that stopped, from its last intact checkpoint.
run-or-resume does what the run's folder asks for: one command for the first start and every later one, on a cluster.
eval draws responses from any Hugging Face folder to the problems of a file, and prints Mean@k and Pass@k.
report draws the curves of several runs, seeds of one configuration as their mean, into report/report.html and .png."""


def main(arguments: Sequence[str]) -> int:
    """Run a command; return its exit code: 2, after one line on stderr, for bad input, and 1 for a run that died.

    Args:
        arguments: the command's words.

    Returns:
        The exit code.
    """
    asks_help = not {"-h", "--help"}.isdisjoint(arguments)
    words = [word for word in arguments if word not in ("-h", "--help")]
    if not words or len(words) == 1 and asks_help:
        print(USAGE.format(presets=", ".join(presets())))
        return 0 if asks_help else 2
    command, *rest = words
    try:
        # Importing transformers takes seconds: a misspelt command or key is answered before.
        commands: dict[str, Callable[[Sequence[str], bool], int]] = {
            "run": _run,
            "run-or-resume": partial(_run, again=True),
            "plan": _plan,
            "rehearse": _rehearse,
            "resume": _resume,
            "eval": _eval,
            "report": _report,
        }
        return Table("command", commands)[command](rest, asks_help)
    except (ValueError, OSError) as error:
        print(f"train: {_line(error)}", file=sys.stderr)
        return 2


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _usage() -> int:
    print(USAGE.format(presets=", ".join(presets())))
    return 0


def _preset(command: str, rest: Sequence[str]) -> str:
    if not rest or rest[0].startswith("-"):
        raise ValueError(f"{command} needs a preset first: a TOML file or one of {', '.join(presets())}")
    return rest[0]


def _run(rest: Sequence[str], asks_help: bool, again: bool = False) -> int:
    command = "run-or-resume" if again else "run"

    def read() -> Config:
        return load(_preset(command, rest), overrides(rest[1:]))

    if asks_help:
        tyro.cli(Config, default=read(), args=["--help"], prog=f"python -m train {command} {rest[0]}")

    def prepared(config: Config) -> Any:
        from train.job import prepare, prepare_either

        return (prepare_either if again else prepare)(config)

    return _together(read, prepared)


def _plan(rest: Sequence[str], asks_help: bool) -> int:
    if asks_help:
        return _usage()
    preset, given = _preset("plan", rest), overrides(rest[1:])
    asked = {name: given.pop(name, None) for name in ("gpus", "length", "prompt")}
    config = load(preset, given)
    from train.planning.page import WIDTH, show
    from train.planning.plan import advice, plan_run

    plan = plan_run(config, **asked)
    guessed = [name for name in ("length", "prompt") if asked[name] is None]
    show(plan, [] if plan.fits else advice(plan), Console(width=WIDTH), guessed=guessed)
    return 0 if plan.fits and plan.in_time else 1


def _rehearse(rest: Sequence[str], asks_help: bool) -> int:
    if asks_help:
        return _usage()
    preset, given = _preset("rehearse", rest), overrides(rest[1:])
    own = {"processes": None, "divide": None, "out": f"rehearsals/{Path(preset).stem}"}
    asked = {name: given.pop(name, usual) for name, usual in own.items()}
    for name in ("processes", "divide"):
        if asked[name] is not None and (not isinstance(asked[name], int) or asked[name] < 1):
            raise ValueError(f"{name} is {asked[name]!r}; pass a whole number from 1")
    config = load(preset, given)
    from train.rehearse import rehearse

    out = Path(str(asked["out"]))
    done = rehearse(config, out, divide=asked["divide"], processes=asked["processes"], console=Console())
    return 0 if done else 1


def _resume(rest: Sequence[str], asks_help: bool) -> int:
    if asks_help:
        return _usage()
    if not rest or rest[0].startswith("-"):
        raise ValueError("resume needs a run's folder first, such as runs/cpu_tiny-seed0")

    def read() -> Config:
        from train.job import config_of

        return config_of(Path(rest[0]), overrides(rest[1:]))

    def prepared(config: Config) -> Any:
        from train.job import prepare_again

        return prepare_again(config)

    return _together(read, prepared)


def _together(read: Callable[[], Config], prepared: Callable[[Config], Any]) -> int:
    """Do a run with the processes that torchrun started."""
    found: Config | Exception
    try:
        found = read()
    except (ValueError, OSError) as error:
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            raise
        found = error  # the other nodes would wait for this one: they must hear of it
    from train import ranks

    def config() -> Config:
        if isinstance(found, Exception):
            raise found
        return found

    def work() -> int:
        return _carry_out(prepared(ranks.everywhere(config)))

    if isinstance(found, Exception):
        return _joined(work, timeout=Config.timeout)
    return _joined(work, timeout=found.timeout, single=found.model.precision != "float32")


def _joined(do: Callable[[], int], *, timeout: float, single: bool = False) -> int:
    """Do something on every rank; what fails on one is said by that one, and once on every other node."""
    from train import ranks

    try:
        with ranks.joined(timeout=timeout, single=single):
            return do()
    except ranks.Elsewhere as error:
        if error.aloud:
            print(f"train: {_line(error)}", file=sys.stderr)
        return 1


def _carry_out(job: Any) -> int:
    from train import ranks
    from train.engines.engine import StaleWeights
    from train.policy_gradient import Diverged
    from train.run import run
    from train.saving.checkpoint import CheckpointError
    from train.saving.durable import reason

    console = Console(quiet=not ranks.is_first())
    try:
        result = run(job, console)
    except (CheckpointError, Diverged, StaleWeights) as error:
        print(f"train: {_line(error)}", file=sys.stderr)
        return 1
    except OSError as error:
        folder = job.config.folder
        print(f"train: {reason(error)}; mend that, then `resume {folder}` goes on, if it has begun", file=sys.stderr)
        return 1
    held_out = f"on {len(job.test)} held-out problems, mean of {job.config.eval_samples} samples each"
    console.print(f"accuracy {result.before} → {result.after} {held_out}", highlight=False, soft_wrap=True)
    console.print(f"written to {job.config.folder}/", highlight=False, soft_wrap=True)
    return 0


def _eval(rest: Sequence[str], asks_help: bool) -> int:
    if asks_help:
        tyro.cli(EvalConfig, args=["--help"], prog="python -m train eval")
    if len(rest) < 2 or rest[0].startswith("-") or rest[1].startswith("-"):
        raise ValueError("eval needs a model's folder and a file of problems: eval runs/NAME/model problems.parquet")
    given = nested({"model": rest[0], "problems": rest[1]} | overrides(rest[2:]))
    config = convert(given, EvalConfig, "eval")
    return _joined(lambda: _score(config), timeout=A_DAY, single=config.precision != "float32")


def _score(config: EvalConfig) -> int:
    from train import ranks
    from train.engines.engine import StaleWeights
    from train.score import score

    console = Console(quiet=not ranks.is_first())
    say = partial(console.print, highlight=False, soft_wrap=True)
    try:
        found = score(config, say)
    except StaleWeights as error:
        print(f"train: {_line(error)}", file=sys.stderr)
        return 1
    for name, accuracy in ((f"Mean@{config.k}", found.mean_at_k), (f"Pass@{config.k}", found.pass_at_k)):
        say(f"{name} {accuracy}")
    if found.unjudged:
        say(f"warning: {found.unjudged} responses count as wrong because the rule {config.rule} hung, died or raised")
    say(f"responses: {found.mean_length:.1f} tokens on average, {found.cut_off:.1%} cut off at {config.max_tokens}")
    return 0


def _report(rest: Sequence[str], asks_help: bool) -> int:
    if asks_help:
        return _usage()
    folders = list(takewhile(lambda word: not word.startswith("-"), rest))
    options = overrides(rest[len(folders) :]) if len(rest) > len(folders) else {}
    known = Table("key", {"out": "report"})
    for key in options:
        known.check(key)
    from train.watching.report import report

    page = report([Path(folder) for folder in folders], Path(str(options.get("out", known["out"]))))
    Console().print(f"written to {page} and {page.with_suffix('.png')}", highlight=False, soft_wrap=True)
    return 0


def overrides(words: Sequence[str]) -> dict[str, Any]:
    """Read ``--key value`` and ``--key=value``; a value is TOML, or else the text it is.

    Where a text is due, as for a name or a folder, a value is what was written: 5, 1e3 and 2024-05-01 are texts there.

    Raises:
        ValueError: a word that is no option, or an option without its value.
    """
    given: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise ValueError(f"{word!r} is not an option; write --key value")
        text = value if equals else next(rest, None)
        if text is None:
            raise ValueError(f"--{key} has no value; write --{key} VALUE")
        key = key.replace("-", "_")
        given[key] = _value(text, key in TEXTS)
    return given


def _value(text: str, is_text: bool) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    # No key takes a date or a time.
    kept = isinstance(value, str | list) if is_text else not isinstance(value, date | clock)
    return value if kept else text
