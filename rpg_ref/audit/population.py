"""Population batches: finite, and yet the plain average over one is the exact expectation under π_old."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rpg_ref.audit.oracle import PrefixTree, prefix_tree, token_logp

Loss = Callable[..., Any]
"""loss_fn(logp, logp_old, logp_ref, advantages, mask) ↦ a scalar, or anything with a scalar ``.loss``."""

_VOCABULARY, _HORIZON = 4, 3
_COUNTS = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)


@dataclass(frozen=True)
class Population:
    """A batch whose plain average is an exact expectation: every response, repeated in proportion to π_old.

    Attributes:
        tree: all responses.
        rows: index of the response in each row of the batch, [B].
        old: π_old's table, whose probabilities are tenths, [S, V].
        ref: π_ref's table, [S, V].
        drift: direction in which the policy leaves π_old, as logits, [S, V], largest entry 1.
        reward: of each response, [N].

    Source: ours.
    """

    tree: PrefixTree
    rows: Int[Tensor, "B"]
    old: Float[Tensor, "S V"]
    ref: Float[Tensor, "S V"]
    drift: Float[Tensor, "S V"]
    reward: Float[Tensor, "N"]


@cache
def population(seed: int) -> Population:
    """Draw a population: 21 states, 84 logits, 1,000 rows of three tokens each.

    Args:
        seed: of the policies and rewards; π_old's tenths are a random permutation of 1, 2, 3, 4 in each state.

    Returns:
        The population.

    Source: ours.
    """
    rng = torch.Generator().manual_seed(seed)
    tree = prefix_tree(_VOCABULARY, _HORIZON)
    order = torch.stack([torch.randperm(_VOCABULARY, generator=rng) for _ in range(tree.states)])
    old = (_COUNTS[order] / _COUNTS.sum()).log()
    shape = (tree.states, _VOCABULARY)
    ref = torch.randn(shape, generator=rng, dtype=torch.float64).log_softmax(-1)
    drift = torch.randn(shape, generator=rng, dtype=torch.float64)
    repeats = (token_logp(tree, old).sum(-1).exp() * _COUNTS.sum() ** _HORIZON).round().long()
    rows = torch.arange(len(repeats)).repeat_interleave(repeats)
    reward = torch.randn(len(repeats), generator=rng, dtype=torch.float64)
    return Population(tree, rows, old, ref, drift / drift.abs().max(), reward)


def scalar_of(output: Any, what: str) -> Float[Tensor, ""]:
    """Return the scalar loss in what a black box returned.

    Args:
        output: a scalar tensor, or anything with one as ``.loss``.
        what: what returned it, for the error: "loss" or "step".

    Returns:
        The scalar, with its gradient.

    Raises:
        ValueError: it is no scalar tensor, or has no gradient.

    Source: ours.
    """
    loss = getattr(output, "loss", output)
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{type(loss).__name__}"
        raise ValueError(f"the {what} must return a scalar tensor, got {got}; return the batch's average, a tensor")
    if not loss.requires_grad:
        raise ValueError(f"the {what} returned {float(loss):.6g} without a gradient; compute it from logp, undetached")
    return loss


_SHAPES: tuple[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], ...] = (
    lambda A, mask: (A, mask),
    lambda A, mask: (A[:, None].expand(mask.shape), mask),
    lambda A, mask: (A, mask.double()),
    lambda A, mask: (A[:, None].expand(mask.shape), mask.double()),
)


def as_loss(loss_fn: Loss) -> Callable[..., Tensor]:
    """Find how a black box takes its advantages, [B] or [B, T], and its mask, bool or float, and check what it returns.

    Args:
        loss_fn: the black box.

    Returns:
        loss(logp, logp_old, logp_ref, advantages [B], mask) ↦ a scalar tensor; it raises ValueError as ``scalar_of``.

    Raises:
        ValueError: it raises an error for every form of the arguments; for an ordinary batch it is NaN, or has no
            gradient, or two values; or as ``scalar_of``.

    Source: ours.
    """
    rng = torch.Generator().manual_seed(0)
    p, q, r = -torch.rand((3, 7, 4), generator=rng, dtype=torch.float64) - 0.5
    A, mask = torch.randn(7, generator=rng, dtype=torch.float64), torch.ones((7, 4), dtype=torch.bool)
    errors: list[Exception] = []
    for shaped in _SHAPES:

        def loss(p: Tensor, q: Tensor, r: Tensor, A: Tensor, mask: Tensor, shaped: Any = shaped) -> Tensor:
            return scalar_of(loss_fn(p, q, r, *shaped(A, mask)), "loss")

        leaf = p.clone().requires_grad_()
        try:
            first, second = loss(leaf, q, r, A, mask), loss(leaf, q, r, A, mask)
        except (RuntimeError, IndexError, TypeError, AttributeError) as error:
            errors.append(error)
            continue
        if bool(first.isnan()):
            raise ValueError("the loss is NaN for ordinary log-probabilities and advantages; nothing can be said of it")
        if not torch.equal(first, second):
            raise ValueError(f"the loss was {first:.6g} and then {second:.6g} for one batch; make it deterministic")
        if not bool(torch.autograd.grad(first, leaf, allow_unused=True, materialize_grads=True)[0].any()):
            raise ValueError(f"the loss is {first:.6g} with a gradient of zero; compute it from logp, undetached")
        return loss
    what = f"{type(errors[0]).__name__}, {str(errors[0]).splitlines()[0] if str(errors[0]) else 'without a message'}"
    raise ValueError(
        f"the loss raised {what}; it must take (logp, logp_old, logp_ref, advantages, mask), tensors [B, T] and "
        "advantages [B] or [B, T]"
    ) from errors[0]
