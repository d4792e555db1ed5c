"""Jets: a number and its derivatives in θ, as a list. Sums and products of them are forward-mode differentiation.

Source: Leibniz; the chain rule.
"""

from fractions import Fraction

from proofs.enclosed import Real
from proofs.exact import Poly

Number = Poly | Real
Jet = list[Number]


def times(first: Jet, second: Jet) -> Jet:
    """Return the product. Source: Leibniz."""
    total = [first[0] * second[0]]
    if len(first) > 1:
        total.append(first[0] * second[1] + first[1] * second[0])
    if len(first) > 2:
        cross = first[1] * second[1]
        total.append(first[0] * second[2] + cross + cross + first[2] * second[0])
    return total


def composed(inner: Jet, outer: Jet) -> Jet:
    """Return the chain rule's outcome; `outer` holds a function's derivatives at inner[0]. Source: the chain rule."""
    total = [outer[0]]
    if len(inner) > 1:
        total.append(outer[1] * inner[1])
    if len(inner) > 2:
        total.append(outer[2] * inner[1] * inner[1] + outer[1] * inner[2])
    return total


def rational(jet: Jet) -> Fraction | None:
    """Return the rational number that does not move, if it is one. Source: ours."""
    found = [x.value if isinstance(x, Real) else x.terms.get((), Fraction(0)) for x in jet]
    exact = all(isinstance(x, Fraction) for x in found)
    exact &= all(isinstance(x, Real) or set(x.terms) <= {()} for x in jet)
    return found[0] if exact and not any(found[1:]) else None


def added(jets: list[Jet]) -> Jet:
    """Return the sum of some jets. Source: definition."""
    return [sum(parts[1:], parts[0]) for parts in zip(*jets, strict=True)]
