"""Adam at ε = 0 drops a constant factor from its steps, and keeps what (G − 1)/G does to β."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import divergence_names, floats, share

from rpg_ref import advantages, differentiable_loss

BETAS = (0.9, 0.95)


def optimiser(leaf, eps=0.0, kind=torch.optim.Adam, **choices):
    return kind([leaf], lr=0.1, betas=BETAS, eps=eps, **choices)


def path(gradients, eps=0.0, bound=None, kind=torch.optim.Adam, **choices):
    """Parameters [updates, size] after each update with these gradients."""
    leaf = torch.ones(gradients.shape[1], dtype=torch.float64, requires_grad=True)
    steps, out = optimiser(leaf, eps, kind, **choices), []
    for g in torch.tensor(gradients):
        leaf.grad = g.clone() if bound is None else g * min(1.0, bound / float(g.norm()))
        steps.step()
        out.append(leaf.detach().clone().numpy())
    return np.array(out)


def test_two_steps_of_adam_by_hand():
    """g = 3, −4 times any κ: the first step is −lr·sign(g); then m = 0.9·0.3 − 0.4, s = 0.95·0.45 + 0.8."""
    m, s = 0.9 * 0.3 - 0.1 * 4, 0.95 * 0.05 * 9 + 0.05 * 16
    second = m / (1 - 0.9**2) / np.sqrt(s / (1 - 0.95**2))
    for scale in (1.0, 7.0, 1e-3, 7 / 8):
        found = path(scale * np.array([[3.0], [-4.0]]))
        assert np.abs(found[:, 0] - [0.9, 0.9 - 0.1 * second]).max() < 1e-15
    # A factor of the second update alone stays, and so does one below a large ε.
    assert abs(path(np.array([[3.0], [-8.0]]))[1, 0] - found[1, 0]) > 1e-3
    assert (
        np.abs(path(0.1 * np.array([[3.0], [-4.0]]), eps=1.0)[:, 0] - path(np.array([[3.0], [-4.0]]), 1.0)[:, 0]).min()
        > 0.01
    )


@given(
    g=floats((5, 3), st.floats(-3.0, 3.0).filter(lambda x: abs(x) > 1e-6)),
    power=st.integers(-20, 20),
    eps=st.floats(1e-9, 1.0),
)
def test_a_constant_factor_leaves_the_iterates_to_the_bit(g, power, eps):
    """A power of two has no rounding. With ε it acts as ε/κ, under a bound c as c/κ; AdamW's decay does not matter."""
    scale = 2.0**power
    assert (path(scale * g) == path(g)).all()
    adamw = {"kind": torch.optim.AdamW, "weight_decay": 0.1}
    assert (path(scale * g, **adamw) == path(g, **adamw)).all()
    assert np.abs(path(scale * g, eps) - path(g, eps / scale)).max() < 1e-12
    bound = float(np.linalg.norm(g[0]))
    assert np.abs(path(scale * g, 0.0, bound * scale) - path(g, 0.0, bound)).max() < 1e-12


P_START, REF, REWARD = np.array([0.2, 0.5, 0.3]), np.array([0.4, 0.25, 0.35]), np.array([1.0, -0.5, 0.25])


def train(baseline, beta, *, size=4, name="urkl", seed=0, updates=12, eps=0.0, bound=None, gradients=None):
    """Parameters after each update of Adam: groups drawn from the policy itself, the penalty in the loss."""
    leaf = torch.tensor(np.log(P_START), requires_grad=True)
    steps, rng, out = optimiser(leaf, eps), np.random.default_rng(seed), []
    for _ in range(updates):
        logp = leaf.log_softmax(-1)
        p = logp.detach().exp()
        y = torch.searchsorted(p.cumsum(0), torch.tensor(rng.random(2 * size)) * p.sum()).clamp(max=len(p) - 1)
        A = advantages(torch.tensor(REWARD)[y], torch.arange(2).repeat_interleave(size), baseline)
        loss = differentiable_loss(logp[y], logp[y].detach(), A, name, beta, logp_ref=torch.tensor(np.log(REF))[y])
        leaf.grad = torch.autograd.grad(loss.mean(), leaf)[0]
        if bound is not None:
            torch.nn.utils.clip_grad_norm_([leaf], bound)
        if gradients is not None:
            gradients.append(leaf.grad.numpy().copy())
        steps.step()
        out.append(leaf.detach().clone().numpy())
    return np.array(out)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_group_mean_trains_as_leave_one_out_at_a_larger_beta(size):
    """At β·G/(G − 1) the iterates are the same. At β, with an ε, or with a bound that binds sometimes, they are not."""
    factor = size / (size - 1)
    found = train("group_mean", 0.5, size=size)
    assert np.abs(found - train("leave_one_out", 0.5 * factor, size=size)).max() < 1e-12
    assert np.abs(found - train("leave_one_out", 0.5, size=size)).max() > 1e-3
    for broken in ({"eps": 0.1}, {"bound": 0.3}):
        pair = [train(x, b, size=size, **broken) for x, b in (("group_mean", 0.5), ("leave_one_out", 0.5 * factor))]
        assert np.abs(pair[0] - pair[1]).max() > 1e-3


@share(3)
@given(name=divergence_names, size=st.integers(2, 6), seed=st.integers(0, 99), beta=st.sampled_from([0.1, 1.0]))
def test_at_any_size_and_divergence(name, size, seed, beta):
    """Adam divides by the gradient's size: a component that is zero but for rounding would make steps of its own."""
    gradients = []
    pair = [
        train(x, b, size=size, name=name, seed=seed, updates=4, gradients=gradients)
        for x, b in (("group_mean", beta), ("leave_one_out", beta * size / (size - 1)))
    ]
    assume(np.abs(gradients).min() > 1e-6)
    assert np.abs(pair[0] - pair[1]).max() < 1e-8
