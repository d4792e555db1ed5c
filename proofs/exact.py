"""Exact numbers with unknowns: sums of products of powers, where a logarithm or a value of f is an unknown of its own.

Two expressions that are equal for all values of their unknowns have one normal form, up to denominators: a power of a
sum is an unknown too, and `is_zero` multiplies it out. What is zero here is zero whatever the unknowns stand for.

Source: the distributive law.
"""

from collections.abc import Hashable, Mapping
from fractions import Fraction
from functools import cache
from itertools import count
from math import floor

import sympy as sp

Unknown = tuple[Hashable, ...]
Powers = tuple[tuple[int, Fraction], ...]  # unknowns by number, each with its exponent

_number: dict[Unknown, int] = {}
_unknown: list[Unknown] = []


def intern(unknown: Unknown) -> int:
    """Return the number of an unknown. Source: ours."""
    if unknown not in _number:
        _number[unknown] = len(_unknown)
        _unknown.append(unknown)
    return _number[unknown]


def unknown_of(number: int) -> Unknown:
    """Return the unknown of a number. Source: ours."""
    return _unknown[number]


def _times(first: Powers, second: Powers) -> tuple[Powers, Fraction]:
    """Return the product, and the rational number that whole powers of primes amount to."""
    powers, scale = dict(first), Fraction(1)
    for unknown, exponent in second:
        total = powers.pop(unknown, 0) + exponent
        kind = _unknown[unknown][0]
        if kind == "prime" and floor(total):
            scale *= Fraction(_unknown[unknown][1]) ** floor(total)
            total -= floor(total)
        if kind == "indicator" and total > 0:
            total = Fraction(1)
        if total:
            powers[unknown] = total
    return tuple(sorted(powers.items())), scale


class NoValueError(ValueError):
    """An expression has no real value here: the logarithm or a root of a negative number. Source: ours."""


class Poly:
    """A sum of rational multiples of products of powers of unknowns. Source: ours."""

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[Powers, Fraction] | int | Fraction = 0) -> None:
        """Take the terms, or one number. Source: ours."""
        if isinstance(terms, (int, Fraction)):
            terms = {(): Fraction(terms)} if terms else {}
        self.terms = dict(terms)

    def __add__(self, other: "Poly") -> "Poly":
        """Return the sum. Source: definition."""
        if not self.terms:
            return other
        terms = dict(self.terms)
        for powers, coefficient in other.terms.items():
            total = terms.get(powers, 0) + coefficient
            if total:
                terms[powers] = total
            else:
                terms.pop(powers, None)
        return Poly(terms)

    def __neg__(self) -> "Poly":
        """Return the negative. Source: definition."""
        return Poly({powers: -coefficient for powers, coefficient in self.terms.items()})

    def __sub__(self, other: "Poly") -> "Poly":
        """Return the difference. Source: definition."""
        return self + -other

    def __mul__(self, other: "Poly") -> "Poly":
        """Return the product. Source: the distributive law."""
        terms: dict[Powers, Fraction] = {}
        for first, x in self.terms.items():
            for second, y in other.terms.items():
                powers, scale = _times(first, second)
                terms[powers] = terms.get(powers, 0) + x * y * scale
        return Poly({powers: coefficient for powers, coefficient in terms.items() if coefficient})

    def power(self, exponent: Fraction) -> "Poly":
        """Return a power; of a sum it is one unknown, unless the exponent is a natural number. Source: definition."""
        if exponent.denominator == 1 and exponent >= 0 and (len(self.terms) != 1 or exponent < 2):
            result = Poly(1)
            for _ in range(int(exponent)):
                result = result * self
            return result
        if not self.terms:
            raise ZeroDivisionError("0 has no power below 1")
        content, size, rest = _split(self) if exponent.denominator == 1 else _split_by_sign(self)
        if any(_unknown[unknown][0] == "indicator" and e * exponent < 0 for unknown, e in content):
            raise NoValueError("an indicator, which is 0 for some outcomes, stands in a denominator.")
        if exponent < 0 and rest is not None and _is_zero_for_some(rest):
            raise NoValueError("a denominator is 0 within a set of outcomes, or outside of it.")
        powers, scale = _times((), tuple((unknown, e * exponent) for unknown, e in content))  # 1/√2 becomes √2/2
        result = Poly({powers: scale}) * _rational_power(size, exponent)
        return result if rest is None else result * Poly({((intern(("sum", rest)), exponent),): Fraction(1)})

    def log(self) -> "Poly":
        """Return the logarithm: of a product the sum of those of its factors. Source: definition."""
        content, size, rest = _split_by_sign(self)
        if size <= 0:
            raise NoValueError(f"the logarithm of {size} times something positive was asked for.")
        if any(_unknown[unknown][0] == "indicator" for unknown, _ in content):
            raise NoValueError("the logarithm of an indicator, which is 0 for some outcomes, was asked for.")
        if rest is not None and _is_zero_for_some(rest):
            raise NoValueError("a logarithm is of 0 within a set of outcomes, or outside of it.")
        result = Poly()
        for unknown, exponent in content:
            result = result + _log_of(unknown) * Poly(exponent)
        for prime, exponent in _factors(size):
            result = result + Poly({((intern(("log", intern(("prime", prime)))), Fraction(1)),): exponent})
        return result if rest is None else result + _log_of(intern(("sum", rest)))

    def exp(self) -> "Poly":
        """Return the exponential: of a sum the product of those of its terms. Source: definition."""
        result = Poly(1)
        for powers, coefficient in self.terms.items():
            kind, *rest = _unknown[powers[0][0]] if len(powers) == 1 and powers[0][1] == 1 else ("",)
            if kind == "log":
                result = result * Poly({((rest[0], Fraction(1)),): Fraction(1)}).power(coefficient)
            else:
                result = result * Poly({((intern(("exp", powers)), coefficient),): Fraction(1)})
        return result

    def apply(self, name: str) -> "Poly":
        """Return an arbitrary function's value here: one unknown. Source: definition."""
        return Poly({((intern((name, self.key())), Fraction(1)),): Fraction(1)})

    def key(self) -> tuple[tuple[Powers, Fraction], ...]:
        """Return the terms in order. Source: ours."""
        return tuple(sorted(self.terms.items()))

    def sign(self) -> int | None:
        """Return 1, 0 or −1 if all terms say so, every unknown being positive; else None. Source: ours."""
        sums = [_unknown[unknown][1] for unknown in _unknowns(self) if _unknown[unknown][0] == "sum"]
        if any(Poly(dict(key)).sign() != 1 for key in sums):
            return None  # to multiply by it might turn the sign
        terms = cleared(self).terms
        if any(
            _unknown[unknown][0] not in ("positive", "prime", "exp", "sum") for powers in terms for unknown, _ in powers
        ):
            return None
        signs = {coefficient > 0 for coefficient in terms.values()}
        return 0 if not signs else None if len(signs) == 2 else 1 if True in signs else -1


def _log_of(unknown: int) -> Poly:
    kind, *rest = _unknown[unknown]
    if kind == "exp":
        return Poly({rest[0]: Fraction(1)})
    return Poly({((intern(("log", unknown)), Fraction(1)),): Fraction(1)})


def _split(poly: Poly) -> tuple[Powers, Fraction, tuple | None]:
    """Return a product, a number and, unless they are all of it, the key of a sum without common factors."""
    terms = poly.terms
    if len(terms) == 1:
        ((powers, coefficient),) = terms.items()
        return powers, coefficient, None
    least = {unknown: min(dict(powers).get(unknown, 0) for powers in terms) for unknown in _unknowns(poly)}
    content = tuple(sorted((unknown, exponent) for unknown, exponent in least.items() if exponent))
    inverse = tuple((unknown, -exponent) for unknown, exponent in content)
    rest = Poly({_times(powers, inverse)[0]: coefficient for powers, coefficient in terms.items()})
    rest = cleared(rest)  # positive powers of sums are multiplied out
    if len(rest.terms) == 1:
        ((powers, coefficient),) = rest.terms.items()
        powers, scale = _times(content, powers)
        return powers, coefficient * scale, None
    size = abs(rest.terms[min(rest.terms)])
    return content, size, (rest * Poly(Fraction(1) / size)).key()


def _is_not_negative(unknown: int) -> bool:
    kind, *rest = _unknown[unknown]
    if kind == "real" and isinstance(rest[0], tuple) and rest[0][0] == "moment":  # such as the chance of a set
        return all(_is_not_negative(x) for x, _ in rest[0][1])
    return kind in ("positive", "prime", "exp", "indicator") or (kind == "sum" and Poly(dict(rest[0])).sign() == 1)


def _is_zero_for_some(key: tuple) -> bool:
    """Return whether a sum vanishes where an indicator in it is 0, or where it is 1; as 1 − K does."""
    indicators = {x for powers, _ in key for x, _ in powers if _unknown[x][0] == "indicator"}
    for unknown in indicators:
        outside = Poly({powers: c for powers, c in key if unknown not in dict(powers)})
        inside = sum((Poly({tuple(y for y in powers if y[0] != unknown): c}) for powers, c in key), Poly())
        if not cleared(outside).terms or not cleared(inside).terms:
            return True
    return False


def _split_by_sign(poly: Poly) -> tuple[Powers, Fraction, tuple | None]:
    """Return what `_split` does, where only factors whose sign is known are split off.

    √(x²) is |x|, and √(xy) is not √x·√y where both are negative. So the factors that may be negative stay together in
    one sum. A factor that stands alone with an odd exponent must be positive for the root to exist, and so must one
    whose own root is in the product.
    """
    content, size, rest = _split(poly)
    whole = [(unknown, Fraction(e)) for unknown, e in content if Fraction(e).denominator == 1]
    open_ = [(x, e) for x, e in whole if not _is_not_negative(x)]
    is_open = rest is not None and Poly(dict(rest)).sign() != 1
    alone = len(open_) == 1 and not is_open and open_[0][1].numerator % 2 == 1 and size > 0
    if not open_ or alone:
        return content, size, rest
    together = Poly({tuple(sorted(open_)): Fraction(1 if size > 0 else -1)}) * Poly(1 if rest is None else dict(rest))
    chosen = {unknown for unknown, _ in open_}
    return tuple((x, e) for x, e in content if x not in chosen), abs(size), together.key()


def _unknowns(poly: Poly) -> set[int]:
    return {unknown for powers in poly.terms for unknown, _ in powers}


@cache
def _factors(number: Fraction) -> tuple[tuple[int, int], ...]:
    return tuple(sp.factorrat(sp.Rational(number.numerator, number.denominator)).items()) if number != 1 else ()


def _rational_power(number: Fraction, exponent: Fraction) -> Poly:
    if exponent.denominator == 1:
        return Poly(Fraction(number) ** int(exponent))
    if number < 0:
        raise NoValueError(f"a root of {number} was asked for.")
    result = Poly(1)
    for prime, times in _factors(number):
        whole = floor(times * exponent)
        rest = times * exponent - whole
        powers = ((intern(("prime", prime)), rest),) if rest else ()
        result = result * Poly({powers: Fraction(prime) ** whole})
    return result


def cleared(poly: Poly, relations: Mapping[int, Poly] | None = None) -> Poly:
    """Return a multiple of it by something that is not 0 in which no whole power of a sum is left, relations put in.

    Args:
        poly: any.
        relations: for some unknowns what they are in others, such as the last of several probabilities.

    Source: a fraction is zero where its numerator is.
    """
    relations = relations or {}
    checked: set[int] = set()
    for _ in count():
        if not poly.terms:
            return poly
        sums = [unknown for unknown in _unknowns(poly) if _unknown[unknown][0] == "sum"]
        ready = sorted(unknown for unknown in sums if any(floor(dict(x).get(unknown, 0)) for x in poly.terms))
        if ready:
            # The newest first: it may be made of the others.
            newest, value = ready[-1], Poly(dict(_unknown[ready[-1]][1]))
            divides = relations and newest not in checked and any(dict(x).get(newest, 0) < 0 for x in poly.terms)
            if divides and is_zero(value, relations):
                raise NoValueError("a denominator is 0.")
            checked.add(newest)
            poly = _without(poly, newest, value)
            continue
        whole = {unknown for powers in poly.terms for unknown, e in powers if floor(e)}
        held = sorted(unknown for unknown in whole if unknown in relations)
        if not held:
            return poly
        poly = _without(poly, held[-1], relations[held[-1]])
    raise AssertionError


def _without(poly: Poly, unknown: int, value: Poly) -> Poly:
    powers_of = {powers: dict(powers).get(unknown, Fraction(0)) for powers in poly.terms}
    least = min(floor(e) for e in powers_of.values())
    raised: dict[int, Poly] = {}
    result = Poly()
    grouped: dict[int, dict[Powers, Fraction]] = {}
    for powers, coefficient in poly.terms.items():
        whole, part = floor(powers_of[powers]) - least, powers_of[powers] - floor(powers_of[powers])
        rest = tuple((x, e) for x, e in powers if x != unknown)
        rest = tuple(sorted((*rest, (unknown, part)))) if part else rest
        group = grouped.setdefault(whole, {})
        group[rest] = group.get(rest, 0) + coefficient
    for whole, terms in grouped.items():
        if whole not in raised:
            raised[whole] = value.power(Fraction(whole))
        result = result + Poly({p: c for p, c in terms.items() if c}) * raised[whole]
    return result


def is_zero(poly: Poly, relations: Mapping[int, Poly] | None = None) -> bool:
    """Return whether it vanishes whatever its unknowns are, given the relations. Source: `cleared`."""
    return not cleared(poly, relations).terms


def limit(poly: Poly, small: int) -> Poly:
    """Return what it tends to as the unknown falls to 0; powers beat logarithms.

    Raises:
        ArithmeticError: it grows without bound, or a factor of it does, or falls to 0 in a denominator.
        ValueError: the unknown stands in a function of which nothing is known there.

    Source: ε^a·(log 1/ε)^b → 0 for a > 0, and for a = 0 > b.
    """
    logarithm, total = intern(("log", small)), Poly()
    for powers, coefficient in poly.terms.items():
        size, slow = dict(powers).get(small, 0), dict(powers).get(logarithm, 0)
        term = Poly(coefficient)
        for unknown, exponent in powers:
            if unknown not in (small, logarithm):
                term = term * _limit_of(unknown, small).power(Fraction(exponent))
        if size > 0 or (size == 0 and slow < 0):
            continue
        if size < 0 or slow > 0:
            raise ArithmeticError("it grows without bound.")
        total = total + term
    return total


def _limit_of(unknown: int, small: int) -> Poly:
    if not _mentions(unknown, small):
        return Poly({((unknown, Fraction(1)),): Fraction(1)})
    kind, *rest = _unknown[unknown]
    if kind == "sum":
        return limit(Poly(dict(rest[0])), small)
    if kind == "exp":
        return limit(Poly({rest[0]: Fraction(1)}), small).exp()
    if kind == "log":
        found = _limit_of(rest[0], small)
        if not found.terms:
            raise ArithmeticError("a logarithm grows without bound.")
        return found.log()
    raise ValueError(f"the limit of {kind} is not known.")


def _mentions(unknown: int, small: int) -> bool:
    """Return whether an unknown stands for something in which another one is."""
    kind, *rest = _unknown[unknown]
    if unknown == small or kind in ("prime", "indicator"):
        return unknown == small
    if kind == "log":
        return _mentions(rest[0], small)
    if kind in ("positive", "real"):
        moment = isinstance(rest[0], tuple) and rest[0][0] == "moment"
        return moment and any(_mentions(x, small) for x, _ in rest[0][1])
    terms = [(rest[0], 1)] if kind == "exp" else rest[0]
    return any(_mentions(x, small) for powers, _ in terms for x, _ in powers)
