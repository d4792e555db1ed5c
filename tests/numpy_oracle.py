"""The second oracle: NumPy alone, by recursion over prefixes, differentiated by complex steps.

It shares no code with rpg_ref. A complex step, Im J(θ + ih)/h with h = 1e-100, has no cancellation: it is the
derivative to rounding. Logits are [S, V] in the order in which ``prefixes`` visits the states (depth first).
"""

from collections.abc import Callable, Iterator

import numpy as np
from divergence_facts import FACTS

Array = np.ndarray
STEP = 1e-100


def prefixes(vocabulary: int, horizon: int, eos: int | None, prefix: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Every prefix at which a token is drawn, depth first."""
    yield prefix
    for token in range(vocabulary):
        if token != eos and len(prefix) + 1 < horizon:
            yield from prefixes(vocabulary, horizon, eos, (*prefix, token))


def responses(
    vocabulary: int, horizon: int, eos: int | None, prefix: tuple[int, ...] = ()
) -> Iterator[tuple[int, ...]]:
    """Every response, depth first."""
    for token in range(vocabulary):
        child = (*prefix, token)
        if token == eos or len(child) == horizon:
            yield child
        else:
            yield from responses(vocabulary, horizon, eos, child)


def softmax(logits: Array) -> Array:
    """Probabilities over the last axis; analytic, so that complex steps pass through."""
    e = np.exp(logits - logits.real.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


DIVERGENCE: dict[str, Callable[[Array, Array], Array]] = {name: facts.definition for name, facts in FACTS.items()}
"""D(p, r) of measures p (the policy) and r (the reference), as its definition is printed."""


def gradient(J: Callable[[Array], Array], theta: Array) -> Array:
    """∇J by one complex step a parameter."""
    g = np.empty(theta.shape)
    for k in np.ndindex(theta.shape):
        shifted = theta.astype(complex)
        shifted[k] += 1j * STEP
        g[k] = np.imag(J(shifted)) / STEP
    return g


def bandit_objective(name: str, beta: float, reward: Array, ref: Array) -> Callable[[Array], Array]:
    """J(θ) = Σ p R − β D(p, r) of one state; ``ref`` is a measure of any mass, [V]."""

    def J(logits: Array) -> Array:
        p = softmax(logits)
        return np.sum(p * reward) - beta * DIVERGENCE[name](p, ref)

    return J


def tree_objective(
    name: str, beta: float, reward: Array, old: Array, ref: Array, shape: tuple[int, int, int | None], level: str
) -> Callable[[Array], Array]:
    """J(θ) of an autoregressive policy, θ = logits [S, V], at token (frozen history) or sequence level.

    ``reward`` [N] is in the order of ``responses``; ``old`` and ``ref`` are next-token probabilities [S, V].
    """
    states = {prefix: s for s, prefix in enumerate(prefixes(*shape))}
    ends = {response: reward[n] for n, response in enumerate(responses(*shape))}

    def walk(response: tuple[int, ...], table: Array) -> Array:
        out = np.ones((), dtype=table.dtype)
        for t, token in enumerate(response):
            out = out * table[states[response[:t]], token]
        return out

    def old_value(prefix: tuple[int, ...]) -> float:
        if prefix in ends:
            return ends[prefix]
        return sum(old[states[prefix], y] * old_value((*prefix, y)) for y in range(shape[0]))

    def sequence(logits: Array) -> Array:
        p, r = (np.array([walk(y, table) for y in ends]) for table in (softmax(logits), ref))
        return np.sum(p * np.array(list(ends.values()))) - beta * DIVERGENCE[name](p, r)

    q_old = {h: np.array([old_value((*h, y)) for y in range(shape[0])]) for h in states}
    reach = {h: walk(h, old) for h in states}

    def token(logits: Array) -> Array:
        table = softmax(logits)
        return sum(
            reach[h] * (np.sum(table[s] * q_old[h]) - beta * DIVERGENCE[name](table[s], ref[s]))
            for h, s in states.items()
        )

    return {"sequence": sequence, "token": token}[level]
