"""Population batches: finite, and yet the plain average over one is the exact expectation under π_old."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
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
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        remedy = "pass lambda *x: f(*x)[0]" if isinstance(loss, tuple) else "return the batch's average, a tensor"
        raise ValueError(f"the {what} must return a scalar tensor, got {got}; {remedy}")
    if not loss.requires_grad:
        raise ValueError(f"the {what} returned {_number(loss)} without a gradient; compute it from logp, undetached")
    return loss


_ADVANTAGES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda A, mask: A.clone(),
    lambda A, mask: A[:, None].clone(),
    lambda A, mask: A[:, None].expand(mask.shape).clone(),
)
_COPIES = (1, 8)
_MASKS: tuple[Callable[[Tensor], Tensor], ...] = (Tensor.clone, Tensor.double, Tensor.long, Tensor.float)


@dataclass
class AsLoss:
    """loss(logp, logp_old, logp_ref, advantages [B], mask) ↦ a scalar tensor; it raises ValueError as ``scalar_of``.

    Its arguments are copies: it may write into them.

    Attributes:
        call: the black box, given its advantages and its mask in the form that it takes.
        per_token: whether it also takes advantages [B, T], which may then differ within a response.
        copies: how often a batch is repeated, for a loss that takes whole groups of many responses only.
        calls: how often the black box was called.
        takes_sampler: whether it takes the sampler's log-probabilities as a sixth tensor; a batch without them gives
            it log π_old there.

    Source: ours.
    """

    call: Callable[..., Any]
    per_token: bool
    copies: int = 1
    calls: int = 0
    takes_sampler: bool = False

    def __call__(self, *batch: Tensor) -> Float[Tensor, ""]:
        """Return the loss of a batch; a token's gradient is then summed over the copies of its response."""
        self.calls += 1
        return scalar_of(self.call(*(x.repeat(self.copies, *[1] * (x.ndim - 1)) for x in batch)), "loss")


def as_loss(loss_fn: Loss) -> AsLoss:
    """Find how a black box takes its advantages, [B] or [B, 1] or [B, T], and its mask, and check what it returns.

    Args:
        loss_fn: the black box.

    Returns:
        AsLoss.

    Raises:
        ValueError: it raises an error for every form of the arguments; for an ordinary batch it or its gradient is not
            finite, or it has no gradient, or two values; or as ``scalar_of``.

    Source: ours.
    """
    errors: list[Exception] = []
    sampler = _sampler_argument(loss_fn)
    for copies, as_mask, as_advantages in product(_COPIES, _MASKS, _ADVANTAGES):

        def call(*batch: Tensor, as_mask: Any = as_mask, as_advantages: Any = as_advantages) -> Any:
            *logps, A, mask = batch[:5]
            given = as_advantages(A, mask) if A.ndim == 1 else A.clone()
            sixth = (batch[5] if len(batch) > 5 else batch[1]).clone()
            named = {"logp_sampler": sixth} if sampler == "named" else {}
            last = (sixth,) if sampler == "last" else ()
            return loss_fn(*(x.clone() for x in logps), given, as_mask(mask), *last, **named)

        p, q, r, A, mask = (x.repeat(copies, *[1] * (x.ndim - 1)) for x in _ordinary_batch())
        leaf = p.clone().requires_grad_()
        try:
            outputs = call(leaf, q, r, A, mask), call(leaf, q, r, A, mask)
        except Exception as error:  # whatever a black box raises
            errors.append(error)
            continue
        first, second = (scalar_of(output, "loss") for output in outputs)
        if not bool(first.isfinite()):
            raise ValueError(
                f"the loss is {_number(first)} for ordinary log-probabilities and advantages; mend that first"
            )
        if not torch.equal(first, second):
            raise ValueError(
                f"the loss was {_number(first)} and then {_number(second)} for one batch; make it deterministic"
            )
        (gradient,) = torch.autograd.grad(first, leaf, allow_unused=True, materialize_grads=True)
        if not bool(gradient.any()):  # a narrow region may hold none of these ratios: try w = 1
            at_old = scalar_of(call(leaf, p, r, A, mask), "loss")
            (gradient,) = torch.autograd.grad(at_old, leaf, allow_unused=True, materialize_grads=True)
        if not bool(gradient.any()):
            raise ValueError(f"the loss is {_number(first)} with a gradient of zero; compute it from logp, undetached")
        if not bool(gradient.isfinite().all()):
            raise ValueError("the loss's gradient is NaN or infinite for ordinary log-probabilities; mend that first")
        per_token = _takes_per_token(call, (p, q, r, A, mask))
        return AsLoss(call, per_token, copies, calls=len(errors) + 4, takes_sampler=sampler != "")
    raise ValueError(
        f"the loss raised {sentence_of(errors[0])}; it must take (logp, logp_old, logp_ref, advantages, mask), tensors "
        "[B, T] and advantages [B] or [B, T]"
    ) from errors[0]


def _sampler_argument(loss_fn: Loss) -> str:
    """Whether a loss takes logp_sampler: "named", as the "last" of six arguments, or "" for not at all."""
    try:
        parameters = inspect.signature(loss_fn).parameters
    except (TypeError, ValueError):
        return ""
    required = [x for x in parameters.values() if x.kind in _POSITIONAL and x.default is x.empty]
    return "named" if "logp_sampler" in parameters else "last" if len(required) == 6 else ""


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _ordinary_batch() -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(0)
    p, q, r = -torch.rand((3, 8, 5), generator=rng, dtype=torch.float64) - 0.5
    A, mask = torch.randn(8, generator=rng, dtype=torch.float64), torch.ones((8, 5), dtype=torch.bool)
    return p, q, r, A, mask


def _takes_per_token(call: Callable[..., Any], batch: tuple[Tensor, ...]) -> bool:
    """Whether equal advantages [B, T] give the gradient that advantages [B] give."""
    p, q, r, A, mask = batch
    # Advantages of zero and a mask show what broadcasts [B, T] as if it were [B].
    A, mask = A * (A > -0.5), mask & (torch.arange(p.shape[1]) < 2 + torch.arange(len(p))[:, None] % 4)
    gradients: list[Tensor] = []
    for advantages in (A, A[:, None].expand(mask.shape)):
        leaf = p.clone().requires_grad_()
        try:
            loss = scalar_of(call(leaf, q, r, advantages, mask), "loss")
            gradients += torch.autograd.grad(loss, leaf, allow_unused=True, materialize_grads=True)
        except Exception:  # whatever a black box raises
            return False
    one, other = gradients
    return bool((other - one).abs().max() <= 1e-5 * one.abs().max())


def _number(x: Tensor) -> str:
    return "NaN" if bool(x.isnan()) else f"{float(x.detach()):.9g}"


@cache
def balanced(seed: int) -> Population:
    """Draw a population with the reward 1 and −1 in turn: whatever normalises rewards leaves these as they are.

    Args:
        seed: as of ``population``.

    Returns:
        A population whose neighbouring rows, any even number of them, have rewards of mean 0 and standard deviation 1.

    Source: ours.
    """
    batch = population(seed)
    repeats = torch.bincount(batch.rows).tolist()
    half, chosen = len(batch.rows) // 2, {0: frozenset[int]()}
    for response, count in enumerate(repeats):
        larger = {total + count: subset | {response} for total, subset in chosen.items() if total + count <= half}
        chosen = larger | chosen
    good = torch.zeros(len(repeats), dtype=torch.bool)
    good[list(chosen[half])] = True
    # Neighbours are other responses.
    rng = torch.Generator().manual_seed(0)
    is_good = good[batch.rows]
    raised, lowered = (
        rows[torch.randperm(half, generator=rng)] for rows in (batch.rows[is_good], batch.rows[~is_good])
    )
    reward = torch.where(good, 1.0, -1.0).double()
    return replace(batch, rows=torch.stack([raised, lowered], 1).flatten(), reward=reward)


def sentence_of(error: BaseException) -> str:
    """Return an error in one line.

    Args:
        error: any error.

    Returns:
        Its type and the first line of its message.

    Source: ours.
    """
    return f"{type(error).__name__}, {str(error).splitlines()[0] if str(error) else 'without a message'}"
