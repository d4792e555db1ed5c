"""The ledger of claims: each statement, where it is made, and the roads that check it.

The rows are in ledger.toml. What each states, and for what it holds, is in statements.toml: written from the proofs.
"""

import inspect
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from importlib.resources import files
from typing import Any

from rpg_ref.checks import Table
from rpg_ref.divergences import DIVERGENCES, History
from rpg_ref.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class Claim:
    """One statement and everything that vouches for it.

    Attributes:
        id: the name by which it is looked up.
        statement: in LaTeX, printed from the equations that ``python -m proofs ID`` proves; p = π_θ, q = π_old, r =
            π_ref, w = p/q, v = p/r, u = r/q.
        quantifiers: for what it holds, by kind: the outcomes, the policies, their masses, the group size.
        source: who states it.
        proof: the command that proves the statement.
        exact: a test that holds it by enumeration, as pytest names it.
        property: a test of it on random inputs, as pytest names it.
        docs: the page and heading that explain it.
        code: what implements it, ``module:name`` within rpg_ref.
        about: the recipes and divergences it speaks of; empty: of none in particular. In the file "divergences"
            stands for every row of the table of divergences.
        advice: what a practitioner should do about it, in one sentence; empty where it changes nothing.

    Source: ours.
    """

    id: str
    statement: str
    quantifiers: dict[str, str]
    source: str
    proof: str
    exact: str
    property: str
    docs: str
    code: str
    about: tuple[str, ...] = ()
    advice: str = ""

    def __str__(self) -> str:
        """Return the row as text, a cell a line."""
        cells = {field.name: getattr(self, field.name) for field in fields(self)}
        cells |= {"code": f"{locate(self.code)} ({self.code})", "about": ", ".join(self.about)}
        title, statement, holds = f"{cells.pop('id')}: claim", cells.pop("statement"), cells.pop("quantifiers")
        return _block(title, {"statement": statement, **holds, **cells})


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(files("rpg_ref").joinpath(name).read_text(encoding="utf-8"))


def _load() -> Table[Claim]:
    stated, claims = _read("statements.toml"), {}
    for row in _read("ledger.toml")["claim"]:
        name = row["id"]
        about = tuple(DIVERGENCES if row.get("about") == "divergences" else row.get("about", ()))
        claims[name] = Claim(**stated[name], **{**row, "proof": f"python -m proofs {name}", "about": about})
    return Table("claim", claims)


LEDGER: Table[Claim] = _load()
"""Every claim by id, in the order in which one would read them.

Source: PAPER §2–9 and ERRATA, each row naming its own.
"""


def locate(code: str) -> str:
    """Return file and line of a function, a class or a table's row within rpg_ref.

    Args:
        code: such as "surrogates:weight" or "divergences:DIVERGENCES[urkl]".

    Returns:
        Such as "rpg_ref/surrogates.py:85".

    Raises:
        AttributeError, UnknownName: nothing there is called that.

    Source: ours.
    """
    place, _, name = code.partition(":")
    table, _, row = name.removesuffix("]").partition("[")
    module = import_module(f"rpg_ref.{place}")
    found = getattr(module, table)
    if row:
        _ = found[row]
        starts = (f'"{row}":', f'_row("{row}"')
        source = inspect.getsource(module).splitlines()
        line = next(n for n, text in enumerate(source, start=1) if text.strip().startswith(starts))
    else:
        line = inspect.getsourcelines(found)[1]
    return f"rpg_ref/{place.replace('.', '/')}.py:{line}"


def explain(name: str) -> str:
    """Return what is known of a recipe, a divergence or a claim: loss, objectives, proof, source, file and line.

    Args:
        name: a name in RECIPES, DIVERGENCES or LEDGER.

    Returns:
        Several lines of text.

    Raises:
        ValueError: no such name; the nearest are listed.

    Source: ours.
    """
    tellers: dict[str, Callable[[], str]] = {
        **{key: partial(_recipe, RECIPES[key]) for key in (*RECIPES, *RECIPES.aliases)},
        **{key: partial(_divergence, key) for key in DIVERGENCES},
        **{key: partial(str, claim) for key, claim in LEDGER.items()},
    }
    return Table("recipe, divergence or claim", tellers)[name]()


def about(name: str) -> list[Claim]:
    """Return the claims about a recipe or a divergence.

    Args:
        name: of the recipe or divergence.

    Returns:
        In the ledger's order.

    Source: ours.
    """
    return [claim for claim in LEDGER.values() if name in claim.about]


def _recipe(recipe: Recipe) -> str:
    loss = f"{recipe.loss.__module__.removeprefix('rpg_ref.')}:{recipe.loss.__name__}"
    bounds = [str(x) for x in (recipe.clip, recipe.bound) if x is not None]
    of = "a critic's advantages" if recipe.critic else recipe.baseline
    choices = [f"β = {recipe.beta:g}", f"{recipe.level} level", of, recipe.aggregation, *bounds]
    cells = {
        "loss": (recipe.loss.__doc__ or "").partition("\n")[0],
        "code": f"{locate(loss)} ({loss})",
        "divergence": f"{recipe.divergence}, {locate(f'divergences:DIVERGENCES[{recipe.divergence}]')}",
        "on-policy": str(recipe.on_policy or "the gradient of no known objective"),
        "off-policy": str(recipe.off_policy or "the gradient of no known objective"),
        "exact under": recipe.exact_under,
        "choices": ", ".join(choices),
        "check": f"rpg-ref verify {recipe.name}",
    }
    return _with_claims(recipe.name, _block(f"{recipe.name}: recipe", cells))


def _divergence(name: str) -> str:
    place = locate(f"divergences:DIVERGENCES[{name}]")
    source = inspect.getsource(import_module("rpg_ref.divergences")).splitlines()
    cells = {
        "row": " ".join(source[int(place.rpartition(":")[2]) - 1].split()),
        "code": place,
        "chain rule": " + ".join(map(_history, DIVERGENCES[name].history)) or "none over tokens is known",
        "recipes": ", ".join(recipe.name for recipe in RECIPES.values() if recipe.divergence == name),
    }
    return _with_claims(name, _block(f"{name}: divergence", cells))


def _history(term: History) -> str:
    powers = [f"{x}^{power}" for x, power in (("w_<t", term.w), ("u_<t", term.u)) if power]
    return f"Σ_t E_old[{'·'.join(powers)}·u_t·f]".replace("^1", "")


def _with_claims(name: str, head: str) -> str:
    return "\n\n".join([head, *map(str, about(name))])


def _block(title: str, cells: dict[str, str]) -> str:
    width = max(map(len, cells))
    return "\n".join([title, *(f"  {key:<{width}}  {cell}" for key, cell in cells.items() if cell)])


def page() -> str:
    """Return the ledger as a page: the claims in order, a table of cells each.

    Returns:
        Markdown, whose statements are LaTeX between dollar signs.

    Source: ours.
    """
    head = """# The ledger of claims

Every numbered statement of the paper and every fact of this project, with the three roads that must meet for it: a
proof in symbols, a test by enumeration, a property on random inputs. p = π_θ, q = π_old, r = π_ref; w = p/q, v = p/r,
u = r/q. A statement is printed from the very equations that are proved, and the rows above its source say for what they
hold; a number in brackets counts the equations of the statement. Made from `rpg_ref/ledger.toml` and from `proofs` by
`make ledger`; `rpg-ref explain NAME` prints a row, with file and line."""
    return "\n\n".join([head, *map(_section, LEDGER.values())])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _section(claim: Claim) -> str:
    document, _, anchor = claim.docs.removeprefix("docs/").partition("#")
    rows = {
        **{kind: _escaped(text) for kind, text in claim.quantifiers.items()},
        "source": claim.source,
        "proof": f"`{claim.proof}`",
        "exact test": f"`{claim.exact}`",
        "property test": f"`{claim.property}`",
        "explained": f"[{document.removesuffix('.md')}, {anchor.replace('-', ' ')}]({document}#{anchor})",
        "code": f"`{claim.code}`",
        "about": ", ".join(f"`{name}`" for name in claim.about),
    }
    lines = (f"| {key} | {cell} |" for key, cell in rows.items() if cell)
    return "\n".join([f"## {claim.id}", "", *_formulas(claim.statement), "| | |", "|---|---|", *lines])


def _formulas(statement: str) -> list[str]:
    """Return a statement's equations as lines of Markdown, a formula each, numbered if there are several."""
    stated, _, defined = statement.partition(r";\quad ")
    equations = stated.split(r",\qquad ")
    numbers = [rf"\text{{({n})}}\quad " if len(equations) > 1 else "" for n in range(1, len(equations) + 1)]
    formulas = [number + equation for number, equation in zip(numbers, equations, strict=True)]
    return [line for formula in (*formulas, *filter(None, [defined])) for line in (f"$$ {formula} $$", "")]
