"""One checkpoint's folder: files of which a manifest, written last, has every size and hash."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from train.saving.durable import reason, sync, write

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"
TENSORS = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)\.safetensors")
PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}
_STEP = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,})(\.old)?")


class Damage(Exception):
    """What is wrong with a checkpoint."""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    size: int
    sha256: str


class _Format(msgspec.Struct):
    format: int


class _Manifest(_Format, forbid_unknown_fields=True):
    step: int
    files: dict[str, _File]


class Found(NamedTuple):
    """A folder that is called like a checkpoint."""

    step: int
    current: bool  # False: called .old, while a newer save of the same step takes its place
    path: Path
    version: tuple[int, int]


def write_folder(path: Path, step: int, contents: Iterable[tuple[str, bytes]]) -> None:
    """Make a folder and its files, each of them on the disk before this returns.

    Args:
        path: of the folder, which must not be there.
        step: rollout batches done.
        contents: each file's name and bytes; they are asked for one after the other.

    Raises:
        OSError: the disk does not take it; the folder stays as it is then.
    """
    os.mkdir(path)
    files = {}
    for name, data in contents:
        files[name] = _File(len(data), hashlib.sha256(data).hexdigest())
        write(path / name, data)
    write(path / MANIFEST, msgspec.json.encode(_Manifest(FORMAT, step, files)))
    sync(path)


def list_folders(folder: Path) -> list[Found]:
    """Return what is called like a checkpoint, the newest first; OSError if the folder cannot be listed."""
    listed = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if match := _STEP.fullmatch(entry.name):
                    with suppress(FileNotFoundError):
                        stat = entry.stat(follow_symlinks=False)
                        version = stat.st_ino, stat.st_ctime_ns
                        listed.append(Found(int(match[1]), match[2] is None, Path(entry.path), version))
    except FileNotFoundError:
        return []
    return sorted(listed, reverse=True)


def read_folder(path: Path, step: int) -> Iterator[tuple[str, bytes]]:
    """Yield each file's name and bytes; nothing but what the manifest covers is ever opened.

    Args:
        path: of the folder.
        step: rollout batches done, by its name.

    Raises:
        Damage: something is missing, changed, or there without being in the manifest.
    """
    try:
        if path.is_symlink() or not path.is_dir():
            raise Damage("it is not a folder")
        with os.scandir(path) as entries:
            sizes = {entry.name: _size(entry) for entry in entries}
        if MANIFEST not in sizes:
            raise Damage(f"{MANIFEST} is missing")
        files = _check((path / MANIFEST).read_bytes(), step)
        for name in sorted(sizes.keys() - files.keys() - {MANIFEST}):
            pickle = "; it may be a pickle, which is never loaded" if Path(name).suffix in PICKLES else ""
            raise Damage(f"{name!r} is there without being in {MANIFEST}{pickle}")
        for name, file in files.items():
            if sizes.get(name) != file.size:
                found = f"has {sizes[name]:,} bytes" if name in sizes else "is missing"
                raise Damage(f"{name} {found}, and {file.size:,} bytes were written")
        for name, file in files.items():
            data = (path / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != file.sha256:
                raise Damage(f"{name} is not what was written; its hash differs from that in {MANIFEST}")
            yield name, data
    except OSError as error:
        raise Damage(f"it cannot be read: {reason(error)}") from error


def is_intact(path: Path, step: int) -> bool:
    """Return whether every file of a checkpoint is what was written."""
    try:
        for _ in read_folder(path, step):
            pass
    except Damage:
        return False
    return True


def _size(entry: os.DirEntry[str]) -> int:
    if not entry.is_file(follow_symlinks=False):
        raise Damage(f"{entry.name!r} is a link or a folder, not a file")
    return entry.stat(follow_symlinks=False).st_size


def _check(data: bytes, step: int) -> dict[str, _File]:
    """Return the files a manifest lists, if it is one of this format and of this step, and each name is one we give."""
    try:
        found = msgspec.json.decode(data, type=_Format).format
        if found != FORMAT:
            raise Damage(f"{MANIFEST} is of format {found}, and this version reads {FORMAT}; use the one that wrote it")
        manifest = msgspec.json.decode(data, type=_Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Damage(f"{MANIFEST} is not a manifest: {error}") from error
    for name in manifest.files:
        if name != STATE and not TENSORS.fullmatch(name):
            raise Damage(f"{MANIFEST} lists {name!r}, which is not the name of a file of a checkpoint")
    if STATE not in manifest.files:
        raise Damage(f"{MANIFEST} does not list {STATE}")
    if manifest.step != step:
        raise Damage(f"{MANIFEST} is of step {manifest.step}")
    return manifest.files
