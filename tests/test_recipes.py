"""Recipes: masks, levels, aggregation, the sampler's correction, and splits that change nothing."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, floats, trees
from torch.testing import assert_close

from rpg_ref import (
    AGGREGATIONS,
    RECIPES,
    DualClip,
    Recipe,
    WeightBound,
    aggregate,
    bounded_loss,
    check_batch,
    clipped_loss,
    count,
    differentiable_loss,
    k3,
)
from rpg_ref.audit import oracle
from rpg_ref.objective import Objective

NAMES = list(RECIPES)
PENALTY_NAMES = ["fkl", "ufkl", "rkl", "urkl"]
STYLES = ["rpg-{}", "rpg-reinforce-{}", "rpg-{}-prefix"]
LEVELS = ["token", "sequence", "geometric"]
"""Those that any loss can be used at; prefix has its own."""
recipe_names = st.sampled_from(NAMES)
aggregations = st.sampled_from(list(AGGREGATIONS))


def evaluate(recipe: Recipe, logps, advantages, mask, **choices):
    leaf = logps[0].clone().requires_grad_()
    if recipe.needs_denominator:
        choices = {"denominator": recipe.count(mask)} | choices
    out = recipe(leaf, logps[1], logps[2], advantages, mask, **choices)
    return out.loss.detach(), torch.autograd.grad(out.loss, leaf)[0], out.metrics


def configured(name: str, level: str, how: str, beta: float = 0.3) -> Recipe:
    fixed = RECIPES[name].level == "prefix"
    return dataclasses.replace(RECIPES[name], level="prefix" if fixed else level, aggregation=how, beta=beta)


@given(batch=batches(), name=recipe_names, level=st.sampled_from(LEVELS), how=aggregations)
def test_masked_positions_may_hold_anything(batch, name, level, how):
    logps, advantages, mask, padding = batch
    recipe = configured(name, level, how)
    hostile = [torch.where(mask, x, junk) for x, junk in zip(logps, padding, strict=False)]
    spoiled = torch.where(mask.any(1), advantages, math.nan)
    clean, found = evaluate(recipe, logps, advantages, mask), evaluate(recipe, hostile, spoiled, mask)
    assert torch.equal(clean[0], found[0]) and torch.equal(clean[1], found[1])
    assert all(torch.equal(clean[2][key], found[2][key]) for key in clean[2])
    assert bool((found[1][~mask] == 0).all()) and bool(found[1].isfinite().all())
    if recipe.level == "token":
        per_token = torch.where(mask, advantages.unsqueeze(1), padding[3])
        again = evaluate(recipe, hostile, per_token, mask)
        assert torch.equal(clean[0], again[0]) and torch.equal(clean[1], again[1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sampled_elsewhere", [False, True])
def test_the_loss_alone_and_the_metrics_alone_are_those_of_the_call(name, sampled_elsewhere):
    recipe, rng = RECIPES[name], torch.Generator().manual_seed(0)
    logp, *others, sampler = torch.randn((4, 5, 3), generator=rng, dtype=torch.float64)
    advantages, mask = torch.randn(5, generator=rng, dtype=torch.float64), torch.ones(5, 3).tril(1)
    others[0][0] = logp[0]  # one response is inside the narrowest mask
    choices = {"logp_sampler": sampler} if sampled_elsewhere else {}
    whole, alone = (
        loss(logp.clone().requires_grad_(), *others, advantages, mask, denominator=2.0, **choices)
        for loss in (recipe, recipe.scalar_loss)
    )
    assert torch.equal(whole.loss, alone) and not whole.loss.equal(torch.zeros_like(alone))
    assert alone.dtype == whole.loss.dtype and alone.requires_grad
    assert whole.metrics == recipe.metrics(logp, *others, advantages, mask, **choices)
    assert ("sampler_bounded" in whole.metrics) == sampled_elsewhere


@given(batch=batches(), level=st.sampled_from(LEVELS))
def test_a_loss_never_sees_a_masked_value(batch, level):
    """Whatever the loss then does with its samples."""
    logps, advantages, mask, padding = batch
    seen = []

    def loss(logp, logp_old, advantage, divergence, beta, *, logp_ref):
        seen.extend([logp, logp_old, advantage.expand_as(logp), logp_ref])
        return logp

    recipe = dataclasses.replace(RECIPES["rpg-urkl"], loss=loss, level=level)
    hostile = [torch.where(mask, x, math.nan) for x in logps]
    recipe(*hostile, torch.where(mask.any(1), advantages, math.nan), mask)
    if level == "token":
        recipe(*hostile, torch.where(mask, advantages.unsqueeze(1), padding[3]), mask)
    dead = ~(mask if level == "token" else mask.any(1, keepdim=True))
    assert all(bool((x[dead] == 0).all()) for x in seen)


@given(batch=batches(), name=recipe_names, level=st.sampled_from(LEVELS), how=aggregations, data=st.data())
def test_splitting_a_batch_changes_nothing(batch, name, level, how, data):
    """Micro-batches, each with the whole batch's denominator, add up: also those without any token."""
    logps, advantages, mask, _ = batch
    recipe = configured(name, level, how)
    order = torch.tensor(data.draw(st.permutations(range(len(mask)))))
    cut = data.draw(st.integers(0, len(mask)))
    whole_loss, whole_gradient, _ = evaluate(recipe, logps, advantages, mask)
    parts = [rows for rows in (order[:cut], order[cut:]) if len(rows)]
    denominator = sum(recipe.count(mask[rows]) for rows in parts)
    assert denominator == recipe.count(mask)
    loss, gradient = torch.zeros_like(whole_loss), torch.zeros_like(whole_gradient)
    for rows in parts:
        part = evaluate(recipe, [x[rows] for x in logps], advantages[rows], mask[rows], denominator=denominator)
        loss += part[0]
        gradient[rows] = part[1]
    assert_close(loss, whole_loss, rtol=1e-12, atol=1e-12)
    assert_close(gradient, whole_gradient, rtol=1e-12, atol=1e-12)


@given(batch=batches(), how=aggregations)
def test_aggregation_by_hand(batch, how):
    (loss, *_), _, mask, padding = batch
    rows = [[x for x, keep in zip(*row, strict=True) if keep] for row in zip(loss.tolist(), mask.tolist(), strict=True)]
    rows = [row for row in rows if row]
    by_hand = {
        "token-mean": sum(map(sum, rows)) / sum(map(len, rows)),
        "seq-mean-token-mean": sum(sum(row) / len(row) for row in rows) / len(rows),
        "seq-mean-token-sum": sum(map(sum, rows)) / len(rows),
    }[how]
    spoiled = torch.where(mask, loss, padding[0])
    assert_close(aggregate(spoiled, mask, how).item(), by_hand, rtol=1e-12, atol=1e-12)
    assert_close(aggregate(spoiled, mask.int(), how, denominator=7.0).item(), by_hand * count(mask, how).item() / 7)


@given(batch=batches(), name=recipe_names, how=aggregations)
def test_a_response_is_one_token_of_its_summed_or_mean_logp(batch, name, how):
    logps, advantages, mask, _ = batch
    if configured(name, "sequence", how).level == "prefix":
        return
    length = mask.sum(1, keepdim=True).clamp(min=1)
    for level, shares in (("sequence", torch.ones_like(length)), ("geometric", length)):
        loss, gradient, _ = evaluate(configured(name, level, how), logps, advantages, mask)
        drawn = [torch.where(mask, x, 0.0).sum(1, keepdim=True) / shares for x in logps]
        alone = evaluate(configured(name, "token", how), drawn, advantages, mask.any(1, keepdim=True))
        assert_close(loss, alone[0], rtol=1e-12, atol=1e-12)
        assert_close(gradient, torch.where(mask, alone[1] / shares, 0.0), rtol=1e-12, atol=1e-12)


@given(batch=batches(), x=st.sampled_from(PENALTY_NAMES), how=st.sampled_from(["token-mean", "seq-mean-token-sum"]))
def test_at_prefix_level_a_reward_belongs_to_the_last_token_that_counts(batch, x, how):
    """Whatever lies in the gaps of a mask; a reward [B] is that of the whole response, weighted by w_{1:T}."""
    logps, advantages, mask, _ = batch
    recipe = dataclasses.replace(RECIPES[f"rpg-{x}-prefix"], aggregation=how)
    last = torch.zeros_like(mask)
    for row, keep in zip(last, mask, strict=True):
        row[keep.nonzero()[-1:]] = True
    at_the_end = torch.where(last, advantages.unsqueeze(1), 0.0)
    short, long = evaluate(recipe, logps, advantages, mask), evaluate(recipe, logps, at_the_end, mask)
    assert torch.equal(short[0], long[0]) and torch.equal(short[1], long[1])
    rewarded = evaluate(dataclasses.replace(recipe, beta=0.0), logps, advantages, mask)
    whole = evaluate(
        dataclasses.replace(RECIPES["rpg-urkl"], level="sequence", beta=0.0, aggregation="seq-mean-token-sum"),
        logps,
        advantages,
        mask,
        denominator=recipe.count(mask),
    )
    assert_close(rewarded[1], whole[1], rtol=1e-12, atol=1e-12)


@given(batch=batches(), x=st.sampled_from(PENALTY_NAMES), style=st.sampled_from(STYLES), level=st.sampled_from(LEVELS))
def test_corrected_for_the_sampler_a_loss_is_as_if_the_sampler_had_been_the_old_policy(batch, x, style, level):
    """Sample by sample and at every level, where nothing is clipped: w·π_old/π_sampler = π_θ/π_sampler."""
    (logp, old, ref), advantages, mask, padding = batch
    sampler = torch.where(mask, old - 0.3 * ref, padding[0])
    recipe = configured(style.format(x), level, "seq-mean-token-sum")
    corrected = evaluate(recipe, [logp, old, ref], advantages, mask, logp_sampler=sampler)
    renamed = evaluate(recipe, [logp, sampler, ref], advantages, mask)
    assert_close(corrected[1], renamed[1], rtol=1e-9, atol=1e-12)


@given(tree=trees(spread=1.0), name=recipe_names, beta=st.sampled_from([0.0, 0.3]), data=st.data())
def test_sampler_correction_restores_the_expectation(tree, name, beta, data):
    """Of a response's or a prefix's loss, clipped or not: E_s[SG(q/s)·ℓ] = E_q[ℓ], on trees of uneven lengths."""
    recipe = dataclasses.replace(RECIPES[name], beta=beta)
    recipe = recipe if recipe.level == "prefix" else dataclasses.replace(recipe, level="sequence")
    enumeration = oracle.prefix_tree(*tree.shape)
    leaf = torch.tensor(tree.logits).requires_grad_()
    sampler = data.draw(floats(tree.old.shape, st.floats(-1.0, 1.0)))
    tables = (leaf, *(torch.tensor(x) for x in (tree.old, tree.ref, sampler)))
    logp, old, ref, drawn_by = (oracle.token_logp(enumeration, table.log_softmax(-1)) for table in tables)

    def mean(chance, **choices):
        token, A = logp.detach().requires_grad_(), torch.tensor(tree.reward)
        loss = recipe(token, old, ref, A, enumeration.mask, denominator=1.0, **choices).loss
        slope = torch.autograd.grad(loss, token)[0]
        return oracle.flat_gradient((chance.sum(1).exp()[:, None] * slope * logp).sum(), [leaf])

    exact, found = mean(old), mean(drawn_by, logp_sampler=drawn_by)
    assert_close(found, exact, rtol=1e-9, atol=1e-11)
    # It could fail: without the correction the gradient is another.
    if name == "rpg-urkl" and (old - drawn_by).abs().max() > 0.5 and torch.tensor(tree.reward).std() > 0.5:
        assert (mean(drawn_by) - exact).abs().max() > 1e-9


BOUNDED = {
    WeightBound(): [4.0, 0.5, 0.1, 1.5],
    WeightBound(high=1.5): [1.5, 0.5, 0.1, 1.5],
    WeightBound("clamp", 0.25, 2.0): [2.0, 0.5, 0.25, 1.5],
    WeightBound("mask", 0.25, 2.0): [0.0, 0.5, 0.0, 1.5],
    WeightBound("mask", 0.0, 1.5): [0.0, 0.5, 0.1, 1.5],
}
RATIOS = [4.0, 0.5, 0.1, 1.5]


@pytest.mark.parametrize("bound", BOUNDED, ids=str)
def test_the_samplers_weight_is_bounded(bound):
    recipe = dataclasses.replace(RECIPES["rpg-urkl"], sampler=bound, beta=0.1)
    logp, old = torch.full((2, 1, 4), -1.0, dtype=torch.float64)
    sampler = old - torch.tensor([RATIOS], dtype=torch.float64).log()
    plain = evaluate(recipe, [logp, old, None], torch.ones(1).double(), torch.ones(1, 4))
    found = evaluate(recipe, [logp, old, None], torch.ones(1).double(), torch.ones(1, 4), logp_sampler=sampler)
    assert_close(found[1], plain[1] * torch.tensor([BOUNDED[bound]], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("x", PENALTY_NAMES)
@pytest.mark.parametrize("bound", BOUNDED, ids=str)
def test_a_bounded_loss_has_the_bounded_ratio_in_w_s_place(bound, x):
    """Gradient −w̄·(A − β·f′(v))·∇log π_θ, f′ as printed in the paper's table."""
    w = torch.tensor(RATIOS, dtype=torch.float64)
    v = w * torch.tensor([2.0, 0.3, 1.0, 1.7], dtype=torch.float64)
    logp = torch.full((4,), -9.0, dtype=torch.float64, requires_grad=True)
    old, ref = logp.detach() - w.log(), logp.detach() - v.log()
    loss = bounded_loss(logp, old, 0.7, x, 0.2, logp_ref=ref, bound=bound)
    derivative = {"fkl": -1 / v, "ufkl": 1 - 1 / v, "rkl": v.log() + 1, "urkl": v.log()}[x]
    expected = -torch.tensor(BOUNDED[bound], dtype=torch.float64) * (0.7 - 0.2 * derivative)
    assert_close(torch.autograd.grad(loss.sum(), logp)[0], expected, rtol=1e-12, atol=1e-15)
    assert_close(loss.detach(), expected * -9.0, rtol=1e-12, atol=1e-15)


def test_a_bound_is_counted():
    recipe = dataclasses.replace(RECIPES["cispo"], bound=WeightBound("mask", 0.25, 2.0))
    logp = torch.full((1, 4), -9.0, dtype=torch.float64)
    old = logp - torch.tensor([RATIOS], dtype=torch.float64).log()
    metrics = recipe(logp, old, None, torch.ones(1).double(), torch.ones(1, 4)).metrics
    assert metrics["above_bound"] == 0.25 and metrics["below_bound"] == 0.25 and "clip_high" not in metrics


@pytest.mark.parametrize("name", NAMES)
def test_only_logp_receives_a_gradient(name):
    """Also when π_old was not detached, and with a sampler's correction."""
    rng = torch.Generator().manual_seed(0)
    logp, old, ref, sampler = (-torch.rand((4, 2, 3), generator=rng)).requires_grad_()
    inputs = [logp, old, ref, torch.randn(2, generator=rng, requires_grad=True), sampler]
    loss = RECIPES[name](*inputs[:4], torch.ones(2, 3), logp_sampler=inputs[4], denominator=6.0).loss
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    assert gradients[0] is not None and gradients[1:] == (None,) * 4


@pytest.mark.parametrize("name", NAMES)
def test_no_token_and_a_denominator_is_a_zero(name):
    x = torch.full((2, 3), math.nan)
    loss, gradient, metrics = evaluate(RECIPES[name], [x, x, x], x[:, 0], torch.zeros(2, 3), denominator=5.0)
    assert loss == 0 and bool((gradient == 0).all()) and all(m == 0 for m in metrics.values())


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_computes_in_float32_at_least(name):
    rng = torch.Generator().manual_seed(0)
    half = [-torch.rand(3, 5, generator=rng).bfloat16() for _ in range(3)]
    advantages, mask = torch.randn(3, generator=rng), torch.ones(3, 5)
    loss, gradient, _ = evaluate(RECIPES[name], half, advantages, mask)
    wide, wide_gradient, _ = evaluate(RECIPES[name], [x.float() for x in half], advantages, mask)
    assert loss.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    assert torch.equal(loss, wide) and torch.equal(gradient, wide_gradient.bfloat16())


def test_large_ratios_with_a_far_reference_stay_finite():
    """u = e⁻¹⁰⁰ and v = e¹⁰⁰ are outside float32; u·v is not, while chi2's own value u·v² is."""
    logp, old, ref = (torch.tensor([[x]]) for x in (-1.0, -1.2, -101.0))
    for name in (name for name in NAMES if RECIPES[name].divergence != "chi2"):
        loss, gradient, _ = evaluate(RECIPES[name], [logp, old, ref], torch.ones(1), torch.ones(1, 1))
        assert bool(loss.isfinite()) and bool(gradient.isfinite().all())


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_a_batch_without_any_position(shape):
    x = torch.zeros(shape)
    loss, gradient, metrics = evaluate(RECIPES["grpo"], [x, x, x], torch.zeros(shape[0]), x, denominator=4.0)
    assert loss == 0 and gradient.shape == shape and metrics["ratio_max"] == 0


def test_half_precision_losses_sum_without_loss():
    ones = torch.ones(1, 5001, dtype=torch.bfloat16)
    assert aggregate(ones, ones, "token-mean") == 1


def test_objectives_are_values():
    objective = Objective({"reward": 1.0, "entropy": 0.1})
    assert pickle.loads(pickle.dumps(objective)) == copy.deepcopy(objective) == objective
    assert len({objective, Objective({"entropy": 0.1, "reward": 1.0})}) == 1
    assert len({hash(Objective({"reward": c}, level)) for c in (1.0, 2.0) for level in ("token", "sequence")}) == 4
    assert str(Objective({"reward": 0.0, "reverse_kl": 1.0})) == "− KL(π‖ref) per token"
    terms = {"reward": 1.0}
    kept = Objective(terms)
    terms["entropy"] = 1.0
    assert kept == Objective({"reward": 1.0})


def test_metrics_by_hand():
    w = torch.tensor([[0.5, 0.6, 2.0, 20.0, 7.0]], dtype=torch.float64)
    logp = torch.full((1, 5), -9.0, dtype=torch.float64)
    mask = torch.tensor([[True, True, True, True, False]])
    old = logp - w.log()
    recipe = dataclasses.replace(RECIPES["rpg-reinforce-urkl-clip"], beta=0.0)
    metrics = recipe(logp, old, None, torch.tensor([-1.0]), mask).metrics
    assert_close(metrics["ratio_mean"].item(), 23.1 / 4)
    assert_close(metrics["ratio_max"].item(), 20.0)
    assert [metrics[f"clip_{side}"].item() for side in ("low", "high", "dual")] == [0.5, 0.0, 0.25]
    assert_close(metrics["forward_kl_old"].item(), k3((logp - old)[:, :4]).mean().item())
    expected = ((w * w.log() - w + 1)[:, :4]).mean().item()
    assert_close(metrics["reverse_kl"].item(), expected)
    anchored = recipe(logp, old, logp - 0.5, torch.tensor([-1.0]), mask).metrics["reverse_kl"]
    u, v = w / math.exp(0.5), math.exp(0.5)
    assert_close(anchored.item(), (u * (v * 0.5 - v + 1))[:, :4].mean().item())
    up = recipe(logp, old, None, torch.tensor([1.0]), mask).metrics
    assert [up[f"clip_{side}"].item() for side in ("low", "high", "dual")] == [0.0, 0.5, 0.0]


def test_the_clips_direction_is_the_weights_for_rpg_and_the_advantages_for_ppo():
    logp, old = torch.tensor([[-5.0]]).double(), torch.tensor([[-5.0 - math.log(2.0)]]).double()
    batch = (logp, old, None, torch.tensor([0.1]).double(), torch.ones(1, 1))
    for name, high in (("rpg-reinforce-urkl-clip", 0.0), ("grpo", 1.0)):
        recipe = dataclasses.replace(RECIPES[name], beta=1.0)  # w(A − β log w) < 0 < w·A
        assert recipe(*batch).metrics["clip_high"] == high


def test_aliases_and_objectives():
    clips = {f"rpg-{x}-clip": f"rpg-reinforce-{x}-clip" for x in ("fkl", "ufkl", "rkl", "urkl")}
    assert RECIPES.aliases == clips | {"gspo-token": "gspo"}
    assert all(RECIPES[alias] is RECIPES[name] for alias, name in RECIPES.aliases.items())
    assert list(RECIPES) == [recipe.name for recipe in RECIPES.values()]  # each once, so that a test runs it once
    recipe = dataclasses.replace(RECIPES["rpg-urkl"], beta=0.25, level="sequence")
    assert recipe.on_policy == recipe.off_policy == Objective({"reward": 1.0, "reverse_kl": 0.25}, "sequence")
    doubled = dataclasses.replace(recipe, on_policy_penalty={"reverse_kl": 2.0, "js": -3.0})
    assert doubled.on_policy == Objective({"reward": 1.0, "reverse_kl": 0.5, "js": -0.75}, "sequence")
    assert RECIPES["grpo"].off_policy is None
    assert dataclasses.replace(RECIPES["grpo"], beta=0.0).off_policy == Objective({"reward": 1.0})
    assert str(RECIPES["grpo"].on_policy) == "E[R] − 0.04·KL(ref‖π) per token"
    assert str(Objective({"entropy": 0.1, "forward_kl": -2.0})) == "0.1·H(π) + 2·KL(ref‖π) per token"
    assert str(Objective(level="sequence")) == "0 per response"


def test_two_objectives_never_print_the_same_words():
    """The token and the prefix row have different objectives, though the same terms."""
    token, prefix = RECIPES["rpg-urkl"].on_policy, RECIPES["rpg-urkl-prefix"].on_policy
    assert token != prefix and token.terms == prefix.terms
    assert str(token) == "E[R] − 0.0001·KL(π‖ref) per token" and str(prefix) == "E[R] − 0.0001·KL(π‖ref) per response"


def test_contract_defaults():
    assert DualClip() == DualClip(low=0.2, high=0.28, dual=10.0)
    logp, old = torch.tensor([-1.0]), torch.tensor([-1.1])
    assert_close(clipped_loss(logp, old, 1.0, "urkl", 0.1), clipped_loss(logp, old, 1.0, "urkl", 0.1, clip=DualClip()))
    anchored = differentiable_loss(logp, old, 1.0, "urkl", 0.1, logp_ref=old, log_mass_old=0.0)
    assert torch.equal(anchored, differentiable_loss(logp, old, 1.0, "urkl", 0.1))


def test_check_batch_passes_a_sound_batch():
    x = torch.full((2, 3), -1.0)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    check_batch(x.masked_fill(mask == 0, math.nan), x, None, torch.ones(2), mask, logp_sampler=x)
    at_the_limits = torch.full((2, 3), 1e-3)
    check_batch(at_the_limits, at_the_limits - 350.0, None, torch.ones(2, 3), mask)
    check_batch(x - 200.0, x - 200.0, x - 300.0, torch.ones(2, 3).masked_fill(mask == 0, math.nan), mask)


# name: (clip's low, high, dual) or the bound's (low, high), β, level, baseline, aggregation
PUBLISHED = {
    "rpg-urkl": (None, 1e-4, "token", "group_mean", "token-mean"),
    "rpg-reinforce-ufkl-clip": ((0.2, 0.28, 10.0), 1e-4, "token", "group_mean", "token-mean"),
    "rpg-rkl-clip-as-printed": ((0.2, 0.28, 10.0), 1e-4, "token", "group_mean", "token-mean"),
    "rpg-rkl-prefix": (None, 1e-4, "prefix", "group_mean", "token-mean"),
    "grpo": ((0.2, 0.2, math.inf), 0.04, "token", "group_std", "seq-mean-token-mean"),
    "grpo-corrected": ((0.2, 0.2, math.inf), 0.04, "token", "group_std", "seq-mean-token-mean"),
    "rpg-urkl-entropy": (None, 1e-4, "token", "group_mean", "token-mean"),
    "rpg-urkl-top-p": (None, 1e-4, "token", "none", "token-mean"),
    "ppo": ((0.2, 0.2, math.inf), 0.0, "token", "none", "token-mean"),
    "dapo": ((0.2, 0.28, math.inf), 0.0, "token", "group_std", "token-mean"),
    "dr-grpo": ((0.2, 0.2, math.inf), 0.0, "token", "group_mean", "seq-mean-token-sum"),
    "gspo": ((3e-4, 4e-4, math.inf), 0.0, "geometric", "group_std", "seq-mean-token-mean"),
    "cispo": ((0.0, 5.0), 0.0, "token", "group_std", "token-mean"),
    "reinforce++": ((0.2, 0.2, math.inf), 0.01, "token", "batch_std", "token-mean"),
    "reinforce++-baseline": ((0.2, 0.2, math.inf), 0.01, "token", "group_mean_batch_std", "token-mean"),
    "rloo": ((0.2, 0.2, math.inf), 0.05, "sequence", "leave_one_out", "token-mean"),
    "pmd-mean": (None, 1e-4, "sequence", "group_mean", "token-mean"),
    "pmd-mean-released": (None, 0.01, "sequence-over-length", "leave_one_out", "token-mean"),
    "cpgd": ((0.2, 0.2, math.inf), 1e-4, "token", "group_mean", "token-mean"),
    "tis": ((0.0, 2.0), 0.0, "token", "group_std", "token-mean"),
    "tis-sequence": ((0.0, 2.0), 0.0, "sequence", "group_std", "seq-mean-token-sum"),
    "tis-geometric": ((0.0, 2.0), 0.0, "geometric", "group_std", "seq-mean-token-mean"),
    "mis": ((0.0, 2.0), 0.0, "token", "group_std", "token-mean"),
    "mis-sequence": ((0.0, 2.0), 0.0, "sequence", "group_std", "seq-mean-token-sum"),
    "mis-geometric": ((0.99, 1.01), 0.0, "geometric", "group_std", "seq-mean-token-mean"),
    "icepop": ((0.5, 5.0), 0.0, "token", "group_std", "token-mean"),
    "sapo": ((1.0, 1.05), 0.0, "token", "group_std", "seq-mean-token-mean"),
    "dppo-tv": (("tv", 0.15, 0.15, 20.0), 0.0, "token", "group_std", "token-mean"),
    "dppo-kl": (("kl", 0.05, 0.05, 20.0), 0.0, "token", "group_std", "token-mean"),
    "vespo": ((2.0, 3.0, 3.0, 2.0), 0.0, "sequence", "group_std", "seq-mean-token-sum"),
    "opsm": ((0.5, (0.2, 0.2, math.inf)), 0.0, "token", "group_mean", "seq-mean-token-mean"),
    "gmpo": ((0.4, 0.4), 0.0, "token", "group_std", "seq-mean-token-mean"),
}


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_the_published_ones(name):
    families = {
        "-prefix": "rpg-rkl-prefix",
        "-printed": "rpg-rkl-clip-as-printed",
        "-clip": "rpg-reinforce-ufkl-clip",
        "kl": "rpg-urkl",
    }
    family = next((of for end, of in families.items() if name.startswith("rpg") and name.endswith(end)), name)
    recipe = RECIPES[name]
    bounds = dataclasses.astuple(recipe.clip) if recipe.clip else None
    bounds = (recipe.bound.low, recipe.bound.high) if recipe.bound else bounds
    bounds = dataclasses.astuple(recipe.gate) if recipe.gate else bounds
    found = (bounds, recipe.beta, recipe.level, recipe.baseline, recipe.aggregation)
    assert found == PUBLISHED[family] and recipe.sampler == WeightBound() and recipe.name == name
    assert recipe.critic == (name == "ppo") and recipe.entropy == (0.01 if name == "rpg-urkl-entropy" else None)
    assert recipe.clip is None or recipe.clips_penalty == name.startswith("rpg")
    assert not name.startswith("rpg") or recipe.divergence in name.split("-")
