"""Write a penalty with a detached importance weight whose expected gradient is that of the reverse KL."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def check(penalty: Callable[[Tensor, Tensor], Tensor]) -> str | None:
    """Return None where E_old[penalty(SG(w), log v)] has ∇KL(π_θ‖π_ref) by enumeration, else what is wrong."""
    random = torch.Generator().manual_seed(2)
    logits, old_logits, ref_logits = torch.randn((3, 5), generator=random, dtype=torch.float64)
    logits.requires_grad_()
    logp, logq, logr = logits.log_softmax(0), old_logits.log_softmax(0), ref_logits.log_softmax(0)
    reverse, forward = (
        torch.autograd.grad(divergence, logits, retain_graph=True)[0]
        for divergence in ((logp.exp() * (logp - logr)).sum(), (logr.exp() * (logr - logp)).sum())
    )
    values = penalty((logp - logq).exp().detach(), logp - logr)
    if not isinstance(values, Tensor) or values.shape != (5,):
        return f"penalty must return one value per sample, got {values!r}"
    if not values.requires_grad:
        return "the penalty has no gradient: log v must stay differentiable"
    (given,) = torch.autograd.grad((logq.exp() * values).sum(), logits)
    off, wrong_way = (float((given - exact).norm() / exact.norm()) for exact in (reverse, forward))
    if math.isclose(wrong_way, 0, abs_tol=1e-9):
        return "that is the gradient of the forward KL, KL(π_ref‖π_θ)"
    return None if math.isclose(off, 0, abs_tol=1e-9) else f"the gradient is off by {100 * off:.3g} %"
