"""By what must R minus the group's mean, the sample's own reward included, be multiplied?"""

from collections.abc import Callable

import torch


def check(scale: Callable[[int], float]) -> str | None:
    """Return None where scale(G)·(R − mean) has the exact gradient of E[R], over all groups of two, three and four."""
    random = torch.Generator().manual_seed(0)
    logits, R = torch.randn((2, 3), generator=random, dtype=torch.float64)
    leaf = logits.requires_grad_()
    logp = leaf.log_softmax(0)
    (exact,) = torch.autograd.grad((logp.exp() * R).sum(), leaf, retain_graph=True)
    for G in (2, 3, 4):
        groups = torch.cartesian_prod(*[torch.arange(3)] * G)
        drawn = logp.detach()[groups].sum(1, keepdim=True).exp()
        A = float(scale(G)) * (R[groups] - R[groups].mean(1, keepdim=True))
        (given,) = torch.autograd.grad((drawn * A * logp[groups]).sum() / G, leaf, retain_graph=True)
        ratio = float((given * exact).sum() / (exact * exact).sum())
        if abs(ratio - 1) > 1e-9:
            return f"in groups of {G} the gradient is {ratio:.4g} of the exact one"
    return None
