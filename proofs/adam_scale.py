"""Adam at ε = 0 does not see a factor that is the same at every update; a group's mean then leaves a larger β.

By induction over updates. Both runs start with moments of zero. If the moments are κ and κ² times those of the other
run, and the gradient is κ times the other's, then the next moments are so too and the step is the same. Then the next
parameters are the same, and with them the next samples and gradients. Bias correction multiplies a step by a number of
the update alone, and AdamW's decay is a step of its own, so neither changes this.

The advantages of `group_mean` are (G − 1)/G times those of `leave_one_out`, sample by sample, X being the sum of the
others' rewards. The penalty does not have the factor. So in every batch the gradient at β is (G − 1)/G times that of
`leave_one_out` at β·G/(G − 1): h and a are what a sample's advantage and its penalty multiply.

Three things break it. ε > 0 acts as ε/κ. A bound c on the gradient's norm n lets κ pass as long as it does not bind,
and removes it where it binds. A factor that changes from update to update stays, such as 1/P(keep) of dropped groups.

Source: ours; Kingma and Ba 2015 (Adam), Loshchilov and Hutter 2019 (AdamW).
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.language import Smaller
from proofs.symbols import G, R, a, beta, h
from proofs.worlds import Numbers

_kappa, _other, _eps = sp.symbols("kappa kappa_other epsilon", positive=True)
_first, _second, _grad = sp.Symbol("m", real=True), sp.Symbol("s_2", positive=True), sp.Symbol("grad", real=True)
_b1, _b2, _x, _y = sp.symbols("beta_1 beta_2 x y", positive=True)
_others, _norm, _bound, _decay = sp.Symbol("X", real=True), *sp.symbols("n c decay", positive=True)
BETWEEN = Numbers(region=((_b1, r"0<\beta_1<1", _x / (1 + _x)), (_b2, r"0<\beta_2<1", _y / (1 + _y))))
ALGEBRA = Numbers()
LOOSE = Numbers(region=((_bound, r"c>\kappa n", _kappa * _norm + _x),))
TIGHT = Numbers(region=((_norm, r"\kappa n>c", (_bound + _x) / _kappa),))


def _next_first(first: sp.Expr, grad: sp.Expr) -> sp.Expr:
    return _b1 * first + (1 - _b1) * grad


def _next_second(second: sp.Expr, grad: sp.Expr) -> sp.Expr:
    return _b2 * second + (1 - _b2) * grad**2


def _step(scale: sp.Expr, eps: sp.Expr, now: sp.Expr | None = None) -> sp.Expr:
    """Adam's step where the moments were of gradients times a scale, and the gradient is too, or times another one."""
    grad = (scale if now is None else now) * _grad
    above, below = _next_first(scale * _first, grad), _next_second(scale**2 * _second, grad)
    return above / (sp.sqrt(below) + eps)


def _scaled(eps: sp.Expr, acts_as: sp.Expr) -> Statement:
    return equal(_step(_kappa, eps), _step(sp.Integer(1), acts_as), BETWEEN)


GROUP_MEAN, LEAVE_ONE_OUT = R - (R + _others) / G, R - _others / (G - 1)


def _gradient(strength: sp.Expr) -> Statement:
    left = GROUP_MEAN * h - beta * a
    return equal(left, (G - 1) / G * (LEAVE_ONE_OUT * h - strength * a), ALGEBRA)


def _clipped(value: sp.Expr, world: Numbers) -> Statement:
    return equal(Smaller(1, _bound / (_kappa * _norm)) * (_kappa * _grad), value, world)


def _with_decay(right: sp.Expr) -> Statement:
    return equal(_next_first(_kappa * _first, _kappa * _grad + _decay), _kappa * right, BETWEEN)


CLAIM = Claim(
    id="adam_scale",
    source="ours; on Kingma and Ba 2015 (Adam)",
    statements=(
        _scaled(sp.Integer(0), sp.Integer(0)),
        _gradient(beta * G / (G - 1)),
        _scaled(_eps, _eps / _kappa),
        _clipped(_kappa * _grad, LOOSE),
        _clipped(_bound / _norm * _grad, TIGHT),
        equal(GROUP_MEAN, (G - 1) / G * LEAVE_ONE_OUT, ALGEBRA),
        equal(_next_first(_kappa * _first, _kappa * _grad), _kappa * _next_first(_first, _grad), BETWEEN),
        equal(_next_second(_kappa**2 * _second, (_kappa * _grad)), _kappa**2 * _next_second(_second, _grad), BETWEEN),
    ),
    near_misses={
        "β stays": _gradient(beta),
        "β·(G − 1)/G": _gradient(beta * (G - 1) / G),
        "ε stays": _scaled(_eps, _eps),
        "ε·κ": _scaled(_eps, _eps * _kappa),
        "a factor that changes from update to update": equal(
            _step(_kappa, sp.Integer(0), _other), _step(sp.Integer(1), sp.Integer(0)), BETWEEN
        ),
        "a bound that binds lets the factor pass": _clipped(_kappa * _grad, TIGHT),
        "decay in the gradient scales too": _with_decay(_next_first(_first, _grad + _decay)),
    },
    printed=5,
)
