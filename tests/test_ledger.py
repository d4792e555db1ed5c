"""The ledger: no empty cell, no name that does not resolve, nothing proved that it does not hold."""

import ast
import re
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import pytest

from proofs import CLAIMS, divergence_table
from rpg_ref import DIVERGENCES, RECIPES
from rpg_ref.cli import main
from rpg_ref.ledger import LEDGER, Claim, about, explain, locate, page
from rpg_ref.ledger import _escaped as escaped
from rpg_ref.ledger import _section as section

ROOT = Path(__file__).parents[1]
ROWS = [pytest.param(claim, id=claim.id) for claim in LEDGER.values()]
CELLS = [field.name for field in fields(Claim) if field.name not in ("about", "advice", "quantifiers")]


@cache
def functions(path: str) -> dict[str, set[str]]:
    """The test functions of a file, each with the names of its decorators."""
    tree = ast.parse((ROOT / path).read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            text = [ast.unparse(decorator) for decorator in node.decorator_list]
            found[node.name] = {re.match(r"[\w.]+", line).group() for line in text}
    return found


@cache
def anchors(path: str) -> set[str]:
    """The slugs of a page's headings, as mkdocs and GitHub make them."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("claim", ROWS)
def test_every_cell_is_filled_and_resolves(claim):
    assert all(getattr(claim, cell).strip() for cell in CELLS)
    assert claim.quantifiers["outcomes"] and all(claim.quantifiers.values())
    assert set(claim.about) <= RECIPES.keys() | DIVERGENCES.keys()
    assert re.fullmatch(r"rpg_ref/[\w/]+\.py:\d+", locate(claim.code))
    document, _, anchor = claim.docs.partition("#")
    assert anchor in anchors(document), sorted(anchors(document))


@pytest.mark.parametrize("claim", ROWS)
def test_its_tests_exist_and_are_of_their_kind(claim):
    """The property test draws its inputs, the exact test does not; `make test` runs both."""
    for node, drawn in ((claim.exact, False), (claim.property, True)):
        path, _, name = node.partition("::")
        decorators = functions(path)[name]
        assert ("given" in decorators) == drawn, node
        assert not {"pytest.mark.slow", "pytest.mark.full"} & decorators


@pytest.mark.parametrize("claim", ROWS)
def test_a_statement_is_one_line_of_balanced_latex(claim):
    assert claim.statement.count("{") == claim.statement.count("}") and "\n" not in claim.statement
    assert claim.statement.count(r"\left") == claim.statement.count(r"\right")
    assert not re.search(r"[^\x00-\x7f]|\$", claim.statement)


def test_each_row_has_a_proof_of_its_own_and_nothing_proved_is_left_out():
    """No row cites the proof of another statement: its id is its proof's, and its statement that proof's equations."""
    assert set(LEDGER) == set(CLAIMS)
    for claim in LEDGER.values():
        assert claim.proof == f"python -m proofs {claim.id}"
        assert (claim.statement, claim.quantifiers) == (CLAIMS[claim.id].statement, CLAIMS[claim.id].quantifiers)
        assert claim.statement not in [other.statement for other in LEDGER.values() if other.id != claim.id]


OWN = {
    "in_log_w": [r"\log^{2} w", r"\notin", r"(A+\beta)\,\log p"],  # PMD-mean's square; no objective; CPGD
    "reference_rule": [r"N\,\lambda", r"D\,\lambda"],  # the moving average
    "bounded_weight": [r"\bar w-w"],  # any weight, not 0 alone
    "iterated_reference": ["> 0", r"p_{\mathrm{once}}"],  # convex: never for three rewards; the exact exception for two
    "sampler_correction": [r"SG(\frac{q}{s})\,\ell", r"\ne"],  # any loss; token by token another objective
    "stale_sampler": [r"SG(\frac{q}{s})\,\ell", r"\frac{p_{\le t}}{s_{\le t}}", r"\mathbf 1_K"],  # levels; what is kept
    "stale_sampler_bias": [r"SG(\frac{s}{q})\,A", r"(\frac{s_{<t}}{q_{<t}}-1)\,(\frac{s_{t}}{q_{t}}-1)"],  # two orders
    "dropped_groups": [r"\mathbf 1_K"],
    "chain_rule": [r"\chi^2(p\|r) = E_{q}", r"Jeffreys(p\|r) = E_{q}"],
    "unnormalised_anchor": [r"\nabla Jeffreys(p\|q)\notin", r"\nabla JS(p\|q)\notin"],
    "algorithm_1_as_printed": [r"KL(p\|q)"],  # π_ref = π_old, as it is proved
    "group_std": [r"\varsigma_q", "G=4"],  # off-policy in an infinite group
    "tail_bucket": ["< 0", r"f(\bar v)"],  # without a bucket it may be negative; what a bucket loses, for any f
    "normalised_after_fusion": [r"\frac{G-1}{G}", r"\sqrt{E_{q}"],  # centred at any G; divided in an infinite group
    "dropped_prefix": [r"\sum_{k> t}", r"\frac{4}{5}"],  # every pair of tokens; the example that reaches the bound
}


@pytest.mark.parametrize("name", OWN)
def test_a_row_states_what_it_is_about(name):
    assert all(part in LEDGER[name].statement for part in OWN[name]), LEDGER[name].statement


HOLDS = {
    "group_mean": ("group size", "any G"),
    "leave_one_out": ("group size", "any G"),
    "monte_carlo_rate": ("group size", "any G"),
    "token_level": ("outcomes", "responses of 1 to 3 tokens"),
    "prefix_level": ("outcomes", "responses of 1 to 3 tokens"),
    "softmax_fisher": ("outcomes", "any number of them"),
    "natural_gradient": ("outcomes", "any number of them"),
    "one_idea": ("π_old", "of any mass Z"),
    "algorithm_1_as_printed": ("π_ref", "π_ref = π_old"),
    "grpo_on_policy": ("outcomes", "any number of them"),
    "no_kl": ("holds", "an exact witness"),
    "stale_sampler": ("versions", "by a chance that only what came before it decides"),
    "pass_at_k": ("reward", "0 or 1"),
    "best_response": ("opponent", "any"),
    "loss_and_reward": ("f", "any, twice differentiable"),
    "tail_bucket": ("K", "any set of outcomes"),
}


@pytest.mark.parametrize("name", HOLDS)
def test_a_row_says_for_what_it_holds(name):
    kind, text = HOLDS[name]
    assert text in LEDGER[name].quantifiers[kind]
    assert re.search(rf"^  {re.escape(kind)} +.*{re.escape(text)}", explain(name), re.MULTILINE)
    assert f"| {kind} | " in page()


SENTENCE = re.compile(r"[A-Z][^\n!?]*[^.!?\s]\.")


@pytest.mark.parametrize("claim", ROWS)
def test_advice_is_one_sentence_that_is_printed(claim):
    """Any claim may carry advice: here each is given one, and prints it; its own, if it has one, is one sentence."""
    given = replace(claim, advice="Divide by a constant.")
    assert re.search(r"^  advice +Divide by a constant\.$", str(given), re.MULTILINE)
    assert "\n| advice | Divide by a constant. |\n" in section(given)
    advice = claim.advice
    assert (f"| advice | {escaped(advice)} |" in section(claim)) == bool(advice)
    assert bool(re.search(r"^  advice ", str(claim), re.MULTILINE)) == bool(advice)
    if advice:
        assert SENTENCE.fullmatch(advice) and ". " not in advice and len(advice.split()) <= 40
        assert advice in explain(claim.id) and escaped(advice) in page()


@pytest.mark.parametrize("wrong", ["no capital.", "No end", "Two. Sentences.", "Two\nlines."])
def test_what_is_no_sentence_is_seen(wrong):
    assert not SENTENCE.fullmatch(wrong) or ". " in wrong


def test_every_recipe_and_divergence_has_a_claim():
    assert not [name for name in RECIPES.keys() | DIVERGENCES.keys() if not about(name)]


def test_what_is_claimed_of_every_divergence_is_proved_of_every_one():
    assert set(LEDGER["divergence_table"].about) == DIVERGENCES.keys() == divergence_table.TABLE.keys()
    assert LEDGER["divergence_table"].about == LEDGER["curvature"].about


def test_no_name_means_two_things():
    tables = (RECIPES.keys(), RECIPES.aliases.keys(), DIVERGENCES.keys(), LEDGER.keys())
    assert sum(map(len, tables)) == len(set().union(*tables))


def test_the_page_is_the_table():
    assert (ROOT / "docs/ledger.md").read_text() == page() + "\n", "run `make ledger`"


@pytest.mark.parametrize("name", [*RECIPES, *RECIPES.aliases, *DIVERGENCES, *LEDGER])
def test_explain_says_where_everything_is(name):
    text = explain(name)
    for path, line in re.findall(r"(rpg_ref/[\w/]+\.py):(\d+)", text):
        code = (ROOT / path).read_text().splitlines()[int(line) - 1]
        assert re.match(r'(def|class|@dataclass)\b|\s+("|_row\()', code), f"{path}:{line} is {code!r}"
    assert "None" not in re.sub(r'"\w+", None', "", text)


def test_explain_a_recipe():
    text = explain("grpo")
    assert "E[R] − 0.04·KL(ref‖π) per token" in text and "the gradient of no known objective" in text
    assert "rpg_ref/ppo.py" in text and "(ppo:grpo_loss)" in text and "DualClip(low=0.2, high=0.2, dual=inf)" in text
    assert "grpo_on_policy: claim" in text and "python -m proofs grpo_on_policy" in text
    assert explain("rpg-urkl-clip") == explain("rpg-reinforce-urkl-clip")


def test_explain_a_divergence():
    text = explain("urkl")
    assert '_row("urkl", {_CURRENT: f_urkl}, f_urkl, lambda d: d * d.exp())' in text and "grpo-corrected" in text
    assert "Σ_t E_old[w_<t^2·u_<t^-1·u_t·f]" in explain("chi2")
    assert "Σ_t E_old[w_<t·u_t·f] + Σ_t E_old[u_<t·u_t·f]" in explain("jeffreys")
    assert "none over tokens is known" in explain("js")


def test_the_command(capsys):
    assert main(["explain", "one_idea", "urkl"]) == 0
    assert capsys.readouterr().out == f"{explain('one_idea')}\n\n{explain('urkl')}\n"
    assert main(["explain"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(LEDGER) and all(len(line.split()) > 1 for line in listed)


def test_an_unknown_name_lists_the_nearest(capsys):
    assert main(["explain", "prop_3_2"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "'prop_3_2'" in err and "prop_3_2_ufkl" in err
