"""Fill in the weight of a divergence that the table lacks: Hellinger's, f(v) = (√v − 1)²."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def check(slope: Callable[[Tensor], Tensor]) -> str | None:
    """Return None where slope(log v) gives Hellinger's exact gradient by enumeration, else what is wrong."""
    random = torch.Generator().manual_seed(0)
    logits, ref_logits = torch.randn((2, 5), generator=random, dtype=torch.float64)
    logits.requires_grad_()
    logp, logr = logits.log_softmax(0), ref_logits.log_softmax(0)
    v, r = (logp - logr).exp(), logr.exp()
    (exact,) = torch.autograd.grad((r * (v.sqrt() - 1) ** 2).sum(), logits, retain_graph=True)
    # The weight's gradient, for samples of π_ref itself: u = 1.
    found = slope((logp - logr).detach())
    if not isinstance(found, Tensor) or found.shape != (5,):
        return f"slope must return one value per log v, got {found!r}"
    (given,) = torch.autograd.grad((r * found * logp).sum(), logits)
    off = float((given - exact).norm() / exact.norm())
    return None if math.isclose(off, 0, abs_tol=1e-9) else f"the gradient is off by {100 * off:.3g} %"
