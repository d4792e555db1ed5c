"""Slow commands say which step of how many they are at and how long the rest takes; standard output stays clean."""

import json
import re
import subprocess
import time
from types import SimpleNamespace

import pytest

import rpg_ref.cli
from rpg_ref import RECIPES
from rpg_ref.cli import main
from rpg_ref.progress import SILENCE, duration, progress
from train.cli import main as train_main


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_a_step_is_numbered_and_the_rest_estimated(capsys):
    """The first estimate is the caller's; later ones are the mean of the steps that are done."""
    clock = Clock()
    with progress("verify", 3, seconds=100.0, clock=clock) as begin:
        for name, takes in (("a", 4.0), ("b", 8.0), ("c", 1.0)):
            begin(name)
            clock.now += takes
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "verify 1/3 a: about 5 min left",
        "verify 2/3 b: about 8 s left",
        "verify 3/3 c: about 6 s left",
    ]


def test_a_long_step_is_not_silent(capsys):
    """Each time that the silence has lasted, and never more than it; nothing comes after the end."""
    with progress("audit", 1, seconds=1.0, silence=0.1) as begin:
        begin("slow")
        time.sleep(0.65)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "audit 1/1 slow: about 1 s left"
    assert 2 <= len(said[1:]) <= 7 and set(said[1:]) == {"audit 1/1 slow: still running after 1 s"}
    time.sleep(0.25)
    assert capsys.readouterr().err == ""
    assert SILENCE == 10


def test_what_fails_in_a_step_comes_through(capsys):
    with pytest.raises(KeyError), progress("docs", 2, seconds=1.0, silence=0.05) as begin:
        begin("index.md")
        raise KeyError("page")
    capsys.readouterr()
    time.sleep(0.15)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0, "1 s"), (40.4, "40 s"), (119.0, "119 s"), (120.0, "2 min"), (3600.0, "60 min")]
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def steps_of(err, what):
    """(number, total, name) of each step that was announced."""
    return re.findall(rf"^{what} (\d+)/(\d+) (.+): about \S+ \S+ left$", err, re.MULTILINE)


def test_verify_announces_each_recipe(capsys, monkeypatch):
    asked = []

    def stand_in(recipe, **_):
        asked.append(recipe)
        nothing = (None, None)
        return rpg_ref.cli.Row(
            recipe.name, "token", nothing, nothing, (0.0, 0.0), 1.0, 0.0, 0.0, 0.0, "statement", None, True
        )

    monkeypatch.setattr(rpg_ref.cli, "verify", stand_in)
    assert main(["verify", "--json"]) == 0
    out, err = capsys.readouterr()
    names = [recipe.name for recipe in dict.fromkeys(RECIPES.values())]
    assert [row["recipe"] for row in json.loads(out)] == names == [recipe.name for recipe in asked]
    assert steps_of(err, "verify") == [(str(n), str(len(names)), name) for n, name in enumerate(names, 1)]


def test_audit_announces_each_case(capsys, monkeypatch):
    cases = [rpg_ref.cli.Case(name, (None, None), RECIPES["ppo"]) for name in ("one", "two")]
    monkeypatch.setattr(rpg_ref.cli, "cases_of", lambda *_: ("lib 1.0", cases))
    monkeypatch.setattr(rpg_ref.cli, "audit", lambda case, seed: rpg_ref.cli.Audited(case, None, "not run"))
    assert main(["audit", "trl", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [case["option"] for case in json.loads(out)["cases"]] == ["one", "two"]
    assert steps_of(err, "audit") == [("1", "1", "loading trl"), ("1", "2", "one"), ("2", "2", "two")]


def test_a_rehearsal_announces_each_stage(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda words, check: SimpleNamespace(returncode=0))
    assert train_main(["rehearse", "cpu_tiny", "--divide", "4", "--out", str(tmp_path / "out")]) == 1  # nothing is run
    names = [
        "writing the model and the problems",
        "one step, checkpoint, export, evaluation",
        "resume, two more steps",
        "the exported model evaluated",
    ]
    assert steps_of(capsys.readouterr().err, "rehearse cpu_tiny") == [
        (str(number), "4", name) for number, name in enumerate(names, 1)
    ]
