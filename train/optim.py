"""One optimiser step: AdamW after a linear warm-up, a bounded gradient, and no step along a broken one."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Optimizer(NamedTuple):
    """AdamW with its schedule, and the parameters it moves."""

    parameters: list[nn.Parameter]
    adamw: torch.optim.AdamW
    schedule: torch.optim.lr_scheduler.LambdaLR
    max_grad_norm: float


def build_optimizer(
    model: nn.Module, *, learning_rate: float, warm_up: int, weight_decay: float, max_grad_norm: float = 1.0
) -> Optimizer:
    """Return an optimiser whose learning rate grows linearly over the first ``warm_up`` steps, then stays."""
    parameters = list(model.parameters())
    adamw = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.999), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: min(1.0, (step + 1) / max(1, warm_up)))
    return Optimizer(parameters, adamw, schedule, max_grad_norm)


def step(optimizer: Optimizer, loss: Float[Tensor, ""]) -> float:
    """Descend the loss once and return the gradient's norm; where that is not finite, the weights stay as they are."""
    optimizer.adamw.zero_grad()
    loss.backward()
    norm = float(nn.utils.clip_grad_norm_(optimizer.parameters, optimizer.max_grad_norm))
    if norm < float("inf"):
        optimizer.adamw.step()
        optimizer.schedule.step()
    return norm
