"""Forms that losses are written in: estimators of the KL and weights of the advantage, right ones and wrong ones.

Where a gradient is that of no known objective, it is usually that of one of these rows, which then names the mistake.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from rpg_ref.audit.population import Loss
from rpg_ref.estimators import k1, k2, k3

Samples = Float[Tensor, "B T"]

# fmt: off
_ESTIMATORS: dict[str, Callable[[Samples], Samples]] = {
    "k1":                   k1,
    "k2":                   k2,
    "k3":                   k3,
    "|k1|":                 lambda log_y: log_y.abs(),
    "k3 of π/ref for ref/π": lambda log_y: k3(-log_y),
}

# From log π_θ and log π_old.
_WEIGHTS: dict[str, Callable[[Samples, Samples], Tensor]] = {
    "unweighted {}":                                lambda p, q: torch.ones_like(p),
    "{} times the ratio":                           lambda p, q: (p - q).exp(),
    "{} times the detached ratio":                  lambda p, q: (p - q).detach().exp(),
    "{} times exp(log π − SG log π)":               lambda p, q: (p - p.detach()).exp(),
    "{} times the ratio squared":                   lambda p, q: (2 * (p - q)).exp(),
    "{} times the response's ratio":                lambda p, q: (p - q).sum(1, keepdim=True).exp(),
    "{} times the response's detached ratio":       lambda p, q: (p - q).sum(1, keepdim=True).detach().exp(),
    "{} times the response's geometric-mean ratio": lambda p, q: (p - q).mean(1, keepdim=True).exp(),
    "{} times the inverse ratio":                   lambda p, q: (q - p).exp(),
}
# fmt: on


def _to_go(x: Samples) -> Samples:
    return x.flip(1).cumsum(1).flip(1)


# From the estimates at π_old, constants: what is subtracted from each token's reward.
_IN_THE_REWARD: dict[str, Callable[[Samples], Samples]] = {
    "in each token's own reward": lambda k: k,
    "in the reward to go": _to_go,
    "in the response's reward": lambda k: k.sum(1, keepdim=True),
}


def _mean(x: Samples) -> Float[Tensor, ""]:
    """Σ over tokens, averaged over responses."""
    return x.sum() / len(x)


PENALTIES: dict[str, Loss] = {
    weight.format(estimator): lambda p, q, r, A, mask, e=e, w=w: _mean(w(p, q) * e(r - p))
    for weight, w in _WEIGHTS.items()
    for estimator, e in _ESTIMATORS.items()
} | {
    f"{estimator} of π_old {place}": lambda p, q, r, A, mask, e=e, k=k: _mean((p - q).exp() * k(e(r - q)))
    for place, k in _IN_THE_REWARD.items()
    for estimator, e in _ESTIMATORS.items()
}
"""Penalties as losses, simplest first."""

REWARDS: dict[str, Loss] = {"A·log π, unweighted": lambda p, q, r, A, mask: -_mean(p * A[:, None])} | {
    weight.format("A"): lambda p, q, r, A, mask, w=w: -_mean(w(p, q) * A[:, None])
    for weight, w in _WEIGHTS.items()
    if "SG" not in weight and "detached" not in weight and weight != "unweighted {}"
}
REWARDS["A times the ratio to the reference, π/ref for π/π_old"] = lambda p, q, r, A, mask: (
    -_mean((p - r).exp() * A[:, None])
)
"""The advantages' terms as losses, simplest first."""
