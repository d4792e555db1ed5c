"""Which cases of a parametrised test belong to the full tier alone."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

QUICK_RECIPES = (
    "rpg-urkl",
    "rpg-reinforce-fkl",
    "rpg-reinforce-ufkl-clip",
    "rpg-rkl-clip-as-printed",
    "rpg-urkl-prefix",
    "grpo",
    "gspo",
    "reinforce++",
)
"""One recipe of each kind: each loss style, each level, clipped and bounded, with and without an objective."""


def quick(cases: Iterable[Any], chosen: Collection[Any]) -> list[Any]:
    """The cases, those that are not chosen marked ``full``: `make test` leaves them out, `make test-all` runs them."""
    return [case if case in chosen else full(case) for case in cases]


def full(*values: Any) -> Any:
    """One case of several values, marked ``full``."""
    return pytest.param(*values, marks=pytest.mark.full)
