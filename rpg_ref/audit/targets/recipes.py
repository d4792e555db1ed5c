"""The recipes of this package, held to what they declare themselves."""

from dataclasses import replace

from rpg_ref.audit.targets import Case
from rpg_ref.objective import GAINS, TERMS, Objective
from rpg_ref.recipes import RECIPES

DISTRIBUTION = "rpg_ref"
KNOWN = "this version"


def cases() -> list[Case]:
    """Return every recipe.

    Returns:
        Cases whose subjects are losses for ``identify``.

    Source: ours.
    """
    return [Case(name, (row.on_policy, row.off_policy), row, row.measured_at) for name, row in RECIPES.items()]


def anchored_at_old(objective: Objective | None) -> Objective | None:
    """Return an objective as it is where π_ref = π_old.

    Args:
        objective: with terms between π_θ and π_ref, or None.

    Returns:
        The same terms between π_θ and π_old, what cancels being left out; None where a term has no name there.

    Source: paper §3, whose reference is the last iterate.
    """
    if objective is None:
        return None
    terms: dict[str, float] = {}
    for name, c in objective.terms.items():
        place = name if name in GAINS or name.endswith("_old") else f"{name}_old"
        if place not in TERMS:
            return None
        terms[place] = terms.get(place, 0.0) + c
    return replace(objective, terms={name: c for name, c in terms.items() if c})
