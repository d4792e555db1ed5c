"""`rpg-ref audit`: targets, functions of a file, tables, and what is wrong with them in one sentence."""

import dataclasses
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import matplotlib
import pytest
import torch

from rpg_ref import RECIPES, Objective, k3
from rpg_ref.audit.picture import draw
from rpg_ref.audit.run import Row, Unavailable, audit, cases_of, function_at, is_step, same_objective
from rpg_ref.audit.table import changes, markdown_table, record, text_table, write
from rpg_ref.audit.targets import TARGETS, Case
from rpg_ref.cli import main

REWARD, PENALISED = Objective({"reward": 1.0}), Objective({"reward": 1.0, "reverse_kl": 0.04})


def unweighted_k3(p, q, r, A, mask):
    return torch.where(mask, 0.04 * k3(r - p) - (p - q).exp() * A[:, None], 0.0).sum() / mask.sum()


def crash(*batch):
    raise KeyError("kl_type")


def rows():
    subjects = (RECIPES["grpo-corrected"], unweighted_k3, crash, lambda *batch: 1.0)
    names = ("corrected", "k3", "crashing", "constant | piped")
    cases = [Case(name, (PENALISED, PENALISED), loss) for name, loss in zip(names, subjects, strict=True)]
    return [audit(case) for case in cases]


def without_progress(err):
    """What stands on stderr after the line that announces the first step."""
    return err[err.index("\n") + 1 :] if err.startswith("audit 1/1 ") else err


@pytest.fixture(scope="module")
def audited():
    return rows()


def test_a_row_says_what_is_as_documented(audited):
    assert [row.as_documented for row in audited] == [(True, True), (False, False), (False, False), (False, False)]
    assert audited[0].notes == ()
    assert audited[1].notes[0] == "the penalty part has the gradient of 0.04 × unweighted k3"
    assert audited[2].notes[0].startswith("the loss raised KeyError, 'kl_type'; it must take")
    assert audited[3].notes == (
        "the loss must return a scalar tensor, got a float; return the batch's average, a tensor",
    )


def test_what_vanishes_on_policy_need_not_be_found_there(tmp_path):
    """A KL against the sampler has no gradient on-policy: it is not missed there, and the picture says so."""
    drift = Objective({"reward": 1.0, "forward_kl_old": 0.1})

    def loss(p, q, r, A, mask):
        w = (p - q).exp()
        return torch.where(mask, 0.1 * k3(p - q) - w * A[:, None], 0.0).sum() / mask.sum()

    row = audit(Case("drift", (drift, drift), loss))
    assert row.as_documented == (True, True)
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw("lib 1.0", [row], tmp_path / "lib.svg")
    assert (tmp_path / "lib.svg").read_text().count(">no gradient here: π is π_old<") == 1


def test_the_tables(audited):
    table = record("lib 1.0", audited)
    text, markdown = text_table(table), markdown_table(table)
    for shown in (text, markdown):
        assert shown.startswith("lib 1.0: of 4 settings 1 are as documented on-policy, 1 in both regimes.")
        assert "E[R] − 0.04·KL(π‖ref) per token ✓" in shown and "none ✗" in shown
        assert "E[R] − 0.04·KL(ref‖π) per token ✗" in shown
    lines = markdown.splitlines()
    assert {line.count(" | ") for line in lines[2:8] if "piped" not in line} == {5}
    assert "constant \\| piped" in markdown and "error" in text


def test_json_and_what_changed(audited):
    table = record("lib 1.0", audited)
    assert json.loads(json.dumps(table)) == table
    found = table["cases"][1]["found"]
    assert found["on_policy"]["objective"] == {"reward": 1.0, "forward_kl": 0.04}
    assert found["off_policy"]["objective"] is None and found["off_policy"]["residual"] > 1e-4
    assert table["cases"][2]["found"] == {"on_policy": None, "off_policy": None}
    assert changes(table, table) == []
    other = json.loads(json.dumps(table))
    other["cases"][0]["found"]["off_policy"]["objective"]["reverse_kl"] = 0.05
    other["cases"].pop()
    assert changes(table, other) == [
        "constant | piped is gone",
        "corrected, off-policy: E[R] − 0.04·KL(π‖ref) per token is published, E[R] − 0.05·KL(π‖ref) per token found",
    ]
    assert changes(other, table)[0] == "constant | piped is not published"
    single = json.loads(json.dumps(table))
    single["cases"][0]["found"]["on_policy"]["objective"]["reverse_kl"] *= 1 + 1e-6
    assert changes(table, single) == []
    restated = json.loads(json.dumps(table))
    restated["cases"][0]["documented"]["on_policy"] = None
    (said,) = changes(table, restated)
    assert said.startswith("corrected, on-policy: ") and said.endswith(" is published as documented, now none")


@pytest.mark.parametrize(("residual", "cell"), [(math.inf, "not finite ✗"), (5e-5, "undecided ✗"), (0.04, "none ✗")])
def test_a_cell_says_what_is_neither(audited, residual, cell):
    report = audited[1].report
    finding = dataclasses.replace(report.off_policy, residual=residual)
    row = dataclasses.replace(audited[1], report=dataclasses.replace(report, off_policy=finding))
    table = record("lib", [row])
    assert f"| {cell} | " in markdown_table(table) and f" / {residual:.0e} " in text_table(table)


PUBLISHED = sorted((Path(__file__).parents[1] / "docs/audit").glob("*.json"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_page_is_what_its_json_says(path):
    """Every objective with its level: two of different levels never print the same words."""
    table = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() == markdown_table(table) + "\n"
    assert changes(table, table) == []
    cells = [cell for line in markdown_table(table).splitlines()[4:] for cell in line.split(" | ")[1:4]]
    assert all(" per token" in cell or " per response" in cell for cell in cells if "E[R]" in cell)


def test_a_table_keeps_the_level_of_an_objective(audited):
    """A case found at the other level has changed, and says so."""
    table = record("lib 1.0", audited[:1])
    other = json.loads(json.dumps(table))
    other["cases"][0]["level"] = "sequence"
    found = "E[R] − 0.04·KL(π‖ref) per token is published, E[R] − 0.04·KL(π‖ref) per response found"
    assert f"corrected, off-policy: {found}" in changes(table, other)


def test_a_checkout_without_git_goes_by_its_folder(tmp_path, monkeypatch):
    def no_git(*_, **__):
        raise FileNotFoundError("git")

    adapter = ModuleType("rpg_ref.audit.targets.fake")
    vars(adapter).update(DISTRIBUTION=None, KNOWN="abc", cases=lambda checkout: [])
    monkeypatch.setitem(sys.modules, adapter.__name__, adapter)
    monkeypatch.setitem(TARGETS, "code", "fake")
    assert cases_of("code", tmp_path) == (f"code at {tmp_path.name}", [])
    monkeypatch.setattr(subprocess, "run", no_git)
    assert cases_of("code", tmp_path) == (f"code at {tmp_path.name}", [])


def test_objectives_are_compared_to_single_precision():
    nearly = Objective({"reward": 1.0, "reverse_kl": 0.04 * (1 + 1e-5), "entropy": 1e-9})
    assert same_objective(PENALISED, nearly) and same_objective(None, None)
    assert not same_objective(REWARD, Objective({"reward": 1.0}, "sequence"))
    assert not same_objective(PENALISED, None) and not same_objective(REWARD, PENALISED)
    assert not same_objective(PENALISED, Objective({"reward": 1.0, "reverse_kl": 0.0401}))


def test_files_are_written(audited, tmp_path):
    pytest.importorskip("matplotlib")
    paths = write("lib 1.0", audited, tmp_path / "deep" / "folder", "lib")
    assert [path.name for path in paths] == ["lib.md", "lib.json", "lib.png"]
    assert all(path.stat().st_size > 100 for path in paths)
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    bare = [Row(Case("bare", (REWARD, REWARD), crash), None, "x")]
    assert [path.name for path in write("lib 1.0", bare, tmp_path, "bare")] == ["bare.md", "bare.json"]


LOSSES = """
import torch

def right(logp, logp_old, logp_ref, advantages, mask, beta=0.1):
    return -torch.where(mask, (logp - logp_old).exp() * advantages[:, None], 0.0).sum() / mask.sum()

def step(model, batch):
    return model(batch.input_ids, batch.attention_mask).logits.sum()

def flat(logp, *rest):
    return logp

NUMBER = 3
"""


@pytest.fixture
def losses(tmp_path):
    path = tmp_path / "losses.py"
    path.write_text(LOSSES)
    return path


def test_a_function_of_a_file(losses, capsys, tmp_path):
    assert main(["audit", f"{losses}:right"]) == 0
    assert capsys.readouterr().out.startswith("on-policy: E[R] per token (residual ")
    assert main(["audit", f"{losses}:right", "--json", "--level", "sequence"]) == 0
    assert json.loads(capsys.readouterr().out)["cases"][0]["level"] == "sequence"
    assert not is_step(function_at(f"{losses}:right")) and is_step(function_at(f"{losses}:step"))
    table = tmp_path / "losses.json"
    assert main(["audit", f"{losses}:right", "--out", str(tmp_path)]) == 0
    assert main(["audit", f"{losses}:right", "--check", str(table)]) == 0
    losses.write_text(LOSSES.replace("-torch.where", "torch.where"))
    capsys.readouterr()
    assert main(["audit", f"{losses}:right", "--check", str(table)]) == 1
    assert "on-policy: E[R] per token is published, − E[R] per token found" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{losses}:wrong"], "has no function 'wrong'; it has right, step, flat"),
        (["{losses}:NUMBER"], "has no function 'NUMBER'"),
        (["{losses}:flat"], "must return a scalar tensor, got a tensor of shape"),
        (["{losses}:step"], "padding is counted"),
        (["nowhere.py:loss"], "no file 'nowhere.py'"),
        (["{losses}.txt:loss"], "is not a Python file"),
        (["{broken}:loss"], "cannot be imported: SyntaxError"),
        (["{needy}:loss"], "needs the module 'no_such_module', which is not installed here"),
        (["{losses}:right", "--level", "word"], "level must be 'token' or 'sequence'"),
        (["{losses}:right", "--seed", "-1"], "--seed"),
        (["{losses}:right", "--check", "{losses}"], "is no table that an audit wrote"),
        (["{losses}:right", "--check", "nowhere.json"], "is no table that an audit wrote"),
        (["tlr"], "unknown target 'tlr'; the nearest are trl"),
        (["rpg-paper"], "target 'rpg-paper' needs a checkout; pass --checkout DIR"),
        (["rpg-paper", "--checkout", "nowhere"], "the checkout 'nowhere' is not a directory"),
        (["rpg-paper", "--checkout", "{folder}"], "no verl/trainer/ppo/core_algos.py in"),
        (["rpg-ref", "--checkout", "{folder}"], "takes no checkout; drop --checkout"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, losses, tmp_path, capsys):
    places = {"losses": losses, "folder": tmp_path, "broken": tmp_path / "broken.py", "needy": tmp_path / "needy.py"}
    places["broken"].write_text("def loss(:\n")
    places["needy"].write_text("import no_such_module\n")
    (tmp_path / "losses.py.txt").write_text("x")
    status = main(["audit", *(word.format(**places) for word in arguments)])
    out, err = capsys.readouterr()
    err = without_progress(err)
    assert (message in err or message in out) and "Traceback" not in err
    if status:
        assert status == 2 and err.startswith("rpg-ref: ") and err.count("\n") == 1


@pytest.mark.parametrize("target", [name for name in TARGETS if name not in ("rpg-ref", "rpg-paper")])
def test_a_library_that_is_missing_is_one_sentence(target, capsys, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert main(["audit", target]) == 2
    err = without_progress(capsys.readouterr().err)
    adapter = importlib.import_module(f"rpg_ref.audit.targets.{TARGETS[target]}")
    assert err.startswith(f"rpg-ref: {adapter.DISTRIBUTION} is not installed; this adapter knows {adapter.KNOWN}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "error, message",
    [
        (
            ModuleNotFoundError("No module named 'ray'", name="ray"),
            "lib 9.9 needs the module 'ray', which is not installed",
        ),
        (
            ImportError("cannot import name 'f'"),
            "lib 9.9 has another shape than 1.0, which this adapter knows: ImportError",
        ),
        (AttributeError("no attribute 'agg_loss'"), "has another shape than 1.0, .* AttributeError, no attribute"),
        (TypeError("unexpected keyword"), "has another shape than 1.0"),
    ],
)
def test_a_library_of_another_shape_is_one_sentence(error, message, monkeypatch):
    def cases():
        raise error

    adapter = ModuleType("rpg_ref.audit.targets.fake")
    vars(adapter).update(DISTRIBUTION="lib", KNOWN="1.0", cases=cases)
    monkeypatch.setitem(sys.modules, adapter.__name__, adapter)
    monkeypatch.setitem(TARGETS, "lib", "fake")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    with pytest.raises(Unavailable, match=message):
        cases_of("lib")


@pytest.mark.full
def test_the_recipes_are_a_target(capsys):
    library, cases = cases_of("rpg-ref")
    assert library.startswith("rpg_ref ") and {case.option for case in cases} == RECIPES.keys()
    assert all(all(audit(case).as_documented) for case in cases[-3:])


def test_the_command_audits_a_target(capsys, monkeypatch):
    library, cases = cases_of("rpg-ref")
    monkeypatch.setattr("rpg_ref.cli.cases_of", lambda target, checkout: (library, cases[:2]))
    assert main(["audit", "rpg-ref"]) == 0
    assert "of 2 settings 2 are as documented on-policy, 2 in both regimes" in capsys.readouterr().out


@pytest.mark.parametrize("target", [name for name in TARGETS if name not in ("rpg-ref", "rpg-paper")])
def test_adapters_state_their_pins(target):
    adapter = importlib.import_module(f"rpg_ref.audit.targets.{TARGETS[target]}")
    files = (Path(adapter.__file__).with_name(f"{adapter.ENVIRONMENT}{suffix}.txt") for suffix in ("", "-no-deps"))
    pins = "".join(file.read_text() for file in files)
    assert f"{adapter.DISTRIBUTION}=={adapter.KNOWN}" in pins
    assert all("==" in line for line in pins.splitlines())
