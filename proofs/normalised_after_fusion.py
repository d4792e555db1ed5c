"""Reward and KL in one advantage, R − β·log v: what the group's mean and deviation then do to it.

Fused: β·log v is subtracted from the reward before the group's statistics are taken. Apart: the reward alone is
centred and divided, and β·log v is subtracted afterwards.

Centring after fusion is harmless. The group mean then scales reward and penalty alike, by (G − 1)/G, and β stays
what it was. Apart, the mean scales the reward alone.

Division is another matter. Take an infinite group, whose statistics are those of π_old. Fused, the gradient is ∇J
divided by the deviation of R − β·log v. It keeps the direction of each prompt's own J. But where all rewards of a
prompt are equal it is −∇KL divided by the deviation of log v, for any β > 0: such a prompt pulls to the reference,
and β has no say in it. In a group of any size it is the same there, because standardising removes a constant and a
positive factor. Apart, the gradient is that of E[R] − β·σ·KL, divided by σ, the deviation of the rewards. So the
penalty has the strength β on every prompt, and β·σ relative to the reward.

Source: ours; on arXiv 2601.10201, and Shao et al. 2024 (GRPO).
"""

import sympy as sp

from proofs.certificate import GROUPS, NORMALISED, Claim, Statement, equal
from proofs.group_advantages import FACTOR
from proofs.language import KL, E, Grad, OfGroup, at, over, score, variance
from proofs.symbols import G, R, b, beta, i, j, p, q, r, v, w

COST, LOG = R - beta * sp.log(v), sp.log(v)
SD_COST, SD_REWARD, SD_LOG = (sp.sqrt(variance(q, x)) for x in (COST, R, LOG))
KL_REVERSE = KL(p, r)
J = E(p, R) - beta * KL_REVERSE


def _weighted(advantage: sp.Expr) -> sp.Expr:
    return E(q, w * advantage * score())


def _fused_is(value: sp.Expr) -> Statement:
    return equal(_weighted((COST - E(q, COST)) / SD_COST), value, NORMALISED)


def _apart_is(value: sp.Expr) -> Statement:
    return equal(_weighted((R - E(q, R)) / SD_REWARD - beta * LOG), value, NORMALISED)


def _uniform(value: sp.Expr) -> Statement:
    cost = b - beta * LOG
    return equal(_weighted((cost - E(q, cost)) / sp.sqrt(variance(q, cost))), value, NORMALISED)


def _of_group(advantage: sp.Expr) -> sp.Expr:
    return OfGroup(q, over(i, advantage * at(w, i) * score(at(p, i))) / G)


def _centred(value: sp.Expr, *, fused: bool) -> Statement:
    of = {x: at(R, x) - beta * sp.log(at(v, x)) for x in (i, j)}
    whole = of[i] - over(j, of[j]) / G
    apart = at(R, i) - over(j, at(R, j)) / G - beta * sp.log(at(v, i))
    return equal(_of_group(whole if fused else apart), value, GROUPS)


CLAIM = Claim(
    id="normalised_after_fusion",
    source="ours; on arXiv 2601.10201",
    statements=(
        _centred(FACTOR * Grad(J), fused=True),
        _centred(FACTOR * Grad(E(p, R)) - beta * Grad(KL_REVERSE), fused=False),
        _fused_is(Grad(J) / SD_COST),
        _apart_is(Grad(E(p, R) - beta * SD_REWARD * KL_REVERSE) / SD_REWARD),
        _uniform(-Grad(KL_REVERSE) / SD_LOG),
    ),
    near_misses={
        "centred apart: β stays": _centred(FACTOR * Grad(J), fused=False),
        "centred fused: the reward alone is scaled": _centred(
            FACTOR * Grad(E(p, R)) - beta * Grad(KL_REVERSE), fused=True
        ),
        "fused: the reward's deviation": _fused_is(Grad(J) / SD_REWARD),
        "fused: as apart": _fused_is(Grad(E(p, R) - beta * SD_REWARD * KL_REVERSE) / SD_REWARD),
        "apart: the direction of J": _apart_is(Grad(J) / SD_REWARD),
        "apart: β/σ": _apart_is(Grad(E(p, R) - beta / SD_REWARD * KL_REVERSE) / SD_REWARD),
        "fused, equal rewards: β still counts": _uniform(-beta * Grad(KL_REVERSE) / SD_LOG),
        "fused, equal rewards: no gradient": _uniform(sp.Integer(0)),
    },
)
