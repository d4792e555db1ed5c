"""Find the constant baseline with the least variance; the expected reward is not it."""

from collections.abc import Callable

import torch
from torch import Tensor


def check(best_baseline: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> str | None:
    """Return None where best_baseline(π_old, w, ∇log π_θ, R) has the least variance by enumeration, else what is wrong.

    The variance is that of one sample's w·(R − b)·∇log π_θ, summed over the logits.
    """
    random = torch.Generator().manual_seed(7)
    for _ in range(3):
        logits, old_logits, reward = torch.randn((3, 5), generator=random, dtype=torch.float64)
        p, q = logits.softmax(0), old_logits.softmax(0)
        w, score = p / q, torch.eye(5, dtype=torch.float64) - p

        def variance(b: float, q: Tensor = q, w: Tensor = w, score: Tensor = score, R: Tensor = reward) -> float:
            gradient = (w * (R - b)).unsqueeze(1) * score
            return float((q.unsqueeze(1) * (gradient - q @ gradient) ** 2).sum())

        # The variance is a parabola in b: three values give its lowest point.
        low, middle, high = variance(-1), variance(0), variance(1)
        least = variance((low - high) / (low + high - 2 * middle) / 2)
        found = torch.as_tensor(best_baseline(q, w, score, reward))
        if found.numel() != 1:
            return f"best_baseline must return one number for all samples, got shape {tuple(found.shape)}"
        excess = variance(float(found)) / least - 1
        if not excess < 1e-9:
            return f"the variance is {100 * excess:.3g} % above the least; only E|…|² depends on b"
    return None
