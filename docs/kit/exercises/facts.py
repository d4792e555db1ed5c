"""What is the curvature of Hellinger's divergence, in units of the Fisher matrix?"""

import torch


def check(curvature: float) -> str | None:
    """Return None where ∇²Σ π_ref·(√v − 1)² at π_θ = π_ref is curvature·F, by autograd on a softmax of four actions."""
    logits = torch.randn(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ref = logits.log_softmax(0)

    def hellinger(x: torch.Tensor) -> torch.Tensor:
        return (ref.exp() * (((x.log_softmax(0) - ref) / 2).exp() - 1) ** 2).sum()

    hessian = torch.autograd.functional.hessian(hellinger, logits)
    p = ref.exp()
    fisher = torch.diag(p) - torch.outer(p, p)
    off = float((hessian - float(curvature) * fisher).norm() / hessian.norm())
    return None if off < 1e-9 else f"curvature·F is off by {100 * off:.3g} % of the Hessian"
