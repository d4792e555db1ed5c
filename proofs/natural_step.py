"""The natural gradient's length is the reward's deviation: ∇E[R]ᵀF⁺∇E[R] = Var_p(R) on a softmax, and less elsewhere.

On a softmax F⁺∇E[R] is R less its plain mean (`softmax_fisher`), and a constant added to all logits moves no policy. So
∇E[R]ᵀF⁺∇E[R] is the derivative of E[R] along R. Where logits are free at every history of a tree, a step a changes
log p(y) by the sum over tokens of a less its mean. If a is the expected reward after each token, that sum is R − E[R].
So R − E[R] is a score there too.

For policies with any other parameters ∇E[R]ᵀF⁺∇E[R] is the largest (∇E[R]·Δ)²/ΔᵀFΔ, and Δ = F⁺∇E[R] attains it. Along
any curve of policies that quotient is Var_p(R) less a square, which is zero only where R − E[R] is a multiple of the
score. Hence Var_p(R) is an upper bound, reached only if R − E[R] lies in the span of the scores.

Source: ours; after arXiv 2601.23135 (GRPO's normalisation); Kakade 2001.
"""

import sympy as sp

from proofs.certificate import TREES, Claim, Statement, equal
from proofs.language import E, Given, Grad, Next, Total, at, over, score, variance
from proofs.softmax_fisher import SOFTMAX
from proofs.symbols import K, R, a, h, p, q, t

_rho = sp.Symbol("rho")
RATE = E(p, K)
DEVIATION = sp.sqrt(_rho * (1 - _rho))


def _squared(step: sp.Expr) -> sp.Expr:
    return E(p, Grad(sp.log(p), step) ** 2)  # ΔᵀFΔ


def _length(value: sp.Expr) -> Statement:
    return equal(Grad(E(p, R), R), value, **SOFTMAX)


def _binary(divisor: sp.Expr) -> Statement:
    return equal(_squared(K / divisor), 1, **SOFTMAX, rho=RATE)


def _solved(divisor: sp.Expr) -> Statement:
    fisher = E(p, Grad(sp.log(p), a) * Grad(sp.log(p), K / divisor))
    return equal(Grad(E(p, K), a) / DEVIATION, fisher, **SOFTMAX, rho=RATE)


SLOPE, FISHER = Grad(E(p, R)), E(p, score() ** 2)


def _along_any_curve(rest: sp.Expr) -> Statement:
    return equal(SLOPE**2 / FISHER, variance(p, R) - rest)


_AFTER = Given(t, p, R)  # the expected reward after token t
SCORE = over(t, _AFTER - Next(t, at(p, t), _AFTER))


def _is_the_score(value: sp.Expr) -> Statement:
    return equal(E(q, h * SCORE), E(q, h * value), TREES)  # any h: response by response


CLAIM = Claim(
    id="natural_step_length",
    source="ours; after arXiv 2601.23135",
    statements=(
        _length(variance(p, R)),
        _binary(DEVIATION),
        _along_any_curve(E(p, (R - E(p, R) - SLOPE / FISHER * score()) ** 2)),
        _is_the_score(R - E(p, R)),
        equal(_squared(R), variance(p, R), **SOFTMAX),
        _solved(DEVIATION),
        equal(E(p, SCORE**2), variance(p, R), TREES),
    ),
    near_misses={
        "the second moment": _length(E(p, R**2)),
        "the deviation": _length(sp.sqrt(variance(p, R))),
        "the plain gradient's length": equal(Total((p * (R - E(p, R))) ** 2), variance(p, R), **SOFTMAX),
        "0/1: divided by the variance": _binary(_rho * (1 - _rho)),
        "0/1: undivided": _binary(sp.Integer(1)),
        "along every curve: the variance": _along_any_curve(sp.Integer(0)),
        "on a tree the score is the reward": _is_the_score(R),
    },
    printed=4,
)
