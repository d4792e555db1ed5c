"""k3 is the unnormalised KL, in both directions and at any masses; as an unweighted loss it descends the other one.

Remark 3.5: with y − 1 − log y = k3(y), E_p[k3(r/p)] = UKL(p‖r). All expectations are exact sums.
"""

import numpy as np
import numpy_oracle
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from strategies import floats
from torch.testing import assert_close

from rpg_ref import DIVERGENCES, k1, k2, k3

masses = st.floats(0.1, 10.0)


@st.composite
def two_measures(draw):
    """Logits of two distributions over the same outcomes, and a mass for each."""
    size = draw(st.integers(2, 6))
    logits = floats(size, st.floats(-4.0, 4.0))
    return draw(logits), draw(logits), draw(masses), draw(masses)


def measures(logits_p, logits_r, mass_p, mass_r):
    return mass_p * numpy_oracle.softmax(logits_p), mass_r * numpy_oracle.softmax(logits_r)


def estimate(estimator, p: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Σ p·k(r/p), the integral of the estimator against p."""
    return (p * estimator(r.log() - p.log())).sum()


@given(case=two_measures())
@example(case=(np.zeros(2), np.zeros(2), 1.0, 2.0))
def test_both_directions_at_unequal_masses(case):
    p, r = measures(*case)
    for a, b in ((p, r), (r, p)):
        ukl = numpy_oracle.DIVERGENCE["urkl"](a, b)
        assert_close(estimate(k3, torch.tensor(a), torch.tensor(b)).item(), float(ukl), rtol=1e-11, atol=1e-12)


@given(case=two_measures())
def test_gradient_in_both_arguments(case):
    logits_p, logits_r, mass_p, mass_r = case
    leaves = [torch.tensor(x, requires_grad=True) for x in (logits_p, logits_r)]
    p, r = mass_p * leaves[0].softmax(-1), mass_r * leaves[1].softmax(-1)
    g = torch.autograd.grad(estimate(k3, p, r), leaves)

    def ukl(p, r):
        return numpy_oracle.DIVERGENCE["urkl"](p, r)

    measure_p, measure_r = measures(*case)
    exact = (
        numpy_oracle.gradient(lambda x: ukl(mass_p * numpy_oracle.softmax(x), measure_r), logits_p),
        numpy_oracle.gradient(lambda x: ukl(measure_p, mass_r * numpy_oracle.softmax(x)), logits_r),
    )
    for found, true in zip(g, exact, strict=True):
        assert np.abs(found.numpy() - true).max() <= 1e-11 * max(1.0, np.abs(true).max())


@given(case=two_measures())
def test_ukl_is_nonnegative_and_kl_is_not(case):
    """UKL ≥ 0 at any masses; the plain KL of a measure heavier than its argument's sample mass may be negative."""
    p, r = measures(*case)
    ukl, kl = (float(numpy_oracle.DIVERGENCE[name](p, r)) for name in ("urkl", "rkl"))
    assert estimate(k3, torch.tensor(p), torch.tensor(r)).item() >= 0
    assert_close(ukl - kl, r.sum() - p.sum(), rtol=1e-9, atol=1e-9)


def test_kl_is_negative_where_ukl_is_not():
    p, r = measures(np.zeros(3), np.zeros(3), 1.0, 2.0)
    assert numpy_oracle.DIVERGENCE["rkl"](p, r) < 0 < estimate(k3, torch.tensor(p), torch.tensor(r)).item()


@given(log_y=floats(8, st.floats(-50.0, 50.0)))
def test_k3_is_the_generator_of_both_unnormalised_rows(log_y):
    """k3(v) = f_UFKL(v), and v·k3(1/v) = f_URKL(v): what GRPO's corrected penalty shares with RPG's surrogate."""
    log_v = torch.tensor(log_y)
    assert_close(k3(log_v), DIVERGENCES["ufkl"].f(log_v), rtol=1e-14, atol=0)
    assert_close(log_v.exp() * k3(-log_v), DIVERGENCES["urkl"].f(log_v), rtol=1e-14, atol=1e-15)


@given(case=two_measures())
def test_where_value_and_gradient_part(case):
    """On-policy, for distributions: the value of k3 estimates KL(p‖r), its gradient as a loss is that of KL(r‖p)."""
    logits_p, logits_r, *_ = case
    assume(np.ptp(logits_p - logits_r) > 1e-3)
    leaf = torch.tensor(logits_p, requires_grad=True)
    r = torch.tensor(logits_r).softmax(-1)

    def as_a_loss(estimator) -> np.ndarray:
        """∇ of Σ SG(p)·k(r/p): the samples are fixed, only the estimate is differentiated."""
        log_p = leaf.log_softmax(-1)
        loss = (log_p.detach().exp() * estimator(r.log() - log_p)).sum()
        return torch.autograd.grad(loss, leaf)[0].numpy()

    def exact(name: str) -> np.ndarray:
        J = numpy_oracle.DIVERGENCE[name]
        return numpy_oracle.gradient(lambda x: J(numpy_oracle.softmax(x), r.numpy()), logits_p)

    reverse, forward = exact("rkl"), exact("fkl")
    size = 1e-11 * max(1.0, np.abs(reverse).max(), np.abs(forward).max())
    assert np.abs(as_a_loss(k3) - forward).max() <= size
    assert np.abs(as_a_loss(k2) - reverse).max() <= size
    assert np.abs(as_a_loss(k1)).max() <= size
    # log v is recovered exactly by this reading: the reverse KL's gradient needs the sampling to move as well.
    p = leaf.log_softmax(-1)
    moving = torch.autograd.grad((p.exp() * k3(r.log() - p)).sum(), leaf)[0].numpy()
    assert np.abs(moving - reverse).max() <= size


def test_the_two_gradients_differ():
    """The check above could fail: at an ordinary point the two directions are far apart."""
    p, r = np.array([1.0, 0.0, -1.0]), np.array([-1.0, 1.0, 0.5])
    exact = [
        numpy_oracle.gradient(
            lambda x, D=numpy_oracle.DIVERGENCE[name]: D(numpy_oracle.softmax(x), numpy_oracle.softmax(r)), p
        )
        for name in ("rkl", "fkl")
    ]
    assert np.abs(exact[0] - exact[1]).max() > 0.1
