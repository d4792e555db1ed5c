"""Where a KL, a weight, a stop-gradient and a normalisation may stand: gradients by enumeration."""

import functools
import itertools
import math

import numpy as np
import numpy_oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy_oracle import softmax
from strategies import Tree, divergence_names, floats, rewards, share, trees
from test_levels import drawn, policies
from torch.testing import assert_close

from rpg_ref import (
    DIVERGENCES,
    DualClip,
    advantages,
    differentiable_loss,
    k1,
    k2,
    k3,
    per_decision_loss,
    ppo_loss,
    reinforce_loss,
)

F64 = torch.float64
UNCLIPPED = DualClip(low=1.0, high=math.inf, dual=math.inf)
SIZE = 5
logits = floats((3, SIZE), st.floats(-2.5, 2.5))
reward_tables = floats(SIZE, rewards)
UNEVEN = (3, 3, 1)
THREE_QUARTERS, EVEN = np.array([0.75, 0.25]), np.array([0.5, 0.5])


def tensors(*tables):
    """log π of each table of logits; only the first carries a gradient."""
    leaf = torch.tensor(tables[0], requires_grad=True)
    return leaf, leaf.log_softmax(-1), *(torch.tensor(x).log_softmax(-1) for x in tables[1:])


def slope(value, leaf):
    return torch.autograd.grad(value, leaf, retain_graph=True)[0].numpy()


def along_scores(p, coefficient):
    """Σ_x coefficient(x)·∇log p(x) of a softmax: the coefficient less p times its sum."""
    return coefficient - p * coefficient.sum()


# A KL in the loss and in the reward

ESTIMATES = {"k1": (k1, lambda v: np.ones_like(v)), "k2": (k2, np.log), "k3": (k3, lambda v: 1 - 1 / v)}
BY_HAND = {"k1": 0.0, "k2": 3 / 16 * math.log(3), "k3": 0.25}


@pytest.mark.parametrize("name", ESTIMATES)
def test_a_penalty_in_the_loss_is_its_slope_in_the_reward_by_hand(name):
    """π_θ = (¾, ¼), π_ref = (½, ½): v = (3/2, ½), and in the first logit ∇ = 3/16·(k′(1) − k′(2))."""
    k, derivative = ESTIMATES[name]
    leaf, logp, log_r = tensors(np.log(THREE_QUARTERS), np.log(EVEN))
    in_the_loss = slope((logp.detach().exp() * k(log_r - logp)).sum(), leaf)
    cost = torch.tensor(derivative(THREE_QUARTERS / EVEN))
    in_the_reward = slope((logp.detach().exp() * ppo_loss(logp, logp.detach(), -cost, clip=UNCLIPPED)).sum(), leaf)
    assert in_the_loss[0] == pytest.approx(BY_HAND[name], abs=1e-15)
    assert in_the_reward[0] == pytest.approx(BY_HAND[name], abs=1e-15)


def test_k3_pulls_back_with_less_than_one_and_pushes_without_bound():
    """Its slope at v = e³ is 0.95 where k2's is 3, and at v = e⁻³ it is −19.1 where k2's is −3."""
    log_v = torch.tensor([3.0, -3.0, -30.0], dtype=F64, requires_grad=True)
    found = slope(k3(-log_v).sum(), log_v)
    assert found == pytest.approx([0.950212931632, -19.0855369232, 1 - math.exp(30)], rel=1e-11)
    assert slope(k2(-log_v).sum(), log_v) == pytest.approx([3.0, -3.0, -30.0])


@given(table=logits, name=divergence_names, sampled_by=st.sampled_from(["current", "old"]))
def test_a_penalty_in_the_loss_is_its_slope_in_the_reward(table, name, sampled_by):
    """For every generator k = f(v); off-policy with SG(w) on it. The slope d·f/d log v is NumPy's complex step."""
    p, old, r = (softmax(x) for x in table)
    q = p if sampled_by == "current" else old
    leaf, logp, log_r = tensors(table[0], table[2])
    log_q = torch.tensor(q).log()
    penalty = (logp - log_q).exp().detach() * DIVERGENCES[name].f(logp - log_r)
    exact = numpy_oracle.FACTS[name].f
    step = 1e-100
    derivative = np.imag(exact(np.exp(np.log(p / r) + 1j * step), np.log)) / step
    reference = along_scores(p, p * derivative)
    scale = max(1.0, np.abs(reference).max())
    assert np.abs(slope((log_q.exp() * penalty).sum(), leaf) - reference).max() < 1e-11 * scale
    rewarded = slope((log_q.exp() * ppo_loss(logp, log_q, -torch.tensor(derivative), clip=UNCLIPPED)).sum(), leaf)
    assert np.abs(rewarded - reference).max() < 1e-11 * scale


# The reverse KL of whole responses, token by token


def to_go(x):
    return x.flip(1).cumsum(1).flip(1)


def estimates(enumeration, tables, logps):
    """Losses per token whose expected gradient is that of the reverse KL: three live, two detached."""
    log_w, log_v = logps.current - logps.old, logps.current - logps.ref
    through = log_w.cumsum(1).exp()
    before = (log_w.cumsum(1) - log_w).exp()
    next_kl = (tables.current.exp() * (tables.current - tables.ref)).sum(-1)[enumeration.state]
    whole = log_w.sum(1, keepdim=True).exp()
    prefixes = [x.cumsum(1) for x in (logps.current, logps.old)]
    return {
        "k1, prefix": through * k1(-log_v),
        "k3, prefix": per_decision_loss(*prefixes, 0.0, "urkl", 1.0, logp_ref=logps.ref.cumsum(1)),
        "next token's KL": before * next_kl,
        "to go": to_go(through * log_v).detach() * logps.current,
        "whole weight": (whole * to_go(log_v)).detach() * logps.current,
    }


def reverse_kl_gradient(tree):
    old, ref = (softmax(x) for x in (tree.old, tree.ref))
    J = numpy_oracle.tree_objective("rkl", 1.0, 0.0 * tree.reward, old, ref, tree.shape, "sequence")
    return -numpy_oracle.gradient(J, tree.logits), -J(tree.logits)


def expected(enumeration, logps, each):
    return (logps.old.sum(1).exp() * torch.where(enumeration.mask, each, 0.0).sum(1)).sum()


def test_five_token_estimators_have_the_gradient_of_the_responses_reverse_kl():
    """On a tree of one to three tokens, off-policy; the live ones have its value, and usual placements are off."""
    tree = drawn(UNEVEN, seed=3)
    enumeration, leaf, tables, logps = policies(tree)
    exact, value = reverse_kl_gradient(tree)
    for name, each in estimates(enumeration, tables, logps).items():
        total = expected(enumeration, logps, each)
        if name in ("k1, prefix", "k3, prefix", "next token's KL"):
            assert total.item() == pytest.approx(value, rel=1e-13)
        found = slope(total, leaf)
        assert np.abs(found - exact).max() < 1e-13 * np.abs(exact).max(), name
    log_v, w = logps.current - logps.ref, (logps.current - logps.old).exp()
    usual = {
        "k1 in the loss": k1(-log_v),
        "k3 in the loss": k3(-log_v),
        "k1 in the reward": (w * k1(-log_v)).detach() * logps.current,
        "k3 in the reward": (w * k3(-log_v)).detach() * logps.current,
    }
    for name, each in usual.items():
        found = slope(expected(enumeration, logps, each), leaf)
        assert np.linalg.norm(found - exact) > 0.1 * np.linalg.norm(exact), name


@given(tree=trees())
def test_token_estimators_of_the_responses_reverse_kl_are_exact_off_policy(tree: Tree):
    enumeration, leaf, tables, logps = policies(tree)
    exact, _ = reverse_kl_gradient(tree)
    for each in estimates(enumeration, tables, logps).values():
        found = slope(expected(enumeration, logps, each), leaf)
        assert np.abs(found - exact).max() < 1e-10 * max(1.0, np.abs(exact).max())


# A stop-gradient on w


def test_a_live_weight_beside_log_pi_turns_a_baseline_into_an_entropy_term():
    """π_θ = (¾, ¼), b = 2: ascent of −2·H, whose slope in the first logit is 2·3/16·log 3; for detached w it is 0."""
    leaf, logp, log_q = tensors(np.log(THREE_QUARTERS), np.log(EVEN))
    w = (logp - log_q).exp()
    live = slope((log_q.exp() * w * 2.0 * logp).sum(), leaf)
    assert live[0] == pytest.approx(3 / 8 * math.log(3), abs=1e-15)
    for loss in (reinforce_loss, differentiable_loss):
        free = slope((log_q.exp() * loss(logp, log_q, 2.0, "urkl", 0.0)).sum(), leaf)
        assert np.abs(free).max() < 1e-15


@given(table=logits, A=reward_tables)
def test_w_is_live_in_the_surrogate_and_detached_beside_log_pi(table, A):
    """Sample by sample the two have one slope; with both live the expectation ascends E[A·log π] by complex steps."""
    p, q = softmax(table[0]), softmax(table[1])
    logp = torch.tensor(np.log(p), requires_grad=True)
    log_q, advantage = torch.tensor(np.log(q)), torch.tensor(A)
    live, detached = (
        slope(loss(logp, log_q, advantage, "urkl", 0.0).sum(), logp) for loss in (differentiable_loss, reinforce_loss)
    )
    assert live == pytest.approx(-p / q * A, rel=1e-12, abs=1e-13) and detached == pytest.approx(live, rel=1e-12)
    leaf, logp, log_q = tensors(*table[:2])
    found = slope((log_q.exp() * (logp - log_q).exp() * advantage * logp).sum(), leaf)

    def both_live(x):
        return np.sum(softmax(x) * A * np.log(softmax(x)))

    exact = numpy_oracle.gradient(both_live, table[0])
    assert np.abs(found - exact).max() < 1e-11 * max(1.0, np.abs(exact).max())


# The prefix's weight left out


def token_level_bias(tree):
    """E_q[Σ_t w_t·R·∇log p_t] − ∇E_p[R], the second by complex steps."""
    enumeration, leaf, _, logps = policies(tree)
    R = torch.tensor(tree.reward)[:, None].expand(logps.current.shape)
    each = -ppo_loss(logps.current, logps.old, R, clip=UNCLIPPED)
    found = slope(expected(enumeration, logps, each), leaf)
    old, ref = (softmax(x) for x in (tree.old, tree.ref))
    J = numpy_oracle.tree_objective("rkl", 0.0, tree.reward, old, ref, tree.shape, "sequence")
    return found - numpy_oracle.gradient(J, tree.logits)


def parity(horizon, rare, rare_old):
    """Two tokens; R = 1 for an odd number of rare ones. Every state has the same two probabilities."""
    states = len(list(numpy_oracle.prefixes(2, horizon, None)))
    current, old = (np.tile(np.log([1 - x, x]), (states, 1)) for x in (rare, rare_old))
    reward = np.array([sum(y) % 2 for y in numpy_oracle.responses(2, horizon, None)], float)
    return Tree((2, horizon, None), current, old, old, reward)


@pytest.mark.parametrize("horizon", [2, 3, 4])
def test_the_bias_of_the_token_level_reaches_its_bound(horizon):
    """θ = 0.03, ε = 0.01. One parameter moves all rare logits: S = 2θ(1 − θ). The bias is by hand."""
    rare, rare_old = 0.03, 0.01
    bias = token_level_bias(parity(horizon, rare, rare_old))[:, 1].sum()
    moved = rare * (1 - rare)
    by_hand = horizon * moved * ((1 - 2 * rare_old) ** (horizon - 1) - (1 - 2 * rare) ** (horizon - 1))
    bound = horizon * (horizon - 1) * (rare - rare_old) * 2 * moved
    assert bias == pytest.approx(by_hand, rel=1e-12)
    assert bias == pytest.approx(bound, rel=1e-12) if horizon == 2 else 0.9 * bound < bias < bound


@given(tree=trees())
def test_the_bias_of_the_token_level_is_within_its_bound(tree: Tree):
    """For each logit: T(T − 1)·δ·S·(max R − min R), S = Σ_y |∂π(y|h)| of that logit."""
    p, q = softmax(tree.logits), softmax(tree.old)
    delta = np.abs(p - q).sum(1).max() / 2
    moved = 2 * p * (1 - p)
    longest = tree.shape[1]
    bound = longest * (longest - 1) * delta * moved * np.ptp(tree.reward)
    assert (np.abs(token_level_bias(tree)) <= bound + 1e-12).all()


@pytest.mark.parametrize(("shape", "most"), [((3, 3, 1), 0.1), ((2, 6, None), 0.01)])
def test_on_random_trees_the_bias_is_far_below_its_bound(shape, most):
    """Near π_old, a tenth of the way to another policy, and far from it."""
    for seed in range(3):
        tree = drawn(shape, seed)
        for way in (0.1, 1.0):
            old = tree.logits + way * (tree.old - tree.logits)
            p, q = softmax(tree.logits), softmax(old)
            pairs = shape[1] * (shape[1] - 1)
            bound = pairs * np.abs(p - q).sum(1).max() * p * (1 - p) * np.ptp(tree.reward)
            assert (np.abs(token_level_bias(tree._replace(old=old))) < most * bound).all()


# Reward and KL in one advantage


@functools.cache
def every_group(size):
    return np.array(list(itertools.product(range(SIZE), repeat=size)))


def group_ascent(table, q, per_sample, baseline, apart, size):
    """The expected gradient of a group's mean of −w·A, A from the library's baseline; ``apart`` is added after it."""
    groups = every_group(size)
    leaf, logp = tensors(table[0])
    ids = torch.arange(len(groups)).repeat_interleave(size)
    A = advantages(torch.tensor(per_sample[groups]).flatten(), ids, baseline).reshape(groups.shape)
    A = A + torch.tensor(apart[groups])
    loss = ppo_loss(logp[torch.tensor(groups)], torch.tensor(np.log(q))[torch.tensor(groups)], A, clip=UNCLIPPED)
    return -slope((torch.tensor(q[groups].prod(1)) * loss.mean(1)).sum(), leaf)


def parts(table, R):
    """p, q, log v, ∇E[R] and ∇KL(π_θ‖π_ref)."""
    p, q, r = (softmax(x) for x in table)
    log_v = np.log(p / r)
    return p, q, log_v, along_scores(p, p * R), along_scores(p, p * log_v)


def test_on_equal_rewards_a_fused_advantage_forgets_beta():
    """log v = (0.4, −0.2, −0.2), b = 1: the standardised advantages are (−2, 1, 1)/√3, at β = 1e-3 and at 10."""
    log_v, ids = torch.tensor([0.4, -0.2, -0.2], dtype=F64), torch.zeros(3).long()
    for beta in (1e-3, 10.0):
        fused = advantages(1 - beta * log_v, ids, "group_std")
        assert_close(fused, torch.tensor([-2.0, 1.0, 1.0], dtype=F64) / math.sqrt(3), rtol=1e-11, atol=0)
        apart = advantages(torch.ones(3, dtype=F64), ids, "group_std") - beta * log_v
        assert_close(apart, -beta * log_v)


@share(4)
@given(table=logits, R=reward_tables, beta=st.sampled_from([0.04, 1.0]), size=st.sampled_from([2, 3]))
def test_centring_scales_a_fused_kl_and_leaves_one_that_is_apart(table, R, beta, size):
    _, q, log_v, reward, kl = parts(table, R)
    factor = (size - 1) / size
    fused = group_ascent(table, q, R - beta * log_v, "group_mean", 0 * R, size)
    apart = group_ascent(table, q, R, "group_mean", -beta * log_v, size)
    scale = 1e-11 * max(1.0, np.abs(reward).max(), np.abs(kl).max())
    assert np.abs(fused - factor * (reward - beta * kl)).max() < scale
    assert np.abs(apart - (factor * reward - beta * kl)).max() < scale


def standardised(x, q):
    return (x - q @ x) / np.sqrt(q @ (x - q @ x) ** 2)


@given(table=logits, R=floats(SIZE, st.floats(-2.0, 2.0)), beta=st.sampled_from([0.04, 1.0]), b=st.floats(-1.0, 1.0))
def test_division_turns_beta_into_beta_times_the_rewards_deviation_where_the_kl_is_apart(table, R, beta, b):
    """In an infinite group, off-policy: the library's loss over all outcomes, each weighted by π_old."""
    R = R + np.linspace(0.1, 0.5, SIZE)  # never all equal
    p, q, log_v, reward, kl = parts(table, R)
    sigma, fused_sigma, log_sigma = (np.sqrt(q @ (x - q @ x) ** 2) for x in (R, R - beta * log_v, log_v))
    if min(sigma, fused_sigma, log_sigma) < 1e-3:
        return

    def ascent(advantage):
        leaf, logp = tensors(table[0])
        loss = ppo_loss(logp, torch.tensor(np.log(q)), torch.tensor(advantage), clip=UNCLIPPED)
        return -slope((torch.tensor(q) * loss).sum(), leaf)

    pairs = (
        (standardised(R - beta * log_v, q), (reward - beta * kl) / fused_sigma),
        (standardised(R, q) - beta * log_v, (reward - beta * sigma * kl) / sigma),
        (standardised(b - beta * log_v, q), -kl / log_sigma),
    )
    for advantage, exact in pairs:
        assert np.abs(ascent(advantage) - exact).max() < 1e-9 * max(1.0, np.abs(exact).max())
