"""Where the penalised objective is largest, and what a moving reference composes to (PAPER §9).

J(π) = Σ π R − β Σ r f(π/r) is largest over all policies where R − β f′(v) is one number λ, v = π/r. The inverses of f′
are by hand (divergence_facts); gradients are the NumPy oracle's and those of the losses as shipped, off-policy.
"""

from functools import partial

import numpy as np
import numpy_oracle
import pytest
import torch
from divergence_facts import FACTS
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy_oracle import DIVERGENCE, bandit_objective
from strategies import DIVERGENCE_NAMES, Bandit, bandits, divergence_names, floats, share

from rpg_ref import differentiable_loss, reinforce_loss

# At 0.04 a reward of 3 is 75 nats; at 1e-4 the optimum would underflow.
optimum_betas = st.sampled_from([0.04, 0.5, 1.0, 3.0])
CURVATURE = {name: facts.curvature for name, facts in FACTS.items()}
"""f″(1)."""
SLOPE = {name: (partial(facts.f_prime, log=np.log), facts.inverse) for name, facts in FACTS.items()}
"""f′ and its inverse."""


def optimum(name, reward, ref, beta):
    """π* and λ; v of the best arm is bisected between 1/Σr, since it is the largest v, and 1/r, since π ≤ 1."""
    slope, inverse = SLOPE[name]
    best = reward.argmax()

    def policy(log_v):
        return ref * inverse(slope(np.exp(log_v)) - (reward[best] - reward) / beta)

    low, high = -np.log(ref.sum()), -np.log(ref[best])
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if policy(middle).sum() > 1 else (middle, high)
    p = policy(low)
    return p / p.sum(), reward[best] - beta * slope(np.exp(low))


def reference(bandit: Bandit):
    """A measure of any mass."""
    return numpy_oracle.softmax(bandit.old) if bandit.ref is None else np.exp(bandit.ref)


def ascent(loss, p, q, reward, name, beta, ref):
    """−∇ of the expected loss at samples of q, in the logits of p."""
    leaf = torch.tensor(np.log(p), requires_grad=True)
    log_q, log_r = torch.tensor(np.log(q)), torch.tensor(np.log(ref))
    value = loss(leaf.log_softmax(-1), log_q, torch.tensor(reward), name, float(beta), logp_ref=log_r)
    return -torch.autograd.grad((log_q.exp() * value).sum(), leaf)[0].numpy()


def gradients(name, p, q, reward, ref, beta):
    exact = numpy_oracle.gradient(bandit_objective(name, beta, reward, ref), np.log(p))
    return [exact, *(ascent(loss, p, q, reward, name, beta, ref) for loss in (differentiable_loss, reinforce_loss))]


# The closed form -----------------------------------------------------------------------------------------------------

LOG = np.log


@pytest.mark.parametrize("beta", [1.0, 0.1])
@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
def test_three_to_one_is_where_each_row_comes_to_rest(name, beta):
    """And where no other does: the same reward at β/2 still pulls."""
    reward, half, p = beta * np.array(FACTS[name].resting_rewards, float), np.full(2, 0.5), np.array([0.75, 0.25])
    found, lagrange = optimum(name, reward + 7, half, beta)
    assert np.abs(found - p).max() < 1e-14
    assert lagrange == pytest.approx(7 - beta * (name == "rkl"), abs=1e-14)
    q = np.array([0.3, 0.7])
    for g in gradients(name, p, q, reward, half, beta):
        assert np.abs(g).max() < 1e-15
    for g in gradients(name, p, q, reward, half, beta / 2):
        assert g[0] > 1e-2 * beta


def test_reverse_kl_tilts_the_reference_by_the_exponential_of_the_reward():
    """r = (½, ¼, ¼) and exp(R/β) = (1, 2, 4): π* = (¼, ¼, ½), J(π*) = β log E_r exp(R/β) = β log 2."""
    ref, reward, beta = np.array([0.5, 0.25, 0.25]), 0.3 * LOG([1, 2, 4]), 0.3
    p, _ = optimum("rkl", reward, ref, beta)
    assert np.abs(p - [0.25, 0.25, 0.5]).max() < 1e-15
    J = bandit_objective("rkl", beta, reward, ref)
    assert J(LOG(p)) == pytest.approx(beta * LOG(2), rel=1e-14)
    # π = (½, ½, 0+): KL(π‖π*) = log 2.
    assert J(LOG(p)) - J(np.array([0, 0, -60])) == pytest.approx(beta * LOG(2), rel=1e-14)


def test_forward_kl_divides_by_the_distance_to_lambda():
    """r = (½, ½), β = 3, R = ±2: λ = (β + √(β² + 4·2²))/2 = 4, π* = 3·½/(4 ∓ 2) = (¾, ¼)."""
    p, lagrange = optimum("fkl", np.array([2.0, -2.0]), np.full(2, 0.5), 3.0)
    assert lagrange == pytest.approx(4, rel=1e-14) and p == pytest.approx([0.75, 0.25], rel=1e-14)


@given(bandit=bandits(), name=divergence_names, beta=optimum_betas)
def test_nothing_moves_at_the_optimum_wherever_the_samples_come_from(bandit: Bandit, name, beta):
    ref, q = reference(bandit), numpy_oracle.softmax(bandit.old)
    p, _ = optimum(name, bandit.reward, ref, beta)
    assume(p.min() > 1e-8 or name != "chi2")
    # What cancels: π R and β π f′(v), both summed over arms.
    size = 1 + (p * (np.abs(bandit.reward) + beta * np.abs(SLOPE[name][0](p / ref)))).sum()
    for g in gradients(name, p, q, bandit.reward, ref, beta):
        assert np.abs(g).max() < 1e-12 * size


def test_chi_squared_gives_an_arm_up_and_the_gradient_never_rests():
    """R = ±3 at β = 1 asks for v = 1 ± 3/2: the second arm is left, and J only rises on the way there."""
    reward, half = np.array([3.0, -3.0]), np.full(2, 0.5)
    assert optimum("chi2", reward, half, 1.0)[0] == pytest.approx([1, 0], abs=1e-15)
    for worst in (0.5, 0.1, 1e-3, 1e-6):
        for g in gradients("chi2", np.array([1 - worst, worst]), half, reward, half, 1.0):
            assert g[0] > worst


# How far below the optimum any other policy is -----------------------------------------------------------------------


@given(bandit=bandits(), name=divergence_names, beta=optimum_betas)
def test_the_gap_to_the_optimum_is_beta_times_a_divergence_from_it(bandit: Bandit, name, beta):
    """For the reverse KL J(π*) − J(π) = β KL(π‖π*); for χ² it is χ² again, for the forward KL Itakura and Saito's."""
    ref, p = reference(bandit), numpy_oracle.softmax(bandit.logits)
    best, _ = optimum(name, bandit.reward, ref, beta)
    assume(best.min() > 0)
    assume(best.min() > 1e-8 or name != "chi2")
    J = bandit_objective(name, beta, bandit.reward, ref)
    found, expected = J(np.log(best)) - J(np.log(p)), beta * FACTS[name].bregman(p, best, ref)
    size = 1 + beta * (DIVERGENCE[name](p, ref) + DIVERGENCE[name](best, ref) + ref.sum()) + abs(expected)
    assert abs(found - expected) < 1e-11 * size
    assert found > -1e-11 * size


def test_the_gap_is_kl_to_the_optimum_and_not_from_it():
    ref, reward, p = np.full(3, 1 / 3), np.array([1.0, 0.0, -1.0]), np.array([0.2, 0.2, 0.6])
    best, _ = optimum("rkl", reward, ref, 0.5)
    J = bandit_objective("rkl", 0.5, reward, ref)
    gap = J(LOG(best)) - J(LOG(p))
    assert gap == pytest.approx(0.5 * DIVERGENCE["rkl"](p, best), rel=1e-13)
    assert abs(gap - 0.5 * DIVERGENCE["rkl"](best, p)) > 0.1


def test_the_gap_to_an_optimum_on_the_boundary():
    """R = ±3, r = ½, β = 1: π* = (1, 0), λ = 1. The gap from r is 2, of which the Bregman divergence is 1."""
    ref, reward = np.full(2, 0.5), np.array([3.0, -3.0])
    best, lagrange = optimum("chi2", reward, ref, 1.0)
    assert best == pytest.approx([1.0, 0.0], abs=1e-12) and lagrange == pytest.approx(1.0, abs=1e-9)
    assert value_chi2(best, reward, ref, 1.0) - value_chi2(ref, reward, ref, 1.0) == pytest.approx(2.0, abs=1e-9)
    assert FACTS["chi2"].bregman(ref, best, ref) == pytest.approx(1.0, abs=1e-9)


def value_chi2(p, reward, ref, beta):
    return p @ reward - beta * ((p - ref) ** 2 / ref).sum()


@share(5)
@given(bandit=bandits(), beta=st.sampled_from([0.04, 0.5, 1.0]))
def test_an_action_given_up_adds_what_it_falls_short(bandit: Bandit, beta):
    """J(π*) − J(π) = β·Bregman + Σ_{π* = 0} π·(λ + β·f′(0) − R), no term negative; f′(0) = −2 for χ²."""
    ref, p = reference(bandit), numpy_oracle.softmax(bandit.logits)
    best, lagrange = optimum("chi2", bandit.reward, ref, beta)
    given_up = best == 0
    short = lagrange - 2 * beta - bandit.reward
    size = 1 + np.abs(bandit.reward).max() + beta * ((1 + ref.sum()) / ref.min())
    assert (short[given_up] >= -1e-9 * size).all()
    found = value_chi2(best, bandit.reward, ref, beta) - value_chi2(p, bandit.reward, ref, beta)
    bregman = beta * FACTS["chi2"].bregman(p, best, ref)
    assert abs(found - bregman - (p * short)[given_up].sum()) < 1e-9 * size


# A moving reference --------------------------------------------------------------------------------------------------


def iterate(name, reward, ref, beta, steps):
    """The reference becomes the exact optimum, ``steps`` times; also every λ."""
    lagrange = []
    for _ in range(steps):
        ref, x = optimum(name, reward, ref, beta)
        lagrange.append(x)
    return ref, lagrange


@given(bandit=bandits(), beta=optimum_betas, steps=st.integers(1, 5), name=st.sampled_from(["rkl", "urkl"]))
def test_k_reverse_kl_optima_at_k_beta_are_one_at_beta(bandit: Bandit, beta, steps, name):
    """So the loss with the first reference and β itself is at rest after k inner optima at kβ."""
    ref, q = reference(bandit), numpy_oracle.softmax(bandit.old)
    p, _ = iterate(name, bandit.reward, ref, steps * beta, steps)
    one, _ = optimum(name, bandit.reward, ref, beta)
    assert np.abs(p / one - 1).max() < 1e-11
    size = 1 + (p * (np.abs(bandit.reward) + beta * np.abs(1 + np.log(p / ref)))).sum()
    for g in gradients(name, p, q, bandit.reward, ref, beta):
        assert np.abs(g).max() < 1e-11 * size


@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
def test_only_the_reverse_kl_composes(name):
    ref, reward = np.array([0.5, 0.3, 0.2]), np.array([-0.4, 0.1, 0.5])
    two, one = iterate(name, reward, ref, 2.0, 2)[0], optimum(name, reward, ref, 1.0)[0]
    away = np.abs(two - one).max()
    assert away < 1e-14 if name in ("rkl", "urkl") else away > 1e-3
    rest = ascent(differentiable_loss, two, ref, reward, name, 1.0, ref)
    assert np.abs(rest).max() < 1e-14 if name in ("rkl", "urkl") else np.abs(rest).max() > 1e-3


def test_with_two_rewards_the_forward_kl_composes_at_an_isolated_reference():
    """R = ±5/6, β = 1, π_ref = (1/5, 4/5): an affine function and a quadratic one meet at both rewards."""
    reward, away = np.array([5, -5]) / 6, {}
    for first in (0.19, 0.2, 0.21):
        ref = np.array([first, 1 - first])
        two, one = iterate("fkl", reward, ref, 2.0, 2)[0], optimum("fkl", reward, ref, 1.0)[0]
        away[first] = two[0] - one[0]
    assert abs(away[0.2]) < 1e-14 and away[0.19] * away[0.21] < 0 and min(abs(away[0.19]), abs(away[0.21])) > 1e-4
    two = iterate("fkl", reward, np.array([0.2, 0.8]), 2.0, 2)[0]
    np.testing.assert_allclose(two, [0.6, 0.4], rtol=1e-13)


@given(bandit=bandits(), beta=st.sampled_from([0.5, 1.0, 3.0]))
def test_two_forward_kl_optima_at_two_beta_are_one_at_beta_for_another_reward(bandit: Bandit, beta):
    """r/p₂ = (λ₁ − R)(λ₂ − R)/(2β)² is of degree two in R: the optimum for ((λ₁ + λ₂)R − R²)/(4β), rising with R."""
    ref, R = reference(bandit), bandit.reward
    p, (first, second) = iterate("fkl", R, ref, 2 * beta, 2)
    assert np.abs(p * (first - R) * (second - R) / (4 * beta**2 * ref) - 1).max() < 1e-9
    bent = ((first + second) * R - R**2) / (4 * beta)
    one, _ = optimum("fkl", bent, ref, beta)
    size = 1 + np.abs(bent).max() / beta
    assert np.abs(p - one).max() < 1e-10 * size
    order = np.argsort(R)
    assert (np.diff(bent[order]) >= -1e-14 * size).all()


@pytest.mark.parametrize(("common", "sign"), [(0.5, -1), (0.01, 1)])
def test_one_forward_kl_optimum_is_tamer_than_many_unless_the_best_arm_is_rare(common, sign):
    """Log-odds gained, against R/β's: −⅔(δ/β)³·2 of them are missing at r = (½, ½), R = ±δ; a rare arm gains more."""
    ref, reward = np.array([common, 1 - common]), np.array([0.3, -0.3])
    gained = {k: np.diff(-LOG(iterate("fkl", reward, ref, float(k), k)[0] / ref))[0] for k in (1, 2, 4, 8)}
    away = [sign * (gained[k] - 0.6) for k in (1, 2, 4, 8)]
    assert away == sorted(away, reverse=True) and away[-1] > 0
    if common == 0.5:
        root = (1 + np.sqrt(1 + 4 * 0.09)) / 2
        assert gained[1] == pytest.approx(2 * np.arctanh(0.3 / root), rel=1e-13)


@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
def test_many_small_steps_of_any_row_reach_the_reverse_kl_optimum(name):
    """k optima at kβ/f″(1) approach r·exp(R/β), and the error halves as k doubles: only the curvature at 1 is left."""
    ref, reward, beta = np.array([0.5, 0.3, 0.2]), np.array([-0.4, 0.1, 0.5]), 0.8
    limit = optimum("rkl", reward, ref, beta)[0]
    errors = [np.abs(iterate(name, reward, ref, k * beta / CURVATURE[name], k)[0] - limit).max() for k in (16, 32, 64)]
    if name in ("rkl", "urkl"):
        assert max(errors) < 1e-14
    else:
        assert np.divide(errors[:-1], errors[1:]) == pytest.approx(2, rel=0.05)


@given(
    reward=floats(3, st.floats(-0.5, 0.5)),
    logits=floats(3, st.floats(-2.0, 2.0)),
    name=divergence_names,
    steps=st.sampled_from([4, 8]),
)
def test_k_steps_of_any_row_are_that_near_to_the_reverse_kl_optimum(reward, logits, name, steps):
    """Log-odds lie within k·E(spread/kβ) = O(1/k), E what a straight line misses of log (f′)⁻¹, convex or concave."""
    ref, curvature, (slope, inverse) = numpy_oracle.softmax(logits), CURVATURE[name], SLOPE[name]
    p, _ = iterate(name, reward, ref, steps / curvature, steps)
    away = np.ptp(np.log(p / ref) - reward)
    x = np.ptp(reward) / steps * np.array([-1, 1])
    bound = steps * np.abs(np.log(inverse(slope(1.0) + curvature * x)) - x).max()
    assert away <= bound + 1e-12
    assert bound < 0.5
