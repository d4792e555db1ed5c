"""A batch that is used twice biases its second gradient; samples that were not in the step do not."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy_oracle import STEP, bandit_objective, gradient, softmax
from strategies import bandits, share

from rpg_ref import advantages, differentiable_loss


def every(arms, size):
    return np.array(list(itertools.product(range(arms), repeat=size)))


def batch_gradient(theta, q, y, A, name="urkl", beta=0.0):
    """ĝ of the code: −∇ of the mean loss of the samples y with the advantages A, at θ."""
    leaf = torch.tensor(theta, requires_grad=True)
    loss = differentiable_loss(leaf.log_softmax(-1)[y], torch.tensor(np.log(q[y])), torch.tensor(A), name, beta)
    return -torch.autograd.grad(loss.mean(), leaf)[0].numpy()


def second_bias(theta, q, reward, size, alpha, name="urkl", beta=0.0):
    """E over batches of ĝ(θ₁) − ∇J(θ₁), θ₁ = θ₀ + α·ĝ(θ₀), the batch being the same."""
    total, J = np.zeros(len(q)), bandit_objective(name, beta, reward, q)
    for y in every(len(q), size):
        moved = theta + alpha * batch_gradient(theta, q, y, reward[y], name, beta)
        again = batch_gradient(moved, q, y, reward[y], name, beta)
        total += q[y].prod() * (again - gradient(J, moved))
    return total


def test_the_bias_of_a_second_use_by_hand():
    """p = q = (¼, ¾), R = (1, 0). In the first logit g = ¾, 0 and ∂g = 3/8, 0: the covariance is 27/512.

    In two logits the second is minus the first, so ∂ĝ·ĝ is twice as large.
    """
    theta, q, reward = np.log([1.0, 3.0]), np.array([0.25, 0.75]), np.array([1.0, 0.0])
    for size in (1, 2, 4):
        expected = 2 * 27 / 512 / size * np.array([1, -1])
        rest = [second_bias(theta, q, reward, size, a) / a - expected for a in (1e-2, 5e-3)]
        assert 0 < np.abs(rest[1]).max() < 1e-3
        assert np.abs(rest[0] / rest[1] - 2).max() < 0.05  # what is left falls as α² in the bias itself


THETA, OLD, REWARD = np.array([0.3, -0.2, 0.0]), np.array([0.5, 0.2, 0.3]), np.array([1.0, -0.5, 0.25])


def next_bias(groups, first, baseline, alpha, factor=1.0):
    """E[ĝ(θ₁) − factor·∇J(θ₁)] of the samples that are not among the first ones, which make the step."""
    groups, total = np.array(groups), np.zeros(3)
    rest, J = [n for n in range(len(groups)) if n not in first], bandit_objective("urkl", 0.0, REWARD, OLD)
    for y in every(3, len(groups)):
        A = advantages(torch.tensor(REWARD[y]), torch.tensor(groups), baseline).numpy()
        moved = THETA + alpha * batch_gradient(THETA, OLD, y[first], A[first])
        total += OLD[y].prod() * (batch_gradient(moved, OLD, y[rest], A[rest]) - factor * gradient(J, moved))
    return total


@pytest.mark.parametrize(("baseline", "factor"), [("leave_one_out", 1), ("group_mean", 1 / 2)])
def test_disjoint_mini_batches_of_whole_groups_are_exact(baseline, factor):
    assert np.abs(next_bias([0, 0, 1, 1], [0, 1], baseline, 2.0, factor)).max() < 1e-14
    assert np.abs(next_bias([0, 0, 1, 1], [0, 1], baseline, 2.0, 1.1 * factor)).max() > 1e-3


@pytest.mark.parametrize("first", [[0], [0, 1]])
def test_a_group_that_is_split_is_biased_by_one_over_its_others_squared(first):
    """Groups of three, α → 0: bias/α tends to H·∇J/(G − 1)², H the Hessian; a line through α and α/2."""
    J = bandit_objective("urkl", 0.0, REWARD, OLD)
    small = 1e-3
    steps = [next_bias([0, 0, 0], first, "leave_one_out", a) / a for a in (small, small / 2)]
    exact = gradient(J, THETA)
    moved = [gradient(J, THETA + sign * 1e-4 * exact) for sign in (1, -1)]
    curved = (moved[0] - moved[1]) / 2e-4
    assert np.abs(2 * steps[1] - steps[0] - curved / 4).max() < 1e-6 < 1e-3 < np.abs(curved).max()


def estimate(theta, q, y, reward, slope, beta):
    """ĝ in NumPy, analytic in θ: the mean of (w·R − β·slope(w))·∇log p, π_ref = π_old."""
    p = softmax(theta)
    w = p[y] / q[y]
    scores = np.eye(len(q))[y] - p
    return ((w * reward[y] - beta * slope(w))[:, None] * scores).mean(0)


SLOPES = {"urkl": lambda w: w * np.log(w), "fkl": lambda w: -np.ones_like(w), "chi2": lambda w: 2 * w * (w - 1)}


@share(2)
@given(bandit=bandits(), size=st.integers(1, 3), name=st.sampled_from(sorted(SLOPES)), beta=st.sampled_from([0.0, 0.5]))
def test_the_bias_starts_as_the_covariance_over_the_batch(bandit, size, name, beta):
    """d/dα of the bias at α = 0, by a complex step along each batch's own gradient, is Cov(∂g, g)/N."""
    theta, q, R = bandit.logits[:3], softmax(bandit.old[:3]), bandit.reward[:3]
    J, arms, slope = bandit_objective(name, beta, R, q), len(theta), SLOPES[name]
    found = np.zeros(arms)

    def moved(y, direction):
        return np.imag(estimate(theta + 1j * STEP * direction, q, y, R, slope, beta)) / STEP

    single = np.array([estimate(theta, q, np.array([x]), R, slope, beta) for x in range(arms)])
    jacobians = np.array([[moved(np.array([x]), e) for e in np.eye(arms)] for x in range(arms)])  # [x, k, l] = ∂_k g_l
    hessian = np.einsum("x,xkl->kl", q, jacobians)
    for y in every(arms, size):
        step = estimate(theta, q, y, R, slope, beta)
        assert np.abs(step - batch_gradient(theta, q, y, R[y], name, beta)).max() < 1e-11 * (1 + np.abs(step).max())
        found += q[y].prod() * (moved(y, step) - step @ hessian)
    mean = q @ single
    assert np.abs(mean - gradient(J, theta)).max() < 1e-10 * (1 + np.abs(single).max())
    covariance = np.einsum("x,xkl,xk->l", q, jacobians, single) - mean @ hessian
    size_of_terms = 1 + np.einsum("x,xkl,xk->l", q, np.abs(jacobians), np.abs(single)).max()
    assert np.abs(found - covariance / size).max() < 1e-12 * size_of_terms
