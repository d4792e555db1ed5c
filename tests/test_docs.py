"""README and pages say what the code prints, and their snippets run."""

import re
from pathlib import Path

import pytest

from proofs import CLAIMS
from rpg_ref import RECIPES
from rpg_ref.audit.denominator import BIAS, bias

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
# These want a library of another environment, where tests/test_trl.py and tests/test_verl.py run them.
ELSEWHERE = {"trl.md", "verl.md"}
SNIPPETS = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    if page.name not in ELSEWHERE
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]
LINE = re.compile(r"^(\w+) +proved; (\d+) near misses refuted", re.MULTILINE)
CERTIFICATE, ON_FILE = LINE.findall(README), LINE.findall((ROOT / "docs/certificate.txt").read_text())


NUMBER = re.compile(r"[−-]?\d+\.\d+(?:e[+-]\d+)?")


def numbers(text):
    """Each number with a decimal point, and one unit of its last digit."""
    found = [number.replace("−", "-") for number in NUMBER.findall(text)]
    parts = [number.lstrip("-").partition("e") for number in found]
    units = [10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2])) for mantissa, _, exponent in parts]
    return list(zip(map(float, found), units, strict=True))


@pytest.mark.full
@pytest.mark.parametrize("code", SNIPPETS)
def test_snippet(code, capsys):
    """It runs, and prints every number that its comments say."""
    exec(compile(code, "snippet", "exec"), {})
    printed = [number for number, _ in numbers(capsys.readouterr().out)]
    for said, unit in numbers("\n".join(re.findall(r"#\s(.*)$", code, re.MULTILINE))):
        assert any(abs(said - number) <= 0.51 * unit for number in printed), f"{said} is not printed"


def test_the_certificates_totals():
    total = sum(int(refuted) for _, refuted in ON_FILE)
    assert f"{len(CLAIMS)} claims derived in symbols from their definitions, and {total} mistakes" in README
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"proves {len(CLAIMS)} claims" in changelog and f"refutes {total} near misses" in changelog


def test_the_readmes_lines_are_the_certificates():
    """That the certificate on file is what the run prints, tests/test_proofs.py checks claim by claim."""
    assert set(CERTIFICATE) <= set(ON_FILE) and len(CERTIFICATE) > 10


def listed(text):
    return re.findall(r"^(\S+) +(.*?) {2,}as declared", text, re.MULTILINE)


def test_the_tables_of_recipes():
    """All on their page, some in the README; each with what it declares."""
    every = listed((ROOT / "docs/recipes.md").read_text())
    assert [name for name, _ in every] == list(RECIPES)
    assert len(listed(README)) > 10
    for name, declared in every + listed(README):
        recipe = RECIPES[name]
        on, _, off = declared.partition("; off-policy ")
        assert on == str(recipe.on_policy) and (off or on) == str(recipe.off_policy or "no known objective")


@pytest.mark.parametrize("name", list(dict.fromkeys(recipe.name for recipe in RECIPES.values())))
def test_the_bias_in_a_table_is_the_recipes(name):
    """On both pages where a row stands; and below each table, what the number is."""
    printed = f"as declared  {str(bias(RECIPES[name])):<13}  "
    for text in (README, (ROOT / "docs/recipes.md").read_text()):
        rows = [line for line in text.splitlines() if line.startswith(f"{name} ") and "as declared" in line]
        assert all(printed in row for row in rows)
        assert " ".join(f"{BIAS}.".split()) in " ".join(text.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    local = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    named = re.findall(r"`((?:rpg_ref|proofs|tests|train)/[\w/]+\.\w+)`", text)
    assert all((page.parent / target).exists() for target in local)
    assert all((ROOT / path).exists() for path in named)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_the_ledger_name_its_claims(page):
    named = re.findall(r"\[([^]]+)\]\((?:\.\./)?ledger\.md#(\w+)\)", page.read_text())
    assert [row for _, row in named if row not in CLAIMS] == []
    assert all(text == row for text, row in named)


PAPERS = """2506.09477 2510.01555 2512.21852 2512.02556 2601.10201 2602.04879 2601.23135 2512.16565 2105.11066
2502.07460 2510.00819 2406.16768 2602.05933 2505.12504 2210.00991 2212.14405 2510.13060""".split()


def test_each_claim_of_others_has_a_section_with_a_verdict_and_a_row():
    """Every paper is linked, every line of the table has its section, and every section names a row of the ledger."""
    text = (ROOT / "docs/claims.md").read_text()
    assert all(f"[{paper}](https://arxiv.org/abs/{paper})" in text for paper in PAPERS)
    listed = re.findall(r"^\| \[[^]]+\]\(#([^)]+)\)", text, re.MULTILINE)
    sections = {slug(title): body for title, body in re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", text, re.MULTILINE)}
    assert len(listed) == len(set(listed)) == len(PAPERS) + 1 and listed == [*sections][:-1]
    for name in listed:
        assert "**Claim" in sections[name] and "ledger.md#" in sections[name], name


def slug(heading):
    """The anchor of a heading, as mkdocs makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


SHOWN = [
    pytest.param(code, output, id=f"{page.name}-{number}")
    for page in PAGES
    if page.name not in ELSEWHERE
    for number, (code, output) in enumerate(
        re.findall(r"```python\n((?:(?!```).)*?)```\n\n((?:    \S[^\n]*\n)+)", page.read_text(), re.DOTALL)
    )
]


@pytest.mark.parametrize(("code", "output"), SHOWN)
def test_what_a_page_shows_below_a_snippet_is_printed(code, output, capsys):
    """Line by line, but for residuals, which are rounding, and lines left out by an ellipsis."""

    def plain(text):
        return re.sub(r"residual \S+|≤ [\d.]+", "", " ".join(text.split()))

    exec(compile(code, "snippet", "exec"), {})
    printed = plain(capsys.readouterr().out)
    lines = [line for line in output.splitlines() if line.strip() != "…"]
    assert lines and all(plain(line) in printed for line in lines), printed
