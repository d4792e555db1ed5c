"""Divergences over the top k tokens, with one bucket for the rest and without: values and gradients by enumeration."""

import math

import numpy as np
import numpy_oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy_oracle import softmax
from strategies import divergence_names, floats
from torch.testing import assert_close

from rpg_ref import DIVERGENCES, with_rest

F64 = torch.float64
SIZE = 6
logits = floats((2, SIZE), st.floats(-3.0, 3.0))
kept = st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=SIZE - 2, unique=True)


def over(name, logp, logp_ref):
    """Σ π_ref·f(v) over the tokens that are listed."""
    return (logp_ref.exp() * DIVERGENCES[name].f(logp - logp_ref)).sum(-1)


def reverse_kl(logp, logp_ref):
    return (logp.exp() * (logp - logp_ref)).sum(-1)


def test_a_truncated_kl_is_negative_and_a_bucket_mends_it_by_hand():
    """π_θ = (½, ⅜, ⅛), π_ref = (¾, ⅛, ⅛), k = 1: ½ log ⅔ < 0; with the bucket ½ log ⅔ + ½ log 2, below the full KL."""
    logp, logp_ref = (torch.tensor(x, dtype=F64).log() for x in ((0.5, 0.375, 0.125), (0.75, 0.125, 0.125)))
    assert reverse_kl(logp[:1], logp_ref[:1]).item() == pytest.approx(0.5 * math.log(2 / 3))
    bucketed = reverse_kl(with_rest(logp[:1]), with_rest(logp_ref[:1]))
    assert bucketed.item() == pytest.approx(0.5 * math.log(4 / 3))
    full = 0.5 * math.log(2 / 3) + 0.375 * math.log(3)
    assert reverse_kl(logp, logp_ref).item() == pytest.approx(full) and full > bucketed


def test_at_the_reference_a_truncated_kl_still_pushes_and_a_bucketed_one_does_not():
    """π_θ = π_ref = (½, ¼, ¼), k = 1: the gradient of ½ log v is ∇π_θ(1) = (¼, −⅛, −⅛), and with the bucket it is 0."""
    leaf = torch.tensor([2.0, 1.0, 1.0], dtype=F64).log().requires_grad_()
    logp = leaf.log_softmax(0)
    reference = logp.detach()
    (alone,) = torch.autograd.grad(reverse_kl(logp[:1], reference[:1]), leaf, retain_graph=True)
    assert_close(alone, torch.tensor([0.25, -0.125, -0.125], dtype=F64))
    (mended,) = torch.autograd.grad(reverse_kl(with_rest(logp[:1]), with_rest(reference[:1])), leaf)
    assert_close(mended, torch.zeros(3, dtype=F64), rtol=0, atol=1e-16)


def test_the_renormalised_kl_may_exceed_the_full_one():
    """π_θ = (⅛, ⅛, ¾), π_ref = (1/40, 9/40, ¾), k = 2: KL((½, ½)‖(1/10, 9/10)) = 0.51, four times the whole."""
    logp, logp_ref = (torch.tensor(x, dtype=F64).log() for x in ((0.125, 0.125, 0.75), (0.025, 0.225, 0.75)))
    renormalised = reverse_kl(logp[:2].log_softmax(0), logp_ref[:2].log_softmax(0)).item()
    assert renormalised == pytest.approx(math.log(5 / 3)) and reverse_kl(logp, logp_ref).item() < 0.26 * renormalised


@given(table=logits, name=divergence_names, tokens=kept)
def test_a_bucketed_divergence_is_one_and_a_lower_bound_that_grows_with_k(table, name, tokens):
    """Beside NumPy's definition over the k tokens and the rest as one; adding a token never lowers it."""
    p, r = (softmax(x) for x in table)
    order = tokens + [x for x in range(SIZE) if x not in tokens]
    logp, logp_ref = (torch.tensor(np.log(x)) for x in (p, r))
    bounds = []
    for k in (len(tokens), len(tokens) + 1):
        first = order[:k]
        found = over(name, with_rest(logp[first]), with_rest(logp_ref[first])).item()
        coarse = [np.append(x[first], x[order[k:]].sum()) for x in (p, r)]
        assert found == pytest.approx(numpy_oracle.DIVERGENCE[name](*coarse), rel=1e-9, abs=1e-12)
        bounds.append(found)
    full = over(name, logp, logp_ref).item()
    slack = 1e-9 * max(1.0, full)
    assert -slack <= bounds[0] <= bounds[1] + slack and bounds[1] <= full + slack


@given(table=logits, tokens=kept)
def test_the_gradient_of_a_bucketed_kl(table, tokens):
    """∇ = Σ π·c·∇log π, c = log v on the k tokens and log v̄ on the rest; without the bucket c = log v + 1 and 0."""
    p, r = (softmax(x) for x in table)
    leaf = torch.tensor(table[0], requires_grad=True)
    logp, logp_ref = leaf.log_softmax(0), torch.tensor(np.log(r))
    inside = np.isin(np.arange(SIZE), tokens)
    rest = np.log(p[~inside].sum() / r[~inside].sum())
    for value, c in (
        (reverse_kl(with_rest(logp[tokens]), with_rest(logp_ref[tokens])), np.where(inside, np.log(p / r), rest)),
        (reverse_kl(logp[tokens], logp_ref[tokens]), np.where(inside, np.log(p / r) + 1, 0.0)),
    ):
        (found,) = torch.autograd.grad(value, leaf, retain_graph=True)
        assert np.abs(found.numpy() - p * (c - p @ c)).max() < 1e-11
