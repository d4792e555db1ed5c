"""Laws that hold of any input: what a loss may not depend on, what it must be linear in, where recipes coincide.

Batches come with log-probabilities that are multiples of 2⁻¹⁰ (strategies.grid), so log-ratios are the same numbers in
any order and behind any padding, and no rounding moves a sample across a clip's bound. What is left is the rounding of
w and of sums: a few ulp of a weight's terms, and their difference may be some powers of ten below them.
"""

import dataclasses
import itertools
import math

import pytest
import torch
from divergence_facts import FACTS
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import (
    ANY_REFERENCE,
    DIVERGENCE_NAMES,
    PAPER_NAMES,
    Bandit,
    Batch,
    bandits,
    batches,
    clips_on_a_bound,
    dtypes,
    far,
    floats,
    grid,
    integers,
    log_masses,
    on_grid,
    reward_groups,
    share,
)
from torch.testing import assert_close

from rpg_ref import (
    AGGREGATIONS,
    DIVERGENCES,
    LEVELS,
    RECIPES,
    Recipe,
    advantages,
    clipped_loss,
    differentiable_loss,
    ppo_loss,
    reinforce_loss,
    token_logprobs,
    weight,
)


def fits(name: str, level: str) -> bool:
    """Whether the recipe can be moved to the level (a prefix weight has a loss of its own)."""
    try:
        dataclasses.replace(RECIPES[name], level=level)
    except ValueError:
        return False
    return True


# Whole recipes are slow under the checks of shapes.
law = share(2)

NAMES = list(RECIPES)
CASES = [(name, level) for name in NAMES for level in LEVELS if fits(name, level)]
# The golden section is as far from fractions as a number can be: nowhere near the grid is A = β·log v, at which the
# sign of a weight is rounding.
BETA = (3 - math.sqrt(5)) / 2
BETAS = [0.0, 1e-4, BETA]
cases, hows, betas = st.sampled_from(CASES), st.sampled_from(list(AGGREGATIONS)), st.sampled_from(BETAS)
any_batch = batches(references=ANY_REFERENCE)


def of_strength(recipe: Recipe, beta: float) -> Recipe:
    """The recipe with another β, and with an entropy bonus of that strength if it has one."""
    return dataclasses.replace(recipe, beta=beta, entropy=None if recipe.entropy is None else beta)


@st.composite
def recipes(draw, of=CASES) -> Recipe:
    name, level = draw(st.sampled_from(of))
    return of_strength(dataclasses.replace(RECIPES[name], level=level, aggregation=draw(hows)), draw(betas))


def evaluate(recipe: Recipe, logps, advantage, mask, **choices):
    """(loss, ∂loss/∂log π_θ, metrics)."""
    leaf = logps[0].clone().requires_grad_()
    if recipe.needs_denominator:
        choices = {"denominator": recipe.count(mask)} | choices
    out = recipe(leaf, *logps[1:], advantage, mask, **choices)
    return out.loss.detach(), torch.autograd.grad(out.loss, leaf)[0], out.metrics


def rows_of(x: torch.Tensor | None, rows) -> torch.Tensor | None:
    return None if x is None else x[rows]


def assert_same(found, expected) -> None:
    """Losses and gradients equal up to rounding; |log π| ≤ 24 nats multiplies a weight in a REINFORCE-style loss."""
    largest = expected[1].abs().max().item() if expected[1].numel() else 0.0
    assert_close(found[1], expected[1], rtol=1e-11, atol=1e-13 * largest)
    assert_close(found[0], expected[0], rtol=1e-11, atol=1e-12 * (10 + 24 * largest))


def test_the_cases_are_all_recipes_and_all_levels():
    assert {name for name, _ in CASES} == set(NAMES) and {level for _, level in CASES} == set(LEVELS)
    assert all((name, RECIPES[name].level) in CASES for name in NAMES)


# What nothing may depend on ------------------------------------------------------------------------------------------


@st.composite
def vocabularies(draw):
    """A batch seen from its logits: [B, T, V] of three policies, tokens, advantages, mask, and a shift a state."""
    batch, time, size = (draw(st.integers(1, 3)) for _ in range(3))
    k = integers(draw, (3, batch, time, size + 1))
    tokens, mask, shift = integers(draw, (3, batch, time))
    return (
        torch.tensor(on_grid(k, -2.0, 2.0)),
        torch.tensor(tokens % (size + 1)),
        torch.tensor(on_grid(integers(draw, batch), -2.0, 2.0)),
        torch.tensor(mask % 2),
        torch.tensor(on_grid(shift, -30.0, 30.0)).unsqueeze(-1),
    )


@law
@given(case=vocabularies(), recipe=recipes())
def test_a_constant_added_to_a_states_logits_changes_nothing(case, recipe: Recipe):
    """And so the gradient has no component along it: it sums to zero over the vocabulary."""
    logits, tokens, advantage, mask, shift = case
    old, ref = (token_logprobs(x, tokens) for x in logits[1:])
    found = []
    for x in (logits[0], logits[0] + shift):
        leaf = x.clone().requires_grad_()
        logp = token_logprobs(leaf, tokens)
        loss = recipe(logp, old, ref, advantage, mask, denominator=3.0).loss
        found.append((logp.detach(), *torch.autograd.grad(loss, [leaf, logp])))
    (logp, g, g_logp), (shifted_logp, shifted_g, _) = found
    assert_close(logp, shifted_logp, rtol=0, atol=1e-13)
    # That much in log w moves a weight by as much of its terms, which its difference of terms may be far below.
    distance = torch.stack([(logp - old).abs(), (logp - ref).abs(), (old - ref).abs()]).sum((0, 2))
    assert bool(((g - shifted_g).abs() <= 1e-12 * (1 + distance.exp()).reshape(-1, 1, 1)).all())
    assert bool((g.sum(-1).abs() <= 1e-15 * g.shape[-1] * g_logp.abs()).all())
    assert bool((g[mask == 0] == 0).all())


@law
@given(batch=any_batch, recipe=recipes(), data=st.data())
def test_the_order_of_sequences_changes_nothing(batch: Batch, recipe: Recipe, data):
    order = torch.tensor(data.draw(st.permutations(range(len(batch.mask)))))
    loss, g, metrics = evaluate(recipe, batch.logps, batch.advantages, batch.mask)
    shuffled = [rows_of(x, order) for x in batch.logps]
    found = evaluate(recipe, shuffled, batch.advantages[order], batch.mask[order])
    assert_same(found[:2], (loss, g[order]))
    assert_close(found[2], metrics, rtol=1e-11, atol=1e-12)


@law
@given(batch=any_batch, recipe=recipes(), data=st.data())
def test_padding_changes_nothing(batch: Batch, recipe: Recipe, data):
    """Masked columns on either side and empty rows below, whatever they hold, NaN and ±inf included."""
    left, right, below = (data.draw(st.integers(0, 3)) for _ in range(3))
    junk = batch.padding.flatten().tolist()
    B, T = batch.mask.shape

    def padded(x: torch.Tensor | None) -> torch.Tensor | None:
        if x is None:
            return None
        out = torch.tensor(list(itertools.islice(itertools.cycle(junk), (B + below) * (left + T + right))))
        out = out.to(torch.float64).reshape(B + below, left + T + right)
        out[:B, left : left + T] = x
        return out

    mask = torch.zeros(B + below, left + T + right, dtype=torch.bool)
    mask[:B, left : left + T] = batch.mask
    advantage = torch.cat([batch.advantages, batch.advantages.new_full((below,), math.nan)])
    expected = evaluate(recipe, batch.logps, batch.advantages, batch.mask)
    found = evaluate(recipe, [padded(x) for x in batch.logps], advantage, mask)
    assert_same((found[0], found[1][:B, left : left + T]), expected[:2])
    assert bool((found[1][~mask] == 0).all())
    assert_close(found[2], expected[2], rtol=1e-11, atol=1e-12)


@law
@given(batch=batches(references=ANY_REFERENCE, empty=True), recipe=recipes(), data=st.data())
def test_ranks_and_micro_batches_add_up_to_the_whole(batch: Batch, recipe: Recipe, data):
    """Sequences dealt to any number of ranks and micro-batches, each count summed within and then across ranks."""
    B = len(batch.mask)
    place = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=B, max_size=B))
    dealt = {where: [i for i in range(B) if place[i] == where] for where in sorted(set(place))}
    counts = [sum(recipe.count(batch.mask[rows]) for (r, _), rows in dealt.items() if r == rank) for rank in range(3)]
    denominator = sum(counts)
    assert denominator == recipe.count(batch.mask)
    if denominator == 0:
        denominator = torch.tensor(1.0)  # an empty share of a batch: a zero that can be added
    whole = evaluate(recipe, batch.logps, batch.advantages, batch.mask, denominator=denominator)
    loss, g = torch.zeros_like(whole[0]), torch.zeros_like(whole[1])
    for rows in dealt.values():
        logps = [rows_of(x, rows) for x in batch.logps]
        part = evaluate(recipe, logps, batch.advantages[rows], batch.mask[rows], denominator=denominator)
        loss += part[0]
        g[rows] += part[1]
    assert_same((loss, g), whole[:2])


@law
@given(batch=any_batch, recipe=recipes(), shift=grid(-4.0, 4.0))
def test_only_ratios_matter(batch: Batch, recipe: Recipe, shift):
    """One number added to all log-probabilities of a token leaves its gradient as it is, to the last bit.

    But for an entropy bonus, which is of log π_θ itself.
    """
    assume(not recipe.entropy)
    shifted = [None if x is None else x + shift for x in batch.logps]
    _, g, metrics = evaluate(recipe, batch.logps, batch.advantages, batch.mask)
    _, found, found_metrics = evaluate(recipe, shifted, batch.advantages, batch.mask)
    if recipe.level == "geometric":  # a mean over three tokens is not on the grid
        assert_same((torch.zeros(()), found), (torch.zeros(()), g))
    else:
        assert torch.equal(found, g) and found_metrics == metrics


@law
@given(batch=batches(far, references=ANY_REFERENCE), name=st.sampled_from(NAMES), how=hows, beta=betas)
def test_nothing_but_the_policys_live_tokens_receives_a_gradient(batch: Batch, name, how, beta):
    """None for the other inputs, a zero to the last bit behind the mask, at ratios far beyond e¹⁰⁰ and beside junk."""
    level = RECIPES[name].level
    recipe = dataclasses.replace(RECIPES[name], aggregation=how, beta=beta)
    keep = batch.mask
    if level != "token":
        keep = keep & (keep.cumsum(1) == 1)  # sums of far log-ratios are beyond float64
    hostile = [
        None if x is None else torch.where(keep, x, junk) for x, junk in zip(batch.logps, batch.padding, strict=False)
    ]
    spoiled = torch.where(keep.any(1), batch.advantages, math.nan)
    inputs = [None if x is None else x.clone().requires_grad_() for x in (*hostile, spoiled)]
    others = [x for x in inputs[1:] if x is not None]
    loss = recipe(*inputs, keep, denominator=2.0).loss
    first, *rest = torch.autograd.grad(loss, [inputs[0], *others], allow_unused=True)
    assert rest == [None] * len(others)
    assert bool((first[~keep] == 0).all()) and bool(first.isfinite().all()) and bool(loss.isfinite())


@law
@given(batch=any_batch, recipe=recipes(), dtype=dtypes)
def test_a_narrow_dtype_is_widened_before_any_arithmetic(batch: Batch, recipe: Recipe, dtype):
    narrow = [None if x is None else x.to(dtype) for x in batch.logps]
    wide = [None if x is None else x.to(torch.promote_types(dtype, torch.float32)) for x in narrow]
    A = batch.advantages.to(wide[0].dtype)
    found, expected = (evaluate(recipe, logps, A, batch.mask) for logps in (narrow, wide))
    assert found[0].dtype == wide[0].dtype and found[1].dtype == dtype
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1].to(dtype))


# What a loss is linear in --------------------------------------------------------------------------------------------


@law
@given(batch=any_batch, recipe=recipes(), power=st.integers(-4, 4))
def test_advantages_and_beta_scale_together(batch: Batch, recipe: Recipe, power):
    """(A, β) times a power of two multiplies loss and gradient by it, to the last bit, clipped or not."""
    s = 2.0**power
    loss, g, _ = evaluate(recipe, batch.logps, batch.advantages, batch.mask)
    scaled = of_strength(recipe, s * recipe.beta)
    found = evaluate(scaled, batch.logps, s * batch.advantages, batch.mask)
    assert torch.equal(found[0], s * loss) and torch.equal(found[1], s * g)


@law
@given(batch=any_batch, recipe=recipes(), other=st.sampled_from(PAPER_NAMES))
def test_at_beta_zero_there_is_no_penalty(batch: Batch, recipe: Recipe, other):
    """Neither divergence nor reference can then be told from the loss, and no advantage means no gradient."""
    bare = of_strength(recipe, 0.0)
    expected = evaluate(bare, batch.logps, batch.advantages, batch.mask)
    moved = [*batch.logps[:2], batch.logps[1] - 0.25]
    found = evaluate(dataclasses.replace(bare, divergence=other), moved, batch.advantages, batch.mask)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    loss, g, _ = evaluate(bare, batch.logps, 0.0 * batch.advantages, batch.mask)
    assert loss == 0 and bool((g == 0).all())


UNCLIPPED = [(name, level) for name, level in CASES if RECIPES[name].clip is None and RECIPES[name].bound is None]


@law
@given(batch=any_batch, recipe=recipes(UNCLIPPED), s=grid(-2.0, 2.0), t=st.floats(0.0, 8.0))
def test_unclipped_losses_are_linear_in_advantages_and_beta(batch: Batch, recipe: Recipe, s, t):
    """loss(s·A, t·β) = s·loss(A, 0) + t·loss(0, β), and the gradient alike."""
    A = batch.advantages
    reward, penalty, both = (
        evaluate(of_strength(recipe, beta), batch.logps, advantage, batch.mask)[:2]
        for beta, advantage in ((0.0, A), (BETA, 0.0 * A), (BETA * t, s * A))
    )
    for a, b, found in zip(reward, penalty, both, strict=True):
        size = abs(s) * a.abs().max() + t * b.abs().max()
        assert_close(found, s * a + t * b, rtol=0, atol=1e-12 * (1 + size.item()))


@law
@given(groups=reward_groups(), shift=grid(-4.0, 4.0), baseline=st.sampled_from(["group_mean", "leave_one_out"]))
def test_a_groups_baseline_takes_out_its_level(groups, shift, baseline):
    """A constant added to a group's rewards changes no advantage; equal rewards have none; a group's sum to zero."""
    A = advantages(*groups, baseline)
    moved = advantages(groups.rewards + shift * groups.ids, groups.ids, baseline)
    assert_close(moved, A, rtol=0, atol=1e-13)
    for name in (baseline, "group_std"):
        A = advantages(*groups, name)
        for i in groups.ids.unique():
            own = groups.ids == i
            assert abs(A[own].sum()) <= 1e-12 * (1 + A[own].abs().max())
            assert len(groups.rewards[own].unique()) > 1 or bool((A[own] == 0).all())


# Where recipes coincide ----------------------------------------------------------------------------------------------


def on_policy(batch: Batch) -> list[torch.Tensor | None]:
    return [batch.logps[0], batch.logps[0], batch.logps[2]]


@law
@given(
    batch=any_batch,
    name=st.sampled_from(PAPER_NAMES),
    level=st.sampled_from(["token", "sequence", "geometric"]),
    how=hows,
    beta=betas,
)
def test_on_policy_the_paper_has_one_gradient(batch: Batch, name, level, how, beta):
    """At π_θ = π_old surrogate, REINFORCE-style and clipped loss move the policy alike, whatever the reference."""
    results = [
        evaluate(
            dataclasses.replace(RECIPES[recipe], level=level, aggregation=how, beta=beta),
            on_policy(batch),
            batch.advantages,
            batch.mask,
        )[1]
        for recipe in (f"rpg-{name}", f"rpg-reinforce-{name}", f"rpg-reinforce-{name}-clip")
    ]
    for found in results[1:]:
        assert_close(found, results[0], rtol=1e-11, atol=1e-13 * (1 + results[0].abs().max().item()))


@law
@given(batch=any_batch, case=cases, how=hows)
def test_on_policy_without_a_penalty_all_recipes_are_reinforce(batch: Batch, case, how):
    """At π_θ = π_old and β = 0 every gradient is −A at each sample: PPO's, GSPO's, CPGD's as well."""
    name, level = case
    recipe, plain = (of_strength(dataclasses.replace(RECIPES[x], aggregation=how), 0.0) for x in (name, "rpg-urkl"))
    if level == "prefix":  # the whole response's reward at its end, every token before it
        plain = dataclasses.replace(plain, level="token")
    recipe, plain = (dataclasses.replace(x, level=level) if fits(x.name, level) else x for x in (recipe, plain))
    expected = evaluate(plain, on_policy(batch), batch.advantages, batch.mask)[1]
    found = evaluate(recipe, on_policy(batch), batch.advantages, batch.mask)[1]
    assert_close(found, expected, rtol=1e-12, atol=1e-14)


@law
@given(batch=any_batch, name=st.sampled_from(PAPER_NAMES))
def test_on_policy_sample_by_sample(batch: Batch, name):
    """The same of the functions, against −(A − β·u·slope(log v)) and, for PPO, −A; and at π_ref = π_old too, f′(1)."""
    logp, _, ref = on_policy(batch)
    A = batch.advantages.unsqueeze(1).expand_as(logp)
    log_v = torch.zeros_like(logp) if ref is None else logp - ref
    expected = -(A - BETA * (-log_v).exp() * DIVERGENCES[name].slope(log_v))
    size = 1e-14 * (1 + (-log_v).exp() + log_v.abs())
    for loss in (differentiable_loss, reinforce_loss, clipped_loss):
        leaf = logp.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(leaf, logp, A, name, BETA, logp_ref=ref).sum(), leaf)
        assert bool(((g - expected).abs() <= size).all())
    leaf = logp.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(ppo_loss(leaf, logp, A).sum(), leaf)[0], -A)


@law
@given(batch=any_batch, name=st.sampled_from(PAPER_NAMES), beta=betas, data=st.data())
def test_on_a_bound_a_token_is_dead(batch: Batch, name, beta, data):
    """Live iff w < 1 + ε2 for a weight ≥ 0 and iff 1 − ε1 < w < c below, where one bound is a token's w itself."""
    clip = data.draw(clips_on_a_bound(batch))
    recipe = dataclasses.replace(RECIPES[f"rpg-reinforce-{name}-clip"], clip=clip, beta=beta)
    logp, old, ref = batch.logps
    A, w = batch.advantages.unsqueeze(1).expand_as(logp), (logp - old).exp()
    coefficient = weight(logp, old, A, name, beta, logp_ref=ref)
    live = torch.where(coefficient >= 0, w < 1 + clip.high, (1 - clip.low < w) & (w < clip.dual)) & batch.mask
    _, g, metrics = evaluate(recipe, batch.logps, batch.advantages, batch.mask)
    tokens = batch.mask.sum()
    assert bool((g[~live] == 0).all())
    assert_close(g[live], -coefficient[live] / tokens, rtol=1e-12, atol=0)
    stopped = sum(metrics[f"clip_{side}"] for side in ("low", "high", "dual"))
    assert (stopped * tokens).round() == (batch.mask & ~live).sum()


# Divergences ---------------------------------------------------------------------------------------------------------

CONJUGATE = {name: facts.conjugate for name, facts in FACTS.items() if facts.conjugate}


def integrand(name: str, log_p: torch.Tensor, log_r: torch.Tensor) -> torch.Tensor:
    """r·f(p/r), whose sum is D(p, r)."""
    return log_r.exp() * DIVERGENCES[name].f(log_p - log_r)


@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
@given(bandit=bandits())
def test_a_divergence_is_nonnegative_and_zero_only_at_equality(name, bandit: Bandit):
    """Quantitatively, so that rounding cannot decide it: at least a multiple of the squared distance in ‖·‖₁."""
    log_p, log_r = (torch.tensor(x).log_softmax(-1) for x in (bandit.logits, bandit.old))
    terms = integrand(name, log_p, log_r)
    distance = (log_p.exp() - log_r.exp()).abs().sum()
    assert terms.sum() >= FACTS[name].pinsker * distance**2 - 1e-14
    assert name in ("fkl", "rkl") or bool((terms >= 0).all())
    assert integrand(name, log_p, log_p).sum() == 0


@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
def test_no_larger_multiple_of_the_squared_distance_is_a_bound(name):
    """Near p = r = (½, ½) a divergence is that multiple itself."""
    log_p, log_r = (torch.tensor(x, dtype=torch.float64).log() for x in ([0.501, 0.499], [0.5, 0.5]))
    assert_close(integrand(name, log_p, log_r).sum().item(), FACTS[name].pinsker * 0.002**2, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", CONJUGATE)
@given(bandit=bandits(), log_mass_p=log_masses, log_mass_r=log_masses)
def test_forward_and_reverse_are_each_others_exchange(name, bandit: Bandit, log_mass_p, log_mass_r):
    """FKL(p, r) = RKL(r, p), UFKL(p, r) = URKL(r, p), Jeffreys and JS symmetric: of measures of any mass."""
    log_p = torch.tensor(bandit.logits).log_softmax(-1) + log_mass_p
    log_r = torch.tensor(bandit.old).log_softmax(-1) + log_mass_r
    there, back = integrand(name, log_p, log_r), integrand(CONJUGATE[name], log_r, log_p)
    assert bool(((there - back).abs() <= 1e-14 * back.abs()).all())


@pytest.mark.parametrize("name", CONJUGATE)
@given(d=floats(8, st.floats(-80.0, 80.0)))
def test_exchange_of_generators(name, d):
    """f(d) = eᵈ·f*(−d), and so slope(d) = eᵈ·(f*(−d) − slope*(−d)); each f is good to 64 ulp."""
    d, row, other = torch.tensor(d), DIVERGENCES[name], DIVERGENCES[CONJUGATE[name]]
    f, slope = other.f(-d), other.slope(-d)
    assert_close(row.f(d), d.exp() * f, rtol=3e-14, atol=0)
    size = d.exp() * (f.abs() + slope.abs())
    assert bool(((row.slope(d) - d.exp() * (f - slope)).abs() <= 3e-14 * size).all())


def test_chi2_is_not_symmetric():
    """The law above could fail."""
    d = torch.tensor([1.0], dtype=torch.float64)
    assert (DIVERGENCES["chi2"].f(d) - d.exp() * DIVERGENCES["chi2"].f(-d)).abs() > 1
