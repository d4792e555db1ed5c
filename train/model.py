"""The policy and its tokenizer: a Hugging Face model, or a small one of the Qwen3 architecture, drawn at random."""

import copy
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from train.architecture import architecture
from train.config import ModelConfig
from train.places import reading
from train.policy import check_head
from train.tokenizer import build_tokenizer, set_ends

PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
NAMED = 3
"""How many weights an error names of each kind."""


def tokenizer_of(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Return the model's own tokenizer, or for a random model that of one token a byte.

    Raises:
        ValueError: as ``open_tokenizer``.
    """
    return build_tokenizer() if config.path is None else open_tokenizer(config.path)


def build_model(config: ModelConfig, seed: int) -> PreTrainedModel:
    """Return the model in float32 and without dropout; the weights of a random one are drawn from the given seed.

    Raises:
        ValueError: as ``open_model``, or the model is not made for sequences that long.
    """
    if config.path is None:
        return _random(config, seed)
    model = open_model(config.path)
    check_length(model, config.context, config.path)
    return model


def kept_dtype(config: ModelConfig) -> torch.dtype:
    """Return the dtype in which the model's folder keeps its weights: the trained ones are exported in it."""
    dtype = None if config.path is None else architecture(config).dtype
    return getattr(torch, dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype or torch.float32


def check_length(model: PreTrainedModel, length: int, path: str) -> None:
    """Refuse sequences longer than the model is made for.

    Raises:
        ValueError: they are.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or length
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
    with reading(path) as source:
        tokenizer = AutoTokenizer.from_pretrained(**source, padding_side="left")
        listed = _ends(source, AutoConfig.from_pretrained(**source))
    for what, it in (("chat template", tokenizer.chat_template), ("end-of-text token", tokenizer.eos_token_id)):
        if it is None:
            raise ValueError(f"the tokenizer of {path} has no {what}; add one to its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    set_ends(tokenizer, listed)
    return tokenizer


def _ends(source: dict[str, Any], config: PretrainedConfig) -> list[int]:
    """Return the ids that end a response by generation_config.json or, where there is none, by config.json."""
    file = Path(source["pretrained_model_name_or_path"]) / "generation_config.json"
    if file.is_file() and "gguf_file" not in source:
        found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    else:
        found = getattr(config.get_text_config(), "eos_token_id", None)
    return [int(id) for id in (found if isinstance(found, list) else [found]) if id is not None]


def open_model(path: str) -> PreTrainedModel:
    """Read a causal language model in float32; no code of its own is run, nothing is downloaded.

    Args:
        path: as ModelConfig.path.

    Returns:
        The model, without dropout.

    Raises:
        ValueError: there is no model, it cannot be read, its weights are not those of its config, or it is of a kind
            that the losses or the sampler do not know.
    """
    with reading(path) as source, _quietly():
        _refuse_pickles(source)
        how: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
        if "gguf_file" not in source:
            how["use_safetensors"] = True
        loaded: Any = AutoModelForCausalLM.from_pretrained(**source, **how)
    model: PreTrainedModel = loaded[0]
    found: dict[str, Any] = loaded[1]
    _refuse_other_weights(found, path)
    _refuse_broken_weights(model, path)
    layers = DynamicCache(config=model.config).layers
    if getattr(model, "_is_stateful", False) or not all(hasattr(layer, "batch_select_indices") for layer in layers):
        raise ValueError(f"{path} keeps a state besides keys and values; pass a model that is attention alone")
    check_head(model, path)
    # What a folder says of sampling is not used here, only kept. What is invalid there could not be saved.
    kept = model.generation_config or GenerationConfig.from_model_config(model.config)
    try:
        kept.validate(strict=True)
    except ValueError:
        ending, kept = kept.eos_token_id, GenerationConfig.from_model_config(model.config)
        kept.eos_token_id = ending
    model.generation_config = kept
    if not hasattr(model.config, "quantization_config"):
        return model
    # What was quantised is float32 by now, but would still be saved as if it were not.
    config = copy.deepcopy(model.config)
    del config.quantization_config
    plain: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = kept
    plain.eval()
    return plain


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep back transformers' bars and its table of keys: what matters of them is an error here."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _refuse_other_weights(found: Mapping[str, Any], path: str) -> None:
    """Refuse a folder whose weights are not those of its config: transformers would draw what is missing at random."""
    shapes = [key if isinstance(key, str) else key[0] for key in found["mismatched_keys"]]
    clauses = [
        clause.format(_some(keys))
        for clause, keys in (
            ("lack {}", found["missing_keys"]),
            ("hold {}, which its config.json does not describe", found["unexpected_keys"]),
            ("have another shape of {} than its config.json", shapes),
        )
        if keys
    ]
    if clauses:
        raise ValueError(
            f"the weights of {path} are not those of its config.json: its files {' and '.join(clauses)}; "
            "fetch the folder again, or pass that of a whole causal language model"
        )


def _refuse_broken_weights(model: PreTrainedModel, path: str) -> None:
    """Refuse a weight that is NaN or infinite: with it nothing that the model says is a number."""
    names = [name for name, x in model.named_parameters() if x.numel() and not _is_finite(x)]
    if names:
        raise ValueError(f"{path} has weights that are not finite, in {_some(names)}; fetch it again, or take another")


def _is_finite(x: Tensor) -> bool:
    """Say whether every entry is; the extremes of a tensor that holds NaN are NaN."""
    return bool(torch.stack(x.aminmax()).isfinite().all())


def _refuse_pickles(source: Mapping[str, Any]) -> None:
    """Refuse a folder that has its weights in pickles alone."""
    folder = Path(source["pretrained_model_name_or_path"])
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles and not any(folder.glob("*.safetensors")) and "gguf_file" not in source:
        raise ValueError(
            f"its weights are in {_some(pickles)} alone: pickled weights may hold code and are not loaded; fetch or "
            "write them as safetensors"
        )


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:NAMED]
    return ", ".join(first) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _random(config: ModelConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(architecture(config), dtype=torch.float32).eval()
        for weight in model.parameters():
            if weight.ndim == 2:
                # Variance 1/fan-in. The library's 0.02 suits wide models: here it learns several times slower.
                torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return model
