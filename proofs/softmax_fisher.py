"""A softmax policy's Fisher matrix is singular, and its natural gradient is the advantage itself.

∇_a is the derivative where the logits move by a, so that aᵀFa′ = E_p[∇_a log p·∇_a′ log p]. Logits are known up to a
constant: F·1 = 0, and every objective's gradient is orthogonal to 1. So F⁺ stands for F⁻¹: the step R − mean R solves
FΔ = ∇E[R] and is orthogonal to 1, hence is F⁺∇E[R]. Any number of outcomes.

Source: ours; Kakade 2001; completes arXiv 2505.17508, Appendix B, for the policies that language models are.
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.language import E, Grad, Total
from proofs.symbols import R, a, p, z

SOFTMAX = {"p": sp.exp(z) / Total(sp.exp(z))}
MEAN = Total(R) / Total(sp.Integer(1))
ADVANTAGE, LEAST = R - E(p, R), R - MEAN


def _fisher(step: sp.Expr) -> sp.Expr:
    return E(p, Grad(sp.log(p), a) * Grad(sp.log(p), step))


def _solved(step: sp.Expr) -> Statement:
    return equal(Grad(E(p, R), a), _fisher(step), **SOFTMAX)


CLAIM = Claim(
    id="softmax_fisher",
    source="ours; Kakade 2001; completes arXiv 2505.17508, App. B",
    statements=(
        equal(_fisher(sp.Integer(1)), 0, **SOFTMAX),
        _solved(LEAST),
        equal(Total(LEAST), 0, **SOFTMAX),
        equal(Grad(sp.log(p), a), a - E(p, a), **SOFTMAX),
        _solved(ADVANTAGE),
    ),
    near_misses={
        "the advantage is orthogonal to 1": equal(Total(ADVANTAGE), 0, **SOFTMAX),
        "F·∇E[R] = ∇E[R]": _solved(p * ADVANTAGE),
        "twice the step": _solved(2 * LEAST),
        "the score is the direction": equal(Grad(sp.log(p), a), a, **SOFTMAX),
    },
    printed=3,
)
