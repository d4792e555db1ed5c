"""`audit_batch` on drawn batches: every share against a computation by hand, right losses without a word."""

import copy
import json
import math
import re
from pathlib import Path

import pytest
import torch
from tiers import quick

from rpg_ref import RECIPES, k2, k3
from rpg_ref.audit import audit_batch
from rpg_ref.audit.advised import SEVERITIES
from rpg_ref.audit.batch import PARTS, right_pull
from rpg_ref.audit.oracle import Policies, gradient, token_logp
from rpg_ref.audit.population import population
from rpg_ref.objective import TERMS, Objective

BETA = 0.1
TERMS_MEANT = {"reward": 1.0, "reverse_kl": BETA}


def drawn(rows=24, width=30, off=0.1, dtype=torch.float64, seed=0):
    """log π_θ, log π_old, log π_ref, A [B] and a mask, as a run would dump them: responses of 5 to 30 tokens."""
    rng = torch.Generator().manual_seed(seed)
    p = -3 * torch.rand((rows, width), generator=rng, dtype=torch.float64) - 0.01
    q = (p + off * torch.randn(p.shape, generator=rng, dtype=torch.float64)).clamp(max=-1e-3)
    r = (p + 0.3 * torch.randn(p.shape, generator=rng, dtype=torch.float64)).clamp(max=-1e-3)
    length = torch.randint(5, width + 1, (rows,), generator=rng)
    A = torch.randn(rows, generator=rng, dtype=torch.float64)
    return [*(x.to(dtype) for x in (p, q, r, A)), torch.arange(width) < length[:, None]]


def mean(x, mask):
    return torch.where(mask, x, 0.0).sum() / mask.sum()


def over_response(x, mask):
    return (torch.where(mask, x, 0.0).sum(1) / mask.sum(1)).mean()


def column(A):
    return A[:, None] if A.ndim == 1 else A


def ppo(p, q, A):
    w = (p - q).exp()
    return -torch.minimum(w * column(A), w.clamp(0.8, 1.2) * column(A))


def reverse_kl(p, q, r):
    return (p - q).exp() * k3(r - p)


def in_the_loss(penalty=reverse_kl, gain=ppo, mean=mean):
    return lambda p, q, r, A, mask: mean(gain(p, q, A) + BETA * penalty(p, q, r), mask)


RIGHT = in_the_loss()


def by_sign(p, q, A):
    return ppo(p, q, torch.where(A > 0, 0.1 * A, A))


def whitened(p, q, r, A, mask, group=8):
    x = A.view(-1, group)
    return RIGHT(p, q, r, ((x - x.mean(1, True)) / x.std(1, keepdim=True)).flatten(), mask)


def words(report, severity=None):
    return " | ".join(x for x in report.remarks if severity in (None, x.severity))


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("name", TERMS)
def test_the_pull_of_each_term_is_its_exact_gradient(name, level):
    """Summed over every response with its probability under π_old, against the oracle."""
    batch = population(0)
    leaf = (batch.old + 0.3 * batch.drift).requires_grad_()
    policies = Policies(leaf.log_softmax(-1), batch.old, batch.ref)
    wanted = gradient(Objective({name: 1.0}, level), batch.tree, policies, batch.reward, [leaf])
    p, q, r = (token_logp(batch.tree, table) for table in policies)
    samples = [x if level == "token" else x.sum(1, keepdim=True) for x in (p, q, r)]
    pull = right_pull(name, *(x.detach() for x in samples), batch.reward[:, None])
    (found,) = torch.autograd.grad((q.sum(1).exp()[:, None] * pull * samples[0]).sum(), leaf)
    torch.testing.assert_close(found.flatten(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("off", [0.0, 0.1])
@pytest.mark.parametrize("declared", [{}, TERMS_MEANT], ids=["found", "declared"])
def test_a_right_loss_has_nothing_but_its_clip(dtype, off, declared):
    batch = drawn(off=off, dtype=dtype)
    report = audit_batch(RIGHT, *batch, **declared)
    assert report.remarks == () and report.ok
    assert dict(report.objective.terms) == pytest.approx(TERMS_MEANT, rel=1e-4)
    kept = int(batch[4].sum())
    assert report.normaliser == f"the {kept:,} tokens that the mask keeps"
    assert report.scale == pytest.approx(1 / kept)
    unused = PARTS.keys() - {"stopped", "outside", "rounding"}
    assert all(report.shares[name] < 1e-6 for name in unused)
    assert (report.shares["stopped"] > 0) == (off > 0)
    assert report.shares["rounding"] == (0 if dtype == torch.float64 else pytest.approx(4e-8, rel=0.9))


CASTS = {
    "advantages of tokens": lambda p, q, r, A, m: RIGHT(p, q, r, A[:, None].expand(p.shape), m),
    "mean over responses": in_the_loss(mean=over_response),
    "sum over a constant": in_the_loss(mean=lambda x, m: torch.where(m, x, 0.0).sum() / 1000),
    "float32": lambda p, q, r, A, m: RIGHT(p.float(), q.float(), r.float(), A.float(), m),
    "no penalty": lambda p, q, r, A, m: mean(ppo(p, q, A), m),
    "mean subtracted": lambda p, q, r, A, m: RIGHT(p, q, r, A - A.mean(), m),
    "k1 in a detached weight": in_the_loss(lambda p, q, r: (p - q).exp().detach() * (p - r).detach() * p),
    "row by row": lambda p, q, r, A, m: sum(
        RIGHT(p[i : i + 1], q[i : i + 1], r[i : i + 1], A[i : i + 1], m[i : i + 1]) * m[i].sum() / m.sum()
        for i in range(len(p))
    ),
    "in place": lambda p, q, r, A, m: RIGHT(p.clone().mul_(1.0), q.sub_(0), r, A.mul_(1.0), m),
    "wide bounds": in_the_loss(gain=lambda p, q, A: -(p - q).clamp(-20, 20).exp() * column(A)),
}


@pytest.mark.parametrize("name", CASTS)
def test_no_right_loss_is_accused(name):
    for declared in ({}, {"reward": 1.0} if name == "no penalty" else TERMS_MEANT):
        report = audit_batch(CASTS[name], *drawn(), **declared)
        assert {x.severity for x in report.remarks} <= {"note"}, report
        assert report.shares["penalty"] < 1e-5 and report.shares["reward"] < 1e-5


@pytest.mark.parametrize("name", quick(RECIPES, ["rpg-urkl", "rpg-reinforce-ufkl-clip", "dapo", "cispo", "rloo"]))
def test_a_recipe_is_what_it_declares(name):
    recipe = RECIPES[name]
    meant = recipe.off_policy
    batch = drawn()

    def loss(*tensors):
        return recipe.scalar_loss(*tensors, denominator=100.0)

    report = audit_batch(loss, *batch, level=recipe.measured_at, **(meant.terms if meant else {"reward": 1.0}))
    assert all(x.severity != "error" for x in report.remarks if "as-printed" not in name and meant)
    if meant and recipe.level == "token" and "as-printed" not in name:
        assert {x.severity for x in report.remarks} <= {"note"}, report
        found = audit_batch(loss, *batch, level=recipe.measured_at).objective
        assert dict(found.terms) == pytest.approx(dict(meant.terms), rel=1e-6)


@pytest.mark.parametrize("loss", [RIGHT, whitened, lambda p, *rest: RIGHT(p.half().float(), *rest)])
def test_the_loss_is_called_at_most_twelve_times(loss):
    calls = []
    *tensors, mask = drawn(dtype=torch.float32)
    dumped = [torch.where(mask, x, math.nan) if x.ndim == 2 else x for x in tensors]
    audit_batch(lambda *batch: calls.append(1) or loss(*batch), *dumped, mask)
    assert 5 < len(calls) <= 12


def pulls(loss, p, q, r, A, mask):
    leaf = p.clone().requires_grad_()
    return -torch.autograd.grad(loss(leaf, q, r, A, mask), leaf)[0]


def test_the_share_of_masked_places_by_hand():
    loss = in_the_loss(mean=lambda x, mask: x.mean())
    batch = drawn()
    report = audit_batch(loss, *batch, **TERMS_MEANT)
    g, mask = pulls(loss, *batch), batch[4]
    assert report.shares["masked"] == pytest.approx(float(g[~mask].norm() / g.norm()))
    assert report.tokens["masked"] == int((g[~mask] != 0).sum())
    assert report.normaliser == f"the {mask.numel():,} places of the batch, padding counted"
    assert not report.ok and f"{report.tokens['masked']:,} places that the mask leaves out" in words(report, "error")


def test_holes_that_are_trained_on_are_masked_places():
    *tensors, mask = drawn()
    mask[:, 2] = False
    report = audit_batch(lambda p, q, r, A, m: RIGHT(p, q, r, A, torch.arange(30) < 1 + m.sum(1, True)), *tensors, mask)
    assert report.tokens["masked"] == len(mask) and not report.ok


def test_the_share_of_a_wrong_penalty_by_hand():
    """Unweighted k3 pulls by v⁻¹ − 1 where KL(π‖ref) pulls by −w·log v, up to a constant times w."""
    batch = drawn()
    p, q, r, _, mask = batch
    report = audit_batch(in_the_loss(lambda p, q, r: k3(r - p)), *batch, **TERMS_MEANT)
    g = pulls(in_the_loss(lambda p, q, r: k3(r - p)), *batch)
    w, n = (p - q).exp()[mask], mask.sum()
    wrong = BETA * ((r - p).exp()[mask] - 1 + w * (p - r)[mask]) / n
    wrong = wrong - w * (w @ wrong) / (w @ w)
    assert report.shares["penalty"] == pytest.approx(float(wrong.norm() / g.norm()), rel=1e-9)
    assert "it is that of 0.1 × unweighted k3" in words(report, "error")
    assert report.shares["reward"] < 1e-9


def test_the_share_of_a_wrong_weight_by_hand():
    """A·log π pulls by A where E[R] pulls by w·A."""
    batch = drawn()
    p, q, _, A, mask = batch

    def loss(p, q, r, A, mask):
        return mean(-p * column(A), mask)

    report = audit_batch(loss, *batch, reward=1.0)
    w, a, n = (p - q).exp()[mask], A[:, None].expand(p.shape)[mask], mask.sum()
    wrong = (1 - w) * a
    wrong = wrong - w * (w @ wrong) / (w @ w)
    assert report.shares["reward"] == pytest.approx(float(wrong.norm() / a.norm()), rel=1e-9)
    assert "A·log π, unweighted" in words(report, "error")
    assert report.scale == pytest.approx(1 / int(n))
    found = audit_batch(loss, *batch)
    assert dict(found.objective.terms) == {"reward": 1.0} and "A·log π, unweighted" in words(found, "warning")


def test_the_share_of_the_normaliser_by_hand():
    batch = drawn(off=0.0)
    A, mask = batch[3], batch[4]
    report = audit_batch(in_the_loss(lambda p, q, r: 0 * p, mean=over_response), *batch, reward=1.0)
    right, g = A[:, None] * mask, A[:, None] * mask / mask.sum(1, keepdim=True)
    off = g - right * (g * right).sum() / right.square().sum()
    assert report.shares["normaliser"] == pytest.approx(float(off.norm() / g.norm()), rel=1e-9)
    assert report.normaliser == f"each response's tokens and the {len(A)} responses"
    assert "weighs 1/T" in words(report, "note") and report.ok


def test_what_the_clip_stops_by_hand():
    batch = drawn()
    p, q, _, A, mask = batch
    loss = in_the_loss(lambda p, q, r: 0 * p)
    report = audit_batch(loss, *batch, reward=1.0)
    w, a = (p - q).exp(), A[:, None].expand(p.shape)
    stopped = mask & (((a > 0) & (w > 1.2)) | ((a < 0) & (w < 0.8)))
    outside = mask & ~stopped & ((w > report.clip[1]) | (w < report.clip[0]))
    g = pulls(loss, *batch)
    assert report.tokens["stopped"] == int(stopped.sum()) >= 5
    assert report.shares["stopped"] == pytest.approx(float((w * a)[stopped].norm() / mask.sum() / g.norm()), rel=1e-9)
    assert report.shares["outside"] == pytest.approx(float(g[outside].norm() / g.norm()), rel=1e-9)
    assert report.clip == (float(w[stopped & (a < 0)].max()), float(w[stopped & (a > 0)].min()))
    assert audit_batch(loss, *batch, clip=(0.8, 1.2), reward=1.0).remarks == ()


def test_a_clip_that_does_not_hold():
    report = audit_batch(in_the_loss(gain=lambda p, q, A: -(p - q).exp() * column(A)), *drawn(), clip=(0.8, 1.2))
    assert "outside the clip [0.8, 1.2] are still pushed further out" in words(report, "warning")


def maximum(p, q, A):
    w = (p - q).exp()
    return -torch.maximum(w * column(A), w.clamp(0.8, 1.2) * column(A))


def maximum_below(p, q, A):
    return torch.where(column(A) > 0, ppo(p, q, A), maximum(p, q, A))


def dual(p, q, A):
    w = (p - q).exp()
    inner = torch.minimum(w * column(A), w.clamp(0.8, 1.2) * column(A))
    return -torch.where(column(A) < 0, torch.maximum(inner, 1.5 * column(A)), inner)


@pytest.mark.parametrize("gain", [maximum, maximum_below])
def test_a_clip_on_the_wrong_side(gain):
    assert "acts on the wrong side" in words(audit_batch(in_the_loss(gain=gain), *drawn(off=0.3)), "error")


@pytest.mark.parametrize("gain", [ppo, dual])
def test_a_clip_on_the_right_side(gain):
    assert audit_batch(in_the_loss(gain=gain), *drawn(off=0.3)).remarks == ()


def chunked(p, q, r, A, mask, parts=4):
    return sum(RIGHT(*(x[rows] for x in (p, q, r, A, mask))) for rows in torch.arange(len(p)).chunk(parts)) / parts


def with_length_twice(p, q, r, A, mask):
    return (((ppo(p, q, A) + BETA * reverse_kl(p, q, r)) * mask).sum(1) / mask.sum(1) ** 2).mean()


def filtered(p, q, r, A, mask):
    return RIGHT(p, q, r, A, mask) - mean(ppo(p, q, A) * (p > -0.5), mask)


def dropped_rows(p, q, r, A, mask):
    return RIGHT(p, q, r, A, mask & (torch.arange(len(p)) > 2)[:, None])


def spread_over_values(p, q, r, A, mask):
    return RIGHT(p, q, r, A, mask) * (1 + (p - p.mean()).square().mean().detach())


FINDINGS = {
    "micro-batches": (chunked, "warning", "4 different denominators", "normaliser"),
    "whitened": (whitened, "note", "normalised within groups of 8 consecutive responses", "advantages"),
    "by sign": (in_the_loss(gain=by_sign), "note", "0.1 times as much above 0 as below", "advantages"),
    "permuted": (lambda p, q, r, A, m: RIGHT(p, q, r, A.roll(1), m), "warning", "in proportion", "advantages"),
    "length twice": (with_length_twice, "error", "weighs 1/T²", "normaliser"),
    "bfloat16": (lambda p, *rest: RIGHT(p.bfloat16().float(), *rest), "warning", "computed in bfloat16", None),
    "sign": (lambda *batch: -RIGHT(*batch), "error", "the whole loss has the wrong sign", None),
    "penalty alone": (lambda p, q, r, A, m: mean(reverse_kl(p, q, r), m), "error", "advantages change nothing", None),
    "twice": (in_the_loss(lambda p, q, r: 2 * reverse_kl(p, q, r)), "error", "0.2·KL(π‖ref)", "penalty"),
    "no penalty": (in_the_loss(lambda p, q, r: 0 * p), "error", "there is none", "penalty"),
    "k2": (in_the_loss(lambda p, q, r: k2(r - p)), "error", "0.1 × unweighted k2", "penalty"),
    "rows": (dropped_rows, "note", "3 responses get no gradient", "stopped"),
    "tokens": (filtered, "note", "and no clip stops just these", "stopped"),
    "values": (spread_over_values, "error", "values behind the mask change the gradient", "behind_mask"),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_a_fault_is_named_and_has_a_share(name):
    loss, severity, sentence, part = FINDINGS[name]
    report = audit_batch(loss, *drawn(off=0.0 if name == "tokens" else 0.1), **TERMS_MEANT)
    assert sentence in words(report, severity), report
    assert part is None or report.shares[part] > 1e-3
    others = [x for x in report.remarks if sentence not in x and x.severity == "error"]
    assert not others, report
    assert all(x.severity in SEVERITIES and x.why.endswith(".") and x.fix.endswith(".") for x in report.remarks)


def test_whitened_advantages_leave_the_penalty_alone():
    """The standard deviation of equal advantages is 0: the penalty is read off both signs."""
    report = audit_batch(whitened, *drawn())
    assert dict(report.objective.terms) == pytest.approx(TERMS_MEANT, rel=1e-6)
    assert report.shares["penalty"] < 1e-9


def test_nan_behind_the_mask():
    *tensors, mask = drawn()
    dumped = [torch.where(mask, x, math.nan) if x.ndim == 2 else x for x in tensors]
    assert audit_batch(RIGHT, *dumped, mask).remarks != ()
    report = audit_batch(lambda p, q, r, A, m: (ppo(p, q, A) * m).sum() / m.sum(), *dumped, mask)
    assert "values behind the mask make the gradient NaN" in words(report, "error")
    assert dict(report.objective.terms) == {"reward": 1.0}


def test_a_sequence_level_objective():
    batch = drawn(off=0.01)

    def loss(p, q, r, A, mask):
        p, q, r = (torch.where(mask, x, 0.0).sum(1) for x in (p, q, r))
        return (-(p - q).exp() * A + BETA * reverse_kl(p, q, r)).mean()

    report = audit_batch(loss, *batch, level="sequence", **TERMS_MEANT)
    assert report.remarks == () and report.normaliser == "the 24 responses"
    assert str(report.objective).endswith("per response")


def test_the_report_as_text_and_as_json():
    report = audit_batch(FINDINGS["k2"][0], *drawn(), **TERMS_MEANT)
    text = str(report)
    assert text.startswith("measured against E[R] − 0.1·KL(π‖ref) per token, as declared; divided by the")
    assert all(sentence in text for sentence in PARTS.values())
    assert "- error: the penalty is wrong" in text and "\n    why: " in text and "\n    fix: " in text
    record = json.loads(json.dumps(report.record(), allow_nan=False))
    assert record["shares"]["penalty"] == report.shares["penalty"]
    assert record["remarks"][0]["severity"] == "error" and record["objective"]["reverse_kl"] == BETA


def test_a_loss_bound_to_the_dumped_precision():
    kept = drawn(dtype=torch.float32)

    def loss(p, q, r, A, mask):
        if p.dtype != torch.float32:
            raise TypeError("expected float32")
        return RIGHT(p, q, r, A, mask)

    report = audit_batch(loss, *kept)
    assert report.remarks == () and report.shares["rounding"] == 0
    assert dict(report.objective.terms) == pytest.approx(TERMS_MEANT, rel=1e-3)


def test_several_penalties_at_once():
    def loss(p, q, r, A, mask):
        return mean(-(p - q).exp() * (column(A) - 0.01 * p.detach()) + BETA * reverse_kl(p, q, r), mask)

    for batch in (drawn(), drawn(off=0.0)):
        report = audit_batch(loss, *batch)
        assert dict(report.objective.terms) == pytest.approx(TERMS_MEANT | {"entropy": 0.01}, rel=1e-6)
        assert report.remarks == ()


def test_a_penalty_that_no_terms_explain():
    report = audit_batch(in_the_loss(lambda p, q, r: (p - r) ** 4), *drawn())
    assert "it is that of no known term" in words(report, "warning") and report.ok


def test_a_batch_of_a_few_tokens():
    """Too few to fit all terms at once: the best single one is taken."""
    p, q, r, A, mask = (x[:2] for x in drawn())
    mask = mask & (torch.arange(30) < 3)
    report = audit_batch(in_the_loss(lambda p, q, r: k3(r - p) + p.exp()), p, q, r, A, mask)
    assert len(report.objective.terms) == 2 and report.shares["penalty"] > 0


def test_several_penalties_beside_a_clip():
    loss = in_the_loss(lambda p, q, r: reverse_kl(p, q, r) + k3(r - q) * (p - q).exp() * 0 - (r - q).exp() * p)
    report = audit_batch(loss, *drawn())
    assert dict(report.objective.terms) == pytest.approx(TERMS_MEANT | {"forward_kl": BETA}, rel=1e-6)


@pytest.mark.parametrize("declared", [{}, {"reverse_kl": BETA}], ids=["found", "declared"])
def test_a_penalty_alone(declared):
    report = audit_batch(in_the_loss(gain=lambda p, q, A: 0 * p), *drawn(), **declared)
    assert dict(report.objective.terms) == pytest.approx({"reverse_kl": BETA}, rel=1e-6)
    assert report.remarks == ()


def test_advantages_of_one_sign():
    p, q, r, A, mask = drawn()
    assert audit_batch(RIGHT, p, q, r, A.abs(), mask, **TERMS_MEANT).remarks == ()
    report = audit_batch(lambda p, q, r, A, m: RIGHT(p, q, r, A**2, m), p, q, r, A.abs(), mask, **TERMS_MEANT)
    assert "do not move in proportion" in words(report, "warning")


def test_a_batch_dumped_in_half_precision():
    report = audit_batch(RIGHT, *drawn(dtype=torch.bfloat16), **TERMS_MEANT)
    assert "the dumped precision moves the gradient" in words(report, "warning")
    assert report.ok and len(report.remarks) == 1


def test_a_wrong_penalty_of_responses():
    def loss(p, q, r, A, mask):
        p, q, r = (torch.where(mask, x, 0.0).sum(1) for x in (p, q, r))
        return (-(p - q).exp() * A + BETA * k3(r - p)).mean()

    report = audit_batch(loss, *drawn(off=0.01), level="sequence", **TERMS_MEANT)
    assert "the penalty is wrong" in words(report, "warning")


PAGE = (Path(__file__).parents[1] / "docs/audit-run.md").read_text()


def recipe_of(page_function):
    """The function of that name in one of the page's snippets."""
    (code,) = (
        code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if f"\ndef {page_function}(" in code
    )
    names = {}
    exec(compile(code, page_function, "exec"), names)
    return names[page_function]


class Trainer:
    """What the page's recipe uses of a GRPOTrainer, with TRL 1.16's names."""

    beta = BETA

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, kept, compute_entropy=False):
        assert compute_entropy and kept == 30
        return model.logp, torch.zeros_like(model.logp), None

    def _compute_loss(self, model, inputs):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        logp, entropies, _ = self._get_per_token_logps_and_entropies(model, ids, None, 30, compute_entropy=True)
        assert entropies is not None
        old = inputs.get("old_per_token_logps")
        old = logp.detach() if old is None else old
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        loss = ppo(logp, old, inputs["advantages"]) + self.beta * k3(inputs["ref_per_token_logps"] - logp)
        return (loss * mask).sum() / mask.sum()


@pytest.mark.parametrize("with_old", [True, False])
def test_the_recipe_for_trl(with_old, tmp_path, capsys):
    p, q, r, A, mask = drawn()
    ids = torch.zeros_like(mask, dtype=torch.long)
    inputs = {"prompt_ids": ids, "prompt_mask": mask, "completion_ids": ids, "completion_mask": mask.long()}
    inputs |= {"advantages": A, "ref_per_token_logps": r, "tool_mask": torch.ones_like(ids)}
    inputs |= {"old_per_token_logps": q} if with_old else {}
    trainer, model = Trainer(), torch.nn.Module()
    model.logp = p.clone().requires_grad_()
    plain = trainer._compute_loss(model, inputs)
    recipe_of("audit_next_loss")(trainer, tmp_path / "batch.pt", reward=1.0, reverse_kl=BETA)
    loss = trainer._compute_loss(model, inputs)
    loss.backward()
    assert torch.equal(loss, plain) and model.logp.grad is not None
    # On-policy unweighted k3 has the gradient of the other direction.
    assert ("0.1 × unweighted k3" if with_old else "− 0.1·KL(ref‖π) per token") in capsys.readouterr().out
    assert torch.equal(trainer._compute_loss(model, inputs), plain) and capsys.readouterr().out == ""
    dumped = torch.load(tmp_path / "batch.pt")
    assert torch.equal(dumped[0], p) and torch.equal(dumped[1], q if with_old else p)


def test_the_recipe_for_verl(tmp_path, capsys):
    def vanilla(old_log_prob, log_prob, advantages, response_mask, loss_agg_mode="token-mean", config=None):
        assert loss_agg_mode == "seq-mean" and config == 1
        return over_response(ppo(log_prob, old_log_prob, advantages), response_mask), {"clipped": 0.0}

    p, q, _, A, mask = drawn()
    wrapped = recipe_of("audited")(vanilla, tmp_path / "batch.pt", reward=1.0)
    given = {"old_log_prob": q, "log_prob": p, "advantages": A[:, None].expand(p.shape), "response_mask": mask}
    for _ in range(2):
        assert wrapped(**given, loss_agg_mode="seq-mean", config=1)[1] == {"clipped": 0.0}
    assert capsys.readouterr().out.count("measured against E[R] per token, as declared; divided by each response") == 1
    assert len(torch.load(tmp_path / "batch.pt")) == 5


def test_a_remark_is_a_sentence_that_can_be_copied():
    report = audit_batch(FINDINGS["k2"][0], *drawn(), **TERMS_MEANT)
    again = copy.deepcopy(report.remarks[0])
    assert again == report.remarks[0] and again.fix == report.remarks[0].fix and again.severity == "error"


@pytest.mark.parametrize(
    ("loss", "change", "message"),
    [
        (RIGHT, {"clip": (1.2, 0.8)}, r"clip\[0\] must be a number"),
        (RIGHT, {"reward": math.nan}, "reward must be a number"),
        (RIGHT, {"level": "word"}, "level must be"),
        (lambda p, *rest: 0 * p.sum(), {}, "a gradient of zero on this batch"),
        (lambda p, q, *rest: (p - p).abs().sqrt().sum(), {}, "also with ordinary numbers behind the mask"),
        (lambda p, *rest: (p * torch.rand(())).sum(), {}, "make it deterministic"),
    ],
)
def test_what_cannot_be_audited_is_refused(loss, change, message):
    with pytest.raises(ValueError, match=message):
        audit_batch(loss, *drawn(), **change)


def drawn_by_a_sampler(size=0.2, **named):
    p, q, r, A, mask = drawn(**named)
    rng = torch.Generator().manual_seed(1)
    s = (q + size * torch.randn(q.shape, generator=rng, dtype=torch.float64)).clamp(max=-1e-3)
    return p, q, r, A, mask, s


def weighted(weigh, gain=ppo, of_penalty=None):
    def loss(p, q, r, A, mask, s):
        d = torch.where(mask, q - s, 0.0)
        cost = BETA * reverse_kl(p, q, r) * (of_penalty or weigh)(d, mask)
        return mean(gain(p, q, A) * weigh(d, mask) + cost, mask)

    return loss


SAMPLERS = {
    "right": (lambda d, m: d.exp(), None, ""),
    "none": (lambda d, m: torch.ones_like(d), "error", "multiplied by nothing"),
    "inverse": (lambda d, m: (-d).exp(), "error", "multiplied by π_sampler/π_old of the token"),
    "late": (lambda d, m: d.roll(1, 1).exp(), "error", "of the token before"),
    "response": (lambda d, m: d.sum(1, True).exp(), "note", "multiplied by π_old/π_sampler of the response"),
    "clamped": (lambda d, m: d.exp().clamp(max=1.2), "note", "clamped to [0.", "1.2] at"),
    "masked": (lambda d, m: d.exp() * (d.exp() < 1.2), "note", "since the sampler's weight is outside"),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("off", [0.0, 0.1])
def test_the_weight_of_a_sampler(name, off):
    weigh, severity, *sentences = SAMPLERS[name]
    *batch, mask, s = drawn_by_a_sampler(off=off)
    report = audit_batch(weighted(weigh), *batch, mask, logp_sampler=s, **TERMS_MEANT)
    assert [x.severity for x in report.remarks] == ([severity] if severity else []), report
    assert all(sentence in words(report) for sentence in sentences)
    assert (report.shares["sampler"] > 1e-3) == (severity is not None)
    assert report.shares["penalty"] < 1e-6 and report.shares["reward"] < 1e-6
    assert report.scale == pytest.approx(1 / int(mask.sum()))


def test_the_share_of_a_missing_weight_by_hand():
    p, q, r, A, mask, s = drawn_by_a_sampler()

    def loss(p, q, r, A, mask, s):
        return mean(-(p - q).exp() * column(A), mask)

    report = audit_batch(loss, p, q, r, A, mask, logp_sampler=s, reward=1.0)
    w, omega, a = (p - q).exp()[mask], (q - s).exp()[mask], A[:, None].expand(p.shape)[mask]
    assert report.shares["sampler"] == pytest.approx(float(((omega - 1) * w * a).norm() / (w * a).norm()), rel=1e-9)


def test_a_penalty_without_the_samplers_weight():
    p, q, r, A, mask, s = drawn_by_a_sampler()
    loss = weighted(lambda d, m: d.exp(), of_penalty=lambda d, m: torch.ones_like(d))
    report = audit_batch(loss, p, q, r, A, mask, logp_sampler=s, **TERMS_MEANT)
    assert "the penalty is wrong" in words(report, "error") and "0.1 × k3 times the ratio" in words(report)
    assert report.shares["sampler"] < 1e-9 < report.shares["penalty"]


def test_a_sampler_of_no_known_weight():
    p, q, r, A, mask, s = drawn_by_a_sampler()
    report = audit_batch(weighted(lambda d, m: 1 + d + d**2), p, q, r, A, mask, logp_sampler=s, **TERMS_MEANT)
    assert "the advantages' weight is not π_θ/π_old" in words(report, "warning")


@pytest.mark.parametrize("name", ["rpg-urkl", "rpg-reinforce-ufkl-clip"])
def test_a_recipe_with_a_sampler(name):
    recipe = RECIPES[name]
    *batch, s = drawn_by_a_sampler(dtype=torch.float32)
    report = audit_batch(
        lambda p, q, r, A, m, s: recipe.scalar_loss(p, q, r, A, m, logp_sampler=s), *batch, logp_sampler=s.float()
    )
    assert report.remarks == () and dict(report.objective.terms) == pytest.approx(dict(recipe.off_policy.terms), 1e-3)


def graded(**named):
    """A batch whose advantages are rewards of 0 and 1, to be normalised by the loss."""
    p, q, r, A, mask = drawn(**named)
    return p, q, r, (A > 0).double(), mask


def grouped(size, std=True):
    def loss(p, q, r, A, mask):
        x = A.view(-1, size)
        x = x - x.mean(1, keepdim=True)
        return RIGHT(p, q, r, (x / (x.square().mean(1, keepdim=True).sqrt() + 1e-6) if std else x).flatten(), mask)

    return loss


def over_the_batch(p, q, r, A, mask):
    return RIGHT(p, q, r, (A - A.mean()) / (A.std() + 1e-6), mask)


NORMALISED = {
    "groups": (grouped(8), "note", "normalised within groups of 8 consecutive responses"),
    "means of groups": (grouped(6, std=False), "note", "normalised within groups of 6 consecutive responses"),
    "pairs": (grouped(2), "note", "normalised within groups of 2 consecutive responses"),
    "batch": (over_the_batch, "warning", "normalised over the batch: "),
    "scaled": (lambda p, q, r, A, m: RIGHT(p, q, r, 3.7 * A, m), "warning", "3.7 times as large as they are given"),
}


@pytest.mark.parametrize("name", NORMALISED)
@pytest.mark.parametrize("batch", [graded, drawn], ids=["0 and 1", "numbers"])
@pytest.mark.parametrize("off", [0.0, 0.1])
def test_advantages_normalised_inside_are_recognised(name, batch, off):
    loss, severity, sentence = NORMALISED[name]
    report = audit_batch(loss, *batch(off=off), **TERMS_MEANT)
    assert [x.severity for x in report.remarks] == [severity], report
    assert sentence in words(report)
    assert report.shares["advantages"] > 0.01 and report.shares["penalty"] < 1e-6 and report.shares["reward"] < 1e-6
    assert str(report.normaliser).endswith("tokens that the mask keeps")


def low_probability(p, q, r, A, mask):
    return RIGHT(p, q, r, A, mask & (p < -1))


def rising_only(p, q, r, A, mask):
    return RIGHT(p, q, r, A, mask & torch.cat([p[:, :1] < 0, p[:, :-1] < p[:, 1:]], 1))


@pytest.mark.parametrize("loss", [low_probability, rising_only])
@pytest.mark.parametrize("off", [0.0, 0.1, 0.3])
def test_a_filter_of_tokens_is_no_fault(loss, off):
    report = audit_batch(loss, *drawn(off=off), **TERMS_MEANT)
    assert {x.severity for x in report.remarks} == {"note"}, report
    assert "and no clip stops just these" in words(report)


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_token_that_is_always_left_out_is_named(place):
    def loss(p, q, r, A, mask):
        count = mask.cumsum(1)
        return RIGHT(p, q, r, A, mask & ((count > 1) if place == "first" else (count < count[:, -1:])))

    report = audit_batch(loss, *drawn(off=0.01), **TERMS_MEANT)
    assert f"the {place} token of each response gets no gradient" in words(report, "warning")


@pytest.mark.parametrize("backend", quick(["eager", "aot_eager"], ["eager"]))
def test_a_compiled_loss(backend):
    torch._dynamo.reset()
    assert audit_batch(torch.compile(RIGHT, backend=backend), *drawn(), **TERMS_MEANT).remarks == ()
