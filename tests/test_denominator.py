"""What an aggregation's own denominator costs, exactly: against every batch one by one, and against sampling."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import floats
from tiers import quick
from torch.testing import assert_close

from rpg_ref import AGGREGATIONS, RECIPES, Objective, advantages, fused_loss
from rpg_ref.advantages import BASELINES
from rpg_ref.audit import oracle
from rpg_ref.audit.denominator import (
    BATCH,
    GROUP,
    Reference,
    bias,
    expected_gradient,
    reference,
    share_off,
    shares,
)
from rpg_ref.audit.verify import verify
from rpg_ref.cli import main

# Four responses of one to three tokens: few enough to list every batch of four.
SMALL = reference(1, vocabulary=2, horizon=3)
LENGTHS = SMALL.tree.mask.sum(1).double()
CHANCE = oracle.token_logp(SMALL.tree, SMALL.old).sum(1).exp()


def brute_force(recipe, at: Reference, batch: int, group: int, *, constant: bool):
    """−∇ of E[loss], the recipe called on every batch, with the advantages of its own baseline."""
    leaf = at.old.clone().requires_grad_()
    logp, old, ref = (oracle.token_logp(at.tree, x) for x in (leaf.log_softmax(-1), at.old, at.ref))
    chance = old.sum(1).exp()
    groups, total = torch.arange(batch) // group, torch.zeros(())
    for drawn in itertools.product(range(len(chance)), repeat=batch):
        y = list(drawn)
        A = advantages(at.reward[y], groups, recipe.baseline)
        denominator = float(batch) if constant else None
        total = (
            total + chance[y].prod() * recipe(logp[y], old[y], ref[y], A, at.tree.mask[y], denominator=denominator).loss
        )
    return -oracle.flat_gradient(total, [leaf])


URKL = dataclasses.replace(RECIPES["rpg-urkl"], beta=0.3)
CASES = {
    **{f"{x}, {B} in groups of {G}": (dataclasses.replace(URKL, baseline=x), B, G)
       for x, B, G in (("none", 1, 1), ("none", 2, 1), ("none", 3, 1), ("group_mean", 3, 3), ("leave_one_out", 2, 2),
                       ("group_std", 3, 3), ("batch_mean", 3, 1), ("batch_std", 3, 1), ("group_mean_batch_std", 2, 2),
                       ("group_mean", 4, 2), ("group_mean_batch_std", 4, 2))},
    "REINFORCE with a clip": (dataclasses.replace(RECIPES["rpg-reinforce-ufkl-clip"], beta=0.3), 2, 2),
    "prefixes": (dataclasses.replace(RECIPES["rpg-fkl-prefix"], beta=0.3), 3, 3),
    "responses": (dataclasses.replace(RECIPES["rloo"], beta=0.3), 2, 2),
    "a penalty in the reward": (dataclasses.replace(RECIPES["reinforce++"], beta=0.3), 3, 3),
    "a mean over each response": (RECIPES["grpo"], 2, 2),
    "a sum over each response": (RECIPES["dr-grpo"], 2, 2),
    "the geometric mean": (RECIPES["gspo"], 2, 2),
}  # fmt: skip


@pytest.mark.parametrize("case", quick(CASES, [case for case in CASES if " in groups" not in case]))
def test_the_expected_gradient_is_that_of_every_batch(case):
    """By the batch's own count, or a constant where the method divides by one."""
    recipe, batch, group = CASES[case]
    constant = recipe.needs_denominator
    exact = brute_force(recipe, SMALL, batch, group, constant=constant)
    found = expected_gradient(recipe, SMALL, batch, group, constant=constant)
    assert_close(found, exact, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("batch", "group"), [(16, 4), (64, 8)])
@pytest.mark.parametrize("baseline", BASELINES)
def test_the_shares_are_those_of_sampled_batches(baseline, batch, group):
    """2,000 batches: each response's share is within five standard errors, and these are small."""
    rng = torch.Generator().manual_seed(0)
    y = torch.multinomial(CHANCE, 2_000 * batch, replacement=True, generator=rng).view(-1, batch)
    of_batch = baseline.startswith("batch")
    rule = {"batch_mean": "group_mean", "batch_std": "group_std"}.get(baseline, baseline)
    if baseline == "group_mean_batch_std":
        y = y[:300]
        A = torch.stack([advantages(SMALL.reward[row], torch.arange(batch) // group, baseline) for row in y])
    else:
        A = advantages(SMALL.reward[y].flatten(), torch.arange(y.numel()) // (batch if of_batch else group), rule)
    share = A.view_as(y) / LENGTHS[y].sum(1, keepdim=True)
    h, c = shares(CHANCE, SMALL.reward, LENGTHS, baseline, batch, group)
    for response in range(len(CHANCE)):
        drawn = y == response
        for sampled, exact in (
            ((drawn * share).sum(1), CHANCE[response] * c[response]),
            ((drawn / LENGTHS[y].sum(1, keepdim=True)).sum(1), CHANCE[response] * h[response]),
        ):
            error = sampled.std() / len(y) ** 0.5
            assert abs(sampled.mean() - exact) <= 5 * error and error < 0.1 * abs(exact) + 1e-3


def test_every_baseline_is_restated():
    for baseline in BASELINES:
        shares(CHANCE, SMALL.reward, LENGTHS, baseline, 4, 2)
    with pytest.raises(ValueError, match="groups of 3 do not fit a batch of 4"):
        shares(CHANCE, SMALL.reward, LENGTHS, "group_mean", 4, 3)
    with pytest.raises(ValueError, match="groups of 1 do not fit a batch of 4 with group_std"):
        shares(CHANCE, SMALL.reward, LENGTHS, "group_std", 4, 1)


def test_a_share_tends_to_one_over_the_mean_length():
    """μ·h(t) = 1 − (t − μ)/(Bμ) + σ²/(Bμ²) + O(B⁻²): four times the batch, a sixteenth of the error."""
    mean = (CHANCE * LENGTHS).sum()
    variance = (CHANCE * (LENGTHS - mean) ** 2).sum()
    errors = []
    for batch in (32, 128, 512):
        h = shares(CHANCE, SMALL.reward, LENGTHS, "none", batch, 1).plain
        errors.append((mean * h - (1 - (LENGTHS - mean) / (batch * mean) + variance / (batch * mean**2))).abs().max())
    assert errors[0] > 1e-5 and 14 < errors[0] / errors[1] < 18 and 15 < errors[1] / errors[2] < 17


def law(data):
    """Random responses: probabilities, lengths of one to nine tokens, and a value of each."""
    size = data.draw(st.integers(2, 4))
    chance = np.exp(data.draw(floats(size, st.floats(-2.0, 2.0))))
    lengths = np.array(data.draw(st.lists(st.integers(1, 9), min_size=size, max_size=size)), float)
    return chance / chance.sum(), lengths, data.draw(floats(size, st.floats(-2.0, 2.0)))


@given(data=st.data(), batch=st.integers(1, 4))
def test_a_batchs_own_count_weighs_each_response_by_its_share(data, batch):
    """E[Σ G(y)/Σ T] over every batch is Σ π_old(y)·G(y)·h(T_y), and at equal lengths E[G]/T."""
    chance, lengths, value = law(data)
    drawn = np.array(list(itertools.product(range(len(chance)), repeat=batch)))
    exact = chance[drawn].prod(1) @ (value[drawn].sum(1) / lengths[drawn].sum(1))
    h = shares(*(torch.tensor(x) for x in (chance, 0 * chance, lengths)), "none", batch, 1).plain.numpy()
    assert abs(exact - np.sum(chance * value * h)) < 1e-13
    # Jensen: h is at least B over the mean count, given the response's own.
    assert (h >= batch / (lengths + (batch - 1) * (chance @ lengths)) - 1e-13).all()
    if np.ptp(lengths) == 0:
        assert np.abs(h * lengths - 1).max() < 1e-13


@given(data=st.data(), batch=st.integers(2, 120))
def test_the_rest_of_a_shares_expansion_is_bounded_by_one_over_b_squared(data, batch):
    """By the proof: REST/B² of the leading terms, and the third and fourth moments of the others' count."""
    chance, t, _ = law(data)
    h = shares(*(torch.tensor(x) for x in (chance, 0 * chance, t)), "none", batch, 1).plain.numpy()
    mu = chance @ t
    variance, third, fourth = (chance @ (t - mu) ** k for k in (2, 3, 4))
    n, y = batch - 1, (t - mu) / mu
    m = t + n * mu
    rest = (
        y**2 / (1 + y / batch)
        - variance / mu**2 * (1 + 3 * y + 3 * y**2 / batch + y**3 / batch**2) / (1 + y / batch) ** 3
    )
    higher = mu * batch * (abs(n * third) + (n * fourth + 3 * n * (n - 1) * variance**2) / batch) / m**4
    found = mu * h - (1 - y / batch + variance / (batch * mu**2))
    assert (np.abs(found - rest / batch**2) <= higher + 1e-13).all()


def test_the_rewards_part_is_the_gradient_of_a_weighted_reward():
    """On-policy, ∇E[R·h(T)] with h held fixed, which the oracle takes by itself."""
    recipe = dataclasses.replace(URKL, beta=0.0, baseline="none")
    h = shares(CHANCE, SMALL.reward, LENGTHS, "none", 8, 1).plain
    leaf = SMALL.old.clone().requires_grad_()
    tables = oracle.Policies(leaf.log_softmax(-1), SMALL.old, SMALL.ref)
    exact = oracle.gradient(Objective({"reward": 1.0}, "sequence"), SMALL.tree, tables, SMALL.reward * h, [leaf])
    assert_close(expected_gradient(recipe, SMALL, 8, 1), exact, rtol=1e-12, atol=1e-14)


def test_the_bias_of_token_mean_is_inverse_to_the_batch():
    """On a tree where it is large: nearly all of the gradient at B = 1, and c/B once batches are large."""
    urkl, dapo = (dataclasses.replace(x, baseline="none") for x in (URKL, RECIPES["dapo"]))
    for recipe, at_one in ((urkl, 0.1), (dapo, 0.1)):
        share = {batch: bias(recipe, batch=batch, group=1).own for batch in (1, 8, 64, 512)}
        assert share[1] > at_one and share[1] > share[8] > share[64] > share[512] > 1e-5
        assert 7.5 < share[64] / share[512] < 8.5
        assert bias(recipe, batch=8, group=1).constant < 1e-14


LEVELS = ("token", "sequence", "geometric", "prefix")


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_a_recipe_says_under_which_denominator_it_is_exact(level, how):
    recipe = RECIPES["rpg-urkl-prefix"] if level == "prefix" else dataclasses.replace(URKL, level=level)
    recipe = dataclasses.replace(recipe, aggregation=how, baseline="none", beta=0.0)
    found = bias(recipe, batch=8, group=1)
    own, constant = found.own < 1e-12, found.constant < 1e-12
    assert own or found.own > 1e-3
    assert constant or found.constant > 1e-3
    expected = {
        (True, True): "a constant denominator, such as its own count of responses",
        (False, True): "a constant denominator; its own count of tokens is not constant",
        (False, False): "no denominator, unless all responses have one length",
    }
    assert recipe.exact_under == expected[own, constant]
    assert level in ("geometric", "token", "prefix") or own


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("level", LEVELS[:3])
def test_at_equal_lengths_every_denominator_is_exact(level, how):
    recipe = dataclasses.replace(URKL, level=level, aggregation=how, baseline="none", beta=0.0)
    tree = oracle.prefix_tree(3, 3)
    rng = torch.Generator().manual_seed(0)
    old, ref = torch.randn((2, tree.states, 3), generator=rng, dtype=torch.float64).log_softmax(-1)
    at = Reference(tree, old, ref, (torch.arange(len(tree.tokens)) % 2).double())
    leaf = old.clone().requires_grad_()
    policies = oracle.Policies(leaf.log_softmax(-1), old, ref)
    declared = oracle.gradient(recipe.on_policy, tree, policies, at.reward, [leaf])
    assert share_off(expected_gradient(recipe, at, 4, 1), declared) < 1e-13


@pytest.mark.parametrize(("name", "seen"), [("fkl", True), ("rkl", True), ("ufkl", False), ("urkl", False)])
def test_the_first_step_sees_beta_under_token_mean_alone(name, seen):
    """At π_θ = π_old = π_ref, no reward: FKL's and RKL's ∓∇log π_θ has mean zero, and not divided by random lengths."""
    recipe = dataclasses.replace(RECIPES[f"rpg-{name}"], beta=1.0, baseline="none")
    at = dataclasses.replace(SMALL, ref=SMALL.old, reward=0 * SMALL.reward)
    sizes = [float(expected_gradient(recipe, at, batch, 1).norm()) for batch in (2, 64, 512)]
    if seen:
        assert sizes[0] > 1e-2 and 7.5 < sizes[1] / sizes[2] < 8.5
    else:
        assert max(sizes) < 1e-15
    assert float(expected_gradient(recipe, at, 64, 1, constant=True).norm()) < 1e-15


def test_what_a_constant_denominator_leaves_is_the_baselines_doing():
    """A group mean scales the reward's part by (G − 1)/G and not the penalty's; leave_one_out scales neither."""
    strong = dataclasses.replace(URKL, beta=1.0)
    leave_one_out = dataclasses.replace(strong, baseline="leave_one_out")
    assert bias(strong).constant > 1e-2 and bias(leave_one_out).constant < 1e-14 < 1e-4 < bias(leave_one_out).own
    by_hand = dataclasses.replace(strong, beta=1.0 * (GROUP - 1) / GROUP)
    at = reference(0)
    found = expected_gradient(by_hand, at, BATCH, GROUP, constant=True)
    exact = expected_gradient(leave_one_out, at, BATCH, GROUP, constant=True)
    assert_close(found, exact * (GROUP - 1) / GROUP, rtol=1e-12, atol=1e-14)


@pytest.mark.full
def test_verify_prints_the_bias_and_what_it_is(capsys):
    row = verify(URKL)
    assert row.ok and row.bias == bias(URKL) and row.bias.batch == 64 and row.bias.group == 8
    assert main(["verify", "rpg-urkl", "rloo"]) == 0
    head, urkl, rloo, *notes = capsys.readouterr().out.splitlines()
    at = head.index("bias")
    assert urkl[at:].startswith(str(bias(RECIPES["rpg-urkl"]))) and rloo[at:].startswith("0 / 0 ")
    assert "bias: the share of the expected on-policy gradient along no multiple of the declared one" in notes[1]
    assert "for 64 responses" in " ".join(notes) and "groups of 8" in " ".join(notes)
    assert main(["verify", "rloo", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["bias"].keys() == {"own", "constant", "batch", "group"} and record["bias"]["batch"] == 64
    assert record["level"] == "sequence"


def test_a_recipe_without_an_objective_has_no_bias():
    assert bias(dataclasses.replace(URKL, on_policy_penalty=None)) is None


def test_dr_grpo_without_a_constant_is_refused():
    """By the recipe and by fused_loss; with one, both give the same loss."""
    recipe = RECIPES["dr-grpo"]
    x, mask, A = torch.full((2, 3), -1.0, dtype=torch.float64), torch.ones(2, 3), torch.tensor([1.0, -0.5])
    hidden, head, tokens = torch.ones(2, 3, 4), torch.ones(5, 4), torch.zeros(2, 3, dtype=torch.long)
    for call in (
        lambda **choices: recipe(x, x, None, A, mask, **choices),
        lambda **choices: fused_loss(recipe, hidden, head, tokens, None, None, A, mask, **choices),
    ):
        with pytest.raises(ValueError, match="'dr-grpo' divides by a constant and denominator is None; pass one"):
            call()
        assert call(denominator=6.0).loss * 6 == call(denominator=1.0).loss
    assert [row.name for row in RECIPES.values() if row.needs_denominator] == ["dr-grpo"]
