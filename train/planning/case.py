"""What is planned: a configuration, the sizes of its model, the devices, and how long sequences are taken to be."""

from dataclasses import dataclass
from functools import cached_property

from train.architecture import Sizes
from train.config import Config
from train.engines.by_vllm import AT_ONCE
from train.planning.devices import Devices

PROMPT = 256
"""Tokens that the mean prompt is taken to have: problems of competitions have 100 to 300."""
ARITHMETIC = 8
"""And where the problems are generated: that many has 47+38, one token a byte."""


@dataclass(frozen=True)
class Case:
    """A run on some devices.

    Attributes:
        config: the run's.
        sizes: of its model.
        devices: one a process.
        prompt: mean tokens of a prompt.
        length: mean tokens of a response.
    """

    config: Config
    sizes: Sizes
    devices: Devices
    prompt: int
    length: int

    @property
    def ranks(self) -> int:
        """How many processes there are."""
        return self.devices.number

    @cached_property
    def narrow(self) -> int:
        """Bytes of a number in the passes."""
        return 2 if self.config.model.precision == "bfloat16" else 4

    @property
    def sharded(self) -> bool:
        """Whether passes are made with copies of the weights, gathered block by block; as train.policy.shard."""
        return self.ranks > 1 or self.narrow == 2

    @property
    def vllm(self) -> bool:
        """Whether vLLM draws."""
        return self.config.engine.kind == "vllm"

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.config.data.max_prompt_tokens + self.config.rollout.max_tokens

    @property
    def mean(self) -> int:
        """Tokens of the mean sequence."""
        return self.prompt + self.length

    @property
    def drawn(self) -> int:
        """Responses drawn for a rollout batch: with the filter, of one draw."""
        rollout = self.config.rollout
        return rollout.prompts * rollout.samples * (rollout.oversample if rollout.filter else 1)

    @property
    def trained(self) -> int:
        """Responses trained on in a rollout batch."""
        return self.config.rollout.prompts * self.config.rollout.samples

    @property
    def share(self) -> int:
        """Responses that the busiest process draws."""
        return -(-self.drawn // self.ranks)

    @property
    def seats(self) -> int:
        """Responses that a process has room to draw at a time."""
        at_once = self.config.rollout.at_once or (AT_ONCE if self.vllm else self.share)
        return min(at_once, self.share)

    @property
    def updates(self) -> int:
        """Optimiser steps of a rollout batch."""
        return self.config.rollout.prompts // self.config.optimizer.prompts

    @property
    def micro(self) -> int:
        """Tokens that go through the model at a time on one process."""
        sequences = -(-self.config.optimizer.prompts * self.config.rollout.samples // self.ranks)
        budget = self.config.optimizer.micro_tokens or sequences * self.longest
        return min(max(budget, self.longest), sequences * self.longest)
