"""Advantages from a group of G independent responses, and the multiple of the expected reward gradient each one gives.

Sample i's own reward is in the group's mean with weight 1/G; the other rewards are a baseline. So E[(R_i −
mean)·w∇log π] = (1 − 1/G)·E[wR∇log π] − ((G − 1)/G)·E[R]·E[w∇log π], for any G; G = 2, 3 are also enumerated
outright, group by group. A factor on the reward gradient alone acts as its inverse on β.

Samples of π_old, any policy, are weighted by w; that is on-policy too. The std is the population's; the sample's
rescales it by √((G − 1)/G).

Source: ours; Shao et al. 2024 (GRPO), Kool et al. 2019 (leave-one-out), Yu et al. 2025 (DAPO, dynamic sampling).
"""

from collections.abc import Callable, Sequence

import sympy as sp

from proofs.certificate import Claim
from proofs.expectations import OUTCOMES, Equation, Sample, at_outcome, expectation_old, finite, gradient, group
from proofs.one_idea import OBJECTIVE
from proofs.symbols import A, R, Z, beta, p, q_tilde, score, theta, v, w

Advantages = Callable[[Sequence[sp.Expr]], list[sp.Expr]]
Groups = Callable[[Sequence[Sample]], sp.Expr]

_G = sp.Symbol("G", positive=True)
EXACT = gradient(finite, p * R)
FACTOR = (_G - 1) / _G
ONE_RIGHT = {sp.Symbol(f"R{x}", real=True): sp.Integer(x == 0) for x in range(3)}  # a 0/1 reward: outcome 0 is right


def group_mean(rewards: Sequence[sp.Expr]) -> list[sp.Expr]:
    """Return R_i − mean R. Source: Shao et al. 2024."""
    return [reward - sum(rewards) / len(rewards) for reward in rewards]


def leave_one_out(rewards: Sequence[sp.Expr]) -> list[sp.Expr]:
    """Return R_i − the mean of the other rewards. Source: Kool et al. 2019."""
    return [reward - (sum(rewards) - reward) / (len(rewards) - 1) for reward in rewards]


def no_baseline(rewards: Sequence[sp.Expr]) -> list[sp.Expr]:
    """Return R_i. Source: Williams 1992."""
    return list(rewards)


def standard_deviation(rewards: Sequence[sp.Expr]) -> sp.Expr:
    """Return the population's standard deviation of the group. Source: definition."""
    return sp.sqrt(sum(a**2 for a in group_mean(rewards)) / len(rewards))


def standardised(rewards: Sequence[sp.Expr]) -> list[sp.Expr]:
    """Return (R_i − mean R)/std R, zeros where all are equal. Source: Shao et al. 2024."""
    std = standard_deviation(rewards)
    return [a / std if std else sp.S.Zero for a in group_mean(rewards)]


def _rewards(drawn: Sequence[Sample]) -> list[sp.Expr]:
    return [at(R) for at in drawn]


def _right(drawn: Sequence[Sample]) -> list[sp.Expr]:
    return [at(R).xreplace(ONE_RIGHT) for at in drawn]


def _kept(drawn: Sequence[Sample]) -> sp.Expr:
    return sp.Integer(len(set(_right(drawn))) > 1)


def _estimate(advantages: Advantages, rewards: Callable[[Sequence[Sample]], list[sp.Expr]] = _rewards) -> Groups:
    def estimate(drawn: Sequence[Sample]) -> sp.Expr:
        return sum(a * at(Z * w * score) for a, at in zip(advantages(rewards(drawn)), drawn, strict=True)) / len(drawn)

    return estimate


def _expected(size: int, estimate: Groups) -> sp.Expr:
    return group(size, estimate, density=q_tilde)


def _any_size(own_share: sp.Expr, others: sp.Expr) -> sp.Expr:
    """Return the expectation where a sample's own reward keeps a share, and the others' mean is subtracted in part."""
    own = finite(expectation_old(w * R * score))
    return own_share * own - others * finite(q_tilde * R) * finite(expectation_old(w * score))


def _two_prompts() -> sp.Expr:
    """Return the expectation where the batch's other sample answers another prompt, with reward A under π_old."""
    return sum(
        at_outcome(x, p * score) * at_outcome(y, q_tilde) * group_mean([at_outcome(x, R), at_outcome(y, A)])[0]
        for x in OUTCOMES
        for y in OUTCOMES
    )


def _with_penalty(strength: sp.Expr) -> Equation:
    penalty = gradient(finite, OBJECTIVE.subs(R, 0))  # −β∇D, any generator f
    return _any_size(FACTOR, FACTOR) + penalty, FACTOR * gradient(finite, OBJECTIVE.subs(beta, strength))


GROUP_MEAN = Claim(
    id="group_mean",
    statement="E[(1/G)Σ(R_i − mean R) w_i ∇log π_i] = (G − 1)/G · ∇E[R], so that β acts as β·G/(G − 1)",
    source="ours; advantages of Shao et al. 2024",
    identities=lambda: {
        **{f"G = {n}": (_expected(n, _estimate(group_mean)), FACTOR.subs(_G, n) * EXACT) for n in (2, 3)},
        "any G": (_any_size(FACTOR, FACTOR), FACTOR * EXACT),
        "batch mean, two prompts": (_two_prompts(), EXACT / 2),
        "any G and f, β acts as β·G/(G − 1)": _with_penalty(beta / FACTOR),
    },
    near_misses=lambda: {
        "batch mean, two prompts: factor 1": (_two_prompts(), EXACT),
        "factor 1": (_expected(2, _estimate(group_mean)), EXACT),
        "factor G/(G − 1)": (_expected(3, _estimate(group_mean)), EXACT * 3 / 2),
        "factor 1/G": (_expected(3, _estimate(group_mean)), EXACT / 3),
        "β stays": _with_penalty(beta),
        "β·(G − 1)/G": _with_penalty(beta * FACTOR),
    },
)


def _two_rewards(left: Advantages, right: Advantages, factor: sp.Expr) -> Equation:
    rewards = sp.symbols("R1:4", real=True)
    return left(rewards)[0], factor * right(rewards)[0]


LEAVE_ONE_OUT = Claim(
    id="leave_one_out",
    statement="E[(1/G)Σ(R_i − mean of the others) w_i ∇log π_i] = ∇E[R]: unbiased",
    source="ours; advantages of Kool et al. 2019",
    identities=lambda: {
        **{f"G = {n}": (_expected(n, _estimate(leave_one_out)), EXACT) for n in (2, 3)},
        "any G": (_any_size(sp.S.One, sp.S.One), EXACT),
        "G = 3: 3/2 of the group mean's, sample by sample": _two_rewards(leave_one_out, group_mean, sp.Rational(3, 2)),
    },
    near_misses=lambda: {
        "factor (G − 1)/G": (_expected(3, _estimate(leave_one_out)), EXACT * 2 / 3),
        "the group mean's advantage": _two_rewards(leave_one_out, group_mean, sp.S.One),
        "the group mean is unbiased": (_expected(2, _estimate(group_mean)), _expected(2, _estimate(leave_one_out))),
    },
)


RATE = finite(p * R).xreplace(ONE_RIGHT)  # ρ, the chance of a right answer
RATE_GRADIENT = EXACT.xreplace(ONE_RIGHT)
_rate = sp.Function("rho", positive=True)(theta)
_hits, _misses = sp.symbols("hits misses", positive=True)


def _std_gradient(size: int) -> sp.Expr:
    def estimate(drawn: Sequence[Sample]) -> sp.Expr:
        return sum(a * at(score) for a, at in zip(standardised(_right(drawn)), drawn, strict=True)) / size

    return group(size, estimate)


def _mean_std(size: int) -> sp.Expr:
    return group(size, lambda drawn: standard_deviation(_right(drawn)))


def _of_this_group() -> Equation:
    # Given how many are right, a right answer's mean score is ∇log ρ and a wrong one's ∇log(1 − ρ).
    size = _hits + _misses
    std = sp.sqrt(_hits * _misses) / size
    right, wrong = (1 - _hits / size) / std, -_hits / size / std
    total = _hits * right * sp.log(_rate).diff(theta) + _misses * wrong * sp.log(1 - _rate).diff(theta)
    return total / size, std * _rate.diff(theta) / (_rate * (1 - _rate))


def _infinite_group(objective: sp.Expr) -> Equation:
    std = sp.sqrt(_rate * (1 - _rate))
    outcomes = {_rate: 1, 1 - _rate: 0}
    expected = sum(chance * (right - _rate) / std * sp.log(chance).diff(theta) for chance, right in outcomes.items())
    return expected, objective.diff(theta)


def _four(factor: sp.Expr) -> Equation:
    return _std_gradient(4), factor * RATE_GRADIENT


_AT_FOUR = sp.sqrt(3) + (3 - 2 * sp.sqrt(3)) * RATE * (1 - RATE)
GROUP_STD = Claim(
    id="group_std",
    statement="0/1 reward, std: ∇ρ·E[std]/(ρ(1 − ρ)), a multiple of ∇ρ at G = 2, 3, not at 4; G → ∞: ∇2 arcsin√ρ",
    source="ours; advantages of Shao et al. 2024",
    identities=lambda: {
        "a group with any number right": _of_this_group(),
        **{
            f"G = {n}: ∇ρ·E[std]/(ρ(1 − ρ))": (_std_gradient(n), RATE_GRADIENT * _mean_std(n) / (RATE * (1 - RATE)))
            for n in (2, 3, 4)
        },
        "G = 2: ∇ρ": (_std_gradient(2), RATE_GRADIENT),
        "G = 3: √2·∇ρ": (_std_gradient(3), sp.sqrt(2) * RATE_GRADIENT),
        "G = 4: (√3 + (3 − 2√3)ρ(1 − ρ))·∇ρ": _four(_AT_FOUR),
        # By the law of large numbers E[std] → √(ρ(1 − ρ)).
        "G → ∞: ∇2 arcsin√ρ": _infinite_group(2 * sp.asin(sp.sqrt(_rate))),
    },
    near_misses=lambda: {
        "G = 4: a multiple of ∇ρ, right at ρ = ½": _four(sp.sqrt(3) + (3 - 2 * sp.sqrt(3)) / 4),
        "G = 4: a multiple of ∇ρ, right at ρ → 0": _four(sp.sqrt(3)),
        "G = 3: ∇ρ": (_std_gradient(3), RATE_GRADIENT),
        "G → ∞: ∇ρ": _infinite_group(_rate),
        "G → ∞: ∇arcsin√ρ": _infinite_group(sp.asin(sp.sqrt(_rate))),
        "G → ∞: ∇log ρ": _infinite_group(sp.log(_rate)),
    },
)


RATE_OLD = finite(q_tilde * R).xreplace(ONE_RIGHT)


def _keep(size: int) -> sp.Expr:
    return _expected(size, _kept)


def _over_kept(size: int, estimate: Groups) -> sp.Expr:
    return _expected(size, lambda drawn: _kept(drawn) * estimate(drawn)) / _keep(size)


def _dropped(size: int, advantages: Advantages, factor: sp.Expr) -> Equation:
    return _over_kept(size, _estimate(advantages, _right)), factor * RATE_GRADIENT


def _penalty(drawn: Sequence[Sample]) -> sp.Expr:
    return sum(at(Z * w * sp.log(v) * score) for at in drawn) / len(drawn)


DROPPED_GROUPS = Claim(
    id="dropped_groups",
    statement="0/1 reward: dropping all-right and all-wrong groups multiplies the reward gradient by exactly 1/P(keep)",
    source="ours; dynamic sampling of Yu et al. 2025",
    identities=lambda: {
        f"G = {n}: {name}": equation
        for n in (2, 3)
        for name, equation in {
            "P(keep) = 1 − ρⁿ − (1 − ρ)ⁿ": (_keep(n), 1 - RATE_OLD**n - (1 - RATE_OLD) ** n),
            "group mean": _dropped(n, group_mean, FACTOR.subs(_G, n) / _keep(n)),
            "leave-one-out": _dropped(n, leave_one_out, 1 / _keep(n)),
        }.items()
    },
    near_misses=lambda: {
        "no factor": _dropped(2, leave_one_out, sp.S.One),
        "P(keep) for its inverse": _dropped(2, leave_one_out, _keep(2)),
        "without a baseline": _dropped(2, no_baseline, 1 / _keep(2)),
        "the KL's too": (_over_kept(2, _penalty), _expected(2, _penalty) / _keep(2)),
        "the KL's as it was": (_over_kept(2, _penalty), _expected(2, _penalty)),
    },
)

CLAIMS = (GROUP_MEAN, LEAVE_ONE_OUT, GROUP_STD, DROPPED_GROUPS)
