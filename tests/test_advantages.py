"""Baselines by hand, their expected gradients by enumeration of whole groups, and what they must not do."""

import itertools

import numpy as np
import numpy_oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import floats, rewards
from torch.testing import assert_close

from rpg_ref import BASELINES, advantages


@st.composite
def grouped(draw):
    ids = draw(st.lists(st.sampled_from([7, -2, 100]), min_size=1, max_size=4))
    groups = np.array([g for g in ids for _ in range(2)] + [ids[0]])
    return torch.tensor(draw(floats(len(groups), rewards))), torch.tensor(groups)


@given(case=grouped(), name=st.sampled_from(list(BASELINES)))
def test_by_hand(case, name):
    R, groups = case
    found = advantages(R, groups, name)
    everyone = R.numpy()
    centred = np.array(
        [r - everyone[groups.numpy() == g].mean() for r, g in zip(everyone, groups.numpy(), strict=True)]
    )
    for i, (r, g) in enumerate(zip(R.numpy(), groups.numpy(), strict=True)):
        own = R.numpy()[groups.numpy() == g]
        others = np.delete(R.numpy(), i)[np.delete(groups.numpy(), i) == g]
        expected = {
            "none": lambda r=r: r,
            "batch_mean": lambda r=r: r - everyone.mean(),
            "batch_std": lambda r=r: (r - everyone.mean()) / everyone.std(ddof=1) if np.ptp(everyone) else 0.0,
            "group_mean_batch_std": lambda i=i: centred[i] / centred.std(ddof=1) if np.ptp(everyone) else 0.0,
            "group_mean": lambda r=r, own=own: r - own.mean(),
            "leave_one_out": lambda r=r, others=others: r - others.mean(),
            "group_std": lambda r=r, own=own: (r - own.mean()) / own.std(ddof=1) if np.ptp(own) else 0.0,
        }[name]()
        spread = {"group_std": own, "batch_std": everyone, "group_mean_batch_std": centred}.get(name, np.arange(2.0))
        if np.ptp(spread) > 1e-6 or np.ptp(everyone) == 0:
            assert_close(found[i].item(), float(expected), rtol=1e-9, atol=1e-12)


@given(case=grouped(), name=st.sampled_from(list(BASELINES)), data=st.data())
def test_order_and_names_of_groups_do_not_matter(case, name, data):
    R, groups = case
    order = torch.tensor(data.draw(st.permutations(range(len(R)))))
    assert_close(advantages(R[order], groups[order] * 3 + 1, name), advantages(R, groups, name)[order])


@pytest.mark.parametrize(("name", "factor"), [("none", 1.0), ("group_mean", 2 / 3), ("leave_one_out", 1.0)])
def test_expected_gradient_of_a_group_of_three(name, factor):
    """All 27 groups of three samples of a three-armed bandit: the group mean scales the gradient by (G − 1)/G."""
    rng = np.random.default_rng(0)
    logits, reward = rng.normal(size=(2, 3))
    leaf = torch.tensor(logits, requires_grad=True)
    logp = leaf.log_softmax(0)
    total = torch.zeros((), dtype=torch.float64)
    for group in itertools.product(range(3), repeat=3):
        picked = torch.tensor(group)
        A = advantages(torch.tensor(reward)[picked], torch.zeros(3, dtype=torch.int64), name)
        total = total + (logp[picked].sum().exp().detach() * A * logp[picked]).sum() / 3
    (found,) = torch.autograd.grad(total, leaf)
    exact = numpy_oracle.gradient(lambda x: np.sum(numpy_oracle.softmax(x) * reward), logits)
    assert_close(found.numpy(), factor * exact, rtol=1e-12, atol=1e-13)


def test_group_std_is_that_of_a_sample_of_the_group():
    """Two rewards at distance 2a have the standard deviation a·√2, with one degree of freedom for the mean."""
    found = advantages(torch.tensor([1.0, 0.0, 5.0, 1.0]), torch.tensor([0, 0, 1, 1]), "group_std")
    assert_close(found, torch.tensor([1.0, -1.0, 1.0, -1.0]) / 2**0.5)


def test_equal_rewards_have_no_advantage_under_group_std():
    """Also where rounding moves their mean: 0.1 + 0.1 + 0.1 is not 3 · 0.1."""
    R = torch.full((3,), 0.1, dtype=torch.float64)
    assert R.mean() != 0.1
    assert torch.equal(advantages(R, torch.zeros(3, dtype=torch.int64), "group_std"), torch.zeros_like(R))


def test_integer_and_half_rewards_are_widened():
    groups = torch.tensor([0, 0])
    assert advantages(torch.tensor([1.0, 0.0]).bfloat16(), groups, "group_mean").dtype == torch.float32
