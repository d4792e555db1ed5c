"""Advantages from a group of G independent responses, and the multiple of the expected reward gradient each one gives.

The advantage is taken as it is printed, R_i − (1/G)Σ_j R_j, and the expectation of its sum over the group is worked out
for any G: of the pairs (i, j) G are of one sample and G(G − 1) of two, which are independent. A factor on the reward
gradient alone acts as its inverse on β. Samples of π_old, any policy, are weighted by w; that is on-policy too.

Division by the group's deviation (the population's; the sample's rescales it by √((G − 1)/G)) is worked out on-policy
for a reward of 0 or 1 and G = 2, 3, 4, by listing every group. For G ≥ 5 the multiple of ∇ρ, E[std]/(ρ(1 − ρ)), is no
constant: as ρ → 0 it tends to √(G − 1) ≥ 2, and at ρ = ½ it is at most 2√((G − 1)/G) < 2, since E[std]² ≤ E[std²] = ((G
− 1)/G)·ρ(1 − ρ). In an infinite group mean and deviation are π_old's, and any reward and any π_old will do.

Dropping groups: K says that a group is kept, and an estimate that is 0 wherever the group is dropped is K times
something. One outcome is a whole group, or a prompt with its group. So it holds for any reward and any G, for every
baseline that is zero on groups of equal rewards, and per prompt or, refilled across prompts, with P(keep) over all.

Source: ours; Shao et al. 2024 (GRPO), Kool et al. 2019 (leave-one-out), Yu et al. 2025 (DAPO, dynamic sampling).
"""

import sympy as sp

from proofs.certificate import GROUPS, NORMALISED, Claim, Statement, equal
from proofs.language import NOT, E, Grad, OfGroup, Ratio, at, over, score, variance
from proofs.symbols import G, K, R, b, beta, f, h, i, j, k, p, q, r, v, w
from proofs.worlds import Listed

FACTOR = (G - 1) / G
MEAN = over(j, at(R, j)) / G
OTHERS = over(j, at(R, j), NOT, i) / (G - 1)
GROUP_MEAN_ADVANTAGE, LEAVE_ONE_OUT_ADVANTAGE = at(R, i) - MEAN, at(R, i) - OTHERS
EXACT = Grad(E(p, R))


def group_gradient(advantage: sp.Expr, weight: sp.Expr = at(w, i)) -> sp.Expr:  # noqa: B008
    """Return (1/G)·Σ_i advantage_i·w_i·∇log π_i. Source: definition."""
    return over(i, advantage * weight * score(at(p, i))) / G


def _is(advantage: sp.Expr, value: sp.Expr) -> Statement:
    return equal(OfGroup(q, group_gradient(advantage)), value, GROUPS)


def _with_penalty(strength: sp.Expr) -> Statement:
    penalty = beta * Grad(E(r, f(v)))
    left = OfGroup(q, group_gradient(GROUP_MEAN_ADVANTAGE)) - penalty
    return equal(left, FACTOR * Grad(E(p, R) - strength * E(r, f(v))), GROUPS)


def _shared(value: sp.Expr) -> Statement:
    # The other samples of the batch answer other prompts, whose mean reward is b.
    return equal(E(q, (R - (R + (G - 1) * b) / G) * w * score()), value, GROUPS)


GROUP_MEAN = Claim(
    id="group_mean",
    source="ours; advantages of Shao et al. 2024",
    statements=(
        _is(GROUP_MEAN_ADVANTAGE, FACTOR * EXACT),
        _with_penalty(beta * G / (G - 1)),
        _shared(FACTOR * EXACT),
    ),
    near_misses={
        "batch mean over prompts: factor 1": _shared(EXACT),
        "factor 1": _is(GROUP_MEAN_ADVANTAGE, EXACT),
        "factor G/(G − 1)": _is(GROUP_MEAN_ADVANTAGE, EXACT / FACTOR),
        "factor 1/G": _is(GROUP_MEAN_ADVANTAGE, EXACT / G),
        "factor (G + 1)/6, right at G = 2, 3": _is(GROUP_MEAN_ADVANTAGE, (G + 1) / 6 * EXACT),
        "β stays": _with_penalty(beta),
        "β·(G − 1)/G": _with_penalty(beta * FACTOR),
    },
    printed=2,
)

LEAVE_ONE_OUT = Claim(
    id="leave_one_out",
    source="ours; advantages of Kool et al. 2019",
    statements=(
        _is(LEAVE_ONE_OUT_ADVANTAGE, EXACT),
        _is(LEAVE_ONE_OUT_ADVANTAGE - G / (G - 1) * GROUP_MEAN_ADVANTAGE, sp.Integer(0)),
    ),
    near_misses={
        "factor (G − 1)/G": _is(LEAVE_ONE_OUT_ADVANTAGE, FACTOR * EXACT),
        "the group mean's gradient": _is(LEAVE_ONE_OUT_ADVANTAGE - GROUP_MEAN_ADVANTAGE, sp.Integer(0)),
        "the group mean is unbiased": _is(GROUP_MEAN_ADVANTAGE, EXACT),
        "the mean of the others over G": _is(at(R, i) - over(j, at(R, j), NOT, i) / G, EXACT * G / (G - 1)),
    },
    printed=1,
)

RATE = E(p, R)  # ρ, the chance of a right answer
SPREAD = over(k, (at(R, k) - over(j, at(R, j)) / G) ** 2)
DEVIATION = sp.sqrt(SPREAD / G)
_rho, _std, _sd, _rate_old = sp.Symbol("rho"), sp.Symbol("std"), sp.Symbol("varsigma"), sp.Symbol("rho_old")
_rho_k = sp.Symbol("rho_K")
STANDARDISED = Ratio(GROUP_MEAN_ADVANTAGE, _std)


def _listed(size: int) -> Listed:
    return Listed(group=size, right=True, old_is_normalised=True)


def _std_gradient(size: int, value: sp.Expr) -> Statement:
    left = OfGroup(p, group_gradient(STANDARDISED, sp.Integer(1)))
    return equal(left, value, _listed(size), std=DEVIATION, rho=RATE)


def _infinite(value: sp.Expr) -> Statement:
    left = E(q, w * (R - _rate_old) / _sd * score())
    return equal(left, value, NORMALISED, varsigma=sp.sqrt(variance(q, R)), rho_old=E(q, R))


def _right(value: sp.Expr) -> Statement:
    chance = sp.sqrt(_rho_k * (1 - _rho_k))
    return equal(E(p, (K - _rho_k) / chance * score()), Grad(value), rho_K=E(p, K))


_AT_FOUR = sp.sqrt(3) + (3 - 2 * sp.sqrt(3)) * _rho * (1 - _rho)
GROUP_STD = Claim(
    id="group_std",
    source="ours; advantages of Shao et al. 2024",
    statements=(
        _std_gradient(2, Grad(_rho)),
        _std_gradient(3, sp.sqrt(2) * Grad(_rho)),
        _std_gradient(4, _AT_FOUR * Grad(_rho)),
        _infinite(Grad(E(p, R)) / _sd),
        _right(2 * sp.asin(sp.sqrt(_rho_k))),
        equal(OfGroup(p, over(i, at(R, i) * GROUP_MEAN_ADVANTAGE) / G), FACTOR * variance(p, R), GROUPS),
        *(_std_gradient(n, OfGroup(p, DEVIATION) / (_rho * (1 - _rho)) * Grad(_rho)) for n in (2, 3, 4)),
    ),
    near_misses={
        "G = 4: a multiple of ∇ρ, right at ρ = ½": _std_gradient(
            4, (sp.sqrt(3) + (3 - 2 * sp.sqrt(3)) / 4) * Grad(_rho)
        ),
        "G = 4: a multiple of ∇ρ, right at ρ → 0": _std_gradient(4, sp.sqrt(3) * Grad(_rho)),
        "G = 3: ∇ρ": _std_gradient(3, Grad(_rho)),
        "G → ∞: ∇ρ": _infinite(Grad(E(p, R))),
        "G → ∞: ∇arcsin√ρ": _right(sp.asin(sp.sqrt(_rho_k))),
        "G → ∞: ∇log ρ": _right(sp.log(_rho_k)),
    },
    printed=6,
)

KEPT, _keep = sp.Symbol("mixed"), sp.Symbol("P_keep")
MIXED = {"mixed": Ratio(SPREAD, SPREAD)}  # 1 where rewards differ, 0 where they are equal


def _over_kept(estimate: sp.Expr) -> sp.Expr:
    return OfGroup(q, KEPT * estimate) / OfGroup(q, KEPT)


def _dropped(size: int, advantage: sp.Expr, value: sp.Expr) -> Statement:
    return equal(_over_kept(group_gradient(advantage)), value, _listed(size), P_keep=OfGroup(q, KEPT), **MIXED)


def _chance(size: int) -> Statement:
    rate = E(q, R)
    return equal(OfGroup(q, KEPT), 1 - rate**G - (1 - rate) ** G, _listed(size), **MIXED)


_PENALTY = over(i, at(w, i) * sp.log(at(v, i)) * score(at(p, i))) / G


def _penalty(value: sp.Expr) -> Statement:
    return equal(_over_kept(_PENALTY), value, _listed(2), **MIXED)


DROPPED_GROUPS = Claim(
    id="dropped_groups",
    source="ours; dynamic sampling of Yu et al. 2025",
    statements=(
        equal(E(q, K * (K * h)) / E(q, K), E(q, K * h) / E(q, K), NORMALISED),
        _dropped(2, GROUP_MEAN_ADVANTAGE, FACTOR * EXACT / _keep),
        _dropped(3, LEAVE_ONE_OUT_ADVANTAGE, EXACT / _keep),
        _dropped(3, GROUP_MEAN_ADVANTAGE, FACTOR * EXACT / _keep),
        _dropped(2, LEAVE_ONE_OUT_ADVANTAGE, EXACT / _keep),
        _chance(2),
        _chance(3),
    ),
    near_misses={
        "no factor": _dropped(2, LEAVE_ONE_OUT_ADVANTAGE, EXACT),
        "P(keep) for its inverse": _dropped(2, LEAVE_ONE_OUT_ADVANTAGE, EXACT * _keep),
        "without a baseline": _dropped(2, at(R, i), EXACT / _keep),
        "an estimate that is not zero on dropped groups": equal(E(q, K * h) / E(q, K), E(q, h) / E(q, K), NORMALISED),
        "the KL's too": _penalty(OfGroup(q, _PENALTY) / OfGroup(q, KEPT)),
        "the KL's as it was": _penalty(OfGroup(q, _PENALTY)),
    },
    printed=3,
)

CLAIMS = (GROUP_MEAN, LEAVE_ONE_OUT, GROUP_STD, DROPPED_GROUPS)
