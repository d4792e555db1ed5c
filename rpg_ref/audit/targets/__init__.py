"""Adapters to installed libraries: each drives the library's own code, one case per way of calling it.

An adapter is a module with ``DISTRIBUTION`` (its name on the package index, or None), ``KNOWN`` (the version it was
written for), ``ENVIRONMENT`` (the name of the files here that pin what it needs) and ``cases()``, or
``cases(checkout)``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rpg_ref.checks import Table
from rpg_ref.objective import Objective


@dataclass(frozen=True)
class Case:
    """One way to call a library.

    Attributes:
        option: the settings, spelt as the library's user spells them.
        documented: the objectives that the documentation states for them on-policy and off-policy; None where it states
            none, as for a surrogate that follows a gradient of its own.
        subject: a loss for ``identify``, or a step for ``identify_model`` where ``whole_model``.
        level: of the documented objective, "token" or "sequence".
        whole_model: whether the subject is a step.

    Source: ours.
    """

    option: str
    documented: tuple[Objective | None, Objective | None]
    subject: Callable[..., Any]
    level: str = "token"
    whole_model: bool = False


TARGETS: Table[str] = Table(
    "target",
    {
        "trl": "trl",
        "verl": "verl",
        "openrlhf": "openrlhf",
        "liger": "liger",
        "rpg-ref": "recipes",
        "rpg-paper": "rpg_paper",
        "rpg-in-trl": "rpg_in_trl",
        "rpg-in-verl": "rpg_in_verl",
    },
)
"""Names on the command line, and the module of each."""
