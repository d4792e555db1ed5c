"""The Monte-Carlo error falls as N^(−1/2) around the estimator's own mean, and a bias does not fall at all.

The step N → N + 1: the mean of N + 1 samples is (N·mean_N + X)/(N + 1), and independent variances add, which the sum
over all pairs of outcomes shows. N = 1, 2, 3 are also enumerated outright.

Source: Bienaymé 1853.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.expectations import Equation, Sample, finite, group
from proofs.symbols import A, R, p

_N = sp.Symbol("N", positive=True)
_target = sp.Symbol("target", real=True)
MEAN = finite(p * R)
VARIANCE = finite(p * R**2) - MEAN**2


def _mean_of(size: int) -> sp.Expr:
    return group(size, lambda drawn: sum(at(R) for at in drawn) / size)


def _spread(size: int, centre: sp.Expr = MEAN) -> sp.Expr:
    return group(size, lambda drawn: (sum(at(R) for at in drawn) / size - centre) ** 2)


def _step(rate: sp.Expr) -> Equation:
    # Var(aX + bY) = a²·Var X + b²·Var Y with X the mean of N samples, of variance `rate`, and Y one more.
    following = rate.subs(_N, _N + 1)
    return (_N / (_N + 1)) ** 2 * rate + (1 / (_N + 1)) ** 2 * rate.subs(_N, 1), following


def _variance_of_a_sum() -> Equation:
    a, b = sp.symbols("a b", real=True)

    def combined(first: Sample, second: Sample) -> sp.Expr:
        return a * first(R) + b * second(A)

    mean = group(2, lambda drawn: combined(*drawn))
    spread = group(2, lambda drawn: combined(*drawn) ** 2) - mean**2
    return spread, a**2 * VARIANCE + b**2 * (finite(p * A**2) - finite(p * A) ** 2)


def _identities() -> dict[str, Equation]:
    sizes = (1, 2, 3)
    return {
        **{f"E[mean of {n}] = E[X]": (_mean_of(n), MEAN) for n in sizes},
        **{f"Var[mean of {n}] = σ²/{n}": (_spread(n), VARIANCE / n) for n in sizes},
        "Var[aX + bY] = a²Var X + b²Var Y": _variance_of_a_sum(),
        "σ²/N → σ²/(N + 1)": _step(VARIANCE / _N),
        "about a target: σ²/2 + bias²": (_spread(2, _target), VARIANCE / 2 + (MEAN - _target) ** 2),
    }


CLAIM = Claim(
    id="monte_carlo_rate",
    statement="the mean of N independent estimates has the mean of one and its variance over N; bias² stays",
    source="Bienaymé 1853",
    identities=_identities,
    near_misses=lambda: {
        "σ²/N²": (_spread(2), VARIANCE / 4),
        "σ²: no gain": (_spread(2), VARIANCE),
        "step of σ²/√N": _step(VARIANCE / sp.sqrt(_N)),
        "step of σ²/N²": _step(VARIANCE / _N**2),
        "bias falls with N": (_spread(2, _target), (VARIANCE + (MEAN - _target) ** 2) / 2),
    },
)
