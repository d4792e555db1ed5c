"""Engines by name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from transformers import PreTrainedTokenizerBase

from rpg_ref.checks import Table
from train.config import EngineConfig
from train.engines.by_transformers import Transformers
from train.engines.by_vllm import VLLM
from train.engines.engine import Demands, Engine
from train.policy import Policy


def check_engine(settings: EngineConfig) -> None:
    """Refuse an engine whose package is missing.

    Raises:
        ValueError: it is.
    """
    if settings.kind == "vllm" and find_spec("vllm") is None:
        raise ValueError("engine.kind is vllm, whose package is missing; pip install '.[vllm]', or take transformers")


@contextmanager
def open_engine(
    settings: EngineConfig, policy: Policy, tokenizer: PreTrainedTokenizerBase, demands: Demands
) -> Iterator[Engine]:
    """Start an engine on every rank, and end it if all goes well.

    Args:
        settings: which, and its limits.
        policy: what it will draw from.
        tokenizer: names the end of text.
        demands: what will be asked of it.

    Yields:
        The engine; it draws within its ``holding``.
    """
    # Engines of several ranks wait for one another while they start: one that fails says so itself, and ends them.
    engine = ENGINES[settings.kind](policy, tokenizer, settings, demands)
    yield engine
    engine.close()


def _transformers(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, settings: EngineConfig, demands: Demands
) -> Engine:
    return Transformers(policy, tokenizer, demands.at_once)


ENGINES: Table[Callable[[Policy, PreTrainedTokenizerBase, EngineConfig, Demands], Engine]] = Table(
    "engine", {"transformers": _transformers, "vllm": VLLM}
)
"""What starts an engine, by EngineConfig.kind."""
