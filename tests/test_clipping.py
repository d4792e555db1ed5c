"""The clip, point by point: the region and the dead branches' values as PAPER §4 states them, Algorithm 1 beside 2."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import PAPER_NAMES, SampleInputs, betas, divergence_names, paper_names, sample_inputs
from torch.testing import assert_close

from rpg_ref import DIVERGENCES, DualClip, clipped_loss, clipped_loss_as_printed, ppo_loss, reinforce_loss, weight

CLIP = DualClip(low=0.25, high=0.5, dual=3.0)
# Below this float64 has no full precision.
SUBNORMAL = 1e-300
NEAR = st.one_of(st.floats(-2.0, 2.0), st.sampled_from([0.0, math.log(0.75), math.log(1.5), math.log(3.0)]))


def grad(loss, logp: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = logp.clone().requires_grad_()
    value = loss(leaf, *args, **kwargs)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def algorithm_2(w: float, A: float, C: float, ell: float, clip: DualClip) -> tuple[float, bool]:
    """(value, gradient is live) of one sample, as PAPER §4 writes it out."""
    w_low, w_high, c = 1 - clip.low, 1 + clip.high, clip.dual
    psi = (A + C / w) * ell
    if psi >= 0:
        return (w * psi, True) if w < w_high else ((A + C / w_high) * w_high * ell, False)
    if w <= w_low:
        return (A + C / w_low) * w_low * ell, False
    return (w * psi, True) if w < c else (A * ell * c + C * ell, False)


@given(x=sample_inputs(ratios=NEAR, size=4), name=divergence_names, beta=betas)
def test_region_and_values_sample_by_sample(x: SampleInputs, name, beta):
    logp = x.logp - 1e-3  # ℓ > 0: at ℓ = 0 exactly, ψ loses the sign of A′ (see the next test)
    old = x.logp_old - 1e-3
    value, g = grad(clipped_loss, logp, old, x.advantage, name, beta, logp_ref=x.logp_ref, clip=CLIP)
    ref = old if x.logp_ref is None else x.logp_ref
    for i in range(len(logp)):
        w, u = math.exp(logp[i] - old[i]), math.exp(ref[i] - old[i])
        A, C = x.advantage[i].item(), -beta * u * DIVERGENCES[name].slope(logp[i] - ref[i]).item()
        size = abs(w * A) + abs(C)
        if 0 < abs(w * A + C) < 1e-12 * size or min(abs(w - b) for b in (0.75, 1.5, 3.0)) < 1e-12:
            continue  # the sign or the side is decided by rounding
        expected, live = algorithm_2(w, A, C, -logp[i].item(), CLIP)
        beyond = w >= 3.0 * math.e  # reported at the clamp
        assert beyond or abs(value[i].item() - expected) <= 1e-12 * (1 + 3 * size) * -logp[i].item()
        assert abs(g[i].item() - (-(w * A + C) if live else 0.0)) <= 1e-12 * size + SUBNORMAL


@pytest.mark.parametrize("name", PAPER_NAMES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_on_a_bound_a_sample_is_dead(name, sign):
    """Bounds made to equal w to the last bit: live iff w < 1 + ε2, and iff 1 − ε1 < w < c."""
    logp = torch.tensor([-3.0, -3.0, -3.0], dtype=torch.float64)
    old = logp - torch.tensor([-0.25, 0.25, 1.5], dtype=torch.float64)
    w_low, w_high, c = (logp - old).exp().tolist()
    clip = DualClip(1 - w_low, w_high - 1, c)
    assert (1 - clip.low, 1 + clip.high, clip.dual) == (w_low, w_high, c)
    inside = [old + 1e-12 * torch.tensor([-s, s, s]) for s in (1.0,)][0]
    _, on = grad(clipped_loss, logp, old, 10 * sign, name, 0.1, clip=clip)
    _, near = grad(clipped_loss, logp, inside, 10 * sign, name, 0.1, clip=clip)
    lower, upper, dual = range(3)
    if sign > 0:
        assert on[lower] != 0 and near[lower] != 0  # no lower bound for a sample that is to become likelier
        assert on[upper] == 0 and near[upper] != 0
        assert on[dual] == near[dual] == 0
    else:
        assert on[lower] == 0 and near[lower] != 0
        assert on[upper] != 0 and near[upper] != 0
        assert on[dual] == 0 and near[dual] != 0


def test_a_certain_sample_follows_its_weights_sign():
    """At log π_θ = 0, ψ = 0 whatever A′; the region is that of the weight's sign, as in Algorithm 1."""
    logp, old = torch.zeros(1, dtype=torch.float64), torch.tensor([math.log(0.5)], dtype=torch.float64)
    for advantage, live in ((1.0, False), (-1.0, True)):
        _, g = grad(clipped_loss, logp, old, advantage, "urkl", 0.0, clip=CLIP)
        assert (g != 0).item() is live


def test_a_weight_of_zero_counts_as_rising():
    """ψ = 0 is in the first case: at w < 1 − ε1 the value is w·ψ = 0, not that of a clamped sample."""
    log_w = torch.tensor([math.log(0.5)], dtype=torch.float64)
    logp, old = torch.full((1,), -2.0, dtype=torch.float64), -2.0 - log_w
    assert weight(logp, old, logp - old, "urkl", 1.0).item() == 0.0  # A = log w
    assert clipped_loss(logp, old, logp - old, "urkl", 1.0, clip=CLIP).item() == 0.0


def algorithm_1(log_w: torch.Tensor, advantage: torch.Tensor, clip: DualClip) -> torch.Tensor:
    """Lines 27 and 32 with their max and min, Â as it comes."""
    w = log_w.exp()
    outer = torch.maximum(-w * advantage, -w.clamp(1 - clip.low, 1 + clip.high) * advantage)
    return torch.where(advantage >= 0, outer, torch.minimum(outer, -clip.dual * advantage))


def regularised_advantage(log_v: torch.Tensor, A: torch.Tensor, name: str, beta: float) -> torch.Tensor:
    """Â = A − β·f′(v), with the paper's f′."""
    v = log_v.exp()
    f_prime = {"fkl": -1 / v, "ufkl": 1 - 1 / v, "rkl": log_v + 1, "urkl": log_v}[name]
    return A - beta * f_prime


@given(x=sample_inputs(ratios=st.floats(-4.0, 4.0)), name=paper_names, beta=betas)
def test_algorithm_1_detached_is_algorithm_2_and_live_is_as_printed(x: SampleInputs, name, beta):
    ref = x.logp_old if x.logp_ref is None else x.logp_ref
    _, ours = grad(clipped_loss, x.logp, x.logp_old, x.advantage, name, beta, logp_ref=x.logp_ref, clip=CLIP)
    printed_value, printed = grad(
        clipped_loss_as_printed, x.logp, x.logp_old, x.advantage, name, beta, logp_ref=x.logp_ref, clip=CLIP
    )
    leaf = x.logp.clone().requires_grad_()
    A_hat = regularised_advantage(leaf - ref, x.advantage, name, beta)
    log_w = leaf - x.logp_old
    detached, live = (algorithm_1(log_w, a, CLIP) for a in (A_hat.detach(), A_hat))
    w = log_w.detach().exp()
    # Ties and signs that rounding decides are the business of the test above; the rest must agree.
    bounds = torch.stack([(w - b).abs() for b in (0.75, 1.5, 3.0)]).min(0).values
    clear = (bounds > 1e-9) & (A_hat.detach().abs() > 1e-9 * (1 + beta + beta / (leaf.detach() - ref).exp()))
    size = (w + 3.0) * (x.advantage.abs() + beta * (5 + (ref - leaf.detach()).exp())) + 1e-30
    for found, loss in ((ours, detached), (printed, live)):
        (expected,) = torch.autograd.grad(loss.sum(), leaf, retain_graph=True)
        assert bool((((found - expected).abs() <= 1e-12 * size) | ~clear).all())
    assert bool((((printed_value - live.detach()).abs() <= 1e-12 * size) | ~clear).all())


@given(x=sample_inputs(ratios=st.floats(-4.0, 4.0)), dual=st.sampled_from([math.inf, 3.0]))
def test_ppo_is_the_minimum_of_two_products(x: SampleInputs, dual):
    clip = DualClip(0.25, 0.5, dual)
    value, g = grad(ppo_loss, x.logp, x.logp_old, x.advantage, clip=clip)
    leaf = x.logp.clone().requires_grad_()
    w = (leaf - x.logp_old).exp()
    smaller = torch.minimum(w * x.advantage, w.clamp(0.75, 1.5) * x.advantage)
    expected = -torch.where(x.advantage < 0, torch.maximum(smaller, dual * x.advantage.clamp(max=-1e-300)), smaller)
    (expected_g,) = torch.autograd.grad(expected.sum(), leaf)
    clear = torch.stack([(w - b).abs() for b in (0.75, 1.5, 3.0)]).min(0).values > 1e-9
    assert_close(value, expected.detach(), rtol=1e-12, atol=1e-12)
    assert_close(g[clear], expected_g[clear], rtol=1e-12, atol=1e-12)


@given(log_w=st.floats(-3.0, 3.0), A=st.floats(-3.0, 3.0), name=divergence_names, beta=betas)
def test_without_bounds_it_is_the_reinforce_loss(log_w, A, name, beta):
    logp, old = torch.tensor([-4.0], dtype=torch.float64), torch.tensor([-4.0 - log_w], dtype=torch.float64)
    open_clip = DualClip(1.0, math.inf, math.inf)
    for found, expected in zip(
        grad(clipped_loss, logp, old, A, name, beta, clip=open_clip),
        grad(reinforce_loss, logp, old, A, name, beta),
        strict=True,
    ):
        assert_close(found, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", PAPER_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(log_w=st.one_of(st.floats(-1e4, 1e4), st.sampled_from([800.0, -800.0, 89.0, -104.0])), A=st.floats(-3.0, 3.0))
@example(log_w=math.log(10.0), A=-1.0)
@example(log_w=math.log(10.0) + 1, A=-1.0)
def test_no_ratio_overflows(name, dtype, log_w, A):
    """π_ref = π_old: beyond M the gradient is exactly zero and the value finite, however large the ratio."""
    logp = torch.tensor([-1.0], dtype=dtype)
    old = logp - log_w
    value, g = grad(clipped_loss, logp, old, A, name, 0.1)
    assert bool(value.isfinite().all()) and bool(g.isfinite().all())
    if (logp.double() - old.double()).item() > math.log(10.0):
        assert g.item() == 0.0


@given(log_w=st.floats(2.0, 4.0), A=st.floats(-3.0, 3.0), name=divergence_names)
def test_the_clamp_changes_no_gradient(log_w, A, name):
    """Around log M and log M + 1, against the unclamped weight and region."""
    logp, old = torch.tensor([-5.0], dtype=torch.float64), torch.tensor([-5.0 - log_w], dtype=torch.float64)
    _, g = grad(clipped_loss, logp, old, A, name, 0.1)
    coefficient, w = weight(logp, old, A, name, 0.1), (logp - old).exp()
    live = bool(w < 1.28) if coefficient >= 0 else bool(0.8 < w < 10.0)
    assert_close(g, -coefficient if live else torch.zeros_like(g), rtol=1e-13, atol=1e-13)
