"""Files and folders that are on the disk once a function returns, and that never vanish by halves."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Write a new file; its name is on the disk only after ``sync`` of its folder."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # so that reading it back reads the disk
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def replace(path: Path, data: bytes) -> None:
    """Write a file that is either as it was or as it should be, whenever this is interrupted."""
    fresh = hidden(path)
    fresh.unlink(missing_ok=True)
    try:
        write(fresh, data)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a folder; one that is killed lets go.

    Raises:
        ValueError: another process is at work there.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is at work in {folder}; wait for its end, or stop it") from error
        yield
    finally:
        os.close(descriptor)


def sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make(folder: Path) -> None:
    """Make a folder, and those above it, if they are missing."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync(path.parent)


def hidden(path: Path) -> Path:
    """Return the name beside a path under which it is made and unmade."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def discard(path: Path) -> None:
    """Remove a file or a folder, if it is there; one whose removal is interrupted has its hidden name by then."""
    if os.path.lexists(path):
        os.rename(path, hidden(path))
        delete(hidden(path))


def delete(path: Path) -> None:
    """Remove a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def reason(error: Exception) -> str:
    """Say what went wrong, and with which file where the system tells."""
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
