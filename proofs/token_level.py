"""Token level: every token is a sample of its own, and the objective is that of frozen histories.

Policies, old policy, anchor and rewards are arbitrary at every state of the tree. Left-hand sides are what a trainer
computes, sums over samples of π_old; right-hand sides are definitions.

Source: ours; the paper (arXiv 2505.17508) writes x for a whole sample and applies its formulas token by token.
"""

from functools import cache

import sympy as sp

from proofs.certificate import Claim
from proofs.expectations import stop_gradient
from proofs.sequences import (
    EVEN,
    RAGGED,
    Loss,
    Policy,
    Tokens,
    expected_return,
    frozen,
    gradient_of,
    new,
    old,
    over_histories,
    over_tokens,
    ref,
    reward,
    sampled,
    sequence_kl,
    token_sum,
    u_at,
    v_at,
    w_at,
)
from proofs.symbols import beta, f, f_prime


@cache
def _q_old(tokens: Tokens) -> sp.Expr:
    """Return the expected reward when π_old continues after these tokens."""
    if tokens in EVEN:
        return reward(tokens)
    return over_tokens(lambda token: old(tokens, token) * _q_old((*tokens, token)))


def _frozen_history(history: Tokens) -> sp.Expr:
    gain = over_tokens(lambda token: new(history, token) * _q_old((*history, token)))
    return gain - beta * over_tokens(lambda token: ref(history, token) * f(v_at(history, token)))


def token_surrogate(y: Tokens) -> sp.Expr:
    """Return Σ_t −w_t R + β u_t f(v_t), the surrogate. Source: ours; token level of arXiv 2505.17508."""
    return token_sum(lambda h, a: -w_at(h, a) * reward(y) + beta * u_at(h, a) * f(v_at(h, a)))(y)


def _token_reinforce(y: Tokens) -> sp.Expr:
    def term(h: Tokens, a: int) -> sp.Expr:
        weight = w_at(h, a) * reward(y) - beta * u_at(h, a) * v_at(h, a) * f_prime(v_at(h, a))
        return -stop_gradient(weight) * sp.log(new(h, a))

    return token_sum(term)(y)


def token_reward(y: Tokens) -> sp.Expr:
    """Return Σ_t w_t R, the surrogate's reward term. Source: ours; token level of arXiv 2505.17508."""
    return token_sum(lambda h, a: w_at(h, a) * reward(y))(y)


def _on_policy_reward(y: Tokens) -> sp.Expr:
    return token_sum(lambda h, a: new(h, a) / frozen(h, a) * reward(y))(y)


def _token_reverse_kl(policy: Policy) -> Loss:
    return token_sum(lambda h, a: new(h, a) / policy(h, a) * sp.log(v_at(h, a)))


TOKEN_LEVEL = Claim(
    id="token_level",
    statement="the token sum's gradient is that of Σ_t E_{h∼π_old}[E_πθ[Q_old] − β D(h)], any f; on-policy ∇E[R]",
    source="ours; token level of arXiv 2505.17508, Algorithms 1, 2",
    identities=lambda: {
        **{
            f"{name}: frozen-history objective": (
                sampled(loss),
                -gradient_of(over_histories(old, EVEN, _frozen_history)),
            )
            for name, loss in {"surrogate": token_surrogate, "REINFORCE": _token_reinforce}.items()
        },
        "reward, on-policy": (sampled(_on_policy_reward, frozen), expected_return()),
    },
    near_misses=lambda: {
        "reward, off-policy: ∇E[R]": (sampled(token_reward), expected_return()),
        "histories of π_θ": (sampled(token_surrogate), -gradient_of(over_histories(new, EVEN, _frozen_history))),
        "reverse KL, on-policy: that of whole sequences": (
            sampled(_token_reverse_kl(frozen), frozen),
            gradient_of(sequence_kl(new, ref)),
        ),
        "reverse KL, off-policy: that of whole sequences": (
            sampled(_token_reverse_kl(old)),
            gradient_of(sequence_kl(new, ref)),
        ),
        "k2, on-policy: that of whole sequences": (
            sampled(token_sum(lambda h, a: sp.log(v_at(h, a)) ** 2 / 2), frozen),
            gradient_of(sequence_kl(new, ref)),
        ),
        "each token's k1 in its own reward, on-policy: that of whole sequences": (
            sampled(token_sum(lambda h, a: stop_gradient(sp.log(v_at(h, a))) * sp.log(new(h, a))), frozen),
            gradient_of(sequence_kl(new, ref)),
        ),
        "reverse KL to π_old: that of whole sequences": (
            sampled(token_sum(lambda h, a: w_at(h, a) * sp.log(w_at(h, a)))),
            gradient_of(sequence_kl(new, old)),
        ),
    },
)

TOKEN_FORWARD_KL = Claim(
    id="token_forward_kl",
    statement="π_ref = π_old: the token sums of FKL and UFKL have the gradient of KL(π_old‖π_θ) of whole sequences",
    source="ours; token level of arXiv 2505.17508, Props 3.2, E.1",
    identities=lambda: {
        f"{name}, {where}": (sampled(token_sum(term), leaves=leaves), gradient_of(sequence_kl(old, new, leaves)))
        for name, term in {
            "FKL": lambda h, a: -sp.log(w_at(h, a)),
            "UFKL": lambda h, a: w_at(h, a) - 1 - sp.log(w_at(h, a)),
        }.items()
        for where, leaves in {"equal lengths": EVEN, "unequal lengths": RAGGED}.items()
    },
    near_misses=lambda: {
        "π_ref ≠ π_old": (
            sampled(token_sum(lambda h, a: -u_at(h, a) * sp.log(v_at(h, a)))),
            gradient_of(sequence_kl(ref, new)),
        ),
        "per-sequence means, unequal lengths": (
            sampled(lambda y: token_sum(lambda h, a: -sp.log(w_at(h, a)))(y) / len(y), leaves=RAGGED),
            gradient_of(sequence_kl(old, new, RAGGED)),
        ),
        "URKL for UFKL": (
            sampled(token_sum(lambda h, a: w_at(h, a) * sp.log(w_at(h, a)) - w_at(h, a))),
            gradient_of(sequence_kl(new, old)),
        ),
    },
)

CLAIMS = (
    TOKEN_LEVEL,
    TOKEN_FORWARD_KL,
)
