"""The same recipes from hidden states and head: logits [B, T, V] never exist, only a chunk of them at a time.

What a chunk needs is e^{z − max z}, with z = h·headᵀ/T. From it come

    log π(token) = z_token − log Σ e^z,    ∂ log π(token)/∂z = onehot(token) − π,
    entropy      = −log π(token) + ⟨h, ∂ log π(token)/∂h⟩,

the last because z is linear in h: ⟨h, ∂z/∂h⟩ = z. The recipe says how much of each token's ∂ log π is wanted.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from rpg_ref.checks import check_mask, check_number, check_tensor
from rpg_ref.numerics import at_least_float32
from rpg_ref.recipe import Recipe

# MKL settles on its exp at the first call. Threads that make that call together may get one that is right to 1e-4 only.
torch.zeros(1, device="cpu").exp_()

LOGITS_AT_ONCE = {"cpu": 2**25, "cuda": 2**28}
"""Logits of a chunk unless told otherwise: large enough that the matrix products are at full speed."""


class FusedOutput(NamedTuple):
    """What a recipe gives, and what it was given.

    Attributes:
        loss: the scalar; minimise it.
        metrics: as LossOutput.metrics.
        logp: log π_θ of each token, 0 where masked, [B, T], detached.
        entropy: of each next-token distribution, in nats, 0 where masked, [B, T], detached.

    Source: ours.
    """

    loss: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]]
    logp: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]


def fused_loss(
    recipe: Recipe,
    hidden: Float[Tensor, "B T d"],
    head: Float[Tensor, "V d"],
    tokens: Int[Tensor, "B T"],
    logp_old: Float[Tensor, "B T"] | None,
    logp_ref: Float[Tensor, "B T"] | None,
    advantages: Float[Tensor, "B"] | Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    temperature: float = 1.0,
    logp_sampler: Float[Tensor, "B T"] | None = None,
    denominator: float | Float[Tensor, ""] | None = None,
    chunk: int | None = None,
) -> FusedOutput:
    """Return ``recipe(token_logprobs(hidden @ head.T, tokens), …)``, its gradient taken on the way.

    Each chunk's logits are formed once, turned into the gradient where they lie, and dropped. Where a token's share of
    the gradient depends on other tokens' log π_θ, all of these come first and the logits are formed twice.
    Products are taken in the dtype of ``head``, everything else in float32 at least; masked tokens cost nothing.

    Args:
        recipe: any; called unchanged.
        hidden: what the head is applied to, [B, T, d]; those that predict ``tokens``: nothing is shifted here.
        head: one row for each word of the vocabulary, [V, d]; it may be the embedding too.
        tokens: ids of the sampled tokens, [B, T], integers in [0, V).
        logp_old: log π_old, [B, T]; None means π_old = π_θ.
        logp_ref: log π_ref, [B, T]; None means π_ref = π_old.
        advantages: as the recipe takes them.
        mask: [B, T], nonzero for tokens that count; elsewhere ``hidden`` may hold anything.
        temperature: the sampler's, > 0.
        logp_sampler: as the recipe takes it.
        denominator: as the recipe takes it.
        chunk: tokens whose logits exist at a time; None: as many as LOGITS_AT_ONCE allows.

    Returns:
        FusedOutput. Its loss can be sent backward once: the gradients of hidden and head are kept for that.

    Raises:
        ValueError: shapes or dtypes do not fit, a number is out of range; nothing is unmasked and no denominator is
            given.

    Source: the definition of a softmax policy; the recipe's own equations.
    """
    softmax = _softmax(hidden, head, tokens, mask, temperature)
    parts = _parts(mask, head, chunk)
    if denominator is None and parts and not recipe.needs_denominator:
        denominator = recipe.count(mask)
    # Until its chunk has come, a token has the ratio 1.
    logp = softmax.zeros(mask.shape) if logp_old is None else logp_old.detach().to(softmax.wide, copy=True)
    logp.masked_fill_(mask == 0, 0.0)
    entropy, slope = torch.zeros_like(logp), torch.zeros_like(logp)
    x_grad = torch.zeros_like(softmax.x)
    head_grad = softmax.zeros(head.shape) if head.requires_grad else None

    def differentiate(rows: slice) -> None:
        with torch.enable_grad():
            leaf = logp[rows].requires_grad_()
            loss = recipe.scalar_loss(
                leaf,
                leaf.detach() if logp_old is None else logp_old[rows],
                None if logp_ref is None else logp_ref[rows],
                advantages[rows],
                mask[rows],
                logp_sampler=None if logp_sampler is None else logp_sampler[rows],
                denominator=denominator,
            )
            slope[rows] = torch.autograd.grad(loss, leaf)[0]

    with torch.no_grad():
        twice = sees_other_tokens(recipe, on_policy=logp_old is None)
        if twice:
            for kept, _ in parts:
                logp.view(-1)[kept] = softmax.odds(kept).logp
            differentiate(slice(None))
        for kept, rows in parts:
            odds = softmax.odds(kept)
            logp.view(-1)[kept] = odds.logp
            if not twice:
                differentiate(rows)
            score = softmax.pull(kept, odds, slope.view(-1)[kept], x_grad, head_grad)
            entropy.view(-1)[kept] = (softmax.x[kept] * score).sum(1) - odds.logp
            del odds  # the next chunk's would be made beside them
        old = logp.detach() if logp_old is None else logp_old
        batch = (logp, old, logp_ref, advantages, mask)
        loss, metrics = recipe(*batch, logp_sampler=logp_sampler, denominator=denominator)
    loss = _WithGradient.apply(loss, hidden, head, x_grad.view_as(hidden), head_grad)
    return FusedOutput(loss, metrics, logp, entropy)


def fused_logprobs(
    hidden: Float[Tensor, "B T d"],
    head: Float[Tensor, "V d"],
    tokens: Int[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Float[Tensor, "B T"]:
    """Return ``token_logprobs(hidden @ head.T, tokens)``, 0 where masked; the way back forms the logits again.

    Args and Raises: as ``fused_loss``.

    Returns:
        Log-probabilities in nats, [B, T], in float32 at least, differentiable.

    Source: the definition of a softmax policy.
    """
    softmax = _softmax(hidden, head, tokens, mask, temperature)
    logp: Tensor = _Logprobs.apply(softmax.x, head, softmax, _parts(mask, head, chunk), mask.shape)
    return logp


@cache
@torch.enable_grad()
def sees_other_tokens(recipe: Recipe, *, on_policy: bool) -> bool:
    """Say whether a token's share of the gradient depends on other tokens' log π_θ, by changing these and looking.

    Args:
        recipe: any.
        on_policy: whether π_old is π_θ, so that it changes too.

    Returns:
        Whether it does, as at every level but the token's.

    Source: ours.
    """
    random = torch.Generator("cpu").manual_seed(0)
    on_cpu: Any = {"dtype": torch.float64, "device": "cpu"}
    # Ratios from 1e-8 to 3 nats: inside the narrowest clip, and outside the widest.
    scale = torch.logspace(-8, 0.5, 64, **on_cpu).repeat(8)[:, None]
    old, ref, sampler, change = scale * torch.randn((4, len(scale), 3), generator=random, **on_cpu)
    advantages = torch.randn(len(scale), generator=random, **on_cpu)
    # A token inside its own clip, in a response that is far: only there does a mask of the response show.
    change[1::2, 0] *= 0.01

    def slope_of_first(logp: Tensor) -> Tensor:
        leaf = logp.clone().requires_grad_()
        mask = torch.ones_like(leaf)
        policies = (leaf, leaf.detach() if on_policy else old, ref)
        loss = recipe.scalar_loss(*policies, advantages, mask, logp_sampler=sampler, denominator=recipe.count(mask))
        return torch.autograd.grad(loss, leaf)[0][:, 0]

    logp, others = old + change, torch.tensor([0.0, 1.0, 1.0], **on_cpu)
    before, after = (slope_of_first(x) for x in (logp, logp + others * change.flip(1)))
    # A reward that holds log v − log w = log u sees log π_θ's rounding; what is seen of 1e-8 nats is far above that.
    return not torch.allclose(before, after, rtol=1e-12, atol=1e-15)


class _Part(NamedTuple):
    """A chunk: places of unmasked tokens in the flattened [B·T], and the rows they are in."""

    kept: Int[Tensor, "n"]
    rows: slice


def _parts(mask: Shaped[Tensor, "B T"], head: Float[Tensor, "V d"], chunk: int | None) -> list[_Part]:
    if chunk is None:
        chunk = max(1, LOGITS_AT_ONCE.get(head.device.type, 2**25) // len(head))
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk must be a whole number from 1, got {chunk!r}; pass tokens whose logits fit in memory")
    places = (mask != 0).flatten().nonzero().squeeze(1)
    if not len(places):
        return []
    pieces = places.split(chunk)
    ends = (torch.stack([kept[[0, -1]] for kept in pieces]) // mask.shape[1]).tolist()
    return [_Part(kept, slice(first, last + 1)) for kept, (first, last) in zip(pieces, ends, strict=True)]


class _Odds(NamedTuple):
    """e^{z − max z} of each word but the token, whose place holds 0; the sum over all; log π(token)."""

    others: Float[Tensor, "n V"]
    total: Float[Tensor, "n 1"]
    logp: Float[Tensor, "n"]


class _Softmax(NamedTuple):
    """π = softmax(x·headᵀ/T), and the token of each x."""

    x: Float[Tensor, "N d"]
    head: Float[Tensor, "V d"]
    labels: Int[Tensor, "N 1"]
    temperature: float

    @property
    def wide(self) -> torch.dtype:
        return torch.promote_types(self.x.dtype, torch.float32)

    def zeros(self, shape: torch.Size) -> Tensor:
        return torch.zeros(shape, dtype=self.wide, device=self.x.device)

    def odds(self, kept: Int[Tensor, "n"]) -> _Odds:
        """Form the logits of some x, and turn them where they lie into odds."""
        z, label = _product(self.x[kept], self.head.T), self.labels[kept]
        if self.temperature != 1.0:
            z /= self.temperature
        top, own = z.amax(1, keepdim=True), z.gather(1, label)
        z.sub_(top).exp_().scatter_(1, label, 0.0)
        # So 1 − π of a likely token is the sum over the others, not a difference of nearly equal numbers.
        above_one = z.sum(1, keepdim=True) + (own - top).expm1()
        return _Odds(z, 1 + above_one, (own - top - above_one.log1p()).squeeze(1))

    def pull(
        self,
        kept: Int[Tensor, "n"],
        odds: _Odds,
        slope: Float[Tensor, "n"],
        x_grad: Float[Tensor, "N d"],
        head_grad: Float[Tensor, "V d"] | None,
    ) -> Float[Tensor, "n d"]:
        """Add slope·∂ log π(token) to both gradients, using up the odds; return ∂ log π(token)/∂x."""
        x, slope = self.x[kept], slope[:, None]
        excess = odds.others.div_(odds.total).scatter_(1, self.labels[kept], odds.logp[:, None].expm1())
        excess = excess.to(self.head.dtype)  # π − onehot(token), the gradient of −log π(token) with respect to z
        score = _product(excess, self.head) / -self.temperature
        x_grad[kept] = (slope * score).to(x.dtype)
        if head_grad is not None:
            _subtract_product(head_grad, excess.T, (slope / self.temperature * x).to(excess.dtype))
        return score


def _softmax(
    hidden: Float[Tensor, "B T d"],
    head: Float[Tensor, "V d"],
    tokens: Int[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    temperature: float,
) -> _Softmax:
    for name, x in (("hidden", hidden), ("head", head), ("tokens", tokens)):
        check_tensor(name, x)
    if hidden.ndim != 3 or head.ndim != 2 or hidden.shape[2] != head.shape[1] or tokens.shape != hidden.shape[:2]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (hidden, head, tokens))
        raise ValueError(f"hidden, head and tokens have shapes {shapes}; pass [B, T, d], [V, d] and [B, T]")
    if hidden.dtype != head.dtype or not hidden.is_floating_point() or tokens.is_floating_point():
        dtypes = f"{hidden.dtype}, {head.dtype}, {tokens.dtype}"
        raise ValueError(f"hidden, head and tokens are {dtypes}; pass two of one floating dtype, and integers")
    check_mask(mask, tokens.shape)
    check_number("temperature", temperature, 0.0, math.inf, "()")
    return _Softmax(hidden.flatten(0, 1), head, tokens.flatten().long()[:, None], temperature)


def _product(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    """a·b in float32 at least; on a GPU half-precision factors are summed and kept in float32."""
    if a.is_cuda and a.dtype.itemsize == 2:
        return torch.mm(a, b, out_dtype=torch.float32)
    return at_least_float32(torch.mm(a, b))


def _subtract_product(total: Float[Tensor, "n m"], a: Float[Tensor, "n k"], b: Float[Tensor, "k m"]) -> None:
    if total.dtype == a.dtype:
        total.addmm_(a, b, alpha=-1)
    else:
        total -= _product(a, b)


class _WithGradient(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, hidden: Tensor, head: Tensor, hidden_grad: Tensor, head_grad: Tensor | None
    ) -> Tensor:
        ctx.gradients, ctx.dtype = (hidden_grad, head_grad), head.dtype
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the loss was sent backward before and its gradients are used up; call fused_loss again")
        (hidden_grad, head_grad), ctx.gradients = ctx.gradients, None
        if head_grad is not None:
            head_grad = head_grad.mul_(outer).to(ctx.dtype)
        return None, hidden_grad.mul_(outer), head_grad, None, None


class _Logprobs(torch.autograd.Function):
    """log π of each token, 0 where masked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, softmax: _Softmax, parts: list[_Part], shape: torch.Size) -> Tensor:
        ctx.save_for_backward(x, head)
        ctx.labels, ctx.temperature, ctx.parts = softmax.labels, softmax.temperature, parts
        logp = softmax.zeros(shape)
        for kept, _ in parts:
            logp.view(-1)[kept] = softmax.odds(kept).logp
        return logp

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, head = ctx.saved_tensors
        softmax = _Softmax(x, head, ctx.labels, ctx.temperature)
        x_grad, slope = torch.zeros_like(x), slope.flatten()
        head_grad = softmax.zeros(head.shape) if ctx.needs_input_grad[1] else None
        for kept, _ in ctx.parts:
            softmax.pull(kept, softmax.odds(kept), slope[kept], x_grad, head_grad)
        return x_grad, None if head_grad is None else head_grad.to(head.dtype), None, None, None
