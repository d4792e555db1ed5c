"""Data sets of the Hugging Face hub: their files, fetched once, and which of them are of which split."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from train.config import HUB

ROWS, CARDS = ("*.parquet", "*.jsonl"), ("README.md", ".huggingface.yaml")
"""What is fetched of a data set: its rows, and what may say which of its files are of which split."""
_REASONS = {
    RepositoryNotFoundError: "the hub has none of that name that you may read; check the name, or log in to the hub",
    RevisionNotFoundError: "it has no such revision; name a branch, a tag or a commit of it",
    LocalEntryNotFoundError: "the hub is out of reach, and the cache has not all of it; check the network",
}


def fetch(source: str, split: str) -> dict[str, Path]:
    """Return the files of one split of a data set, on this machine.

    What was fetched before is not fetched again, and where the hub is out of reach it serves, if its revision is the
    one asked for.

    Args:
        source: hub:ORG/NAME[@REVISION].
        split: whose files; those of the only split where there is but one.

    Returns:
        Paths by the name to call them in errors.

    Raises:
        ValueError: no such data set or revision, no network, several splits of other names, or no package datasets.
    """
    folder = _folder(source)
    splits = _splits(source, folder)
    if split not in splits and len(splits) != 1:
        have = ", ".join(splits)
        raise ValueError(f"{source} has no split {split} but {have}; download a file of it, and pass that")
    files = splits.get(split) or next(iter(splits.values()))
    return {f"{source} ({_within(file, folder)})": file for file in files}


def name_of(source: str) -> str:
    """Return the NAME of hub:ORG/NAME[@REVISION]."""
    return source.removeprefix(HUB).partition("@")[0].partition("/")[2]


def _folder(source: str) -> Path:
    repository, at, revision = source.removeprefix(HUB).partition("@")
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", repository) or (at and not revision):
        raise ValueError(f"{source!r} is no data set of the hub; write {HUB}ORG/NAME or {HUB}ORG/NAME@REVISION")
    wanted = [*ROWS, *CARDS]
    try:
        return Path(
            snapshot_download(repository, repo_type="dataset", revision=revision or None, allow_patterns=wanted)
        )
    except Exception as error:  # of the hub's client, of its HTTP client, and of the disk
        known = (reason for kind, reason in _REASONS.items() if isinstance(error, kind))
        raise ValueError(f"cannot fetch {source}: {next(known, _line(error))}") from error


def _splits(source: str, folder: Path) -> dict[str, list[Path]]:
    """Return files by split, as the package datasets finds them, from names and from the data set's card."""
    try:
        from datasets import load_dataset_builder
    except ImportError as error:
        raise ValueError(f"{source} needs the package datasets, which is missing; pip install datasets") from error
    if not any(file for pattern in ROWS for file in folder.rglob(pattern)):
        raise ValueError(f"{source} holds no .parquet and no .jsonl file; pass one that does, or a file")
    try:
        found = load_dataset_builder(str(folder)).config.data_files or {}
    except Exception as error:  # of that package, whatever a card may say
        raise ValueError(
            f"cannot tell the splits of {source}: {_line(error)}; download a file of it, and pass that"
        ) from error
    return {str(split): [Path(file) for file in files] for split, files in found.items()}


def _within(file: Path, folder: Path) -> str:
    # The folder may be reached by way of a link: the package gives it resolved.
    return str(file.relative_to(folder.resolve())) if file.is_relative_to(folder.resolve()) else file.name


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
