"""The recipes of this package, held to what they declare themselves."""

from rpg_ref.audit.targets import Case
from rpg_ref.recipes import RECIPES

DISTRIBUTION = "rpg_ref"
KNOWN = "this version"


def cases() -> list[Case]:
    """Return every recipe.

    Returns:
        Cases whose subjects are losses for ``identify``.

    Source: ours.
    """
    rows = {row.name: row for row in RECIPES.values()}
    return [Case(name, (row.on_policy, row.off_policy), row, row.measured_at) for name, row in rows.items()]
