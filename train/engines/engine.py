"""An engine holds the policy's weights and draws responses; it says what it thought of each token it drew."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from train.batch import Ids
from train.policy import Policy


class Said(NamedTuple):
    """A response.

    Attributes:
        ids: its tokens, up to and including the end-of-text token if it has one.
        logp: log π_sampler of each: under the engine, at the sampling temperature.
    """

    ids: list[int]
    logp: list[float]


class Demands(NamedTuple):
    """What a run will ask of an engine.

    Attributes:
        context: the longest sequence.
        precision: of its weights, as model.precision.
        at_once: the most responses drawn at a time; 0: the engine's choice.
        temperature: at which the engine is held to the trainer.
        budget: tokens through the trainer's model at a time when that is done.
        prompts: some, to which the engine then answers.
    """

    context: int
    precision: str
    at_once: int
    temperature: float
    budget: int
    prompts: Sequence[Ids]


class Engine(Protocol):
    """What draws responses; each process has its own."""

    def holding(self, policy: Policy) -> AbstractContextManager[None]:
        """Give the engine the policy's weights as they are now, for as long as the context lasts; every rank must ask.

        Raises:
            StaleWeights: the engine does not compute with them.
        """

    def sample(
        self, prompts: Sequence[Ids], *, max_tokens: int, temperature: float, seed: int, first: int = 0
    ) -> list[Said]:
        """Draw one response to each prompt from the tempered softmax itself: no top-k, no top-p, no penalty.

        Args:
            prompts: token ids of each prompt.
            max_tokens: the longest response.
            temperature: divides the logits, > 0.
            seed: the same seed draws the same responses.
            first: number of the first prompt among all; a response's random numbers are of the seed and its number.

        Returns:
            A response to each.
        """

    def close(self) -> None:
        """Let go of what it holds; not after an error, when other ranks may still wait for this one."""


class StaleWeights(RuntimeError):
    """An engine does not compute with the weights it was given."""
