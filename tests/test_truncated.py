"""Top-p and top-k, every kept response enumerated: what a baseline does, and the two ways to make it free again."""

import itertools

import numpy as np
import numpy_oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy_oracle import gradient, softmax
from strategies import Tree, bandits, trees

from rpg_ref import advantages, differentiable_loss, reinforce_loss
from rpg_ref.audit import oracle

LOSSES = [differentiable_loss, reinforce_loss]
ROWS = {"fkl": ("ufkl", 1), "rkl": ("urkl", -1)}
"""A normalised row, its unnormalised one, and the multiple of (v − 1) that is added."""
P, Q, REF = np.array([1 / 2, 1 / 4, 1 / 4]), np.array([1 / 4, 1 / 4, 1 / 2]), np.array([0.3, 0.3, 0.4])
KEPT, REWARD = np.array([True, True, False]), np.array([1.0, -1.0, 5.0])
OF_MASS = np.array([1 / 8, 1 / 16, -3 / 16])
"""∇p(S) in the logits, by hand: p·(1_S − p(S)), p(S) = ¾."""


def ascent(loss, name, beta, reward, *, kept_mass=True, renormalised=False):
    """−∇ of the mean loss of samples from q_S. The ratio is to q_S, or to q; the policy p, or p renormalised over S."""
    leaf = torch.tensor(np.log(P), requires_grad=True)
    logp, log_q, log_r = leaf.log_softmax(-1), torch.tensor(np.log(Q)), torch.tensor(np.log(REF))
    S = torch.tensor(KEPT)
    logp, log_q, log_r = logp[S], log_q[S], log_r[S]
    sampler = (log_q - log_q.logsumexp(0)).exp()
    old = sampler.log() if kept_mass else log_q
    current = logp - logp.logsumexp(0) if renormalised else logp
    value = loss(current, old, torch.tensor(reward[KEPT]), name, beta, logp_ref=log_r)
    return -torch.autograd.grad((sampler * value).sum(), leaf)[0].numpy()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_baseline_pushes_mass_into_the_kept_set_by_hand(loss):
    """b adds b·∇p(S); with the ratio to q instead of q_S it adds ∇p(S)·b/q(S), q(S) = ½."""
    found = ascent(loss, "urkl", 0.0, np.full(3, 0.4))
    assert np.abs(found - 0.4 * OF_MASS).max() < 1e-15
    found = ascent(loss, "urkl", 0.0, np.full(3, 0.4), kept_mass=False)
    assert np.abs(found - 0.4 * OF_MASS / 0.5).max() < 1e-15
    for plain, (other, sign) in ROWS.items():
        difference = ascent(loss, other, 0.3, REWARD) - ascent(loss, plain, 0.3, REWARD)
        assert np.abs(difference + sign * 0.3 * OF_MASS).max() < 1e-15


def conditional(logits, kept, reward):
    """E[R | S]; analytic, for complex steps."""
    p = softmax(logits) * kept
    return np.sum(p * reward) / np.sum(p)


@pytest.mark.parametrize("shift", [0.0, 0.7])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_policy_that_is_renormalised_as_the_sampler_is_frees_the_baseline(loss, shift):
    """∇E[R | S] by hand: p_S = (2/3, 1/3), R = (1, −1): p_S·(R − 1/3) = (4/9, −4/9), the last arm not at all."""
    found = ascent(loss, "urkl", 0.0, REWARD + shift, renormalised=True)
    assert np.abs(found - [4 / 9, -4 / 9, 0]).max() < 1e-15
    assert np.abs(gradient(lambda x: conditional(x, KEPT, REWARD), np.log(P)) - found).max() < 1e-15
    assert np.abs(ascent(loss, "urkl", 0.0, REWARD + shift) - found).max() > 0.1


def group_ascent(logits, kept, reward, size, baseline):
    """On-policy, no weight: E over groups of the truncated policy of the mean of A·∇log π_θ, in the logits."""
    p = softmax(logits)
    p_S = np.where(kept, p, 0) / p[kept].sum()
    groups = np.array(list(itertools.product(np.flatnonzero(kept), repeat=size)))
    ids = torch.arange(len(groups)).repeat_interleave(size)
    A = advantages(torch.tensor(reward[groups]).flatten(), ids, baseline).reshape(groups.shape).numpy()
    return p_S[groups].prod(1) @ (A[..., None] * (np.eye(len(p))[groups] - p)).mean(1)


@given(bandit=bandits(), data=st.data(), size=st.integers(2, 3))
def test_leave_one_out_on_policy_ascends_the_reward_of_the_truncated_policy(bandit, data, size):
    """For one decision: ∇E[R | S], the group mean (G − 1)/G of it; no baseline adds E[R | S]·∇log p(S)."""
    n = len(bandit.logits)
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    kept[data.draw(st.integers(0, n - 1))] = True
    exact = gradient(lambda x: conditional(x, kept, bandit.reward), bandit.logits)
    p = softmax(bandit.logits)
    extra = conditional(bandit.logits, kept, bandit.reward) * p * (kept / p[kept].sum() - 1)
    for baseline, expected in (
        ("leave_one_out", exact),
        ("group_mean", exact * (size - 1) / size),
        ("none", exact + extra),
    ):
        assert np.abs(group_ascent(bandit.logits, kept, bandit.reward, size, baseline) - expected).max() < 1e-12


@given(tree=trees(), seed=st.integers(0, 99), name=st.sampled_from(sorted(ROWS)), b=st.floats(-2, 2))
def test_of_responses_whose_every_token_has_its_own_kept_set(tree: Tree, seed, name, b):
    """Sequence level: a baseline adds b·∇p(S) and the rows of a KL differ by β·∇p(S), p(S) by recursion in NumPy."""
    kept = np.random.default_rng(seed).random(tree.old.shape) < 0.6
    kept[:, 0] = True
    states = {prefix: n for n, prefix in enumerate(numpy_oracle.prefixes(*tree.shape))}
    ends = list(numpy_oracle.responses(*tree.shape))
    inside = np.array([all(kept[states[y[:t]], token] for t, token in enumerate(y)) for y in ends])
    truncated = np.where(kept, softmax(tree.old), 0.0)
    truncated /= truncated.sum(1, keepdims=True)

    def of(table):
        return np.array([np.prod([table[states[y[:t]], token] for t, token in enumerate(y)]) for y in ends])

    of_mass = gradient(lambda logits: np.sum(of(softmax(logits))[inside]), tree.logits)
    sampler, ref = of(truncated)[inside], of(softmax(tree.ref))[inside]
    enumeration, leaf = oracle.prefix_tree(*tree.shape), torch.tensor(tree.logits, requires_grad=True)
    logp = oracle.token_logp(enumeration, leaf.log_softmax(-1)).sum(1)[torch.tensor(inside)]

    def ascends(row, shift):
        reward = torch.tensor(tree.reward[inside] + shift)
        value = differentiable_loss(
            logp, torch.tensor(np.log(sampler)), reward, row, 0.3, logp_ref=torch.tensor(np.log(ref))
        )
        return -torch.autograd.grad((torch.tensor(sampler) * value).sum(), leaf, retain_graph=True)[0].numpy()

    other, sign = ROWS[name]
    plain = ascends(name, 0.0)
    assert np.abs(ascends(name, b) - plain - b * of_mass).max() < 1e-10
    assert np.abs(ascends(other, 0.0) - plain + sign * 0.3 * of_mass).max() < 1e-10
