"""One record per divergence: every fact that the tests hold a row of `rpg_ref.DIVERGENCES` to.

Each value is worked out by hand from the definition of D(p, r). Nothing here is computed from rpg_ref, and no field is
computed from another: this file imports NumPy alone, so that the oracle and the test vectors can use it as well.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts about one divergence D(p, r) = Σ r·f(v), v = p/r, d = log v."""

    definition: Callable[[Array, Array], Array]
    """D(p, r) of measures of any mass. It must be analytic (no abs, no maximum): complex steps differentiate it."""
    f: Callable
    """(v, log) ↦ f(v). The logarithm is an argument: mpmath's at 340 digits, NumPy's on arrays."""
    f_prime: Callable
    """(v, log) ↦ f′(v)."""
    slope_terms: Callable
    """(v, d, log) ↦ the terms of v·f′(v) that may cancel against each other."""
    slope_of_slope_terms: Callable
    """(v, d, log) ↦ the terms of the slope's derivative along d that may cancel against each other."""
    slope_size: Callable
    """(d, v) ↦ the magnitude of v·f′(v), to which its rounding error is relative."""
    inverse: Callable[[Array], Array]
    """y ↦ the v at which f′(v) = y."""
    bregman: Callable[[Array, Array, Array], Array]
    """(p, s, r) ↦ Σ r·(f(v) − f(v*) − f′(v*)·(v − v*)), with v = p/r and v* = s/r."""
    resting_rewards: tuple[float, float]
    """f′(3/2) and f′(1/2), less a common constant: with these rewards the optimum from (½, ½) is (¾, ¼) at β = 1."""
    curvature: float
    """f″(1)."""
    f_prime_at_one: float = 0.0
    pinsker: float
    """The constant c of D(p, r) ≥ c·‖p − r‖₁²."""
    at_half: float
    """D of p = (½, ½) from r = (1, 1)."""
    history: tuple[tuple[int, int, str], ...] = ()
    """D of responses as a sum over tokens: powers of w_{<t} and u_{<t}, and whose f. Empty: no such sum is known."""
    conjugate: str | None = None
    """The divergence with the arguments exchanged, D(r, p), where it has a name."""
    mass_factor: Callable[[float], float] | None = None
    """Z ↦ c in ∇D(p, Z·r) = c·∇D(p, r), or None where the mass also turns the gradient."""
    term: str | None = None
    """The term of an objective that has this divergence's gradient."""
    wrong_functions: tuple[str, ...] = ("roles_swapped",)
    """The mistakes, rows of OF_FUNCTIONS in vectors/generate.py, that the vectors of f tell from f."""
    ulps: int = 8
    """How many units in the last place f and its slope may be off."""


def forward_kl(p: Array, r: Array) -> Array:
    return np.sum(r * np.log(r / p))


def reverse_kl(p: Array, r: Array) -> Array:
    return np.sum(p * np.log(p / r))


def mass_gap(p: Array, r: Array) -> Array:
    return np.sum(r) - np.sum(p)


def jensen_shannon(p: Array, r: Array) -> Array:
    m = 0.5 * p + 0.5 * r
    return 0.5 * np.sum(p * np.log(p / m)) + 0.5 * np.sum(r * np.log(r / m))


def ukl(p: Array, s: Array) -> Array:
    return np.sum(p * np.log(p / s) - p + s)


def itakura_saito(p: Array, s: Array, r: Array) -> Array:
    return np.sum(r * (p / s - 1 - np.log(p / s)))


def inverse_jeffreys(y: Array) -> Array:
    """v with log v + 1 − 1/v = y, by Newton's method on log v from its left, where it only ever rises."""
    x = np.where(y < 0, -np.log(np.maximum(1 - y, 1)), np.maximum(y - 1, 0))
    for _ in range(7):
        x = x - (x + 1 - np.exp(-x) - y) / (1 + np.exp(-x))
    return np.exp(x)


LOG = np.log
FACTS: dict[str, Facts] = {
    "fkl": Facts(
        definition=forward_kl,
        f=lambda v, log: -log(v),
        f_prime=lambda v, log: -1 / v,
        slope_terms=lambda v, d, log: [-1],
        slope_of_slope_terms=lambda v, d, log: [0],
        slope_size=lambda d, v: 1,
        inverse=lambda y: -1 / y,
        bregman=itakura_saito,
        resting_rewards=(-2 / 3, -2),
        curvature=1,
        f_prime_at_one=-1.0,
        pinsker=0.5,
        at_half=2 * LOG(2),
        history=((0, 1, "fkl"),),
        conjugate="rkl",
        mass_factor=lambda Z: Z,
        term="forward_kl",
    ),
    "ufkl": Facts(
        definition=lambda p, r: forward_kl(p, r) - mass_gap(p, r),
        f=lambda v, log: v - 1 - log(v),
        f_prime=lambda v, log: 1 - 1 / v,
        slope_terms=lambda v, d, log: [v - 1],
        slope_of_slope_terms=lambda v, d, log: [v],
        slope_size=lambda d, v: min(1, abs(d)) * max(1, v),
        inverse=lambda y: 1 / (1 - y),
        bregman=itakura_saito,
        resting_rewards=(1 / 3, -1),
        curvature=1,
        pinsker=0.5,
        at_half=2 * LOG(2) - 1,
        history=((0, 1, "ufkl"),),
        conjugate="urkl",
        mass_factor=lambda Z: Z,
        term="forward_kl",
    ),
    "rkl": Facts(
        definition=reverse_kl,
        f=lambda v, log: v * log(v),
        f_prime=lambda v, log: log(v) + 1,
        slope_terms=lambda v, d, log: [v * d, v],
        slope_of_slope_terms=lambda v, d, log: [v * d, 2 * v],
        slope_size=lambda d, v: v * (1 + abs(d)),
        inverse=lambda y: np.exp(y - 1),
        bregman=lambda p, s, r: reverse_kl(p, s),
        resting_rewards=(LOG(1.5), LOG(0.5)),
        curvature=1,
        f_prime_at_one=1.0,
        pinsker=0.5,
        at_half=-LOG(2),
        history=((1, 0, "rkl"),),
        conjugate="fkl",
        mass_factor=lambda Z: 1.0,
        term="reverse_kl",
    ),
    "urkl": Facts(
        definition=lambda p, r: reverse_kl(p, r) + mass_gap(p, r),
        f=lambda v, log: v * log(v) - v + 1,
        f_prime=lambda v, log: log(v),
        slope_terms=lambda v, d, log: [v * d],
        slope_of_slope_terms=lambda v, d, log: [v * d, v],
        slope_size=lambda d, v: min(1, abs(d)) * v * (1 + abs(d)),
        inverse=np.exp,
        bregman=lambda p, s, r: reverse_kl(p, s),
        resting_rewards=(LOG(1.5), LOG(0.5)),
        curvature=1,
        pinsker=0.5,
        at_half=1 - LOG(2),
        history=((1, 0, "urkl"),),
        conjugate="ufkl",
        mass_factor=lambda Z: 1.0,
        term="reverse_kl",
    ),
    "jeffreys": Facts(
        definition=lambda p, r: np.sum((p - r) * np.log(p / r)),
        f=lambda v, log: (v - 1) * log(v),
        f_prime=lambda v, log: log(v) + 1 - 1 / v,
        slope_terms=lambda v, d, log: [v * d, v - 1],
        slope_of_slope_terms=lambda v, d, log: [v * d, 2 * v],
        slope_size=lambda d, v: min(1, abs(d)) * (1 + v * (1 + abs(d))),
        inverse=inverse_jeffreys,
        bregman=lambda p, s, r: ukl(p, s) + itakura_saito(p, s, r),
        resting_rewards=(LOG(1.5) + 1 / 3, LOG(0.5) - 1),
        curvature=2,
        pinsker=1.0,  # Pinsker's inequality twice, once for each direction
        at_half=LOG(2),
        history=((1, 0, "rkl"), (0, 1, "fkl")),
        conjugate="jeffreys",
        wrong_functions=("half_jeffreys",),
    ),
    "js": Facts(
        definition=jensen_shannon,
        f=lambda v, log: (v * log(v) - (1 + v) * log((1 + v) / 2)) / 2,
        f_prime=lambda v, log: log(2 * v / (1 + v)) / 2,
        slope_terms=lambda v, d, log: [v * log(2 * v / (1 + v)) / 2],
        slope_of_slope_terms=lambda v, d, log: [v * log(2 * v / (1 + v)) / 2, v / (1 + v) / 2],
        slope_size=lambda d, v: min(1, abs(d)) * v * (1 + abs(d)),
        inverse=lambda y: np.exp(2 * y) / (2 - np.exp(2 * y)),
        bregman=lambda p, s, r: (ukl(p, s) - ukl(p + r, s + r)) / 2,
        resting_rewards=(LOG(6 / 5) / 2, LOG(2 / 3) / 2),
        curvature=0.25,
        pinsker=0.125,  # Pinsker's inequality twice, each from the mixture at half the distance
        at_half=1.5 * LOG(4 / 3) - LOG(2) / 2,
        conjugate="js",
        term="js",
        wrong_functions=("js_sign_error",),
        ulps=64,
    ),
    "chi2": Facts(
        definition=lambda p, r: np.sum(p * p / r) - 2 * np.sum(p) + np.sum(r),
        f=lambda v, log: (v - 1) ** 2,
        f_prime=lambda v, log: 2 * (v - 1),
        slope_terms=lambda v, d, log: [2 * v * (v - 1)],
        slope_of_slope_terms=lambda v, d, log: [4 * v * v, -2 * v],
        slope_size=lambda d, v: min(1, abs(d)) * v * max(1, v),
        inverse=lambda y: np.maximum(1 + y / 2, 0),  # cut at v = 0: f′(0) = −2 is finite, so an arm may be given up
        bregman=lambda p, s, r: np.sum((p - s) ** 2 / r),
        resting_rewards=(1, -1),
        curvature=2,
        pinsker=1.0,  # by Cauchy–Schwarz
        at_half=0.5,
        history=((2, -1, "chi2"),),
        mass_factor=lambda Z: 1 / Z,
        term="chi2",
        wrong_functions=("half_chi2", "roles_swapped"),
    ),
}
