"""Problems in files: parquet or JSONL, in the schema of the paper's released data."""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from train.config import HUB
from train.problems import hub

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
PASS = f"pass a .parquet or a .jsonl file, a folder of such files, or {HUB}ORG/NAME"
Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Problem:
    """What is asked, and the answer that earns the reward; which test set it is of, "" for none; and its first row."""

    prompt: tuple[Message, ...]
    answer: str
    test_set: str = field(default="", compare=False)
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class _RewardModel:
    ground_truth: Annotated[str, msgspec.Meta(min_length=1, pattern=r"\S")]


@dataclass(frozen=True)
class _Row:
    prompt: Annotated[tuple[Message, ...], msgspec.Meta(min_length=1)]
    reward_model: _RewardModel


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of SCHEMA as parquet."""
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def read(source: str | Path, split: str = "test", *, drop_contradictions: bool = False) -> list[Problem]:
    """Read the distinct problems of a file, of a folder of files, or of a data set of the hub, in order of first rows.

    Only the columns ``prompt`` and ``reward_model`` are read; files repeat each problem, and a repetition is not
    another problem.

    Args:
        source: a .parquet or a .jsonl file, a folder that holds some, or hub:ORG/NAME[@REVISION].
        split: which one of a hub data set.
        drop_contradictions: whether a prompt with two answers is left out, or an error.

    Returns:
        At least one problem.

    Raises:
        ValueError: a file cannot be read, lacks a column, has a row that is not of the schema, or no row at all, or one
            prompt has two answers; it names the file, the row (the first is 1) and the column.
    """
    source = str(source)
    files = hub.fetch(source, split) if source.startswith(HUB) else _files(Path(source))
    rows = (row for file, path in files.items() for row in _rows(file, path))
    return _distinct(source, rows, drop_contradictions)


def parse(source: str, rows: Iterable[dict[str, Any]]) -> list[Problem]:
    """Check rows of the schema and return the distinct problems; ``read`` says what it raises."""
    return _distinct(source, ((_Place(source, number), row) for number, row in enumerate(rows, start=1)))


def name_of(source: str) -> str:
    """Return the short name of a source: the file's without its ending, the folder's, or the data set's."""
    if source.startswith(HUB):
        return hub.name_of(source)
    path = Path(source)
    return path.stem if path.suffix in _READERS else path.resolve().name


class _Place(NamedTuple):
    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}"


def _files(path: Path) -> dict[str, Path]:
    """Return the files of a path by their names: itself, or those that a folder holds."""
    try:
        files = sorted(file for file in path.iterdir() if file.suffix in _READERS) if path.is_dir() else [path]
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    if not files:
        raise ValueError(f"the folder {path} holds no .parquet and no .jsonl file; pass one that does, or a file")
    return {str(file): file for file in files}


def _rows(file: str, path: Path) -> Iterator[tuple[_Place, Any]]:
    if path.suffix not in _READERS:
        raise ValueError(f"{file} is of an unknown kind, or is not there; {PASS}")
    try:
        for number, row in _READERS[path.suffix](file, path):
            yield _Place(file, number), row
    except OSError as error:
        if error.errno is None:  # of pyarrow, about what it has read
            raise ValueError(f"{file} is damaged: {' '.join(str(error).split())}; fetch or write it again") from error
        raise ValueError(f"cannot read {file}: {error.strerror or error}; check the path") from error


def _distinct(source: str, rows: Iterable[tuple[_Place, Any]], drop: bool = False) -> list[Problem]:
    """Check rows and return each problem once; of one prompt with two answers nobody knows which is right."""
    found: dict[tuple[Message, ...], tuple[_Place, Problem]] = {}
    contradicted: dict[tuple[Message, ...], tuple[_Place, Problem]] = {}
    for place, raw in rows:
        problem = _problem(place, raw)
        _, first = found.setdefault(problem.prompt, (place, problem))
        if problem.answer.strip() != first.answer.strip():
            contradicted.setdefault(problem.prompt, (place, problem))
    if contradicted and not drop:
        prompt, (place, problem) = next(iter(contradicted.items()))
        first_place, first = found[prompt]
        raise ValueError(
            f"{first_place} and {place} have the same prompt but the answers {first.answer!r} and {problem.answer!r} "
            f"(such prompts: {len(contradicted)}); remove the rows that are wrong, or leave such prompts out "
            'with contradictions = "drop", which is data.contradictions in a run'
        )
    if len(found) == len(contradicted):
        raise ValueError(f"{source} holds no row that counts; pass a file with at least one problem")
    return [problem for prompt, (_, problem) in found.items() if prompt not in contradicted]


def _problem(place: _Place, raw: Any) -> Problem:
    try:
        row = msgspec.convert(raw, _Row)
    except msgspec.ValidationError as error:
        what, _, where = str(error).replace("`", "").partition(" - at $.")
        column = f", column {where}" if where else ""
        if what.startswith("Invalid enum value"):
            what = f"{what}; choose {', '.join(ROLES[:-1])} or {ROLES[-1]}"
        raise ValueError(f"{place}{column}: {what}; mend or remove that row") from error
    return Problem(row.prompt, row.reward_model.ground_truth, place=str(place))


def _parquet(file: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Yield numbers and rows, a repetition of an earlier row left out: some files hold each a hundred times."""
    seen: set[bytes] = set()
    encode = msgspec.msgpack.Encoder(enc_hook=repr).encode
    try:
        with pq.ParquetFile(path) as table:
            missing = [column for column in REQUIRED if column not in table.schema_arrow.names]
            if missing:
                have = ", ".join(table.schema_arrow.names)
                raise ValueError(f"{file} lacks the column {missing[0]}; it has {have}")
            rows = (row for batch in table.iter_batches(columns=list(REQUIRED)) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                key = encode(row)
                if key not in seen:
                    seen.add(key)
                    yield number, row
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a parquet file that can be read: {error}") from error


def _jsonl(file: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Yield numbers of lines and what they hold; blank ones are passed over, and so is a byte-order mark."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            text = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").strip()
            if not text:
                continue
            try:
                yield number, msgspec.json.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ValueError(f"{file}, row {number}: not JSON ({error}); mend or remove that row") from error


_READERS = {".parquet": _parquet, ".jsonl": _jsonl}
