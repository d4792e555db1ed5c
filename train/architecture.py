"""What a policy is built like: its transformers config and its sizes, without its weights and mostly without a network.

The published config.json of the paper's two models lie in train/shapes.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, Qwen3Config
from transformers.modeling_layers import GradientCheckpointingLayer

from train.config import HUB, ModelConfig
from train.places import NO_CODE, reading
from train.tokenizer import build_tokenizer

SHAPES = {path.stem: path for path in (Path(__file__).parent / "shapes").glob("*.json")}
"""The models of the hub's Qwen whose shape ships with the driver."""


class Sizes(NamedTuple):
    """The numbers of a policy that memory and time depend on.

    Attributes:
        parameters: all of them, tied ones once.
        block: those of the largest block.
        matrices: those of all blocks that a token is multiplied with.
        layers: number of blocks.
        vocabulary: V, the rows of the head.
        width: d, size of the residual stream.
        mlp_width: m, hidden size of a feed-forward block.
        queries: numbers in a token's queries, heads × size of a head.
        keys: numbers in a token's keys of one block, and in its values.
        head_norms: whether queries and keys are normalised, head by head.
        tied: whether the head is the embedding too.
    """

    parameters: int
    block: int
    matrices: int
    layers: int
    vocabulary: int
    width: int
    mlp_width: int
    queries: int
    keys: int
    head_norms: bool
    tied: bool

    @property
    def root(self) -> int:
        """Parameters outside the blocks: embedding, head, last norm."""
        return self.parameters - self.layers * self.block

    @property
    def head(self) -> int:
        """Numbers in the head."""
        return self.vocabulary * self.width


def architecture(model: ModelConfig) -> PretrainedConfig:
    """Return the transformers config of a policy; nothing is fetched if its shape is here.

    Args:
        model: as a run has it.

    Returns:
        The config.

    Raises:
        ValueError: there is no model there, or its config cannot be read.
    """
    if model.path is None:
        return _random(model)
    if model.path.startswith(HUB):
        return _of_hub(model.path.removeprefix(HUB))
    with reading(model.path) as source:
        return _read(**source)


def _of_hub(name: str) -> PretrainedConfig:
    repository, _, revision = name.partition("@")
    shape = SHAPES.get(repository.removeprefix("Qwen/"))
    if shape is not None:
        return _read(str(shape), local_files_only=True)
    try:
        return _read(repository, revision=revision or "main")
    except (OSError, ValueError, KeyError) as error:
        known = ", ".join(f"{HUB}Qwen/{stem}" for stem in sorted(SHAPES))
        raise ValueError(
            f"cannot read the config of {HUB}{name} from the hub: {str(error).strip().splitlines()[0]}; pass the "
            f"folder of the model, or one whose shape is here: {known}"
        ) from error


def _read(pretrained_model_name_or_path: str, **how: Any) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.from_pretrained(pretrained_model_name_or_path, **how | NO_CODE)
    return config


def _random(model: ModelConfig) -> Qwen3Config:
    shape, tokenizer = model.shape, build_tokenizer()
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.width // shape.heads,
        max_position_embeddings=model.context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def divided(config: PretrainedConfig, by: int, layers: int = 2) -> PretrainedConfig:
    """Return the same architecture in small, to rehearse a run with.

    Vocabulary, size of a head, positions, norms and tying stay, and so does how many queries share a key.

    Args:
        config: of the model that is meant.
        by: what its widths and its number of key heads are divided by.
        layers: blocks that are left.

    Returns:
        A config of the same class.
    """
    keys = max(1, config.num_key_value_heads // by)
    given: dict[str, Any] = config.to_dict() | {
        "hidden_size": _part(config.hidden_size, by),
        "intermediate_size": _part(config.intermediate_size, by),
        "num_hidden_layers": layers,
        "num_key_value_heads": keys,
        "num_attention_heads": keys * (config.num_attention_heads // config.num_key_value_heads),
        # Explicitly: where a config has none, a head is the width divided by the heads.
        "head_dim": head_size(config),
    }
    if given.get("layer_types"):
        given["layer_types"] = given["layer_types"][:layers]
    small: PretrainedConfig = type(config).from_dict(given)
    return small


def _part(size: int, by: int) -> int:
    return max(32, size // by // 32 * 32)


def head_size(config: PretrainedConfig) -> int:
    """Return how many numbers a head's query has."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def sizes(config: PretrainedConfig) -> Sizes:
    """Count what a model of that config has, from a model without storage.

    Args:
        config: of a causal language model of attention alone.

    Returns:
        The sizes.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    size = head_size(config)
    return Sizes(
        parameters=sum(weight.numel() for weight in model.parameters()),
        block=max(sum(weight.numel() for weight in layer.parameters()) for layer in layers),
        matrices=sum(weight.numel() for layer in layers for weight in layer.parameters() if weight.ndim == 2),
        layers=len(layers),
        vocabulary=head.shape[0],
        width=head.shape[1],
        mlp_width=config.intermediate_size,
        queries=config.num_attention_heads * size,
        keys=config.num_key_value_heads * size,
        head_norms=any("q_norm" in name for name, _ in layers[0].named_parameters()),
        tied=head is embedding,
    )
