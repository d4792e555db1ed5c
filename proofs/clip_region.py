"""RPG-Style Clip, region by region: where a sample still moves the policy, in Algorithm 1 (Â detached) and Algorithm 2.

Algorithm 1's max and min are evaluated with w anywhere inside one region, a rational function of t > 0, so that every
comparison is decided by signs. ∂w/∂log π_θ = w turns the slope in t into the one in log π_θ. The order of 1 + ε2 and
c is free. Beyond both, Algorithm 1's loss is the same at every w: log w may be clamped anywhere beyond, for one at
log M + 1, and no gradient changes.

Source: arXiv 2505.17508, §3.3, §4.1, Algorithms 1, 2 and App. G; errata, paper row 4 and released-code row 2.
"""

from dataclasses import dataclass

import sympy as sp

from proofs.certificate import Claim
from proofs.expectations import Equation, expectation_old, gradient, pointwise, stop_gradient
from proofs.one_idea import OBJECTIVE, WEIGHT
from proofs.symbols import R, beta, f_prime, p, score, v, w

_t, _low, _gap, _more, _size, _clamp = sp.symbols("t low gap more size clamp", positive=True)
_A, _C = sp.symbols("A C", real=True)
NEAR, FAR = _low + _gap, _low + _gap + _more  # 1 − ε1 = low < near < far


@dataclass(frozen=True)
class Bounds:
    """1 − ε1, 1 + ε2 and c. Source: arXiv 2505.17508, §4.1."""

    low: sp.Expr
    high: sp.Expr
    dual: sp.Expr


ORDERS = {"1 + ε2 < c": Bounds(_low, NEAR, FAR), "c < 1 + ε2": Bounds(_low, FAR, NEAR)}
REGIONS = {
    "w < 1 − ε1": _low * _t / (1 + _t),
    "1 − ε1 < w < both": (_low + NEAR * _t) / (1 + _t),
    "between 1 + ε2 and c": (NEAR + FAR * _t) / (1 + _t),
    "w > both": FAR + _t,
}


def _larger(a: sp.Expr, b: sp.Expr) -> sp.Expr:
    difference = (a - b).factor()
    if not (difference.is_nonnegative or difference.is_nonpositive):
        raise ValueError(f"the sign of {difference} is not decided by that of its symbols; choose a smaller region.")
    return a if difference.is_nonnegative else b


def _smaller(a: sp.Expr, b: sp.Expr) -> sp.Expr:
    return -_larger(-a, -b)


def clip(ratio: sp.Expr, low: sp.Expr, high: sp.Expr) -> sp.Expr:
    """Return the ratio held between two bounds, where signs decide which. Source: definition."""
    return _larger(low, _smaller(ratio, high))


def algorithm_1(ratio: sp.Expr, advantage: sp.Expr, bounds: Bounds) -> sp.Expr:
    """Return the printed max and min; the advantage has a definite sign. Source: arXiv 2505.17508, Algorithm 1."""
    pessimistic = _larger(-ratio * advantage, -clip(ratio, bounds.low, bounds.high) * advantage)
    return pessimistic if advantage.is_positive else _smaller(pessimistic, -bounds.dual * advantage)


def _gradient(loss: sp.Expr, ratio: sp.Expr) -> sp.Expr:
    return ratio * loss.diff(_t) / ratio.diff(_t)


def _is_live(region: str, order: str, *, up: bool) -> bool:
    between = (order == "c < 1 + ε2") if up else (order == "1 + ε2 < c")
    return {"w < 1 − ε1": up, "1 − ε1 < w < both": True, "between 1 + ε2 and c": between, "w > both": False}[region]


def _algorithm_1(region: str, order: str, *, up: bool, live: bool | None = None) -> Equation:
    ratio, advantage = REGIONS[region], _size if up else -_size
    live = _is_live(region, order, up=up) if live is None else live
    return _gradient(algorithm_1(ratio, advantage, ORDERS[order]), ratio), -ratio * advantage if live else sp.S.Zero


def _algorithm_2(ratio: sp.Expr, advantage: sp.Expr, component: sp.Expr) -> sp.Expr:
    return (advantage + component / ratio) * ratio  # A′·w, times ℓ = −log π_θ


def _identities() -> dict[str, Equation]:
    equations = {
        f"Algorithm 1, Â {'>' if up else '<'} 0, {order}, {region}": _algorithm_1(region, order, up=up)
        for order in ORDERS
        for region in REGIONS
        for up in (True, False)
    }
    for order, bounds in ORDERS.items():
        for advantage in (_size, -_size):
            beyond, clamped = (algorithm_1(FAR + above, advantage, bounds) for above in (_t, _clamp))
            equations[f"clamping w > both, Â {'>' if advantage is _size else '<'} 0, {order}"] = (beyond, clamped)
    component = WEIGHT - w * R
    inside = -stop_gradient(_algorithm_2(w, R, component)) * sp.log(p)
    return equations | {
        "A′ = A + C/w is A_reg": (pointwise(R + component / w), pointwise(R - beta * f_prime(v))),
        "Algorithm 2 inside: −∇J": (gradient(pointwise, expectation_old(inside)), -gradient(pointwise, OBJECTIVE)),
        "Algorithm 2 inside: −w·A_reg ∇log π_θ": (gradient(pointwise, inside), -pointwise(WEIGHT * score)),
        "Algorithm 2 beyond a bound: the value at it": (_algorithm_2(FAR, _A, _C), FAR * _A + _C),
    }


CLAIM = Claim(
    id="clip_region",
    statement="gradient −wÂ∇log π_θ iff w < 1 + ε2 (Â > 0) or 1 − ε1 < w < c (Â < 0), else 0; dead value bound·A + C",
    source="arXiv 2505.17508, §3.3, §4.1, Algorithms 1, 2",
    identities=_identities,
    near_misses=lambda: {
        "Â > 0 stops below 1 − ε1": _algorithm_1("w < 1 − ε1", "1 + ε2 < c", up=True, live=False),
        "Â < 0 moves below 1 − ε1 (branch on A, not on ψ)": _algorithm_1(
            "w < 1 − ε1", "1 + ε2 < c", up=False, live=True
        ),
        "Â < 0 stops at 1 + ε2": _algorithm_1("between 1 + ε2 and c", "1 + ε2 < c", up=False, live=False),
        "Â < 0 never stops above": _algorithm_1("w > both", "1 + ε2 < c", up=False, live=True),
        "Â > 0 stops at c": _algorithm_1("between 1 + ε2 and c", "c < 1 + ε2", up=True, live=False),
        "clamping w > 1 + ε2 < c where Â < 0": (
            algorithm_1(REGIONS["between 1 + ε2 and c"], -_size, ORDERS["1 + ε2 < c"]),
            algorithm_1(NEAR, -_size, ORDERS["1 + ε2 < c"]),
        ),
        "beyond a bound: −C (released code)": (_algorithm_2(FAR, _A, _C), FAR * _A - _C),
        "hard clip of the weight is at rest beyond the bound": (
            gradient(pointwise, -FAR * _A * sp.log(p)),
            sp.S.Zero,
        ),
        "A′ without SG": (
            gradient(pointwise, -_algorithm_2(w, R, WEIGHT - w * R) * sp.log(p)),
            -pointwise(WEIGHT * score),
        ),
    },
)
