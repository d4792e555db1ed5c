"""What it takes to be proved: every residual is exactly zero, and the same run refutes every plausible mistake.

Source: two decision procedures; zero-testing of rational functions (sympy) and interval arithmetic (mpmath's `iv`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from math import prod

import sympy as sp
from mpmath import iv
from sympy.core.function import AppliedUndef
from sympy.polys.rings import PolyRing

from proofs.expectations import Equation

MIN_NEAR_MISSES = 2  # fewer would not show that the check can tell right from wrong


@dataclass(frozen=True)
class Claim:
    """One statement, the equations that make it up, and the mistakes next to it.

    Attributes:
        id: the name on the command line.
        statement: the claim in one line.
        source: where it is stated.
        identities: builds the equations, by name; called only when the claim is checked.
        near_misses: builds the equations someone could believe and that must be false, by name.

    Source: ours.
    """

    id: str
    statement: str
    source: str
    identities: Callable[[], Mapping[str, Equation]]
    near_misses: Callable[[], Mapping[str, Equation]]


@dataclass(frozen=True)
class Verdict:
    """What `check` found: how much was proved and refuted, and one phrase for each failure. Source: ours."""

    proved: int
    refuted: int
    failures: tuple[str, ...]

    def __str__(self) -> str:
        """Return the phrase that the certificate prints."""
        if self.failures:
            return "FAILED: " + "; ".join(self.failures)
        return f"proved; {self.refuted} near misses refuted"


def check(claim: Claim) -> Verdict:
    """Prove every identity of the claim and refute every near miss.

    A near miss that is true fails, and so does one that cannot be decided.
    Source: `residual` and `is_refuted`.
    """
    identities, near_misses = claim.identities(), claim.near_misses()
    unproved = [f"“{name}” leaves a residual" for name, equation in identities.items() if residual(equation) != 0]
    unrefuted = [
        f"near miss “{name}” is {'true' if residual(equation) == 0 else 'undecided'}"
        for name, equation in near_misses.items()
        if not is_refuted(equation)
    ]
    failures = [*unproved, *unrefuted]
    if not identities:
        failures.append("no identity is stated")
    if len(near_misses) < MIN_NEAR_MISSES:
        failures.append(f"{len(near_misses)} near misses are stated and {MIN_NEAR_MISSES} needed")
    return Verdict(len(identities) - len(unproved), len(near_misses) - len(unrefuted), tuple(failures))


def residual(equation: Equation) -> sp.Expr:
    """Return left minus right, as the expanded numerator of one fraction: the number 0 only if the equation holds.

    Logarithms of products are split first. Everything positive is declared so, hence no branch is chosen.
    Source: a fraction whose numerator vanishes is zero.
    """
    left, right = equation
    difference = (left - right).doit().replace(sp.log, lambda a: sp.expand_log(sp.log(sp.factor(a))))
    numerator = sp.numer(sp.together(difference))
    return sp.S.Zero if _is_zero_polynomial(numerator) else numerator.expand()


def _is_zero_polynomial(expression: sp.Expr) -> bool:
    """Whether it vanishes with every function in it taken for a variable of its own; many times faster than expand."""
    variables = sorted(_variables(expression), key=str)
    return not (PolyRing(variables, sp.QQ).from_expr(expression) if variables else expression)


def _variables(expression: sp.Expr) -> set[sp.Expr]:
    if expression.is_Rational:
        return set()
    if expression.is_Add or expression.is_Mul:
        return set().union(*map(_variables, expression.args))
    if expression.is_Pow and expression.exp.is_Integer and expression.exp > 0:
        return _variables(expression.base)
    return {expression}


def is_refuted(equation: Equation) -> bool:
    """Return whether left minus right is provably non-zero at one rational witness point.

    The witness gives each derivative, each function of a bare symbol, each symbol, and then each value of f at a
    rational its own positive rational: some smooth function takes them all. A value of f at anything else decides
    nothing, since two spellings of one number would look like two.
    Source: an interval that holds the exact value and excludes zero is a proof.
    """
    left, right = equation
    difference = (left - right).doit()
    numbers = (sp.Rational((37 * k + 11) % 97 + 1, 100) for k in count())
    for unknowns_of in (
        lambda d: d.atoms(sp.Derivative),
        lambda d: {call for call in d.atoms(AppliedUndef) if all(a.is_Symbol for a in call.args)},
        lambda d: d.free_symbols,
        lambda d: {call for call in d.atoms(AppliedUndef) if all(a.is_Rational for a in call.args)},
    ):
        unknowns = sorted(unknowns_of(difference), key=str)
        difference = difference.xreplace(dict(zip(unknowns, numbers, strict=False)))
    enclosure = _interval(difference)
    return bool(enclosure.a > 0 or enclosure.b < 0)


def _interval(number: sp.Expr) -> iv.mpf:
    if number.is_Rational:
        return iv.mpf(number.p) / number.q
    parts = [_interval(part) for part in number.args]
    if number.is_Pow and number.exp.is_Integer:
        return parts[0] ** int(number.exp)
    return _ENCLOSURES.get(number.func, _anything)(*parts)


def _power(base: iv.mpf, exponent: iv.mpf) -> iv.mpf:
    return iv.exp(exponent * iv.log(base)) if base.a > 0 else _anything()


def _anything(*_: iv.mpf) -> iv.mpf:
    return iv.mpf(["-inf", "inf"])  # a function without a known enclosure decides nothing


_ENCLOSURES = {sp.Add: lambda *a: sum(a), sp.Mul: lambda *a: prod(a), sp.Pow: _power, sp.log: iv.log, sp.exp: iv.exp}
