"""Textbook definitions, each as its integrand at one outcome: what every left-hand side starts from.

`kl(first, second)` is KL(first‖second); the order of the arguments is the direction. Nothing here is a formula of the
method: no generator, no ratio, no weight.

Source: the standard definitions; UKL as in arXiv 2505.17508, Definitions 3.1 and 3.4.
"""

import sympy as sp


def kl(first: sp.Expr, second: sp.Expr) -> sp.Expr:
    """Return KL(first‖second) = ∫ first·log(first/second). Source: Kullback and Leibler 1951."""
    return first * sp.log(first / second)


def ukl(first: sp.Expr, second: sp.Expr) -> sp.Expr:
    """Return UKL(first‖second) = KL + ∫(second − first). Source: arXiv 2505.17508, Definitions 3.1, 3.4."""
    return kl(first, second) + second - first


def jeffreys(first: sp.Expr, second: sp.Expr) -> sp.Expr:
    """Return KL(first‖second) + KL(second‖first). Source: Jeffreys 1946."""
    return kl(first, second) + kl(second, first)


def jensen_shannon(first: sp.Expr, second: sp.Expr) -> sp.Expr:
    """Return ½KL(first‖m) + ½KL(second‖m), m = ½(first + second). Source: Lin 1991."""
    middle = (first + second) / 2
    return (kl(first, middle) + kl(second, middle)) / 2


def pearson_chi2(first: sp.Expr, second: sp.Expr) -> sp.Expr:
    """Return χ²(first‖second) = ∫ (first − second)²/second. Source: Pearson 1900."""
    return (first - second) ** 2 / second


def k1(y: sp.Expr) -> sp.Expr:
    """Return Schulman's k1 = −log y, where y = π_ref/π_θ. Source: Schulman 2020, "Approximating KL divergence"."""
    return -sp.log(y)


def k2(y: sp.Expr) -> sp.Expr:
    """Return Schulman's k2 = ½(log y)². Source: Schulman 2020, "Approximating KL divergence"."""
    return sp.log(y) ** 2 / 2


def k3(y: sp.Expr) -> sp.Expr:
    """Return Schulman's k3 = y − 1 − log y. Source: arXiv 2505.17508, Remark 3.5 and Appendix D."""
    return y - 1 - sp.log(y)
