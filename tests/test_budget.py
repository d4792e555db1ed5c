"""The budget of `make test` fails what is over it, passes what is not, and passes on a command's own failure."""

import sys

import budget
import pytest

BUSY = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass"]


@pytest.fixture(autouse=True)
def a_short_loop(monkeypatch):
    monkeypatch.setattr(budget, "calibration", lambda: 0.1)


def test_within_its_budget(monkeypatch, capsys):
    monkeypatch.setattr(budget, "TARGET", 3.0)
    assert budget.main(BUSY) == 0
    assert "target 3.0, limit 6.0" in capsys.readouterr().out


def test_over_twice_its_target(monkeypatch, capsys):
    monkeypatch.setattr(budget, "TARGET", 0.5)
    assert budget.main(BUSY) == 1
    assert "over the limit" in capsys.readouterr().out


def test_a_failure_is_the_commands_own(monkeypatch):
    monkeypatch.setattr(budget, "TARGET", 0.5)
    assert budget.main([sys.executable, "-c", "raise SystemExit(3)"]) == 3
