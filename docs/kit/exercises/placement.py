"""Which cost of token t, detached, gives ∇KL(π_θ‖π_ref) of whole responses off-policy?"""

from collections.abc import Callable

import torch
from torch import Tensor


def check(costs: Callable[[Tensor, Tensor], Tensor]) -> str | None:
    """Return None where costs(log w, log v) of a response's tokens give the exact gradient over all of three tokens."""
    random = torch.Generator().manual_seed(2)
    responses = torch.cartesian_prod(*[torch.arange(2)] * 3)
    logits, old, ref = torch.randn((3, 7, 2), generator=random, dtype=torch.float64)
    # One row of logits for each history: none, one token, two tokens.
    states = torch.stack([torch.zeros(8).long(), 1 + responses[:, 0], 3 + 2 * responses[:, 0] + responses[:, 1]], 1)

    def logp(table: Tensor) -> Tensor:
        return table.log_softmax(-1)[states, responses]

    leaf = logits.requires_grad_()
    whole, whole_ref = logp(leaf).sum(1), logp(ref).sum(1)
    (exact,) = torch.autograd.grad((whole.exp() * (whole - whole_ref)).sum(), leaf)
    log_w, log_v = (logp(leaf) - logp(old)).detach(), (logp(leaf) - logp(ref)).detach()
    found = torch.stack([torch.as_tensor(costs(*rows)) for rows in zip(log_w, log_v, strict=True)])
    if found.shape != log_w.shape:
        return f"costs must return one value per token, got shape {tuple(found.shape[1:])} for three tokens"
    drawn = logp(old).sum(1).exp()[:, None]
    (given,) = torch.autograd.grad((drawn * found.detach() * logp(leaf)).sum(), leaf)
    off = float((given - exact).norm() / exact.norm())
    return None if off < 1e-9 else f"the gradient is off by {100 * off:.3g} %"
