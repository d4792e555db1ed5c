"""CONTRIBUTING.md is followed to the letter, in a copy: its blocks apply, and the tests it names try the new row."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
BLOCKS = re.findall(r"^```diff\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
ROW = BLOCKS[0]
(COUNTERS,) = re.findall(r"^```text\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
(SELECTION,) = re.findall(r"^```bash\n\S+ -m pytest -k \"(.*)\" (.*)\n```", PAGE, re.MULTILINE)
NAME = "hellinger"
# Last line of a run: where its modules were.
RUN = (
    "import sys, pytest; code = pytest.main(sys.argv[1:]); import rpg_ref, proofs; "
    "print(rpg_ref.__file__, proofs.__file__, sep='\\n'); sys.exit(code)"
)


def hunks(block):
    """(file, as it stands, as it shall be) of each hunk."""
    for path, body in re.findall(r"^\+\+\+ (\S+)\n(.*?)(?=^\+\+\+ |\Z)", block, re.DOTALL | re.MULTILINE):
        for hunk in body.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] or "\n" for line in lines if line[0] != "+")
            yield path, before, "".join(line[1:] or "\n" for line in lines if line[0] != "-")


def apply(blocks, root):
    for block in blocks:
        for path, before, after in hunks(block):
            text = (root / path).read_text("utf-8")
            assert text.count("\n" + before) == 1, f"CONTRIBUTING.md: not exactly once in {path}:\n{before}"
            (root / path).write_text(text.replace("\n" + before, "\n" + after), "utf-8")


def copied(root):
    for folder in ("rpg_ref", "proofs", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "docs").mkdir()
    for file in ("pyproject.toml", "docs/certificate.txt"):
        shutil.copy(ROOT / file, root / file)
    return root


def run(root, *arguments):
    """Outcome by test of pytest in the copy, whose modules are the copy's own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_", "HYPOTHESIS_"))}
    environment |= {"PYTHONPATH": str(root), "CI": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", RUN, "-p", "no:cacheprovider", "-vv", "--tb=no", *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == [str(root / f"{x}/__init__.py") for x in ("rpg_ref", "proofs")], done.stderr
    return dict(re.findall(r"^(tests/\S+) (PASSED|FAILED|ERROR)\b", done.stdout, re.MULTILINE)), done


@pytest.mark.full
def test_with_the_row_alone_the_tests_that_count_rows_fail(tmp_path):
    copy = copied(tmp_path.resolve())
    apply([ROW], copy)
    found, done = run(copy, *COUNTERS.split())
    assert found == dict.fromkeys(COUNTERS.split(), "FAILED"), done.stdout


@pytest.mark.full
def test_the_steps_make_a_row_that_is_tested(tmp_path):
    copy = copied(tmp_path.resolve())
    apply(BLOCKS, copy)
    expression, files = SELECTION
    found, done = run(copy, *files.split(), "-k", expression)
    assert done.returncode == 0 and set(found.values()) == {"PASSED"}, done.stdout
    named = {test.partition("::")[0] for test in found if f"{NAME}-" in test or f"{NAME}]" in test}
    assert named == set(files.split())
    assert {f"tests/test_verify.py::test_a_row_outside_the_paper_verifies_too[rpg-{NAME}]"} <= found.keys()
    assert "tests/test_proofs.py::test_claim[divergence_table]" in found

    divergences = copy / "rpg_ref/divergences.py"
    text = divergences.read_text("utf-8")
    (row,) = (line for line in text.splitlines() if f'_row("{NAME}"' in line)
    f, _, slope = row.rpartition("lambda d: ")
    divergences.write_text(text.replace(row, f"{f}lambda d: -{slope}"), "utf-8")
    killers = ["tests/test_numerics.py::test_generator_and_slope", "tests/test_laws.py::test_exchange_of_generators"]
    assert all(f"`{killer}`" in PAGE for killer in killers)
    found, done = run(copy, *killers, "-k", NAME)
    assert len(found) == 3 and set(found.values()) == {"FAILED"}, done.stdout


def test_a_divergence_changes_the_files_that_the_page_counts():
    sentence = re.search(r"^A new divergence changes (\w+) files: (.*?)\. The last", PAGE, re.DOTALL | re.MULTILINE)
    count, listed = sentence.groups()
    changed = list(dict.fromkeys(path for block in BLOCKS for path, *_ in hunks(block)))
    assert sorted(re.findall(r"`(\S+)`", listed)) == sorted(changed) and changed[-1] == "rpg_ref/objective.py"
    assert count == "six" and len(changed) == 6


def test_what_is_named_exists():
    prose = re.sub(r"^```.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE)
    for path, name in re.findall(r"`((?:tests|rpg_ref|proofs|docs)/[\w/.-]+?)(?:::(\w+))?`", PAGE):
        assert (ROOT / path).exists(), path
        assert not name or f"def {name}(" in (ROOT / path).read_text("utf-8"), name
    assert all((ROOT / target).exists() for target in re.findall(r"\]\(([^)#:]+)\)", prose))


def test_the_citation_is_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["title"] == project["name"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["keywords"] == project["keywords"]
    assert citation["message"] and citation["authors"] and all(x["authors"] for x in citation["references"])
