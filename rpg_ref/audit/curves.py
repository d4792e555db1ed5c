"""Read the importance weight of a black-box loss as a curve over w = π_θ/π_old, and name the rule that made it.

The coefficient of a token is c = −∂loss/∂log π_θ. Its reward part, what the advantage changes, is read while two things
move, one at a time: *own*, the ratio of the token itself, with the product of the response's ratios held at 1; and
*rest*, the ratios of the other tokens, with the token's own ratio held at 1.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rpg_ref.audit.population import Loss, as_loss, sentence_of
from rpg_ref.recipe import Recipe

ScalarLoss = Callable[..., Tensor]
"""As ``as_loss`` returns it."""

LARGEST_RATIO = 50.0
"""The curves run from 1/50 to 50."""
_FAR = math.log(LARGEST_RATIO)
# The probed token is the last but one of four, or the last of two.
_LENGTH, _SHORT = 4, 2
# Probabilities of the probed token under π_old. Under the first, w may reach 50 while π_θ stays below 1.
_OLD = (1 / 64, 1 / 8, 1 / 2, 4 / 5)
_OTHERS_OLD = -8.0
# Single precision is right to 1e-7, a ratio made from it to 1e-6.
_SAME = 1e-5
# Rounding of a sum in single precision; in double its square.
_CANCELS = 1e-6
_TIE = 2e-6
# Bounds that are to be one number, as far as single precision tells of a bound near w = 1; those of two rules differ
# by factors.
_ALIKE = 5e-3
_GROUP = 16
_NEAR = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
_SIGNS = (1.0, -1.0)
# Sixteen points a bracket and eight rounds narrow 0.2 nats to 3e-11.
_POINTS, _ROUNDS = 16, 8
_LAWS = {
    (0.0, 0.0): "none",
    (1.0, 0.0): "token",
    (0.0, 1.0): "response",
    (0.0, 1 / _LENGTH): "geometric",
    (1 / 3, 2 / 3): "prefix",
}
_OWN_SLOPES, _REST_SLOPES = (1.0, 1 / 3), (1.0, 2 / 3, 1 / _LENGTH)
_RATIO_OF = {
    "token": "the token's ratio",
    "probability": "the token's probability",
    "response": "the product of the response's ratios",
    "geometric": "the geometric mean of the response's ratios",
    "batch": "the log-ratios of the whole batch",
}
_WEIGHT_IS = {
    "none": "no importance weight",
    "token": "weighted by the token's ratio",
    "response": "weighted by the product of the response's ratios",
    "geometric": "weighted by the geometric mean of the response's ratios",
    "prefix": "weighted by the product of the ratios up to the token",
}
NO_KNOWN_RULE = "no known rule"


@dataclass(frozen=True)
class Rule:
    """One thing that a loss does to its importance weights.

    Attributes:
        name: what it is called, such as "PPO clip", "dual clip", "RPG-Style Clip", "exchanged min and max", "cap",
            "mask", "smooth gate", "quadratic gate", "gamma weight", "trust-region mask", "clipped geometric mean" or
            "second-moment budget".
        level: what it reads: the ratio of the "token", of the "response" (the product) or "geometric" (the geometric
            mean of the response's ratios); "probability", how far the token's moved; or "batch", the ratios of all.
        bounds: its numbers by name. ``low`` and ``high`` are ratios; other names are those of the rule's own paper.
        by: what decides its direction where a penalty was found to tell: "advantage" or "weight", the sign of the
            whole weight of reward and penalty; else "".
        about: where the gradient is changed, as a sentence.

    Source: ours.
    """

    name: str
    level: str
    bounds: Mapping[str, float] = field(hash=False)
    by: str = ""
    about: str = ""

    def __str__(self) -> str:
        """Return the rule with its bounds."""
        numbers = ", ".join(f"{name} = {x:.6g}" for name, x in self.bounds.items())
        decided = {"advantage": ", by the advantage's sign", "weight": ", by the sign of the whole weight"}
        what = f"{self.name} of {_RATIO_OF[self.level]}{decided.get(self.by, '')}"
        return f"{what} ({numbers})" if numbers else what


class Curve(NamedTuple):
    """A coefficient over a ratio, in units of its value at ratio 1.

    Attributes:
        log_ratio: log of the ratio that moved: the token's own, or the product of the others', [N], increasing.
        up: c/A for A > 0, [N].
        down: c/A for A < 0, [N].

    Source: ours.
    """

    log_ratio: Float[Tensor, "N"]
    up: Float[Tensor, "N"]
    down: Float[Tensor, "N"]


@dataclass(frozen=True)
class WeightCurves:
    """What a loss was found to do with its importance weights.

    Attributes:
        weight: by which ratio, or smooth function of it, a token is weighted where nothing stops it: "none", "token",
            "response", "geometric" or "prefix"; "unknown" where it is none of them.
        rules: what bounds or stops it. Empty and ``known`` means that there is no clip.
        known: whether the rules explain the curves at every point that was read.
        curves: "own" and "rest", how the coefficient moves with the token's own ratio and with the others'.
        notes: what else was seen, a sentence each.

    Source: ours.
    """

    weight: str
    rules: tuple[Rule, ...]
    known: bool
    curves: Mapping[str, Curve] = field(repr=False, hash=False, compare=False)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The names of the rules, joined by " + "; "no clip"; or "no known rule"."""
        if not self.known:
            return NO_KNOWN_RULE
        return " + ".join(rule.name for rule in self.rules) or "no clip"

    def __str__(self) -> str:
        """Return the weight and its rules in words."""
        rules = "; ".join(map(str, self.rules)) or "no clip"
        plain = self.weight in _WEIGHT_IS and not any(rule.name in _SMOOTH for rule in self.rules)
        weight = f"{_WEIGHT_IS[self.weight]}; " if plain else ""
        lines = [weight + rules if self.known else NO_KNOWN_RULE]
        lines += [rule.about for rule in self.rules if rule.about] if self.known else []
        return "\n- ".join([*lines, *self.notes])


def weight_curves(loss_fn: Loss) -> WeightCurves:
    """Read the importance weight of a loss as curves over w = π_θ/π_old, and name the rule that bounds it.

    Args:
        loss_fn: as for ``identify``: loss_fn(logp, logp_old, logp_ref, advantages, mask), which returns a scalar.

    Returns:
        WeightCurves; bounds are right to six digits.

    Raises:
        ValueError: as ``identify``; or it raises an error for ratios that are moved.

    Source: ours; each rule's own source is on the page "The atlas of importance weights".
    """
    if isinstance(loss_fn, Recipe):
        loss_fn = partial(loss_fn.scalar_loss, denominator=1.0 if loss_fn.needs_denominator else None)
    loss = _asked(as_loss(loss_fn))
    coupled, notes = _coupling(loss)
    if coupled:
        return _of_the_batch(loss, notes)
    return _of_responses(loss, notes)


Region = str | Mapping[str, Mapping[str, float]]
"""Names of rules as ``WeightCurves.name`` gives them, or the bounds of each rule by its name."""


def region_differences(found: WeightCurves, wanted: Region, tolerance: float = 1e-6) -> list[str]:
    """Say in which rules or bounds a loss differs from those that are wanted.

    Args:
        found: from ``weight_curves``.
        wanted: "PPO clip", or {"PPO clip": {"low": 0.8, "high": 1.28}}; bounds that are not named may be any.
        tolerance: largest relative difference of a bound.

    Returns:
        A sentence each; none where they agree.

    Source: ours.
    """
    name = wanted if isinstance(wanted, str) else " + ".join(wanted) or "no clip"
    if sorted(found.name.split(" + ")) != sorted(name.split(" + ")):
        return [f"its region is {found.name}, not {name}: {str(found).splitlines()[0]}"]
    sentences: list[str] = []
    if isinstance(wanted, str):
        return sentences
    for rule in found.rules:
        for bound, value in wanted[rule.name].items():
            got = rule.bounds.get(bound, math.nan)
            if not math.isclose(got, value, rel_tol=tolerance):
                known = f"{got:.6g}" if bound in rule.bounds else f"no bound of {', '.join(rule.bounds)}"
                sentences.append(f"its {rule.name} has {bound} = {known}, not {value:.6g}")
    return sentences


# Reading.


def _asked(loss: ScalarLoss) -> ScalarLoss:
    """Say in one sentence what a loss raised."""

    def call(*batch: Tensor) -> Tensor:
        try:
            return loss(*batch)
        except Exception as error:  # whatever a black box raises
            shape = "×".join(map(str, batch[0].shape))
            raise ValueError(
                f"the loss raised {sentence_of(error)}, for ratios from 1/50 to 50 in a batch of {shape} tokens; "
                "let it take any number of responses and tokens"
            ) from error

    return call


class _Places(NamedTuple):
    """Where coefficients are read: log w of the token and of the others' product, and log π_old of the token, [N]."""

    own: Tensor
    rest: Tensor
    old: Tensor

    @classmethod
    def of(cls, own: Tensor, rest: Tensor, old: float) -> "_Places":
        return cls(own, rest, torch.full_like(own, math.log(old)))


def _joined(parts: Sequence[_Places]) -> _Places:
    return _Places(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _pull(
    loss: ScalarLoss,
    at: _Places,
    A: Tensor,
    log_v: Tensor | float = 0.0,
    others_log_v: Tensor | float = 0.0,
    length: int = _LENGTH,
) -> Tensor:
    """−∂loss/∂log π_θ of the probed token of each response, [N]; log v is given as log w is, 0 where π_ref = π_θ."""
    probed = length // 2
    log_w = (at.rest / (length - 1))[:, None].expand(-1, length).clone()
    log_w[:, probed] = at.own
    old = torch.full_like(log_w, _OTHERS_OLD)
    old[:, probed] = at.old
    leaf = (old + log_w).requires_grad_()
    gap = (torch.as_tensor(others_log_v) / (length - 1) + 0 * at.own)[:, None].expand(-1, length).clone()
    gap[:, probed] = log_v
    value = loss(leaf, old, leaf.detach() - gap, A, torch.ones(leaf.shape, dtype=torch.bool))
    return -torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)[0][:, probed]


class _Read(NamedTuple):
    """The reward's part of coefficients for A > 0 and A < 0, in units of that at ratio 1, and whether it is zero."""

    value: Float[Tensor, "N 2"]
    dead: Tensor


def _raw(loss: ScalarLoss, at: _Places, length: int = _LENGTH) -> tuple[Tensor, Tensor]:
    """The reward's part of c/A, [N, 2], and what of it is rounding: advantages of ±1 and ±2 tell it apart."""
    # Both signs and both sizes at every place: their mean is zero, whatever the ratios are.
    A = torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64).repeat(len(at.own))
    c = _pull(loss, _Places(*(x.repeat_interleave(4) for x in at)), A, length=length).view(-1, 4)
    reward = (c[:, 2:] - c[:, :2]) * torch.tensor(_SIGNS, dtype=torch.float64)
    return reward, _rounding(c) * (c.abs()[:, :2] + c.abs()[:, 2:])


def _rounding(c: Tensor) -> float:
    """Two coefficients that differ by less, relative to their size, are one number: as the loss's precision is."""
    return _CANCELS if torch.equal(c.float().double(), c) else _CANCELS**2


def _read(loss: ScalarLoss, at: _Places, length: int = _LENGTH) -> _Read:
    # The first place is ratio 1; more of it fill the batch up to whole groups of 64 responses.
    count = _GROUP - len(at.own) % _GROUP
    still = torch.zeros(count, dtype=torch.float64)
    reward, rounding = _raw(loss, _joined([_Places.of(still, still, _OLD[0]), at]), length)
    dead = reward.abs() <= rounding
    unit = torch.where(dead[0], reward.abs().max().clamp(min=1e-300), reward[0])
    return _Read(torch.where(dead, 0.0, reward / unit)[count:], dead[count:])


def _grid(far: float, low: float = -_FAR) -> Tensor:
    """Log-ratios from ``low`` to ``far``: every 0.2 nats or so, and closer near zero."""
    coarse = torch.linspace(-_FAR, _FAR, 41, dtype=torch.float64)
    near = torch.tensor([*_NEAR, *(-x for x in _NEAR)], dtype=torch.float64)
    x = torch.cat([coarse, near, torch.tensor([low, far], dtype=torch.float64)])
    inside: Tensor = torch.unique(x[(x >= low) & (x <= far)])
    return inside


def _own(x: Tensor, old: float = _OLD[0]) -> _Places:
    """The token moves; the others make up for it, so that the response's ratio stays 1."""
    return _Places.of(x, -x, old)


def _rest(x: Tensor) -> _Places:
    return _Places.of(0 * x, x, _OLD[0])


# Coupling: whether another response's ratio decides over this one.


def _coupling(loss: ScalarLoss) -> tuple[bool, tuple[str, ...]]:
    """Whether the others' ratios change more than a common factor, and what to say of that factor."""
    x = torch.tensor([0.0, 0.1, -0.1, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0], dtype=torch.float64)
    fillers = torch.tensor([1.5, -1.5, 0.7, -0.7, 3.5, -3.5] * 4, dtype=torch.float64)[:21]
    near, far = (_raw(loss, _joined([_own(x), _own(y)]))[0][: len(x)] for y in (0 * fillers, fillers))
    if not bool(near[0].any()):
        return bool((near - far).abs().max() > _SAME * near.abs().max()), ()
    factor = (near[0] @ far[0]) / (near[0] @ near[0])
    if bool((far - factor * near).abs().max() > _SAME * near.abs().max()):
        return True, ()
    if abs(float(factor) - 1) > _SAME:
        return False, ("the other responses' ratios change the normaliser: weights are divided by their sum or count",)
    return False, ()


_BATCH_ROWS = 8


def _of_the_batch(loss: ScalarLoss, notes: tuple[str, ...]) -> WeightCurves:
    """A rule that is decided over the whole batch: M2PO's budget, or none that is known."""
    own = _grid(_FAR)
    value = _read(loss, _own(own)).value
    curves = {"own": Curve(own, value[:, 0], value[:, 1])}
    told = ("other responses' ratios decide whether this token is stopped", *notes)
    budget = _second_moment(loss)
    if budget is None:
        return WeightCurves("unknown", (), False, curves, told)
    about = "tokens with the largest (log w)² are stopped until the mean over the others is below the budget"
    rule = Rule("second-moment budget", "batch", {"tau": budget}, about=about)
    return WeightCurves("token", (rule,), True, curves, told)


def _all_pulls(loss: ScalarLoss, log_w: Tensor) -> Tensor:
    """Return c of every token of a batch whose advantages are 1 and −1 in turn, [B, T], in units of that at w = 1."""
    old = torch.full_like(log_w, _OTHERS_OLD)
    A = torch.tensor(_SIGNS, dtype=torch.float64).repeat(len(log_w) // 2)

    def pull(x: Tensor) -> Tensor:
        leaf = (old + x).requires_grad_()
        value = loss(leaf, old, leaf.detach(), A, torch.ones(leaf.shape, dtype=torch.bool))
        return -torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)[0]

    return pull(log_w) / pull(0 * log_w)


def _second_moment(loss: ScalarLoss) -> float | None:
    """M2PO's budget τ, if the batch is decided by one: bisect how far one token may go, then predict a random batch."""
    still = torch.zeros((_BATCH_ROWS, _LENGTH), dtype=torch.float64)

    def alive(far: float) -> bool:
        moved = still.clone()
        moved[0, 0] = far
        return bool(_all_pulls(loss, moved)[0, 0].abs() > 0)

    low, high = 0.0, 7.0
    if not alive(low) or alive(high):
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if alive(middle) else (low, middle)
    budget = low**2 / still.numel()
    rng = torch.Generator().manual_seed(0)
    for spread in (0.5, 1.0, 3.0):
        log_w = spread * math.sqrt(budget) * torch.randn(still.shape, generator=rng, dtype=torch.float64)
        expected = torch.where(_kept(log_w, budget), log_w.exp(), 0.0)
        if not torch.allclose(_all_pulls(loss, log_w) * _normaliser(loss, log_w, expected), expected, rtol=_SAME):
            return None
    return budget


def _normaliser(loss: ScalarLoss, log_w: Tensor, expected: Tensor) -> Tensor:
    """What the batch's own normaliser makes of all coefficients: the kept ones may be divided by their count."""
    found = _all_pulls(loss, log_w)
    return expected.sum() / found.sum() if bool(found.sum() != 0) else torch.ones((), dtype=torch.float64)


def _kept(log_w: Tensor, budget: float) -> Tensor:
    """Which tokens stay when the largest (log w)² go first until the mean of those that stay is below the budget."""
    squares, order = log_w.flatten().square().sort()
    means = squares.cumsum(0) / torch.arange(1, len(squares) + 1)
    kept = torch.zeros(log_w.numel(), dtype=torch.bool)
    kept[order[: int((means < budget).nonzero().max()) + 1 if bool((means < budget).any()) else 0]] = True
    return kept.view_as(log_w)


# Pieces of a curve.


class _Edge(NamedTuple):
    """Where a curve changes as it leaves ratio 1: into "dead" or "flat", or from "flat" into "follow"."""

    into: str
    at: float


Edges = Mapping[tuple[int, str], tuple[_Edge, ...]]
"""(0 for A > 0 or 1 for A < 0, "low" or "high") ↦ edges, the nearest to ratio 1 first."""

_DEAD, _FOLLOW, _OTHER = 0, 1, 2


class _Law(NamedTuple):
    """r = unit·ratio^slope where nothing stops it, the unit for each sign."""

    slope: float
    unit: Float[Tensor, "2"]


def _law(x: Tensor, read: _Read, slopes: Sequence[float], fewest: int = 3) -> _Law:
    """The power of the ratio that the curve follows at some pairs of places; a constant if it follows none."""
    a, b = read.value[:-1].abs(), read.value[1:].abs()
    gap = (x[1:] - x[:-1])[:, None].expand(a.shape)
    alive = (a > 0) & (b > 0)
    coarse = alive & (gap > 0.05)
    pairs = coarse if int(coarse.sum()) >= 3 and fewest > 1 else alive
    slope = torch.where(alive, (b.clamp(min=1e-300) / a.clamp(min=1e-300)).log() / gap, math.nan)
    best, matched = 0.0, pairs & (slope.abs() < _slack(gap))
    for candidate in slopes:
        near = pairs & ((slope - candidate).abs() < _slack(gap))
        if int(near.sum()) >= fewest and candidate:
            best, matched = candidate, near
            break
    levels = read.value[:-1] * (-best * x[:-1, None]).exp()
    unit = [levels[matched[:, i], i] for i in (0, 1)]
    return _Law(best, torch.stack([u.median() if len(u) else torch.ones((), dtype=torch.float64) for u in unit]))


def _slack(gap: Tensor) -> Tensor:
    return 1e-4 + 2e-6 / gap


def _kinds(x: Tensor, read: _Read, law: _Law) -> Int[Tensor, "N 2"]:
    off = (read.value / law.unit * (-law.slope * x[:, None]).exp() - 1).abs()
    return torch.where(read.dead, _DEAD, torch.where(off < _SAME, _FOLLOW, _OTHER))


class _Bracket(NamedTuple):
    """A gap between two log-ratios in which the curve of one sign changes its kind."""

    sign: int
    left: float
    right: float
    kinds: tuple[int, int]


def _brackets(x: Tensor, kinds: Tensor) -> list[_Bracket]:
    return [
        _Bracket(sign, float(x[i]), float(x[i + 1]), (int(kinds[i, sign]), int(kinds[i + 1, sign])))
        for sign in (0, 1)
        for i in (kinds[1:, sign] != kinds[:-1, sign]).nonzero().flatten().tolist()
    ]


Move = Callable[[Tensor], _Places]


class _Moved(NamedTuple):
    """A curve that is read along a move: its places, what was read there, its law, kinds and brackets."""

    move: Move
    x: Tensor
    read: _Read
    law: _Law
    kinds: Tensor
    brackets: list[_Bracket]


def _along(moves: Sequence[tuple[Move, Tensor, Sequence[float] | None]], loss: ScalarLoss, length: int) -> list[_Moved]:
    """Read several curves in one call, and narrow the places where they change in a few more.

    A move comes with its places and the slopes that its law may have; None is the first curve's.
    """
    found = _split(_read(loss, _joined([move(x) for move, x, _ in moves]), length), [len(x) for _, x, _ in moves])
    laws: list[_Law] = []
    for (_, x, slopes), read in zip(moves, found, strict=True):
        laws.append(_law(x, read, (laws[0].slope,), 1) if slopes is None else _law(x, read, slopes))
    kinds = [_kinds(x, read, law) for (_, x, _), read, law in zip(moves, found, laws, strict=True)]
    brackets = [_brackets(x, kind) for (_, x, _), kind in zip(moves, kinds, strict=True)]
    extra: list[list[tuple[Tensor, _Read]]] = [[] for _ in moves]
    for _ in range(_ROUNDS if any(brackets) else 0):
        inner = [_inner(these) for these in brackets]
        busy = [i for i, these in enumerate(brackets) if these]
        reads = _split(
            _read(loss, _joined([moves[i][0](inner[i]) for i in busy]), length), [len(inner[i]) for i in busy]
        )
        for i, read in zip(busy, reads, strict=True):
            extra[i].append((inner[i], read))
            brackets[i] = _narrowed(brackets[i], inner[i], _kinds(inner[i], read, laws[i]))
    moved = []
    for i, (move, x, _) in enumerate(moves):
        everything = torch.cat([x, *(more for more, _ in extra[i])])
        order = everything.argsort()
        read = _Read(
            torch.cat([found[i].value, *(r.value for _, r in extra[i])])[order],
            torch.cat([found[i].dead, *(r.dead for _, r in extra[i])])[order],
        )
        moved.append(
            _Moved(move, everything[order], read, laws[i], _kinds(everything[order], read, laws[i]), brackets[i])
        )
    return moved


def _split(read: _Read, sizes: list[int]) -> list[_Read]:
    return [_Read(*pair) for pair in zip(torch.split(read.value, sizes), torch.split(read.dead, sizes), strict=True)]


def _inner(brackets: Sequence[_Bracket]) -> Tensor:
    share = torch.arange(1, _POINTS + 1, dtype=torch.float64) / (_POINTS + 1)
    return torch.cat([b.left + (b.right - b.left) * share for b in brackets] or [share[:0]])


def _narrowed(brackets: Sequence[_Bracket], x: Tensor, kinds: Tensor) -> list[_Bracket]:
    """The first change in each bracket."""
    narrowed = []
    for i, bracket in enumerate(brackets):
        at = slice(i * _POINTS, (i + 1) * _POINTS)
        places = [bracket.left, *x[at].tolist(), bracket.right]
        inside = [bracket.kinds[0], *kinds[at, bracket.sign].tolist(), bracket.kinds[1]]
        j = next(j for j in range(len(inside) - 1) if inside[j] != inside[j + 1])
        narrowed.append(_Bracket(bracket.sign, places[j], places[j + 1], (inside[j], inside[j + 1])))
    return narrowed


def _edges(curve: _Moved) -> Edges | None:
    """Read a curve outwards from ratio 1 as pieces that follow the law, stay flat or are dead; None if it does not."""
    found: dict[tuple[int, str], tuple[_Edge, ...]] = {}
    for sign in (0, 1):
        moved = _without_ties(curve, sign)
        flat = _flat_at(moved, sign)
        names = [
            ("dead", "follow", "flat" if level is not None else "other")[kind]
            for kind, level in zip(moved.kinds[:, sign].tolist(), flat, strict=True)
        ]
        start = int((moved.x.abs()).argmin())
        if "other" in names or names[start] == "dead":
            return None
        for side, step in (("low", -1), ("high", 1)):
            edges, at = [], start
            while 0 <= at + step < len(names):
                if names[at + step] != names[at]:
                    edges.append(_edge(moved, sign, names, flat, at, at + step))
                at += step
            found[sign, side] = tuple(edges)
        allowed = {(), ("dead",), ("flat",), ("flat", "dead"), ("follow",)}
        shapes = {tuple(edge.into for edge in found[sign, side]) for side in ("low", "high")}
        if not shapes <= allowed:
            return None
    return found


def _without_ties(moved: _Moved, sign: int) -> _Moved:
    """Leave out slivers, as where two terms of a minimum tie and autograd halves both, or single precision flickers."""
    kinds, x = moved.kinds[:, sign].tolist(), moved.x.tolist()
    keep = torch.ones(len(x), dtype=torch.bool)
    i = 0
    while i < len(x):
        j = i
        while j < len(x) and kinds[j] == kinds[i]:
            j += 1
        if 0 < i and j < len(x) and x[j - 1] - x[i] < _TIE and not x[i] <= 0 <= x[j - 1]:
            keep[i:j] = False
        i = j
    read = _Read(moved.read.value[keep], moved.read.dead[keep])
    return moved._replace(x=moved.x[keep], read=read, kinds=moved.kinds[keep])


def _flat_at(moved: _Moved, sign: int) -> list[float | None]:
    """The level of each place that lies on a plateau, runs of one level being plateaus."""
    value = moved.read.value[:, sign]
    levels: list[float | None] = [None] * len(value)
    other = (moved.kinds[:, sign] == _OTHER).tolist()
    i = 0
    while i < len(other):
        j = i
        while j < len(other) and other[j]:
            j += 1
        if j - i >= 2 and bool((value[i:j] / value[i] - 1).abs().max() < _SAME):
            levels[i:j] = [float(value[i:j].median())] * (j - i)
        i = max(j, i + 1)
    return levels


def _edge(moved: _Moved, sign: int, names: list[str], flat: list[float | None], inner: int, outer: int) -> _Edge:
    level = flat[outer] if flat[outer] is not None else flat[inner]
    if level is not None and "follow" in (names[inner], names[outer]):
        # A plateau says its bound more precisely than the place where it begins.
        return _Edge(names[outer], math.log(level / float(moved.law.unit[sign])) / (moved.law.slope or 1.0))
    left, right = sorted((float(moved.x[inner]), float(moved.x[outer])))
    return _Edge(names[outer], (left + right) / 2)


# Names.


def _of_responses(loss: ScalarLoss, notes: tuple[str, ...]) -> WeightCurves:
    """A rule that is decided by the token or its response."""
    moves: list[tuple[Move, Tensor, Sequence[float] | None]] = [(_own, _grid(_FAR), _OWN_SLOPES)]
    moves.append((_rest, _rest_grid(_LENGTH), _REST_SLOPES))
    moves += [(partial(_own, old=old), _grid(-math.log(old) - 1e-3), None) for old in _OLD[1:]]
    own, rest, *elsewhere = _along(moves, loss, _LENGTH)
    curves = {name: Curve(m.x, *m.read.value.T) for name, m in (("own", own), ("rest", rest))}
    notes = (*notes, *_at_one(own))
    unknown = WeightCurves("unknown", (), False, curves, notes)
    geometric_mean = _clipped_geometric_mean(own, rest)
    if geometric_mean is not None:
        return WeightCurves("geometric", (geometric_mean,), True, curves, notes)
    own_edges, rest_edges = _edges(own), _edges(rest)
    if own_edges is None and rest_edges is not None and not any(rest_edges.values()) and not rest.law.slope:
        smooth = _smooth(own, "token")
        return unknown if smooth is None else WeightCurves("token", (smooth,), True, curves, notes)
    if rest_edges is None and own_edges is not None and not any(own_edges.values()) and not own.law.slope:
        smooth = _smooth(rest, _level_of_smooth(loss, rest))
        return unknown if smooth is None else WeightCurves(smooth.level, (smooth,), True, curves, notes)
    law = _LAWS.get((own.law.slope, rest.law.slope))
    if own_edges is None or rest_edges is None or law is None:
        return unknown
    rules: list[Rule] = []
    at_other_old = [(old, _edges(moved)) for old, moved in zip(_OLD[1:], elsewhere, strict=True)]
    token_rules = _token_rules([(_OLD[0], own_edges), *at_other_old])
    level = _level_of(loss, rest_edges)
    if level == "unknown":
        return unknown
    response_rules = _rules(_ratios(rest_edges, _LENGTH if level == "geometric" else 1), level)
    if token_rules is None or response_rules is None:
        return unknown
    response_rules = [rule if law == rule.level else _of_the_sequence(rule) for rule in response_rules]
    for rule, edges, along in (
        *((rule, own_edges, _own) for rule in token_rules),
        *((rule, rest_edges, _rest) for rule in response_rules),
    ):
        by = _decided_by(loss, edges, along) if rule.name in ("PPO clip", "dual clip") else ""
        name = "RPG-Style Clip" if by == "weight" else rule.name
        rules.append(Rule(name, rule.level, rule.bounds, by, rule.about))
    return WeightCurves(law, tuple(rules), True, curves, notes)


def _at_one(own: _Moved) -> list[str]:
    """What is odd where all ratios are 1, and where the gradient is not finite."""
    dead = own.read.dead[int(own.x.abs().argmin())].tolist()
    names = [name for name, none in zip(("A > 0", "A < 0"), dead, strict=True) if none]
    notes = [f"no gradient at w = 1 where {' or '.join(names)}"] if names else []
    finite = own.read.value.isfinite().all(1)
    if not bool(finite.all()):
        first = own.x[~finite].exp()
        notes.append(f"the gradient is not finite between w = {float(first.min()):.3g} and {float(first.max()):.3g}")
    return notes


def _of_the_sequence(rule: Rule) -> Rule:
    """A mask of bad responses that fell, where the weight is another ratio than the one that decides."""
    if rule.name != "PPO clip" or rule.bounds.keys() != {"low"} or rule.level != "geometric":
        return rule
    about = "no gradient where A < 0 and the mean of log π_old/π_θ over the response is above δ"
    return Rule("off-policy sequence mask", rule.level, {"delta": -math.log(rule.bounds["low"])}, about=about)


def _rest_grid(length: int) -> Tensor:
    """Sums of the others' log-ratios, such that products and geometric means run from 1/50 to 50."""
    x = _grid(_FAR)
    both: Tensor = torch.unique(torch.cat([x, length * x]))
    return both


def _ratios(edges: Edges, length: int) -> Edges:
    return {key: tuple(_Edge(e.into, math.exp(e.at / length)) for e in these) for key, these in edges.items()}


def _rules(edges: Edges, level: str) -> list[Rule] | None:
    """Name what the edges of one ratio are; None if that is nothing known."""
    caps: dict[tuple[int, str], float] = {}
    dead: dict[tuple[int, str], float] = {}
    for key, these in edges.items():
        for edge in these:
            (dead if edge.into == "dead" else caps)[_side_of(key, edge)] = edge.at
    rules = []
    if caps:
        cap = _cap(caps, dead, level)
        if cap is None:
            return None
        rules.append(cap)
    if dead:
        region = _region(dead, level)
        if region is None:
            return None
        rules.insert(0, region)
    return rules


def _side_of(key: tuple[int, str], edge: _Edge) -> tuple[int, str]:
    """A curve that is flat at ratio 1 and follows below is capped from above."""
    sign, side = key
    return (sign, {"low": "high", "high": "low"}[side]) if edge.into == "follow" else key


def _cap(caps: Mapping[tuple[int, str], float], dead: Mapping[tuple[int, str], float], level: str) -> Rule | None:
    """A weight that stays at its bound and still moves the policy, whatever the advantage's sign."""
    bounds = {}
    for side in ("low", "high"):
        seen = {sign: caps[sign, side] for sign in (0, 1) if (sign, side) in caps}
        if not seen:
            continue
        if len(seen) == 2 and not math.isclose(*seen.values(), rel_tol=1e-5):
            return None
        # One sign may be dead before it reaches the cap.
        if len(seen) == 1 and (1 - next(iter(seen)), side) not in dead:
            return None
        bounds[side] = next(iter(seen.values()))
    return Rule(
        "cap", level, bounds, about="beyond the cap the weight is constant, and the token still moves the policy"
    )


_RISEN, _FALLEN, _DUAL, _BELOW = (0, "high"), (1, "low"), (1, "high"), (0, "low")


def _region(dead: Mapping[tuple[int, str], float], level: str) -> Rule | None:
    """The known region with these dead sides."""
    sides = set(dead)
    if sides <= {_RISEN, _FALLEN}:
        return Rule("PPO clip", level, _epsilons(dead), about=_about(dead, level))
    mirrored = all(
        (1 - sign, side) in dead and math.isclose(at, dead[1 - sign, side], rel_tol=1e-6)
        for (sign, side), at in dead.items()
    )
    if mirrored:
        return Rule("mask", level, {side: dead[0, side] for side in ("low", "high") if (0, side) in dead},
                    about=_about(dead, level))  # fmt: skip
    if sides <= {_RISEN, _FALLEN, _DUAL}:
        return Rule("dual clip", level, {**_epsilons(dead), "c": dead[_DUAL]}, about=_about(dead, level))
    if sides <= {_BELOW, _DUAL}:
        bounds = {name: dead[key] for name, key in (("low", _BELOW), ("high", _DUAL)) if key in dead}
        return Rule("exchanged min and max", level, bounds, about=_about(dead, level))
    if len(sides) == 1:
        ((sign, side),) = sides
        bound = {f"{side} where A {'><'[sign]} 0": dead[sign, side]}
        return Rule("mask", level, bound, about=_about(dead, level))
    return None


def _epsilons(dead: Mapping[tuple[int, str], float]) -> dict[str, float]:
    low = {"low": dead[_FALLEN]} if _FALLEN in dead else {}
    return low | ({"high": dead[_RISEN]} if _RISEN in dead else {})


def _about(dead: Mapping[tuple[int, str], float], level: str) -> str:
    ratio = {"token": "w", "response": "Π w", "geometric": "(Π w)^{1/T}"}[level]
    both = {side for sign, side in dead if (1 - sign, side) in dead and dead[sign, side] == dead[1 - sign, side]}
    where = [
        ("" if side in both else f"A {'><'[sign]} 0 and ") + f"{ratio} {'<' if side == 'low' else '>'} {at:.6g}"
        for (sign, side), at in sorted(dead.items())
        if not (side in both and sign)
    ]
    return f"no gradient where {', or '.join(where)}"


# A token's rules: bounds of the ratio, or of what the probability may change.


def _token_rules(at: Sequence[tuple[float, Edges | None]]) -> list[Rule] | None:
    """The rules of the token's own ratio, from the edges under several π_old."""
    seen = [(old, _ratios(edges, 1)) for old, edges in at if edges is not None]
    if len(seen) < len(at):
        return None
    first = seen[0][1]
    if all(_same_where_seen(first, edges, old) for old, edges in seen[1:]):
        return _rules(first, "token")
    dead: dict[tuple[int, str], list[tuple[float, float]]] = {}
    caps: dict[tuple[int, str], tuple[_Edge, ...]] = {}
    for old, edges in seen:
        for key, these in edges.items():
            caps[key] = caps.get(key) or tuple(edge for edge in these if edge.into != "dead")
            dead.setdefault(key, []).extend((old, edge.at) for edge in these if edge.into == "dead")
    dead = {key: pairs for key, pairs in dead.items() if pairs}
    region = _trust_region(dead)
    if region is None:
        return None
    if not any(caps.values()):
        return [region]
    flat = {key: edges[0].at for key, edges in caps.items() if edges}
    cap = _cap(flat, {key: pairs[0][1] for key, pairs in dead.items()}, "token")
    return None if cap is None else [region, cap]


def _same_where_seen(first: Edges, edges: Edges, old: float) -> bool:
    """Whether edges are those of the first π_old, as far as π_θ < 1 lets them be seen."""
    for key, these in edges.items():
        expected = [edge for edge in first[key] if edge.at < 0.999 / old]
        if [edge.into for edge in these] != [edge.into for edge in expected]:
            return False
        if any(not math.isclose(a.at, b.at, rel_tol=1e-5) for a, b in zip(these, expected, strict=True)):
            return False
    return True


def _bernoulli(p: float, q: float) -> float:
    """KL of two coins."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


_DISTANCES: dict[str, Callable[[float, float], float]] = {
    "total variation": lambda old, new: abs(new - old),
    "KL(old‖new)": lambda old, new: _bernoulli(old, new),
    "KL(new‖old)": lambda old, new: _bernoulli(new, old),
}


def _trust_region(dead: Mapping[tuple[int, str], Sequence[tuple[float, float]]]) -> Rule | None:
    """A region by how far the token's probability moved, (π_old, w) being its edges."""
    if not dead or not set(dead) <= {_RISEN, _FALLEN}:
        return None
    for name, distance in _DISTANCES.items():
        values = {key: [distance(old, old * w) for old, w in pairs] for key, pairs in dead.items()}
        if all(max(x) <= min(x) * (1 + _ALIKE) for x in values.values()) and any(len(x) > 1 for x in values.values()):
            bounds = {f"delta_{key[1]}": sorted(x)[len(x) // 2] for key, x in values.items()}
            about = f"no gradient where the token, taken as a coin, has moved away from π_old by more in {name}"
            return Rule(f"trust-region mask by {name}", "probability", dict(sorted(bounds.items())), about=about)
    return None


# The level of a response's rule, and smooth rules.


def _level_of(loss: ScalarLoss, edges: Edges) -> str:
    """Whether the edges of the others' product are at one product, or at one mean, of four tokens and of two."""
    if not any(edges.values()):
        return "response"
    (short,) = _along([(_rest, _rest_grid(_LENGTH), (1.0, 1 / _SHORT))], loss, _SHORT)
    found = _edges(short)
    if found is None:
        return "unknown"
    pairs = [(a.at, b.at) for key in edges for a, b in zip(edges[key], found[key], strict=False)]
    if all(math.isclose(a, b, rel_tol=_ALIKE) for a, b in pairs):
        return "response"
    means = all(math.isclose(a / _LENGTH, b / _SHORT, rel_tol=_ALIKE) for a, b in pairs)
    return "geometric" if means else "unknown"


def _level_of_smooth(loss: ScalarLoss, rest: _Moved) -> str:
    x = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64)
    long = _read(loss, _rest(x), _LENGTH).value
    for level, scale in (("response", 1.0), ("geometric", _SHORT / _LENGTH)):
        if torch.allclose(long, _read(loss, _rest(scale * x), _SHORT).value, rtol=_SAME, atol=1e-12):
            return level
    return "unknown"


def _smooth(moved: _Moved, level: str) -> Rule | None:
    """Fit the smooth weights that are known."""
    if level == "unknown":
        return None
    x = moved.x / (_LENGTH if level == "geometric" else 1)
    for name, fit in _SMOOTH.items():
        numbers: dict[str, float] = {}
        for sign in (0, 1):
            fitted = fit(x, moved.read.value[:, sign], _SIGNS[sign])
            if fitted is None:
                break
            numbers |= {f"{key}_{('pos', 'neg')[sign]}": number for key, number in fitted.items()}
        else:
            return Rule(name, level, dict(sorted(numbers.items())), about=_SMOOTH_IS[name])
    return None


Fitted = dict[str, float] | None


def _close(x: Tensor, found: Tensor, expected: Tensor) -> bool:
    """Whether two curves agree between 1/50 and 50; where they fade, single precision leaves rounding of w's size."""
    off = (found - expected).abs() - _SAME * expected.abs() - _CANCELS * (1 + x.exp())
    return bool((off <= 0)[x.abs() <= _FAR + 1e-9].all())


def _sigmoid_gate(x: Tensor, value: Tensor, sign: float) -> Fitted:
    """w·sech²(τ(w − 1)/2), the derivative of (4/τ)·σ(τ(w − 1)) times w."""
    w = x.exp()
    at = int(((x - 0.7).abs()).argmin())
    gate = float(value[at] / w[at])
    if not 0 < gate < 1:
        return None
    tau = 2 * math.acosh(gate**-0.5) / float(w[at] - 1)
    return {"tau": tau} if _close(x, value, w / (tau * (w - 1) / 2).cosh() ** 2) else None


def _quadratic_gate(x: Tensor, value: Tensor, sign: float) -> Fitted:
    """w·(1 − sign·(w − 1)/ε), of w·A − |A|·(w − 1)²/2ε."""
    w = x.exp()
    # Far from 1 it is largest, and rounding smallest beside it.
    at = int(x.clamp(max=_FAR + 1e-9).argmax())
    drop = sign * float(1 - value[at] / w[at])
    if not drop > 0:
        return None
    epsilon = float(w[at] - 1) / drop
    return {"epsilon": epsilon} if _close(x, value, w * (1 - sign * (w - 1) / epsilon)) else None


def _gamma_weight(x: Tensor, value: Tensor, sign: float) -> Fitted:
    """w^k·e^{λ(1 − w)}."""
    w = x.exp()
    fit = (value > 1e-12) & value.isfinite() & (x.abs() > 0.05) & (x.abs() < 1.5)
    if int(fit.sum()) < 4:
        return None
    columns = torch.stack([x[fit], 1 - w[fit]], 1)
    k, rate = torch.linalg.lstsq(columns, value[fit].log()[:, None]).solution.flatten().tolist()
    # Without λ it is a power of the ratio, which is no rule in use.
    return {"k": k, "lambda": rate} if abs(rate) > 1e-6 and _close(x, value, (k * x + rate * (1 - w)).exp()) else None


_SMOOTH: dict[str, Callable[[Tensor, Tensor, float], Fitted]] = {
    "smooth gate": _sigmoid_gate,
    "quadratic gate": _quadratic_gate,
    "gamma weight": _gamma_weight,
}
_SMOOTH_IS = {
    "smooth gate": "the gradient is that of (4/τ)·σ(τ(w − 1))·A: it fades on both sides and never stops",
    "quadratic gate": "the gradient is that of w·A − |A|·(w − 1)²/2ε: beyond 1 ± ε it turns round",
    "gamma weight": "the weight is w^k·e^{λ(1 − w)}, a constant in θ",
}


def _clipped_geometric_mean(own: _Moved, rest: _Moved) -> Rule | None:
    """GMPO: the geometric mean of ratios that are clipped one by one, a clipped token being stopped."""
    if own.law.slope or not math.isclose(rest.law.slope, 1 / _LENGTH):
        return None
    risen = [(b.left + b.right) / 2 for b in own.brackets if b.sign == 0 and _DEAD in b.kinds and b.left > 0]
    fallen = [(b.left + b.right) / 2 for b in own.brackets if b.sign == 1 and _DEAD in b.kinds and b.left < 0]
    if len(risen) != 1 or len(fallen) != 1:
        return None
    (high,), (low,) = risen, fallen
    clips = ((-math.inf, high), (low, math.inf))
    for moved, token, other in ((own, own.x, -own.x / (_LENGTH - 1)), (rest, 0 * rest.x, rest.x / (_LENGTH - 1))):
        for sign, clip in enumerate(clips):
            mean = (token.clamp(*clip) + (_LENGTH - 1) * other.clamp(*clip)) / _LENGTH
            expected = torch.where(token.clamp(*clip) == token, mean.exp(), 0.0)
            far = (token - (high, low)[sign]).abs() > 1e-6
            if not _close(mean[far], moved.read.value[far, sign], expected[far]):
                return None
    bounds = {"low": math.exp(low), "high": math.exp(high)}
    about = "a clipped token is stopped, and counts at its bound in the mean that weights the others"
    return Rule("clipped geometric mean", "token", bounds, about=about)


# Whose sign decides.


def _decided_by(loss: ScalarLoss, edges: Edges, along: Move) -> str:
    """Whether the advantage's sign or the whole weight's decides, told by a penalty that outweighs the advantage."""
    bounds = [edge.at for these in edges.values() for edge in these]
    x = torch.cat([torch.tensor([b - gap, b + gap], dtype=torch.float64)
                   for b in bounds for gap in (1e-3 * abs(b), 0.02 * abs(b), 0.2 * abs(b))])  # fmt: skip
    x = x[x.abs() <= _FAR * _LENGTH]
    at = _Places(*(column.repeat_interleave(2) for column in along(x)))
    moved = x.repeat_interleave(2)
    log_v = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(len(x))
    zero = torch.zeros_like(moved)
    penalty = _pull(loss, at, zero, log_v)
    unit = _pull(loss, _own(zero), zero + 1.0, 0.0) - _pull(loss, _own(zero), zero, 0.0)
    size = penalty.abs() / unit.abs().clamp(min=1e-300) * 0.1 / torch.maximum(moved.exp(), torch.ones_like(moved))
    votes: list[str] = []
    for sign in (0, 1):
        c = [_pull(loss, at, _SIGNS[sign] * share * size, log_v) for share in (1.0, 0.5)]
        alive = (c[0] - c[1]).abs() > _rounding(torch.stack(c)) * (c[0].abs() + c[1].abs())
        by_weight = torch.where(penalty > 0, _alive(moved, edges, 0), _alive(moved, edges, 1))
        by_advantage = _alive(moved, edges, sign)
        telling = (penalty.abs() > 0) & (by_weight != by_advantage)
        votes += ["weight" if a == b else "advantage" for a, b in zip(alive[telling], by_weight[telling], strict=True)]
    by = votes[0] if votes and len(set(votes)) == 1 else ""
    # A penalty in the reward is part of the advantage.
    return "advantage" if by == "weight" and _in_the_reward(loss, 0.5 * min(map(abs, bounds)), along) else by


def _in_the_reward(loss: ScalarLoss, step: float, along: Move) -> bool:
    """Whether the penalty is frozen at the sampler: with π_old and π_ref held it moves as the advantage's part does."""
    at = along(torch.tensor([0.0, step, -step], dtype=torch.float64))
    penalty, both = (_pull(loss, at, torch.full_like(at.own, A), 1.0 + at.own, at.rest) for A in (0.0, 100.0))
    share = penalty / (both - penalty)
    return bool((share / share[0] - 1).abs().max() < 1e-4)


def _alive(x: Tensor, edges: Edges, sign: int) -> Tensor:
    low, high = (
        next((edge.at for edge in edges[sign, side] if edge.into == "dead"), default)
        for side, default in (("low", -math.inf), ("high", math.inf))
    )
    return (x > low) & (x < high)


# The picture.


def draw_curves(curves: WeightCurves, path: Path) -> None:
    """Draw the curves of a loss and write the picture.

    Args:
        curves: from ``weight_curves``.
        path: where to write; its suffix is the format.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.

    Source: ours.
    """
    from matplotlib import pyplot

    titles = {"own": "the token's own ratio w", "rest": "the product of the other tokens' ratios"}
    figure, panels = pyplot.subplots(1, len(curves.curves), figsize=(5.5 * len(curves.curves), 3.8), squeeze=False)
    for panel, (name, curve) in zip(panels[0], curves.curves.items(), strict=True):
        for label, x, y in _lines(curve):
            panel.plot(x, y, label=label)
        panel.set(xscale="log", xlabel=titles[name], ylabel="c/A, in units of that at ratio 1")
        panel.legend(frameon=False)
    figure.suptitle("\n".join(str(curves).splitlines()[:1]), fontsize=9, wrap=True)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _lines(curve: Curve) -> Iterator[tuple[str, list[float], list[float]]]:
    shown = curve.log_ratio.abs() <= _FAR + 1e-9
    for label, y in (("A > 0", curve.up), ("A < 0", curve.down)):
        yield label, curve.log_ratio[shown].exp().tolist(), y[shown].tolist()
