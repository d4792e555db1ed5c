"""Off-policy, what weighs token t's ∇log π_θ if a response has one reward, given at its end?"""

from collections.abc import Callable

import torch
from torch import Tensor


def check(weights: Callable[[Tensor], Tensor]) -> str | None:
    """Return None where weights(log w_1…w_T) gives the exact gradient of E[R] over all responses of three tokens."""
    random = torch.Generator().manual_seed(0)
    responses = torch.cartesian_prod(*[torch.arange(2)] * 3)
    logits, old = torch.randn((2, 7, 2), generator=random, dtype=torch.float64)
    R = torch.randn(8, generator=random, dtype=torch.float64)
    # One row of logits for each history: none, one token, two tokens.
    states = torch.stack([torch.zeros(8).long(), 1 + responses[:, 0], 3 + 2 * responses[:, 0] + responses[:, 1]], 1)

    def logp(table: Tensor) -> Tensor:
        return table.log_softmax(-1)[states, responses]

    leaf = logits.requires_grad_()
    (exact,) = torch.autograd.grad((logp(leaf).sum(1).exp() * R).sum(), leaf)
    log_w = (logp(leaf) - logp(old)).detach()
    found = torch.stack([torch.as_tensor(weights(row)) for row in log_w])
    if found.shape != log_w.shape:
        return f"weights must return one value per token, got shape {tuple(found.shape[1:])} for three tokens"
    drawn = logp(old).sum(1).exp()[:, None]
    (given,) = torch.autograd.grad((drawn * found.detach() * R[:, None] * logp(leaf)).sum(), leaf)
    off = float((given - exact).norm() / exact.norm())
    return None if off < 1e-9 else f"the gradient is off by {100 * off:.3g} %"
