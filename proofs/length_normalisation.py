"""Dividing a sequence's token sum by its length: E[Σ_t ∇log π_t / T] is ∇E[1/T], not 0, wherever lengths differ.

The length is a function of the sequence, so a per-sequence mean ascends the mean of reward/T: a baseline b then pays
b/T, k1's gradient no longer vanishes, and every advantage of a group is biased. The token-mean of a group divides by
the lengths of all its members, which is no constant either: take a whole group for the outcome.

Source: ours; per-sequence means of Shao et al. 2024 (GRPO), criticised by Liu et al. 2025 (Dr. GRPO).
"""

import sympy as sp

from proofs.certificate import DIFFERENT, GROUPS, TREES, Claim, Statement, equal, related
from proofs.group_advantages import GROUP_MEAN_ADVANTAGE, LEAVE_ONE_OUT_ADVANTAGE, group_gradient
from proofs.language import SG, E, Grad, OfGroup, at, over, score
from proofs.symbols import G, R, T, b, i, p, t, v
from proofs.worlds import Space

SHORTER, PER_TOKEN, EXACT = Grad(E(p, 1 / T)), Grad(E(p, R / T)), Grad(E(p, R))
K1 = sp.log(v) / T


def _group(advantage: sp.Expr, value: sp.Expr) -> Statement:
    return equal(OfGroup(p, group_gradient(advantage, 1 / at(T, i))), value, GROUPS)


BIASED = PER_TOKEN - E(p, R) * SHORTER
CLAIM = Claim(
    id="length_normalisation",
    source="ours; on Shao et al. 2024, Liu et al. 2025",
    statements=(
        equal(E(p, over(t, score(at(p, t))) / T), SHORTER, TREES),
        related(SHORTER, DIFFERENT, 0),
        equal(E(p, score() / T), SHORTER),
        equal(E(p, score() / T), 0, Space(equal_lengths=True)),
        equal(E(p, R * score() / T), PER_TOKEN),
        equal(E(p, (R - b) * score() / T), PER_TOKEN - b * SHORTER),
        equal(Grad(E(SG(p), K1)), SHORTER),
        _group(GROUP_MEAN_ADVANTAGE, (G - 1) / G * BIASED),
        _group(LEAVE_ONE_OUT_ADVANTAGE, BIASED),
        equal(E(p, over(t, score(at(p, t)))), 0, TREES),
    ),
    near_misses={
        "E[Σ_t ∇log π_t / T] = 0": equal(E(p, over(t, score(at(p, t))) / T), 0, TREES),
        "E[R Σ_t ∇log π_t / T] = ∇E[R]·E[1/T]": equal(E(p, R * score() / T), EXACT * E(p, 1 / T)),
        "∇ of k1's per-sequence mean is 0": equal(Grad(E(SG(p), K1)), 0),
        "leave-one-out stays unbiased for R/T": _group(LEAVE_ONE_OUT_ADVANTAGE, PER_TOKEN),
        "leave-one-out, a multiple of ∇E[R]": _group(LEAVE_ONE_OUT_ADVANTAGE, EXACT * E(p, 1 / T)),
    },
    printed=2,
)
