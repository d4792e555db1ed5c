"""A report's own form: severities, reasons and remedies, JSON, Markdown, and the exit status of a CI run."""

import copy
import json
import pickle
import re
from string import Formatter

import pytest
import torch

from rpg_ref import RECIPES, k3
from rpg_ref.audit import Remark, as_markdown, as_record, as_text, identify
from rpg_ref.audit.identify import DISTANCES
from rpg_ref.audit.oracle import Policies, gradient
from rpg_ref.audit.population import balanced, population
from rpg_ref.audit.present import reaches, worst
from rpg_ref.audit.remarks import REMARKS, SEVERITIES
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
