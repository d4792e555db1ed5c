"""Write the region of RPG-Style Clip; the truth is Algorithm 1's max and min with its advantage detached."""

from collections.abc import Callable

import torch
from torch import Tensor


def check(live: Callable[[Tensor, Tensor], Tensor]) -> str | None:
    """Return None where live(direction, w) is where Algorithm 1 has a gradient, else a w and a sign where it is not."""
    w = torch.logspace(-2, 2, 801, dtype=torch.float64)
    for A in (1.0, -1.0):
        logits = w.log().requires_grad_()
        ratio = logits.exp()
        surrogate = torch.maximum(-ratio * A, -ratio.clamp(0.8, 1.28) * A)
        if A < 0:
            surrogate = torch.minimum(surrogate, torch.tensor(-10 * A, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(surrogate.sum(), logits)
        found = live(torch.full_like(w, A), w)
        if not isinstance(found, Tensor) or found.shape != w.shape or found.dtype != torch.bool:
            return f"live must return one truth value per w, got {found!r}"
        wrong = (found != (gradient != 0)).nonzero()
        if len(wrong):
            where = float(w[wrong[0, 0]])
            moves = "moves" if bool(gradient[wrong[0, 0]] != 0) else "does not move"
            return f"with weight of sign {A:+.0f} a sample at w = {where:.3g} {moves}"
    return None
