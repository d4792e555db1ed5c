"""RPG-Style Clip, region by region: where a sample still moves the policy, in Algorithm 1 (Â detached) and Algorithm 2.

Algorithm 1's max and min are evaluated with w anywhere inside one region, a rational function of θ > 0, so that every
comparison is decided by signs; Â is above or below 0, and w is on no bound. The order of 1 + ε2 and c is free. Beyond
both, Algorithm 1's loss is the same at every w: log w may be clamped anywhere beyond, for one at log M + 1, and no
gradient changes. Algorithm 2 takes the same region by the sign of ψ, and its gradient is −weight·∇log π_θ inside.

Source: arXiv 2505.17508, §3.3, §4.1, Algorithms 1, 2 and App. G; errata, paper row 4 and released-code row 2.
"""

from dataclasses import dataclass

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.language import SG, E, Grad, Larger, Slope, Smaller, name, score
from proofs.one_idea import OBJECTIVE, WEIGHT, reinforce_loss
from proofs.symbols import MOVING, A, J, beta, dual, f_prime, high, low, p, q, v, w, w_other
from proofs.worlds import Numbers

_low, _gap, _more, _size, _clamp = sp.symbols("low_ gap more size clamp", positive=True)
_C = sp.Symbol("C", real=True)
NEAR, FAR = _low + _gap, _low + _gap + _more  # 1 − ε1 = low < near < far
ORDERS = {"high": (NEAR, FAR), "dual": (FAR, NEAR)}  # which of 1 + ε2 and c comes first


@dataclass(frozen=True)
class Region:
    """Where w is, which of 1 + ε2 and c comes first, and the sign of Â. Source: arXiv 2505.17508, §4.1."""

    place: str
    first: str
    up: bool

    @property
    def world(self) -> Numbers:
        """The bounds, w and Â, each with a definite place."""
        high_is, dual_is = ORDERS[self.first]
        one, other = (high, dual) if self.first == "high" else (dual, high)
        where, value = {
            "below": (f"w<{name(low)}", _low * MOVING / (1 + MOVING)),
            "inside": (f"{name(low)}<w<{name(one)}", (_low + NEAR * MOVING) / (1 + MOVING)),
            "between": (f"{name(one)}<w<{name(other)}", (NEAR + FAR * MOVING) / (1 + MOVING)),
            "beyond": (f"w>{name(other)}", FAR + MOVING),
        }[self.place]
        order = "" if self.place == "between" else f"{name(one)}<{name(other)}"
        return Numbers(
            region=(
                (low, "", _low),
                (high, order, high_is),
                (dual, "", dual_is),
                (w, where, value),
                (w_other, "w'>w", FAR + MOVING + _clamp),
                (A, r"A>0" if self.up else "A<0", _size if self.up else -_size),
            )
        )

    @property
    def is_live(self) -> bool:
        """Whether a sample still moves here."""
        between = (self.first == "dual") if self.up else (self.first == "high")
        return {"below": self.up, "inside": True, "between": between, "beyond": False}[self.place]


REGIONS = tuple(
    Region(place, first, up)
    for place in ("below", "inside", "between", "beyond")
    for first in ORDERS
    for up in (True, False)
)


def clip(ratio: sp.Expr) -> sp.Expr:
    """Return the ratio held between 1 − ε1 and 1 + ε2. Source: definition."""
    return Larger(low, Smaller(ratio, high))


def algorithm_1(ratio: sp.Expr, *, up: bool) -> sp.Expr:
    """Return the printed max and min for one sign of Â. Source: arXiv 2505.17508, Algorithm 1."""
    pessimistic = Larger(-ratio * A, -clip(ratio) * A)
    return pessimistic if up else Smaller(pessimistic, -dual * A)


def _slope(region: Region, *, live: bool) -> Statement:
    return equal(Slope(algorithm_1(w, up=region.up), w), -w * A if live else 0, region.world)


def algorithm_2(ratio: sp.Expr, *, live: bool) -> sp.Expr:
    """Return Algorithm 2's loss with log w for log π_θ, which differs from it by a constant. Source: Algorithm 2."""
    return -SG(ratio * A) * (sp.log(ratio) if live else SG(sp.log(ratio)))


def _agree(region: Region, *, live: bool) -> Statement:
    return equal(Slope(algorithm_1(w, up=region.up), w), Slope(algorithm_2(w, live=live), w), region.world)


def _clamped(region: Region) -> Statement:
    return equal(algorithm_1(w, up=region.up), algorithm_1(w_other, up=region.up), region.world)


def _at(place: str, first: str, *, up: bool) -> Region:
    return Region(place, first, up)


COMPONENT = WEIGHT - w * A
DEAD_VALUE = (A + _C / high) * high

CLAIM = Claim(
    id="clip_region",
    source="arXiv 2505.17508, §3.3, §4.1, Algorithms 1, 2",
    statements=(
        *(_slope(region, live=region.is_live) for region in REGIONS),
        equal(A + COMPONENT / w, A - beta * f_prime(v)),
        equal(DEAD_VALUE, high * A + _C, Numbers()),
    ),
    near_misses={
        "Â > 0 stops below 1 − ε1": _slope(_at("below", "high", up=True), live=False),
        "Â < 0 moves below 1 − ε1 (branch on A, not on ψ)": _slope(_at("below", "high", up=False), live=True),
        "Â < 0 stops at 1 + ε2": _slope(_at("between", "high", up=False), live=False),
        "Â < 0 never stops above": _slope(_at("beyond", "high", up=False), live=True),
        "Â > 0 stops at c": _slope(_at("between", "dual", up=True), live=False),
        "beyond a bound: −C (released code)": equal(DEAD_VALUE, high * A - _C, Numbers()),
        "hard clip of the weight is at rest beyond the bound": equal(Grad(-high * A * sp.log(p)), 0),
        "A′ without SG": equal(Grad(-WEIGHT * sp.log(p)), -WEIGHT * score()),
    },
)

ALGORITHMS_AGREE = Claim(
    id="algorithms_agree",
    source="arXiv 2505.17508, App. G",
    statements=(
        *(_agree(region, live=region.is_live) for region in REGIONS),
        equal(Grad(E(q, reinforce_loss(WEIGHT))), -Grad(J), J=OBJECTIVE),
    ),
    near_misses={
        "Algorithm 2 is at rest inside": _agree(_at("inside", "high", up=True), live=False),
        "Algorithm 2 moves beyond": _agree(_at("beyond", "high", up=True), live=True),
        "Algorithm 2 branches on A": _agree(_at("below", "high", up=False), live=True),
    },
)

DEAD_CLAMP = Claim(
    id="dead_clamp",
    source="ours; on arXiv 2505.17508, Algorithm 2",
    statements=(
        *(_clamped(region) for region in REGIONS if region.place == "beyond"),
        *(_slope(region, live=False) for region in REGIONS if region.place == "beyond"),
    ),
    near_misses={
        "clamping w > 1 + ε2 < c where Â < 0": _clamped(_at("between", "high", up=False)),
        "clamping w > c < 1 + ε2 where Â > 0": _clamped(_at("between", "dual", up=True)),
        "clamping inside": _clamped(_at("inside", "high", up=True)),
    },
)

CLAIMS = (CLAIM, ALGORITHMS_AGREE, DEAD_CLAMP)
