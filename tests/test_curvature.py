"""Around π_θ = π_ref = π_old every divergence is a multiple of the Fisher metric (App. B, PAPER §9).

Fisher matrices are sums over all responses in NumPy; Hessians are those of the audit oracle's definitions and of the
expected losses as shipped.
"""

import functools

import numpy as np
import numpy_oracle
import pytest
import torch
from divergence_facts import FACTS
from hypothesis import given
from hypothesis import strategies as st
from numpy_oracle import DIVERGENCE, softmax
from strategies import (
    DIVERGENCE_NAMES,
    SampleInputs,
    Tree,
    betas,
    divergence_names,
    floats,
    sample_inputs,
    share,
    trees,
)

from rpg_ref import clipped_loss, differentiable_loss, reinforce_loss, weight
from rpg_ref.audit import oracle

# f″(1), from f as PAPER §2 prints it.
CURVATURE = {name: facts.curvature for name, facts in FACTS.items()}
AT_REST = [name for name, facts in FACTS.items() if facts.f_prime_at_one == 0]
"""f′(1) = 0, sample by sample."""
prefix_tree = functools.cache(oracle.prefix_tree)
LOSSES = [differentiable_loss, reinforce_loss, clipped_loss]


def scores(shape, logits):
    """Each response's probability [N] and ∇log π of it [N, S·V]: a one-hot less π at every state it visits."""
    table = softmax(logits)
    states = {prefix: s for s, prefix in enumerate(numpy_oracle.prefixes(*shape))}
    probability, rows = [], []
    for response in numpy_oracle.responses(*shape):
        score, p = np.zeros(table.shape), 1.0
        for t, token in enumerate(response):
            s = states[response[:t]]
            p *= table[s, token]
            score[s] -= table[s]
            score[s, token] += 1
        probability.append(p)
        rows.append(score.ravel())
    return np.array(probability), np.array(rows)


def fisher(shape, logits):
    probability, score = scores(shape, logits)
    return score.T @ (probability[:, None] * score)


def response_logp(shape, table):
    """log π of every response from next-token log-probabilities [S, V]."""
    return oracle.token_logp(prefix_tree(*shape), table).sum(1)


def expected_penalty(name, shape, loss=differentiable_loss, reward=0.0, beta=1.0):
    """θ ↦ the loss in expectation over all responses, π_old = π_ref fixed at the given logits."""

    def at(anchor):
        old = response_logp(shape, anchor.log_softmax(-1))
        return lambda theta: (
            old.exp() * loss(response_logp(shape, theta.log_softmax(-1)), old, reward, name, beta)
        ).sum()

    return at


def definition(name, shape):
    """θ ↦ D(π_θ, π) of whole responses, by the audit oracle's definition."""

    def at(anchor):
        ref = response_logp(shape, anchor.log_softmax(-1))
        return lambda theta: oracle.DEFINITIONS[name](response_logp(shape, theta.log_softmax(-1)), ref)

    return at


def hessian_along(function, theta, direction):
    """∇²·direction, by differentiating the gradient's projection."""
    leaf = theta.clone().requires_grad_()
    (g,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    return torch.autograd.grad((g * direction).sum(), leaf)[0].numpy().ravel()


# The first derivative ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
def test_no_divergence_pulls_where_the_policies_meet(name):
    """Exactly by the NumPy oracle, p = r; and next to it each one does."""
    logits = np.array([0.3, -1.2, 0.9, 0.0])
    g = [
        numpy_oracle.gradient(lambda x: DIVERGENCE[name](softmax(x), softmax(logits)), logits + shift)
        for shift in (0.0, 5.0, np.array([0.1, 0, 0, 0]))
    ]
    assert np.abs(g[0]).max() < 1e-16 and np.abs(g[1]).max() < 1e-15 and np.abs(g[2]).max() > 1e-3


@given(x=sample_inputs(), name=divergence_names, beta=st.sampled_from([1e-4, 1.0, 3.0]))
def test_at_one_a_sample_is_pushed_by_beta_times_the_slope_at_one(x: SampleInputs, name, beta):
    """Bit for bit: 0 for the rows with f′(1) = 0, else β up (FKL) or down (RKL), along ∇log π."""
    expected = -beta * FACTS[name].f_prime_at_one
    assert (weight(x.logp, x.logp, 0.0, name, beta) == expected).all()
    for loss in LOSSES:
        leaf = x.logp.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(leaf, x.logp, 0.0, name, beta).sum(), leaf)
        assert (g == -expected).all()


@given(tree=trees(), name=divergence_names, beta=betas)
def test_the_first_step_of_an_iteration_does_not_see_beta(tree: Tree, name, beta):
    """At π_θ = π_old = π_ref the expected gradient is that of the reward alone, in every row and style."""
    probability, score = scores(tree.shape, tree.logits)
    gain = (probability * tree.reward) @ score
    theta = torch.tensor(tree.logits)
    for loss in LOSSES:
        leaf = theta.clone().requires_grad_()
        total = expected_penalty(name, tree.shape, loss, torch.tensor(tree.reward), beta)(theta)(leaf)
        found = -torch.autograd.grad(total, leaf)[0].numpy().ravel()
        assert np.abs(found - gain).max() < 1e-14 * (10 + 10 * beta)


@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
def test_the_second_step_does(name):
    """The check above could fail: one step on, β matters."""
    shape, anchor = (3, 1, None), torch.tensor([[0.5, 0.0, -1.0]], dtype=torch.float64)
    leaf = (anchor + torch.tensor([0.3, 0.0, 0.0])).requires_grad_()
    (g,) = torch.autograd.grad(expected_penalty(name, shape)(anchor)(leaf), leaf)
    assert g.abs().max() > 1e-2


@pytest.mark.parametrize("name", AT_REST)
def test_in_rows_at_rest_at_one_the_first_step_is_bit_for_bit_the_same_for_any_beta(name):
    logp = torch.tensor([-0.1, -2.0, -30.0])
    for loss in LOSSES:
        found = []
        for beta in (0.0, 1e-4, 1.0, 1e6):
            leaf = logp.clone().requires_grad_()
            found.append(torch.autograd.grad(loss(leaf, logp, torch.tensor([1.0, -0.3, 0.7]), name, beta).sum(), leaf))
        assert all(torch.equal(g[0], found[0][0]) for g in found)


# The second ----------------------------------------------------------------------------------------------------------


def test_fisher_matrix_of_a_softmax_by_hand():
    """diag(p) − ppᵀ, and on a tree one such block a state, times the chance to reach it."""
    p = np.array([0.5, 0.25, 0.25])
    expected = np.array([[4, -2, -2], [-2, 3, -1], [-2, -1, 3]]) / 16
    assert np.abs(fisher((3, 1, None), np.log(p)[None]) - expected).max() < 1e-16
    # Token 0 ends a response: states (), (1,), reached with chance 1 and ¾.
    table = np.array([[1 / 4, 3 / 4], [1 / 3, 2 / 3]])
    a, b = 3 / 16, 3 / 4 * 2 / 9
    expected = np.array([[a, -a, 0, 0], [-a, a, 0, 0], [0, 0, b, -b], [0, 0, -b, b]])
    assert np.abs(fisher((2, 2, 0), np.log(table)) - expected).max() < 1e-16


@pytest.mark.parametrize("shape", [(4, 1, None), (2, 3, 0), (3, 2, None)])
@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
def test_every_hessian_is_its_multiple_of_fisher(name, shape):
    """Also of the expected surrogate; and no other row's multiple fits."""
    states = len(list(numpy_oracle.prefixes(*shape)))
    logits = np.random.default_rng(0).normal(size=(states, shape[0]))
    theta, F = torch.tensor(logits), fisher(shape, logits)
    for function in (definition(name, shape), expected_penalty(name, shape)):
        H = torch.autograd.functional.hessian(function(theta), theta).numpy().reshape(F.shape)
        assert np.abs(H - CURVATURE[name] * F).max() < 1e-14
        for other in {1, 2, 1 / 4} - {CURVATURE[name]}:
            assert np.abs(H - other * F).max() > 1e-2


@given(tree=trees(), name=divergence_names)
def test_hessian_is_fisher_in_every_direction(tree: Tree, name):
    """``tree.old`` is the direction."""
    theta, direction = torch.tensor(tree.logits), torch.tensor(tree.old)
    expected = CURVATURE[name] * fisher(tree.shape, tree.logits) @ tree.old.ravel()
    for function in (definition(name, tree.shape), expected_penalty(name, tree.shape)):
        assert np.abs(hessian_along(function(theta), theta, direction) - expected).max() < 1e-12


@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
def test_what_the_quadratic_misses_is_of_third_order(name):
    """D(θ + hΔ) − ½f″(1)h²ΔᵀFΔ falls eightfold as h halves, with the code's f (JS has a third order as well)."""
    shape, logits = (3, 2, None), np.random.default_rng(1).normal(size=(4, 3))
    theta, delta = torch.tensor(logits), np.random.default_rng(2).normal(size=(4, 3))
    quadratic = CURVATURE[name] * delta.ravel() @ fisher(shape, logits) @ delta.ravel() / 2
    function = expected_penalty(name, shape)(theta)
    missed = [function(theta + h * torch.tensor(delta)).item() - h**2 * quadratic for h in (0.02, 0.01, 0.005)]
    assert np.divide(missed[:-1], missed[1:]) == pytest.approx(8, rel=0.1)


# Natural gradient ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fkl", "rkl", "chi2"])
def test_to_second_order_the_objective_has_the_curvature_of_the_reward_too(name):
    """J(θ + hΔ) − J = h∇J·Δ + ½h²[Cov(R, (Δ − Δ̄)²) − βf″(1)ΔᵀFΔ] + O(h³) on a softmax, at any β."""
    logits, delta, reward = np.array([[0.4, -0.3, 0.8]]), np.array([0.7, -1.0, 0.5]), np.array([1.0, -0.5, 0.2])
    p = numpy_oracle.softmax(logits[0])
    F = np.diag(p) - np.outer(p, p)
    J = numpy_oracle.bandit_objective(name, 0.7, reward, p)
    centred = (delta - p @ delta) ** 2
    covariance = p @ (reward * centred) - (p @ reward) * (p @ centred)
    slope, bend = delta @ F @ reward, covariance - 0.7 * CURVATURE[name] * (delta @ F @ delta)

    def missed(h, bend):
        return J(logits[0] + h * delta) - J(logits[0]) - h * slope - h**2 * bend / 2

    right, without = ([missed(h, x) for h in (0.02, 0.01)] for x in (bend, bend - covariance))
    assert right[0] / right[1] == pytest.approx(8, rel=0.1)
    assert without[0] / without[1] == pytest.approx(4, rel=0.1) and abs(without[0]) > 1e-6


def natural_step(shape, logits, reward, scale):
    """F⁺∇J/scale, ∇J and F; F is singular, as a constant added to a state's logits changes nothing."""
    probability, score = scores(shape, logits)
    F, g = fisher(shape, logits), (probability * reward) @ score
    return np.linalg.pinv(F, rcond=1e-10, hermitian=True) @ g / scale, g, F


def test_natural_gradient_step_of_two_arms_by_hand():
    """p = (¼, ¾), R = (1, 0): ∇J = (3, −3)/16, F = ∇J·(1, −1)ᵀ, F⁺∇J = (½, −½), whatever p is."""
    step, g, F = natural_step((2, 1, None), np.log([[0.25, 0.75]]), np.array([1.0, 0.0]), 1.0)
    assert g == pytest.approx([3 / 16, -3 / 16]) and F == pytest.approx(np.outer([3 / 16, -3 / 16], [1, -1]))
    assert step == pytest.approx([0.5, -0.5], rel=1e-13)


@given(tree=trees(), name=divergence_names, beta=st.sampled_from([0.04, 1.0, 3.0]))
def test_natural_gradient_step_maximises_the_quadratic_model(tree: Tree, name, beta):
    """m(Δ) = gᵀΔ − ½β f″(1) ΔᵀFΔ is below m(Δ*), Δ* = F⁺g/(β f″(1)), by the penalty of Δ − Δ* exactly."""
    scale = beta * CURVATURE[name]
    best, g, F = natural_step(tree.shape, tree.logits, tree.reward, scale)
    assert np.abs(scale * F @ best - g).max() < 1e-11  # g lies in F's range: nothing is left to gain

    def model(step):
        return g @ step - scale * step @ F @ step / 2

    other = tree.old.ravel()
    gap = scale * (other - best) @ F @ (other - best) / 2
    size = 1 + abs(model(best)) + scale * other @ F @ other
    assert gap >= 0 and abs(model(best) - model(other) - gap) < 1e-11 * size


@given(logits=floats(4, st.floats(-3.0, 3.0)), reward=floats(4, st.floats(-1.0, 1.0)), beta=st.sampled_from([0.1, 1.0]))
def test_on_one_softmax_the_natural_gradient_step_is_the_reverse_kl_optimum(logits, reward, beta):
    """F⁺∇J = R less its plain mean, so π_{θ+Δ*} ∝ π_θ·exp(R/β), however far that is: the loss with anchor π_θ rests."""
    step, *_ = natural_step((4, 1, None), logits[None], reward, beta)
    assert np.abs(step - (reward - reward.mean()) / beta).max() < 1e-10 / beta
    anchor = torch.tensor(logits).log_softmax(-1)
    leaf = torch.tensor(logits + step, requires_grad=True)
    loss = differentiable_loss(leaf.log_softmax(-1), anchor, torch.tensor(reward), "rkl", beta)
    (g,) = torch.autograd.grad((anchor.exp() * loss).sum(), leaf)
    assert g.abs().max() < 1e-10


def test_on_a_tree_it_is_only_near_it():
    """There Δ* is β⁻¹ times the advantage of each token, and the optimum is off by the second order of 1/β."""
    shape, rng = (2, 2, None), np.random.default_rng(0)
    logits, reward = rng.normal(size=(3, 2)), rng.normal(size=4)
    away = []
    for beta in (10.0, 20.0, 40.0):
        step, *_ = natural_step(shape, logits, reward, beta)
        best = scores(shape, logits)[0] * np.exp(reward / beta)
        found, _ = scores(shape, logits + step.reshape(3, 2))
        away.append(np.abs(found - best / best.sum()).max())
    assert np.divide(away[:-1], away[1:]) == pytest.approx(4, rel=0.1)


# The length of the natural step, and the curvature of the reward ------------------------------------------------------


def test_the_natural_step_of_two_arms_is_as_long_as_the_reward_deviates():
    """p = (¼, ¾), R = (1, 0): (3, −3)/16·(½, −½) = 3/16 = Var(R). Divided by √(3/16), its square is 1."""
    step, g, F = natural_step((2, 1, None), np.log([[0.25, 0.75]]), np.array([1.0, 0.0]), 1.0)
    assert g @ step == pytest.approx(3 / 16, rel=1e-13) and step @ F @ step == pytest.approx(3 / 16, rel=1e-13)
    assert g @ g == pytest.approx(18 / 256)  # the plain gradient's
    # p = (½, ¼, ¼), R = (1, 1, 0), and the first logit alone may move: (1/8)²/(1/4) = 1/16, of a variance of 3/16.
    _, score = scores((3, 1, None), np.log([[0.5, 0.25, 0.25]]))
    p, R, along = np.array([0.5, 0.25, 0.25]), np.array([1.0, 1.0, 0.0]), score[:, 0]
    assert (p @ (R * along)) ** 2 / (p @ along**2) == pytest.approx(1 / 16, rel=1e-13)
    assert p @ R**2 - (p @ R) ** 2 == pytest.approx(3 / 16, rel=1e-13)


@share(2)
@given(tree=trees(), right=st.integers(1, 2**12 - 1), columns=st.integers(1, 3), seed=st.integers(0, 9))
def test_the_natural_step_is_the_deviation_and_for_restricted_policies_shorter(tree: Tree, right, columns, seed):
    """∇E[R]ᵀF⁺∇E[R] = Var(R) on trees; in a subspace of the logits, Var(R) less what the scores there do not span."""
    probability, score = scores(tree.shape, tree.logits)
    binary = np.array([right >> n % 12 & 1 for n in range(len(probability))], float)
    for reward in (tree.reward, binary):
        variance = probability @ (reward - probability @ reward) ** 2
        step, g, _ = natural_step(tree.shape, tree.logits, reward, 1.0)
        assert abs(g @ step - variance) < 1e-11
        few = score @ np.random.default_rng(seed).normal(size=(score.shape[1], columns))
        slope, metric = (probability * reward) @ few, few.T @ (probability[:, None] * few)
        best = np.linalg.lstsq(metric, slope, rcond=1e-10)[0]
        left_over = probability @ (reward - probability @ reward - few @ best) ** 2
        assert abs(slope @ best - (variance - left_over)) < 1e-10
    if variance > 1e-6:
        step, g, _ = natural_step(tree.shape, tree.logits, (binary - 0.3) / variance**0.5, 1.0)
        assert g @ step == pytest.approx(1, rel=1e-9)  # whatever the problem's difficulty


def test_the_rewards_curvature_of_three_arms_by_hand():
    """p = (½, ¼, ¼), a = (0, 1, −1): ā = 0 and Var(a) = ½. R = (1, 0, 0) bends by −½·½, R = (0, 1, 1) by +½·½.

    A reward of 1 where a = 0 reaches the bound −E[R]·Var(a), and its complement reaches (1 − E[R])·Var(a).
    """
    p, a = np.array([0.5, 0.25, 0.25]), torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    for reward, expected in (([1, 0, 0], -1 / 4), ([0, 1, 1], 1 / 4), ([0, 1, 0], 1 / 8)):
        J = functools.partial(expected_reward, torch.tensor(reward, dtype=torch.float64))
        assert hessian_along(J, torch.tensor(np.log(p)), a) @ a.numpy() == pytest.approx(expected, rel=1e-13)


def expected_reward(reward, theta):
    """E[R] as a trainer sees it: less the expected loss at samples of π_old = softmax(0), without a penalty."""
    old = torch.zeros_like(theta).log_softmax(-1)
    return -(old.exp() * differentiable_loss(theta.log_softmax(-1), old, reward, "rkl", 0.0)).sum()


@given(
    logits=floats(5, st.floats(-3.0, 3.0)), step=floats(5, st.floats(-2.0, 2.0)), reward=floats(5, st.floats(0.0, 1.0))
)
def test_a_step_gains_what_its_slope_says_less_half_the_largest_variance(logits, step, reward):
    """The gain is ∇E[R]·a + ∫(1 − s)·Cov_s(R, (a − ā)²) ds, by Gauss and Legendre; R ∈ [0, 1] bounds the integral."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    nodes, weights = (nodes + 1) / 2, weights / 2
    p, end = softmax(logits), softmax(logits + step)
    gain, slope = (end - p) @ reward, (p * (reward - p @ reward)) @ step
    bends, least, spread = [], [], []
    for s in nodes:
        here = softmax(logits + s * step)
        centred = (step - here @ step) ** 2
        bends.append(here @ (reward * centred) - (here @ reward) * (here @ centred))
        least.append(-(here @ reward) * (here @ centred))
        spread.append(here @ centred)
    J = functools.partial(expected_reward, torch.tensor(reward))
    bend = hessian_along(J, torch.tensor(logits), torch.tensor(step)) @ step
    centred = (step - p @ step) ** 2
    assert abs(bend - (p @ (reward * centred) - (p @ reward) * (p @ centred))) < 1e-12
    assert abs(gain - slope - weights * (1 - nodes) @ bends) < 1e-11
    assert gain >= slope + weights * (1 - nodes) @ least - 1e-11
    assert gain >= slope - max(spread) / 2 - 1e-11
