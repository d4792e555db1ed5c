"""Bring any row to rest at v = 1 without moving its expected gradient."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Slope = Callable[[Tensor], Tensor]

# Generators f(v), of this table and of others.
GENERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "−log v": lambda v: -v.log(),
    "v log v": lambda v: v * v.log(),
    "v² − 1": lambda v: v**2 - 1,
    "1/v − 1": lambda v: 1 / v - 1,
    "(√v − 1)²": lambda v: (v.sqrt() - 1) ** 2,
}


def check(at_rest: Callable[[Slope, Tensor], Tensor]) -> str | None:
    """Return None where at_rest(slope, log v) rests at v = 1 and descends Σ π_ref·f(v), else what is wrong."""
    random = torch.Generator().manual_seed(0)
    logits, ref_logits = torch.randn((2, 5), generator=random, dtype=torch.float64)
    logits.requires_grad_()
    logp, logr = logits.log_softmax(0), ref_logits.log_softmax(0)
    log_v, r = (logp - logr).detach(), logr.exp()
    for name, f in GENERATORS.items():

        def slope(d: Tensor, f: Callable[[Tensor], Tensor] = f) -> Tensor:
            leaf = d.detach().requires_grad_()
            return torch.autograd.grad(f(leaf.exp()).sum(), leaf)[0]

        there, found = at_rest(slope, torch.zeros(5, dtype=torch.float64)), at_rest(slope, log_v)
        if not isinstance(found, Tensor) or found.shape != (5,):
            return f"at_rest must return one value per log v, got {found!r}"
        if not float(there.abs().max()) < 1e-12:
            return f"for f = {name} a sample at v = 1 still has the slope {float(there[0]):.3g}"
        (exact,) = torch.autograd.grad((r * f((logp - logr).exp())).sum(), logits, retain_graph=True)
        (given,) = torch.autograd.grad((r * found * logp).sum(), logits, retain_graph=True)
        off = float((given - exact).norm() / exact.norm())
        if not math.isclose(off, 0, abs_tol=1e-9):
            return f"for f = {name} the expected gradient is off by {100 * off:.3g} %"
    return None
