"""Files of one JSON line a row, which a kill harms by half a line at most."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from train.saving.durable import replace

Row = dict[str, Any]


def append(path: Path, row: Row) -> None:
    """Write one more line; what is not finite becomes null."""
    with path.open("ab") as file:
        file.write(msgspec.json.encode(row) + b"\n")


def flush(path: Path) -> None:
    """Wait until the lines are on the disk: what comes after them may build on them."""
    with path.open("ab") as file:
        os.fsync(file.fileno())


def rows(path: Path) -> Iterator[Row]:
    """Yield the rows that were written whole; a missing file has none, and what is no row is passed over."""
    if path.exists():
        for line in path.read_bytes().splitlines():
            with suppress(msgspec.DecodeError):
                row = msgspec.json.decode(line)
                if isinstance(row, dict) and {"phase", "step"} <= row.keys():
                    yield row


def keep(path: Path, wanted: Callable[[Row], bool]) -> None:
    """Drop the rows that are not wanted, and half a line at the end."""
    text = b"".join(msgspec.json.encode(row) + b"\n" for row in rows(path) if wanted(row))
    replace(path, text)
