"""How the reverse KL's optimum depends on β and on the reward, how fast it is reached, and what merging makes of it.

Optima are closed forms in NumPy, or those that tests/test_optimum.py bisects; derivatives in β or in a reward's error
are complex steps through them. Gradients in θ are the NumPy oracle's and those of the losses as shipped.
"""

import numpy as np
import numpy_oracle
import pytest
import torch
from divergence_facts import FACTS
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy_oracle import STEP, bandit_objective, gradient, softmax
from strategies import DIVERGENCE_NAMES, Bandit, Tree, bandits, divergence_names, floats, trees
from test_optimum import SLOPE, ascent, optimum, reference

from rpg_ref import differentiable_loss
from rpg_ref.surrogates import entropy_loss

strengths = st.sampled_from([0.3, 1.0, 3.0])


def tilted(measure, exponent):
    """``measure``·e^exponent over its sum; analytic, so that complex steps pass through."""
    e = measure * np.exp(exponent - np.max(exponent.real))
    return e / e.sum()


def variance(p, x):
    return p @ x**2 - (p @ x) ** 2


def kl(p, r):
    return np.sum(p * np.log(np.where(p == 0, 1, p) / r))


def normalised(bandit: Bandit):
    r = reference(bandit)
    return r / r.sum()


# An entropy bonus ----------------------------------------------------------------------------------------------------

BINARY = (2, 3, 0)
"""Token 0 ends a response, and so does the third token: (0), (1, 0), (1, 1, 0), (1, 1, 1)."""
LENGTHS = np.array([1, 2, 3, 3])


def entropy(table, shape):
    """H of whole responses, and the sum over states of reach·(log V − KL(p‖uniform)), from next-token probabilities."""
    states = {prefix: s for s, prefix in enumerate(numpy_oracle.prefixes(*shape))}
    chances, reach = [], {prefix: 0.0 for prefix in states}
    for response in numpy_oracle.responses(*shape):
        chance = np.prod([table[states[response[:t]], token] for t, token in enumerate(response)])
        chances.append(chance)
        for t in range(len(response)):
            reach[response[:t]] += chance
    chances, V = np.array(chances), shape[0]
    tokens = [reach[h] * (np.log(V) - kl(table[s], np.full(V, 1 / V))) for h, s in states.items()]
    return -np.sum(chances * np.log(chances)), np.sum(tokens), chances, np.array(list(reach.values()))


def test_the_entropy_of_responses_pays_for_length_by_hand():
    """It is largest where all four responses have ¼, of 9/4 tokens on average; tokens drawn uniformly make it 7/4."""
    best = np.array([[1 / 4, 3 / 4], [1 / 3, 2 / 3], [1 / 2, 1 / 2]])
    H, tokens, chances, reach = entropy(best, BINARY)
    assert chances == pytest.approx(np.full(4, 1 / 4)) and H == pytest.approx(np.log(4), rel=1e-14)
    assert tokens == pytest.approx(H, rel=1e-14) and chances @ LENGTHS == pytest.approx(9 / 4) == reach.sum()
    uniform = np.full((3, 2), 0.5)
    H, _, chances, _ = entropy(uniform, BINARY)
    assert H == pytest.approx(7 / 4 * np.log(2), rel=1e-14) and chances @ LENGTHS == pytest.approx(7 / 4)
    pull = gradient(lambda x: entropy(softmax(x), BINARY)[0], np.log(uniform))
    assert pull[0, 1] > 0.1 and np.abs(gradient(lambda x: entropy(softmax(x), BINARY)[0], np.log(best))).max() < 1e-15


def test_an_entropy_bonus_of_one_decision_by_hand():
    """p = (¼, ¾): H = log 2 − KL(p‖(½, ½)). E[R] + βH is largest at ∝ e^{R/β}: R = (β log 3, 0) rests at (¾, ¼)."""
    p, half = np.array([0.25, 0.75]), np.full(2, 0.5)
    assert -(p @ np.log(p)) == pytest.approx(np.log(2) - kl(p, half), rel=1e-14)
    q, leaf = torch.tensor([0.4, 0.6], dtype=torch.float64), torch.tensor([np.log(3), 0.0], requires_grad=True)
    reward = torch.tensor([0.7 * np.log(3), 0.0])
    loss = entropy_loss(leaf.log_softmax(-1), q.log(), reward, "urkl", 0.0, entropy=0.7)
    assert torch.autograd.grad((q * loss).sum(), leaf)[0].abs().max() < 1e-15


@given(bandit=bandits(), strength=strengths, tree=trees())
def test_an_entropy_bonus_is_a_reverse_kl_to_the_uniform_policy(bandit: Bandit, strength, tree: Tree):
    """The shipped loss off-policy, beside E[R] − β·KL(π‖1/n); and H of responses, beside its sum over tokens."""
    n = len(bandit.reward)
    leaf, old = torch.tensor(bandit.logits, requires_grad=True), torch.tensor(bandit.old).log_softmax(-1)
    reward = torch.tensor(bandit.reward)
    loss = entropy_loss(leaf.log_softmax(-1), old, reward, "urkl", 0.0, entropy=strength)
    found = -torch.autograd.grad((old.exp() * loss).sum(), leaf)[0].numpy()
    exact = gradient(bandit_objective("rkl", strength, bandit.reward, np.full(n, 1 / n)), bandit.logits)
    assert np.abs(found - exact).max() < 1e-12 * (1 + strength)
    whole, tokens = (gradient(lambda x, k=k: entropy(softmax(x), tree.shape)[k], tree.logits) for k in (0, 1))
    assert np.abs(whole - tokens).max() < 1e-12


# Choosing β ----------------------------------------------------------------------------------------------------------


def test_the_kl_of_the_optimum_by_hand():
    """r = ½, R = ±1, e^{2/β} = 3: p* = (¾, ¼), Var(R) = ¾, KL = log 2 − H(¾, ¼); dKL/dβ = −¾/β³, dJ*/dβ = −KL."""
    half, R, beta = np.full(2, 0.5), np.array([1.0, -1.0]), 2 / np.log(3)
    assert tilted(half, R / beta) == pytest.approx([0.75, 0.25], rel=1e-14)
    K = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    moved = beta + 1j * STEP
    p = tilted(half, R / moved)
    assert kl(p, half).real == pytest.approx(K, rel=1e-14)
    assert kl(p, half).imag / STEP == pytest.approx(-0.75 / beta**3, rel=1e-13)
    J = p @ R - moved * kl(p, half)
    assert J.imag / STEP == pytest.approx(-K, rel=1e-13) and J.real == pytest.approx(beta * np.log(np.cosh(1 / beta)))


def beta_of(target, r, R):
    """The β whose optimum is ``target`` nats from r, by bisection of log β."""
    low, high = np.log(1e-3), np.log(1e6)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if kl(tilted(r, R / np.exp(middle)), r) > target else (low, middle)
    return np.exp(low)


@given(bandit=bandits(), beta=strengths, share=st.floats(0.05, 0.8))
def test_one_beta_has_the_target_kl_and_the_derivatives_are_variances(bandit: Bandit, beta, share):
    r, R = normalised(bandit), bandit.reward
    assume(np.ptp(R) > 0.1)
    moved = tilted(r, R / (beta + 1j * STEP))
    p = moved.real
    size = 1 + np.ptp(R) / beta
    assert abs(kl(moved, r).imag / STEP + variance(p, R) / beta**3) < 1e-11 * size**3
    J = moved @ R - (beta + 1j * STEP) * kl(moved, r)
    assert abs(J.imag / STEP + kl(p, r)) < 1e-11 * size
    assert kl(p, r) <= np.ptp(R) ** 2 / (8 * beta**2) + 1e-12  # so β = range/√(8·target) is never too small
    # Every target below that of the best arms alone is met once.
    target = -share * np.log(r[R == R.max()].sum())
    assume(target > 1e-6 and beta_of(target, r, R) > 0.02)
    found = beta_of(target, r, R)
    assert kl(tilted(r, R / found), r) == pytest.approx(target, rel=1e-8)
    falling = [kl(tilted(r, R / x), r) for x in (0.8 * found, found, 1.25 * found)]
    assert falling[0] > target * (1 + 1e-12) and falling[2] < target * (1 - 1e-12)
    rest = ascent(differentiable_loss, tilted(r, R / found), softmax(bandit.old), R, "rkl", found, r)
    assert np.abs(rest).max() < 1e-12 * (1 + np.abs(R).max() + found)


# A wrong reward ------------------------------------------------------------------------------------------------------


def shortfall(r, right, wrong, beta):
    """What J loses at the optimum of another reward."""
    best, other = tilted(r, right / beta), tilted(r, wrong / beta)
    return (best @ right - beta * kl(best, r)) - (other @ right - beta * kl(other, r))


def test_a_wrong_reward_by_hand():
    """r = ½, β = 1, R = 0, R̂ = ±½·log 3: p̂ = (¾, ¼) and J falls short by KL(p̂‖½). To leading order by (½·log 3)²/2."""
    half, R, wrong = np.full(2, 0.5), np.zeros(2), np.log(3) / 2 * np.array([1, -1])
    K = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert shortfall(half, R, wrong, 1.0) == pytest.approx(K, rel=1e-13)
    assert K < (np.log(3) / 2) ** 2 / 2 == np.ptp(wrong) ** 2 / 8  # the bound
    ratios = [shortfall(half, R, e * wrong, 1.0) / (e**2 * variance(half, wrong) / 2) for e in (0.1, 0.05)]
    assert 1 - ratios[0] == pytest.approx(4 * (1 - ratios[1]), rel=0.02) and abs(1 - ratios[1]) < 1e-3
    assert shortfall(half, R + 5, R, 1.0) == pytest.approx(0, abs=1e-14)  # a constant costs nothing


@given(bandit=bandits(), beta=strengths, error=floats(6, st.floats(-1.0, 1.0)))
def test_a_wrong_reward_costs_the_integral_of_a_variance(bandit: Bandit, beta, error):
    """β·∫ s·Var_{p_s}(error/β) ds by Gauss and Legendre, at most range²/(8β); the loss as shipped rests at p̂."""
    r, R, error = reference(bandit), bandit.reward, error[: len(bandit.reward)]
    nodes, weights = np.polynomial.legendre.leggauss(40)
    nodes, weights = (nodes + 1) / 2, weights / 2
    found = shortfall(r, R, R + error, beta)
    path = [s * variance(tilted(r, (R + s * error) / beta), error / beta) for s in nodes]
    size = 1 + np.ptp(R) + abs(np.log(r)).max() * beta
    assert abs(found - beta * weights @ path) < 1e-11 * size
    assert -1e-12 * size <= found <= np.ptp(error) ** 2 / (8 * beta) + 1e-12 * size
    # The right reward pulls away from p̂ by the gradient of −E[error].
    p, q = tilted(r, (R + error) / beta), softmax(bandit.old)
    right, wrong = (ascent(differentiable_loss, p, q, reward, "rkl", beta, r) for reward in (R, R + error))
    assert np.abs(wrong).max() < 1e-12 * size
    assert np.abs(right + p * (error - p @ error)).max() < 1e-12 * size


# How fast ------------------------------------------------------------------------------------------------------------


def natural_ascent(p, q, R, beta, r):
    """F⁺ times −∇ of the shipped expected loss."""
    F = np.diag(p) - np.outer(p, p)
    return np.linalg.pinv(F, rcond=1e-12, hermitian=True) @ ascent(differentiable_loss, p, q, R, "rkl", beta, r)


def test_natural_steps_of_two_arms_by_hand():
    """r = ½, R = ±½·log 3, β = 1, η = ½ from p = ½: log-odds log 3·(½, ¾, ⅞); a step of 1/β is there at once."""
    half, R = np.full(2, 0.5), np.log(3) / 2 * np.array([1, -1])
    z, odds = np.zeros(2), []
    for _ in range(3):
        z = z + 0.5 * natural_ascent(softmax(z), half, R, 1.0, half)
        odds.append(z[0] - z[1])
    assert odds == pytest.approx(np.log(3) * np.array([1 / 2, 3 / 4, 7 / 8]), rel=1e-12)
    assert softmax(natural_ascent(half, half, R, 1.0, half)) == pytest.approx([0.75, 0.25], rel=1e-12)
    # At η = 2/β the log-odds flip sign about the optimum for ever.
    z = 2 * natural_ascent(half, half, R, 1.0, half)
    z = z + 2 * natural_ascent(softmax(z), half, R, 1.0, half)
    assert z[0] - z[1] == pytest.approx(0, abs=1e-12)


def psi(y):
    return (np.expm1(y) - y) / y**2 if abs(y) > 1e-4 else 1 / 2 + y / 6


@given(
    logits=floats(4, st.floats(-2.0, 2.0)),
    ref=floats(4, st.floats(-2.0, 2.0)),
    R=floats(4, st.floats(-1.0, 1.0)),
    beta=strengths,
    pace=st.sampled_from([0.3, 1.0, 1.7]),
)
def test_natural_steps_contract_and_the_plain_gradient_is_bounded_below(logits, ref, R, beta, pace):
    """Log-ratios to p* by 1 − ηβ a step. And ‖∇J‖² ≥ β·p_min·(J* − J)/ψ(M), so a step of 1/L closes that share."""
    r, p, q = softmax(ref), softmax(logits), np.full(4, 1 / 4)
    best = tilted(r, R / beta)
    ratio, z = np.log(p / best), logits
    for k in (1, 2, 3):
        z = z + pace / beta * natural_ascent(softmax(z), q, R, beta, r)
        left = np.log(softmax(z) / best) - (1 - pace) ** k * ratio
        assert np.ptp(left) < 1e-9 * (1 + np.ptp(ratio)) * (1 + 1 / beta)
    g, gap = ascent(differentiable_loss, p, q, R, "rkl", beta, r), beta * kl(p, best)
    largest = (kl(p, best) - ratio).max()
    floor = beta * p.min() * gap / psi(largest)
    assert g @ g >= floor - 1e-12
    # ∇J is Lipschitz: by its Hessian, E[R]'s and the KL's, whose E_p|l| is at most n/e + max|log p*|.
    L = np.ptp(R) + beta * (1 + 2 * (4 / np.e + np.abs(np.log(best)).max()))
    J = bandit_objective("rkl", beta, R, r)
    after = J(np.log(best)) - J(logits + g / L)
    assert after <= gap * (1 - beta * p.min() / (2 * L * psi(largest))) + 1e-12


def test_the_plain_gradients_bound_is_reached_and_needs_the_smallest_probability():
    """Two arms, R = 0: next to p = ½ the ratio ‖∇J‖²/(β·(J* − J)) is p_min/ψ(0) = 1; it vanishes with p_min."""
    half, R, shares = np.full(2, 0.5), np.zeros(2), []
    for logit in (1e-3, 3.0, 10.0):
        p = softmax(np.array([0.0, -logit]))
        g = ascent(differentiable_loss, p, half, R, "rkl", 1.0, half)
        shares.append(g @ g / kl(p, half))
    assert shares[0] == pytest.approx(1.0, rel=1e-2) and shares[2] < 1e-5 < shares[1] < shares[0]


# Mirror descent ------------------------------------------------------------------------------------------------------


def mirror_step(name, p, R, r, beta, eta):
    """The policy that maximises E[R] − β·D − B(·, p)/η, by bisection: f′(v) = (R + f′(v_k)/η − λ)/(β + 1/η)."""
    return optimum(name, R + SLOPE[name][0](p / r) / eta, r, beta + 1 / eta)[0]


def test_mirror_steps_of_two_arms_by_hand():
    """r = ½. Reverse KL: η = β = 1 halves log-odds. χ², f′ = 2v − 2: the distance of v to v* is halved instead."""
    half = np.full(2, 0.5)
    p = mirror_step("rkl", half, np.log(3) / 2 * np.array([1, -1]), half, 1.0, 1.0)
    assert np.log(p[0] / p[1]) == pytest.approx(np.log(3) / 2, rel=1e-12)
    reward = np.array([1.0, -1.0])  # v* = 1 ± ½
    assert mirror_step("chi2", half, reward, half, 1.0, 1.0) == pytest.approx([0.625, 0.375], rel=1e-12)
    assert mirror_step("chi2", half, reward, half, 1.0, 1e9) == pytest.approx([0.75, 0.25], rel=1e-7)


@given(bandit=bandits(), name=divergence_names, beta=strengths, eta=st.sampled_from([0.2, 1.0, 8.0]))
def test_mirror_steps_contract_at_every_step_size(bandit: Bandit, name, beta, eta):
    """f′(v) − f′(v*) by 1/(1 + ηβ) up to a constant; B(p*, ·) falls by what the three points say, exactly."""
    r, R, now = normalised(bandit), bandit.reward, softmax(bandit.logits)
    best, after = optimum(name, R, r, beta)[0], mirror_step(name, now, R, r, beta, eta)
    assume(min(best.min(), after.min()) > 1e-6)
    slope, far, J = SLOPE[name][0], FACTS[name].bregman, bandit_objective(name, beta, R, r)
    slopes = [slope(x / r) for x in (now, after, best)]
    size = 1 + max(np.abs(x).max() for x in slopes) + far(best, now, r)
    left = slopes[1] - slopes[2] - (slopes[0] - slopes[2]) / (1 + eta * beta)
    assert np.ptp(left) < 1e-8 * size
    gain = eta * (J(np.log(best)) - J(np.log(after)))
    found = (1 + eta * beta) * far(best, after, r) + far(after, now, r) + gain
    assert abs(found - far(best, now, r)) < 1e-8 * size * (1 + eta) * (1 + beta)
    assert far(best, after, r) <= far(best, now, r) / (1 + eta * beta) + 1e-9 * size
    # The step is where the oracle's gradient of the regularised objective vanishes.
    pull = gradient(lambda x: J(x) - far(softmax(x), now, r) / eta, np.log(after))
    assert np.abs(pull).max() < 1e-8 * size * (1 + 1 / eta) * (1 + beta)


@pytest.mark.parametrize("name", [name for name in DIVERGENCE_NAMES if name != "rkl"])
def test_no_other_rows_log_ratios_contract(name):
    """The contraction is that of f′(v): log v does so for the reverse KL alone."""
    r, R, now = np.array([0.5, 0.3, 0.2]), np.array([0.3, -0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    best, after = optimum(name, R, r, 1.0)[0], mirror_step(name, now, R, r, 1.0, 1.0)
    left = np.ptp(np.log(after / best) - np.log(now / best) / 2)
    assert left < 1e-12 if name == "urkl" else left > 1e-3


# Merging -------------------------------------------------------------------------------------------------------------


def merged(policies, weights):
    """The policy of the weighted mean of the logits."""
    return softmax(sum(w * np.log(p) for w, p in zip(weights, policies, strict=True)))


def test_merging_by_hand():
    """r = ½ and odds of 9 at β: half-way odds of 3. Two rounds of β with an anchor of rate ½ leave the anchor at 9."""
    half, R, beta = np.full(2, 0.5), np.log(3) * np.array([1, -1]), 1.0
    best = tilted(half, R / beta)
    assert best == pytest.approx([0.9, 0.1]) and merged((half, best), (0.5, 0.5)) == pytest.approx([0.75, 0.25])
    anchor = half
    for _ in range(2):
        anchor = merged((anchor, tilted(anchor, R / beta)), (0.5, 0.5))
    assert anchor == pytest.approx([0.9, 0.1], rel=1e-13)
    opposite = tilted(half, -R / beta)
    assert merged((best, opposite), (0.5, 0.5)) == pytest.approx(half)  # rewards that cancel
    assert (half + best) / 2 == pytest.approx([0.7, 0.3])  # a mixture of the samples is another policy


@given(
    bandit=bandits(),
    beta=strengths,
    mu=st.floats(0.05, 1.0),
    rounds=st.integers(1, 4),
    second=floats(6, st.floats(-1, 1)),
)
def test_merged_optima_are_optima_and_the_loss_rests_there(bandit: Bandit, beta, mu, rounds, second):
    r, R, q, second = normalised(bandit), bandit.reward, softmax(bandit.old), second[: len(bandit.reward)]
    best = tilted(r, R / beta)
    anchor = r
    for _ in range(rounds):
        anchor = merged((anchor, tilted(anchor, R / beta)), (1 - mu, mu))
    mean = (R + second + 0.5 * R) / 3
    cases = [
        (merged((r, best), (1 - mu, mu)), R, beta / mu),
        (anchor, R, beta / (rounds * mu)),
        (merged((best, tilted(r, second / beta), tilted(r, 0.5 * R / beta)), (1 / 3, 1 / 3, 1 / 3)), mean, beta),
        (merged((best, tilted(r, R / (3 * beta))), (1 - mu, mu)), R, 1 / ((1 - mu) / beta + mu / (3 * beta))),
    ]
    for p, reward, strength in cases:
        rest = ascent(differentiable_loss, p, q, reward, "rkl", strength, r)
        assert np.abs(rest).max() < 1e-11 * (1 + np.abs(reward).max() + strength * (1 + np.abs(np.log(p / r)).max()))
