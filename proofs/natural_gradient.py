"""Appendix B: the linear objective less the quadratic KL is maximal at the natural gradient, Δ* = F⁻¹∇J/β.

F is any symmetric 2×2 matrix of the form LLᵀ with positive diagonal, that is any positive definite one, so that the
stationary point is the maximum. `curvature` shows that F is the Hessian of the KL.

Source: arXiv 2505.17508, Appendix B.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.expectations import Equation
from proofs.symbols import beta

_a, _c = sp.symbols("a c", positive=True)
_l, _g1, _g2, _x, _y = sp.symbols("l g1 g2 x y", real=True)
_L = sp.Matrix([[_a, 0], [_l, _c]])
FISHER = _L * _L.T
GRADIENT = sp.Matrix([_g1, _g2])
STEP = sp.Matrix([_x, _y])


def _model(step: sp.Matrix) -> sp.Expr:
    return (GRADIENT.T * step - beta * step.T * FISHER * step / 2)[0]


def _loss_of(step: sp.Matrix) -> Equation:
    # For every other Δ the model falls short of its maximum by ½β(Δ − Δ*)ᵀF(Δ − Δ*) = ½β‖Lᵀ(Δ − Δ*)‖² ≥ 0.
    shortfall = _L.T * (STEP - step)
    return _model(STEP), _model(step) - beta * (shortfall.T * shortfall)[0] / 2


CLAIM = Claim(
    id="natural_gradient",
    statement="Δ* = F⁻¹∇J/β maximises ∇J·Δ − ½β ΔᵀFΔ",
    source="arXiv 2505.17508, App. B",
    identities=lambda: {"distance from the maximum": _loss_of(FISHER.inv() * GRADIENT / beta)},
    near_misses=lambda: {
        "plain gradient": _loss_of(GRADIENT / beta),
        "F for F⁻¹": _loss_of(FISHER * GRADIENT / beta),
        "no 1/β": _loss_of(FISHER.inv() * GRADIENT),
    },
)
