"""Which β has an optimum of the reverse KL that is as far from the reference as one asks for?"""

from collections.abc import Callable

import torch

PROBLEMS = (
    (0.1, (0.5, 0.5), (1.0, -1.0)),
    (0.02, (0.9, 0.1), (0.0, 1.0)),
    (0.5, (0.2, 0.3, 0.5), (1.0, 0.4, -0.3)),
)


def check(beta: Callable[[float, list[float], list[float]], float]) -> str | None:
    """Return None where KL(π*‖π_ref) is the target in three problems, π* ∝ π_ref·exp(R/β) at the β that is given."""
    for target, ref, reward in PROBLEMS:
        log_r, R = torch.tensor(ref, dtype=torch.float64).log(), torch.tensor(reward, dtype=torch.float64)
        found = float(beta(target, list(ref), list(reward)))
        log_p = (log_r + R / found).log_softmax(0)
        kl = (log_p.exp() * (log_p - log_r)).sum().item()
        if not abs(kl - target) < 1e-6 * target:
            return f"at β = {found:.4g} the optimum is {kl:.4g} nats from {ref}, and {target} were asked for"
    return None
