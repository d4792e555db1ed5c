"""Token log-probabilities and entropies against the definitions in 50 digits."""

import mpmath
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import floats
from torch.testing import assert_close

from rpg_ref import token_entropy, token_logprobs


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
