"""Write a loss term whose gradient off-policy is that of Jeffreys' penalty, KL(π_θ‖π_ref) + KL(π_ref‖π_θ)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def check(term: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str | None:
    """Return None where E_old[term] has Jeffreys' gradient by enumeration, on- and off-policy, else what is wrong."""
    random = torch.Generator().manual_seed(1)
    logits, old_logits, ref_logits = torch.randn((3, 5), generator=random, dtype=torch.float64)
    logr = ref_logits.log_softmax(0)
    for regime, sampler in (("on-policy", logits), ("off-policy", old_logits)):
        leaf = logits.clone().requires_grad_()
        logp, logq = leaf.log_softmax(0), sampler.log_softmax(0)
        jeffreys = ((logp.exp() - logr.exp()) * (logp - logr)).sum()
        (exact,) = torch.autograd.grad(jeffreys, leaf, retain_graph=True)
        values = term(logp, logq, logr)
        if not isinstance(values, Tensor) or values.shape != (5,):
            return f"term must return one value per sample, got {values!r}"
        if not values.requires_grad:
            return "the term has no gradient: something in it must stay differentiable"
        (given,) = torch.autograd.grad((logq.exp() * values).sum(), leaf)
        off = float((given - exact).norm() / exact.norm())
        if not math.isclose(off, 0, abs_tol=1e-9):
            return f"{regime} the gradient is off by {100 * off:.3g} %"
    return None
