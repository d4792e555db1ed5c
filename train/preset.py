"""From a preset in TOML and the command line's overrides to a checked Config, and back to TOML."""

import json
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

from rpg_ref.checks import Table
from train.config import Config

Record = TypeVar("Record")

PRESETS = Path(__file__).parent / "presets"


def presets() -> Table[Path]:
    """Return the presets that ship with the driver, by name."""
    return Table("preset", {path.stem: path for path in sorted(PRESETS.glob("*.toml"))})


def load(preset: str, overrides: dict[str, Any]) -> Config:
    """Read a preset, by path or by its name in train/presets, and put the overrides on top.

    Args:
        preset: a path that ends in .toml, or a name.
        overrides: values by dotted key, such as {"optimizer.learning_rate": 1e-4}.

    Returns:
        The checked Config.

    Raises:
        ValueError: no such preset, TOML that does not parse, an unknown or missing key, a value out of type or range;
            one sentence each, with the nearest names.
    """
    path = _path(preset)
    raw = _read(path)
    _refuse_unknown((*_leaves(raw), *overrides), Config)
    return convert(_merged(raw, nested(overrides)), Config, str(path))


def nested(overrides: dict[str, Any]) -> dict[str, Any]:
    """Return values by dotted key as tables."""
    tables: dict[str, Any] = {}
    for key, value in overrides.items():
        *sections, last = key.split(".")
        reduce(lambda table, name: table.setdefault(name, {}), sections, tables)[last] = value
    return tables


def _path(preset: str) -> Path:
    return Path(preset) if preset.endswith(".toml") else presets()[preset]


def _read(path: Path, via: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return a preset's tables, on top of those of the preset that it extends, if it does."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"cannot read the preset {path}: {error.strerror}; presets are {', '.join(presets())}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if not isinstance(base, str) or path in via:
        raise ValueError(f"{path}, extends = {base!r}: not another preset; name one of {', '.join(presets())}")
    return _merged(_read(_path(base), (*via, path)), raw)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return both, the one above where they differ, table by table."""
    both = [key for key in above if isinstance(above[key], dict) and isinstance(below.get(key), dict)]
    return below | above | {key: _merged(below[key], above[key]) for key in both}


def convert(raw: dict[str, Any], kind: type[Record], source: str) -> Record:
    """Check values and make a record of them.

    Args:
        raw: tables as TOML gives them.
        kind: the record's class.
        source: where the values are from, for the error.

    Returns:
        The record.

    Raises:
        ValueError: an unknown or missing key, a value out of type or range.
    """
    _refuse_unknown(_leaves(raw), kind)
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{source}{_explain(error, raw, kind)}; change it there or on the command line") from error


def _refuse_unknown(keys: Iterable[str], kind: type) -> None:
    known = Table("key", dict.fromkeys(_keys(kind)))
    for key in keys:
        known.check(key)


def dump(config: Config) -> str:
    """Write a config as TOML that ``load`` reads back to an equal one."""
    given = {key: value for key, value in asdict(config).items() if value is not None}
    top = {key: value for key, value in given.items() if not isinstance(value, dict)}
    sections = {key: value for key, value in given.items() if isinstance(value, dict)}
    return "\n".join([_lines(top), *(f"[{key}]\n{_lines(section)}" for key, section in sections.items())])


def _lines(table: dict[str, Any]) -> str:
    # JSON's strings, numbers and booleans are TOML's too.
    return "".join(f"{key} = {_toml(value)}\n" for key, value in table.items() if value is not None)


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def texts(kind: type) -> Iterator[str]:
    """Yield the dotted keys of a record whose value is a text, or may be one."""
    return (key for key, of in _fields(kind) if of is str or str in get_args(of))


def _keys(kind: type) -> Iterator[str]:
    """Yield the dotted keys of a record and of the records in it."""
    return (key for key, _ in _fields(kind))


def _fields(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in fields(kind):
        if isinstance(field.type, type) and is_dataclass(field.type):
            yield from _fields(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field.type


def _leaves(raw: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in raw.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def choices(of: Any) -> list[str]:
    """Return the words that a type allows, where it allows only some."""
    if get_origin(of) is Literal:
        return [str(word) for word in get_args(of)]
    return [word for part in get_args(of) for word in choices(part)]


def either(words: Sequence[str]) -> str:
    """Return ``a, b or c``."""
    return ", ".join(words[:-1]) + f" or {words[-1]}"


def _explain(error: msgspec.ValidationError, raw: dict[str, Any], kind: type) -> str:
    """Return where the error is, what stands there, and what should."""
    what, _, where = str(error).replace("`", "").partition(" - at $.")
    where = where.partition("[")[0]  # of a list, all of it is shown
    if what.startswith("Invalid enum value"):
        what = f"choose {either(choices(dict(_fields(kind))[where]))}"
    value = reduce(lambda table, key: table.get(key, {}), where.split("."), raw) if where else {}
    place = (
        f" [{where}]"
        if isinstance(value, dict) and where
        else f", {where} = {json.dumps(value, default=str)}"
        if where
        else ""
    )
    return f"{place}: {what}"
