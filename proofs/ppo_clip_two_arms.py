"""PPO's clip on two arms, followed exactly: where one round of updates comes to rest.

The better arm has probability p, and q under π_old. The two ratios are w = p/q and w′ = (1 − p)/(1 − q). The better
arm's advantage A is above 0 and the other's, A′, is below 0, as with any baseline between the two rewards. A round
starts at p = q. As p rises, the term of the good arm stops at p = q + ε·q, and the term of the bad arm at p = q +
ε·(1 − q). Before the later of the two points, the expected gradient raises p. Beyond it, the gradient is 0. The
logit of p moves with the speed (1 − p)·∂J/∂log p, which stays above a positive bound as long as p stays away from
1. So an exact flow of a softmax comes to rest after a finite time at

    p′ = q + ε·max(q, 1 − q), if that is below 1; otherwise p tends to 1.

So a round multiplies 1 − p by 1 − ε while q ≤ ½, and multiplies p by 1 + ε afterwards. After finitely many rounds
q·(1 + ε) ≥ 1, and in the next round p tends to 1. The clip bounds each round. It does not bound a sequence of
rounds.

Source: ours; after arXiv 2512.16565, on Schulman et al. 2017, Eq. 7.
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.language import Larger, Slope, Smaller
from proofs.symbols import MOVING, A, J, p, q, w, w_other
from proofs.worlds import Numbers

_a, _b, _x, _y, _size, _other = sp.symbols("a b x y size other", positive=True)
_bad, _epsilon = sp.Symbol("A_", real=True), sp.Symbol("epsilon", positive=True)

# (π_old and ε, each with its place, as quotients of positive numbers)
CASES = {
    "q < 1/2": (r"q<\frac{1}{2}", _x / (2 * _x + _y), _a / (_a + _b)),
    "q = 1/2": (r"q=\frac{1}{2}", sp.Rational(1, 2), _a / (_a + _b)),
    "q > 1/2": (r"\frac{1}{2}<q<\frac{1}{1+\varepsilon}", (_x + _y) / (2 * _x + _y), _x / (_x + _y) * _a / (_a + _b)),
    "near 1": (r"q>\frac{1}{1+\varepsilon}", (_x + _y) / (2 * _x + _y), (_x + _y * _a / (_a + _b)) / (_x + _y)),
}


def _world(case: str, place: str) -> Numbers:
    where, old, width = CASES[case]
    bounds = {"good": old * (1 + width), "bad": old + width * (1 - old)}
    first, last = ("good", "bad") if case in ("q < 1/2", "q = 1/2") else ("bad", "good")
    end = sp.Integer(1) if case == "near 1" else bounds[last]
    named = {"good": r"q+\varepsilon\,q", "bad": r"q+\varepsilon\,(1-q)"}
    low, high, text = {
        "start": (old, bounds[first], rf"q<p<{named[first]}"),
        "middle": (bounds[first], end, rf"{named[first]}<p<{'1' if case == 'near 1' else named[last]}"),
        "end": (end, sp.Integer(1), rf"p>{named[last]}"),
    }[place]
    return Numbers(
        region=(
            (q, where, old),
            (_epsilon, r"0<\varepsilon<1", width),
            (p, text, (low + high * MOVING) / (1 + MOVING)),
            (A, "A>0", _size),
            (_bad, "A'<0", -_other),
        )
    )


def _term(ratio: sp.Expr, advantage: sp.Expr) -> sp.Expr:
    clipped = Larger(1 - _epsilon, Smaller(ratio, 1 + _epsilon))
    return Smaller(ratio * advantage, clipped * advantage)


SURROGATE = q * _term(w, A) + (1 - q) * _term(w_other, _bad)
NAMES = {"J": SURROGATE, "w": p / q, "w_other": (1 - p) / (1 - q)}


def _slope(case: str, place: str, value: sp.Expr | int) -> Statement:
    return equal(Slope(J, p), value, _world(case, place), **NAMES)


CLAIM = Claim(
    id="ppo_clip_two_arms",
    source="ours; after arXiv 2512.16565",
    statements=(
        *(_slope(case, "start", p * (A - _bad)) for case in CASES),
        _slope("q < 1/2", "middle", -p * _bad),
        _slope("q > 1/2", "middle", p * A),
        _slope("near 1", "middle", p * A),
        *(_slope(case, "end", 0) for case in CASES if case != "near 1"),
        equal(1 - (q + _epsilon * (1 - q)), (1 - _epsilon) * (1 - q), Numbers()),
    ),
    near_misses={
        "q < 1/2: it rests where the good arm stops, at q·(1 + ε)": _slope("q < 1/2", "middle", 0),
        "q > 1/2: it rests where the bad arm stops": _slope("q > 1/2", "middle", 0),
        "near 1: it stops short of 1": _slope("near 1", "middle", 0),
        "q < 1/2: it goes on beyond both bounds": _slope("q < 1/2", "end", -p * _bad),
        "q > 1/2: it goes on beyond both bounds": _slope("q > 1/2", "end", p * A),
        "the clip slows the start": _slope("q < 1/2", "start", p * A),
    },
    printed=10,
)
