"""`rpg-ref verify` passes on every recipe and fails on every planted fault: a check that cannot fail is a defect."""

import dataclasses
import json
import math
import runpy
import sys

import pytest
import torch
from divergence_facts import FACTS
from tiers import QUICK_RECIPES, quick

import rpg_ref.audit.verify as verify_module
import rpg_ref.fused
import rpg_ref.ratios
import rpg_ref.recipe
import rpg_ref.surrogates
from rpg_ref import (
    RECIPES,
    DualClip,
    WeightBound,
    differentiable_loss,
    fused_loss,
    grpo_corrected_loss,
    grpo_loss,
    reinforce_loss,
)
from rpg_ref.audit.statements import CHECKED_AGAINST, STATED
from rpg_ref.audit.verify import verify
from rpg_ref.cli import main

REVERSE = {"reverse_kl": 1.0}
URKL, CLIPPED, GRPO = RECIPES["rpg-urkl"], RECIPES["rpg-reinforce-urkl-clip"], RECIPES["grpo"]


@pytest.mark.parametrize("name", quick(RECIPES, QUICK_RECIPES))
def test_every_recipe_is_what_it_declares(name):
    row = verify(RECIPES[name])
    assert row.ok, row.verdict
    assert row.gradient_error < 1e-13 and row.float32_error < 1e-6 and row.bfloat16_error < 2**-7


@pytest.mark.parametrize("name", [f"rpg-{name}" for name, facts in FACTS.items() if facts.term == name])
def test_a_row_outside_the_paper_verifies_too(name):
    divergence = name.removeprefix("rpg-")
    recipe = dataclasses.replace(
        URKL,
        name=name,
        divergence=divergence,
        on_policy_penalty={divergence: 1.0},
        off_policy_penalty={divergence: 1.0},
    )
    assert verify(recipe).ok


def test_jeffreys_is_both_directions():
    both = {"forward_kl": 1.0, "reverse_kl": 1.0}
    assert verify(dataclasses.replace(URKL, divergence="jeffreys", on_policy_penalty=both, off_policy_penalty=both)).ok


@pytest.mark.parametrize("seed", quick([1, 2], [1]))
@pytest.mark.parametrize("name", ["rpg-rkl", "rpg-reinforce-ufkl-clip", "rpg-fkl-clip-as-printed", "grpo"])
def test_other_policies_and_a_large_beta(name, seed):
    assert verify(dataclasses.replace(RECIPES[name], beta=2.0), seed=seed).ok


@pytest.mark.parametrize("name", ["rpg-ufkl", "rpg-reinforce-rkl-clip"])
def test_sequence_level(name):
    assert verify(dataclasses.replace(RECIPES[name], level="sequence")).ok


def with_loss(recipe, loss):
    return dataclasses.replace(recipe, loss=loss)


def negated(*arguments, **choices):
    return -differentiable_loss(*arguments, **choices)


def nan_in_float32(logp, old, *rest, **choices):
    return differentiable_loss(logp, old, *rest, **choices) * (math.nan if (logp.float() == logp).all() else 1.0)


def flipped(logp, old, A, divergence, beta, *, logp_ref=None):
    return differentiable_loss(logp, old, A, divergence, 0.0) - differentiable_loss(
        logp, old, 0.0, divergence, beta, logp_ref=logp_ref
    )


def without_u(logp, old, A, divergence, beta, *, logp_ref=None):
    return differentiable_loss(logp, old, A, "urkl", 0.0) + differentiable_loss(
        logp, logp_ref, 0.0, divergence, beta, logp_ref=logp_ref
    )


def without_w(logp, old, A, divergence, beta, *, logp_ref=None):
    return reinforce_loss(logp, logp.detach(), A, divergence, beta, logp_ref=logp_ref)


def inverted_region(logp, old, A, divergence, beta, *, logp_ref=None, clip):
    swapped = DualClip(low=clip.high, high=clip.low, dual=clip.dual)
    return CLIPPED.loss(logp, old, A, divergence, beta, logp_ref=logp_ref, clip=swapped)


def region_of_the_advantage(logp, old, A, divergence, beta, *, logp_ref=None, clip):
    penalty = reinforce_loss(logp, old, 0.0, divergence, beta, logp_ref=logp_ref)
    return CLIPPED.loss(logp, old, A, divergence, 0.0, clip=clip) + penalty


FAULTS = {
    "sign of the whole loss": with_loss(URKL, negated),
    "NaN": with_loss(URKL, lambda *a, **k: math.nan * differentiable_loss(*a, **k)),
    "NaN in float32": with_loss(URKL, nan_in_float32),
    "NaN in float32 without advantages": with_loss(
        URKL,
        lambda logp, old, A, *a, **k: (differentiable_loss if A.any() else nan_in_float32)(logp, old, A, *a, **k),
    ),
    "sign of the penalty": with_loss(URKL, flipped),
    "twice the penalty": with_loss(URKL, lambda *a, beta, **k: differentiable_loss(*a, beta=2 * beta, **k)),
    "no u": with_loss(URKL, without_u),
    "no importance weight": with_loss(URKL, without_w),
    "the other direction": dataclasses.replace(URKL, divergence="ufkl"),
    "own-sample baseline's (G − 1)/G in β": with_loss(
        URKL, lambda *a, beta, **k: differentiable_loss(*a, beta=beta * 8 / 7, **k)
    ),
    "reference ignored": with_loss(
        URKL, lambda *a, divergence, beta, logp_ref=None: differentiable_loss(*a, divergence, beta)
    ),
    "swapped bounds": with_loss(CLIPPED, inverted_region),
    "no clip": with_loss(CLIPPED, lambda *a, clip=None, **k: reinforce_loss(*a, **k)),
    "no dual bound": with_loss(
        CLIPPED, lambda *a, clip, **k: CLIPPED.loss(*a, clip=dataclasses.replace(clip, dual=1e9), **k)
    ),
    "region of the advantage": with_loss(CLIPPED, region_of_the_advantage),
    "detached penalty": with_loss(URKL, lambda *a, beta, **k: differentiable_loss(*a, beta=0.0, **k)),
    "GRPO that claims to be corrected": with_loss(RECIPES["grpo-corrected"], grpo_loss),
    "GRPO that is corrected and does not say so": with_loss(GRPO, grpo_corrected_loss),
    "GRPO that claims an objective off-policy": dataclasses.replace(GRPO, off_policy_penalty={"forward_kl": 1.0}),
    "declared reverse": dataclasses.replace(GRPO, on_policy_penalty={"reverse_kl": 1.0}),
}


@pytest.mark.parametrize("fault", quick(FAULTS, list(FAULTS)[::2]))
def test_a_planted_fault_is_found(fault):
    row = verify(FAULTS[fault])
    assert not row.ok and "NOT verified" in row.verdict


def nan_where(condition):
    def loss(logp, old, *rest, **choices):
        broken = torch.where(condition(logp, old), math.nan, 1.0)
        return broken * differentiable_loss(logp, old, *rest, **choices)

    return loss


# Faults of a loss that claims to be one of the package's: found only token by token, as training calls it.
IMPOSTORS = {
    "seven times the loss": (URKL, lambda *a, **k: 7 * differentiable_loss(*a, **k)),
    "no reference, no penalty": (
        URKL,
        lambda *a, divergence, beta, logp_ref=None: differentiable_loss(
            *a, divergence, beta if logp_ref is not None else 0.0, logp_ref=logp_ref
        ),
    ),
    "NaN far off": (URKL, nan_where(lambda logp, old: (logp - old).detach() > 1)),
    "frozen far off": (
        URKL,
        lambda logp, *a, **k: differentiable_loss(
            torch.where((logp - a[0]).abs() > 0.25, logp.detach(), logp), *a, **k
        ),
    ),
    "penalty's value clamped": (
        dataclasses.replace(RECIPES["rpg-rkl"], beta=1.0),
        lambda *a, **k: differentiable_loss(*a, "urkl", 0.0) + differentiable_loss(*a[:2], 0.0, **k).clamp(-10, 10),
    ),
    "Algorithm 2 for Algorithm 1": (dataclasses.replace(RECIPES["rpg-rkl-clip-as-printed"], beta=1.0), CLIPPED.loss),
    "corrected penalty far off": (
        RECIPES["grpo-corrected"],
        lambda logp, old, *a, **k: torch.where(
            (logp - old).abs() > 0.25, grpo_loss(logp, old, *a, **k), grpo_corrected_loss(logp, old, *a, **k)
        ),
    ),
}


@pytest.mark.parametrize("fault", quick(IMPOSTORS, list(IMPOSTORS)[:2]))
def test_an_impostor_is_found(fault, monkeypatch):
    recipe, loss = IMPOSTORS[fault]
    signed = loss if recipe.clip is None else lambda *a, clip, **k: loss(*a, clip=clip, **k)
    impostor = with_loss(recipe, signed)
    monkeypatch.setitem(STATED, signed, STATED[recipe.loss])
    assert verify(recipe).ok and not verify(impostor).ok


@pytest.mark.parametrize(
    "aggregate",
    [
        lambda loss, mask, how, *, denominator: loss.mean() if denominator is None else loss.sum() / mask.numel() / 2,
        lambda loss, mask, how, *, denominator: rpg_ref.aggregate(loss, mask, how),
        lambda loss, mask, how, *, denominator: rpg_ref.aggregate(
            loss, mask, "seq-mean-token-mean", denominator=denominator
        ),
    ],
    ids=["padding counted", "denominator ignored", "sequence means"],
)
@pytest.mark.parametrize("name", ["rpg-urkl", "rpg-reinforce-ufkl-clip"])
def test_a_faulty_aggregation_is_found(name, aggregate, monkeypatch):
    monkeypatch.setattr(rpg_ref.recipe, "aggregate", aggregate)
    assert not verify(RECIPES[name]).ok


def of_fused(change):
    """fused_loss of changed arguments: recipe, hidden, head, tokens, logp_old, logp_ref, advantages, mask."""
    return lambda *a, **k: fused_loss(*change(*a), **k)


def rounded_logp(recipe, hidden, *a, **k):
    out = fused_loss(recipe, hidden, *a, **k)
    return out._replace(logp=out.logp.to(hidden.dtype).to(out.logp.dtype))


PARTS, PRODUCT = rpg_ref.fused._parts, rpg_ref.fused._product


def product_of(wide, narrow):
    """The fused path's product, with factors of one dtype rounded to another."""
    return lambda *factors: PRODUCT(*(x.to(narrow).to(wide) if x.dtype == wide else x for x in factors))


FUSED_FAULTS = {
    "no gradient of the head": (verify_module, "fused_loss", of_fused(lambda r, h, W, *a: (r, h, W.detach(), *a))),
    "reference ignored": (verify_module, "fused_loss", of_fused(lambda *a: (*a[:5], None, *a[6:]))),
    "what is masked counts": (verify_module, "fused_loss", of_fused(lambda *a: (*a[:7], torch.ones_like(a[7])))),
    "denominator ignored": (verify_module, "fused_loss", lambda *a, denominator, **k: fused_loss(*a, **k)),
    "no reference, no penalty": (
        verify_module,
        "fused_loss",
        of_fused(lambda r, *a: (r if a[4] is not None else dataclasses.replace(r, beta=0.0), *a)),
    ),
    "masked hidden states times 0": (rpg_ref.fused, "_parts", lambda mask, *a: PARTS(torch.ones_like(mask), *a)),
    "the last chunk lost": (rpg_ref.fused, "_parts", lambda *a: PARTS(*a)[:-1]),
    "a response seen in pieces": (rpg_ref.fused, "sees_other_tokens", lambda *a, **k: False),
    "log-probs of eight bits": (verify_module, "fused_loss", rounded_logp),
    "float32 products of eight bits": (rpg_ref.fused, "_product", product_of(torch.float32, torch.bfloat16)),
    "bfloat16 products of four bits": (rpg_ref.fused, "_product", product_of(torch.bfloat16, torch.float8_e4m3fn)),
}


@pytest.mark.parametrize("fault", quick(FUSED_FAULTS, list(FUSED_FAULTS)[::3]))
def test_a_faulty_fused_path_is_found(fault, monkeypatch):
    monkeypatch.setattr(*FUSED_FAULTS[fault])
    row = verify(RECIPES["rpg-urkl-prefix"])
    assert not row.ok
    if "bits" in fault:
        assert row.gradient_error < 1e-13


def test_masked_log_probs_times_0_are_found(monkeypatch):
    monkeypatch.setattr(rpg_ref.recipe, "_samples", lambda level, keep, x: level.samples(x.double() * keep, keep))
    row = verify(URKL)
    assert not row.ok and math.isnan(row.gradient_error)


@pytest.mark.parametrize("dtype", quick([torch.float32, torch.bfloat16], [torch.float32]))
@pytest.mark.parametrize("name", ["rpg-reinforce-ufkl-clip", "gspo", "reinforce++"])
def test_arithmetic_in_the_dtype_of_the_log_probs_is_found(name, dtype, monkeypatch):
    for module in (rpg_ref.recipe, rpg_ref.ratios, rpg_ref.surrogates):
        monkeypatch.setattr(module, "widest", lambda x: x if x.dtype == dtype else x.double())
    row = verify(RECIPES[name])
    assert not row.ok and row.gradient_error < 1e-13


def looks_around_far_off(logp, old, *rest, **choices):
    excess = ((logp - old).detach().abs().sum(-1, keepdim=True) - 3).clamp(min=0.0)
    return (1 + excess) * differentiable_loss(logp, old, *rest, **choices)


@pytest.mark.full
def test_verify_says_what_a_loss_was_checked_against(capsys, monkeypatch):
    """The ok of a loss that is not of this package does not look like that of one that is."""
    foreign = with_loss(URKL, lambda *a, **k: differentiable_loss(*a, **k))
    clipped = with_loss(CLIPPED, lambda *a, clip, **k: CLIPPED.loss(*a, clip=clip, **k))
    rows = {"statement": verify(URKL), "itself": verify(foreign), "Algorithm 2": verify(clipped)}
    for name, row in rows.items():
        assert row.ok and row.checked_against == name and f"checked against {CHECKED_AGAINST[name]}" in row.verdict
    monkeypatch.setitem(RECIPES, "rpg-urkl", foreign)
    assert main(["verify", "rpg-urkl", "rloo"]) == 0
    printed = capsys.readouterr().out
    head, first, second, *notes = printed.splitlines()
    at = head.index("checked against")
    assert first[at:].split() == ["itself", "ok"] and second[at:].split() == ["statement", "ok"]
    assert f"itself: {CHECKED_AGAINST['itself']}" in " ".join(notes) and "Algorithm 2" not in printed


@pytest.mark.full
def test_a_foreign_loss_is_checked_against_its_own_gradient(monkeypatch):
    assert verify(with_loss(URKL, lambda *a, **k: differentiable_loss(*a, **k))).ok
    assert not verify(with_loss(URKL, nan_where(lambda logp, old: (logp - old).detach() > 1))).ok
    around = with_loss(URKL, looks_around_far_off)
    assert verify(around).ok
    monkeypatch.setattr(rpg_ref.fused, "sees_other_tokens", lambda *a, **k: False)
    assert not verify(around).ok


@pytest.mark.parametrize("rule", quick(["clamp", "mask"], ["mask"]))
def test_a_bounded_recipe_is_checked_against_its_bound_token_by_token(rule):
    recipe = dataclasses.replace(RECIPES["cispo"], bound=WeightBound(rule, 0.5, 2.0), beta=0.1)
    recipe = dataclasses.replace(recipe, on_policy_penalty=REVERSE, off_policy_penalty=REVERSE)
    assert verify(recipe).ok
    narrower = with_loss(recipe, lambda *a, bound, **k: recipe.loss(*a, bound=WeightBound(rule, 0.5, 1.9), **k))
    STATED[narrower.loss] = STATED[recipe.loss]
    try:
        assert not verify(narrower).ok
    finally:
        del STATED[narrower.loss]


def test_the_module_is_the_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rpg-ref", "explain", "one_idea"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("rpg_ref", run_name="__main__")
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("one_idea: claim")


@pytest.mark.full
def test_the_command(capsys):
    assert main(["verify", "grpo", "rpg-urkl", "rpg-urkl"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[3] == "" and table[1].split()[0] == "grpo" and "no known objective" in table[1]
    assert main(["verify", "--json", "grpo", "--seed", "3"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["ok"] and record["declared"]["off_policy"] is None
    assert record["found"]["on_policy"]["forward_kl"] == pytest.approx(0.04)


def test_the_command_fails_on_a_fault(capsys, monkeypatch):
    monkeypatch.setitem(RECIPES, "rpg-urkl", FAULTS["no u"])
    assert main(["verify", "rpg-urkl"]) == 1
    assert "FAILED" in capsys.readouterr().out


def from_log_probs(recipe, device):
    logp, old, ref = torch.full((3, 4, 3), -1.0, device=device).unbind()
    advantages, mask = torch.ones(4, device=device), torch.ones(4, 3, device=device)
    leaf = logp.clone().requires_grad_()
    loss = recipe(leaf, old, ref, advantages, mask, logp_sampler=old, denominator=recipe.count(mask)).loss
    return torch.autograd.grad(loss, leaf)


def from_hidden_states(recipe, device):
    old, ref = torch.full((2, 4, 3), -1.0, device=device).unbind()
    advantages, mask = torch.ones(4, device=device), torch.ones(4, 3, device=device)
    hidden, head = (torch.ones(shape, device=device).bfloat16().requires_grad_() for shape in ((4, 3, 8), (16, 8)))
    tokens = mask.long()
    loss = fused_loss(
        recipe, hidden, head, tokens, old, ref, advantages, mask, logp_sampler=old, chunk=5, denominator=12.0
    ).loss
    return torch.autograd.grad(loss, [hidden, head])


@pytest.mark.parametrize("name", quick(RECIPES, QUICK_RECIPES))
def test_a_recipe_stays_on_its_inputs_device(name):
    """As on a GPU, nothing that is made on the CPU mixes with the meta device's; and it has no values to wait for."""
    assert all(x.is_meta for x in from_log_probs(RECIPES[name], "meta"))


@pytest.mark.parametrize("name", quick(RECIPES, QUICK_RECIPES))
def test_the_fused_path_stays_on_its_inputs_device(name):
    """It does read values, the mask's: on the CPU, and what is made without a device goes to another."""
    rpg_ref.fused.sees_other_tokens(RECIPES[name], on_policy=False)  # once a recipe, from numbers of its own
    with torch.device("meta"):
        assert not any(x.is_meta for x in from_hidden_states(RECIPES[name], "cpu"))


def test_straying_from_the_device_is_found():
    strays = with_loss(URKL, lambda logp, *a, **k: differentiable_loss(logp, *a, **k) * torch.ones(logp.shape))
    reads = with_loss(URKL, lambda logp, *a, **k: differentiable_loss(logp, *a, **k) * bool(logp.any()))
    for loss in (strays, reads):
        with pytest.raises(RuntimeError, match="meta"):
            from_log_probs(loss, "meta")
    rpg_ref.fused.sees_other_tokens(strays, on_policy=False)
    with torch.device("meta"), pytest.raises(RuntimeError, match="meta"):
        from_hidden_states(strays, "cpu")


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("name", list(RECIPES))
def test_on_a_gpu(name):
    row = verify(RECIPES[name], device="cuda")
    assert row.ok, row.verdict


@pytest.mark.gpu
@gpu
def test_the_command_on_a_gpu(capsys):
    assert main(["verify", "grpo", "--device", "cuda"]) == 0
    assert "ok" in capsys.readouterr().out
