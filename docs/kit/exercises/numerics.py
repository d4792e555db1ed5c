"""Write Hellinger's f(v) = (√v − 1)² so that float32 keeps its digits, in value and in gradient."""

from collections.abc import Callable
from decimal import Decimal, localcontext

import torch
from torch import Tensor

DIGITS = 1e-6


def check(f: Callable[[Tensor], Tensor]) -> str | None:
    """Return None where f and its gradient agree with 60 digits of the definition, else where they first do not."""
    sizes = torch.logspace(-6, 1.9, 80)
    d = torch.cat([-sizes.flip(0), sizes]).requires_grad_()
    found = f(d)
    if not isinstance(found, Tensor) or found.shape != d.shape or found.dtype != torch.float32:
        return "f must return one float32 value per log v"
    (slope,) = torch.autograd.grad(found.sum(), d)
    with localcontext() as context:
        context.prec = 60
        roots = [(Decimal(x) / 2).exp() for x in d.tolist()]
        exact = {"value": (found, [(s - 1) ** 2 for s in roots]), "gradient": (slope, [s * (s - 1) for s in roots])}
    for what, (given, truth) in exact.items():
        off = (given.detach().double() / torch.tensor([float(x) for x in truth], dtype=torch.float64) - 1).abs()
        if not bool((off < DIGITS).all()):
            worst = int(off.nan_to_num(torch.inf).argmax())
            return f"the {what} at d = {d[worst].item():.2g} is off by {100 * off[worst].item():.2g} %"
    return None
