"""Mend Algorithm 1's loss for χ²: put the stop-gradient where it belongs."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

BETA = 0.5


def check(loss: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> str | None:
    """Return None where E_old[loss] has −∇(E[A] − β·χ²) by enumeration, sample by sample its weight, else why not."""
    random = torch.Generator().manual_seed(3)
    logits, old_logits, advantage = torch.randn((3, 5), generator=random, dtype=torch.float64)
    logits.requires_grad_()
    logp, logq = logits.log_softmax(0), old_logits.log_softmax(0)
    p, q = logp.exp(), logq.exp()
    reward, penalty = (
        torch.autograd.grad(term, logits, retain_graph=True)[0]
        for term in ((p * advantage).sum(), ((p - q) ** 2 / q).sum())
    )
    values = loss(logp, logq, advantage, BETA)
    if not isinstance(values, Tensor) or values.shape != (5,):
        return f"loss must return one value per sample, got {values!r}"
    if not values.requires_grad:
        return "the loss has no gradient: one factor must stay live"
    (given,) = torch.autograd.grad((q.detach() * values).sum(), logits, retain_graph=True)
    off = float((given + reward - BETA * penalty).norm())
    if not math.isclose(off, 0, abs_tol=1e-9):
        share = float((given + reward) @ penalty / (penalty @ penalty)) / BETA
        if torch.allclose(given + reward, share * BETA * penalty, atol=1e-9):
            return f"the penalty acts with {share:.3g}·β"
        return f"the gradient is off by {off:.3g}"
    # The gradient of each outcome's own term in Σ π_θ·A − β·Σ (π_θ − π_old)²/π_old, over π_old.
    leaf = logp.detach().requires_grad_()
    density = leaf.exp() * advantage - BETA * (leaf.exp() - q.detach()) ** 2 / q.detach()
    (weight,) = torch.autograd.grad(density.sum(), leaf)
    leaf = logp.detach().requires_grad_()
    (moved,) = torch.autograd.grad(loss(leaf, logq, advantage, BETA).sum(), leaf)
    if not torch.allclose(moved, -weight / q.detach(), atol=1e-9):
        return "right on average, but single samples do not move by their weights"
    return None
