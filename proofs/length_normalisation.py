"""Dividing a sequence's token sum by its length: E[Σ_t ∇log π_t / T] is ∇E[1/T], not 0, wherever lengths differ.

The length is a function of the sequence, so a per-sequence mean ascends the mean of reward/T: a baseline b then pays
b/T, k1's gradient no longer vanishes, and every advantage of a group is biased. The token-mean of a group divides by
the lengths of all its members, which is no constant either.

Source: ours; per-sequence means of Shao et al. 2024 (GRPO), criticised by Liu et al. 2025 (Dr. GRPO).
"""

from collections.abc import Callable

import sympy as sp

from proofs.certificate import Claim
from proofs.expectations import Equation, gradient, pointwise
from proofs.group_advantages import Advantages, group_mean, leave_one_out
from proofs.sequences import EVEN, RAGGED, Leaves, Tokens, chance, expectation, frozen, new, ratio, ref, reward, score
from proofs.symbols import b

Value = Callable[[Tokens], sp.Expr]


def _mean_gradient(value: Value, leaves: Leaves = RAGGED) -> sp.Expr:
    return gradient(pointwise, expectation(new, leaves, value))


def _expected(estimate: Value, leaves: Leaves = RAGGED) -> sp.Expr:
    return expectation(new, leaves, estimate)


def _k1(y: Tokens) -> sp.Expr:
    return sp.log(ratio(new, ref, y)) / len(y)


def _pairs(estimate: Callable[[Tokens, Tokens], sp.Expr]) -> sp.Expr:
    return sum(chance(new, y) * chance(new, z) * estimate(y, z) for y in RAGGED for z in RAGGED)


def _of_a_pair(advantages: Advantages, lengths: Callable[[Tokens, Tokens], tuple[int, int]]) -> sp.Expr:
    def estimate(y: Tokens, z: Tokens) -> sp.Expr:
        terms = zip(advantages([reward(y), reward(z)]), (y, z), lengths(y, z), strict=True)
        return sum(a * score(sequence) / length for a, sequence, length in terms) / 2

    return _pairs(estimate)


def _own_length(y: Tokens, z: Tokens) -> tuple[int, int]:
    return len(y), len(z)


def _one(y: Tokens, z: Tokens) -> tuple[int, int]:
    return 1, 1


def _both_lengths(y: Tokens, z: Tokens) -> tuple[int, int]:
    return len(y) + len(z), len(y) + len(z)


EXACT = _mean_gradient(reward)
PER_TOKEN = _mean_gradient(lambda y: reward(y) / len(y))
SHORTER = _mean_gradient(lambda y: sp.Rational(1, len(y)))


def _identities() -> dict[str, Equation]:
    biased = PER_TOKEN - _expected(reward) * SHORTER
    return {
        "E[Σ_t ∇log π_t] = 0": (_expected(score), sp.S.Zero),
        "E[Σ_t ∇log π_t / T] = ∇E[1/T]": (_expected(lambda y: score(y) / len(y)), SHORTER),
        "… = 0 at equal lengths": (_expected(lambda y: score(y) / len(y), EVEN), sp.S.Zero),
        "E[R Σ_t ∇log π_t / T] = ∇E[R/T]": (_expected(lambda y: reward(y) * score(y) / len(y)), PER_TOKEN),
        "baseline": (_expected(lambda y: (reward(y) - b) * score(y) / len(y)), PER_TOKEN - b * SHORTER),
        "∇ of k1's per-sequence mean, on-policy": (
            gradient(pointwise, expectation(frozen, RAGGED, _k1)),
            SHORTER,
        ),
        "group mean, token sums": (_of_a_pair(group_mean, _one), EXACT / 2),
        "group mean, per-sequence means": (_of_a_pair(group_mean, _own_length), biased / 2),
        "leave-one-out, per-sequence means": (_of_a_pair(leave_one_out, _own_length), biased),
        "the group's token-mean of scores": (
            _pairs(lambda y, z: (score(y) + score(z)) / (len(y) + len(z))),
            gradient(pointwise, _pairs(lambda y, z: sp.Rational(1, len(y) + len(z)))),
        ),
    }


CLAIM = Claim(
    id="length_normalisation",
    statement="E[Σ_t ∇log π_t / T] = ∇E[1/T] ≠ 0: per-sequence means bias baselines, k1's zero mean, advantages",
    source="ours; on Shao et al. 2024, Liu et al. 2025",
    identities=_identities,
    near_misses=lambda: {
        "E[Σ_t ∇log π_t / T] = 0": (_expected(lambda y: score(y) / len(y)), sp.S.Zero),
        "E[R Σ_t ∇log π_t / T] = ∇E[R]·E[1/T]": (
            _expected(lambda y: reward(y) * score(y) / len(y)),
            EXACT * _expected(lambda y: sp.Rational(1, len(y))),
        ),
        "∇ of k1's per-sequence mean is 0": (gradient(pointwise, expectation(frozen, RAGGED, _k1)), sp.S.Zero),
        "leave-one-out stays unbiased for R/T": (_of_a_pair(leave_one_out, _own_length), PER_TOKEN),
        "the group's token-mean of scores is 0": (
            _pairs(lambda y, z: (score(y) + score(z)) / (len(y) + len(z))),
            sp.S.Zero,
        ),
        "leave-one-out, the group's token-mean, a multiple of ∇E[R]": (
            _of_a_pair(leave_one_out, _both_lengths),
            EXACT * _pairs(lambda y, z: sp.Rational(1, len(y) + len(z))),
        ),
    },
)
