"""The four levels, by enumerating every response: chain rules, what each gradient is, and what it is not."""

import dataclasses
import math
from functools import partial

import numpy as np
import numpy_oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy_oracle import softmax
from strategies import Tree, floats, paper_names, rewards, trees
from torch.testing import assert_close

from rpg_ref import RECIPES, DualClip, WeightBound, differentiable_loss, per_decision_loss
from rpg_ref.audit import oracle
from rpg_ref.objective import Objective

EQUAL, UNEVEN = (3, 3, None), (3, 3, 1)


def policies(tree: Tree):
    """The enumeration, the tables, and the token log-probs of every response."""
    enumeration = oracle.prefix_tree(*tree.shape)
    leaf = torch.tensor(tree.logits, requires_grad=True)
    tables = oracle.Policies(leaf.log_softmax(-1), *(torch.tensor(x).log_softmax(-1) for x in (tree.old, tree.ref)))
    return enumeration, leaf, tables, oracle.Policies(*(oracle.token_logp(enumeration, table) for table in tables))


def drawn(shape, seed=0, spread=1.0) -> Tree:
    rng = np.random.default_rng(seed)
    states, size = len(list(numpy_oracle.prefixes(*shape))), len(list(numpy_oracle.responses(*shape)))
    return Tree(shape, *(spread * rng.normal(size=(3, states, shape[0]))), rng.normal(size=size))


def frozen(enumeration, table):
    """How likely a policy reaches each state."""
    return oracle.continuation_value(enumeration, table, torch.zeros(len(enumeration.tokens), dtype=torch.float64))[0]


def per_token(name, tables):
    """D of the next-token distributions, at each state."""
    return oracle.DEFINITIONS[name](tables.current, tables.ref)


def of_responses(name, logps):
    return oracle.DEFINITIONS[name](logps.current.sum(1), logps.ref.sum(1))


CHAIN = {"rkl": "current", "urkl": "current", "fkl": "ref", "ufkl": "ref"}


@given(tree=trees(), name=paper_names)
def test_each_kl_of_responses_is_a_sum_over_tokens(tree: Tree, name):
    """KL(p‖r) = Σ_t E_{h∼p} KL_t and KL(r‖p) = Σ_t E_{h∼r} KL_t, and in gradient Σ_t ∇log p_t·Σ_{s≥t} log v_s."""
    enumeration, leaf, tables, logps = policies(tree)
    whole = of_responses(name, logps)
    reach = frozen(enumeration, getattr(tables, CHAIN[name]))
    assert_close((reach * per_token(name, tables)).sum(), whole, rtol=1e-10, atol=1e-11)
    if CHAIN[name] == "current":
        to_go = (logps.current - logps.ref).detach().flip(1).cumsum(1).flip(1)
        score = (logps.current.detach().sum(1).exp() * (logps.current * to_go).sum(1)).sum()
        exact, found = (oracle.flat_gradient(x, [leaf]) for x in (whole, score))
        assert_close(found, exact, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ["jeffreys", "js", "chi2"])
def test_chi2_and_the_others_have_no_chain_rule(name):
    """Neither histories of π_θ nor of π_ref nor of π_old make the token terms add up to that of responses."""
    enumeration, leaf, tables, logps = policies(drawn(EQUAL))
    whole = oracle.flat_gradient(of_responses(name, logps), [leaf])
    for table in tables:
        summed = oracle.flat_gradient((frozen(enumeration, table) * per_token(name, tables)).sum(), [leaf])
        assert (summed - whole).norm() > 1e-2 * whole.norm()
    with pytest.raises(ValueError, match="no chain rule"):
        per_decision_loss(logps.current.cumsum(1), logps.old.cumsum(1), 0.0, name, 1.0)


def token_sum(name, tree, ref):
    """Gradient of the token level's penalty, and of the divergence of whole responses."""
    enumeration, leaf, tables, logps = policies(tree)
    logp_ref = getattr(logps, ref)
    loss = differentiable_loss(logps.current, logps.old, 0.0, name, 1.0, logp_ref=logp_ref)
    total = (logps.old.sum(1).exp() * torch.where(enumeration.mask, loss, 0.0).sum(1)).sum()
    whole = oracle.DEFINITIONS[name](logps.current.sum(1), logp_ref.sum(1))
    return oracle.flat_gradient(total, [leaf]), oracle.flat_gradient(whole, [leaf])


@given(tree=trees(), name=st.sampled_from(["fkl", "ufkl"]))
def test_token_sums_of_the_forward_kl_are_that_of_responses(tree: Tree, name):
    """When π_ref = π_old: the histories that π_old draws are those the chain rule asks for."""
    found, exact = token_sum(name, tree, "old")
    assert_close(found, exact, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("shape", [EQUAL, UNEVEN])
@pytest.mark.parametrize(
    ("name", "ref", "exact"),
    [("fkl", "old", True), ("ufkl", "old", True), ("fkl", "ref", False), ("rkl", "old", False)],
)
def test_the_token_level_has_the_forward_kl_of_responses_when_the_reference_sampled(shape, name, ref, exact):
    """And neither with another reference nor for the reverse KL."""
    found, whole = token_sum(name, drawn(shape), ref)
    error = float((found - whole).norm() / whole.norm())
    assert error < 1e-13 if exact else error > 1e-2


def gradients(tree, loss):
    """One gradient for each response, [N, K], and how likely π_old draws it."""
    enumeration, leaf, _, logps = policies(tree)
    each = torch.stack([oracle.flat_gradient(x, [leaf]) for x in loss(enumeration, logps)])
    return each, logps.old.sum(1).exp().detach()


def by_prefix(name):
    def loss(enumeration, logps):
        prefixes = (x.cumsum(1) for x in (logps.current, logps.old))
        each = per_decision_loss(*prefixes, 0.0, name, 1.0, logp_ref=logps.ref.cumsum(1))
        return torch.where(enumeration.mask, each, 0.0).sum(1)

    return loss


def by_response(name):
    return lambda enumeration, logps: differentiable_loss(
        *(x.sum(1) for x in logps[:2]), 0.0, name, 1.0, logp_ref=logps.ref.sum(1)
    )


def mean_and_variance(each, chance):
    mean = (chance[:, None] * each).sum(0)
    return mean, float((chance[:, None] * (each - mean) ** 2).sum())


@given(tree=trees(spread=1.5), name=paper_names)
def test_prefix_and_sequence_gradients_have_one_mean(tree: Tree, name):
    (prefix, _), (whole, _) = (mean_and_variance(*gradients(tree, of(name))) for of in (by_prefix, by_response))
    assert_close(prefix, whole, rtol=1e-9, atol=1e-10)


def test_the_prefix_weights_variance_is_lower_or_higher():
    """Not uniformly lower: over fifteen random pairs of policies, far apart, both happen."""
    ratios = []
    for seed in range(15):
        tree = drawn((3, 2, None), seed, spread=2.0)
        (_, prefix), (_, whole) = (mean_and_variance(*gradients(tree, of("rkl"))) for of in (by_prefix, by_response))
        ratios.append(prefix / whole)
    assert min(ratios) < 0.1 and max(ratios) > 1.2, ratios


def expected_gradient(recipe, tree, drawn_from, *, old=None, sampler=None):
    """Of the recipe's loss over all responses, weighed as ``drawn_from`` draws them; tables of log-probabilities."""
    enumeration, leaf, tables, logps = policies(tree)
    of = partial(oracle.token_logp, enumeration)
    logp_old = logps.old if old is None else of(old)
    A, mask = torch.tensor(tree.reward), enumeration.mask
    # A batch's loss is the sum of its responses' by a constant denominator: a row's slope is that of its own loss.
    token = logps.current.detach().requires_grad_()
    drift = None if sampler is None else of(sampler)
    loss = recipe(token, logp_old, logps.ref, A, mask, logp_sampler=drift, denominator=1.0).loss
    slope = oracle.flat_gradient(loss, [token]).view_as(token)
    return oracle.flat_gradient((of(drawn_from).sum(1).exp()[:, None] * slope * logps.current).sum(), [leaf])


NEAR = 0.05
"""log w is at most about a tenth: no row but GSPO's clips anything."""


def three_policies(shape, seed=0):
    """A tree whose π_θ is near π_old, and a sampler far from both."""
    tree = drawn(shape, seed)
    tree = tree._replace(logits=tree.old + NEAR * tree.logits)
    rng = np.random.default_rng(seed + 1)
    return tree, torch.tensor(tree.old).log_softmax(-1), torch.tensor(rng.normal(size=tree.old.shape)).log_softmax(-1)


def apart(a, b):
    return float((a - b).norm() / b.norm())


DEEP = [(3, 3, 1), (2, 4, 0)]
ROWS = list(dict.fromkeys(row.name for row in RECIPES.values()))


@pytest.mark.parametrize("shape", DEEP)
@pytest.mark.parametrize("name", ROWS)
def test_the_samplers_correction_restores_the_expectation_of_responses_and_prefixes_alone(name, shape):
    """E_s[SG(q/s)·ℓ] = E_q[ℓ] needs the ratio of everything that ℓ depends on: a token's is not enough."""
    tree, old, sampler = three_policies(shape)
    recipe = dataclasses.replace(RECIPES[name], beta=0.3)
    exact = expected_gradient(recipe, tree, old)
    error = apart(expected_gradient(recipe, tree, sampler, sampler=sampler), exact)
    if recipe.level in ("prefix", "sequence"):
        assert error < 1e-13
        assert apart(expected_gradient(recipe, tree, sampler), exact) > 1e-2
    else:
        assert error > 1e-2


# Each sample's coefficient of ∇log π_θ is a multiple of 1/π_old, where nothing is clipped.
LINEAR = [x for x in ROWS if x.startswith("rpg")] + ["grpo-corrected", "ppo", "dapo", "dr-grpo", "cispo"]


def unclipped(name):
    """A row that clips no ratio and cuts no weight, summed over tokens, at β = 0.3 if it has a penalty."""
    row = RECIPES[name]
    row = dataclasses.replace(row, beta=0.3 if row.beta else 0.0, aggregation="token-mean")
    if row.clip is not None:
        row = dataclasses.replace(row, clip=DualClip(low=1 - 1e-12, high=1e12, dual=math.inf))
    return row if row.bound is None else dataclasses.replace(row, bound=WeightBound())


@pytest.mark.parametrize("shape", DEEP)
@pytest.mark.parametrize("name", ROWS)
def test_unclipped_the_correction_puts_the_sampler_in_the_old_policys_place_where_the_coefficient_is_linear(
    name, shape
):
    """For the others, whose loss uses π_old otherwise, it does not: the gradient is then that of neither policy."""
    tree, _, sampler = three_policies(shape)
    recipe = unclipped(name)
    found = expected_gradient(recipe, tree, sampler, sampler=sampler)
    renamed = expected_gradient(recipe, tree, sampler, old=sampler)
    if name in LINEAR:
        assert apart(found, renamed) < 1e-12
    elif name != "gspo":
        assert apart(found, renamed) > 1e-2
    if name in LINEAR and recipe.off_policy is not None:
        enumeration, leaf, tables, _ = policies(tree)
        as_if = oracle.Policies(tables.current, sampler, tables.ref)
        objective = Objective(dict(recipe.off_policy.terms), recipe.measured_at)
        of_sampler = oracle.gradient(objective, enumeration, as_if, torch.tensor(tree.reward), [leaf])
        assert apart(-found, of_sampler) < 1e-12


@pytest.mark.parametrize("shape", [EQUAL, *DEEP])
@pytest.mark.parametrize("name", ["fkl", "ufkl", "rkl", "urkl"])
def test_with_a_fourth_policy_as_sampler_the_correction_restores_exactness(shape, name):
    """By the NumPy oracle: J over responses at prefix level; at token level the sampler's frozen-history objective."""
    tree, _, sampler = three_policies(shape)
    for row, level in ((f"rpg-{name}-prefix", "sequence"), (f"rpg-{name}", "token")):
        recipe = dataclasses.replace(RECIPES[row], beta=0.3)
        ref, drawn_by = softmax(tree.ref), sampler.exp().numpy()
        J = numpy_oracle.tree_objective(name, 0.3, tree.reward, drawn_by, ref, tree.shape, level)
        exact = torch.tensor(numpy_oracle.gradient(J, tree.logits)).flatten()
        assert apart(-expected_gradient(recipe, tree, sampler, sampler=sampler), exact) < 1e-12
        assert apart(-expected_gradient(recipe, tree, sampler), exact) > 1e-2


@given(tree=trees(), R=floats(3, rewards))
def test_a_uniform_reward_has_no_gradient_at_any_level(tree: Tree, R):
    """E_q[Σ_t w·∇log p] = 0 by tokens, by responses and by prefixes: a baseline is free at each level."""
    enumeration, leaf, _, logps = policies(tree)
    by_tokens = torch.where(enumeration.mask, differentiable_loss(logps.current, logps.old, R[0], "urkl", 0.0), 0.0)
    by_responses = differentiable_loss(logps.current.sum(1), logps.old.sum(1), R[1], "urkl", 0.0)
    prefixes = (x.cumsum(1) for x in (logps.current, logps.old))
    last = enumeration.mask & (enumeration.mask.cumsum(1) == enumeration.mask.sum(1, keepdim=True))
    by_prefixes = per_decision_loss(*prefixes, torch.where(last, float(R[2]), 0.0).double(), "urkl", 0.0)
    for loss in (by_tokens.sum(1), by_responses, torch.where(enumeration.mask, by_prefixes, 0.0).sum(1)):
        g = oracle.flat_gradient((logps.old.sum(1).exp() * loss).sum(), [leaf])
        assert g.abs().max() < 1e-11
