"""Of which outcomes an unknown speaks, and the same unknown of another outcome: what a sum over outcomes needs to know.

Source: ours.
"""

from proofs.exact import intern, unknown_of

_outcomes: dict[int, frozenset] = {}


def outcomes_of(unknown: int) -> frozenset:
    """Return the outcomes of which an unknown speaks. Source: ours."""
    if unknown not in _outcomes:
        _outcomes[unknown] = frozenset(_found(unknown))
    return _outcomes[unknown]


def _found(unknown: int) -> set:
    kind, key = unknown_of(unknown)[:2]
    if kind in ("positive", "real", "indicator"):
        named = isinstance(key, tuple) and len(key) == 3 and key[0] != "moment" and isinstance(key[0], str)
        return {key[1]} if named or (kind == "indicator") else set()
    if kind == "prime":
        return set()
    if kind == "log":
        return set(outcomes_of(key))
    if kind == "exp":
        return set().union(*(outcomes_of(x) for x, _ in key))
    return set().union(*(outcomes_of(x) for powers, _ in key for x, _ in powers))  # a sum, or a function of one


def renamed(unknown: int, x: object) -> int:
    """Return the same unknown of the outcome that a moment's key speaks of. Source: ours."""
    if x not in outcomes_of(unknown):
        return unknown
    kind, key = unknown_of(unknown)[:2]
    if kind in ("positive", "real"):
        return intern((kind, (key[0], "any", key[2])))
    if kind == "indicator":
        return intern((kind, (key[0], "any")))
    if kind == "log":
        return intern((kind, renamed(key, x)))
    if kind == "exp":
        return intern((kind, tuple(sorted((renamed(y, x), e) for y, e in key))))
    return intern((kind, tuple(sorted((tuple(sorted((renamed(y, x), e) for y, e in powers)), c) for powers, c in key))))


def is_positive(powers: tuple) -> bool:
    """Return whether a product of powers is above 0 for all values of its unknowns. Source: ours."""
    return all(unknown_of(unknown)[0] in ("positive", "prime", "exp") for unknown, _ in powers)
