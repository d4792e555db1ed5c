"""Variance of single-sample gradients, by enumeration: the control variate, Algorithm 1's excess, and the 1/N law.

A gradient's variance is the trace of its covariance over the logits of one state: Σ q|g|² − |Σ q g|².
"""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy_oracle import bandit_objective, gradient, softmax
from strategies import DIVERGENCE_NAMES, Bandit, bandits, floats, rewards

from rpg_ref import (
    DualClip,
    advantages,
    aggregate,
    clipped_loss,
    clipped_loss_as_printed,
    differentiable_loss,
    grpo_corrected_loss,
    grpo_loss,
    ppo_loss,
    reinforce_loss,
)

ROUNDING = 1e-14
"""Of a ratio near 1 from log-probabilities down to −8."""
NORMALISED = {"ufkl": "fkl", "urkl": "rkl"}


class Table(NamedTuple):
    """What one sample can be: its probability [X] and its gradient [X, V]."""

    probability: np.ndarray
    gradient: np.ndarray

    @property
    def mean(self):
        return self.probability @ self.gradient

    @property
    def variance(self):
        return self.covariance(self)

    def covariance(self, other: "Table"):
        centred = [t.gradient - t.mean for t in (self, other)]
        return float(self.probability @ (centred[0] * centred[1]).sum(1))

    def plus(self, multiple: float, other: "Table"):
        return Table(self.probability, self.gradient + multiple * other.gradient)


def descent(loss, p, q, *args, **choices) -> Table:
    """Gradient of the loss of each outcome in the logits of p, sampled from q."""
    leaf = torch.tensor(np.log(p))
    jacobian = torch.autograd.functional.jacobian(
        lambda x: loss(x.log_softmax(-1), torch.tensor(np.log(q)), *args, **choices), leaf
    )
    return Table(q, jacobian.numpy())


def penalty(name, p, q, loss=differentiable_loss, beta=1.0) -> Table:
    """π_ref = π_old."""
    return descent(loss, p, q, torch.zeros(len(p), dtype=torch.float64), name, beta)


def variances(p, q, loss=differentiable_loss):
    return {name: penalty(name, p, q, loss).variance for name in ("fkl", "ufkl", "rkl", "urkl")}


# The control variate -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [differentiable_loss, reinforce_loss])
def test_where_the_policies_meet_the_unnormalised_rows_have_no_variance(loss):
    """FKL and RKL keep that of ∇log π, 1 − Σp² = 5/8 for p = (½, ¼, ¼)."""
    p = np.array([0.5, 0.25, 0.25])
    found = variances(p, p, loss)
    assert found["ufkl"] < 1e-30 and found["urkl"] < 1e-30
    assert found["fkl"] == pytest.approx(5 / 8, rel=1e-14) and found["rkl"] == pytest.approx(5 / 8, rel=1e-14)


def test_near_it_their_variance_is_of_the_second_order():
    logits, direction = np.array([0.5, 0.0, -1.0]), np.array([1.0, -0.5, 0.2])
    found = [variances(softmax(logits + h * direction), softmax(logits)) for h in (0.02, 0.01)]
    for unnormalised, normalised in NORMALISED.items():
        assert found[0][unnormalised] / found[1][unnormalised] == pytest.approx(4, rel=0.05)
        assert found[1][unnormalised] < found[1][normalised] / 5000


@given(logits=floats(4, st.floats(-3.0, 3.0)), shift=floats(4, st.floats(-0.1, 0.1)))
def test_near_it_the_ratio_of_variances_is_bounded(logits, shift):
    """E_q[v∇log π] = 0, so FKL's mean is that of (v − 1)∇log π: with δ = max|v − 1| the ratio is at most δ²/(1 − δ²).

    Likewise, with η = max|v log v| and m = min v(log v + 1), at most η²/(m² − η²) for URKL and RKL.
    """
    q, p = softmax(logits), softmax(logits + shift)
    v, found = p / q, variances(p, q)
    delta, eta = np.abs(v - 1).max() + ROUNDING, np.abs(v * np.log(v)).max() + ROUNDING
    m = (v * (np.log(v) + 1)).min() - ROUNDING
    assert found["ufkl"] <= found["fkl"] * delta**2 / (1 - delta**2)
    assert found["urkl"] <= found["rkl"] * eta**2 / (m**2 - eta**2)
    assert delta < 0.25 and eta < 0.27 and m > 0.65


def test_far_off_the_unnormalised_rows_can_have_the_larger_variance():
    """p = (½, ½), q = (1, 99)/100: of two arms the variance is 2q(1 − q)·gap², UFKL's gap 24.2525 and FKL's 1."""
    p, q = np.full(2, 0.5), np.array([0.01, 0.99])
    found = variances(p, q)
    assert found["fkl"] == pytest.approx(2 * 0.01 * 0.99, rel=1e-13)
    assert found["ufkl"] == pytest.approx(2 * 0.01 * 0.99 * (49 / 2 - 49 / 99 / 2) ** 2, rel=1e-13)
    # The reverse rows: here URKL's is the smaller; from q = (0.4, 0.6) to p = (0.05, 0.95) it is the larger.
    assert found["urkl"] < found["rkl"]
    found = variances(np.array([0.05, 0.95]), np.array([0.4, 0.6]))
    assert found["urkl"] > 10 * found["rkl"] and found["ufkl"] < found["fkl"]


def control(p, q) -> Table:
    """The gradient of v − 1 at samples of q, by hand: v·(one-hot − p)."""
    return Table(q, (p / q)[:, None] * (np.eye(len(p)) - p))


@given(bandit=bandits(), multiple=st.floats(-2.0, 2.0))
def test_rows_differ_by_a_control_variate_whose_best_multiple_is_minus_cov_over_var(bandit: Bandit, multiple):
    """UFKL = FKL + h and URKL = RKL − h, E h = 0; no multiple of h leaves less variance than −Cov(FKL, h)/Var(h)."""
    p, q = softmax(bandit.logits), softmax(bandit.old)
    h = control(p, q)
    assume(h.variance > 1e-6)
    scale = np.abs(h.gradient).max() * (2 + np.abs(np.log(p / q)).max()) + 1
    assert np.abs(h.mean).max() < 1e-13
    for unnormalised, sign in (("ufkl", 1), ("urkl", -1)):
        plain, other = penalty(NORMALISED[unnormalised], p, q), penalty(unnormalised, p, q)
        assert np.abs(other.gradient - plain.plus(sign, h).gradient).max() < 1e-13 * scale
        assert np.abs(other.mean - plain.mean).max() < 1e-12
        best = -plain.covariance(h) / h.variance
        least = plain.plus(best, h).variance
        for c in (0.0, 1.0, -1.0, multiple):
            away = (c - best) ** 2 * h.variance
            assert abs(plain.plus(c, h).variance - least - away) < 1e-12 * (plain.variance + away + c**2 * h.variance)


def test_the_best_multiple_is_one_only_near_one():
    """−Cov/Var → 1 (FKL) and −1 (RKL) as v → 1; at p = (½, ½), q = (1, 99)/100 it is under 4 % of that for FKL."""
    logits = np.array([0.5, 0.0, -1.0])
    for q, p, near in (
        (softmax(logits), softmax(logits + [0.001, 0, 0]), True),
        (np.array([0.01, 0.99]), np.full(2, 0.5), False),
    ):
        h = control(p, q)
        best = {name: -penalty(name, p, q).covariance(h) / h.variance for name in ("fkl", "rkl")}
        if near:
            assert best == pytest.approx({"fkl": 1, "rkl": -1}, abs=0.01)
        else:
            # Gaps: FKL 1, h 25.2525 = ½/0.01·½ + ½/0.99·½, the two of opposite sign.
            assert best["fkl"] == pytest.approx(1 / (25 + 25 / 99), rel=1e-12) and best["rkl"] < -1.5


def test_for_a_policy_that_is_not_normalised_the_rows_part_by_the_gradient_of_its_mass():
    """log p itself as the parameter: E[∇f_UFKL] − E[∇f_FKL] = E_q[v·one-hot] = p, not 0."""
    p, q = torch.tensor([0.5, 0.3, 0.4]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    leaf = p.log().requires_grad_()
    g = {
        n: torch.autograd.grad((q * differentiable_loss(leaf, q.log(), 0.0, n, 1.0)).sum(), leaf)[0]
        for n in DIVERGENCE_NAMES
    }
    assert torch.allclose(g["ufkl"] - g["fkl"], p, atol=1e-15) and torch.allclose(g["rkl"] - g["urkl"], p, atol=1e-15)


# Algorithm 1 as printed ----------------------------------------------------------------------------------------------


def excess(name, p, q, reward, beta):
    """Variance as printed over that with Â detached, inside the clip's region."""
    return (
        descent(clipped_loss_as_printed, p, q, torch.tensor(reward), name, beta).variance
        / descent(clipped_loss, p, q, torch.tensor(reward), name, beta).variance
    )


def test_as_printed_the_reverse_rows_vary_more():
    """Four equal arms at w = 1, rewards ±1: coefficients A − 2β for A − β (RKL), A − β for A (URKL).

    The term alone: (2β)² for β², ×4. At β = 1 the whole: E[A²]·¾ − ¼ with A − 1 = 0, −2 and A − 2 = −1, −3 give
    3.5/1.25 = 2.8 for RKL and 1.25/0.5 = 2.5 for URKL.
    """
    p, R = np.full(4, 0.25), np.array([1.0, 1.0, -1.0, -1.0])
    assert excess("rkl", p, p, 0 * R, 1.0) == pytest.approx(4, rel=1e-13)
    assert excess("rkl", p, p, R, 1.0) == pytest.approx(2.8, rel=1e-13)
    assert excess("urkl", p, p, R, 1.0) == pytest.approx(2.5, rel=1e-13)
    for name in ("rkl", "urkl"):
        assert excess(name, p, p, R, 1e-4) == pytest.approx(1, abs=1e-3)


def test_as_printed_the_urkl_term_alone_varies_a_hundredfold_near_one():
    """w(log w + 1) for w log w: the ratio grows as 1/(log w)², over 100 where log w is a twentieth."""
    logits, direction = np.array([0.5, 0.0, -1.0]), np.array([1.0, -0.5, 0.2])
    q = softmax(logits)
    found = [excess("urkl", softmax(logits + h * direction), q, np.zeros(3), 1.0) for h in (0.1, 0.05, 0.025)]
    assert found[0] > 100 and np.divide(found[1:], found[:-1]) == pytest.approx(4, rel=0.1)


@given(bandit=bandits(), name=st.sampled_from(["rkl", "urkl"]), beta=st.sampled_from([1e-4, 0.04, 1.0]))
def test_as_printed_the_excess_is_beta_times_the_control_variate(bandit: Bandit, name, beta):
    """Of zero mean wherever nothing is clipped, so the reverse rows' gradient is right and only its variance is not."""
    p, q = softmax(bandit.logits), softmax(bandit.old)
    reward, free = torch.tensor(bandit.reward), DualClip(1.0, np.inf, np.inf)
    printed, detached = (
        descent(loss, p, q, reward, name, beta, clip=free) for loss in (clipped_loss_as_printed, clipped_loss)
    )
    h = control(p, q)
    scale = np.abs(h.gradient).max() * (3 + np.abs(np.log(p / q)).max())
    assert np.abs(printed.gradient - detached.plus(beta, h).gradient).max() < 1e-13 * (1 + scale)
    assert np.abs(printed.mean - detached.mean).max() < 1e-12


# The law of 1/N ------------------------------------------------------------------------------------------------------


def batches(loss, p, q, reward, size, *args, **choices) -> Table:
    """Every batch of that many samples: its probability, and the gradient of its token-mean."""
    picked = torch.tensor(list(itertools.product(range(len(p)), repeat=size)))
    leaf = torch.tensor(np.log(p)).repeat(len(picked), 1).requires_grad_()
    choices = {key: x[picked] if key == "logp_ref" else x for key, x in choices.items()}
    logp, logp_old = leaf.log_softmax(-1).gather(1, picked), torch.tensor(np.log(q))[picked]
    value = loss(logp, logp_old, torch.tensor(reward)[picked], *args, **choices)
    mean = aggregate(value, torch.ones_like(picked), "seq-mean-token-mean", denominator=1.0)
    return Table(q[picked.numpy()].prod(1), torch.autograd.grad(mean, leaf)[0].numpy())


def ppo(logp, logp_old, advantage, divergence, beta, *, logp_ref, clip):
    return ppo_loss(logp, logp_old, advantage, clip=clip)


UNCLIPPED, CLIPPED = (
    (differentiable_loss, reinforce_loss),
    (clipped_loss, clipped_loss_as_printed, grpo_loss, grpo_corrected_loss, ppo),
)
# w = 3.5, 0.70, 0.26: the clip below has a sample beyond each of its bounds.
P, Q = softmax(np.array([0.8, 0.0, -0.9])), softmax(np.array([-0.5, 0.3, 0.4]))
REF, REWARD, CLIP = np.array([0.25, 0.25, 0.5]), np.array([1.0, 0.3, -0.8]), DualClip(0.5, 0.28, 2.0)
CASES = [
    (loss, name) for loss in (*UNCLIPPED, *CLIPPED) for name in (DIVERGENCE_NAMES if loss is not ppo else ["urkl"])
]
every_case = pytest.mark.parametrize(("loss", "name"), CASES, ids=[f"{loss.__name__}-{name}" for loss, name in CASES])


def choices_of(loss, clip=CLIP):
    return {"logp_ref": torch.tensor(np.log(REF))} | ({} if loss in UNCLIPPED else {"clip": clip})


@every_case
def test_variance_of_a_mean_of_n_is_one_nth(loss, name):
    """Exactly, over all batches of N samples as the code takes them: no loss mixes its samples."""
    one, *more = (batches(loss, P, Q, REWARD, N, name, 0.5, **choices_of(loss)) for N in (1, 2, 3, 4))
    assert one.variance > 1e-3
    for N, table in enumerate(more, start=2):
        assert np.abs(table.mean - one.mean).max() < 1e-14
        assert table.variance == pytest.approx(one.variance / N, rel=1e-12)


@given(
    bandit=bandits(),
    case=st.sampled_from(CASES),
    beta=st.sampled_from([0.0, 1e-4, 1.0]),
    clip=st.sampled_from([CLIP, DualClip(), DualClip(0.1, 0.1, 3.0)]),
)
def test_variance_of_a_pair_is_half(bandit: Bandit, case, beta, clip):
    loss, name = case
    p, q = softmax(bandit.logits), softmax(bandit.old)
    ref = q if bandit.ref is None else np.exp(bandit.ref)
    choices = choices_of(loss, clip) | {"logp_ref": torch.tensor(np.log(ref))}
    one, two = (batches(loss, p, q, bandit.reward, N, name, beta, **choices) for N in (1, 2))
    size = one.probability @ (one.gradient**2).sum(1)
    assert np.abs(two.mean - one.mean).max() < 1e-12 * (1 + np.sqrt(size))
    assert abs(two.variance - one.variance / 2) <= 1e-12 * size


def groups_of(baseline, size, number=1, problem=(P, Q, REWARD)) -> Table:
    """Every batch of that many groups, each with its own advantages, unclipped and with URKL's penalty."""
    p, q, R = problem
    picked = np.array(list(itertools.product(range(len(p)), repeat=size * number)))
    ids = torch.arange(len(picked) * number).repeat_interleave(size)
    A = advantages(torch.tensor(R)[picked.ravel()], ids, baseline).numpy().reshape(picked.shape)
    reward, term = (descent(differentiable_loss, p, q, a, "urkl", b).gradient for a, b in ((1.0, 0.0), (0.0, 0.5)))
    return Table(q[picked].prod(1), (A[..., None] * reward[picked] + term[picked]).mean(1))


BASELINED = ["group_mean", "leave_one_out", "group_std"]


@pytest.mark.parametrize("baseline", BASELINED)
def test_variance_of_a_mean_of_n_groups_is_one_nth(baseline):
    one, two, four = (groups_of(baseline, 2, number) for number in (1, 2, 4))
    assert two.variance == pytest.approx(one.variance / 2, rel=1e-12)
    assert four.variance == pytest.approx(one.variance / 4, rel=1e-12)
    assert np.abs(one.mean - four.mean).max() < 1e-14


@given(
    logits=floats((2, 3), st.floats(-3.0, 3.0)),
    reward=floats(3, rewards),
    baseline=st.sampled_from(BASELINED),
)
def test_variance_of_a_mean_of_two_groups_is_half(logits, reward, baseline):
    problem = (*softmax(logits), reward)
    one, two = (groups_of(baseline, 2, number, problem) for number in (1, 2))
    size = one.probability @ (one.gradient**2).sum(1)
    assert abs(two.variance - one.variance / 2) <= 1e-12 * size


@pytest.mark.parametrize(("baseline", "scale"), [("leave_one_out", lambda G: 1), ("group_mean", lambda G: (G - 1) / G)])
def test_variance_of_one_group_is_that_of_a_u_statistic(baseline, scale):
    """Samples of a group depend on each other: [4(G − 2)ζ₁ + 2ζ₂]/(G(G − 1)) of the pairs' kernel, after Hoeffding.

    The kernel is h(x, y) = ½(R_x − R_y)(g_x − g_y) + ½(t_x + t_y), g and t the gradients of reward and penalty; ζ₂ is
    its variance, ζ₁ that of its mean over y, and 4ζ₁/G what is left of it in large groups.
    """
    reward, term = ((P / Q)[:, None] * (P - np.eye(3)), penalty("urkl", P, Q, beta=0.5).gradient)
    for G in (2, 3, 5, 8):
        x, y = np.indices((3, 3)).reshape(2, -1)
        kernel = (scale(G) * (REWARD[x] - REWARD[y])[:, None] * (reward[x] - reward[y]) + term[x] + term[y]) / 2
        pair = Table(Q[x] * Q[y], kernel)
        single = Table(Q, (Q[:, None] * kernel.reshape(3, 3, -1)).sum(1))
        expected = (4 * (G - 2) * single.variance + 2 * pair.variance) / (G * (G - 1))
        assert groups_of(baseline, G).variance == pytest.approx(expected, rel=1e-12)
        assert abs(expected - single.variance / G) > 1e-3


def exact_table(loss, name):
    if loss == "advantages":
        return groups_of(name, 4), Q, "urkl"
    return batches(loss, P, Q, REWARD, 1, name, 0.5, **choices_of(loss)), REF, name


ALL = [*CASES, *(("advantages", name) for name in BASELINED)]


@pytest.mark.parametrize(("loss", "name"), ALL, ids=[f"{getattr(x, '__name__', x)}-{name}" for x, name in ALL])
def test_error_of_a_mean_of_n_samples_falls_as_the_root_of_n(loss, name):
    """Slope −½ of log RMSE against log N around the estimator's own mean, from 1,000 draws each of N = 4, 16, …, 1024.

    The tolerance is five standard deviations of the fitted slope: log RMSE of M draws of error e has the variance
    (E|e|⁴/(E|e|²)² − 1)/4M, with E|S|⁴ = N·m₄ + N(N − 1)(σ⁴ + 2 tr Σ²) for the sum S of N. Around ∇J instead, whatever
    is clipped or divided stops at its bias.
    """
    table, anchor, row = exact_table(loss, name)
    sizes, draws, rng = 4 ** np.arange(1, 6), 1000, np.random.default_rng(0)
    centred = table.gradient - table.mean
    sigma = (table.probability[:, None] * centred).T @ centred
    fourth, square = table.probability @ (centred**2).sum(1) ** 2, np.trace(sigma) ** 2 + 2 * np.trace(sigma @ sigma)
    counts = [rng.multinomial(N, table.probability / table.probability.sum(), size=draws) / N for N in sizes]
    rmse = np.array([np.sqrt(((c @ centred) ** 2).sum(1).mean()) for c in counts])
    kurtosis = (fourth / sizes + (1 - 1 / sizes) * square) / table.variance**2
    x = np.log(sizes) - np.log(sizes).mean()
    slope, spread = x @ np.log(rmse) / (x @ x), np.sqrt((x / (x @ x)) ** 2 @ (kurtosis - 1) / (4 * draws))
    assert abs(slope + 0.5) < 5 * spread < 0.06

    exact = gradient(bandit_objective(row, 0.5, REWARD, anchor), np.log(P))
    bias = np.linalg.norm(table.mean + exact)
    if loss in UNCLIPPED or name == "leave_one_out":
        assert bias < 1e-14
    else:
        assert bias > 1e-2
        around_exact = np.sqrt(((counts[-1] @ table.gradient + exact) ** 2).sum(1).mean())
        assert around_exact > 0.9 * bias
