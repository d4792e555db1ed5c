"""Say which single β has the optimum that rounds of the reverse KL at several strengths reach."""

import math
from collections.abc import Callable, Sequence
from numbers import Real

import torch

from rpg_ref.audit import Objective, oracle

STRENGTHS = ((1.0, 1.0), (0.5, 1.0, 4.0), (3.0, 0.8, 0.8), (2.0,))


def check(beta: Callable[[Sequence[float]], float]) -> str | None:
    """Return None where J at that β has no gradient where the rounds end, by enumeration, else how much is left."""
    random = torch.Generator().manual_seed(0)
    logits, reward = torch.randn((2, 5), generator=random, dtype=torch.float64)
    tree, first = oracle.prefix_tree(5, 1), logits.log_softmax(0)[None]
    for strengths in STRENGTHS:
        found = beta(strengths)
        if not isinstance(found, Real) or not math.isfinite(found) or found <= 0:
            return f"beta must return a number above 0, got {found!r}"
        end = first
        for strength in strengths:
            end = (end + reward / strength).log_softmax(-1)
            assert _pull(strength, end, end - reward / strength, tree, reward) < 1e-12, "each round ends at rest"
        left = _pull(float(found), end, first, tree, reward)
        if left > 1e-9:
            rounds = ", ".join(f"{strength:g}" for strength in strengths)
            return f"after rounds at {rounds} the objective at β = {found:.3g} still has a gradient of norm {left:.2g}"
    return None


def _pull(beta: float, policy: torch.Tensor, ref: torch.Tensor, tree: oracle.PrefixTree, reward: torch.Tensor) -> float:
    leaf, anchor = policy.clone().requires_grad_(), ref.log_softmax(-1)
    objective = Objective({"reward": 1.0, "reverse_kl": beta}, "sequence")
    policies = oracle.Policies(leaf.log_softmax(-1), anchor, anchor)
    return float(oracle.gradient(objective, tree, policies, reward, [leaf]).norm())
