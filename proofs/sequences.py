"""Sequences of tokens: a small tree whose every state has arbitrary smooth probabilities, and sums over its leaves.

A sequence is a tuple of tokens, a history a shorter one. A policy gives each token its probability after each
history. In `EVEN` every sequence has two tokens; in `RAGGED` they have one, two or three.

Source: arXiv 2505.17508, §2 (a response is a sequence of tokens); the levels are ours.
"""

from collections.abc import Callable
from math import prod

import sympy as sp

from proofs.definitions import kl
from proofs.expectations import Equation, gradient, pointwise, stop_gradient
from proofs.symbols import theta

Tokens = tuple[int, ...]
Policy = Callable[[Tokens, int], sp.Expr]  # the probability of a token after a history
Leaves = tuple[Tokens, ...]
Loss = Callable[[Tokens], sp.Expr]
TokenTerm = Callable[[Tokens, int], sp.Expr]  # of one token after its history

EVEN: Leaves = ((0, 0), (0, 1), (1, 0), (1, 1))
RAGGED: Leaves = ((0,), (1, 0), (1, 1, 0), (1, 1, 1))


def _probability(odds: sp.Expr, token: int) -> sp.Expr:
    return (odds, sp.S.One)[token] / (odds + 1)


def _name(kind: str, tokens: Tokens) -> str:
    return "_".join((kind, *map(str, tokens)))


def new(history: Tokens, token: int) -> sp.Expr:
    """Return π_θ(token|history), by its odds a(θ), any smooth positive function. Source: arXiv 2505.17508, §2."""
    return _probability(sp.Function(_name("a", history), positive=True)(theta), token)


def old(history: Tokens, token: int) -> sp.Expr:
    """Return π_old(token|history). Source: arXiv 2505.17508, §2."""
    return _probability(sp.Symbol(_name("b", history), positive=True), token)


def ref(history: Tokens, token: int) -> sp.Expr:
    """Return π_ref(token|history). Source: arXiv 2505.17508, §2."""
    return _probability(sp.Symbol(_name("c", history), positive=True), token)


def frozen(history: Tokens, token: int) -> sp.Expr:
    """Return SG(π_θ(token|history)): the density of on-policy samples. Source: arXiv 2505.17508, §4."""
    return stop_gradient(new(history, token))


def reward(tokens: Tokens) -> sp.Expr:
    """Return R of a sequence, or of a history where each step is paid. Source: arXiv 2505.17508, §2."""
    return sp.Symbol(_name("R", tokens), real=True)


def steps(sequence: Tokens) -> list[tuple[Tokens, int]]:
    """Return each history of the sequence with the token that follows it. Source: definition."""
    return [(sequence[:t], sequence[t]) for t in range(len(sequence))]


def histories(leaves: Leaves) -> list[Tokens]:
    """Return every state at which a token is chosen, the empty history first. Source: definition."""
    return sorted({history for leaf in leaves for history, _ in steps(leaf)})


def chance(policy: Policy, tokens: Tokens) -> sp.Expr:
    """Return the probability of a sequence or a history: the product of its steps. Source: the chain rule."""
    return prod((policy(history, token) for history, token in steps(tokens)), start=sp.S.One)


def score(tokens: Tokens) -> sp.Expr:
    """Return ∇log π_θ of the whole. Source: arXiv 2505.17508, §2."""
    return sp.log(chance(new, tokens)).diff(theta)


def ratio(above: Policy, below: Policy, tokens: Tokens) -> sp.Expr:
    """Return the ratio of two policies over a sequence or a history. Source: arXiv 2505.17508, §2."""
    return chance(above, tokens) / chance(below, tokens)


def expectation(policy: Policy, leaves: Leaves, value: Callable[[Tokens], sp.Expr]) -> sp.Expr:
    """Return the sum over sequences of probability times value. Source: definition."""
    return sum((chance(policy, leaf) * value(leaf) for leaf in leaves), sp.S.Zero)


def over_histories(policy: Policy, leaves: Leaves, value: Callable[[Tokens], sp.Expr]) -> sp.Expr:
    """Return Σ_t of the expectation, over histories that the policy wrote, of a value at each. Source: definition."""
    return sum((chance(policy, history) * value(history) for history in histories(leaves)), sp.S.Zero)


def over_tokens(value: Callable[[int], sp.Expr]) -> sp.Expr:
    """Return the sum over the two tokens that may follow. Source: definition."""
    return value(0) + value(1)


def gradient_of(value: sp.Expr) -> sp.Expr:
    """Return ∇θ with the frozen copies set to θ afterwards. Source: arXiv 2505.17508, §4."""
    return gradient(pointwise, value)


def sampled(loss: Loss, policy: Policy = old, leaves: Leaves = EVEN) -> sp.Expr:
    """Return ∇θ of the expected loss over samples of a policy. Source: arXiv 2505.17508, §2, for a sequence."""
    return gradient_of(expectation(policy, leaves, loss))


def token_sum(term: TokenTerm) -> Loss:
    """Return the loss that adds a term at every token of a sequence. Source: arXiv 2505.17508, §2, for a sequence."""
    return lambda y: sum(term(history, token) for history, token in steps(y))


def token_score(history: Tokens, token: int) -> sp.Expr:
    """Return ∇log π_θ of one token after its history. Source: arXiv 2505.17508, §2, for a sequence."""
    return score((*history, token)) - score(history)


def expected_return(policy: Policy = new, leaves: Leaves = EVEN) -> sp.Expr:
    """Return ∇θ of the expected reward of whole sequences. Source: arXiv 2505.17508, §2, for a sequence."""
    return gradient_of(expectation(policy, leaves, reward))


def sequence_kl(first: Policy, second: Policy, leaves: Leaves = EVEN) -> sp.Expr:
    """Return KL of two policies over whole sequences. Source: arXiv 2505.17508, §2, for a sequence."""
    return sum(kl(chance(first, leaf), chance(second, leaf)) for leaf in leaves)


def reverse_kl_equation(loss: Loss, leaves: Leaves = EVEN) -> Equation:
    """Return ∇θ of the sampled loss beside that of KL(π_θ‖π_ref) of whole sequences. Source: ours."""
    return sampled(loss, leaves=leaves), gradient_of(sequence_kl(new, ref, leaves))


def state_divergence(divergence: Callable[[sp.Expr, sp.Expr], sp.Expr], first: Policy, second: Policy) -> Loss:
    """Return the divergence of two policies' next tokens, at each history. Source: arXiv 2505.17508, §2."""
    return lambda history: over_tokens(lambda token: divergence(first(history, token), second(history, token)))


def w_at(history: Tokens, token: int) -> sp.Expr:
    """Return w of one token after its history. Source: arXiv 2505.17508, §2, for a sequence."""
    return new(history, token) / old(history, token)


def u_at(history: Tokens, token: int) -> sp.Expr:
    """Return u of one token after its history. Source: arXiv 2505.17508, §2, for a sequence."""
    return ref(history, token) / old(history, token)


def v_at(history: Tokens, token: int) -> sp.Expr:
    """Return v of one token after its history. Source: arXiv 2505.17508, §2, for a sequence."""
    return new(history, token) / ref(history, token)
