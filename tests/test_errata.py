"""The errata as counterexamples: what published forms really descend, found by `identify`.

p = π_θ, q = π_old, r = π_ref, w = p/q. Per state, token level, equal lengths.
"""

import dataclasses

import pytest
import torch

from rpg_ref import RECIPES, aggregate, clipped_loss, differentiable_loss, k1, k2, k3
from rpg_ref.audit import identify

BETA = 0.5


def in_the_loss(term):
    """−w·A + β·term(p, q, r), from log-probabilities."""

    def loss(p, q, r, advantages, mask):
        return aggregate(-(p - q).exp() * advantages.unsqueeze(1) + BETA * term(p, q, r), mask, "token-mean")

    return loss


def in_the_reward(term):
    """−w·(A − β·SG(term))."""

    def loss(p, q, r, advantages, mask):
        reward = advantages.unsqueeze(1) - BETA * term(p, q, r).detach()
        return aggregate(-(p - q).exp() * reward, mask, "token-mean")

    return loss


def w(p, q):
    return (p - q).exp()


def straight_through(p):
    return (p - p.detach()).exp()


REVERSE, FORWARD = {"reverse_kl": BETA}, {"forward_kl": BETA}
DIFFERENCE = {"reverse_kl": BETA, "forward_kl": -BETA}

# (loss, penalty found on-policy, off-policy); None: the gradient of no known objective.
GROUND_TRUTH = {
    "k1": (in_the_loss(lambda p, q, r: k1(r - p)), {}, {"forward_kl_old": -BETA}),
    "k2": (in_the_loss(lambda p, q, r: k2(r - p)), REVERSE, None),
    "k2 · SG(w)": (in_the_loss(lambda p, q, r: w(p, q).detach() * k2(r - p)), REVERSE, REVERSE),
    "k2 · w": (in_the_loss(lambda p, q, r: w(p, q) * k2(r - p)), None, None),
    "k3": (in_the_loss(lambda p, q, r: k3(r - p)), FORWARD, None),
    "k3 · SG(w)": (in_the_loss(lambda p, q, r: w(p, q).detach() * k3(r - p)), FORWARD, FORWARD),
    "k1 · w": (in_the_loss(lambda p, q, r: w(p, q) * k1(r - p)), REVERSE, REVERSE),
    "k3 · w": (in_the_loss(lambda p, q, r: w(p, q) * k3(r - p)), REVERSE, REVERSE),
    "k1 · exp(log p − SG(log p))": (in_the_loss(lambda p, q, r: straight_through(p) * k1(r - p)), REVERSE, None),
    "k3 · exp(log p − SG(log p))": (in_the_loss(lambda p, q, r: straight_through(p) * k3(r - p)), REVERSE, None),
    "k1 in the reward, at p": (in_the_reward(lambda p, q, r: k1(r - p)), REVERSE, REVERSE),
    "k1 in the reward, frozen at q": (
        in_the_reward(lambda p, q, r: k1(r - q)),
        REVERSE,
        {"reverse_kl": BETA, "reverse_kl_old": -BETA},
    ),
    "k3 in the reward, at p": (in_the_reward(lambda p, q, r: k3(r - p)), DIFFERENCE, DIFFERENCE),
    "k3 in the reward, frozen at q": (in_the_reward(lambda p, q, r: k3(r - q)), DIFFERENCE, None),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", GROUND_TRUTH)
def test_ground_truth(name, seed):
    loss, *expected = GROUND_TRUTH[name]
    report = identify(loss, seed=seed)
    for finding, penalty in zip((report.on_policy, report.off_policy), expected, strict=True):
        if penalty is None:
            assert finding.residual > 1e-4 and finding.objective is None
            assert "no known objective" in finding.verdict
        else:
            assert finding.residual < 1e-8
            assert dict(finding.objective.terms) == pytest.approx({"reward": 1.0, **penalty}, rel=1e-8)
    assert report.on_policy.unidentified == ("reverse_kl_old", "forward_kl_old")


@pytest.mark.parametrize(("name", "penalty"), [("fkl", {}), ("ufkl", {}), ("rkl", REVERSE), ("urkl", REVERSE)])
def test_algorithm_1_as_printed_loses_the_forward_kl(name, penalty):
    """Lines 11–14, 27, 32: with Â live the penalty of FKL and UFKL has no expected gradient at all."""
    recipe = dataclasses.replace(RECIPES[f"rpg-{name}-clip-as-printed"], beta=BETA)
    report = identify(recipe)
    for finding in (report.on_policy, report.off_policy):
        assert dict(finding.objective.terms) == pytest.approx({"reward": 1.0, **penalty}, rel=1e-8)


def test_a_clamp_of_the_penaltys_value_kills_the_gradient_where_it_is_needed():
    """The released code's ±10: at w = 6 the reverse KL's w log w is over 10, and the token is let go."""
    logp = torch.tensor([-9.0], dtype=torch.float64, requires_grad=True)
    old = logp.detach() - torch.tensor(6.0).double().log()
    penalty = differentiable_loss(logp, old, 0.0, "rkl", 1.0)
    assert penalty.item() > 10
    assert torch.autograd.grad(penalty.clamp(-10, 10).sum(), logp, retain_graph=True)[0] == 0
    assert torch.autograd.grad(penalty.sum(), logp)[0].item() == pytest.approx(6 * (1 + 1.791759), rel=1e-6)


def test_token_mean_of_each_micro_batch_depends_on_the_split():
    """The mean of two means is not the mean, unless both halves have as many tokens."""
    loss = torch.tensor([[1.0, 2.0, 3.0], [10.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    whole = aggregate(loss, mask, "token-mean")
    means = [aggregate(loss[i : i + 1], mask[i : i + 1], "token-mean") for i in range(2)]
    parts = [aggregate(loss[i : i + 1], mask[i : i + 1], "token-mean", denominator=4.0) for i in range(2)]
    assert whole == sum(parts) == 4.0 and sum(means) / 2 == 6.0


def test_branching_on_the_advantages_sign_is_another_region():
    """A > 0 but weight < 0: Algorithm 2 stops the sample below 1 − ε1, the released code lets it move."""
    log_w, advantage = torch.tensor(0.5).double().log(), 0.1
    logp = torch.tensor([-3.0], dtype=torch.float64, requires_grad=True)
    loss = clipped_loss(logp, logp.detach() - log_w, advantage, "ufkl", 1.0, logp_ref=logp.detach() - 2.0)
    released = clipped_loss(logp, logp.detach() - log_w, advantage, "ufkl", 0.0)  # the advantage alone decides
    assert torch.autograd.grad(loss.sum(), logp)[0] == 0
    assert torch.autograd.grad(released.sum(), logp)[0] != 0
