"""A softmax policy's Fisher matrix is singular, and its natural gradient is the advantage itself.

Logits are known up to a constant: F·1 = 0, and every objective's gradient is orthogonal to 1. So F⁺ stands for F⁻¹:
the step Δ⁺ below solves FΔ = ∇E[R] and is orthogonal to 1, hence is F⁺∇E[R]; no other step's quadratic model is
larger.

Source: ours; Kakade 2001; completes arXiv 2505.17508, Appendix B, for the policies that language models are.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.expectations import Equation
from proofs.symbols import beta

LOGITS, REWARDS = sp.symbols("l1:4", real=True), sp.Matrix(sp.symbols("R1:4", real=True))
PROBABILITIES = sp.Matrix([sp.exp(logit) for logit in LOGITS]) / sum(sp.exp(logit) for logit in LOGITS)
ONES, PROBE = sp.ones(3, 1), sp.Matrix(sp.symbols("y1:4", real=True))  # the probe is any vector
GRADIENT = sp.Matrix([(PROBABILITIES.T * REWARDS)[0].diff(logit) for logit in LOGITS])
ADVANTAGE = REWARDS - ONES * (PROBABILITIES.T * REWARDS)[0]
LEAST_STEP = REWARDS - ONES * sum(REWARDS) / 3


def _fisher() -> sp.Matrix:
    scores = [sp.Matrix([sp.log(chance).diff(logit) for logit in LOGITS]) for chance in PROBABILITIES]
    return sum((chance * s * s.T for chance, s in zip(PROBABILITIES, scores, strict=True)), sp.zeros(3, 3))


def _probed(left: sp.Matrix, right: sp.Matrix) -> Equation:
    return (PROBE.T * left)[0], (PROBE.T * right)[0]


def _model(step: sp.Matrix) -> sp.Expr:
    return (GRADIENT.T * step - beta * step.T * _fisher() * step / 2)[0]


def _shortfall(step: sp.Matrix) -> Equation:
    return _model(step) - _model(PROBE), (beta * (PROBE - step).T * _fisher() * (PROBE - step))[0] / 2


CLAIM = Claim(
    id="softmax_fisher",
    statement="softmax: F·1 = 0, ∇E[R]·1 = 0, and F⁺∇E[R] is R less its mean: the natural gradient is the advantage",
    source="ours; Kakade 2001; completes arXiv 2505.17508, App. B",
    identities=lambda: {
        "F·1 = 0": _probed(_fisher() * ONES, sp.zeros(3, 1)),
        "∇E[R]·1 = 0": ((GRADIENT.T * ONES)[0], sp.S.Zero),
        "FΔ⁺ = ∇E[R]": _probed(_fisher() * LEAST_STEP, GRADIENT),
        "Δ⁺·1 = 0": ((LEAST_STEP.T * ONES)[0], sp.S.Zero),
        "F·advantage = ∇E[R]": _probed(_fisher() * ADVANTAGE, GRADIENT),
        "Δ⁺/β is the model's maximum": _shortfall(LEAST_STEP / beta),
    },
    near_misses=lambda: {
        "the advantage is orthogonal to 1": ((ADVANTAGE.T * ONES)[0], sp.S.Zero),
        "F·∇E[R] = ∇E[R]": _probed(_fisher() * GRADIENT, GRADIENT),
        "the maximum is at ∇E[R]/β": _shortfall(GRADIENT / beta),
        "no 1/β": _shortfall(LEAST_STEP),
    },
)
