"""The two numerical facts on which every formula here rests: a wide enough dtype, and φ without cancellation."""

import torch
from torch import Tensor

# At |d| < 1 the next term of φ's series, 2·dᵏ⁻²/k! at k = 20, is under 2⁻⁵³ of the sum.
_SERIES_TERMS = 19


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32, or unchanged if it is wider: bfloat16 cannot hold a log-ratio."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def widest(x: Tensor) -> Tensor:
    """Return x in float64 (float32 on devices without it).

    u = e⁻¹⁰⁰ and v = e¹⁰⁰ are both outside float32 while their product w = u·v is not; on [B, T] tensors float64
    costs nothing beside the logits they came from. It holds log-ratios up to 700 nats (350 for chi2's v²);
    ``check_batch`` refuses a batch beyond that.
    """
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def rounded(x: Tensor, like: Tensor) -> Tensor:
    """Round x once, at the end, to the dtype of ``like`` or to float32 if that is narrower.

    A factor that is rounded before its product is inf or 0 where the product is neither.
    """
    return x.to(torch.promote_types(like.dtype, torch.float32))


def phi(d: Tensor) -> Tensor:
    """φ(d) = eᵈ − 1 − d to full relative precision, the one function behind k3, UFKL and URKL.

    Computed as written, float32 has an error of 100 % at d = 1e-4. Near zero this sums the series
    d²/2·(1 + d/3·(1 + d/4·(…))), elsewhere expm1(d) − d, whose cancellation costs less than 3 ulp there.

    Args:
        d: log-ratio, any shape.

    Returns:
        φ(d) ≥ 0, zero only at d = 0, same shape and dtype.

    Source: k3 of App. D is φ of a log-ratio; the evaluation is ours.
    """
    near = d.abs() < 1
    small, large = torch.where(near, d, 0.0), torch.where(near, 1.0, d)
    series = torch.ones_like(d)
    for k in range(_SERIES_TERMS, 2, -1):
        series = 1 + small / k * series
    return torch.where(near, small * small / 2 * series, torch.expm1(large) - large)
