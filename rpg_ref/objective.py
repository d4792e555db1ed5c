"""What an objective is: named terms with coefficients, at a level. The oracle differentiates it, recipes declare it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rpg_ref.checks import Table

TERMS: Table[str] = Table(
    "term",
    {
        "reward": "E[R]",
        "entropy": "H(π)",
        "reverse_kl": "KL(π‖ref)",
        "forward_kl": "KL(ref‖π)",
        "reverse_kl_old": "KL(π‖old)",
        "forward_kl_old": "KL(old‖π)",
        "js": "JS(π, ref)",
        "chi2": "χ²(π‖ref)",
    },
)
"""The terms an objective may have, and how they print. Reward and entropy are gains, all others are penalties."""

GAINS = ("reward", "entropy")

SAMPLE_OF = {"token": "token", "sequence": "response"}
"""The levels of an objective, and the sample each takes an expectation over."""


@dataclass(frozen=True)
class Objective:
    """J = reward·E[R] + entropy·H − Σ c·D, to be maximised.

    Attributes:
        terms: coefficient by name, names from TERMS; an absent name is 0. An entropy bonus and a penalty are positive.
        level: "token" (the frozen-history objective: each state reached by π_old is a bandit whose reward is the
            expected one when π_old continues), printed "per token"; or "sequence" (the whole response is one action),
            printed "per response".

    Raises:
        ValueError: a name is unknown, or the level is neither.

    Source: paper §2 for one level; PAPER §5 for the two.
    """

    terms: Mapping[str, float] = field(default_factory=dict)
    level: str = "token"

    def __post_init__(self) -> None:
        """Check the names and keep a copy of the terms."""
        for name in self.terms:
            TERMS.check(name)
        if self.level not in SAMPLE_OF:
            raise ValueError(f"level must be 'token' or 'sequence', got {self.level!r}; choose one of the two")
        object.__setattr__(self, "terms", dict(self.terms))

    def __hash__(self) -> int:
        """Hash what equality compares."""
        return hash((frozenset(self.terms.items()), self.level))

    def __str__(self) -> str:
        """Return the formula and its level, such as ``E[R] − 0.04·KL(π‖ref) per token``."""
        text = ""
        for name, c in self.terms.items():
            if c == 0:
                continue
            sign = "+" if (c > 0) == (name in GAINS) else "−"
            factor = "" if abs(c) == 1 else f"{abs(c):.3g}·"
            text += f" {sign} {factor}{TERMS[name]}"
        return f"{text.removeprefix(' + ').strip() or '0'} per {SAMPLE_OF[self.level]}"
