"""Pass@k, a penalty on the variance, and a game: which reward stands in R's place, by NumPy and by enumeration."""

from itertools import product
from math import comb

import numpy as np
import numpy_oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy_oracle import softmax
from strategies import Bandit, bandits, floats
from torch.testing import assert_close

from rpg_ref import differentiable_loss
from rpg_ref.audit.oracle import flat_gradient

BETA = 0.3
LOGITS, OLD, REF = np.random.default_rng(7).normal(size=(3, 4))
RIGHT = np.array([1.0, 0.0, 0.0, 1.0])


def pass_at(k, policy, right=RIGHT):
    """By listing all k draws: the chance that one of them is right."""
    drawn = product(range(len(policy)), repeat=k)
    return sum(np.prod(policy[list(xs)]) for xs in drawn if right[list(xs)].any())


def trained(reward, logits=LOGITS, old=OLD, ref=REF, divergence="urkl"):
    """The mean gradient that ``differentiable_loss`` ascends with this reward, over samples of π_old."""
    leaf = torch.tensor(logits, requires_grad=True)
    q, r = (torch.tensor(x).log_softmax(-1) for x in (old, ref))
    loss = differentiable_loss(leaf.log_softmax(-1), q, torch.tensor(reward), divergence, BETA, logp_ref=r)
    return -flat_gradient((q.exp() * loss).sum(), [leaf])


def exact(utility, logits=LOGITS, ref=REF, divergence="urkl"):
    def J(x):
        return utility(softmax(x)) - BETA * numpy_oracle.DIVERGENCE[divergence](softmax(x), softmax(ref))

    return torch.tensor(numpy_oracle.gradient(J, logits))


@pytest.mark.parametrize("divergence", ["fkl", "urkl", "js", "chi2"])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_a_reward_that_depends_on_the_chance(k, divergence):
    """k·(1 − ρ)^{k−1}·R, with π_θ's own ρ even where π_old draws."""
    rho = softmax(LOGITS) @ RIGHT
    J = exact(lambda p: pass_at(k, p), divergence=divergence)
    assert_close(trained(k * (1 - rho) ** (k - 1) * RIGHT, divergence=divergence), J, rtol=1e-11, atol=1e-13)
    if k > 1:
        of_old = k * (1 - softmax(OLD) @ RIGHT) ** (k - 1)
        assert (trained(of_old * RIGHT, divergence=divergence) - J).norm() > 1e-2 * J.norm()


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_optimum_of_pass_at_k_is_tilted_by_its_slope(k):
    """p* ∝ r·exp(cR/β), c = k(1 − ρ*)^{k−1}: no neighbour is better, and the shortfall is βKL plus a Bregman term."""
    r, best = softmax(REF), softmax(REF)
    low, high = 0.0, float(k)
    for _ in range(200):  # the slope falls in ρ, and ρ grows in the slope
        c = (low + high) / 2
        best = softmax(np.log(r) + c * RIGHT / BETA)
        low, high = (c, high) if k * (1 - best @ RIGHT) ** (k - 1) > c else (low, c)

    def J(p):
        return pass_at(k, p) - BETA * np.sum(p * np.log(p / r))

    rng = np.random.default_rng(3)
    for size in (1e-3, 0.3, 2.0):
        p = softmax(np.log(best) + size * rng.normal(size=4))
        short = J(best) - J(p)
        bregman = pass_at(k, best) - pass_at(k, p) - c * (best - p) @ RIGHT
        assert short == pytest.approx(BETA * np.sum(p * np.log(p / best)) + bregman, rel=1e-6, abs=1e-13)
        assert short > 0 and bregman >= -1e-15


@given(bandit=bandits(), k=st.integers(1, 4), data=st.data())
def test_pass_at_k_anywhere(bandit: Bandit, k, data):
    right = data.draw(floats(len(bandit.logits), st.sampled_from([0.0, 1.0])))
    rho = softmax(bandit.logits) @ right
    ref = np.zeros_like(bandit.old) if bandit.ref is None else bandit.ref
    found = trained(k * (1 - rho) ** (k - 1) * right, bandit.logits, bandit.old, ref)
    J = exact(lambda p: 1 - (1 - p @ right) ** k, bandit.logits, ref)
    assert_close(found, J, rtol=1e-8, atol=1e-9)


def over_groups(size, gain, probabilities):
    """The mean over groups of Σ_i gain_i·∇log p_i/size, a gradient in the logits."""
    total = np.zeros(len(probabilities))
    for xs in product(range(len(probabilities)), repeat=size):
        xs = list(xs)
        scores = np.eye(len(probabilities))[xs] - probabilities
        total += np.prod(probabilities[xs]) * np.asarray(gain(xs)) @ scores / size
    return total


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_other_samples_of_a_group_estimate_both(size):
    """Of pass@2: 2R_i·(the share of the others that fail). Of the variance: R_i − λ(R_i² − 2R_i·the others' mean)."""
    p, R, level = softmax(LOGITS), np.array([0.3, -1.0, 0.7, 2.0]), 0.4

    def of_others(values, xs):
        return (values[xs].sum() - values[xs]) / (size - 1)

    found = over_groups(size, lambda xs: 2 * RIGHT[xs] * (1 - of_others(RIGHT, xs)), p)
    assert_close(torch.tensor(found), exact(lambda x: 1 - (1 - x @ RIGHT) ** 2) - exact(lambda x: 0 * x[0]))
    found = over_groups(size, lambda xs: R[xs] - level * (R[xs] ** 2 - 2 * R[xs] * of_others(R, xs)), p)
    J = exact(lambda x: x @ R - level * (x @ R**2 - (x @ R) ** 2)) - exact(lambda x: 0 * x[0])
    assert_close(torch.tensor(found), J)


@pytest.mark.parametrize("divergence", ["fkl", "urkl", "chi2"])
def test_a_penalty_on_the_variance_is_a_reward_around_the_mean(divergence):
    """R − λ(R − E_p[R])², with π_θ's mean even where π_old draws; any other centre overstates the variance."""
    R, level = np.array([0.3, -1.0, 0.7, 2.0]), 0.4
    p, q = softmax(LOGITS), softmax(OLD)

    def penalised(x):
        return x @ R - level * (x @ R**2 - (x @ R) ** 2)

    J = exact(penalised, divergence=divergence)
    assert_close(trained(R - level * (R - p @ R) ** 2, divergence=divergence), J, rtol=1e-11, atol=1e-13)
    assert (trained(R - level * (R - q @ R) ** 2, divergence=divergence) - J).norm() > 1e-2 * J.norm()
    for nu in (-1.0, 0.0, q @ R, 5.0):
        assert p @ (R - level * (R - nu) ** 2) == pytest.approx(penalised(p) - level * (p @ R - nu) ** 2, rel=1e-12)


@given(bandit=bandits(), level=st.floats(-2.0, 2.0))
def test_a_penalty_on_the_variance_anywhere(bandit: Bandit, level):
    p, R = softmax(bandit.logits), bandit.reward
    ref = np.zeros_like(bandit.old) if bandit.ref is None else bandit.ref
    found = trained(R - level * (R - p @ R) ** 2, bandit.logits, bandit.old, ref)
    J = exact(lambda x: x @ R - level * (x @ R**2 - (x @ R) ** 2), bandit.logits, ref)
    assert_close(found, J, rtol=1e-8, atol=1e-8)


def game(p, s, payoff, r, q):
    return p @ payoff @ s - BETA * np.sum(p * np.log(p / r)) + BETA * np.sum(s * np.log(s / q))


def answers(p, s, payoff, r, q):
    return softmax(np.log(r) + payoff @ s / BETA), softmax(np.log(q) - p @ payoff / BETA)


def test_at_the_equilibrium_of_a_game_each_plays_the_reverse_kl_optimum():
    """Damped best responses settle where neither player gains; away from it the gap is βKL + βKL."""
    rng = np.random.default_rng(11)
    payoff, (r, q) = rng.normal(size=(3, 3)), softmax(rng.normal(size=(2, 3)))
    p, s = r, q
    for _ in range(4000):
        mine, theirs = answers(p, s, payoff, r, q)
        p, s = 0.98 * p + 0.02 * mine, 0.98 * s + 0.02 * theirs
    mine, theirs = answers(p, s, payoff, r, q)
    assert np.abs(p - mine).max() < 1e-12 and np.abs(s - theirs).max() < 1e-12
    value = game(p, s, payoff, r, q)
    for other in softmax(rng.normal(size=(20, 3))):
        assert game(other, s, payoff, r, q) < value < game(p, other, payoff, r, q)


@given(data=st.data())
def test_the_gap_of_a_game_is_the_two_divergences_from_the_best_responses(data):
    logits = data.draw(floats((4, 3), st.floats(-2.0, 2.0)))
    payoff = data.draw(floats((3, 3), st.floats(-1.0, 1.0)))
    p, s, r, q = softmax(logits)
    mine, theirs = answers(p, s, payoff, r, q)
    gap = game(mine, s, payoff, r, q) - game(p, theirs, payoff, r, q)
    distances = np.sum(p * np.log(p / mine)) + np.sum(s * np.log(s / theirs))
    assert gap == pytest.approx(BETA * distances, rel=1e-8, abs=1e-11)


def test_pass_at_k_of_a_group_is_the_share_of_its_subsets():
    """The definition by draws agrees with 1 − C(n − c, k)/C(n, k) in the mean: it is what benchmarks report."""
    p, size, k = softmax(LOGITS), 4, 2
    groups = (list(xs) for xs in product(range(4), repeat=size))
    mean = sum(np.prod(p[xs]) * (1 - comb(int(size - RIGHT[xs].sum()), k) / comb(size, k)) for xs in groups)
    assert mean == pytest.approx(pass_at(k, p), rel=1e-12)
