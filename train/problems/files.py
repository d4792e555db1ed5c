"""Problems in files: parquet or JSONL, in the schema of the paper's released data."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("ground_truth", pa.string()), ("style", pa.string())])),
        ("extra_info", pa.struct([("index", pa.int64()), ("raw_problem", pa.string()), ("split", pa.string())])),
    ]
)
REQUIRED = ("prompt", "reward_model")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Problem:
    """What is asked, and the answer that earns the reward."""

    prompt: tuple[Message, ...]
    answer: str


@dataclass(frozen=True)
class _RewardModel:
    ground_truth: Annotated[str, msgspec.Meta(min_length=1)]


@dataclass(frozen=True)
class _Row:
    prompt: Annotated[tuple[Message, ...], msgspec.Meta(min_length=1)]
    reward_model: _RewardModel


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of SCHEMA as parquet."""
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def read(path: str | Path) -> list[Problem]:
    """Read the distinct problems of a file, in the order of their first row.

    Only the columns ``prompt`` and ``reward_model`` are read; evaluation files repeat each problem, and a repetition
    is not another problem.

    Args:
        path: a .parquet or a .jsonl file.

    Returns:
        At least one problem.

    Raises:
        ValueError: the file cannot be read, lacks a column, has a row that is not of the schema, or no row at all; it
            names the file, the row (the first is 1) and the column.
    """
    path = Path(path)
    readers = {".parquet": _parquet, ".jsonl": _jsonl}
    if path.suffix not in readers:
        raise ValueError(f"{path} is of an unknown kind; pass a .parquet or a .jsonl file")
    try:
        return parse(str(path), readers[path.suffix](path))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}; check the path") from error


def parse(source: str, rows: Iterable[dict[str, Any]]) -> list[Problem]:
    """Check rows of the schema and return the distinct problems; ``read`` says what it raises."""
    problems = list(dict.fromkeys(_problems(source, rows)))
    if not problems:
        raise ValueError(f"{source} holds no row; pass a file with at least one problem")
    return problems


def _problems(source: str, rows: Iterable[dict[str, Any]]) -> Iterator[Problem]:
    for number, raw in enumerate(rows, start=1):
        try:
            row = msgspec.convert(raw, _Row)
        except msgspec.ValidationError as error:
            what, _, where = str(error).replace("`", "").partition(" - at $.")
            column = f", column {where}" if where else ""
            raise ValueError(f"{source}, row {number}{column}: {what}; mend or remove that row") from error
        yield Problem(row.prompt, row.reward_model.ground_truth)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            missing = [column for column in REQUIRED if column not in file.schema_arrow.names]
            if missing:
                have = ", ".join(file.schema_arrow.names)
                raise ValueError(f"{path} lacks the column {missing[0]}; it has {have}")
            for batch in file.iter_batches(columns=list(REQUIRED)):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a parquet file that can be read: {error}") from error


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield msgspec.json.decode(line)
            except msgspec.DecodeError as error:
                raise ValueError(f"{path}, row {number}: not JSON ({error}); mend or remove that row") from error
