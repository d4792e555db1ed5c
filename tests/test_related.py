"""Related methods sample by sample, written from their own definitions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import SampleInputs, ordinary, sample_inputs
from torch.testing import assert_close

from rpg_ref import DualClip, cpgd_loss, k2_loss, kl_in_reward_loss, pmd_mean_loss

CLIP = DualClip(low=0.2, high=0.3, dual=math.inf)
near = sample_inputs(ordinary)


def slope(loss, logp):
    leaf = logp.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf).sum(), leaf)[0]


@given(x=near, beta=st.sampled_from([0.01, 0.5, 2.0]))
def test_pmd_mean_regresses_the_log_ratio(x: SampleInputs, beta):
    """The gradient of (A/β − log w)²·β/2, whatever the reference."""
    found = slope(lambda p: pmd_mean_loss(p, x.logp_old, x.advantage, beta), x.logp)
    squared = slope(lambda p: beta / 2 * (x.advantage / beta - (p - x.logp_old)) ** 2, x.logp)
    assert_close(found, squared, rtol=1e-9, atol=1e-12)


def test_pmd_mean_is_at_rest_where_the_policy_is_the_tilted_sampler():
    """log w = A/β, the mirror-descent step, when A = R − β·log Z."""
    old, R, beta = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log(), torch.tensor([1.0, 0.0, -1.0]), 0.7
    tilted = old + R / beta
    A = R - beta * tilted.logsumexp(0)
    g = slope(lambda p: pmd_mean_loss(p, old, A.double(), beta), tilted.log_softmax(0))
    assert_close(g, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-7)


@given(x=near, beta=st.sampled_from([0.0, 0.5]))
def test_cpgd_is_the_minimum_of_two_products_of_log_w_and_a_drift(x: SampleInputs, beta):
    w = (x.logp - x.logp_old).exp()
    on_a_bound = ((w - 1.3).abs() < 1e-9) | ((w - 0.8).abs() < 1e-9)

    def by_definition(p):
        log_w = p - x.logp_old
        clipped = log_w.clamp(math.log(0.8), math.log(1.3))
        drift = log_w.exp() - 1 - log_w
        return -torch.minimum(log_w * x.advantage, clipped * x.advantage) + beta * drift

    found = slope(lambda p: cpgd_loss(p, x.logp_old, x.advantage, beta, clip=CLIP), x.logp)
    assert_close(found[~on_a_bound], slope(by_definition, x.logp)[~on_a_bound], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 3)])
def test_the_kl_in_the_reward_is_summed_from_the_token_on(shape):
    """A = 1, β = 1, log(π_old/π_ref) = (0.1, 0.2, 0.4): rewards 0.3, 0.4, 0.6, on-policy."""
    logp = torch.full(shape, -2.0, dtype=torch.float64)
    gap = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64).expand(shape)
    found = slope(lambda p: kl_in_reward_loss(p, logp, 1.0, 1.0, logp_ref=logp - gap, clip=CLIP), logp)
    assert_close(found, -torch.tensor([0.3, 0.4, 0.6], dtype=torch.float64).expand(shape))


def test_the_advantage_that_is_clipped_holds_the_kl():
    """w = 2: dead while A − β·k1 > 0, live once the KL has turned the sign."""
    logp = torch.tensor([-1.0], dtype=torch.float64)
    old = logp - math.log(2.0)
    for gap, expected in ((0.5, 0.0), (1.5, 1.0)):
        ref = old - gap
        found = slope(lambda p, ref=ref: kl_in_reward_loss(p, old, 1.0, 1.0, logp_ref=ref, clip=CLIP), logp)
        assert_close(found.item(), expected)


@given(x=near, beta=st.sampled_from([0.0, 0.5]))
def test_k2_pulls_by_the_log_ratio(x: SampleInputs, beta):
    """Whatever w is: it has no weight; without a reference log v = log w."""
    ref = x.logp_old if x.logp_ref is None else x.logp_ref
    zero = torch.zeros_like(x.advantage)
    found = slope(lambda p: k2_loss(p, x.logp_old, zero, beta, logp_ref=x.logp_ref, clip=CLIP), x.logp)
    assert_close(found, beta * (x.logp - ref), rtol=1e-12, atol=1e-13)
