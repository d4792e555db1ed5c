"""Schulman's three estimators, on log y with y = r/p and samples drawn from p."""

from torch import Tensor

from rpg_ref.numerics import at_least_float32, phi


def k1(log_y: Tensor) -> Tensor:
    """k1 = −log y, an unbiased estimator of KL(p‖r), of either sign sample by sample.

    Args:
        log_y: log r − log p at samples of p, any shape.

    Returns:
        One estimate a sample, same shape. As a loss on-policy its expected gradient is zero.

    Source: App. D of the paper, after Schulman's note "Approximating KL divergence".
    """
    return -at_least_float32(log_y)


def k2(log_y: Tensor) -> Tensor:
    """k2 = ½·(log y)², a biased estimator of KL(p‖r) whose on-policy gradient is exactly KL(p‖r)'s.

    Args:
        log_y: log r − log p at samples of p, any shape.

    Returns:
        One estimate a sample, ≥ 0, same shape.

    Source: App. D of the paper, after Schulman's note "Approximating KL divergence".
    """
    return at_least_float32(log_y) ** 2 / 2


def k3(log_y: Tensor) -> Tensor:
    """k3 = y − 1 − log y; E_p[k3(r/p)] = UKL(p‖r), the unnormalised KL, at any masses.

    Args:
        log_y: log r − log p at samples of p, any shape.

    Returns:
        One estimate a sample, ≥ 0, same shape. Its value estimates KL(p‖r); as an unweighted loss on-policy its
        gradient is that of the other direction, KL(r‖p).

    Source: Remark 3.5 and App. D of the paper.
    """
    return phi(at_least_float32(log_y))
