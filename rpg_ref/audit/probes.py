"""What a fit cannot see: gradients that are missing, NaN or inf far away, and a mask, padding or split that matters."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rpg_ref.audit.population import sentence_of

ScalarLoss = Callable[..., Tensor]
"""loss(logp, logp_old, logp_ref, advantages [B], mask) ↦ a scalar tensor."""

# Rounding: float64 leaves 1e-15, single precision 1e-7.
_SAME = 1e-5
_ROUNDING = 1e-12
_FAR_NATS = (5.0, 10.0, 20.0, 50.0, 90.0, 200.0, 340.0)


class Rows(NamedTuple):
    """A batch: log-probs under π_θ, π_old and π_ref and mask, [B, T], advantages [B]."""

    p: Float[Tensor, "B T"]
    q: Float[Tensor, "B T"]
    r: Float[Tensor, "B T"]
    A: Float[Tensor, "B"]
    mask: Bool[Tensor, "B T"]


def probe(loss: ScalarLoss) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Say what is wrong with a loss beside its objective.

    Args:
        loss: from ``as_loss``.

    Returns:
        Faults and hazards, a sentence each.

    Source: ours.
    """
    faults, hazards = ([sentence for look in looks for sentence in _said(look, loss)] for looks in (_FAULTS, _HAZARDS))
    return tuple(faults), tuple(hazards)


def _said(look: Callable[[ScalarLoss], Iterator[str]], loss: ScalarLoss) -> list[str]:
    """What one probe says; a loss may well refuse what it is probed with."""
    said: list[str] = []
    try:
        for sentence in look(loss):
            said.append(sentence)
    except Exception as error:  # whatever a black box raises
        said.append(f"it raises {sentence_of(error)}, with {(_FAULTS | _HAZARDS)[look]}")
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


def _pull(loss: ScalarLoss, rows: Rows) -> Float[Tensor, "B T"]:
    """−∂loss/∂log π_θ: how hard each token is pulled up."""
    leaf = rows.p.clone().requires_grad_()
    value = loss(leaf, *rows[1:])
    (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)
    return -gradient


def _value(loss: ScalarLoss, rows: Rows) -> float:
    return float(loss(rows.p.clone().requires_grad_(), *rows[1:]).detach())


def _differ(a: Tensor, b: Tensor) -> bool:
    """Whether two gradients differ by more than single precision; a NaN differs from everything."""
    return not bool((a - b).abs().max() <= _SAME * torch.maximum(a.abs().max(), b.abs().max()))


def _no_advantages(rows: Rows) -> Rows:
    return rows._replace(A=torch.zeros_like(rows.A))


def _detached(loss: ScalarLoss) -> Iterator[str]:
    """What changes the loss's value and not its gradient."""
    rows = _rows(even=True)
    bare = _no_advantages(rows)
    for what, one, other in (
        ("the advantages change", rows, rows._replace(A=2 * rows.A)),
        ("the reference changes", bare, bare._replace(r=rows.r - 0.5)),
    ):
        value, changed = _value(loss, one), _value(loss, other)
        moves = abs(changed - value) > _SAME * max(abs(value), abs(changed))
        if moves and not _differ(_pull(loss, one), _pull(loss, other)):
            yield f"{what} the loss's value and not its gradient: unweighted k1, or a detached term"


def _mask(loss: ScalarLoss) -> Iterator[str]:
    """Whether an ordinary number behind the mask matters."""
    rows = _rows(even=False)
    pull = _pull(loss, rows)
    if bool((pull * ~rows.mask).any()):
        yield "tokens behind the mask get a gradient: the mask is ignored, padding is counted"
    elif _differ(pull, _pull(loss, _filled(rows, -3.0))):
        yield "values behind the mask change the gradient of the tokens before it"


def _filled(rows: Rows, fill: float) -> Rows:
    return Rows._make([*(torch.where(rows.mask, x, fill) for x in rows[:3]), rows.A, rows.mask])


def _padding(loss: ScalarLoss) -> Iterator[str]:
    """Whether the amount of padding matters, or NaN and −inf in it."""
    rows = _rows(even=False)
    pull = _pull(loss, rows)
    if bool((pull * ~rows.mask).any()):
        return
    wider = Rows._make(torch.nn.functional.pad(x, (0, 2)) if x.ndim == 2 else x for x in rows)
    ratio = float(_pull(loss, wider)[:, :-2].norm() / pull.norm())
    if abs(ratio - 1) > _SAME:
        yield f"two more columns of padding multiply the gradient by {ratio:.3g}: padding is counted in the denominator"
    for name, fill in (("−inf", -math.inf), ("NaN", math.nan)):
        if not bool(_pull(loss, _filled(rows, fill)).isfinite().all()):
            yield f"{name} behind the mask makes the gradient NaN: replace masked values before the arithmetic"
            return


def weighing(pull: Float[Tensor, "B T"], advantages: Float[Tensor, "B"], mask: Bool[Tensor, "B T"]) -> str | None:
    """Say how the tokens weigh, if that is in none of the usual ways.

    Args:
        pull: coefficient of each token's ∇log π_θ that the advantages cause, on-policy, [B, T].
        advantages: [B], not all equal; equal ones for a pull that they do not cause.
        mask: [B, T].

    Returns:
        A sentence, or None for token-mean, seq-mean-token-mean and seq-mean-token-sum.

    Source: ours.
    """
    length = mask.sum(1, keepdim=True).double().expand(mask.shape)[mask]
    given = advantages[:, None].expand(mask.shape)[mask]
    # What the loss subtracts from all advantages is none of its weights' doing.
    centred = torch.stack([given, torch.ones_like(given)], 1) if bool(given.std() > 0) else given[:, None]
    for power, sentence in (
        (0.0, None),
        (-1.0, None),
        (-2.0, "a token of a response of length T weighs 1/T², as if divided by the length twice"),
        (-0.5, "a token of a response of length T weighs 1/√T"),
        (1.0, "a token of a response of length T weighs T"),
    ):
        used = pull[mask] / length**power
        solution = torch.linalg.lstsq(centred, used[:, None]).solution.squeeze(1)
        if not _differ(used, centred @ solution):
            if abs(solution[0]) < _SAME * used.abs().max():
                return "every response moves by one number, not by its own advantage: a [B, 1] times [B] broadcast"
            return sentence
    rows = [row[kept] for row, kept in zip(pull, mask, strict=True)]
    if any(_differ(row, row[:1].expand(row.shape)) for row in rows):
        return "the tokens of one response do not weigh the same on-policy"
    return (
        "responses do not move in proportion to their advantages: a denominator for each micro-batch, a filter, or "
        "another response's advantage"
    )


def _aggregation(loss: ScalarLoss) -> Iterator[str]:
    """Whether tokens weigh the same, and each by its own log-probabilities."""
    rows = _rows(even=False)
    rows = rows._replace(q=rows.p, r=rows.p - 0.3)
    bare = _no_advantages(rows)
    penalty = _pull(loss, bare)
    reward = _pull(loss, rows) - penalty
    if not bool(penalty.isfinite().all() and reward.isfinite().all()) or bool((penalty * ~rows.mask).any()):
        return
    size = (reward.abs() + penalty.abs()).max()
    sentence = weighing(reward, rows.A, rows.mask) if reward.abs().max() > _ROUNDING * size else None
    if sentence is not None:
        yield sentence
    by_itself, by_others = _reach(loss, rows, "q")
    if by_others and not by_itself:
        yield "a token's log π_old is used at another token: it is not aligned with log π_θ"
    by_itself, by_others = _reach(loss, bare, "r")
    if by_others and not by_itself:
        yield "a token's log π_ref is used at another token: it is not aligned with log π_θ"
    # Where a token's penalty depends on others' as well, as in a reward to go, equal log-ratios need not pull equally.
    if by_itself and not by_others:
        # An entropy bonus pulls by log π_θ itself: give all tokens the same.
        p = torch.full_like(bare.p, -1.0)
        even = _pull(loss, bare._replace(p=p, q=p, r=p - 0.3))
        of_penalty = weighing(even, torch.ones_like(rows.A), rows.mask)
        if of_penalty not in (None, sentence):
            yield f"in the penalty, {of_penalty}"


def _reach(loss: ScalarLoss, rows: Rows, which: str) -> tuple[bool, bool]:
    """Whether log π_old or log π_ref of the second token is used at that token itself, and at the other tokens."""
    moved = getattr(rows, which).clone()
    moved[:, 1] += 0.01
    change = (_pull(loss, rows._replace(**{which: moved})) - _pull(loss, rows)).abs()
    second = torch.arange(change.shape[1]) == 1
    largest = change.max()
    return bool(change[:, second].max() > _SAME * largest), bool(change[:, ~second].max() > _SAME * largest)


def _region(loss: ScalarLoss) -> Iterator[str]:
    """Whether a clip stops what it should stop."""
    log_w = torch.linspace(-3, 3, 121, dtype=torch.float64)
    p = torch.full((len(log_w), 4), -4.0, dtype=torch.float64)
    q = p.clone()
    q[:, 0] -= log_w
    mask, near = torch.ones(p.shape, dtype=torch.bool), log_w.abs().argmin()
    rows = Rows(p, q, q, 0 * log_w, mask)
    still = _pull(loss, rows)[:, 0]
    stops = {}
    for sign in (1.0, -1.0):
        pull = _pull(loss, rows._replace(A=torch.full_like(log_w, sign)))[:, 0] - still
        dead = pull == 0
        if not bool(pull.isfinite().all()) or bool(dead[near]):
            return
        stops[sign] = (_first(log_w[dead & (log_w < 0)], -1), _first(log_w[dead & (log_w > 0)], 0))
    (up_low, up_high), (down_low, down_high) = stops[1.0], stops[-1.0]
    if up_low is not None and up_high is None and down_high is not None and down_low is None:
        yield (
            "min and max of the clip are exchanged: a good response that has fallen below "
            f"w = {math.exp(up_low):.2g} is never raised again, a bad one above {math.exp(down_high):.2g} never lowered"
        )


def _first(x: Tensor, end: int) -> float | None:
    """The one nearest to w = 1 of those on its side."""
    return float(x[end]) if len(x) else None


def _split(loss: ScalarLoss) -> Iterator[str]:
    """Whether two micro-batches give the batch's gradient, as their mean or as their sum."""
    for even, what in ((True, "responses of equal lengths"), (False, "responses of different lengths")):
        rows = _rows(even=even)
        halves = [Rows._make(x[half] for x in rows) for half in (slice(0, 4), slice(4, 8))]
        total, parts = _pull(loss, rows), torch.cat([_pull(loss, half) for half in halves])
        if _differ(total, parts / 2) and _differ(total, parts):
            yield f"the gradient depends on the split into micro-batches, for {what}"
            return


def _advantages(loss: ScalarLoss) -> Iterator[str]:
    """Whether the loss uses the advantages as they are given."""
    rows = _rows(even=True)
    rows = rows._replace(q=rows.p)
    zero = _pull(loss, _no_advantages(rows))
    if not bool(zero.isfinite().all()):
        yield "equal advantages make the gradient NaN: they are divided by their standard deviation, 0"
        return
    size = _pull(loss, rows).abs().max()
    once, twice, raised = (_pull(loss, rows._replace(A=A)) - zero for A in (rows.A, 2 * rows.A, rows.A + 1))
    if once.abs().max() <= _SAME * 1e-3 * size:
        return
    if _differ(2 * once, twice):
        yield "the gradient is not proportional to the advantages: they are normalised or clipped inside"
    elif not _differ(once, raised):
        yield "a constant added to all advantages changes nothing: their mean is subtracted inside"


def _one_far(rows: Rows, which: str, nats: float) -> Rows:
    """Move the first token of every response away from π_old or π_ref by some nats."""
    first = torch.zeros_like(rows.p)
    first[:, 0] = nats
    # Away from one of them only: the other stays where π_θ is.
    base = rows._replace(q=rows.p, r=rows.p)
    return base._replace(**{which: rows.p - first})


def _far(loss: ScalarLoss) -> Iterator[str]:
    """Where the gradient stops being finite."""
    rows = _rows(even=True)
    for which, name in (("q", "π_old"), ("r", "π_ref")):
        for sign, word in ((1, "+"), (-1, "−")):
            for nats in _FAR_NATS:
                if not bool(_pull(loss, _one_far(rows, which, sign * nats)).isfinite().all()):
                    yield f"NaN or infinite gradient at log π_θ/{name} = {word}{nats:.0f}"
                    break


def _dead(loss: ScalarLoss) -> Iterator[str]:
    """Where a token that has drifted from the reference is no longer pulled back."""
    nats = torch.linspace(0.05, 20, 400, dtype=torch.float64)
    p = torch.full((len(nats), 4), -1.0, dtype=torch.float64)
    mask = torch.ones(p.shape, dtype=torch.bool)
    for sign, word, beyond in ((1, "", "above"), (-1, "−", "below")):
        r = p.clone()
        r[:, 0] -= sign * nats
        pull, reward = (_pull(loss, Rows(p, p, r, A, mask))[:, 0].abs() for A in (0 * nats, 0 * nats + 1))
        if bool(pull[-1] == 0) and bool(pull.max() > _ROUNDING * reward.max()):
            yield (
                f"the penalty has no gradient {beyond} log π_θ/π_ref = {word}{float(nats[pull > 0][-1]):.1f}: "
                "a clamp of its value stops the tokens that drifted most"
            )


_Probe = Callable[[ScalarLoss], Iterator[str]]
_FAULTS: dict[_Probe, str] = {
    _mask: "numbers behind the mask",
    _aggregation: "responses of different lengths",
    _region: "ratios from e⁻³ to e³",
}
_HAZARDS: dict[_Probe, str] = {
    _detached: "other advantages, or another reference",
    _padding: "more padding, −inf or NaN behind the mask",
    _split: "half of a batch",
    _advantages: "zero, doubled or raised advantages",
    _far: "tokens far from π_old or π_ref",
    _dead: "tokens far from π_ref",
}
