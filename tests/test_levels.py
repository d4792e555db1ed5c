"""The four levels, by enumerating every response: chain rules, what each gradient is, and what it is not."""

import dataclasses
import math
from functools import partial

import numpy as np
import numpy_oracle
import pytest
import torch
from divergence_facts import FACTS
from hypothesis import given
from hypothesis import strategies as st
from numpy_oracle import softmax
from strategies import CHAIN_NAMES, Tree, chain_names, floats, paper_names, rewards, trees
from torch.testing import assert_close

from rpg_ref import (
    DIVERGENCES,
    RECIPES,
    DualClip,
    WeightBound,
    differentiable_loss,
    entropy_loss,
    per_decision_loss,
)
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
ONE_POLICY = [((1, 0, name),) for name in FACTS] + [((0, 1, name),) for name in FACTS]
"""Chain rules that average each token's divergence over the histories of π_θ alone, or of π_ref alone."""


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


@pytest.mark.parametrize("name", [name for name, facts in FACTS.items() if facts.history not in ONE_POLICY])
def test_histories_of_one_policy_do_not_sum_up_chi2_jeffreys_or_js(name):
    """Averaged over histories of π_θ, π_ref or π_old alone, the token terms do not add up to that of responses."""
    _, leaf, tables, logps = policies(drawn(EQUAL))
    enumeration = oracle.prefix_tree(*EQUAL)
    whole = oracle.flat_gradient(of_responses(name, logps), [leaf])
    for table in tables:
        summed = oracle.flat_gradient((frozen(enumeration, table) * per_token(name, tables)).sum(), [leaf])
        assert (summed - whole).norm() > 1e-2 * whole.norm()


def test_js_alone_has_no_known_chain_rule():
    _, _, _, logps = policies(drawn(EQUAL))
    with pytest.raises(ValueError, match="no chain rule over tokens is known for divergence js"):
        per_decision_loss(logps.current.cumsum(1), logps.old.cumsum(1), 0.0, "js", 1.0)
    assert [name for name, row in DIVERGENCES.items() if row.history] == list(CHAIN_NAMES)


@pytest.mark.parametrize("shape", [(2, 4, 0), (3, 3, 1), (4, 3, 3)], ids=str)
@pytest.mark.parametrize("name", CHAIN_NAMES)
def test_the_prefix_penalty_is_the_divergence_of_responses(name, shape):
    """In value and in gradient, off-policy, on trees of uneven depth, against NumPy's complex steps."""
    tree = drawn(shape, seed=5)
    enumeration, leaf, tables, logps = policies(tree)
    prefixes = (x.cumsum(1) for x in (logps.current, logps.old))
    each = per_decision_loss(*prefixes, 0.0, name, 1.0, logp_ref=logps.ref.cumsum(1))
    penalty = (logps.old.sum(1).exp() * torch.where(enumeration.mask, each, 0.0).sum(1)).sum()
    old, ref = (x.detach().exp().numpy() for x in tables[1:])
    J = numpy_oracle.tree_objective(name, 1.0, 0.0 * tree.reward, old, ref, shape, "sequence")
    assert_close(penalty.item(), -J(tree.logits).item(), rtol=1e-13, atol=0)
    exact = torch.tensor(-numpy_oracle.gradient(J, tree.logits))
    assert_close(torch.autograd.grad(penalty, leaf)[0], exact, rtol=0, atol=2e-14 * float(exact.abs().max()))


@pytest.mark.parametrize("name", ["jeffreys", "chi2"])
@pytest.mark.parametrize("wrong", [(1, 0), (0, 1), (2, 0), (1, 1), (2, -2)], ids=str)
def test_other_history_weights_are_wrong(name, wrong):
    """The comparison above could fail: with these powers of w_{<t} and u_{<t} the gradient is another one."""
    row = DIVERGENCES[name]
    spoilt = dataclasses.replace(row, history=(row.history[0]._replace(w=wrong[0], u=wrong[1]), *row.history[1:]))
    if spoilt == row:
        return
    right, found = (
        mean_and_variance(*gradients(drawn(UNEVEN), by_prefix(divergence)))[0] for divergence in (row, spoilt)
    )
    assert (found - right).norm() > 1e-2 * right.norm()


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


@given(tree=trees(spread=1.5), name=chain_names)
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
    if recipe.level in ("prefix", "sequence", "sequence-over-length"):
        assert error < 1e-13
        assert apart(expected_gradient(recipe, tree, sampler), exact) > 1e-2
    else:
        assert error > 1e-2


# Each sample's coefficient of ∇log π_θ is a multiple of 1/π_old, where nothing is clipped.
LINEAR = [x for x in ROWS if x.startswith("rpg") or RECIPES[x].bound] + ["grpo-corrected", "ppo", "dapo", "dr-grpo"]


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


@given(tree=trees(), name=st.sampled_from(["fkl", "urkl", "chi2"]), c=st.sampled_from([0.0, 0.01, 2.0]))
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_an_entropy_bonus_is_exact_beside_a_penalty(level, tree: Tree, name, c):
    """E_old[loss] = −(E[R] − β·D + c·H) in value at sequence level, and in gradient at both, off-policy."""
    enumeration, leaf, tables, logps = policies(tree)
    samples = [x.sum(1, keepdim=True) if level == "sequence" else x for x in logps]
    A = torch.tensor(tree.reward)[:, None].expand_as(samples[0])
    each = entropy_loss(*samples[:2], A, name, 0.3, logp_ref=samples[2], entropy=c)
    mask = enumeration.mask if level == "token" else enumeration.mask.any(1, keepdim=True)
    loss = (logps.old.sum(1).exp() * torch.where(mask, each, 0.0).sum(1)).sum()
    old, ref = (x.exp().numpy() for x in tables[1:])
    J = numpy_oracle.tree_objective(name, 0.3, tree.reward, old, ref, tree.shape, level)
    H = numpy_oracle.tree_objective("rkl", 1.0, 0.0 * tree.reward, old, np.ones_like(ref), tree.shape, level)
    exact = numpy_oracle.gradient(lambda logits: J(logits) + c * H(logits), tree.logits)
    (g,) = torch.autograd.grad(loss, leaf)
    assert_close(-g, torch.tensor(exact), rtol=1e-9, atol=1e-10)
    if level == "sequence":
        assert_close(-loss.item(), (J(tree.logits) + c * H(tree.logits)).item(), rtol=1e-10, atol=1e-10)


def top_p(tree: Tree, seed=3):
    """A random set of kept tokens at each state, at least one; π_old's mass on it, and its truncation."""
    rng = np.random.default_rng(seed)
    kept = torch.tensor(rng.random(tree.old.shape) < 0.6) | (torch.arange(tree.old.shape[1]) == 0)
    old = torch.tensor(tree.old).log_softmax(-1)
    log_mass = torch.where(kept, old, -torch.inf).logsumexp(-1, keepdim=True)
    return kept, log_mass.expand_as(old), torch.where(kept, old - log_mass, -torch.inf)


def truncated(recipe, tree, shift=0.0, correct=True):
    """E over the truncated sampler's responses of the recipe's loss, every response a batch of one; its gradient."""
    enumeration, leaf, tables, logps = policies(tree)
    kept, log_mass, sampler = top_p(tree)
    of_tokens = torch.where(enumeration.mask, kept[enumeration.state, enumeration.tokens], True).all(1)
    chance = oracle.token_logp(enumeration, sampler).sum(1).exp()
    total = 0.0
    for n in of_tokens.nonzero().flatten().tolist():
        row = slice(n, n + 1)
        drawn = {"logp_sampler": logps.old[row] - oracle.token_logp(enumeration, log_mass)[row]} if correct else {}
        A = torch.tensor(tree.reward[row]) + shift
        loss = recipe(*(x[row] for x in logps), A, enumeration.mask[row], denominator=1.0, **drawn).loss
        total = total + chance[n] * loss
    return torch.autograd.grad(total, leaf)[0], of_tokens, leaf


@pytest.mark.parametrize("shape", [(4, 1, None), (3, 3, 1)], ids=str)
def test_with_the_kept_mass_the_loss_is_that_of_the_kept_responses(shape):
    """Σ p·R − β·Σ r·f(p/r) over the responses whose tokens are all kept, by logp_sampler = log q − log q(S)."""
    tree = drawn(shape, seed=2)
    recipe = dataclasses.replace(RECIPES["rpg-urkl-top-p"], level="sequence", beta=0.3)
    found, S, leaf = truncated(recipe, tree)
    enumeration = oracle.prefix_tree(*shape)
    ref = oracle.token_logp(enumeration, torch.tensor(tree.ref).log_softmax(-1)).sum(1)
    log_p = oracle.token_logp(enumeration, leaf.log_softmax(-1)).sum(1)
    p, r = log_p[S].exp(), ref[S].exp()
    J = (p * torch.tensor(tree.reward)[S]).sum() - 0.3 * (p * (log_p[S] - ref[S]) - p + r).sum()
    exact = torch.autograd.grad(J, leaf, retain_graph=True)[0]
    assert_close(-found, exact, rtol=1e-12, atol=1e-14)
    # A baseline is not free: b adds b·∇p(S). Without the kept mass the gradient is another one.
    shifted = truncated(recipe, tree, shift=0.7)[0]
    of_mass = torch.autograd.grad(p.sum(), leaf)[0]
    assert_close(found - shifted, 0.7 * of_mass, rtol=1e-12, atol=1e-14)
    assert of_mass.norm() > 1e-2 and (truncated(recipe, tree, correct=False)[0] - found).norm() > 1e-2 * found.norm()


def test_at_token_level_the_kept_mass_makes_each_state_a_bandit_over_its_kept_tokens():
    """Of the states that the truncated sampler reaches, with the reward that it expects when it goes on."""
    tree = drawn((3, 2, None), seed=4)
    recipe = dataclasses.replace(RECIPES["rpg-urkl-top-p"], beta=0.3)
    found, _, leaf = truncated(recipe, tree)
    kept, _, sampler = top_p(tree)
    p, q, log_r = leaf.log_softmax(-1), sampler.exp(), torch.tensor(tree.ref).log_softmax(-1)
    R = torch.tensor(tree.reward).view(3, 3)
    J = torch.zeros(())
    for s in range(4):  # the root, then the states after its three tokens
        reach, Q = (1.0, (q[1:] * R).sum(1)) if s == 0 else (q[0, s - 1], R[s - 1])
        density = p[s].exp() * (p[s] - log_r[s]) - p[s].exp() + log_r[s].exp()
        J = J + reach * (kept[s] * (p[s].exp() * Q - 0.3 * density)).sum()
    assert_close(-found, torch.autograd.grad(J, leaf)[0], rtol=1e-12, atol=1e-14)


def test_divided_by_length_pmd_mean_ascends_the_reward_per_token():
    """On-policy, with a baseline of other responses: ∇E[(R − c)/T] at c = E[R], and not ∇E[R] where lengths differ."""
    for shape, same in ((UNEVEN, False), (EQUAL, True)):
        tree = drawn(shape)._replace(old=drawn(shape).logits)
        enumeration, leaf, tables, logps = policies(tree)
        R, p = torch.tensor(tree.reward), logps.current.sum(1).exp()
        c, T = (p * R).sum().detach(), enumeration.mask.sum(1).double()
        for name, J in (("pmd-mean-released", (p * (R - c) / T).sum()), ("pmd-mean", (p * R).sum())):
            exact = oracle.flat_gradient(J, [leaf])
            losses = [
                RECIPES[name](*(x[n : n + 1] for x in logps), (R - c)[n : n + 1], enumeration.mask[n : n + 1]).loss
                for n in range(len(R))
            ]
            found = oracle.flat_gradient((p.detach() * torch.stack(losses)).sum(), [leaf])
            assert_close(-found, exact, rtol=1e-11, atol=1e-13)
            if name == "pmd-mean-released":
                per_token = exact
        cosine = torch.dot(per_token, exact) / per_token.norm() / exact.norm()
        assert (cosine > 1 - 1e-12) == same
