"""What an aggregation's own denominator costs: a batch's exact expected gradient, and its bias.

A batch holds B independent responses, and its loss is Σ_i ℓ_i/N with N = Σ_i n_i. Here n_i is what response i adds to
the denominator: its tokens, or 1. ℓ is affine in the advantage A, with slope ℓ′. So with h(n) = B·E[1/(n + N′)] and
c(r, n) = B·E[A/(n + N′)], N′ the count of the B − 1 other responses,

    E[Σ_i ℓ_i/N] = Σ_y π_old(y)·[h(n_y)·ℓ_y(A = 0) + c(R_y, n_y)·ℓ′_y].

Both are finite sums. The sum of independent counts has the convolved distribution, and for rewards of 0 and 1 an
advantage depends on how many responses of each group are right.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rpg_ref.advantages import BASELINES
from rpg_ref.audit.oracle import Policies, PrefixTree, flat_gradient, gradient, prefix_tree, token_logp
from rpg_ref.recipe import Recipe

BATCH, GROUP = 64, 8
"""Responses of a batch, and of a group, for which ``verify`` states the bias."""


@dataclass(frozen=True)
class Reference:
    """Responses of uneven lengths, on-policy: the tree, π_old = π_θ, π_ref, [S, V], and a reward of 0 or 1, [N]."""

    tree: PrefixTree
    old: Float[Tensor, "S V"]
    ref: Float[Tensor, "S V"]
    reward: Float[Tensor, "N"]


def reference(seed: int = 0, *, vocabulary: int = 3, horizon: int = 3) -> Reference:
    """Draw policies and rewards on the tree of all responses that end at token 0 or at the horizon.

    Args:
        seed: of the policies and the rewards.
        vocabulary: number of tokens.
        horizon: longest response.

    Returns:
        Reference; by default 15 responses of one to three tokens.

    Source: ours.
    """
    rng = torch.Generator().manual_seed(seed)
    tree = prefix_tree(vocabulary, horizon, eos=0)
    old, ref = torch.randn((2, tree.states, vocabulary), generator=rng, dtype=torch.float64).log_softmax(-1)
    reward = (torch.randperm(len(tree.tokens), generator=rng) % 2).double()
    return Reference(tree, old, ref, reward)


# fmt: off
_ADVANTAGE: dict[str, Callable[[Tensor, Tensor, int, int, Tensor], Tensor]] = {
    "none":                 lambda r, k, G, B, spread: r,
    "batch_mean":           lambda r, k, G, B, spread: r - k / G,
    "batch_std":            lambda r, k, G, B, spread: _over(r - k / G, k * (G - k) / G / (G - 1)),
    "group_mean":           lambda r, k, G, B, spread: r - k / G,
    "group_mean_batch_std": lambda r, k, G, B, spread: _over(r - k / G, (k * (G - k) + spread) / G / (B - 1)),
    "leave_one_out":        lambda r, k, G, B, spread: r - (k - r) / (G - 1),
    "group_std":            lambda r, k, G, B, spread: _over(r - k / G, k * (G - k) / G / (G - 1)),
}
# fmt: on
"""The advantage of reward r in a group of G with k right responses, itself included, of a batch of B responses.

``spread`` is Σ k(G − k) over the other groups. A batch's baseline takes the batch as one group.

Source: the definitions.
"""


def _over(x: Tensor, variance: Tensor) -> Tensor:
    return torch.where(variance > 0, x / variance.clamp(min=1e-300).sqrt(), 0.0)


Law = Float[Tensor, "_ _"]
"""Probability of each pair of whole numbers: how many are right (or their spread), and the sum of the counts."""


def _sum_of(law: Law, times: int) -> Law:
    """Return the law of the sum of independent draws, by convolution."""
    total = torch.ones((1, 1), dtype=torch.float64)
    for _ in range(times):
        rows, columns = total.shape
        new = torch.zeros((rows + law.shape[0] - 1, columns + law.shape[1] - 1), dtype=torch.float64)
        for i, j in law.nonzero().tolist():
            new[i : i + rows, j : j + columns] += law[i, j] * total
        total = new
    return total


class Shares(NamedTuple):
    """h(n) and c(r, n) of each response, [N]: what its loss at A = 0 and its loss's slope in A are multiplied by."""

    plain: Float[Tensor, "N"]
    advantage: Float[Tensor, "N"]


def shares(
    chance: Float[Tensor, "N"],
    reward: Float[Tensor, "N"],
    counted: Float[Tensor, "N"],
    baseline: str,
    batch: int,
    group: int,
    *,
    constant: bool = False,
) -> Shares:
    """Return h and c exactly, over all batches of independent responses.

    Args:
        chance: π_old of each response, [N].
        reward: 0 or 1, [N].
        counted: what each response adds to the denominator, whole numbers, [N].
        baseline: a name in BASELINES.
        batch: number of responses B.
        group: responses of a group, a divisor of B; a baseline of the batch takes B.
        constant: divide by B instead of the batch's own count.

    Returns:
        Shares.

    Raises:
        ValueError: the groups do not fill the batch, or are too small for the baseline.

    Source: ours; for one response, E[1/N] of a ratio estimator.
    """
    group = batch if baseline.startswith("batch") else group
    if batch % group or group < BASELINES[baseline].smallest_group:
        raise ValueError(f"groups of {group} do not fit a batch of {batch} with {baseline}; choose a divisor of it")
    right, n = reward.long(), counted.long()
    one = torch.zeros((2, int(n.max()) + 1), dtype=torch.float64).index_put((right, n), chance, accumulate=True)
    rest, others = _sum_of(one, group - 1), _others(one, baseline, batch, group)
    values = torch.arange(one.shape[1], dtype=torch.float64)[1:]
    total = values[:, None, None] + torch.arange(rest.shape[1])[:, None] + torch.arange(others.shape[1])
    inverse = torch.ones_like(total) if constant else batch / total
    r = torch.arange(2, dtype=torch.float64)[:, None, None]
    known = torch.arange(len(rest), dtype=torch.float64)[:, None]
    A = _ADVANTAGE[baseline](r, r + known, group, batch, torch.arange(len(others), dtype=torch.float64))
    A = A.expand(2, len(rest), len(others))
    divided = torch.einsum("qz,nsz->nsq", others, inverse)
    plain = torch.einsum("ks,nsq->n", rest, divided)
    advantage = torch.einsum("ks,rkq,nsq->rn", rest, A, divided)
    return Shares(plain[n - 1], advantage[right, n - 1])


def _others(one: Law, baseline: str, batch: int, group: int) -> Law:
    """Return the law of the other groups' spread, where the baseline looks at it, and of their count."""
    if baseline != "group_mean_batch_std":
        return _sum_of(one.sum(0, keepdim=True), batch - group)
    whole = _sum_of(one, group)
    spread = torch.zeros((group**2 // 4 + 1, whole.shape[1]), dtype=torch.float64)
    for k, counts in enumerate(whole):
        spread[k * (group - k)] += counts
    return _sum_of(spread, batch // group - 1)


def expected_gradient(
    recipe: Recipe, at: Reference, batch: int, group: int, *, constant: bool = False
) -> Float[Tensor, "K"]:
    """Return −E[∇loss] of a recipe on-policy, exactly, with its own baseline and aggregation.

    Args:
        recipe: the recipe; its loss must be affine in the advantages, as every row of RECIPES is on-policy.
        at: the policies and rewards.
        batch: number of responses B.
        group: responses of a group, a divisor of B.
        constant: divide by a constant instead of the batch's own count.

    Returns:
        [K], in the logits of π_θ.

    Raises:
        ValueError: as ``shares``.

    Source: ours.
    """
    tree, leaf = at.tree, at.old.clone().requires_grad_()
    logp, old, ref = (token_logp(tree, table) for table in (leaf.log_softmax(-1), at.old, at.ref))
    chance, counted = old.sum(-1).exp(), torch.stack([recipe.count(row[None]) for row in tree.mask])
    h, c = shares(chance, at.reward, counted, recipe.baseline, batch, group, constant=constant)
    # ℓ is affine in A, so that h·ℓ at A = c/h is the sum of both parts; a row's slope is that of its own ℓ.
    token = logp.detach().requires_grad_()
    slope = flat_gradient(recipe.scalar_loss(token, old, ref, c / h, tree.mask, denominator=1.0), [token]).view_as(
        token
    )
    return -flat_gradient(((chance * h)[:, None] * slope * logp).sum(), [leaf])


@dataclass(frozen=True)
class Bias:
    """The share of a recipe's expected on-policy gradient along no multiple of the one that it declares.

    Attributes:
        own: with the batch's own count as denominator.
        constant: with a constant denominator; what is left is the baseline's doing, or that of a mean over a response.
        batch: number of responses.
        group: responses of a group.

    Source: ours.
    """

    own: float
    constant: float
    batch: int
    group: int

    def __str__(self) -> str:
        """Return both shares, such as ``3e-02 / 1e-05``."""
        return f"{_short(self.own)} / {_short(self.constant)}"


BIAS = (
    f"bias: the share of the expected on-policy gradient along no multiple of the declared one, exact, for {BATCH} "
    f"responses of one to three tokens with rewards 0 and 1, in groups of {GROUP} with the recipe's own baseline and "
    "aggregation; first with the batch's own count as denominator, then with a constant"
)


def _short(share: float) -> str:
    return "0" if share < 1e-12 else f"{share:.0e}"


def share_off(found: Float[Tensor, "K"], declared: Float[Tensor, "K"]) -> float:
    """Return ‖found − c·declared‖/‖found‖ at the best c.

    Args:
        found: a gradient.
        declared: another.

    Returns:
        From 0, where they are parallel, to 1.

    Source: least squares.
    """
    along = (found @ declared) / (declared @ declared) * declared
    return float((found - along).norm() / found.norm())


def bias(recipe: Recipe, *, seed: int = 0, batch: int = BATCH, group: int = GROUP) -> Bias | None:
    """Return the exact bias of a recipe's own aggregation and baseline, on-policy.

    Args:
        recipe: the recipe.
        seed: of the policies and rewards.
        batch: number of responses.
        group: responses of a group, a divisor of the batch.

    Returns:
        Bias, or None for a recipe that declares no objective on-policy.

    Raises:
        ValueError: as ``shares``.

    Source: ours.
    """
    if recipe.on_policy is None:
        return None
    at = reference(seed)
    leaf = at.old.clone().requires_grad_()
    policies = Policies(leaf.log_softmax(-1), at.old, at.ref)
    declared = gradient(recipe.on_policy, at.tree, policies, at.reward, [leaf])
    own, constant = (
        share_off(expected_gradient(recipe, at, batch, group, constant=constant), declared)
        for constant in (False, True)
    )
    return Bias(own, constant, batch, group)
