"""`python -m proofs.tamper [NAME ...]`: change every claim mechanically, one place at a time, and refute every change.

A statement is one object, so that a change is made in what is printed and in what is proved alike. The kinds:

    constant    a number n becomes n + 1
    exponent    an exponent grows by one, away from 0
    sign        a term of a sum, a factor −1, or one side of the statement changes its sign
    direction   one policy for another (p, q, r), one ratio for another (w, u, v), a divergence's arguments exchanged
    weight      a factor is dropped, or doubled (squared)
    prefix      the tokens before t, up to t, t alone, and the one before t, one for another (in a tree)
    index       the index of one sum for that of another; all others for all
    detach      a stop-gradient is taken away, or put around a live ratio of which a gradient is taken
    relation    = for ≠, < for >, a gradient in a span for one outside, and the like

A change is refuted as a near miss is: an enclosure at a witness excludes equality. What survives counts as true only
if an enumeration at three random points agrees to 25 digits, and the exact proof goes through as well; it is listed
with the reason why the change makes no difference. A change that the language refuses, such as a derivative in v of
what moves otherwise, has no meaning: it could not be stated. Anything else fails the run.

Source: mutation testing; ours.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import sympy as sp

from proofs import CLAIMS, language
from proofs.certificate import (
    DIFFERENT,
    DIVERGENCE,
    EQUAL,
    LESS,
    NO_COMBINATION,
    POSITIVE,
    Claim,
    Statement,
    agrees,
    has_values,
    is_proved,
    is_refuted,
    witnesses_against,
)
from proofs.symbols import RATIOS, K, R, p, q, q_tilde, r, s, u, v, w
from proofs.worlds import Numbers, Tree

POLICIES = (p, q, r)
SWAPPED = {
    **{x: tuple(y for y in POLICIES if y != x) for x in POLICIES},
    q_tilde: (p, r),
    s: (q, p),
    **{x: tuple(y for y in (w, u, v) if y != x) for x in (w, u, v)},
}
SCOPES = (language.WITHIN, language.PAST, language.THROUGH, language.LAST)
Change = tuple[str, sp.Expr]


@dataclass(frozen=True)
class Tampered:
    """One change of one statement of a claim. Source: ours."""

    claim: str
    kind: str
    before: Statement
    after: Statement

    def __str__(self) -> str:
        """Return both statements."""
        return f"{self.claim}, {self.kind}:\n  {self.before}\n  {self.after}"


def _of_number(e: sp.Expr) -> Iterator[Change]:
    if e.is_Rational:
        yield "constant", e + 1
        if e != 0:
            yield "sign", -e


def _of_symbol(e: sp.Expr) -> Iterator[Change]:
    for other in SWAPPED.get(e, ()):
        yield "direction", other


def _of_power(e: sp.Expr) -> Iterator[Change]:
    if e.is_Pow and e.base != sp.E and e.exp.is_Rational:
        yield "exponent", e.base ** (e.exp + sp.sign(e.exp))


def _of_sum(e: sp.Expr) -> Iterator[Change]:
    if e.is_Add:
        for term in e.args:
            yield "sign", e - 2 * term


def _of_product(e: sp.Expr) -> Iterator[Change]:
    if e.is_Mul:
        for factor in e.args:
            if factor == -1:
                yield "sign", -e
            elif not factor.is_Rational:
                yield "weight", e / factor
                yield "weight", e * factor


def _of_divergence(e: sp.Expr) -> Iterator[Change]:
    if hasattr(e.func, "definition"):
        yield "direction", e.func(*reversed(e.args))


def _of_scope(e: sp.Expr) -> Iterator[Change]:
    if e.func is language.At and e.args[0] in (*RATIOS, p, q, r, s):
        for scope in SCOPES:
            if scope != e.args[2]:
                yield "prefix", language.At(*e.args[:2], scope)


def _of_range(e: sp.Expr) -> Iterator[Change]:
    value, index, relation, other = e.args if e.func is language.Over else (None,) * 4
    if relation == language.NOT:
        yield "index", language.Over(value, index, language.ALL, index)
    if relation == language.FROM:
        yield "index", language.Over(value, index, language.AFTER, other)
        yield "index", language.Over(value, index, language.UP_TO, other)


def _of_stop(e: sp.Expr) -> Iterator[Change]:
    if e.func is language.SG:
        yield "detach", e.args[0]


RULES: tuple[Callable[[sp.Expr], Iterator[Change]], ...] = (
    _of_number,
    _of_symbol,
    _of_power,
    _of_sum,
    _of_product,
    _of_divergence,
    _of_scope,
    _of_range,
    _of_stop,
)


def _places(e: sp.Expr) -> range | list[int]:
    """The arguments in which a change is one of the kinds: no index, no scope, no exponent."""
    if e.func in (language.At, language.Over):
        return [0]
    if e.func in (language.Next, language.Given):
        return [1, 2]
    if e.func in (language.Slope, language.Limit, language.By):
        return [0]
    if e.is_Pow and (e.base == sp.E or not e.exp.is_Rational):
        return range(2)
    return [0] if e.is_Pow else range(len(e.args))


def _indices(e: sp.Expr, bound: frozenset[sp.Symbol]) -> Iterator[Change]:
    if e.func is language.At:
        for other in sorted(bound - {e.args[1]}, key=str):
            yield "index", language.At(e.args[0], other, e.args[2])


def _detached(e: sp.Expr) -> Iterator[Change]:
    if e in (w, v) or (e.func is language.At and e.args[0] in (w, v)):
        yield "detach", language.SG(e)


def changes(e: sp.Expr, bound: frozenset[sp.Symbol] = frozenset(), *, live: bool = False) -> Iterator[Change]:
    """Return every change of an expression, one place at a time.

    Args:
        e: the expression.
        bound: the indices of the sums it stands in.
        live: whether a gradient is taken of it.

    Returns:
        The kind and the changed expression.

    Source: ours.
    """
    for rule in RULES:
        yield from rule(e)
    yield from _indices(e, bound)
    if live:
        yield from _detached(e)
    live = (live or (e.func is language.Grad and e.args[0].func is not sp.log)) and e.func is not language.SG
    live = live and e.func is not language.At
    if e.func is language.Over:
        bound |= {e.args[1]}
    for place in _places(e):
        if e.is_Mul and e.args[place] == -1:
            continue  # a sign, changed above
        for kind, changed in changes(e.args[place], bound, live=live):
            args = list(e.args)
            args[place] = changed
            yield kind, e.func(*args)


def _relations(statement: Statement) -> Iterator[Change]:
    other = {DIFFERENT: EQUAL, LESS: POSITIVE, POSITIVE: LESS, EQUAL: DIFFERENT}
    if statement.relation in other:
        yield "relation", replace(statement, relation=other[statement.relation])
    if statement.relation == DIVERGENCE:
        yield "relation", replace(statement, left=-statement.left)
    if statement.relation == NO_COMBINATION:
        for member in statement.right:
            yield "relation", replace(statement, left=member)


def tampered(claim: Claim) -> Iterator[Tampered]:
    """Return every change of every statement of the claim that is another statement. Source: ours."""
    seen = set()
    for before in claim.statements:
        for kind, after in _of_statement(before):
            if kind == "prefix" and not isinstance(before.world, Tree):
                continue
            key = (after.left, after.relation, after.right, tuple(after.definitions.items()), id(after.world))
            if key not in seen and after != before:
                seen.add(key)
                yield Tampered(claim.id, kind, before, after)


def _of_statement(statement: Statement) -> Iterator[tuple[str, Statement]]:
    yield from _relations(statement)
    if statement.relation not in (EQUAL, DIVERGENCE):
        return  # what is different, or smaller in an example, mostly stays so
    sides = ("left", "right") if statement.relation == EQUAL else ("left",)
    for side in sides:
        e = getattr(statement, side)
        if statement.relation == EQUAL and e != 0:
            yield "sign", replace(statement, **{side: -e})
        for kind, changed in changes(e):
            yield kind, replace(statement, **{side: changed})
    for name, e in statement.definitions.items():
        for kind, changed in changes(e):
            yield kind, replace(statement, definitions={**statement.definitions, name: changed})


MANY = 60
REFUTED, NO_VALUE, NO_MEANING = "refuted", "no value", "no meaning"
TRUE, ENUMERATED, SURVIVED = "true", "enumerated", "survived"
VERDICTS = (REFUTED, NO_VALUE, NO_MEANING, TRUE, ENUMERATED, SURVIVED)


def verdict(change: Tampered) -> str:
    """Return what becomes of a change. Source: `proofs.certificate`.

    refuted: it is false. no value: it is false too, since a side has no real value, such as the logarithm of a negative
    number, where the statement it was made from has one. no meaning: the language refuses it, such as a derivative in v
    of what moves otherwise. true: three points agree and it is proved. enumerated: three
    points agree, but the exact proof does not go through. survived: anything else, which is a failure.
    """
    if is_refuted(change.after):
        return REFUTED
    had_values = has_values(change.before)
    try:
        if not has_values(change.after):
            return NO_VALUE if had_values else SURVIVED
    except ValueError:
        return NO_MEANING if had_values else SURVIVED
    if change.after.relation == EQUAL and isinstance(change.after.world, Numbers):
        # A comparison may fall out as before at some witnesses: many more are cheap where nothing is summed.
        if witnesses_against(change.after, range(MANY)):
            return REFUTED
    if change.after.relation in (EQUAL, DIVERGENCE) and not agrees(change.after):
        return SURVIVED
    try:
        proved = is_proved(change.after)
    except (ArithmeticError, ValueError):  # such as a comparison that signs do not decide
        proved = False
    return TRUE if proved else ENUMERATED if change.after.relation in (EQUAL, DIVERGENCE) else SURVIVED


REASONS = {
    "constant": "the term that changed is a constant in θ, or has a mean that is: a policy adds up to one",
    "sign": "the term that changed has no mean, or a mean that is constant in θ: a policy adds up to one",
    "weight": "the factor stands where the mean is zero, or is constant in θ, whatever the factor",
    "direction": "the policy that was exchanged stands in a term that is constant in θ, or in a symmetric place",
    "prefix": "what differs is a weight of mean one, independent of the rest of its term",
    "index": "the terms that differ have no mean: a later token's score is zero on average, given its history",
    "detach": "no gradient flows through what was detached or set free, on average",
    "exponent": "the power stands where the value is zero or one",
    "relation": "the property stays",
}


def _sides(statement: Statement) -> tuple[sp.Expr, ...]:
    right = statement.right if isinstance(statement.right, tuple) else (statement.right,)
    return statement.left, *right


def reason(change: Tampered) -> str:
    """Return why a change makes no difference. Source: ours."""
    before, after = change.before, change.after
    if before.definitions != after.definitions:
        return "both sides use the definition, and agree on it as they did"
    if isinstance(before.world, Numbers) and before.world.region:
        return "everywhere in the region the comparison falls out as it did, or the side is constant"
    if before.left.has(language.By):
        return "the term that changed is constant in the number that moves, or linear where two derivatives are taken"
    if sp.S.Zero in (before.left, before.right) and sp.S.Zero in (after.left, after.right):
        return "what was zero stays zero"
    squares = {K**2: K, (1 - K) ** 2: 1 - K} | ({R**2: R} if before.world.right else {})
    if tuple(x.xreplace(squares) for x in _sides(after)) == _sides(before):
        return "what is 0 or 1 is its own square"
    return REASONS[change.kind]


def main(names: list[str]) -> int:
    """Tamper with the named claims, or all; return 0 only if nothing survived that is not true. Source: ours."""
    counts: Counter[tuple[str, str]] = Counter()
    kept: list[Tampered] = []
    for name in names or CLAIMS:
        for change in tampered(CLAIMS[name]):
            found = verdict(change)
            counts[change.kind, found] += 1
            if found in (TRUE, ENUMERATED):
                print(f"{found}: {change}\n  {reason(change)}", flush=True)
            if found == SURVIVED:
                print(f"{found}: {change}", flush=True)
                kept.append(change)
    kinds = sorted({kind for kind, _ in counts})
    print(f"{'kind':<10}" + "".join(f"{x:>13}" for x in VERDICTS))
    for kind in kinds:
        print(f"{kind:<10}" + "".join(f"{counts[kind, x]:>13}" for x in VERDICTS))
    print(f"{'all':<10}" + "".join(f"{sum(counts[kind, x] for kind in kinds):>13}" for x in VERDICTS))
    return int(bool(kept))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
