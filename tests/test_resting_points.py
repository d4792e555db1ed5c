"""Where CPGD, PMD-mean and PPO's clip come to rest: by hand on two arms, and on random bandits."""

import math

import numpy as np
import numpy_oracle
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy_oracle import softmax
from strategies import floats

from rpg_ref import DualClip, cpgd_loss, pmd_mean_loss, ppo_loss

F64 = torch.float64
UNCLIPPED = DualClip(low=1.0, high=math.inf, dual=math.inf)
SIZE = 5
logits = floats((2, SIZE), st.floats(-2.0, 2.0))
raw_advantages = floats(SIZE, st.floats(-2.0, 2.0))


def expected(loss, p, q, A, *choices, **named):
    """E_q[loss] and its gradient in the logits of p, every action a sample."""
    leaf = torch.tensor(np.log(p), requires_grad=True)
    log_q = torch.tensor(np.log(q))
    value = (log_q.exp() * loss(leaf.log_softmax(0), log_q, torch.tensor(A), *choices, **named)).sum()
    return value.item(), torch.autograd.grad(value, leaf)[0].numpy()


# CPGD


def test_cpgd_rests_at_the_sampler_tilted_by_one_plus_a_over_beta():
    """π_old = (½, ½), A = (1, −1), β = 2: π* = (¾, ¼); at β = ½ < 1 the bad arm's push never ends."""
    q, A = np.array([0.5, 0.5]), np.array([1.0, -1.0])
    _, slope = expected(cpgd_loss, np.array([0.75, 0.25]), q, A, 2.0, clip=UNCLIPPED)
    assert np.abs(slope).max() < 1e-15
    _, slope = expected(cpgd_loss, np.exp([0.5, -0.5]) / (2 * math.cosh(0.5)), q, A, 2.0, clip=UNCLIPPED)
    assert np.abs(slope).max() > 0.01  # the mirror-descent step is another policy
    values = []
    for n in (10, 20, 30):
        bad = math.exp(-n)
        value, slope = expected(cpgd_loss, np.array([1 - bad, bad]), q, A, 0.5, clip=UNCLIPPED)
        values.append(value)
        assert slope[1] > 0.24  # descent lowers its logit, however unlikely it is
    assert np.diff(values) == pytest.approx([-2.5, -2.5], abs=1e-3)  # ½·(1 − β)·10


@given(table=logits, A=raw_advantages, margin=st.floats(0.01, 3.0))
def test_any_policy_is_short_of_cpgds_optimum_by_a_kl(table, A, margin):
    """The loss at p less that at p* is E_q[A + β]·KL(p*‖p), and the gradient at p* is 0."""
    p, q = (softmax(x) for x in table)
    beta = max(0.01, margin - A.min())
    best = q * (A + beta) / (q @ (A + beta))
    at_best, slope = expected(cpgd_loss, best, q, A, beta, clip=UNCLIPPED)
    assert np.abs(slope).max() < 1e-12 * max(1.0, beta)
    gap = expected(cpgd_loss, p, q, A, beta, clip=UNCLIPPED)[0] - at_best
    exact = (q @ (A + beta)) * numpy_oracle.DIVERGENCE["fkl"](p, best)
    assert gap == pytest.approx(exact, rel=1e-9, abs=1e-12)


# PMD-mean


def fixed_point(q, A, beta):
    """p̄ and c for E_q[A] = 0: log w + c·w = A/β by Newton's steps from above, and c by bisection: q·w adds up to 1."""

    def ratios(c):
        log_w = A / beta
        for _ in range(25):
            log_w = log_w - (log_w + c * np.exp(log_w) - A / beta) / (1 + c * np.exp(log_w))
        return np.exp(log_w)

    low, high = -25.0, 5.0
    for _ in range(55):
        middle = (low + high) / 2
        low, high = (middle, high) if q @ ratios(math.exp(middle)) > 1 else (low, middle)
    return q * ratios(math.exp(low)), math.exp(low)


def test_pmd_mean_rests_where_log_w_plus_c_w_is_a_over_beta():
    """π_old = (½, ½), π̄ = (¾, ¼): w = (3/2, ½), c = KL(π_old‖π̄) = ½ log 4/3, A = β·(log w + c·w), of mean 0."""
    q, rest, beta = np.array([0.5, 0.5]), np.array([0.75, 0.25]), 0.7
    c = 0.5 * math.log(4 / 3)
    A = beta * (np.log([1.5, 0.5]) + c * np.array([1.5, 0.5]))
    assert abs(q @ A) < 1e-16
    assert np.abs(expected(pmd_mean_loss, rest, q, A, beta)[1]).max() < 1e-16
    step = q * np.exp(A / beta)  # mirror descent goes further, to (0.78, 0.22)
    assert np.abs(expected(pmd_mean_loss, step / step.sum(), q, A, beta)[1]).max() > 0.03
    found, found_c = fixed_point(q, A, beta)
    assert found == pytest.approx(rest, rel=1e-12) and found_c == pytest.approx(c, rel=1e-12)


@given(table=logits, A=raw_advantages, beta=st.sampled_from([0.3, 1.0, 4.0]))
def test_pmd_means_one_resting_point_is_that_of_a_chi2_regularised_objective(table, A, beta):
    """Where E_q[A] = 0: the root has mass 1 and c = KL(q‖p̄); it is the loss's minimum; ∇J of complex steps is 0."""
    other, q = (softmax(x) for x in table)
    A = A - q @ A
    assume(np.ptp(A) > 0.05)
    rest, c = fixed_point(q, A, beta)
    assert rest.sum() == pytest.approx(1, abs=1e-9)
    assert c == pytest.approx(numpy_oracle.DIVERGENCE["fkl"](rest, q), rel=1e-6, abs=1e-9)
    lowest, slope = expected(pmd_mean_loss, rest, q, A, beta)
    assert np.abs(slope).max() < 1e-8 and lowest <= expected(pmd_mean_loss, other, q, A, beta)[0] + 1e-9

    def J(x):
        p = softmax(x)
        return np.sum(p * A) - beta * np.sum(p * np.log(p / q)) - beta * c / 2 * np.sum((p - q) ** 2 / q)

    assert np.abs(numpy_oracle.gradient(J, np.log(rest))).max() < 1e-7


# PPO's clip on two arms


def rises(p, q, epsilon, A):
    """The expected slope of ascent in the logit of the better arm."""
    clip = DualClip(low=epsilon, high=epsilon, dual=math.inf)
    return -expected(ppo_loss, np.array([p, 1 - p]), np.array([q, 1 - q]), np.array(A), clip=clip)[1][0]


def resting_point(q, epsilon):
    return q + epsilon * max(q, 1 - q)


@pytest.mark.parametrize(("q", "rest"), [(0.1, 0.28), (0.5, 0.6), (0.7, 0.84), (0.9, 1.0)])
def test_one_round_of_ppo_on_two_arms_ends_where_it_should(q, rest):
    """ε = 0.2, rewards 1 and 0, mean baseline: ascend in steps of 0.02 nats until nothing moves, or p is near 1."""
    logit, A = math.log(q / (1 - q)), (1 - q, -q)
    for _ in range(3000):
        p = 1 / (1 + math.exp(-logit))
        slope = rises(p, q, 0.2, A)
        if slope == 0 or p > 0.999:
            break
        logit += 0.02 * slope / abs(slope)
    assert p == pytest.approx(rest, abs=0.006)
    assert (slope == 0) == (rest < 1)


def test_the_clip_bounds_a_round_and_no_number_of_rounds():
    """From 0.1 at ε = 0.2: 1 − p falls as 0.8ⁿ to 0.4608, then p grows by 1.2 a round; the seventh tends to 1."""
    q, found = 0.1, []
    while resting_point(q, 0.2) < 1:
        q = resting_point(q, 0.2)
        found.append(q)
    assert found == pytest.approx([0.28, 0.424, 0.5392, 0.64704, 0.776448, 0.9317376])


@given(
    q=st.floats(0.02, 0.98),
    epsilon=st.floats(0.05, 0.9),
    good=st.floats(0.1, 3.0),
    bad=st.floats(-3.0, -0.1),
    where=st.floats(0.0, 1.0),
)
def test_ppo_rises_until_the_later_bound_and_rests_beyond(q, epsilon, good, bad, where):
    """For any baseline between the rewards: good and bad are the advantages."""
    rest = resting_point(q, epsilon)
    before = q + where * (min(rest, 0.999) - q)
    assume(before < rest - 1e-9 and abs(before - q - epsilon * min(q, 1 - q)) > 1e-9)
    slope = rises(before, q, epsilon, (good, bad))
    live = (good if before < q * (1 + epsilon) else 0.0) - (bad if before < q + epsilon * (1 - q) else 0.0)
    assert slope == pytest.approx(before * (1 - before) * live, rel=1e-9) and slope > 0
    if rest < 0.999:
        beyond = rest + (0.001 + 0.999 * where) * (1 - rest) * 0.99
        assert rises(beyond, q, epsilon, (good, bad)) == 0
