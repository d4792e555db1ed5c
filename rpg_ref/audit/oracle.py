"""Ground truth by enumeration: exact objectives of finite policies, in float64, each divergence from its definition.

A policy is a table of next-token log-probabilities, one row per state of a prefix tree; a bandit is a tree of horizon
1. This file imports nothing from the core: it is one of the roads that must meet it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rpg_ref.objective import GAINS, TERMS, Objective


@dataclass(frozen=True)
class PrefixTree:
    """Every response over a vocabulary up to a horizon, and the state in which each of its tokens is drawn.

    Attributes:
        vocabulary: number of tokens V.
        horizon: longest response T.
        tokens: [N, T], one row per response, 0 after its end.
        mask: [N, T], whether the response has a token there.
        state: [N, T], index of the prefix that precedes the token, 0 after the end.
        states: number of prefixes S at which a token is drawn.

    Source: PAPER §5.
    """

    vocabulary: int
    horizon: int
    tokens: Int[Tensor, "N T"]
    mask: Bool[Tensor, "N T"]
    state: Int[Tensor, "N T"]
    states: int


@cache
def prefix_tree(vocabulary: int, horizon: int, eos: int | None = None) -> PrefixTree:
    """Enumerate every response; token ``eos``, if given, ends one early.

    Args:
        vocabulary: number of tokens V ≥ 1.
        horizon: longest response T ≥ 1.
        eos: the token that ends a response, or None for responses of equal length.

    Returns:
        The tree, with Vᵀ responses when ``eos`` is None.

    Source: PAPER §5.
    """
    responses = list(_responses(vocabulary, horizon, eos, ()))
    index: dict[tuple[int, ...], int] = {}
    for r in responses:
        for t in range(len(r)):
            index.setdefault(r[:t], len(index))
    pad = [r + (0,) * (horizon - len(r)) for r in responses]
    state = [[index[r[:t]] if t < len(r) else 0 for t in range(horizon)] for r in responses]
    mask = [[t < len(r) for t in range(horizon)] for r in responses]
    return PrefixTree(vocabulary, horizon, torch.tensor(pad), torch.tensor(mask), torch.tensor(state), len(index))


def _responses(vocabulary: int, horizon: int, eos: int | None, prefix: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every response that continues a prefix, depth first."""
    for token in range(vocabulary):
        child = (*prefix, token)
        if token == eos or len(child) == horizon:
            yield child
        else:
            yield from _responses(vocabulary, horizon, eos, child)


def token_logp(tree: PrefixTree, table: Float[Tensor, "S V"]) -> Float[Tensor, "N T"]:
    """Return the log-probability of each response's tokens, 0 after its end.

    Args:
        tree: the tree.
        table: next-token log-probabilities, [S, V].

    Returns:
        [N, T].

    Source: the chain rule of probability.
    """
    return torch.where(tree.mask, table[tree.state, tree.tokens], 0.0)


def table_of(module: nn.Module, tree: PrefixTree, prompt: Int[Tensor, "P"]) -> Float[Tensor, "S V"]:
    """Return the table of a causal language model that answers ``prompt``, its logits cut to the tree's vocabulary.

    Args:
        module: called with input ids [N, P + T], returns an object with ``.logits`` [N, P + T, ≥ V].
        tree: the tree; its tokens are the module's ids.
        prompt: token ids before the response, at least one.

    Returns:
        Next-token log-probabilities [S, V], differentiable in the module's parameters.

    Source: the definition of an autoregressive policy.
    """
    ids = torch.cat([prompt.expand(len(tree.tokens), -1), tree.tokens], dim=1)
    logits = module(ids).logits[:, len(prompt) - 1 : -1, : tree.vocabulary]
    # Every response through a state gives the same logits there: keep one.
    places = torch.arange(int(tree.mask.sum()))
    first = torch.zeros(tree.states, dtype=torch.long).scatter(0, tree.state[tree.mask], places)
    rows: Tensor = logits[tree.mask][first].double().log_softmax(-1)
    return rows


Definition = Callable[[Float[Tensor, "*batch X"], Float[Tensor, "*batch X"]], Float[Tensor, "*batch"]]


def _kl(log_p: Tensor, log_r: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_r)).sum(-1)


def _ukl(log_p: Tensor, log_r: Tensor) -> Tensor:
    return _kl(log_p, log_r) + (log_r.exp() - log_p.exp()).sum(-1)


def _js(log_p: Tensor, log_r: Tensor) -> Tensor:
    log_m = ((log_p.exp() + log_r.exp()) / 2).log()
    return (_kl(log_p, log_m) + _kl(log_r, log_m)) / 2


# fmt: off
DEFINITIONS: dict[str, Definition] = {
    "fkl":      lambda log_p, log_r: _kl(log_r, log_p),
    "ufkl":     lambda log_p, log_r: _ukl(log_r, log_p),
    "rkl":      _kl,
    "urkl":     _ukl,
    "jeffreys": lambda log_p, log_r: _kl(log_p, log_r) + _kl(log_r, log_p),
    "js":       _js,
    "chi2":     lambda log_p, log_r: ((log_p.exp() - log_r.exp()) ** 2 / log_r.exp()).sum(-1),
}
"""D(p, r) of measures p = π_θ and r = π_ref of any mass, from log p and log r over all outcomes (the last axis).

Source: paper Defs 3.1 and 3.4 for ufkl and urkl; textbook definitions for the others.
"""
# fmt: on


class Policies(NamedTuple):
    """Tables of log-probabilities over the same outcomes: the policy, the sampler and the reference."""

    current: Float[Tensor, "*batch X"]
    old: Float[Tensor, "*batch X"]
    ref: Float[Tensor, "*batch X"]


# fmt: off
TERM_VALUES: dict[str, Callable[[Policies, Tensor], Tensor]] = {
    "reward":         lambda pi, R: (pi.current.exp() * R).sum(-1),
    "entropy":        lambda pi, R: -(pi.current.exp() * pi.current).sum(-1),
    "reverse_kl":     lambda pi, R: DEFINITIONS["rkl"](pi.current, pi.ref),
    "forward_kl":     lambda pi, R: DEFINITIONS["fkl"](pi.current, pi.ref),
    "reverse_kl_old": lambda pi, R: DEFINITIONS["rkl"](pi.current, pi.old),
    "forward_kl_old": lambda pi, R: DEFINITIONS["fkl"](pi.current, pi.old),
}
# fmt: on


def _from_reference(definition: Definition, policies: Policies, reward: Tensor) -> Tensor:
    return definition(policies.current, policies.ref)


# A term that is named like a divergence is that divergence from the reference.
TERM_VALUES |= {name: partial(_from_reference, DEFINITIONS[name]) for name in TERMS if name in DEFINITIONS}


def continuation_value(
    tree: PrefixTree, old: Float[Tensor, "S V"], reward: Float[Tensor, "N"]
) -> tuple[Float[Tensor, "S"], Float[Tensor, "S V"]]:
    """Return how likely π_old reaches each state, and Q_old(state, token), the expected reward if π_old continues.

    Args:
        tree: the tree.
        old: π_old's table, [S, V].
        reward: of each response, [N].

    Returns:
        Reach [S] and Q_old [S, V].

    Source: PAPER §5, the frozen-history objective.
    """
    probability = token_logp(tree, old).sum(-1).exp()
    through = torch.zeros_like(old)
    reached = torch.zeros_like(old)
    for t in range(tree.horizon):
        at = tree.mask[:, t]
        where = (tree.state[at, t], tree.tokens[at, t])
        through = through.index_put(where, (probability * reward)[at], accumulate=True)
        reached = reached.index_put(where, probability[at], accumulate=True)
    return reached.sum(-1), through / reached


def value(
    objective: Objective,
    tree: PrefixTree,
    policies: Policies,
    reward: Float[Tensor, "N"],
) -> Float[Tensor, ""]:
    """J, exactly: summed over all responses at sequence level, over all states that π_old reaches at token level.

    Args:
        objective: terms and level.
        tree: the tree.
        policies: tables [S, V]; differentiate the result in ``current``.
        reward: of each response, [N] (an advantage is as good: baselines do not change the gradient).

    Returns:
        A scalar, to be maximised.

    Source: paper §2 (sequence); PAPER §5 (token).
    """
    if objective.level == "sequence":
        outcomes = Policies(*(token_logp(tree, table).sum(-1) for table in policies))
        reach, gain = torch.ones(()), reward
    else:
        outcomes = policies
        reach, gain = continuation_value(tree, policies.old, reward)
    total = torch.zeros((), dtype=policies.current.dtype)
    for name, c in objective.terms.items():
        sign = 1 if name in GAINS else -1
        total = total + sign * c * (reach * TERM_VALUES[name](outcomes, gain)).sum()
    return total


def gradient(
    objective: Objective, tree: PrefixTree, policies: Policies, reward: Float[Tensor, "N"], parameters: list[Tensor]
) -> Float[Tensor, "K"]:
    """∇J with respect to the parameters behind ``policies.current``, flattened into one vector.

    Args:
        objective: terms and level.
        tree: the tree.
        policies: tables [S, V]; ``current`` depends on the parameters.
        reward: of each response, [N].
        parameters: tensors that require a gradient, K entries in all.

    Returns:
        [K]; a parameter that J does not touch has gradient 0.

    Source: automatic differentiation of ``value``.
    """
    return flat_gradient(value(objective, tree, policies, reward), parameters)


def flat_gradient(scalar: Float[Tensor, ""], parameters: list[Tensor]) -> Float[Tensor, "K"]:
    """Return the gradient of a scalar, flattened into one float64 vector, 0 where the scalar does not depend.

    Args:
        scalar: what to differentiate.
        parameters: tensors that require a gradient, K entries in all.

    Returns:
        [K].

    Source: automatic differentiation.
    """
    if not scalar.requires_grad:
        return torch.cat([torch.zeros(p.numel(), dtype=torch.float64) for p in parameters])
    parts = torch.autograd.grad(scalar, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([part.double().cpu().flatten() for part in parts])
