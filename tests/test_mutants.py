"""The list of mutants keeps up with the code: each still changes exactly one place."""

import ast
from pathlib import Path

import mutants
import pytest
from mutants import EVERY, HAND, ROOT, TESTS_OF


@pytest.mark.parametrize(("file", "before", "after"), HAND)
def test_a_mutant_changes_one_place_and_is_python(file, before, after):
    text = (ROOT / "rpg_ref" / file).read_text()
    assert text.count(before) == 1
    ast.parse(text.replace(before, after))


def test_every_mutated_file_has_its_tests():
    assert {file for file, _, _ in HAND} <= TESTS_OF.keys()


def test_a_test_that_fails_anyway_kills_nothing(monkeypatch, tmp_path):
    """As where the copy lacks a file that the test reads."""
    (tmp_path / "rpg_ref").mkdir()
    (tmp_path / "rpg_ref/a.py").write_text("x = 1\n")
    monkeypatch.setitem(TESTS_OF, "a.py", ["a"])
    monkeypatch.setattr(mutants, "failure", lambda checkout, names: "test_a.py::test_b")
    with pytest.raises(SystemExit, match="test_a.py::test_b fails in .* without a mutant"):
        mutants.killer(tmp_path, "a.py", "1", "2")
    assert (tmp_path / "rpg_ref/a.py").read_text() == "x = 1\n"


def test_its_tests_exist():
    names = {name for names in TESTS_OF.values() for name in names} | set(EVERY)
    assert all(Path(ROOT / f"tests/test_{name}.py").exists() for name in names)
