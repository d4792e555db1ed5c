"""What it takes to be proved: every residual is exactly zero, and every plausible mistake is refuted by the same run.

Source: the exactness of zero-testing is sympy's (rational functions over independent generators); the refutations are
interval arithmetic, mpmath's `iv`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import sympy as sp
from mpmath import iv
from sympy.core.function import AppliedUndef

from proofs.expectations import Equation

MIN_NEAR_MISSES = 2


@dataclass(frozen=True)
class Claim:
    """One statement, the equations that are it, and the mistakes that are not.

    Attributes:
        id: the name on the command line.
        statement: the claim in one line.
        source: where it is stated.
        identities: builds the equations by name; called only when the claim is checked.
        near_misses: builds, by name, equations someone could believe and that must be false.

    Source: the form of PAPER-to-proof rows in the project's ledger.
    """

    id: str
    statement: str
    source: str
    identities: Callable[[], Mapping[str, Equation]]
    near_misses: Callable[[], Mapping[str, Equation]]


@dataclass(frozen=True)
class Verdict:
    """The outcome of `check`: counts, and one phrase for each thing that went wrong. Source: `check`."""

    claim: Claim
    proved: int
    refuted: int
    failures: tuple[str, ...]

    def __str__(self) -> str:
        """Return the phrase the certificate prints."""
        if self.failures:
            return "FAILED: " + "; ".join(self.failures)
        return f"proved; {self.refuted} near misses refuted"


def check(claim: Claim) -> Verdict:
    """Prove every identity of the claim and refute every near miss.

    Source: `residual` and `is_refuted`, below.
    """
    identities, near_misses = claim.identities(), claim.near_misses()
    failures = [f"residual of “{name}” is not zero" for name, equation in identities.items() if residual(equation) != 0]
    unproved = len(failures)
    if not identities:
        failures.append("no identity is stated")
    if len(near_misses) < MIN_NEAR_MISSES:
        failures.append(f"{len(near_misses)} near misses are stated, {MIN_NEAR_MISSES} are needed")
    refuted = 0
    for name, equation in near_misses.items():
        difference = residual(equation)
        if difference == 0:
            failures.append(f"near miss “{name}” is true")
        elif not is_refuted(difference):
            failures.append(f"near miss “{name}” is undecided")
        else:
            refuted += 1
    return Verdict(claim, len(identities) - unproved, refuted, tuple(failures))


def residual(equation: Equation) -> sp.Expr:
    """Return left minus right as one cancelled fraction; it is the number 0 when the equation holds.

    Logarithms of products are split first, so that the remaining ones are independent generators.
    Source: the normal form of rational functions, sympy's `cancel`.
    """
    left, right = equation
    difference = sp.sympify(left - right).doit()
    difference = difference.replace(sp.log, lambda a: sp.expand_log(sp.log(sp.factor(a)), force=True))
    return sp.cancel(difference)


def is_refuted(difference: sp.Expr) -> bool:
    """Return whether the difference is provably non-zero at one rational witness point.

    The witness gives each free symbol, and each value or derivative of an arbitrary function, its own rational number:
    some smooth function takes them. All lie below ½, so that a last probability 1 − p₁ − p₂ is positive.
    Source: interval arithmetic; an interval that excludes zero is a proof.
    """
    unknowns = difference.atoms(sp.Derivative, AppliedUndef) | difference.free_symbols
    # Outermost first: f(p(θ)/r) and ∂p(θ) must be replaced before the p(θ) and θ they contain.
    outermost_first = sorted(unknowns, key=lambda e: (-e.count(sp.Basic), not e.is_Derivative, str(e)))
    for k, unknown in enumerate(outermost_first):
        difference = difference.subs(unknown, sp.Rational((37 * k + 11) % 97 + 1, 199))
    enclosure = _interval(difference)
    return bool(enclosure.a > 0 or enclosure.b < 0)


def _interval(e: sp.Expr) -> iv.mpf:
    """Return an interval that contains the number e."""
    if e.is_Rational:
        return iv.mpf(e.p) / e.q
    parts = [_interval(part) for part in e.args]
    if e.is_Pow and e.exp.is_Integer:
        return parts[0] ** int(e.exp)
    evaluate = {sp.Add: lambda *a: sum(a), sp.Mul: lambda *a: prod(a), sp.log: iv.log, sp.exp: iv.exp}
    return evaluate[e.func](*parts)
