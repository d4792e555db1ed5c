"""Token log-probabilities, entropies and the rest of a top k against the definitions in 50 digits."""

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import floats
from torch.testing import assert_close

from rpg_ref import token_entropy, token_logprobs, with_rest


@given(logits=floats((2, 3, 4), st.floats(-50.0, 50.0)), temperature=st.sampled_from([1.0, 0.6, 2.0]))
def test_against_the_definition(logits, temperature):
    tokens = torch.tensor([[0, 3, 1], [2, 2, 0]])
    logp = token_logprobs(torch.tensor(logits), tokens, temperature=temperature)
    entropy = token_entropy(torch.tensor(logits), temperature=temperature)
    with mpmath.workdps(50):
        for b in range(2):
            for t in range(3):
                powers = [mpmath.exp(mpmath.mpf(float(x)) / temperature) for x in logits[b, t]]
                p = [x / sum(powers) for x in powers]
                assert_close(logp[b, t].item(), float(mpmath.log(p[tokens[b, t]])), rtol=1e-12, atol=1e-12)
                assert_close(entropy[b, t].item(), float(-sum(x * mpmath.log(x) for x in p)), rtol=1e-11, atol=1e-11)


@given(logits=floats((1, 2, 3), st.floats(-5.0, 5.0)), shift=st.floats(-100.0, 100.0))
def test_shift_invariance(logits, shift):
    tokens = torch.tensor([[0, 2]])
    x = torch.tensor(logits)
    assert_close(token_logprobs(x + shift, tokens), token_logprobs(x, tokens), rtol=1e-10, atol=1e-10)


def test_float32_keeps_a_likely_tokens_surprise():
    """logit − logsumexp would give 0 here."""
    found = token_logprobs(torch.tensor([[25.0, 10.0]]), torch.tensor([0])).item()
    assert abs(found / -3.059022e-07 - 1) < 0.2
    assert abs(token_logprobs(torch.tensor([[1000.0, 990.0]]), torch.tensor([0])).item() / -4.5398e-05 - 1) < 1e-2


def test_gradient_is_the_score():
    logits = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(token_logprobs(logits, torch.tensor([1])).sum(), logits)
    assert_close(g, torch.tensor([[0.0, 1.0, 0.0]]).double() - logits.detach().softmax(-1))


def test_a_forbidden_token_adds_no_entropy_and_no_nan():
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    entropy = token_entropy(logits)
    (g,) = torch.autograd.grad(entropy.sum(), logits)
    assert_close(entropy, torch.tensor([2.0]).log())
    assert not g.isnan().any()


def test_half_precision_is_widened():
    logits = torch.randn(2, 3, 5).bfloat16()
    assert token_logprobs(logits, torch.zeros(2, 3, dtype=torch.int64)).dtype == torch.float32


def test_entropy_is_at_temperature_one_unless_told():
    logits = torch.tensor([0.0, 1.0, 3.0])
    assert torch.equal(token_entropy(logits), token_entropy(logits, temperature=1.0))
    assert token_entropy(logits) < token_entropy(logits, temperature=2.0)


@given(table=floats(4, st.floats(-40.0, 0.0)), far=st.floats(-30.0, 30.0))
def test_the_rest_is_its_definition_in_fifty_digits(table, far):
    """log(1 − Σπ) of the first three of four tokens, from a rest of nearly nothing to a rest of nearly all."""
    logp = torch.tensor(table + [0.0, 0.0, 0.0, far]).log_softmax(0)
    found = with_rest(logp[:3])
    assert torch.equal(found[:3], logp[:3])
    with mpmath.workdps(50):
        rest = 1 - sum(mpmath.exp(mpmath.mpf(x.item())) for x in logp[:3])
        if rest > 1e-14:
            assert found[3].item() == pytest.approx(float(mpmath.log(rest)), rel=1e-14, abs=float(1e-15 / rest))


def test_the_rest_keeps_its_digits_near_nothing_and_near_all():
    """Of one token with log π = −1e-12 the rest is 1e-12, and with log π = −50 its log-probability is −e⁻⁵⁰."""
    for logp, rest in ((-1e-12, -27.631021115929), (-50.0, -1.9287498479639e-22)):
        assert with_rest(torch.tensor([logp], dtype=torch.float64))[1].item() == pytest.approx(rest, rel=1e-12, abs=0)


def test_a_rest_of_nothing_has_a_finite_log_probability_and_gradient():
    for dtype, least in ((torch.float32, 1e-7), (torch.float64, 2e-16)):
        leaf = torch.tensor([0.0, -1e3], dtype=dtype, requires_grad=True)
        logp = with_rest(leaf.log_softmax(0)[:1])
        assert least < logp[-1].exp().item() < 3 * least
        assert torch.autograd.grad(logp.sum(), leaf)[0].isfinite().all()
    assert with_rest(torch.tensor([-1.0], dtype=torch.bfloat16)).dtype == torch.float32
