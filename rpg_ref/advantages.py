"""From rewards to advantages A = R − b, within groups of samples that share a prompt."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rpg_ref.checks import Table, check_tensor
from rpg_ref.numerics import at_least_float32, widest


class Group(NamedTuple):
    """Size, mean and standard deviation (of size − 1) of each sample's own group, one value per sample."""

    size: Float[Tensor, "B"]
    mean: Float[Tensor, "B"]
    std: Float[Tensor, "B"]


class Baseline(NamedTuple):
    """A rule (rewards, group) ↦ advantages, and the smallest group it is defined for."""

    rule: Callable[[Float[Tensor, "B"], Group], Float[Tensor, "B"]]
    smallest_group: int


def _within(x: Float[Tensor, "B"], member: Int[Tensor, "B"], statistic: str) -> Float[Tensor, "B"]:
    """A statistic of each sample's own group; ``member`` is the group's number from 0."""
    return torch.zeros_like(x).scatter_reduce(0, member, x, statistic, include_self=False)[member]


def _statistics(r: Float[Tensor, "B"], member: Int[Tensor, "B"]) -> Group:
    size, lowest = _within(torch.ones_like(r), member, "sum"), _within(r, member, "amin")
    # Rewards that are equal have that mean, also where rounding would give them another.
    mean = torch.where(lowest == _within(r, member, "amax"), lowest, _within(r, member, "mean"))
    std = (_within((r - mean) ** 2, member, "sum") / (size - 1).clamp(min=1)).sqrt()
    return Group(size, mean, std)


def _batch(r: Float[Tensor, "B"]) -> Group:
    """The batch as one group."""
    return _statistics(r, torch.zeros_like(r, dtype=torch.long))


def _standardised(r: Float[Tensor, "B"], g: Group) -> Float[Tensor, "B"]:
    return (r - g.mean) / torch.where(g.std > 0, g.std, 1.0)


# fmt: off
BASELINES: Table[Baseline] = Table("baseline", {
    "none":                 Baseline(lambda r, g: r,                                                1),
    "batch_mean":           Baseline(lambda r, g: r - _batch(r).mean,                               1),
    "batch_std":            Baseline(lambda r, g: _standardised(r, _batch(r)),                      1),
    "group_mean":           Baseline(lambda r, g: r - g.mean,                                       1),
    "group_mean_batch_std": Baseline(lambda r, g: _standardised(r - g.mean, _batch(r - g.mean)),    1),
    "leave_one_out":        Baseline(lambda r, g: (r - g.mean) * g.size / (g.size - 1),             2),
    "group_std":            Baseline(_standardised,                                                 2),
})
# fmt: on


def advantages(rewards: Float[Tensor, "B"], groups: Int[Tensor, "B"], baseline: str) -> Float[Tensor, "B"]:
    """A = R − b for the named baseline b; a name with _std also divides by a standard deviation (of size − 1).

    A group mean holds the sample's own reward, which scales the expected gradient by (G − 1)/G; leave_one_out does
    not. Where a standard deviation is 0, so is the advantage.

    Args:
        rewards: R, [B], finite.
        groups: id of each sample's group (its prompt), [B], any integers.
        baseline: a name in BASELINES.

    Returns:
        Advantages [B], in float32 at least.

    Raises:
        ValueError: lengths differ, a reward is not finite, ids are not integers, the baseline is unknown, or a group
            is too small for it.

    Source: paper §5 (group_mean), §2.2 (group_std, GRPO); leave_one_out after Kool et al. 2019; batch_std and
        group_mean_batch_std after Hu et al. 2025 (REINFORCE++ and its baseline form).
    """
    rule, smallest = BASELINES[baseline]
    check_tensor("rewards", rewards)
    check_tensor("groups", groups)
    if rewards.ndim != 1 or groups.shape != rewards.shape:
        shapes = f"rewards {tuple(rewards.shape)} and groups {tuple(groups.shape)}"
        raise ValueError(f"{shapes} must both be [B]; pass one reward and one group id per sample")
    if groups.is_floating_point() or groups.is_complex():
        raise ValueError(f"groups must hold integers, got {groups.dtype}; pass the index of each sample's prompt")
    if not bool(rewards.isfinite().all()):
        worst = int((~rewards.isfinite()).nonzero()[0])
        raise ValueError(f"rewards[{worst}] is {rewards[worst].item()}; mend what computed it")
    names, member, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    if bool((sizes < smallest).any()):
        small = int(names[sizes.argmin()])
        raise ValueError(
            f"group {small} has {int(sizes.min())} sample but {baseline} needs {smallest}; draw more of it"
        )
    r = widest(rewards)
    return rule(r, _statistics(r, member)).to(at_least_float32(rewards).dtype)
