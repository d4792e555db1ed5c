"""A report's own form: severities, reasons and remedies, JSON, Markdown, and the exit status of a CI run."""

import copy
import dataclasses
import json
import pickle
import re
import time
from string import Formatter

import pytest
import torch

from rpg_ref import RECIPES, k3
from rpg_ref.audit import Remark, as_markdown, as_record, as_text, assert_gradient, identify, same_gradient
from rpg_ref.audit.advised import SEVERITIES
from rpg_ref.audit.identify import DISTANCES
from rpg_ref.audit.oracle import Policies, gradient
from rpg_ref.audit.population import balanced, population
from rpg_ref.audit.present import reaches, worst
from rpg_ref.audit.remarks import REMARKS
from rpg_ref.cli import main
from rpg_ref.objective import Objective

BETA = 0.1


def mean(x, mask):
    return torch.where(mask, x, 0.0).sum() / mask.sum()


def clean(p, q, r, A, mask):
    p, q, r = (torch.where(mask, x, 0.0) for x in (p, q, r))
    w = (p - q).exp()
    return (BETA * w * k3(r - p) - w * A[:, None]).mul(mask).sum() / len(p)


def unweighted(p, q, r, A, mask):
    p, q, r = (torch.where(mask, x, 0.0) for x in (p, q, r))
    return (BETA * k3(r - p) - (p - q).exp() * A[:, None]).mul(mask).sum() / len(p)


def mask_ignored(p, q, r, A, mask):
    return -((p - q).exp() * A[:, None]).mean()


def filled(kind):
    blanks = {name for _, name, _, _ in Formatter().parse(" ".join(REMARKS[kind])) if name}
    return Remark(kind, **dict.fromkeys(blanks, 2.0))


@pytest.mark.parametrize("kind", REMARKS)
def test_every_remark_has_a_severity_a_reason_and_a_remedy(kind):
    remark = filled(kind)
    assert remark.severity in SEVERITIES and remark and "{" not in remark
    for sentence in (remark.why, remark.fix):
        assert sentence.endswith(".") and sentence[0] in "`" + sentence[0].upper()
        assert len(re.sub(r"`[^`]*`", "", sentence).split()) <= 25, sentence
    assert copy.deepcopy(remark) == remark == pickle.loads(pickle.dumps(remark))
    assert pickle.loads(pickle.dumps(remark)).fix == remark.fix


@pytest.mark.parametrize("kind", [kind for kind, advice in REMARKS.items() if advice.severity == "error"])
def test_an_error_says_what_to_write(kind):
    assert "`" in REMARKS[kind].fix


def test_a_clean_loss_has_nothing_to_say_but_what_was_not_checked():
    report = identify(clean)
    assert [remark.kind for remark in report.all_remarks] == ["unchecked"] and worst(report) == "note"
    assert not reaches(report, "warning") and reaches(report, "note")
    assert report.share_wrong == {} and report.normaliser.kind == "token sums"


def test_the_worst_comes_first():
    report = identify(mask_ignored)
    order = [SEVERITIES.index(remark.severity) for remark in report.all_remarks]
    assert order == sorted(order) and worst(report) == "error" and reaches(report, "error")
    with pytest.raises(ValueError, match="unknown severity 'fatal'; choose one of error, warning, note"):
        reaches(report, "fatal")


def test_a_record_is_json_and_says_everything():
    record = as_record(identify(unweighted))
    assert json.loads(json.dumps(record)) == record and record["format"] == 1 and record["level"] == "token"
    assert record["on_policy"]["objective"] == {"reward": 1.0, "forward_kl": BETA}
    assert record["off_policy"]["objective"] is None
    assert "no known objective" in record["off_policy"]["verdict"]
    kinds = {remark["kind"]: remark for remark in record["remarks"]}
    assert kinds["penalty_form"]["sentence"] == "the penalty part has the gradient of 0.1 × unweighted k3"
    assert "k3(logp_ref - logp)" in kinds["penalty_form"]["fix"]
    assert kinds["no_objective_off_policy"]["severity"] == "note"
    assert record["severity"] == "warning" and list(record["share_wrong"]) == ["0.1", "0.5", "1"]


def test_the_share_that_is_wrong_is_that_of_the_oracle():
    """Unweighted k3, whose gradient is (π − ref)·∇log π in each state that π_old reaches: written anew here."""
    shares = identify(unweighted).share_wrong
    assert tuple(shares) == DISTANCES and sorted(shares.values()) == list(shares.values())
    batch = population(0)
    low, high = 0.0, 4.0
    for _ in range(60):
        drift = (low + high) / 2
        far = float(((batch.old + drift * batch.drift).log_softmax(-1) - batch.old).abs().max())
        low, high = (drift, high) if far < 0.5 else (low, drift)
    leaf = (batch.old + drift * batch.drift).requires_grad_()
    current = leaf.log_softmax(-1)
    reach = torch.zeros(batch.tree.states, dtype=torch.float64)
    chance = torch.bincount(batch.rows).double() / len(batch.rows)
    for t in range(batch.tree.horizon):
        reach.index_add_(0, batch.tree.state[:, t], chance)
    k3_term = (reach[:, None] * batch.old.exp() * ((batch.ref - current).exp() - 1 - batch.ref + current)).sum()
    (unweighted_pull,) = torch.autograd.grad(BETA * k3_term, leaf, retain_graph=True)
    policies = Policies(current, batch.old, batch.ref)
    wanted = gradient(Objective({"reward": 1.0, "forward_kl": BETA}), batch.tree, policies, batch.reward, [leaf])
    reward = gradient(Objective({"reward": 1.0}), batch.tree, policies, batch.reward, [leaf])
    found = reward - unweighted_pull.flatten()
    assert shares[0.5] == pytest.approx(float((found - wanted).norm() / found.norm()), rel=1e-6)


@pytest.mark.parametrize(
    "loss, kind, severity",
    [
        (lambda *batch: -clean(*batch), "descends", "error"),
        (lambda p, q, r, A, mask: clean(p, q, r, A, mask) + mean((p - q).abs().sqrt(), mask), "not_finite", "error"),
        (lambda p, q, r, A, mask: clean(p, q, r, A, mask) + mean(p - r, mask), "flees", "warning"),
        (lambda p, q, r, A, mask: clean(p, q, r, A, mask) + mean(k3(p - q), mask), None, None),
        (lambda p, q, r, A, mask: clean(p, q, r, A, mask) + mean((p - r) ** 4, mask), "no_objective", "warning"),
        (unweighted, "no_objective_off_policy", "note"),
    ],
)
def test_a_verdict_has_a_severity_too(loss, kind, severity):
    verdicts = {"descends", "not_finite", "flees", "no_objective", "no_objective_off_policy", "regimes_differ"}
    found = {remark.kind: remark.severity for remark in identify(loss).all_remarks if remark.kind in verdicts}
    assert found == ({} if kind is None else {kind: severity})


def test_what_a_penalty_adds_is_called_a_bonus():
    def loss(p, q, r, A, mask):
        return mean(-(p - q).exp() * A[:, None] - BETA * k3(r - p), mask)

    assert any(
        remark.startswith("the penalty part has the gradient of a bonus of 0.1") for remark in identify(loss).suspects
    )


def test_text_and_markdown_tell_what_to_do():
    report = identify(mask_ignored)
    text, markdown = as_text(report), as_markdown(report, "My loss")
    assert text.startswith("on-policy: E[R] per token")
    assert (
        "error: tokens behind the mask get a gradient" in text and "    Fix: Average over the kept tokens only" in text
    )
    assert markdown.startswith("# My loss\n\n- **on-policy**: E[R] per token")
    rows = markdown.splitlines()[markdown.splitlines().index("| --- | --- | --- | --- |") + 1 :]
    assert len(rows) == len(report.all_remarks)
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows), rows
    assert "Share of the gradient that is not the on-policy objective's" in as_text(identify(unweighted))
    quiet = identify(RECIPES["rloo"])
    assert not [x for x in quiet.all_remarks if x.severity == "error"]


LOSSES = """
import torch

def clean(logp, logp_old, logp_ref, advantages, mask):
    log_w = torch.where(mask, logp - logp_old, 0.0)
    return -(log_w.exp() * advantages[:, None] * mask).sum() / len(logp)

def wrong(logp, logp_old, logp_ref, advantages, mask):
    return -((logp - logp_old).exp() * advantages[:, None]).mean()
"""


@pytest.fixture
def losses(tmp_path):
    path = tmp_path / "losses.py"
    path.write_text(LOSSES)
    return path


@pytest.mark.parametrize(
    "name, severity, status",
    [("clean", "error", 0), ("clean", "warning", 0), ("wrong", "error", 1), ("wrong", "note", 1), ("wrong", None, 0)],
)
def test_a_ci_run_fails_on_a_severity(losses, name, severity, status, capsys):
    words = [] if severity is None else ["--fail-on", severity]
    assert main(["audit", f"{losses}:{name}", *words]) == status


def test_the_command_prints_each_form(losses, capsys):
    main(["audit", f"{losses}:wrong"])
    assert "\nerror: tokens behind the mask get a gradient" in capsys.readouterr().out
    main(["audit", f"{losses}:wrong", "--markdown"])
    assert capsys.readouterr().out.startswith("# ")
    main(["audit", f"{losses}:wrong", "--json"])
    report = json.loads(capsys.readouterr().out)["cases"][0]["report"]
    assert report["severity"] == "error" and report["remarks"][0]["why"]
    with pytest.raises(SystemExit):
        main(["audit", f"{losses}:wrong", "--fail-on", "fatal"])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_balanced_population_is_one(seed):
    """Every two neighbours have a good and a bad response, and each response is as frequent as before."""
    batch = balanced(seed)
    assert torch.equal(torch.bincount(batch.rows), torch.bincount(population(seed).rows))
    assert torch.equal(batch.reward[batch.rows], torch.tensor([1.0, -1.0]).double().repeat(len(batch.rows) // 2))


COUNTED = {
    "clean": clean,
    "unweighted": unweighted,
    "mask ignored": mask_ignored,
    "squashed advantages": lambda p, q, r, A, mask: clean(p, q, r, A.tanh(), mask),
    "whitened": lambda p, q, r, A, mask: clean(p, q, r, (A - A.mean()) / (A.std() + 1e-6), mask),
    "within groups": lambda p, q, r, A, mask: clean(p, q, r, (x := A.view(-1, 4)).sub(x.mean(1, True)).flatten(), mask),
    "per token": lambda p, q, r, A, mask: mean(-(p - q).exp() * (A if A.ndim == 2 else A[:, None]), mask),
    "no objective": lambda p, q, r, A, mask: clean(p, q, r, A, mask) + mean((p - r) ** 4, mask),
}


@pytest.mark.parametrize("loss", [*COUNTED.values(), RECIPES["grpo"], RECIPES["gspo"]], ids=[*COUNTED, "grpo", "gspo"])
def test_a_report_takes_at_most_a_hundred_calls(loss):
    """Those of the curve are counted apart, and all are counted."""
    called = []

    def counted(*batch):
        called.append(1)
        return loss(*batch)

    report = identify(counted)
    assert report.calls["standard"] <= 100 and sum(report.calls.values()) == len(called)
    assert report.calls["share_wrong"] == len(report.share_wrong)


@pytest.mark.full
def test_an_audit_takes_half_a_second_of_a_core():
    """The best of several runs, since the core is shared with other tests."""
    took = []
    for _ in range(5):
        begin = time.process_time()
        identify(RECIPES["grpo"])
        took.append(time.process_time() - begin)
    assert min(took) < 0.5


def divided(by):
    def loss(p, q, r, A, mask):
        return -torch.where(mask, (p - q).exp() * A[:, None], 0.0).sum() / by(mask)

    return loss


@pytest.mark.parametrize(
    "by, normaliser",
    [(lambda mask: mask.sum(), "tokens"), (lambda mask: len(mask), "sequences"), (lambda mask: 16.0, 16.0)],
    ids=["tokens", "sequences", "a number"],
)
def test_an_assertion_holds_the_size(by, normaliser):
    assert_gradient(divided(by), reward=1.0, normaliser=normaliser)
    assert not any(remark.kind == "refused" for remark in identify(divided(by)).notes)
    for other in {"tokens", "sequences", 16.0} - {normaliser}:
        with pytest.raises(AssertionError, match="another size or form, .*\n- the loss divides by"):
            assert_gradient(divided(by), reward=1.0, normaliser=other)
    with pytest.raises(AssertionError, match="divides by"):
        assert_gradient(divided(lambda mask: 4 * by(mask)), reward=1.0, normaliser=normaliser)


def test_an_assertion_says_where_the_size_cannot_be_told():
    with pytest.raises(AssertionError, match="it cannot be told what the loss divides by"):
        assert_gradient(lambda p, q, r, A, mask: clean(p, q, r, A - A.mean(), mask), reward=1.0, normaliser="tokens")
    with pytest.raises(ValueError, match="unknown normaliser 'words'"):
        assert_gradient(clean, reward=1.0, normaliser="words")
    with pytest.raises(ValueError, match="normaliser must be a number"):
        assert_gradient(clean, reward=1.0, normaliser=-1.0)


def by_level(level):
    """An option whose third value is never looked at."""

    def loss(p, q, r, A, mask):
        log_w = torch.where(mask, p - q, 0.0)
        if level == "sequence":
            log_w = log_w.sum(1, keepdim=True)
            return -(log_w.exp() * A[:, None]).sum() / len(p)
        return -(log_w.exp() * A[:, None] * mask).sum() / len(p)

    return loss


def test_an_option_that_is_ignored_is_told():
    losses = {level: by_level(level) for level in ("token", "sequence", "sequence_token")}
    assert same_gradient(losses) == ("token and sequence_token have the same gradient",)
    assert_gradient(losses["sequence"], form="A times the response's ratio")
    assert_gradient(losses["token"], form="A times the ratio", reward=1.0)
    with pytest.raises(AssertionError, match="no part has the gradient of A times the response's ratio"):
        assert_gradient(losses["sequence_token"], form="A times the response's ratio")
    with pytest.raises(ValueError, match="unknown form 'A'"):
        assert_gradient(clean, form="A")
    with pytest.raises(ValueError, match="1 losses cannot be compared"):
        same_gradient({"one": clean})


def test_losses_that_differ_behind_a_hole_or_far_away_alone_are_told_apart():
    def clamped(p, q, r, A, mask):
        return clean(p, torch.where(mask, p - (p - q).clamp(-0.4, 0.4), q), r, A, mask)

    def first_token_counts(p, q, r, A, mask):
        return clean(p, q, r, A, torch.where(mask[:, :1], mask, False) | (mask & mask[:, 1:2]))

    assert same_gradient({"a": clean, "b": clamped}) == ()
    assert same_gradient({"a": clean, "b": first_token_counts}) == ("a and b have the same gradient",)


def test_a_share_that_is_not_finite_is_left_out():
    def loss(p, q, r, A, mask):
        far = p - q < -0.95
        return unweighted(p, q, r, A, mask) + mean(torch.where(far, p, 0.0) / torch.where(far, 0.0, 1.0), mask)

    assert tuple(identify(loss).share_wrong) == (0.1, 0.5)


def test_a_report_without_a_remark_says_so():
    report = dataclasses.replace(identify(clean), remarks=())
    assert as_markdown(report).endswith("Nothing else was found.") and worst(report) == "none"
    assert not reaches(report, "note")
