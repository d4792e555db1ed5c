"""Sequence level: the whole sequence is the sample x of the paper; and the geometric mean of its weights.

Policies, old policy, anchor and rewards are arbitrary at every state of the tree. Left-hand sides are what a trainer
computes, sums over samples of π_old; right-hand sides are definitions.

Source: ours; the paper (arXiv 2505.17508) writes x for a whole sample and applies its formulas token by token.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.definitions import k3
from proofs.expectations import stop_gradient
from proofs.sequences import (
    EVEN,
    RAGGED,
    Leaves,
    Policy,
    Tokens,
    chance,
    expectation,
    expected_return,
    frozen,
    gradient_of,
    new,
    old,
    ratio,
    ref,
    reverse_kl_equation,
    reward,
    sampled,
    steps,
    token_score,
    token_sum,
    v_at,
)
from proofs.symbols import beta, f, f_prime
from proofs.token_level import token_reward, token_surrogate


def _sequence_objective(leaves: Leaves) -> sp.Expr:
    penalty = sum(chance(ref, y) * f(ratio(new, ref, y)) for y in leaves)
    return expectation(new, leaves, reward) - beta * penalty


def _sequence_surrogate(y: Tokens) -> sp.Expr:
    return -ratio(new, old, y) * reward(y) + beta * ratio(ref, old, y) * f(ratio(new, ref, y))


def _sequence_weight(y: Tokens) -> sp.Expr:
    v = ratio(new, ref, y)
    return ratio(new, old, y) * reward(y) - beta * ratio(ref, old, y) * v * f_prime(v)


def _weighted_scores(y: Tokens) -> sp.Expr:
    return _sequence_weight(y) * token_sum(token_score)(y)


def _token_k3(y: Tokens) -> sp.Expr:
    return token_sum(lambda h, a: k3(1 / v_at(h, a)))(y)


def _token_k1(y: Tokens) -> sp.Expr:
    return token_sum(lambda h, a: sp.log(v_at(h, a)))(y)


SEQUENCE_LEVEL = Claim(
    id="sequence_level",
    statement="log-ratios summed first: weight(Πw_t, Πv_t)·Σ_t ∇log π_t is exact for J of sequences, any f and lengths",
    source="ours; arXiv 2505.17508, Props 3.2, 3.6, E.1, E.3 with x a sequence",
    identities=lambda: {
        **{
            f"{name}: {where}": equation
            for where, leaves in {"equal lengths": EVEN, "unequal lengths": RAGGED}.items()
            for name, equation in {
                "surrogate": (sampled(_sequence_surrogate, leaves=leaves), -gradient_of(_sequence_objective(leaves))),
                "weight": (expectation(old, leaves, _weighted_scores), gradient_of(_sequence_objective(leaves))),
            }.items()
        },
        "Σ_t k1, sequence weight live: reverse KL": reverse_kl_equation(
            lambda y: ratio(new, old, y) * _token_k1(y), RAGGED
        ),
        "Σ_t k3, sequence weight live: reverse KL": reverse_kl_equation(
            lambda y: ratio(new, old, y) * _token_k3(y), RAGGED
        ),
    },
    near_misses=lambda: {
        "Σ_t k3, sequence weight detached: reverse KL": reverse_kl_equation(
            lambda y: stop_gradient(ratio(new, old, y)) * _token_k3(y)
        ),
        "Σ_t k3, geometric weight: reverse KL": reverse_kl_equation(
            lambda y: sp.sqrt(ratio(new, old, y)) * _token_k3(y)
        ),
        "token sums": (sampled(token_surrogate), -gradient_of(_sequence_objective(EVEN))),
        "the last token's score": (
            expectation(old, EVEN, lambda y: _sequence_weight(y) * token_score(*steps(y)[-1])),
            gradient_of(_sequence_objective(EVEN)),
        ),
        "divided by the length": (
            sampled(lambda y: _sequence_surrogate(y) / len(y), leaves=RAGGED),
            -gradient_of(_sequence_objective(RAGGED)),
        ),
    },
)


def _geometric(policy: Policy, leaves: Leaves = EVEN) -> sp.Expr:
    return sampled(lambda y: ratio(new, policy, y) ** sp.Rational(1, len(y)) * reward(y), policy, leaves)


def _constant_reward(gradient_: sp.Expr) -> sp.Expr:
    return gradient_.xreplace({reward(y): sp.S.One for y in EVEN})


GEOMETRIC_LEVEL = Claim(
    id="geometric_level",
    statement="(Πw_t)^(1/T): on-policy ∇E[R/T]; off-policy biased: ∇Σ√(π_old π_θ)R at T = 2",
    source="ours; weight of Zheng et al. 2025 (GSPO)",
    identities=lambda: {
        "on-policy, T = 2": (_geometric(frozen), expected_return() / 2),
        "on-policy, unequal lengths": (
            _geometric(frozen, RAGGED),
            sampled(lambda y: reward(y) / len(y), new, RAGGED),
        ),
        "off-policy, T = 2": (
            _geometric(old),
            gradient_of(sum(sp.sqrt(chance(old, y)) * sp.sqrt(chance(new, y)) * reward(y) for y in EVEN)),
        ),
    },
    near_misses=lambda: {
        "on-policy, ∇E[R]": (_geometric(frozen), expected_return()),
        "on-policy, unequal lengths, a multiple of ∇E[R]": (
            _geometric(frozen, RAGGED),
            expected_return(leaves=RAGGED) / 2,
        ),
        "off-policy, ∇E[R]/T": (_geometric(old), expected_return() / 2),
        "off-policy, the token level's gradient": (_geometric(old), sampled(token_reward) / 2),
        "off-policy, a baseline costs nothing": (_constant_reward(_geometric(old)), sp.S.Zero),
    },
)

CLAIMS = (
    SEQUENCE_LEVEL,
    GEOMETRIC_LEVEL,
)
