"""README and pages say what the code prints, and their snippets run."""

import re
from pathlib import Path

import pytest

from proofs import CLAIMS
from proofs.certificate import check
from rpg_ref import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
SNIPPETS = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]
CERTIFICATE = re.findall(r"^(\w+) +proved; (\d+) near misses refuted", README, re.MULTILINE)


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippet(code, capsys):
    exec(compile(code, "snippet", "exec"), {})


def test_the_certificates_totals():
    total = sum(len(claim.near_misses()) for claim in CLAIMS.values())
    assert f"{len(CLAIMS)} claims derived in symbols from their definitions, and {total} mistakes" in README
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"proves {len(CLAIMS)} claims" in changelog and f"refutes {total} near misses" in changelog
    assert len(CERTIFICATE) > 10


@pytest.mark.parametrize(("name", "refuted"), CERTIFICATE)
def test_the_certificate_is_what_the_run_prints(name, refuted):
    assert len(CLAIMS[name].near_misses()) == int(refuted)


def test_one_line_of_it_in_full():
    name, refuted = CERTIFICATE[0]
    assert str(check(CLAIMS[name])) == f"proved; {refuted} near misses refuted"


def listed(text):
    return re.findall(r"^(\S+) +(.*?) {2,}as declared", text, re.MULTILINE)


def test_the_tables_of_recipes():
    """All on their page, some in the README; each with what it declares."""
    every = listed((ROOT / "docs/recipes.md").read_text())
    assert [name for name, _ in every] == list(dict.fromkeys(recipe.name for recipe in RECIPES.values()))
    assert len(listed(README)) > 10
    for name, declared in every + listed(README):
        recipe = RECIPES[name]
        on, _, off = declared.partition("; off-policy ")
        assert on == str(recipe.on_policy) and (off or on) == str(recipe.off_policy or "no known objective")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    text = page.read_text()
    local = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    named = re.findall(r"`((?:rpg_ref|proofs|tests|train)/[\w/]+\.\w+)`", text)
    assert all((page.parent / target).exists() for target in local)
    assert all((ROOT / path).exists() for path in named)
