"""Token, prefix, sequence and geometric level: which objective each importance weight really ascends on sequences.

Policies, old policy, anchor and rewards are arbitrary at every state of the tree. Left-hand sides are what a trainer
computes: a sum over the tokens of samples of π_old. Right-hand sides are definitions: expectations over whole
sequences, or over histories.

Source: ours; the paper (arXiv 2505.17508) writes x for a whole sample and applies its formulas token by token.
"""

from collections.abc import Callable
from functools import cache, partial

import sympy as sp

from proofs.certificate import Claim
from proofs.definitions import jensen_shannon, k1, k3, kl, pearson_chi2
from proofs.expectations import Equation, gradient, pointwise, stop_gradient
from proofs.sequences import (
    EVEN,
    RAGGED,
    Leaves,
    Policy,
    Tokens,
    chance,
    expectation,
    frozen,
    new,
    old,
    over_histories,
    over_tokens,
    ratio,
    ref,
    reward,
    score,
    steps,
)
from proofs.symbols import beta, f, f_prime

_grad = partial(gradient, pointwise)
Loss = Callable[[Tokens], sp.Expr]
TokenTerm = Callable[[Tokens, int], sp.Expr]  # of one token after its history


def _sampled(loss: Loss, policy: Policy = old, leaves: Leaves = EVEN) -> sp.Expr:
    return _grad(expectation(policy, leaves, loss))


def _token_sum(term: TokenTerm) -> Loss:
    return lambda y: sum(term(history, token) for history, token in steps(y))


def _token_score(history: Tokens, token: int) -> sp.Expr:
    return score((*history, token)) - score(history)


def _return(policy: Policy = new, leaves: Leaves = EVEN) -> sp.Expr:
    return _grad(expectation(policy, leaves, reward))


def _sequence_kl(first: Policy, second: Policy, leaves: Leaves = EVEN) -> sp.Expr:
    return sum(kl(chance(first, leaf), chance(second, leaf)) for leaf in leaves)


def _state_divergence(divergence: Callable[[sp.Expr, sp.Expr], sp.Expr], first: Policy, second: Policy) -> Loss:
    return lambda history: over_tokens(lambda token: divergence(first(history, token), second(history, token)))


def _w(history: Tokens, token: int) -> sp.Expr:
    return new(history, token) / old(history, token)


def _u(history: Tokens, token: int) -> sp.Expr:
    return ref(history, token) / old(history, token)


def _v(history: Tokens, token: int) -> sp.Expr:
    return new(history, token) / ref(history, token)


# Token level: every token is a sample of its own.


@cache
def _q_old(tokens: Tokens) -> sp.Expr:
    """Return the expected reward when π_old continues after these tokens."""
    if tokens in EVEN:
        return reward(tokens)
    return over_tokens(lambda token: old(tokens, token) * _q_old((*tokens, token)))


def _frozen_history(history: Tokens) -> sp.Expr:
    gain = over_tokens(lambda token: new(history, token) * _q_old((*history, token)))
    return gain - beta * over_tokens(lambda token: ref(history, token) * f(_v(history, token)))


def _token_surrogate(y: Tokens) -> sp.Expr:
    return _token_sum(lambda h, a: -_w(h, a) * reward(y) + beta * _u(h, a) * f(_v(h, a)))(y)


def _token_reinforce(y: Tokens) -> sp.Expr:
    def term(h: Tokens, a: int) -> sp.Expr:
        weight = _w(h, a) * reward(y) - beta * _u(h, a) * _v(h, a) * f_prime(_v(h, a))
        return -stop_gradient(weight) * sp.log(new(h, a))

    return _token_sum(term)(y)


def _token_reward(y: Tokens) -> sp.Expr:
    return _token_sum(lambda h, a: _w(h, a) * reward(y))(y)


def _on_policy_reward(y: Tokens) -> sp.Expr:
    return _token_sum(lambda h, a: new(h, a) / frozen(h, a) * reward(y))(y)


def _token_reverse_kl(policy: Policy) -> Loss:
    return _token_sum(lambda h, a: new(h, a) / policy(h, a) * sp.log(_v(h, a)))


TOKEN_LEVEL = Claim(
    id="token_level",
    statement="the token sum's gradient is that of Σ_t E_{h∼π_old}[E_πθ[Q_old] − β D(h)], any f; on-policy ∇E[R]",
    source="ours; token level of arXiv 2505.17508, Algorithms 1, 2",
    identities=lambda: {
        **{
            f"{name}: frozen-history objective": (_sampled(loss), -_grad(over_histories(old, EVEN, _frozen_history)))
            for name, loss in {"surrogate": _token_surrogate, "REINFORCE": _token_reinforce}.items()
        },
        "reward, on-policy": (_sampled(_on_policy_reward, frozen), _return()),
    },
    near_misses=lambda: {
        "reward, off-policy: ∇E[R]": (_sampled(_token_reward), _return()),
        "histories of π_θ": (_sampled(_token_surrogate), -_grad(over_histories(new, EVEN, _frozen_history))),
        "reverse KL, on-policy: that of whole sequences": (
            _sampled(_token_reverse_kl(frozen), frozen),
            _grad(_sequence_kl(new, ref)),
        ),
        "reverse KL, off-policy: that of whole sequences": (
            _sampled(_token_reverse_kl(old)),
            _grad(_sequence_kl(new, ref)),
        ),
        "k2, on-policy: that of whole sequences": (
            _sampled(_token_sum(lambda h, a: sp.log(_v(h, a)) ** 2 / 2), frozen),
            _grad(_sequence_kl(new, ref)),
        ),
        "each token's k1 in its own reward, on-policy: that of whole sequences": (
            _sampled(_token_sum(lambda h, a: stop_gradient(sp.log(_v(h, a))) * sp.log(new(h, a))), frozen),
            _grad(_sequence_kl(new, ref)),
        ),
        "reverse KL to π_old: that of whole sequences": (
            _sampled(_token_sum(lambda h, a: _w(h, a) * sp.log(_w(h, a)))),
            _grad(_sequence_kl(new, old)),
        ),
    },
)

TOKEN_FORWARD_KL = Claim(
    id="token_forward_kl",
    statement="π_ref = π_old: the token sums of FKL and UFKL have the gradient of KL(π_old‖π_θ) of whole sequences",
    source="ours; token level of arXiv 2505.17508, Props 3.2, E.1",
    identities=lambda: {
        f"{name}, {where}": (_sampled(_token_sum(term), leaves=leaves), _grad(_sequence_kl(old, new, leaves)))
        for name, term in {
            "FKL": lambda h, a: -sp.log(_w(h, a)),
            "UFKL": lambda h, a: _w(h, a) - 1 - sp.log(_w(h, a)),
        }.items()
        for where, leaves in {"equal lengths": EVEN, "unequal lengths": RAGGED}.items()
    },
    near_misses=lambda: {
        "π_ref ≠ π_old": (
            _sampled(_token_sum(lambda h, a: -_u(h, a) * sp.log(_v(h, a)))),
            _grad(_sequence_kl(ref, new)),
        ),
        "per-sequence means, unequal lengths": (
            _sampled(lambda y: _token_sum(lambda h, a: -sp.log(_w(h, a)))(y) / len(y), leaves=RAGGED),
            _grad(_sequence_kl(old, new, RAGGED)),
        ),
        "URKL for UFKL": (
            _sampled(_token_sum(lambda h, a: _w(h, a) * sp.log(_w(h, a)) - _w(h, a))),
            _grad(_sequence_kl(new, old)),
        ),
    },
)


# Sequence level: the whole sequence is the sample x of the paper.


def _sequence_objective(leaves: Leaves) -> sp.Expr:
    penalty = sum(chance(ref, y) * f(ratio(new, ref, y)) for y in leaves)
    return expectation(new, leaves, reward) - beta * penalty


def _sequence_surrogate(y: Tokens) -> sp.Expr:
    return -ratio(new, old, y) * reward(y) + beta * ratio(ref, old, y) * f(ratio(new, ref, y))


def _sequence_weight(y: Tokens) -> sp.Expr:
    v = ratio(new, ref, y)
    return ratio(new, old, y) * reward(y) - beta * ratio(ref, old, y) * v * f_prime(v)


def _weighted_scores(y: Tokens) -> sp.Expr:
    return _sequence_weight(y) * _token_sum(_token_score)(y)


def _reverse(loss: Loss, leaves: Leaves = EVEN) -> Equation:
    return _sampled(loss, leaves=leaves), _grad(_sequence_kl(new, ref, leaves))


def _token_k3(y: Tokens) -> sp.Expr:
    return _token_sum(lambda h, a: k3(1 / _v(h, a)))(y)


def _token_k1(y: Tokens) -> sp.Expr:
    return _token_sum(lambda h, a: sp.log(_v(h, a)))(y)


SEQUENCE_LEVEL = Claim(
    id="sequence_level",
    statement="log-ratios summed first: weight(Πw_t, Πv_t)·Σ_t ∇log π_t is exact for J of sequences, any f and lengths",
    source="ours; arXiv 2505.17508, Props 3.2, 3.6, E.1, E.3 with x a sequence",
    identities=lambda: {
        **{
            f"{name}: {where}": equation
            for where, leaves in {"equal lengths": EVEN, "unequal lengths": RAGGED}.items()
            for name, equation in {
                "surrogate": (_sampled(_sequence_surrogate, leaves=leaves), -_grad(_sequence_objective(leaves))),
                "weight": (expectation(old, leaves, _weighted_scores), _grad(_sequence_objective(leaves))),
            }.items()
        },
        "Σ_t k1, sequence weight live: reverse KL": _reverse(lambda y: ratio(new, old, y) * _token_k1(y), RAGGED),
        "Σ_t k3, sequence weight live: reverse KL": _reverse(lambda y: ratio(new, old, y) * _token_k3(y), RAGGED),
    },
    near_misses=lambda: {
        "Σ_t k3, sequence weight detached: reverse KL": _reverse(
            lambda y: stop_gradient(ratio(new, old, y)) * _token_k3(y)
        ),
        "Σ_t k3, geometric weight: reverse KL": _reverse(lambda y: sp.sqrt(ratio(new, old, y)) * _token_k3(y)),
        "token sums": (_sampled(_token_surrogate), -_grad(_sequence_objective(EVEN))),
        "the last token's score": (
            expectation(old, EVEN, lambda y: _sequence_weight(y) * _token_score(*steps(y)[-1])),
            _grad(_sequence_objective(EVEN)),
        ),
        "divided by the length": (
            _sampled(lambda y: _sequence_surrogate(y) / len(y), leaves=RAGGED),
            -_grad(_sequence_objective(RAGGED)),
        ),
    },
)


# Prefix level: the weight of a token is that of its history and itself.


def _prefixes(y: Tokens) -> list[Tokens]:
    return [y[: t + 1] for t in range(len(y))]


def _log_v(prefix: Tokens) -> sp.Expr:
    return sp.log(_v(prefix[:-1], prefix[-1]))


def _prefix_term(weight: Callable[[Tokens], sp.Expr]) -> Loss:
    return lambda y: sum(weight(prefix) * _log_v(prefix) for prefix in _prefixes(y))


def _weight_to(prefix: Tokens) -> sp.Expr:
    return ratio(new, old, prefix)


def _detached_but_last(prefix: Tokens) -> sp.Expr:
    return stop_gradient(_weight_to(prefix[:-1])) * _w(prefix[:-1], prefix[-1])


def _kl_to_go(y: Tokens) -> sp.Expr:
    to_go = [sum(_weight_to(later) * _log_v(later) for later in _prefixes(y)[t:]) for t in range(len(y))]
    return sum(stop_gradient(k) * sp.log(new(*step)) for k, step in zip(to_go, steps(y), strict=True))


def _paid_at_each_step(weight: Callable[[Tokens, Tokens], sp.Expr]) -> Loss:
    return lambda y: sum(weight(prefix, y) * reward(prefix) for prefix in _prefixes(y))


def _paid_at_the_end(weight: Callable[[Tokens, Tokens], sp.Expr]) -> sp.Expr:
    return expectation(
        old,
        EVEN,
        lambda y: sum(weight(prefix, y) * reward(y) * _token_score(prefix[:-1], prefix[-1]) for prefix in _prefixes(y)),
    )


PREFIX_LEVEL = Claim(
    id="prefix_level",
    statement="Σ_t w_{1:t} log v_t, w_{1:t} live or with KL-to-go, has the gradient of whole sequences' KL(π_θ‖π_ref)",
    source="ours; per-decision importance sampling of Precup et al. 2000",
    identities=lambda: {
        "value": (expectation(old, EVEN, _prefix_term(_weight_to)), _sequence_kl(new, ref)),
        "live weight": _reverse(_prefix_term(_weight_to)),
        "live weight, unequal lengths": _reverse(_prefix_term(_weight_to), RAGGED),
        "KL-to-go": _reverse(_kl_to_go),
        "a reward paid at each step": (
            _sampled(_paid_at_each_step(lambda prefix, y: _weight_to(prefix))),
            _sampled(lambda y: sum(map(reward, _prefixes(y))), new),
        ),
        "a reward paid at the end needs w_{1:T}": (_paid_at_the_end(lambda prefix, y: _weight_to(y)), _return()),
    },
    near_misses=lambda: {
        "detached weight": _reverse(_prefix_term(lambda prefix: stop_gradient(_weight_to(prefix)))),
        "detached history": _reverse(_prefix_term(_detached_but_last)),
        "the token's own weight": _reverse(_prefix_term(lambda prefix: _w(prefix[:-1], prefix[-1]))),
        "the history's weight alone": _reverse(_prefix_term(lambda prefix: _weight_to(prefix[:-1]))),
        "no weight": _reverse(_prefix_term(lambda prefix: sp.S.One)),
        "a reward paid at the end with w_{1:t}": (_paid_at_the_end(lambda prefix, y: _weight_to(prefix)), _return()),
    },
)


def _forward(weight: Callable[[Tokens], sp.Expr], generator: Callable[[sp.Expr], sp.Expr]) -> Equation:
    def loss(y: Tokens) -> sp.Expr:
        return sum(weight(h) * _u(h, a) * generator(_v(h, a)) for h, a in steps(y))

    return _sampled(loss), _grad(_sequence_kl(ref, new))


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
            _grad(sum(pearson_chi2(chance(new, y), chance(ref, y)) for y in EVEN)),
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
    return whole, over_histories(by, leaves, _state_divergence(divergence, first, second))


def _to_go(start: int, leaves: Leaves = EVEN) -> sp.Expr:
    def value(y: Tokens) -> sp.Expr:
        terms = [_log_v(prefix) for prefix in _prefixes(y)]
        return sum(_token_score(h, a) * sum(terms[t + start :]) for t, (h, a) in enumerate(steps(y)))

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
            "∇KL(π_θ‖π_ref), KL-to-go": (_to_go(0, leaves), _grad(_sequence_kl(new, ref, leaves))),
        }.items()
    },
    near_misses=lambda: {
        "KL(π_θ‖π_ref), histories of π_ref": _chain(new, ref, kl, ref),
        "KL(π_ref‖π_θ), histories of π_θ": _chain(ref, new, kl, new),
        "χ², histories of π_θ": _chain(new, ref, pearson_chi2, new),
        "χ², histories of π_ref": _chain(new, ref, pearson_chi2, ref),
        "JS, histories of π_θ": _chain(new, ref, jensen_shannon, new),
        "JS, histories of π_ref": _chain(new, ref, jensen_shannon, ref),
        "KL from the next token on": (_to_go(1), _grad(_sequence_kl(new, ref))),
    },
)


# Geometric level: the geometric mean of the tokens' weights.


def _geometric(policy: Policy, leaves: Leaves = EVEN) -> sp.Expr:
    return _sampled(lambda y: ratio(new, policy, y) ** sp.Rational(1, len(y)) * reward(y), policy, leaves)


def _constant_reward(gradient_: sp.Expr) -> sp.Expr:
    return gradient_.xreplace({reward(y): sp.S.One for y in EVEN})


GEOMETRIC_LEVEL = Claim(
    id="geometric_level",
    statement="(Πw_t)^(1/T): on-policy ∇E[R/T]; off-policy biased: ∇Σ√(π_old π_θ)R at T = 2",
    source="ours; weight of Zheng et al. 2025 (GSPO)",
    identities=lambda: {
        "on-policy, T = 2": (_geometric(frozen), _return() / 2),
        "on-policy, unequal lengths": (
            _geometric(frozen, RAGGED),
            _sampled(lambda y: reward(y) / len(y), new, RAGGED),
        ),
        "off-policy, T = 2": (
            _geometric(old),
            _grad(sum(sp.sqrt(chance(old, y)) * sp.sqrt(chance(new, y)) * reward(y) for y in EVEN)),
        ),
    },
    near_misses=lambda: {
        "on-policy, ∇E[R]": (_geometric(frozen), _return()),
        "on-policy, unequal lengths, a multiple of ∇E[R]": (_geometric(frozen, RAGGED), _return(leaves=RAGGED) / 2),
        "off-policy, ∇E[R]/T": (_geometric(old), _return() / 2),
        "off-policy, the token level's gradient": (_geometric(old), _sampled(_token_reward) / 2),
        "off-policy, a baseline costs nothing": (_constant_reward(_geometric(old)), sp.S.Zero),
    },
)

CLAIMS = (
    TOKEN_LEVEL,
    TOKEN_FORWARD_KL,
    SEQUENCE_LEVEL,
    PREFIX_LEVEL,
    PREFIX_FORWARD_KL,
    CHAIN_RULE,
    GEOMETRIC_LEVEL,
)
