"""What an outcome is: the worlds in which statements are proved.

    Space       one decision. Exactly: any outcome space, a sum over outcomes being an unknown of its own (its moment),
                of which only Σp = 1, Σ∇p = 0 and the like are known. At a witness: three outcomes.
    Listed      one decision with so many outcomes, listed in both kinds of number.
    Tree        a response of several tokens, every response of a tree listed.
    Numbers     no outcome at all.

Source: definitions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import sympy as sp

from proofs import symbols as sym

OUTCOMES = 3
TREE = ((0,), (1, 0), (1, 1, 0), (1, 1, 1), (2, 0), (2, 1))
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class World:
    """What an outcome is, and what is assumed of the policies. `quantifiers` says it in words.

    Attributes:
        any_mass: the measures that need not have mass one; of q the mass is always Z.
        old_is_normalised: Z = 1.
        group: the number of samples in a group, or a symbol for any number; None where there are no groups.
        right: the reward is 1 for one outcome and 0 for the others.
        ray: logits are differentiated along themselves.
        equal_lengths: T is one number.
        at: the number for each symbol where a claim is about one example; policies by outcome or by history.
        region: what else is known of a symbol, in LaTeX, and its values as an expression in symbols above 0.

    Source: ours.
    """

    any_mass: tuple[sp.Symbol, ...] = (sym.r,)
    old_is_normalised: bool = False
    group: sp.Symbol | int | None = None
    right: bool = False
    ray: bool = False
    equal_lengths: bool = False
    at: Mapping[sp.Symbol, object] = field(default_factory=dict, hash=False)
    region: tuple[tuple[sp.Symbol, str, sp.Expr], ...] = ()


@dataclass(frozen=True)
class Space(World):
    """One decision among any outcomes. Source: ours."""


@dataclass(frozen=True)
class Listed(World):
    """One decision among so many outcomes. Source: ours."""

    outcomes: int = OUTCOMES


@dataclass(frozen=True)
class Tree(World):
    """A response of several tokens.

    Attributes:
        leaves: every response.
        switches: the histories after which the sampler's version is chosen by chance. The choice stands in a response
            as a token. Every policy gives it the same probability, which θ does not change. Only the sampler and the
            indicator K see it.

    Source: ours.
    """

    leaves: tuple[Tokens, ...] = TREE
    switches: tuple[Tokens, ...] = ()

    def text(self, history: Tokens) -> Tokens:
        """Return a history without the choices of version. Source: ours."""
        return tuple(token for n, token in enumerate(history) if history[:n] not in self.switches)


@dataclass(frozen=True)
class Numbers(World):
    """No outcome: algebra. Source: ours."""
