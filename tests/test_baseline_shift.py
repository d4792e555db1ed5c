"""Normalised and unnormalised rows differ by a baseline: sample by sample, in every loss, and at the best variance."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy_oracle import softmax
from strategies import Bandit, SampleInputs, bandits, betas, sample_inputs

from rpg_ref import (
    DualClip,
    WeightBound,
    bounded_loss,
    clipped_loss,
    clipped_loss_as_printed,
    differentiable_loss,
    per_decision_loss,
    reinforce_loss,
    weight,
)

SHIFTS = {"ufkl": ("fkl", -1), "urkl": ("rkl", 1)}
"""Row by row: the normalised row, and the multiple of β that is to be added to its advantage."""

LOSSES = {
    "surrogate": differentiable_loss,
    "REINFORCE": reinforce_loss,
    "clipped": lambda *args, **choices: clipped_loss(*args, clip=DualClip(0.5, 0.2, 2.0), **choices),
    "as printed": lambda *args, **choices: clipped_loss_as_printed(*args, clip=DualClip(0.5, 0.2, 2.0), **choices),
    "bounded": lambda *args, **choices: bounded_loss(*args, bound=WeightBound("clamp", 0.5, 1.5), **choices),
}


def sample_gradients(loss, logp, logp_old, advantage, name, beta, ref):
    leaf = torch.as_tensor(logp).clone().requires_grad_()
    value = loss(leaf, torch.as_tensor(logp_old), torch.as_tensor(advantage), name, beta, logp_ref=ref)
    return torch.autograd.grad(value.sum(), leaf)[0]


@pytest.mark.parametrize("loss", ["surrogate", "REINFORCE", "clipped", "bounded"])
def test_the_two_rows_of_a_kl_differ_by_a_baseline_by_hand(loss):
    """w = (2, 2/3), u = (4/3, 8/9), A = (1, −1), β = ½. UFKL: w·A − ½(w − u) = 5/3, −5/9; FKL: w·(A − ½) + ½u.

    URKL: w·(A − ½·log v), v = (3/2, 3/4). A clip stops the first sample, whose weight is above 0 and whose w is 2. A
    bound makes w̄ = 1.5 of it, that is ¾ of the weight.
    """
    old, p, ref = np.log([1 / 4, 3 / 4]), np.log([1 / 2, 1 / 2]), torch.tensor(np.log([1 / 3, 2 / 3]))
    A, beta = np.array([1.0, -1.0]), 0.5
    share = {"surrogate": 1.0, "REINFORCE": 1.0, "clipped": 0.0, "bounded": 0.75}[loss]
    by_hand = {
        "ufkl": (5 / 3, -5 / 9),
        "urkl": (2 * (1 - np.log(1.5) / 2), 2 / 3 * (-1 - np.log(0.75) / 2)),
    }
    for name, (plain, sign) in SHIFTS.items():
        expected = -np.array([share, 1.0]) * by_hand[name]
        for row, shift in ((name, 0.0), (plain, sign * beta)):
            found = sample_gradients(LOSSES[loss], p, old, A + shift, row, beta, ref)
            assert np.abs(found.numpy() - expected).max() < 1e-14
        wrong = sample_gradients(LOSSES[loss], p, old, A - sign * beta, plain, beta, ref)
        assert np.abs(wrong.numpy() - expected)[1] > 0.6


@given(x=sample_inputs(), name=st.sampled_from(sorted(SHIFTS)), beta=betas, loss=st.sampled_from(sorted(LOSSES)))
def test_every_loss_of_a_row_is_the_other_rows_at_another_baseline(x: SampleInputs, name, beta, loss):
    """Sample by sample, at log-probabilities that need not belong to a policy."""
    plain, sign = SHIFTS[name]
    log_w, log_v = x.logp - x.logp_old, x.logp - (x.logp_old if x.logp_ref is None else x.logp_ref)
    size = log_w.exp() * (x.advantage.abs() + beta * (2 + log_v.abs())) + beta * (log_w - log_v).exp()
    direction = weight(x.logp, x.logp_old, x.advantage, name, beta, logp_ref=x.logp_ref)
    if loss in ("clipped", "as printed"):
        assume(
            bool((direction.abs() > 1e-12 * size).all())
        )  # rounding may turn a sign, and with it the side of the clip
    found, other = (
        sample_gradients(LOSSES[loss], x.logp, x.logp_old, A, row, beta, x.logp_ref)
        for row, A in ((name, x.advantage), (plain, x.advantage + sign * beta))
    )
    # w̄ may be larger than w: the terms of a bounded loss are w̄/w times as large.
    largest = size * (0.5 / log_w.exp()).clamp(min=1.0)
    assert bool(((found - other).abs() <= 1e-13 * largest + 1e-300).all())


@pytest.mark.parametrize("name", SHIFTS)
def test_at_prefix_level_the_history_weight_takes_part_too(name):
    """The penalty of the second token has a live history weight, which no baseline has."""
    logp, old, ref = (torch.tensor(np.log(x)).cumsum(0) for x in ([0.5, 0.3], [0.25, 0.6], [0.4, 0.7]))
    plain, sign = SHIFTS[name]
    leaf = logp.clone().requires_grad_()
    pair = [
        torch.autograd.grad(per_decision_loss(leaf, old, A, row, 0.5, logp_ref=ref).sum(), leaf)[0]
        for row, A in ((name, 1.0), (plain, 1.0 + sign * 0.5))
    ]
    assert (pair[0] - pair[1]).abs().max() > 0.1


def spread(p, q, ref, reward, name, beta, baseline):
    """Mean [V] and variance of one sample's gradient over the logits, by enumeration."""
    weights = weight(*(torch.tensor(np.log(x)) for x in (p, q)), torch.tensor(reward - baseline), name, beta,
                     logp_ref=torch.tensor(ref))  # fmt: skip
    gradients = weights.numpy()[:, None] * (np.eye(len(p)) - p)
    mean = q @ gradients
    return mean, q @ ((gradients - mean) ** 2).sum(1)


@given(bandit=bandits(), name=st.sampled_from(sorted(SHIFTS)), beta=st.sampled_from([0.04, 1.0]))
def test_the_best_baselines_are_beta_apart_and_make_one_estimator_of_both_rows(bandit: Bandit, name, beta):
    """The variance is a parabola in the baseline. Three points of it give its bottom."""
    p, q = softmax(bandit.logits), softmax(bandit.old)
    ref = np.log(q) if bandit.ref is None else bandit.ref
    best, least = {}, {}
    for row in (name, SHIFTS[name][0]):
        (_, left), (mean, middle), (_, right) = (spread(p, q, ref, bandit.reward, row, beta, b) for b in (-1, 0, 1))
        curvature = (left + right) / 2 - middle
        assume(curvature > 1e-3)
        best[row] = (left - right) / (4 * curvature)
        moved, least[row] = spread(p, q, ref, bandit.reward, row, beta, best[row])
        size = 1e-9 * (1 + left + middle + right) / min(curvature, 1)
        assert np.abs(moved - mean).max() < size and least[row] <= min(left, middle, right) + size
        assert spread(p, q, ref, bandit.reward, row, beta, best[row] + 0.1)[1] > least[row]
    plain, sign = SHIFTS[name]
    assert abs(best[name] - best[plain] - sign * beta) < size and abs(least[name] - least[plain]) < size
