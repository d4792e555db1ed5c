"""The list of mutants keeps up with the code: each still changes exactly one place."""

import ast
from pathlib import Path

import pytest
from mutants import EVERY, HAND, ROOT, TESTS_OF


@pytest.mark.parametrize(("file", "before", "after"), HAND)
def test_a_mutant_changes_one_place_and_is_python(file, before, after):
    text = (ROOT / "rpg_ref" / file).read_text()
    assert text.count(before) == 1
    ast.parse(text.replace(before, after))


def test_its_tests_exist():
    names = {name for names in TESTS_OF.values() for name in names} | set(EVERY)
    assert all(Path(ROOT / f"tests/test_{name}.py").exists() for name in names)
