"""Stale samplers: several versions draw the tokens of a response; every response and every switch is enumerated."""

import dataclasses
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy_oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy_oracle import softmax
from strategies import Tree, chain_names, floats, share, trees

from rpg_ref import RECIPES, differentiable_loss
from rpg_ref.audit import oracle

BETA = 0.3
DEEP = [(3, 3, 1), (2, 4, 0)]


class Process(NamedTuple):
    """Who draws: next-token probabilities [V, S, A] of each version, and the chance [V, S, V] of the next version."""

    versions: np.ndarray
    switch: np.ndarray


class Rollouts(NamedTuple):
    """Every response with every course of versions: its chance [M], which response it is [M], the versions [M, T]."""

    chance: np.ndarray
    response: np.ndarray
    version: np.ndarray


def drawn(shape, seed=0, count=3, spread=1.0):
    """A tree, and a process whose versions never go back; a switch depends on the history and on the version."""
    rng = np.random.default_rng(seed)
    states, size = len(list(numpy_oracle.prefixes(*shape))), len(list(numpy_oracle.responses(*shape)))
    tree = Tree(shape, *(spread * rng.normal(size=(3, states, shape[0]))), rng.normal(size=size))
    return tree, process(rng.normal(size=(count, states, shape[0])), rng.uniform(size=(count, states, count)))


def process(logits, switch):
    forward = np.triu(np.ones((len(logits), len(logits))))[:, None]
    chances = (switch + 0.1) * forward
    return Process(softmax(logits), chances / chances.sum(-1, keepdims=True))


def rollouts(tree: Tree, drawn_by: Process) -> Rollouts:
    """By recursion: a version is chosen, then it draws a token."""
    states = {prefix: s for s, prefix in enumerate(numpy_oracle.prefixes(*tree.shape))}
    order = {response: n for n, response in enumerate(numpy_oracle.responses(*tree.shape))}
    found = []

    def walk(prefix, versions, chance):
        if prefix in order:
            padding = (0,) * (tree.shape[1] - len(prefix))
            found.append((chance, order[prefix], versions + padding))
            return
        s = states[prefix]
        for v, likely in enumerate(drawn_by.switch[versions[-1] if versions else 0, s]):
            for token in range(tree.shape[0]):
                if likely:
                    walk((*prefix, token), (*versions, v), chance * likely * drawn_by.versions[v, s, token])

    walk((), (), 1.0)
    chances, response, version = zip(*found, strict=True)
    return Rollouts(np.array(chances), np.array(response), np.array(version))


def frozen_history(tree: Tree, drawn_by: Process, name: str):
    """The frozen-history objective of the process: its states are a history and the version that draws next."""
    states = {prefix: s for s, prefix in enumerate(numpy_oracle.prefixes(*tree.shape))}
    ends = dict(zip(numpy_oracle.responses(*tree.shape), tree.reward, strict=True))
    count = len(drawn_by.versions)

    def worth(prefix, v):
        if prefix in ends:
            return ends[prefix]
        s, chances = states[prefix], drawn_by.switch[v, states[prefix]]
        return sum(chances[n] * drawn_by.versions[n, s] @ gain(prefix, n) for n in range(count) if chances[n])

    def gain(prefix, v):
        return np.array([worth((*prefix, token), v) for token in range(tree.shape[0])])

    def reach(prefix, v, chance, found):
        if prefix in states:
            s = states[prefix]
            for n in range(count):
                here = chance * drawn_by.switch[v, s, n]
                if here:
                    found.append((s, here, gain(prefix, n)))
                    for token in range(tree.shape[0]):
                        reach((*prefix, token), n, here * drawn_by.versions[n, s, token], found)
        return found

    visited, ref = reach((), 0, 1.0, []), softmax(tree.ref)

    def J(logits):
        table = softmax(logits)
        penalty = [numpy_oracle.DIVERGENCE[name](table[s], ref[s]) for s in range(len(table))]
        return sum(chance * (table[s] @ value - BETA * penalty[s]) for s, chance, value in visited)

    return J


def of_responses(tree: Tree, name: str):
    tables = softmax(tree.old), softmax(tree.ref), tree.shape, "sequence"
    return numpy_oracle.tree_objective(name, BETA, tree.reward, *tables)


def gradient_of(J, tree: Tree):
    return torch.tensor(numpy_oracle.gradient(J, tree.logits)).flatten()


def expected(recipe, tree: Tree, drawn_by: Process, *, old=None, sampler=False, kept=None):
    """The mean gradient of the recipe's loss over rollouts; logp_old is what was recorded, or the table ``old``."""
    enumeration = oracle.prefix_tree(*tree.shape)
    leaf = torch.tensor(tree.logits, requires_grad=True)
    every = rollouts(tree, drawn_by)
    row = torch.tensor(every.response)
    of = partial(oracle.token_logp, enumeration)
    by_version = torch.stack([of(torch.tensor(table).log()) for table in drawn_by.versions], -1)
    recorded = by_version[row].gather(-1, torch.tensor(every.version)[..., None])[..., 0]
    logp, ref = (of(table.log_softmax(-1))[row] for table in (leaf, torch.tensor(tree.ref)))
    token, A = logp.detach().requires_grad_(), torch.tensor(tree.reward)[row]
    logp_old = recorded if old is None else of(torch.tensor(old).log())[row]
    drawn_as = recorded if sampler else None
    loss = recipe(token, logp_old, ref, A, enumeration.mask[row], logp_sampler=drawn_as, denominator=1.0).loss
    slope = oracle.flat_gradient(loss, [token]).view_as(token)
    chance = torch.tensor(every.chance if kept is None else every.chance * kept)
    return oracle.flat_gradient((chance[:, None] * slope * logp).sum(), [leaf])


def apart(a, b):
    return float((a - b).norm() / b.norm())


def at_level(name, level):
    row = RECIPES[f"rpg-{name}-prefix" if level == "prefix" else f"rpg-{name}"]
    return dataclasses.replace(row, beta=BETA, level=level)


@pytest.mark.parametrize("shape", DEEP)
@pytest.mark.parametrize("name", ["fkl", "ufkl", "rkl", "urkl", "chi2"])
def test_what_the_engine_recorded_makes_each_level_exact(name, shape):
    """logp_old is the log-probability that each token's own version gave it; nothing else is told."""
    tree, drawn_by = drawn(shape)
    newest = drawn_by.versions[-1]
    levels = {"prefix": of_responses(tree, name)}
    if name != "chi2":
        levels |= {"sequence": of_responses(tree, name), "token": frozen_history(tree, drawn_by, name)}
    for level, J in levels.items():
        recipe, exact = at_level(name, level), gradient_of(J, tree)
        assert apart(-expected(recipe, tree, drawn_by), exact) < 1e-12, level
        assert apart(-expected(recipe, tree, drawn_by, old=newest), exact) > 1e-2, level


@pytest.mark.parametrize("name", ["rpg-urkl-prefix", "rpg-reinforce-urkl-clip", "rloo", "pmd-mean"])
def test_recorded_log_probabilities_are_the_sampler_s_too(name):
    """π_old is the newest version and the recorded ones are logp_sampler: E_s[SG(q/s)·ℓ] = E_q[ℓ], clipped or not."""
    tree, drawn_by = drawn((3, 3, 1))
    recipe = dataclasses.replace(RECIPES[name], beta=BETA)
    recipe = recipe if recipe.level == "prefix" else dataclasses.replace(recipe, level="sequence")
    newest = drawn_by.versions[-1]
    alone = Process(newest[None], np.ones((1, len(newest), 1)))
    exact = expected(recipe, tree, alone)
    assert apart(expected(recipe, tree, drawn_by, old=newest, sampler=True), exact) < 1e-12
    assert apart(expected(recipe, tree, drawn_by, old=newest), exact) > 1e-2


def test_responses_that_a_rule_drops_are_missing_from_the_objective():
    """Kept is what one version drew alone, as where an update cancels what is under way: E[R] becomes E[R·P(kept)]."""
    tree, drawn_by = drawn((3, 3, 1))
    every, enumeration = rollouts(tree, drawn_by), oracle.prefix_tree(*tree.shape)
    alive = enumeration.mask.numpy()[every.response]
    one = np.all((every.version == every.version[:, :1]) | ~alive, axis=1).astype(float)
    # How likely the switches keep a response, whoever draws its tokens.
    before = np.concatenate([np.zeros_like(every.version[:, :1]), every.version[:, :-1]], 1)
    steps = drawn_by.switch[before, enumeration.state.numpy()[every.response], every.version]
    chance_kept = np.bincount(every.response, one * np.where(alive, steps, 1.0).prod(1))
    assert chance_kept.min() < 0.5 and np.ptp(chance_kept) > 0.1

    def exact(reward):
        tables = softmax(tree.old), softmax(tree.ref), tree.shape, "sequence"
        return gradient_of(numpy_oracle.tree_objective("urkl", 0.0, reward, *tables), tree)

    recipe = dataclasses.replace(at_level("urkl", "sequence"), beta=0.0)
    found, plain = -expected(recipe, tree, drawn_by, kept=one), exact(tree.reward)
    assert apart(found, exact(tree.reward * chance_kept)) < 1e-12
    assert apart(found / found.norm(), plain / plain.norm()) > 1e-2


def test_a_response_drawn_again_by_a_newer_version_has_another_mean():
    """Long ones are thrown away and drawn anew: Σ of what was recorded is 1 + p(short) − q(short), and not 1."""
    tree, drawn_by = drawn((3, 3, 1))
    first, newer = (response_chances(tree, table) for table in drawn_by.versions[[0, -1]])
    p, h = response_chances(tree, softmax(tree.logits)), tree.reward
    short = (oracle.prefix_tree(*tree.shape).mask.sum(1) < 3).numpy()
    law = [(first * short, first), (newer * (1 - first @ short), newer)]  # what comes out, and what was recorded of it
    assert sum(chance.sum() for chance, _ in law) == pytest.approx(1.0, rel=1e-12)
    found = sum(np.sum(chance * p / recorded * h) for chance, recorded in law)
    assert found == pytest.approx(p @ h + p @ ((short - first @ short) * h), rel=1e-12)
    assert sum(np.sum(chance * p / recorded) for chance, recorded in law) == pytest.approx(
        1 + p @ short - first @ short
    )
    assert abs(found - p @ h) > 0.05


def chance_of(tree: Tree, drawn_by: Process):
    """How often the process draws each response, whatever the versions."""
    every = rollouts(tree, drawn_by)
    return np.bincount(every.response, every.chance)


def response_chances(tree: Tree, table):
    enumeration = oracle.prefix_tree(*tree.shape)
    return oracle.token_logp(enumeration, torch.tensor(table).log()).sum(1).exp().numpy()


@pytest.mark.parametrize("shape", DEEP)
@pytest.mark.parametrize("name", ["fkl", "urkl", "js"])
def test_one_version_for_all_reweights_the_reward_and_the_penalty(shape, name):
    """The objective that is ascended has s/q before the reward and before the divergence's integrand."""
    tree, drawn_by = drawn(shape)
    newest = drawn_by.versions[-1]
    drift = chance_of(tree, drawn_by) / response_chances(tree, newest)
    r, states = response_chances(tree, softmax(tree.ref)), list(numpy_oracle.prefixes(*tree.shape))
    where = {prefix: s for s, prefix in enumerate(states)}
    f = {"fkl": lambda v: -np.log(v), "urkl": lambda v: v * np.log(v) - v + 1}
    f["js"] = lambda v: (v * np.log(v) - (1 + v) * np.log((1 + v) / 2)) / 2

    def J(logits):
        table = softmax(logits)
        p = np.array(
            [
                np.prod([table[where[y[:t]], token] for t, token in enumerate(y)])
                for y in numpy_oracle.responses(*tree.shape)
            ]
        )
        return np.sum(drift * p * tree.reward) - BETA * np.sum(drift * r * f[name](p / r))

    recipe = dataclasses.replace(RECIPES["rpg-urkl"], divergence=name, beta=BETA, level="sequence")
    recipe = dataclasses.replace(recipe, loss=differentiable_loss, on_policy_penalty=None, off_policy_penalty=None)
    assert apart(-expected(recipe, tree, drawn_by, old=newest), gradient_of(J, tree)) < 1e-12


def aged(tree: Tree, update, lag, *, stale=1):
    """The newest version is q; the first ``stale`` tokens of each response come from the one ``lag`` updates before."""
    depth = np.array([len(prefix) for prefix in numpy_oracle.prefixes(*tree.shape)])
    old = softmax(tree.old - lag * update)
    return np.where((depth < stale)[:, None], old, softmax(tree.old))


def test_the_bias_of_a_mean_grows_in_proportion_to_the_lag_and_to_the_stale_tokens():
    """Small updates: twice the lag, twice the bias. Its slope is the sum over stale tokens of Cov(σ_t, h)."""
    tree, _ = drawn((2, 4, None))
    update = 1e-6 * np.random.default_rng(5).normal(size=tree.old.shape)
    h, q = tree.reward, softmax(tree.old)
    enumeration, by_q = oracle.prefix_tree(*tree.shape), response_chances(tree, q)
    at = enumeration.state.numpy()
    sigma = np.take_along_axis(update[at], enumeration.tokens.numpy()[..., None], -1)[..., 0]
    sigma = sigma - np.sum(q * update, -1)[at]
    for stale in (1, 2, 4):
        found = {lag: response_chances(tree, aged(tree, update, lag, stale=stale)) @ h - by_q @ h for lag in (1, 2, 8)}
        slope = -by_q @ (h * sigma[:, :stale].sum(1))
        assert found[1] == pytest.approx(slope, rel=1e-4)
        assert found[2] == pytest.approx(2 * slope, rel=1e-4) and found[8] == pytest.approx(8 * slope, rel=1e-3)


@share(2)
@given(tree=trees(spread=1.0), data=st.data(), name=chain_names)
def test_recorded_versions_are_exact_at_any_switches(tree: Tree, data, name):
    states, size = tree.old.shape
    switch = data.draw(floats((2, states, 2), st.floats(0.0, 1.0)))
    drawn_by = process(np.stack([tree.old, data.draw(floats((states, size), st.floats(-1.0, 1.0)))]), switch)
    exact = gradient_of(of_responses(tree, name), tree)
    found = -expected(at_level(name, "prefix"), tree, drawn_by)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-10)


@share(2)
@given(tree=trees(spread=1.0), data=st.data(), lag=st.integers(1, 6), stale=st.integers(0, 3))
def test_the_bias_is_a_sum_over_stale_tokens_and_at_most_their_total_variation(tree: Tree, data, lag, stale):
    """By recursion over prefixes: a stale token adds (E_s − E_q)[what q would earn after it], at the stale history."""
    update = data.draw(floats(tree.old.shape, st.floats(-0.3, 0.3)))
    s, q = aged(tree, update, lag, stale=stale), softmax(tree.old)
    where = {prefix: n for n, prefix in enumerate(numpy_oracle.prefixes(*tree.shape))}
    ends = dict(zip(numpy_oracle.responses(*tree.shape), tree.reward, strict=True))

    def worth(prefix):
        return ends[prefix] if prefix in ends else q[where[prefix]] @ after(prefix)

    def after(prefix):
        return np.array([worth((*prefix, token)) for token in range(tree.shape[0])])

    def paid(prefix, chance):
        if prefix in ends:
            return 0.0, 0.0
        change = s[where[prefix]] - q[where[prefix]]
        later = [paid((*prefix, y), chance * s[where[prefix], y]) for y in range(tree.shape[0])]
        first = chance * change @ after(prefix), chance * np.abs(change).sum() / 2
        return tuple(np.sum([first, *later], axis=0))

    bias = (response_chances(tree, s) - response_chances(tree, q)) @ tree.reward
    total, variation = paid((), 1.0)
    assert total == pytest.approx(bias, rel=1e-9, abs=1e-12)
    assert abs(bias) <= np.ptp(tree.reward) * variation + 1e-12
    one = [aged(tree, update, n, stale=stale) for n in range(lag + 1)]
    steps = sum(np.abs(a - b).sum(-1) / 2 for a, b in zip(one, one[1:], strict=False))
    assert np.all(np.abs(s - q).sum(-1) / 2 <= steps + 1e-12)
