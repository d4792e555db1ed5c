"""One optimiser step: AdamW after a linear warm-up, a bounded gradient, and no step along a broken one."""

from typing import Any, NamedTuple

import torch
from torch import nn

from train.config import OptimizerConfig, WarmStartConfig
from train.policy import whole

BETAS = (0.9, 0.999)


class Optimizer(NamedTuple):
    """An optimiser, and the parameters it moves.

    Attributes:
        parameters: all of them.
        rule: torch's AdamW, or schedulefree's.
        warm_up: steps over which the learning rate grows; schedule-free keeps its own.
        learning_rate: after them.
        max_grad_norm: longer gradients are shortened to this.
    """

    parameters: list[nn.Parameter]
    rule: torch.optim.Optimizer
    warm_up: int
    learning_rate: float
    max_grad_norm: float

    @property
    def averages(self) -> bool:
        """Whether the weights to sample from are an average of those that the gradient is taken at."""
        return hasattr(self.rule, "eval")


def build_optimizer(model: nn.Module, settings: OptimizerConfig | WarmStartConfig) -> Optimizer:
    """Return an optimiser whose learning rate grows linearly over the first ``warm_up`` steps, then stays."""
    parameters = list(model.parameters())
    given: dict[str, Any] = {"lr": settings.learning_rate, "betas": BETAS, "weight_decay": settings.weight_decay}
    if isinstance(settings, OptimizerConfig) and settings.kind == "schedule-free":
        from schedulefree import AdamWScheduleFree

        rule: torch.optim.Optimizer = AdamWScheduleFree(parameters, warmup_steps=settings.warm_up, **given)
        return Optimizer(parameters, rule, 0, settings.learning_rate, settings.max_grad_norm)
    rule = torch.optim.AdamW(parameters, fused=True, **given)
    return Optimizer(
        parameters, rule, settings.warm_up, settings.learning_rate, getattr(settings, "max_grad_norm", 1.0)
    )


def learning_rate(optimizer: Optimizer) -> float:
    """Return that of the last step."""
    group = optimizer.rule.param_groups[0]
    return float(group.get("scheduled_lr", group["lr"]))


def step(optimizer: Optimizer, taken: int) -> float:
    """Descend along the gradients and return their norm; where that is not finite, the weights stay as they are.

    Args:
        optimizer: the optimiser, its parameters' gradients accumulated.
        taken: optimiser steps taken so far.

    Returns:
        The norm before it was shortened.
    """
    norm = float(whole(nn.utils.clip_grad_norm_(optimizer.parameters, optimizer.max_grad_norm)))
    if norm < float("inf"):
        for group in optimizer.rule.param_groups:
            if optimizer.warm_up:
                group["lr"] = optimizer.learning_rate * min(1.0, (taken + 1) / optimizer.warm_up)
        optimizer.rule.step()
    optimizer.rule.zero_grad()
    return norm
