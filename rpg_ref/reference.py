"""When the reference is replaced by the policy: every K optimiser steps, or when a moving average of KL exceeds κ."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from rpg_ref.checks import check_number


class ReferenceState(NamedTuple):
    """What must be kept between steps, and saved: plain numbers.

    Attributes:
        steps: optimiser steps since the last replacement.
        average: the moving average of KL since then, in nats, before its start-up bias is divided out.

    Source: ours.
    """

    steps: int = 0
    average: float = 0.0


@dataclass(frozen=True)
class ReferenceRule:
    """π_ref ← π_θ every ``every`` optimiser steps, or when the moving average of token-level KL exceeds ``kappa``.

    Attributes:
        every: K ≥ 1, an integer or inf (never by count).
        kappa: κ > 0 in nats a token, or inf (never by drift).
        decay: of the moving average, in [0, 1); 0 looks at the last step alone.

    Raises:
        ValueError: a number is out of range.

    Source: paper §3, iterative scheme; PAPER §3. K, κ and the decay are not given there.
    """

    every: int | float = math.inf
    kappa: float = math.inf
    decay: float = 0.9

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_number("every", self.every, 1.0, math.inf)
        if math.isfinite(self.every) and self.every != int(self.every):
            raise ValueError(f"every must be a whole number of steps or inf, got {self.every!r}; round it")
        check_number("kappa", self.kappa, 0.0, math.inf, "(]")
        check_number("decay", self.decay, 0.0, 1.0, "[)")

    def step(self, state: ReferenceState, token_kl: float) -> tuple[bool, ReferenceState]:
        """Return whether to replace the reference after this optimiser step, and the state to keep.

        Args:
            state: what the last call returned, at first ``ReferenceState()``.
            token_kl: mean KL per token of this step in nats, such as the metric ``reverse_kl``; an estimate may be
                slightly negative.

        Returns:
            (due, state); when due the state starts afresh.

        Raises:
            ValueError: the KL is not finite: no rule may be silently off.

        Source: paper §3, iterative scheme.
        """
        if not math.isfinite(token_kl):
            raise ValueError(f"token_kl is {token_kl}; mend the step that computed it")
        steps = state.steps + 1
        average = self.decay * state.average + (1 - self.decay) * token_kl
        # The average starts at 0: what it has seen so far has this much weight.
        seen = 1 - self.decay**steps
        due = steps >= self.every or average / seen > self.kappa
        return due, ReferenceState() if due else ReferenceState(steps, average)
