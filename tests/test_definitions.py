"""Definitions and first facts of the paper, by hand and on any policies: what the longer tests take for granted."""

import math

import numpy as np
import numpy_oracle as oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import floats
from torch.testing import assert_close

from rpg_ref import (
    DIVERGENCES,
    DualClip,
    aggregate,
    clipped_loss,
    differentiable_loss,
    k3,
    per_decision_loss,
    token_logprobs,
)

F64 = torch.float64
logits = floats(4, st.floats(-3.0, 3.0))


def score_form(g, theta):
    """E_p[g·∇log p + ∇g] by autograd of each part alone, the probabilities being constants."""
    leaf = torch.tensor(theta, requires_grad=True)
    logp = token_logprobs(leaf.expand(len(theta), -1), torch.arange(len(theta)))
    p, value = logp.detach().exp(), g(logp)
    return torch.autograd.grad((p * (value.detach() * logp + value)).sum(), leaf)[0]


def expectation(g, theta):
    """∇E_p[g] with the probabilities differentiated."""
    leaf = torch.tensor(theta, requires_grad=True)
    logp = leaf.log_softmax(-1)
    return torch.autograd.grad((logp.exp() * g(logp)).sum(), leaf)[0]


def test_prop_2_1_by_hand():
    """g = log p is at rest at even odds; g = p at p = (¾, ¼): d/dθ₁ of p² + (1 − p)² is 2(2p − 1)·p(1 − p) = 3/16."""
    even = np.zeros(2)
    assert_close(score_form(lambda logp: logp, even), torch.zeros(2, dtype=F64), rtol=0, atol=1e-16)
    found = score_form(lambda logp: logp.exp(), np.log([3.0, 1.0]))
    assert_close(found, torch.tensor([3 / 16, -3 / 16], dtype=F64))


@given(theta=logits, ref=logits, R=floats(4, st.floats(-2.0, 2.0)))
def test_prop_2_1_for_a_payoff_that_depends_on_the_policy(theta, ref, R):
    def payoff(logp):
        return torch.tensor(R) - 0.3 * (logp - torch.tensor(ref).log_softmax(-1)) + logp.exp() ** 2

    assert_close(score_form(payoff, theta), expectation(payoff, theta), rtol=1e-11, atol=1e-12)


def test_a_constant_has_no_policy_gradient_by_hand():
    """p = (¾, ¼), b = 5: ¾·5·(¼) + ¼·5·(−¾) = 0."""
    g = score_form(lambda logp: torch.full_like(logp, 5.0), np.log([3.0, 1.0]))
    assert_close(g, torch.zeros(2, dtype=F64), rtol=0, atol=1e-15)


@given(theta=logits, old=logits, b=st.floats(-10.0, 10.0))
def test_a_baseline_moves_nothing_in_expectation_off_policy_too(theta, old, b):
    leaf, log_q = torch.tensor(theta, requires_grad=True), torch.tensor(old).log_softmax(-1)
    loss = differentiable_loss(leaf.log_softmax(-1), log_q, b, "urkl", 0.0)
    g = torch.autograd.grad((log_q.exp() * loss).sum(), leaf)[0]
    assert g.abs().max() < 1e-13 * max(1.0, abs(b))


# q of mass 3 and p of mass 2, outcome by outcome.
Q, P = torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([0.5, 1.5], dtype=F64)
UKL_FORWARD = math.log(2) + 2 * math.log(4 / 3) - 1
UKL_REVERSE = 0.5 * math.log(0.5) + 1.5 * math.log(0.75) + 1


@pytest.mark.parametrize(("name", "by_hand"), [("ufkl", UKL_FORWARD), ("urkl", UKL_REVERSE)])
def test_unnormalised_kl_of_two_measures_by_hand(name, by_hand):
    """Defs 3.1 and 3.4, with masses 3 and 2: as Σ q·f(p/q)."""
    assert_close((Q * DIVERGENCES[name].f((P / Q).log())).sum().item(), by_hand, rtol=1e-15, atol=0)


def test_k3_is_the_unnormalised_kl_by_hand():
    """Remark 3.5 in both directions; the other direction's number is another."""
    assert_close((Q * k3((P / Q).log())).sum().item(), UKL_FORWARD, rtol=1e-15, atol=0)
    assert_close((P * k3((Q / P).log())).sum().item(), UKL_REVERSE, rtol=1e-15, atol=0)
    assert abs(UKL_FORWARD - UKL_REVERSE) > 0.01


def test_without_reward_the_forward_kl_is_maximum_likelihood_of_the_samples():
    """Remark E.2: the gradient is β·∇(mean log-likelihood), at rest where π_θ is the samples' distribution."""
    q = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    for theta, rests in (([0.0, 0.0, 0.0], False), (q.log().tolist(), True)):
        leaf = torch.tensor(theta, dtype=F64, requires_grad=True)
        logp = leaf.log_softmax(-1)
        likelihood = torch.autograd.grad((q * logp).sum(), leaf, retain_graph=True)[0]
        g = torch.autograd.grad((q * differentiable_loss(logp, q.log(), 0.0, "fkl", 0.7)).sum(), leaf)[0]
        assert_close(-g, 0.7 * likelihood, rtol=1e-14, atol=1e-16)
        assert bool(g.abs().max() < 1e-15) == rests


@given(ref=logits, reward=floats(4, st.floats(-2.0, 2.0)), nats=st.floats(5.0, 300.0))
def test_the_forward_kl_grows_without_bound_where_a_token_dies_out_and_the_reverse_does_not(ref, reward, nats):
    """π_θ(x) = e^−nats where π_ref(x) > 0, and with the policies exchanged."""
    r = oracle.softmax(ref)
    p = oracle.softmax(np.array([-1e3, *reward[1:]]))
    p = p * -math.expm1(-nats)
    p[0] = math.exp(-nats)
    log_p, log_r = torch.tensor(p).log(), torch.tensor(r).log()

    def D(name, a, b):
        return (b.exp() * DIVERGENCES[name].f(a - b)).sum().item()

    bounded = -math.log(r.min())
    assert D("fkl", log_p, log_r) >= r[0] * nats - math.log(4) and D("rkl", log_p, log_r) <= bounded + 1e-9
    assert D("rkl", log_r, log_p) >= r[0] * nats - math.log(4) and D("fkl", log_r, log_p) <= bounded + 1e-9


@given(d=floats(6, st.floats(-20.0, 20.0)))
def test_half_of_both_unnormalised_rows_is_half_of_jeffreys_and_half_their_difference_no_divergence(d):
    """The released code's rpg_ujs and rpg_js."""
    v, f = torch.tensor(d), {name: row.f for name, row in DIVERGENCES.items()}
    assert_close((f["ufkl"](v) + f["urkl"](v)) / 2, f["jeffreys"](v) / 2, rtol=1e-12, atol=1e-13)
    released = (f["rkl"](v) - f["fkl"](v)) / 2
    assert bool(((released < 0) == (v < 0)).all())  # a divergence's integrand is not negative wherever v < 1
    assert bool((f["js"](v) >= 0).all())


SHARES = {
    "token-mean": [[1 / 4, 0, 0], [1 / 4, 1 / 4, 1 / 4]],
    "seq-mean-token-mean": [[1 / 2, 0, 0], [1 / 6, 1 / 6, 1 / 6]],
    "seq-mean-token-sum": [[1 / 2, 0, 0], [1 / 2, 1 / 2, 1 / 2]],
}


@pytest.mark.parametrize("how", SHARES)
def test_what_a_token_counts(how):
    """Two responses, of one token and of three."""
    loss = torch.zeros(2, 3, dtype=F64, requires_grad=True)
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    found = torch.autograd.grad(aggregate(loss, mask, how), loss)[0]
    assert_close(found, torch.tensor(SHARES[how], dtype=F64))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("clip", [DualClip(), DualClip(low=0.2, high=5.0, dual=2.0)])
def test_beyond_the_clamp_nothing_moves_and_the_value_stays(clip, beta, sign):
    """From w = e·M on the loss of `rkl` is one number, the clamp's, and has no gradient; e⁸⁰⁰ itself overflows."""
    M = max(1 + clip.high, clip.dual)
    logp = torch.full((3,), -900.0, dtype=F64, requires_grad=True)
    old = logp.detach() - torch.tensor([math.log(M) + 1.0, 50.0, 800.0], dtype=F64)
    loss = clipped_loss(logp, old, sign, "rkl", beta, clip=clip)
    C = -beta * math.e * M * (math.log(M) + 2)
    weight = math.e * M * sign + C
    w = 1 + clip.high if weight >= 0 else clip.dual
    assert_close(loss.detach(), torch.full((3,), (w * sign + C) * 900, dtype=F64), rtol=1e-12, atol=0)
    assert torch.autograd.grad(loss.sum(), logp)[0].tolist() == [0.0, 0.0, 0.0]


def test_the_clamp_is_beyond_the_wider_of_the_two_bounds():
    """1 + ε2 = 6 above c = 2: a rising sample is live up to 6, also where log w is over log c + 1."""
    w = torch.tensor([5.5, 5.9, 6.1], dtype=F64)
    logp = torch.full((3,), -9.0, dtype=F64, requires_grad=True)
    clip = DualClip(low=0.2, high=5.0, dual=2.0)
    g = torch.autograd.grad(clipped_loss(logp, logp.detach() - w.log(), 1.0, "urkl", 0.0, clip=clip).sum(), logp)[0]
    assert_close(g, torch.tensor([-5.5, -5.9, 0.0], dtype=F64))


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1, 1, 3)])
def test_prefixes_run_along_the_last_axis(shape):
    """w_t = (2, 3, ½), π_ref = π_old: rkl's penalties w_{1:t}·log w_t are 2 log 2, 6 log 3 and 3 log ½."""
    w = torch.tensor([2.0, 3.0, 0.5], dtype=F64)
    logp = torch.full(shape, -9.0, dtype=F64).cumsum(-1)
    loss = per_decision_loss(logp, logp - w.log().cumsum(-1).expand(shape), 0.0, "rkl", 1.0)
    expected = torch.tensor([2 * math.log(2), 6 * math.log(3), 3 * math.log(0.5)], dtype=F64)
    assert_close(loss, expected.expand(shape), rtol=1e-12, atol=0)
