"""Where bad input raises: every check names the argument, what it was, and the remedy."""

import difflib
import math
from numbers import Real
from typing import TypeVar

import torch
from torch import Tensor

Row = TypeVar("Row")

# A log-softmax of float32 logits may round to just above zero; 1e-3 nats is far over that and far under a bug.
_ROUNDING = 1e-3
# χ²'s f is v², and e³⁵⁴ squared is the last that float64 holds.
_LARGEST_LOG_RATIO = 350.0


class UnknownName(KeyError, ValueError):
    """A name that is in none of a table's rows; both a KeyError and a ValueError. Source: ours."""

    def __str__(self) -> str:
        """The sentence itself, which KeyError would print in quotes."""
        return str(self.args[0])


class Table(dict[str, Row]):
    """A dict of named rows that answers an unknown name with the nearest ones.

    ``table[alias]`` is the row of another name; iteration gives each row once, under its own name.
    """

    def __init__(self, what: str, rows: dict[str, Row], aliases: dict[str, str] | None = None) -> None:
        """Name what the rows are (``"divergence"``), for the error message; ``aliases`` are alias ↦ name."""
        super().__init__(rows)
        self.what, self.aliases = what, aliases or {}

    def check(self, name: str) -> None:
        """Raise UnknownName unless there is such a row."""
        self[name]

    def __missing__(self, name: object) -> Row:
        """Return an alias's row; else raise UnknownName, listing the nearest names, or all when none is near."""
        if name in self.aliases:
            return self[self.aliases[str(name)]]
        near = difflib.get_close_matches(str(name).lower(), [*self, *self.aliases])
        hint = f"the nearest are {', '.join(near)}" if near else f"choose one of {', '.join(self)}"
        raise UnknownName(f"unknown {self.what} {name!r}; {hint}")


def check_tensor(name: str, x: object) -> None:
    """Raise ValueError unless x is a real tensor."""
    if not isinstance(x, Tensor) or x.is_complex():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a real tensor, got {got}; convert it with torch.as_tensor")


def check_log_probs(logp: Tensor, **others: Tensor | None) -> None:
    """Raise ValueError unless all log-probabilities are floating point and shaped like ``logp``."""
    for name, x in {"logp": logp, **others}.items():
        if x is None:
            continue
        check_tensor(name, x)
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {x.dtype}; convert it with .float()")
        if x.shape != logp.shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)} but logp has {tuple(logp.shape)}; pass equal shapes")


def check_number(name: str, value: object, low: float, high: float, brackets: str = "[]") -> None:
    """Raise ValueError unless value is a number of the interval, whose ends are open where a bracket is round."""
    x = float(value) if isinstance(value, Real) else math.nan
    inside = (low < x if brackets[0] == "(" else low <= x) and (x < high if brackets[1] == ")" else x <= high)
    if not inside:
        interval = f"{brackets[0]}{low:g}, {high:g}{brackets[1]}"
        raise ValueError(f"{name} must be a number in {interval}, got {value!r}; pass one from that interval")


def check_mask(mask: Tensor, shape: torch.Size) -> None:
    """Raise ValueError unless the mask is a tensor of the given shape."""
    check_tensor("mask", mask)
    if mask.shape != shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, not {tuple(shape)}; pass 1 for each token that counts")


def check_batch(
    logp: Tensor,
    logp_old: Tensor,
    logp_ref: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    logp_sampler: Tensor | None = None,
) -> None:
    """Check the values of a batch, once a rollout: reading them synchronises a GPU, so no loss does it.

    Args:
        logp: log π_θ, [B, T].
        logp_old: log π_old, [B, T].
        logp_ref: log π_ref, [B, T], or None.
        advantages: [B] or [B, T].
        mask: [B, T], only zeros and ones.
        logp_sampler: the sampling engine's log-probabilities, [B, T], or None.

    Raises:
        ValueError: the mask holds something else, or keeps nothing; where it keeps, a log-probability is not finite
            or is positive beyond rounding, or an advantage is not finite, or two policies are over 350 nats apart.

    Source: PAPER §1: probabilities of normalised policies.
    """
    log_probs: dict[str, Tensor | None] = {"logp_old": logp_old, "logp_ref": logp_ref, "logp_sampler": logp_sampler}
    check_log_probs(logp, **log_probs)
    check_mask(mask, logp.shape)
    keep = mask != 0
    if not bool((~keep | (mask == 1)).all()):
        raise ValueError(f"mask holds {mask[keep & (mask != 1)][0].item()}; it must hold zeros and ones only")
    if not bool(keep.any()):
        raise ValueError(f"mask of shape {tuple(mask.shape)} keeps no token; drop the batch")
    check_tensor("advantages", advantages)
    if advantages.shape not in (logp.shape, logp.shape[:1]):
        raise ValueError(
            f"advantages has shape {tuple(advantages.shape)}; pass {tuple(logp.shape[:1])} or logp's shape"
        )
    per_token = advantages if advantages.ndim == logp.ndim else advantages[:, None]
    for name, x in {"logp": logp, **log_probs, "advantages": per_token.expand(logp.shape)}.items():
        if x is None:
            continue
        wrong = keep & ~x.isfinite()
        if name != "advantages":
            wrong |= keep & (x > _ROUNDING)
        if bool(wrong.any()):
            at = wrong.nonzero()[0].tolist()
            raise ValueError(f"{name}{at} is {x[tuple(at)].item()} where the mask keeps it; mend what computed it")
    for name in ("logp_old", "logp_ref", "logp_sampler"):
        base = log_probs[name]
        if base is not None and float((logp - base).abs()[keep].max()) > _LARGEST_LOG_RATIO:
            far = float((logp - base).abs()[keep].max())
            raise ValueError(f"logp and {name} are {far:.0f} nats apart, more than float64 holds; mend one of them")
