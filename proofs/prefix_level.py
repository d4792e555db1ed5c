"""Prefix level: the weight of a token is that of its history and itself; and the chain rules it rests on.

Policies, old policy, anchor and rewards are arbitrary at every state of the tree. Left-hand sides are what a trainer
computes, sums over samples of π_old; right-hand sides are definitions.

Source: ours; the paper (arXiv 2505.17508) writes x for a whole sample and applies its formulas token by token.
"""

from collections.abc import Callable
from functools import partial

import sympy as sp

from proofs.certificate import Claim
from proofs.definitions import jensen_shannon, k1, k3, kl, pearson_chi2
from proofs.expectations import Equation, stop_gradient
from proofs.sequences import (
    EVEN,
    RAGGED,
    Leaves,
    Loss,
    Policy,
    Tokens,
    chance,
    expectation,
    expected_return,
    gradient_of,
    new,
    old,
    over_histories,
    ratio,
    ref,
    reverse_kl_equation,
    reward,
    sampled,
    sequence_kl,
    state_divergence,
    steps,
    token_score,
    u_at,
    v_at,
    w_at,
)


def _prefixes(y: Tokens) -> list[Tokens]:
    return [y[: t + 1] for t in range(len(y))]


def _log_v(prefix: Tokens) -> sp.Expr:
    return sp.log(v_at(prefix[:-1], prefix[-1]))


def _prefix_term(weight: Callable[[Tokens], sp.Expr]) -> Loss:
    return lambda y: sum(weight(prefix) * _log_v(prefix) for prefix in _prefixes(y))


def _weight_to(prefix: Tokens) -> sp.Expr:
    return ratio(new, old, prefix)


def _detached_but_last(prefix: Tokens) -> sp.Expr:
    return stop_gradient(_weight_to(prefix[:-1])) * w_at(prefix[:-1], prefix[-1])


def _kl_to_go(y: Tokens) -> sp.Expr:
    to_go = [sum(_weight_to(later) * _log_v(later) for later in _prefixes(y)[t:]) for t in range(len(y))]
    return sum(stop_gradient(k) * sp.log(new(*step)) for k, step in zip(to_go, steps(y), strict=True))


def _paid_at_each_step(weight: Callable[[Tokens, Tokens], sp.Expr]) -> Loss:
    return lambda y: sum(weight(prefix, y) * reward(prefix) for prefix in _prefixes(y))


def _paid_at_the_end(weight: Callable[[Tokens, Tokens], sp.Expr]) -> sp.Expr:
    return expectation(
        old,
        EVEN,
        lambda y: sum(weight(prefix, y) * reward(y) * token_score(prefix[:-1], prefix[-1]) for prefix in _prefixes(y)),
    )


PREFIX_LEVEL = Claim(
    id="prefix_level",
    statement="Σ_t w_{1:t} log v_t, w_{1:t} live or with KL-to-go, has the gradient of whole sequences' KL(π_θ‖π_ref)",
    source="ours; per-decision importance sampling of Precup et al. 2000",
    identities=lambda: {
        "value": (expectation(old, EVEN, _prefix_term(_weight_to)), sequence_kl(new, ref)),
        "live weight": reverse_kl_equation(_prefix_term(_weight_to)),
        "live weight, unequal lengths": reverse_kl_equation(_prefix_term(_weight_to), RAGGED),
        "KL-to-go": reverse_kl_equation(_kl_to_go),
        "a reward paid at each step": (
            sampled(_paid_at_each_step(lambda prefix, y: _weight_to(prefix))),
            sampled(lambda y: sum(map(reward, _prefixes(y))), new),
        ),
        "a reward paid at the end needs w_{1:T}": (
            _paid_at_the_end(lambda prefix, y: _weight_to(y)),
            expected_return(),
        ),
    },
    near_misses=lambda: {
        "detached weight": reverse_kl_equation(_prefix_term(lambda prefix: stop_gradient(_weight_to(prefix)))),
        "detached history": reverse_kl_equation(_prefix_term(_detached_but_last)),
        "the token's own weight": reverse_kl_equation(_prefix_term(lambda prefix: w_at(prefix[:-1], prefix[-1]))),
        "the history's weight alone": reverse_kl_equation(_prefix_term(lambda prefix: _weight_to(prefix[:-1]))),
        "no weight": reverse_kl_equation(_prefix_term(lambda prefix: sp.S.One)),
        "a reward paid at the end with w_{1:t}": (
            _paid_at_the_end(lambda prefix, y: _weight_to(prefix)),
            expected_return(),
        ),
    },
)


def _forward(weight: Callable[[Tokens], sp.Expr], generator: Callable[[sp.Expr], sp.Expr]) -> Equation:
    def loss(y: Tokens) -> sp.Expr:
        return sum(weight(h) * u_at(h, a) * generator(v_at(h, a)) for h, a in steps(y))

    return sampled(loss), gradient_of(sequence_kl(ref, new))


PREFIX_FORWARD_KL = Claim(
    id="prefix_forward_kl",
    statement="Σ_t u_{<t}·u_t f(v_t), f of FKL or UFKL, has the gradient of KL(π_ref‖π_θ) of whole sequences",
    source="ours",
    identities=lambda: {
        "FKL": _forward(partial(ratio, ref, old), k1),
        "UFKL": _forward(partial(ratio, ref, old), k3),
    },
    near_misses=lambda: {
        "history weighted by w": _forward(partial(ratio, new, old), k1),
        "history weighted by SG(w)": _forward(lambda h: stop_gradient(ratio(new, old, h)), k1),
        "no history weight": _forward(lambda h: sp.S.One, k1),
        "χ²": (
            _forward(partial(ratio, ref, old), lambda v: (v - 1) ** 2)[0],
            gradient_of(sum(pearson_chi2(chance(new, y), chance(ref, y)) for y in EVEN)),
        ),
    },
)


def _chain(
    first: Policy,
    second: Policy,
    divergence: Callable[[sp.Expr, sp.Expr], sp.Expr],
    by: Policy,
    leaves: Leaves = EVEN,
) -> Equation:
    whole = sum(divergence(chance(first, y), chance(second, y)) for y in leaves)
    return whole, over_histories(by, leaves, state_divergence(divergence, first, second))


def _to_go(start: int, leaves: Leaves = EVEN) -> sp.Expr:
    def value(y: Tokens) -> sp.Expr:
        terms = [_log_v(prefix) for prefix in _prefixes(y)]
        return sum(token_score(h, a) * sum(terms[t + start :]) for t, (h, a) in enumerate(steps(y)))

    return expectation(new, leaves, value)


CHAIN_RULE = Claim(
    id="chain_rule",
    statement="KL(p‖r) = Σ_t E_{h∼p}KL_t, gradient Σ_t ∇log p_t Σ_{s≥t} log v_s; KL(r‖p) = Σ_t E_{h∼r}KL_t; not χ², JS",
    source="ours; Cover and Thomas 2006, Thm 2.5.3",
    identities=lambda: {
        f"{name}, {where}": equation
        for where, leaves in {"equal lengths": EVEN, "unequal lengths": RAGGED}.items()
        for name, equation in {
            "KL(π_θ‖π_ref), histories of π_θ": _chain(new, ref, kl, new, leaves),
            "KL(π_ref‖π_θ), histories of π_ref": _chain(ref, new, kl, ref, leaves),
            "∇KL(π_θ‖π_ref), KL-to-go": (_to_go(0, leaves), gradient_of(sequence_kl(new, ref, leaves))),
        }.items()
    },
    near_misses=lambda: {
        "KL(π_θ‖π_ref), histories of π_ref": _chain(new, ref, kl, ref),
        "KL(π_ref‖π_θ), histories of π_θ": _chain(ref, new, kl, new),
        "χ², histories of π_θ": _chain(new, ref, pearson_chi2, new),
        "χ², histories of π_ref": _chain(new, ref, pearson_chi2, ref),
        "JS, histories of π_θ": _chain(new, ref, jensen_shannon, new),
        "JS, histories of π_ref": _chain(new, ref, jensen_shannon, ref),
        "KL from the next token on": (_to_go(1), gradient_of(sequence_kl(new, ref))),
    },
)

CLAIMS = (
    PREFIX_LEVEL,
    PREFIX_FORWARD_KL,
    CHAIN_RULE,
)
