"""What a fit cannot see: gradients that are missing, NaN or inf far away, and a mask, padding or split that matters."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rpg_ref.audit.population import AsLoss, sentence_of
from rpg_ref.audit.remarks import Remark

# Rounding: float64 leaves 1e-15, single precision 1e-7.
_SAME = 1e-5
_ROUNDING = 1e-12
_FAR_NATS = (5.0, 10.0, 20.0, 50.0, 90.0, 200.0, 340.0)
# A few units in the last place: bfloat16 keeps 8 bits, float16 keeps 11.
_HALVES = {torch.bfloat16: 0.06, torch.float16: 0.01}
_MOST_PARTS = 64
# log of the widest upper bound of a PPO clip: published ones reach 1.5, those of truncated ratios begin at 2.
_WIDEST = math.log(1.75)


class Rows(NamedTuple):
    """A batch: log-probs under π_θ, π_old and π_ref and mask, [B, T], advantages [B] or [B, T]."""

    p: Float[Tensor, "B T"]
    q: Float[Tensor, "B T"]
    r: Float[Tensor, "B T"]
    A: Tensor
    mask: Bool[Tensor, "B T"]


class Normaliser(NamedTuple):
    """What a loss divides by: the batch's "tokens" or "sequences", or a "constant", times a factor."""

    kind: str
    factor: float


@dataclass(frozen=True)
class Subject:
    """A loss and what is known of it.

    Attributes:
        loss: from ``as_loss``.
        same: the largest relative difference of two gradients that rounding explains.
        dtype: of half precision inside the loss, or None.
        pulls: every gradient that was asked for, so that none is asked for twice.
    """

    loss: AsLoss
    same: float = _SAME
    dtype: torch.dtype | None = None
    pulls: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    def pull(self, rows: Rows) -> Float[Tensor, "B T"]:
        """Return −∂loss/∂log π_θ: how hard each token is pulled up."""
        key = tuple((x.shape, x.numpy().tobytes()) for x in rows)
        if key not in self.pulls:
            leaf = rows.p.clone().requires_grad_()
            value = self.loss(leaf, *rows[1:])
            (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)
            self.pulls[key] = -gradient
        return self.pulls[key]

    def value(self, rows: Rows) -> float:
        """Return the loss."""
        return float(self.loss(rows.p.clone().requires_grad_(), *rows[1:]).detach())

    def differ(self, a: Tensor, b: Tensor) -> bool:
        """Return whether two gradients differ by more than rounding; a NaN differs from everything."""
        return not bool((a - b).abs().max() <= self.same * torch.maximum(a.abs().max(), b.abs().max()))

    def moved(self, rows: Rows, other: Rows) -> Bool[Tensor, "B T"]:
        """Return which tokens' pulls differ between two batches."""
        change = (self.pull(other) - self.pull(rows)).abs()
        return change > self.same * change.max().clamp(min=self.same * 1e-3 * float(self.pull(rows).abs().max()))


class Probed(NamedTuple):
    """What the probes found.

    Attributes:
        remarks: what is wrong, and what was not checked.
        dtype: of half precision inside the loss, or None.
        grouped: whether the loss normalises the advantages within groups of responses.
        normaliser: what the loss divides by, or None where that cannot be told.

    Source: ours.
    """

    remarks: tuple[Remark, ...]
    dtype: torch.dtype | None = None
    grouped: bool = False
    normaliser: Normaliser | None = None


def probe(loss: AsLoss, *, contiguous: bool = False) -> Probed:
    """Say what is wrong with a loss beside its objective.

    Args:
        loss: from ``as_loss``.
        contiguous: whether responses always begin in the first column, as those of a step do.

    Returns:
        Probed.

    Source: ours.
    """
    dtype = _half(Subject(loss))
    subject = Subject(loss, same=_HALVES.get(dtype, _SAME) if dtype else _SAME, dtype=dtype)
    left_out = (*(_EXACT if dtype else ()), *((_left,) if contiguous else ()))
    looks = [look for look in _PROBES if look not in left_out]
    remarks = [remark for look in looks for remark in _said(look, subject)]
    if dtype is not None:
        digits = {torch.bfloat16: "2 digits", torch.float16: "3 digits"}[dtype]
        remarks.append(Remark("precision", dtype=str(dtype).removeprefix("torch."), digits=digits))
    if not loss.per_token:
        remarks.append(Remark("unchecked", what="advantages [B, T], which the loss does not take"))
    grouped = any(remark.kind == "group_normalised" for remark in remarks)
    return Probed(tuple(remarks), dtype, grouped, _normaliser_or_none(subject))


def _said(look: Callable[[Subject], Iterator[Remark]], subject: Subject) -> list[Remark]:
    """What one probe says; a loss may well refuse what it is probed with."""
    said: list[Remark] = []
    try:
        for remark in look(subject):
            said.append(remark)
    except Exception as error:  # whatever a black box raises
        said.append(Remark("refused", error=sentence_of(error), what=_PROBES[look]))
    return said


def _rows(*, even: bool) -> Rows:
    """Eight responses of three to six tokens, or of four each; near π_old, advantages of mean zero."""
    rng = torch.Generator().manual_seed(0)
    p, gap_q, gap_r = torch.randn((3, 8, 6), generator=rng, dtype=torch.float64)
    p = -0.7 - p.abs()
    A = torch.randn(8, generator=rng, dtype=torch.float64)
    length = torch.tensor([4] * 8 if even else [3, 6, 4, 5, 3, 3, 6, 5])
    mask = torch.arange(6) < length[:, None]
    rows = Rows(p, p + 1e-3 * gap_q, p + 0.3 * gap_r, A - A.mean(), mask)
    return Rows._make(x[:, :4] if x.ndim == 2 else x for x in rows) if even else rows


def uneven_rows() -> Rows:
    """Return eight responses of three to six tokens near π_old.

    Returns:
        The rows.

    Source: ours.
    """
    return _rows(even=False)


PAIRED = torch.tensor([1.3, -0.4, 0.7, -1.1] * 2, dtype=torch.float64)
"""Advantages of eight responses, in pairs: two equal ones must move their responses alike. Their mean is not zero."""


def _paired() -> Rows:
    """Responses of different lengths on-policy, whose advantages are equal in pairs."""
    rows = _rows(even=False)
    return rows._replace(q=rows.p, r=rows.p - 0.3, A=PAIRED)


def _no_advantages(rows: Rows) -> Rows:
    return rows._replace(A=torch.zeros_like(rows.A))


def _parts(subject: Subject, rows: Rows) -> tuple[Tensor, Tensor]:
    """The reward's pull and what is left without it; from both signs if there is none at zero."""
    once, zero = subject.pull(rows), subject.pull(_no_advantages(rows))
    if bool(zero.isfinite().all()):
        return once - zero, zero
    other = subject.pull(rows._replace(A=-rows.A))
    return (once - other) / 2, (once + other) / 2


def _half(subject: Subject) -> torch.dtype | None:
    """The half precision that the gradient shows: in its numbers, or in steps where it should be smooth."""
    try:
        pull = subject.pull(_rows(even=True)).double()
    except Exception:  # whatever a black box raises; the probes tell it
        return None
    used = pull[pull != 0]
    for dtype in _HALVES:
        if len(used) > 4 and bool((used.to(dtype).double() == used).all()) and not bool((used.frexp()[0] == 0.5).all()):
            return dtype
    return _staircase(subject)


def _staircase(subject: Subject) -> torch.dtype | None:
    """Half precision, if the pull moves in steps when one token's log-probability moves smoothly."""
    p = torch.full((64, 4), -1.3, dtype=torch.float64)
    q = p.clone()
    p[:, 0] -= 1e-4 * torch.arange(64)
    A = torch.tensor([1.0, -1.0] * 32, dtype=torch.float64)
    try:
        pull = subject.pull(Rows(p, q, q - 0.3, A, torch.ones(p.shape, dtype=torch.bool)))[::2, 0]
    except Exception:  # whatever a black box raises; the probes tell it
        return None
    steps = (pull[1:] - pull[:-1]).abs()
    if not bool(pull.isfinite().all()) or steps.max() <= 1e-4 * pull.abs().max():
        return None
    jumps = int((steps > 1e-9 * pull.abs().max()).sum())
    return torch.bfloat16 if 0 < jumps <= 2 else torch.float16 if jumps <= 12 else None


def _detached(subject: Subject) -> Iterator[Remark]:
    """What changes the loss's value and not its gradient."""
    rows = _rows(even=True)
    bare = _no_advantages(rows)
    for what, one, other in (
        ("the advantages change", rows, rows._replace(A=2 * rows.A)),
        ("the reference changes", bare, bare._replace(r=rows.r - 0.5)),
    ):
        value, changed = subject.value(one), subject.value(other)
        moves = abs(changed - value) > subject.same * max(abs(value), abs(changed))
        if moves and not subject.differ(subject.pull(one), subject.pull(other)):
            yield Remark("detached", what=what)


def _mask(subject: Subject) -> Iterator[Remark]:
    """Whether an ordinary number behind the mask matters."""
    rows = _rows(even=False)
    pull = subject.pull(rows)
    if bool((pull * ~rows.mask).any()):
        yield Remark("mask_ignored")
    elif subject.differ(pull, subject.pull(_filled(rows, -3.0))):
        yield Remark("mask_values")


def _filled(rows: Rows, fill: float) -> Rows:
    return Rows._make([*(torch.where(rows.mask, x, fill) for x in rows[:3]), rows.A, rows.mask])


def _obeys(subject: Subject) -> bool:
    """Whether an ordinary mask is obeyed: each kept token has a gradient, and no other."""
    rows = _paired()
    return torch.equal(subject.pull(rows) != 0, rows.mask)


def _holes(subject: Subject) -> Iterator[Remark]:
    """Whether the mask is obeyed where it has holes, as for tool tokens."""
    rows = _paired()
    if bool((subject.pull(rows) * ~rows.mask).any()):
        return
    inside = rows.mask
    mask = inside.clone()
    for row, columns in ((1, (2, 3)), (2, (1,)), (3, (2,)), (6, (1, 4))):
        mask[row, list(columns)] = False
    live = subject.pull(rows._replace(mask=mask)) != 0
    hit = int((live & ~mask).sum())
    holes = inside & ~mask
    for shift in (1, -1):
        moved = inside & ~holes.roll(shift, 1)
        if hit and torch.equal(live, moved):
            yield Remark("holes_shifted", shift="one column", side="right" if shift > 0 else "left")
            return
    if hit:
        yield Remark("holes_trained", hit=hit)
    elif not torch.equal(live, mask) and _obeys(subject):
        yield Remark("holes_dropped", missed=int((mask & ~live).sum()))


def _left(subject: Subject) -> Iterator[Remark]:
    """Whether the mask is obeyed where padding stands on the left."""
    if not _obeys(subject):
        return
    rows = Rows._make(x.flip(1) if x.ndim == 2 else x for x in _paired())
    wrong = int(((subject.pull(rows) != 0) != rows.mask).sum())
    if wrong:
        yield Remark("left_padding", wrong=wrong)


def _padding(subject: Subject) -> Iterator[Remark]:
    """Whether the amount of padding matters, or NaN and −inf in it."""
    rows = _rows(even=False)
    pull = subject.pull(rows)
    if bool((pull * ~rows.mask).any()):
        return
    wider = Rows._make(torch.nn.functional.pad(x, (0, 2)) if x.ndim == 2 else x for x in rows)
    ratio = float(subject.pull(wider)[:, :-2].norm() / pull.norm())
    if abs(ratio - 1) > subject.same:
        yield Remark("padding_denominator", ratio=ratio)
    for name, fill in (("−inf", -math.inf), ("NaN", math.nan)):
        if not bool(subject.pull(_filled(rows, fill)).isfinite().all()):
            yield Remark("nan_behind", name=name)
            return


def weighing(
    pull: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B"],
    mask: Bool[Tensor, "B T"],
    *,
    same: float = _SAME,
    coupled: bool = False,
) -> Remark | None:
    """Say how the tokens weigh, if that is in none of the usual ways.

    Args:
        pull: coefficient of each token's ∇log π_θ that the advantages cause, on-policy, [B, T].
        advantages: [B], equal in pairs of responses; all equal for a pull that they do not cause.
        mask: [B, T].
        same: the largest relative difference that rounding explains.
        coupled: whether a response's pull depends on the advantages of the others.

    Returns:
        A remark, or None for token-mean, seq-mean-token-mean and seq-mean-token-sum.

    Source: ours.
    """
    size = float(pull.abs().max())
    rows = [row[kept] for row, kept in zip(pull, mask, strict=True)]
    if any(float((row - row[:1]).abs().max()) > same * size for row in rows):
        return Remark("uneven_tokens")
    of_row = torch.stack([row.mean() for row in rows])
    length = mask.sum(1).double()
    equal = advantages[:, None] == advantages
    for power, kind in (
        (0.0, None),
        (-1.0, None),
        (-2.0, "length_twice"),
        (-0.5, "length_root"),
        (1.0, "length_times"),
    ):
        used = of_row / length**power
        apart = ((used[:, None] - used).abs() * equal).max()
        if apart > 2 * same * used.abs().max():
            continue
        if bool((advantages != advantages[0]).any()):
            if (used - used.mean()).abs().max() < same * used.abs().max():
                return Remark("broadcast")
            if kind is None:
                return _of_own_advantage(used, advantages, same, coupled)
        return None if kind is None else Remark(kind)
    return Remark("disproportionate")


def _of_own_advantage(used: Float[Tensor, "B"], A: Float[Tensor, "B"], same: float, coupled: bool) -> Remark | None:
    """Say which function of its own advantage moves a response, unless it is a linear one."""
    # What the loss subtracts from all advantages is none of its weights' doing.
    slope, residual = _line(used, A)
    if residual <= same * used.abs().max() * 2 and abs(slope) > 0:
        return None
    if coupled:
        return None
    steps, factors = used[A.argsort()].diff(), used / A
    slack = 2 * same * float(used.abs().max())
    # Either every response moves by the sign of its advantage, or a larger advantage never moves it less.
    signed = bool((factors >= -slack).all() or (factors <= slack).all())
    if not signed and not bool((steps >= -slack).all() or (steps <= slack).all()):
        return Remark("disproportionate")
    up, down = factors[A > 0], factors[A < 0]
    if all(float(side.max() - side.min()) <= 4 * same * float(factors.abs().max()) for side in (up, down)):
        unit = float(factors.abs().max())
        return Remark("sign_weights", up=float(up.mean()) / unit, down=float(down.mean()) / unit)
    return Remark("own_transform")


def _line(used: Float[Tensor, "B"], A: Float[Tensor, "B"]) -> tuple[float, float]:
    """The slope of a line through a response's pull over its advantage, and the largest distance from it."""
    columns = torch.stack([A, torch.ones_like(A)], 1)
    solution = torch.linalg.lstsq(columns, used[:, None]).solution.squeeze(1)
    return float(solution[0]), float((used - columns @ solution).abs().max())


def _aggregation(subject: Subject) -> Iterator[Remark]:
    """Whether tokens weigh the same, and each by its own log-probabilities."""
    rows = _paired()
    bare = _no_advantages(rows)
    reward, penalty = _parts(subject, rows)
    if not bool(penalty.isfinite().all() and reward.isfinite().all()) or bool((penalty * ~rows.mask).any()):
        return
    size = (reward.abs() + penalty.abs()).max()
    remark = None
    if reward.abs().max() > _ROUNDING * size:
        moved = _moved_rows(subject)
        remark = weighing(reward, rows.A, rows.mask, same=subject.same, coupled=len(moved) > 1)
        if moved and 0 not in moved:
            remark = Remark("disproportionate")
    if remark is not None and remark.kind == "uneven_tokens" and _follows_values(subject):
        remark = Remark("value_filter")
    if remark is not None:
        yield remark
    by_itself, by_others = _reach(subject, rows, "q")
    if by_others and not by_itself:
        yield Remark("old_misaligned")
    by_itself, by_others = _reach(subject, bare, "r")
    if by_others and not by_itself:
        yield Remark("ref_misaligned")
    # Where a token's penalty depends on others' as well, as in a reward to go, equal log-ratios need not pull equally.
    if by_itself and not by_others:
        # An entropy bonus pulls by log π_θ itself: give all tokens the same.
        p = torch.full_like(bare.p, -1.0)
        even = subject.pull(bare._replace(p=p, q=p, r=p - 0.3))
        of_penalty = weighing(even, torch.ones_like(rows.A), rows.mask, same=subject.same)
        known = remark is not None and of_penalty is not None and remark.kind == of_penalty.kind
        if of_penalty is not None and not known:
            yield of_penalty.in_penalty()


def _follows_values(subject: Subject) -> bool:
    """Whether the weights within a response follow its log-probabilities when these change places."""
    rows = _rows(even=True)
    rows = rows._replace(q=rows.p, r=rows.p - 0.3, A=PAIRED)
    turned = rows._replace(p=rows.p.flip(1), q=rows.q.flip(1), r=rows.r.flip(1))
    here, there = _parts(subject, rows)[0], _parts(subject, turned)[0]
    return not subject.differ(here, there.flip(1)) and subject.differ(here, there)


def _reach(subject: Subject, rows: Rows, which: str) -> tuple[bool, bool]:
    """Whether log π_old or log π_ref of the second token is used at that token itself, and at the other tokens."""
    moved = getattr(rows, which).clone()
    moved[:, 1] += 0.1 if subject.dtype else 0.01
    change = (subject.pull(rows._replace(**{which: moved})) - subject.pull(rows)).abs()
    second = torch.arange(change.shape[1]) == 1
    largest = change.max()
    return bool(change[:, second].max() > subject.same * largest), bool(
        change[:, ~second].max() > subject.same * largest
    )


def _region(subject: Subject) -> Iterator[Remark]:
    """Whether a clip stops what it should stop."""
    # Both signs in turn: whatever normalises the advantages leaves them as they are.
    log_w = torch.linspace(-3, 3, 128, dtype=torch.float64).repeat_interleave(2)
    p = torch.full((len(log_w), 4), -4.0, dtype=torch.float64)
    q = p.clone()
    q[:, 0] -= log_w
    A = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(len(log_w) // 2)
    rows = Rows(p, q, q, A, torch.ones(p.shape, dtype=torch.bool))
    reward, still = _parts(subject, rows)
    stops = {}
    for sign in (1.0, -1.0):
        pull, ratio, whole = reward[sign == A, 0], log_w[sign == A], (reward + still)[sign == A, 0]
        # A clip of reward and penalty together leaves nothing of either.
        dead = torch.minimum(pull.abs(), whole.abs()) <= _ROUNDING * pull.abs().max()
        if not bool(pull.isfinite().all()) or bool(dead[ratio.abs().argmin()]):
            return
        stops[sign] = (_first(ratio[dead & (ratio < 0)], -1), _first(ratio[dead & (ratio > 0)], 0))
    (up_low, up_high), (down_low, down_high) = stops[1.0], stops[-1.0]
    good = up_low is not None and up_high is None
    # A dual clip, or a bound of the ratio itself, also stops bad responses far above: no PPO clip is so wide.
    bad = (
        down_high is not None
        and down_low is None
        and down_high <= min(_WIDEST, _WIDEST if up_high is None else up_high)
    )
    if good and bad:
        yield Remark("clip_exchanged", low=math.exp(up_low or 0.0), high=math.exp(down_high or 0.0))
    elif good:
        yield Remark("clip_good", low=math.exp(up_low or 0.0))
    elif bad:
        yield Remark("clip_bad", high=math.exp(down_high or 0.0))


def _first(x: Tensor, end: int) -> float | None:
    """The one nearest to w = 1 of those on its side."""
    return float(x[end]) if len(x) else None


def _split(subject: Subject) -> Iterator[Remark]:
    """Whether two micro-batches give the batch's gradient, as their mean or as their sum."""
    coupling = _coupling(subject)
    if coupling is not None and 4 < coupling.size < _MANY:
        return  # half of the batch is less than one group
    for even, what in ((True, "responses of equal lengths"), (False, "responses of different lengths")):
        rows = _rows(even=even)
        halves = [Rows._make(x[half] for x in rows) for half in (slice(0, 4), slice(4, 8))]
        total, parts = subject.pull(rows), torch.cat([subject.pull(half) for half in halves])
        if subject.differ(total, parts / 2) and subject.differ(total, parts):
            yield Remark("split", what=what)
            return


class Coupling(NamedTuple):
    """Which responses a response's advantage moves beside its own, and what is done to them."""

    size: int
    all_of: int
    centred: bool
    scaled: bool


_MANY = 64


def _many() -> Rows:
    """As many equal responses as the largest groups hold, on-policy, with other advantages."""
    rows = _rows(even=True)
    p = rows.p[:1].expand(_MANY, 4).clone()
    A = torch.randn(_MANY, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    return Rows(p, p, p - 0.3, A, torch.ones(p.shape, dtype=torch.bool))


def _moved_rows(subject: Subject) -> list[int]:
    """The responses that move with the advantage of the first one."""
    rows = _many()
    moved = subject.moved(rows, rows._replace(A=rows.A + 0.3 * (torch.arange(_MANY) == 0))).any(1)
    return moved.nonzero().flatten().tolist()


def _coupling(subject: Subject) -> Coupling | None:
    """How the advantages of several responses are normalised together, or None if each acts by itself."""
    together = _moved_rows(subject)
    if len(together) < 2:
        return None
    rows = _many()
    reward = subject.pull(rows)
    # A small number beside the standard deviation leaves a trace.
    same = max(subject.same, 1e-3) * float(reward.abs().max())

    def unmoved(chosen: list[int], raised: float, factor: float) -> bool:
        A = rows.A.clone()
        A[chosen] = A[chosen] * factor + raised
        return bool((subject.pull(rows._replace(A=A)) - reward).abs().max() <= same)

    centred, scaled = unmoved(together, 1.0, 1.0), unmoved(together, 0.0, 2.0)
    size = len(together)
    if size == _MANY and centred:
        # The mean may be a group's although the standard deviation is the batch's.
        size = next((n for n in (2, 4, 8, 16, 32) if unmoved(list(range(n)), 1.0, 1.0)), size)
    return Coupling(size, len(together), centred, scaled)


def _advantages(subject: Subject) -> Iterator[Remark]:
    """Whether the loss uses the advantages as they are given."""
    rows = _rows(even=True)
    rows = rows._replace(q=rows.p)
    zero = subject.pull(_no_advantages(rows))
    if not bool(zero.isfinite().all()):
        yield Remark("equal_nan")
    coupling = _coupling(subject)
    if coupling is not None and coupling.size < _MANY:
        whole = coupling.scaled and coupling.all_of > coupling.size
        yield of_groups(coupling.size, centred=coupling.centred, scaled=coupling.scaled, over_the_batch=whole)
        return
    if not bool(zero.isfinite().all()):
        return
    size = subject.pull(rows).abs().max()
    once, twice, raised = (subject.pull(rows._replace(A=A)) - zero for A in (rows.A, 2 * rows.A, rows.A + 1))
    if coupling is None or once.abs().max() <= subject.same * 1e-3 * size:
        return
    if subject.differ(2 * once, twice):
        yield Remark("normalised")
    elif not subject.differ(once, raised):
        yield Remark("centred")


def of_groups(size: int, *, centred: bool, scaled: bool, over_the_batch: bool = False) -> Remark:
    """Say what is done to the advantages of a group.

    Args:
        size: number of its responses.
        centred: whether a constant added to all of them changes nothing.
        scaled: whether a factor of all of them changes nothing.
        over_the_batch: whether it must be a factor of the whole batch's.

    Returns:
        The remark.

    Source: ours.
    """
    how = {
        (True, True): "their mean is subtracted and they are divided by their standard deviation",
        (True, False): "their mean is subtracted",
        (False, True): "they are divided by their spread",
        (False, False): "one response's advantage moves the others of its group",
    }[centred, scaled]
    if over_the_batch:
        how = "their mean is subtracted, and the whole batch is divided by its standard deviation"
    return Remark("group_normalised", size=size, how=how)


def _normaliser(subject: Subject) -> Normaliser | None:
    """What the reward's part divides by, from two batches of different sizes."""
    rows = _paired()
    half = Rows._make(x[:4] for x in rows)
    twice = rows._replace(A=2 * rows.A)
    reward = _parts(subject, rows)[0]
    if subject.differ(2 * reward, _parts(subject, twice)[0]) or _coupling(subject) is not None:
        return None
    for power, units in ((0.0, ("tokens", "sequences")), (-1.0, ("sequences",))):
        sizes = []
        for batch in (rows, half):
            length = batch.mask.sum(1).double()
            used = _parts(subject, batch)[0].sum(1) / length ** (power + 1)
            slope, residual = _line(used, batch.A)
            if not residual <= 2 * subject.same * float(used.abs().max()) or slope == 0:
                break
            sizes.append((1 / abs(slope), {"tokens": float(length.sum()), "sequences": float(len(length))}))
        if len(sizes) < 2:
            continue
        (whole, counts), (part, part_counts) = sizes
        for unit in units:
            factor = whole / counts[unit]
            if abs(factor - part / part_counts[unit]) <= 4 * subject.same * factor:
                # Sums over tokens are divided by constants of all sizes: nothing follows from that one.
                return Normaliser("token sums" if power == 0.0 and unit == "sequences" else unit, factor)
        if abs(whole - part) <= 4 * subject.same * whole:
            return Normaliser("constant", whole)
    return None


def _normaliser_or_none(subject: Subject) -> Normaliser | None:
    try:
        return _normaliser(subject)
    except Exception:  # whatever a black box raises; the probe of its size tells it
        return None


def _size(subject: Subject) -> Iterator[Remark]:
    """Whether the gradient has the size that its aggregation says."""
    found = _normaliser(subject)
    if found is None or found.kind not in ("tokens", "sequences"):
        return
    for factor, kind in ((found.factor, "size_divided"), (1 / found.factor, "size_times")):
        if 2 <= round(factor) <= _MOST_PARTS and abs(factor / round(factor) - 1) <= 4 * subject.same:
            unit = {"tokens": "tokens", "sequences": "responses of the mean over their tokens"}[found.kind]
            yield Remark(kind, unit=unit, factor=factor)


def _terms(subject: Subject) -> Iterator[Remark]:
    """Whether every term is averaged over the same batch: one row, and sixteen copies of it."""
    row = Rows._make(x[:1] for x in _rows(even=True))
    rest, reward = [], []
    count = 16
    for copies in (1, count):
        rows = Rows._make(x.repeat(copies, *[1] * (x.ndim - 1)) for x in row)
        ones = torch.ones(copies, dtype=torch.float64)
        once, twice = (float(subject.pull(rows._replace(A=A)).sum()) for A in (ones, 2 * ones))
        rest.append(2 * once - twice)
        reward.append(twice - once)
    if not all(map(math.isfinite, rest + reward)) or abs(reward[0]) <= 1e-6 * abs(rest[0]):
        return
    of_reward = reward[1] / reward[0]
    if not any(abs(of_reward / fine - 1) <= 4 * subject.same for fine in (1, count)):
        if abs(of_reward / round(of_reward) - 1) <= 4 * subject.same:
            yield Remark("term_times", which="the gradient", factor=of_reward, rows=count)
        return
    if abs(rest[0]) > 1e-6 * abs(reward[0]):
        times = rest[1] / rest[0] / of_reward
        if round(times) >= 2 and abs(times / round(times) - 1) <= 4 * subject.same:
            yield Remark("term_times", which="a term beside the reward's", factor=times, rows=count)


def _behind(subject: Subject) -> Iterator[Remark]:
    """Whether [B, T] advantages behind the mask matter, and at which tokens one acts."""
    if not subject.loss.per_token:
        return
    rows = _paired()
    rows = rows._replace(A=rows.A[:, None].expand(rows.mask.shape).clone())
    pull = subject.pull(rows)
    if bool((pull * ~rows.mask).any()):
        return
    bumped = rows.A.clone()
    bumped[:, 1] += 0.3
    moved = subject.moved(rows, rows._replace(A=bumped))[rows.mask.all(1)]
    if bool(moved.any()) and not bool(moved[:, 1].any()):
        yield Remark("advantages_at_other_tokens")
        return
    zero, nan = (subject.pull(rows._replace(A=torch.where(rows.mask, rows.A, fill))) for fill in (0.0, math.nan))
    if subject.differ(pull, zero):
        yield Remark("advantages_behind", fill="0")
        return
    # Where NaN log-probabilities do the same, that is said already.
    guarded = bool(subject.pull(_filled(_rows(even=False), math.nan)).isfinite().all())
    if not bool((nan if guarded else nan[rows.mask]).isfinite().all()):
        yield Remark("nan_behind", name="NaN in the advantages [B, T]")


def _far_masks(subject: Subject) -> Iterator[Remark]:
    """Whether a mask of whole responses is decided by each token's own advantage."""
    if not subject.loss.per_token:
        return
    p = torch.full((8, 4), -2.0, dtype=torch.float64)
    q, A = p.clone(), torch.full((8, 4), 3.0, dtype=torch.float64)
    # The first token stays at π_old. The others fall far below it in two responses, and rise far above in two more.
    q[2:4, 1:] += 2.0
    q[4:6, 1:] -= 2.0
    A[:, 0] = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
    rows = Rows(p, q, q, A, torch.ones(p.shape, dtype=torch.bool))
    near_good, near_bad, *far = _parts(subject, rows)[0][:6, 0].tolist()
    for good, bad in (far[:2], far[2:]):
        # A weight that follows the whole response, as GSPO's, has a clip of its own for each sign.
        weighs_alike = abs(good - near_good) <= subject.same * abs(near_good)
        if near_bad != 0 and good != 0 and bad == 0 and weighs_alike:
            yield Remark("mask_per_token")
            return


def _far(subject: Subject) -> Iterator[Remark]:
    """Where the gradient stops being finite."""
    steps = [(sign, nats) for sign in (1, -1) for nats in _FAR_NATS]
    many = torch.tensor([0.0, 0.0, *(sign * nats for sign, nats in steps)] * 2, dtype=torch.float64)
    p = torch.full((len(many), 4), -1.0, dtype=torch.float64)
    A = torch.ones(len(many), dtype=torch.float64)
    A[len(many) // 2 :] = -1.0
    mask = torch.ones(p.shape, dtype=torch.bool)
    for which, name in (("q", "π_old"), ("r", "π_ref")):
        moved = p.clone()
        moved[:, 0] -= many
        # Away from one of them only: the other stays where π_θ is.
        rows = Rows(p, p, p, A, mask)._replace(**{which: moved})
        finite = subject.pull(rows).isfinite().all(1)
        if bool(finite.all()):
            continue
        apart = bool(finite[many == 0].all())
        for sign, word in ((1, "+"), (-1, "−")):
            for nats in _FAR_NATS:
                chosen = finite[many == sign * nats] if apart else _far_alone(subject, which, sign * nats)
                if not bool(chosen.all()):
                    yield Remark("far", name=name, word=word, nats=nats)
                    break


def _far_alone(subject: Subject, which: str, nats: float) -> Tensor:
    """Whether each pull is finite where every response's first token is that far away."""
    rows = _rows(even=True)
    first = torch.zeros_like(rows.p)
    first[:, 0] = nats
    base = rows._replace(q=rows.p, r=rows.p)
    return subject.pull(base._replace(**{which: rows.p - first})).isfinite()


def _dead(subject: Subject) -> Iterator[Remark]:
    """Where a token that has drifted from the reference is no longer pulled back."""
    nats = torch.linspace(0.05, 20, 400, dtype=torch.float64)
    both = torch.cat([nats, -nats])
    p = torch.full((len(both), 4), -1.0, dtype=torch.float64)
    r = p.clone()
    r[:, 0] -= both
    mask = torch.ones(p.shape, dtype=torch.bool)
    pulls, rewards = (subject.pull(Rows(p, p, r, A, mask))[:, 0].abs() for A in (0 * both, 0 * both + 1))
    for half, word, beyond in ((slice(0, 400), "", "above"), (slice(400, 800), "−", "below")):
        pull, reward = pulls[half], rewards[half]
        if bool(pull[-1] == 0) and bool(pull.max() > _ROUNDING * reward.max()):
            yield Remark("dead", beyond=beyond, word=word, nats=float(nats[pull > 0][-1]))


_Probe = Callable[[Subject], Iterator[Remark]]
_PROBES: dict[_Probe, str] = {
    _mask: "numbers behind the mask",
    _aggregation: "responses of different lengths",
    _region: "ratios from e⁻³ to e³",
    _holes: "a mask with holes",
    _left: "padding on the left",
    _terms: "copies of one response",
    _size: "half of a batch, and doubled advantages",
    _detached: "other advantages, or another reference",
    _padding: "more padding, −inf or NaN behind the mask",
    _split: "half of a batch",
    _advantages: "zero, doubled or raised advantages",
    _behind: "advantages [B, T], with 0 or NaN behind the mask",
    _far_masks: "advantages [B, T] in responses far from π_old",
    _far: "tokens far from π_old or π_ref",
    _dead: "tokens far from π_ref",
}
_EXACT = (_far, _dead, _detached, _terms)
"""Probes that half precision would answer by its own rounding or its own overflow."""
