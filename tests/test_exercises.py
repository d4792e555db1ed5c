"""Each exercise: its page asks it, what the page starts from is not right yet, and the solution kept apart is."""

import importlib
import re
from pathlib import Path

import pytest

from docs.kit.exercises import grade

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in ROOT.glob("docs/kit/exercises/*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_is_right(name, capsys):
    page = name.replace("_", "-")
    assert grade(page, importlib.import_module(f"solutions.{name}").answer)
    assert capsys.readouterr().out == f"right: {page}\n"


@pytest.mark.parametrize("name", NAMES)
def test_what_the_page_starts_from_is_not(name, capsys):
    page = name.replace("_", "-")
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL)
    (start,) = (code for code in snippets if f'grade("{page}"' in code)
    exec(start, {})
    said = capsys.readouterr().out.splitlines()
    assert said and said[-1].startswith("not yet: "), said


def test_every_solution_has_its_exercise():
    assert {path.stem for path in ROOT.glob("tests/solutions/*.py")} - {"__init__"} == set(NAMES)
