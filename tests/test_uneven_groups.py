"""Groups of unequal size, and samples dropped one by one: every batch enumerated with the code's own advantages."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy_oracle import gradient, softmax
from strategies import bandits, floats, share

from rpg_ref import advantages, differentiable_loss


def every(arms, size):
    return np.array(list(itertools.product(range(arms), repeat=size)), int).reshape(-1, size)


def ascent(logits, old, reward, sizes, baseline):
    """−∇ of the expected loss of a batch of several prompts [prompts, arms], divided by the number of its samples."""
    leaf = torch.tensor(logits, requires_grad=True)
    prompt = np.arange(len(sizes)).repeat(sizes)
    batches = every(logits.shape[1], len(prompt))
    logp, q = leaf.log_softmax(-1), softmax(old)
    chance, R = q[prompt, batches].prod(1), reward[prompt, batches]
    ids = (np.arange(len(batches))[:, None] * len(sizes) + prompt).ravel()
    A = advantages(torch.tensor(R).flatten(), torch.tensor(ids), baseline).view(R.shape)
    picked = np.tile(prompt, (len(batches), 1)), batches
    loss = differentiable_loss(logp[picked], torch.tensor(np.log(q))[picked], A, "urkl", 0.0).mean(1)
    return -torch.autograd.grad((torch.tensor(chance) * loss).sum(), leaf)[0].numpy()


def test_a_prompt_of_a_larger_group_counts_more_by_hand():
    """Groups of 2 and 4, p = (¼, ¾) and (½, ½): ∇E[R] = ±3/16 and ±¼. Shares 1/6 and 3/6; 2/6 and 4/6 if the other."""
    logits, reward = np.log([[1.0, 3.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    exact = np.array([[3 / 16, -3 / 16], [-1 / 4, 1 / 4]])
    for baseline, shares in (("group_mean", (1 / 6, 3 / 6)), ("leave_one_out", (2 / 6, 4 / 6))):
        found = ascent(logits, logits, reward, [2, 4], baseline)
        assert np.abs(found - np.array(shares)[:, None] * exact).max() < 1e-15


@given(
    logits=floats((2, 2, 2), st.floats(-3, 3)),
    reward=floats((2, 2), st.floats(-2, 2)),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_a_prompt_counts_its_group_less_one_off_policy_too(logits, reward, sizes):
    p = softmax(logits[0])
    exact = p * (reward - (p * reward).sum(1, keepdims=True))
    found = ascent(*logits, reward, sizes, "group_mean")
    share = (np.array(sizes) - 1) / sum(sizes)
    assert np.abs(found - share[:, None] * exact).max() < 1e-12


# A rule that sees one sample ------------------------------------------------------------------------------------------


def sum_ascent(p, q, reward, kept, size, over_kept):
    """E over groups of q of Σ A·w·∇log p of the kept samples, in the logits; the mean over the kept, or over all."""
    total = np.zeros(len(p))
    for y in every(len(p), size):
        stays = kept[y]
        ids = torch.zeros(int(stays.sum()) if over_kept else size, dtype=torch.long)
        if len(ids):
            A = advantages(torch.tensor(reward[y[stays] if over_kept else y]), ids, "group_mean").numpy()
            A = A if over_kept else A[stays]
            y_kept = y[stays]
            scores = np.eye(len(p))[y_kept] - p
            total += q[y].prod() * ((A * p[y_kept] / q[y_kept])[:, None] * scores).sum(0)
    return total


def given_kept(logits, kept, reward):
    """E[R | K]; analytic, for complex steps."""
    p = softmax(logits) * kept
    return np.sum(p * reward) / np.sum(p)


P, R, FINISHED = np.array([0.25, 0.25, 0.5]), np.array([1.0, 0.0, 0.0]), np.array([True, True, False])


@pytest.mark.parametrize("size", [2, 3, 4])
def test_dropping_unfinished_responses_does_not_teach_to_finish_by_hand(size):
    """The last arm does not finish. E[R | K] = ½ and p_K = (½, ½, 0): its gradient is (¼, −¼, 0), the last arm unmoved.

    The factor E[(m − 1)₊] is size/2 − 1 + 2⁻ˢⁱᶻᵉ. With the mean over all c = ¼: p·(K(R − c) − ⅛), ⅛ = E[K(R − c)].
    """
    found = sum_ascent(P, P, R, FINISHED, size, over_kept=True)
    assert np.abs(found - (size / 2 - 1 + 0.5**size) * np.array([1 / 4, -1 / 4, 0])).max() < 1e-15
    found = sum_ascent(P, P, R, FINISHED, size, over_kept=False)
    assert np.abs(found - (size - 1) * np.array([5 / 32, -3 / 32, -2 / 32])).max() < 1e-15
    # A reward of 0 for not finishing is the plain E[R], which does teach it: p·(R − ¼).
    plain = sum_ascent(P, P, R, np.ones(3, bool), size, over_kept=True)
    assert np.abs(plain - (size - 1) * np.array([3 / 16, -1 / 16, -2 / 16])).max() < 1e-15


@share(2)
@given(bandit=bandits(), data=st.data(), size=st.integers(2, 3))
def test_samples_dropped_one_by_one_ascend_another_objective(bandit, data, size):
    """On-policy E[(m − 1)₊]·∇E[R | K]; off-policy ∇E[K(R − c)] with c = E_q[R | K]; over all, c = E_q[R]."""
    n = len(bandit.logits)
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    kept[data.draw(st.integers(0, n - 1))] = True
    p, q, R = softmax(bandit.logits), softmax(bandit.old), bandit.reward

    def shifted(c):
        return gradient(lambda x: np.sum(softmax(x) * kept * (R - c)), bandit.logits)

    def excess(policy):
        mass = policy[kept].sum()
        return sum(math.comb(size, m) * mass**m * (1 - mass) ** (size - m) * (m - 1) for m in range(2, size + 1))

    tolerance = 1e-11 * (1 + (p / q).max())
    exact = gradient(lambda x: given_kept(x, kept, R), bandit.logits)
    assert np.abs(sum_ascent(p, p, R, kept, size, True) - excess(p) * exact).max() < tolerance
    off = excess(q) / q[kept].sum() * shifted(given_kept(bandit.old, kept, R))
    assert np.abs(sum_ascent(p, q, R, kept, size, True) - off).max() < tolerance
    over_all = (size - 1) * shifted(q @ R)
    assert np.abs(sum_ascent(p, q, R, kept, size, False) - over_all).max() < tolerance
