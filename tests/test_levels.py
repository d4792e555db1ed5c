"""The four levels, by enumerating every response: chain rules, what each gradient is, and what it is not."""

import numpy as np
import numpy_oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import Tree, floats, paper_names, rewards, trees
from torch.testing import assert_close

from rpg_ref import RECIPES, differentiable_loss, per_decision_loss
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
def test_the_histories_of_one_policy_give_them_no_chain_rule(name):
    """Neither histories of π_θ nor of π_ref nor of π_old make the token terms add up to that of responses."""
    enumeration, leaf, tables, logps = policies(drawn(EQUAL))
    whole = oracle.flat_gradient(of_responses(name, logps), [leaf])
    for table in tables:
        summed = oracle.flat_gradient((frozen(enumeration, table) * per_token(name, tables)).sum(), [leaf])
        assert (summed - whole).norm() > 1e-2 * whole.norm()
    with pytest.raises(ValueError, match="no chain rule"):
        per_decision_loss(logps.current.cumsum(1), logps.old.cumsum(1), 0.0, name, 1.0)


def before(log_ratio):
    """The log-ratio of the history at each token: the sum over the tokens before it."""
    return log_ratio.cumsum(1) - log_ratio


@given(tree=trees())
def test_chi2_and_jeffreys_of_responses_are_sums_over_tokens_with_weights_of_their_own(tree: Tree):
    """Σ_t E_old[(w²_{<t}/u_{<t})·u_t·(v_t − 1)²] and w_{<t}·u_t·f_RKL + u_{<t}·u_t·f_FKL, in value and in gradient."""
    enumeration, leaf, tables, logps = policies(tree)
    log_w, log_u, log_v = logps.current - logps.old, logps.ref - logps.old, logps.current - logps.ref
    v = log_v.exp()
    terms = {
        "chi2": (2 * before(log_w) - before(log_u) + log_u).exp() * (v - 1) ** 2,
        "jeffreys": (before(log_w) + log_u).exp() * v * log_v - (before(log_u) + log_u).exp() * log_v,
    }
    for name, term in terms.items():
        found = (logps.old.sum(1).exp() * torch.where(enumeration.mask, term, 0.0).sum(1)).sum()
        whole = of_responses(name, logps)
        assert_close(found, whole, rtol=1e-9, atol=1e-10)
        pair = (oracle.flat_gradient(x, [leaf]) for x in (found, whole))
        assert_close(*pair, rtol=1e-8, atol=1e-9)


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


def expected_gradient(recipe, tree, sampler, **logp_sampler):
    """Of the recipe's loss when ``sampler`` drew the responses, each a batch of one."""
    enumeration, leaf, tables, logps = policies(tree)
    chance = oracle.token_logp(enumeration, sampler).sum(1).exp()
    losses = []
    for n in range(len(chance)):
        row = slice(n, n + 1)
        given_sampler = {name: x[row] for name, x in logp_sampler.items()}
        inputs = (*(x[row] for x in logps), torch.tensor(tree.reward[row]), enumeration.mask[row])
        losses.append(recipe(*inputs, denominator=1.0, **given_sampler).loss)
    g = oracle.flat_gradient((chance * torch.stack(losses)).sum(), [leaf])
    as_if = oracle.Policies(tables.current, sampler, tables.ref)
    of_sampler = Objective(dict(recipe.off_policy.terms), recipe.measured_at)
    return g, oracle.gradient(of_sampler, enumeration, as_if, torch.tensor(tree.reward), [leaf])


@pytest.mark.parametrize("shape", [EQUAL, UNEVEN])
@pytest.mark.parametrize("name", ["rpg-urkl", "rpg-reinforce-fkl", "rpg-rkl-prefix", "rpg-ufkl-prefix"])
def test_with_a_fourth_policy_as_sampler_the_correction_restores_exactness(shape, name):
    """J of the responses that the sampler draws: at prefix level of all, at token level of the histories it reaches."""
    tree = drawn(shape)
    enumeration, _, _, _ = policies(tree)
    sampler = torch.tensor(np.random.default_rng(1).normal(size=tree.old.shape)).log_softmax(-1)
    recipe = RECIPES[name]
    logp_sampler = oracle.token_logp(enumeration, sampler)
    corrected, exact = expected_gradient(recipe, tree, sampler, logp_sampler=logp_sampler)
    assert_close(-corrected, exact, rtol=1e-12, atol=1e-13)
    plain, _ = expected_gradient(recipe, tree, sampler)
    assert (plain + exact).norm() > 1e-2 * exact.norm()


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
