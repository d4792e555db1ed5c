"""The command line: ``python -m train run PRESET [--key value ...]``."""

import sys
import tomllib
from collections.abc import Sequence
from typing import Any

import tyro
from rich.console import Console

from rpg_ref.checks import Table
from train.config import Config
from train.preset import load, presets

USAGE = """usage: python -m train run PRESET [--key value ...]

Trains a policy. PRESET is a TOML file or one of: {presets}.
Every key of the preset can be changed: --seed 1 --steps 5 --optimizer.learning-rate 1e-4
`python -m train run PRESET --help` lists the keys with their meaning and their values in that preset."""


def main(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code: 2, after one line on stderr, where the input is bad."""
    asks_help = not {"-h", "--help"}.isdisjoint(arguments)
    words = [word for word in arguments if word not in ("-h", "--help")]
    if not words or words == ["run"] and asks_help:
        print(USAGE.format(presets=", ".join(presets())))
        return 0 if asks_help else 2
    try:
        command, *rest = words
        # Importing transformers takes seconds: a misspelt command or key is answered before.
        Table("command", {"run": None})[command]
        if not rest or rest[0].startswith("-"):
            raise ValueError(f"run needs a preset first: a TOML file or one of {', '.join(presets())}")
        config = load(rest[0], overrides(rest[1:]))
        if asks_help:
            tyro.cli(Config, default=config, args=["--help"], prog=f"python -m train run {rest[0]}")
        from train.run import prepare, run

        job = prepare(config)
    except ValueError as error:
        print(f"train: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    console = Console()
    result = run(job, console)
    held_out = f"on {len(job.test)} held-out problems, mean of {config.eval_samples} samples each"
    console.print(f"accuracy {result.before} → {result.after} {held_out}", highlight=False, soft_wrap=True)
    console.print(f"written to {config.folder}/", highlight=False, soft_wrap=True)
    return 0


def overrides(words: Sequence[str]) -> dict[str, Any]:
    """Read ``--key value`` and ``--key=value``; a value is TOML, or else the string it is.

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
        given[key.replace("-", "_")] = _value(text)
    return given


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
