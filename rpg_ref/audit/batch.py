"""Audit the tensors of somebody's run: which share of this batch's gradient comes from what should not be in it?

The gradient is that of the loss at each token's log π_θ, [B, T], and a share is a part's length over its length. The
objective's own gradient at a token is known in closed form, up to a baseline: a constant times w = π_θ/π_old adds
nothing in expectation. What the loss's gradient has beside it, at that token, is one of the parts.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from rpg_ref.audit.advised import Advised, advice_lines, advice_records
from rpg_ref.audit.forms import PENALTIES, REWARDS
from rpg_ref.audit.population import Loss, scalar_of
from rpg_ref.audit.sampler import RIGHT_WEIGHTS, SAMPLER_WEIGHTS
from rpg_ref.checks import check_batch, check_number
from rpg_ref.divergences import DIVERGENCES
from rpg_ref.objective import TERMS, Objective

# To what share of itself a part of the gradient is known, by the precision inside the loss.
_DOUBLE, _SINGLE, _HALF = 1e-8, 1e-4, 0.05
# The same of the whole gradient, which is no difference of two.
_WHOLE = {_DOUBLE: 1e-9, _SINGLE: 1e-6, _HALF: 5e-3}
_ZERO = 1e-12
# A clip stops a token that has moved. One that has not, and gets no gradient, is left out for another reason.
_MOVED = 1e-6
# Forms are compared on so many responses, and a term is found where so many tokens tell it.
_NAMED_ROWS, _ENOUGH = 32, 8
_ROW_OF = {"reverse_kl": "urkl", "forward_kl": "ufkl"}
# How a token of a response of length T may weigh.
_POWERS = {0.0: "1", -1.0: "1/T", -2.0: "1/T²", -0.5: "1/√T", 1.0: "T"}

PARTS = {
    "masked": "places that the mask leaves out",
    "behind_mask": "what values behind the mask do to the tokens before it",
    "reward": "a wrong weight of the advantages",
    "advantages": "advantages changed inside the loss",
    "penalty": "a wrong penalty",
    "sampler": "the sampler's weight: another one than π_old/π_sampler, or its bound",
    "normaliser": "the normaliser: tokens that do not weigh the same",
    "stopped": "tokens that get no gradient, though the objective has one there",
    "outside": "tokens outside the clip that get one",
    "rounding": "rounding: the dumped precision against float64",
}
"""The parts of a gradient that have a share, by name."""


class _Rows(NamedTuple):
    p: Float[Tensor, "B T"]
    q: Float[Tensor, "B T"]
    r: Float[Tensor, "B T"]
    A: Float[Tensor, "B"] | Float[Tensor, "B T"]
    mask: Shaped[Tensor, "B T"]
    s: Float[Tensor, "B T"] | None = None

    def arguments(self) -> list[Tensor]:
        """Copies of all but log π_θ, as the loss takes them."""
        return [x.clone() for x in self[1:] if isinstance(x, Tensor)]


@dataclass(frozen=True)
class BatchReport:
    """Where the gradient of one real batch comes from.

    Attributes:
        objective: what it was measured against, declared or found on this batch; None: no term could be told.
        declared: whether the caller declared the objective.
        shares: length of each part over the length of the loss's gradient, names of PARTS. Parts may overlap and
            cancel, so that they need not add up to 1.
        tokens: how many places each part touches.
        normaliser: what the sum over tokens is divided by, in words.
        scale: weight of a token's own gradient; for a mean over tokens 1 over their number.
        clip: the interval of w = π_θ/π_old outside which the loss was seen, or declared, to stop tokens.
        remarks: what is wrong, with advice.

    Source: ours.
    """

    objective: Objective | None
    declared: bool
    shares: Mapping[str, float]
    tokens: Mapping[str, int]
    normaliser: str
    scale: float
    clip: tuple[float, float]
    remarks: tuple[Advised, ...]

    @property
    def ok(self) -> bool:
        """Whether no remark is an error."""
        return all(remark.severity != "error" for remark in self.remarks)

    def record(self) -> dict[str, Any]:
        """Return plain values, as a JSON file holds them."""
        return {
            "objective": None if self.objective is None else {**self.objective.terms, "level": self.objective.level},
            "declared": self.declared,
            "shares": dict(self.shares),
            "tokens": dict(self.tokens),
            "normaliser": self.normaliser,
            "scale": self.scale,
            "clip": [x if math.isfinite(x) else None for x in self.clip],
            "remarks": advice_records(self.remarks),
        }

    def __str__(self) -> str:
        """Return the objective, the normaliser, one line for each part that is there, and the remarks."""
        by = "as declared" if self.declared else "as found on this batch"
        lines = [f"measured against {self.objective or 'no objective'}, {by}; divided by {self.normaliser}"]
        lines += ["share of the gradient's length:"]
        lines += [f"  {self.shares[name]:8.2g}  {PARTS[name]} ({self.tokens[name]:,})" for name in self.shares]
        return "\n".join([*lines, *advice_lines(self.remarks)])


def audit_batch(
    loss: Loss,
    logp: Float[Tensor, "B T"],
    logp_old: Float[Tensor, "B T"],
    logp_ref: Float[Tensor, "B T"] | None,
    advantages: Float[Tensor, "B"] | Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    logp_sampler: Float[Tensor, "B T"] | None = None,
    level: str = "token",
    clip: tuple[float, float] | None = None,
    **terms: float,
) -> BatchReport:
    """Say which share of a real batch's gradient comes from a wrong term, the clip, masked places, the normaliser.

    Args:
        loss: loss(logp, logp_old, logp_ref, advantages, mask) ↦ a scalar to minimise, or anything with one as
            ``.loss``. It may be bound to this batch. It is called at most twelve times.
        logp: log π_θ of the dumped tokens, [B, T].
        logp_old: log π_old, [B, T].
        logp_ref: log π_ref, [B, T]; None means π_old.
        advantages: as the loss takes them, [B] or [B, T].
        mask: [B, T], nonzero for tokens that count, in the dtype that the loss takes.
        logp_sampler: log-probabilities under the engine that drew the tokens, [B, T], where it is not π_old. The loss
            then takes it as a sixth tensor, and the objective's gradient is weighted by π_old/π_sampler.
        level: of the objective, "token" or "sequence".
        clip: the interval of w = π_θ/π_old that the method states, such as (0.8, 1.2). By default it is read from the
            tokens that the loss stops.
        terms: the objective that is meant, as in ``assert_gradient``: ``reward=1.0, reverse_kl=0.04``. By default it is
            the one that explains this batch's gradient best.

    Returns:
        BatchReport; print it.

    Raises:
        ValueError: a shape or a kept value is wrong, as ``check_batch``; the loss returns no scalar with a gradient,
            or another gradient when it is called again; a term is unknown.

    Source: ours; each term's gradient at a token is the weight of the paper's Table 1.
    """
    declared = Objective(terms, level) if terms else None
    for name, c in terms.items():
        check_number(name, c, -math.inf, math.inf, "()")
    logp_ref = logp_old if logp_ref is None else logp_ref
    check_batch(logp, logp_old, logp_ref, advantages, mask, logp_sampler=logp_sampler)
    if clip is not None:
        check_number("clip[0]", clip[0], 0.0, 1.0)
        check_number("clip[1]", clip[1], 1.0, math.inf)
    sampler = None if logp_sampler is None else logp_sampler.detach()
    rows = _Rows._make([*(x.detach() for x in (logp, logp_old, logp_ref, advantages, mask)), sampler])
    return _report(_gradients(loss, rows, level), declared, clip)


def right_pull(name: str, p: Tensor, q: Tensor, r: Tensor, advantage: Tensor) -> Tensor:
    """Return how hard one term of J pulls a sample's log π_θ up, up to a constant times w.

    Args:
        name: of TERMS.
        p: log π_θ of each sample.
        q: log π_old.
        r: log π_ref.
        advantage: A.

    Returns:
        One value per sample; its mean under π_old, times ∇log π_θ, is the term's gradient in J.

    Source: paper §3, Table 1: the weight of a divergence is u·slope(log v).
    """
    if name == "reward":
        return (p - q).exp() * advantage
    if name == "entropy":
        return -(p - q).exp() * p
    row, base = (name.removesuffix("_old"), q) if name.endswith("_old") else (name, r)
    return -(base - q).exp() * DIVERGENCES[_ROW_OF.get(row, row)].slope(p - base)


class _Gradients(NamedTuple):
    """A batch in float64, ordinary numbers behind the mask, and the gradients that everything follows from."""

    p: Float[Tensor, "B T"]
    q: Float[Tensor, "B T"]
    r: Float[Tensor, "B T"]
    A: Float[Tensor, "B T"]
    keep: Bool[Tensor, "B T"]
    length: Float[Tensor, "B 1"]
    whole: Float[Tensor, "B T"]
    """−∂loss/∂log π_θ."""
    reward: Float[Tensor, "B T"]
    """What the advantages add to it, where the mask keeps."""
    penalty: Float[Tensor, "B T"]
    """What is left without them."""
    behind: Float[Tensor, "B T"]
    """What other numbers behind the mask change where it keeps."""
    rounding: Float[Tensor, "B T"]
    level: str
    tolerance: float
    remarks: tuple[Advised, ...]
    drift: Float[Tensor, "B T"]
    """log π_old − log π_sampler, 0 where the mask leaves out."""
    omega: Float[Tensor, "B T"]
    """What each token's pull is weighted by for the sampler."""

    @property
    def free(self) -> Tensor:
        """What has no expected gradient, whatever it is multiplied by."""
        return self.w * self.omega

    @property
    def w(self) -> Tensor:
        """π_θ/π_old of each sample."""
        return (self.p - self.q).exp()

    @property
    def names(self) -> list[str]:
        """The penalties that this batch can tell; divergences from π_old only where the policy has left it."""
        moved = float((self.p - self.q).abs()[self.keep].max()) > 1e-3
        return [name for name in TERMS if name != "reward" and (moved or not name.endswith("_old"))]

    @property
    def given(self) -> Tensor:
        """The mean advantage of each response, [B]."""
        return (self.A * self.keep).sum(1) / self.keep.sum(1).clamp(min=1)

    @property
    def one_each(self) -> bool:
        """Whether every response has one advantage."""
        return not bool(((self.A - self.given[:, None]) * self.keep).abs().max() > 1e-6 * self.A.abs().max())

    @property
    def direction(self) -> Tensor:
        """The sign of the advantage that the loss uses, which need not be that of the one it is given."""
        row = (self.reward * self.w * self.keep).sum(1, keepdim=True).sign()
        return torch.where(row == 0, self.A, row) if self.one_each else self.A

    def right(self, name: str) -> Tensor:
        """What the term pulls."""
        return torch.where(self.keep, right_pull(name, self.p, self.q, self.r, self.A) * self.omega, 0.0)

    def objective(self, terms: Mapping[str, float]) -> Tensor:
        """What several terms pull."""
        return sum((c * self.right(name) for name, c in terms.items()), torch.zeros_like(self.p))


def _pull(loss: Loss, rows: _Rows) -> Float[Tensor, "B T"]:
    """−∂loss/∂log π_θ, in float64."""
    leaf = rows.p.clone().requires_grad_()
    with warnings.catch_warnings():
        # torch.compile looks at .grad of what it is given, which is no leaf, so that a loss may write into it.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        value = scalar_of(loss(leaf * 1.0, *rows.arguments()), "loss")
    (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)
    return -gradient.double()


def _filled(rows: _Rows, fill: float) -> _Rows:
    """Replace what the mask leaves out, the advantages there by 0."""
    keep = rows.mask != 0
    A = torch.where(keep, rows.A, 0.0) if rows.A.ndim == 2 else rows.A
    p, q, r = (torch.where(keep, x, fill) for x in rows[:3])
    return _Rows(p, q, r, A, rows.mask, None if rows.s is None else torch.where(keep, rows.s, fill))


def _gradients(loss: Loss, dumped: _Rows, level: str) -> _Gradients:
    """Call the loss, on the dumped tensors and on variations of them."""
    rows, given, remarks = _finite(loss, dumped)
    try:
        exact = _Rows._make([*(x.double() for x in rows[:4]), rows.mask, None if rows.s is None else rows.s.double()])
        g = _pull(loss, exact)
        rows = exact
    except Exception:  # a loss may be bound to tensors of the dumped precision
        g = given
    if not bool(g.any()):
        raise ValueError("the loss has a gradient of zero on this batch; pass logp undetached, or another batch")
    keep = rows.mask != 0
    zero = _pull(loss, rows._replace(A=torch.zeros_like(rows.A)))
    if not bool(zero.isfinite().all()):
        zero = _between(rows, g, _pull(loss, rows._replace(A=-rows.A)))
    behind = torch.where(keep, g - _pull(loss, _filled(rows, -3.0)), 0.0)
    half = list(_half_precision(loss, rows, g))
    tolerance = _HALF if half else _SINGLE if _is_single(loss, rows, g) else _DOUBLE
    ordinary = _filled(rows, -1.0)
    p, q, r, A = (x.double() for x in ordinary[:4])
    drift = torch.zeros_like(q) if ordinary.s is None else q - ordinary.s.double()
    A = torch.where(keep, A if A.ndim == 2 else A[:, None], 0.0)
    drift = torch.where(keep, drift, 0.0)
    if level == "sequence":
        drift = drift.sum(1, keepdim=True).expand(drift.shape)
        p, q, r = (torch.where(keep, x, 0.0).sum(1, keepdim=True).expand(x.shape) for x in (p, q, r))
    length = keep.sum(1, keepdim=True).double().clamp(min=1)
    reward, penalty = (torch.where(keep, x, 0.0) for x in (g - zero, zero))
    return _Gradients(
        p,
        q,
        r,
        A,
        keep,
        length,
        g,
        reward,
        penalty,
        behind,
        given - g,
        level,
        tolerance,
        (*remarks, *half),
        drift,
        drift.exp(),
    )


def _finite(loss: Loss, dumped: _Rows) -> tuple[_Rows, Tensor, list[Advised]]:
    """The batch with a finite gradient, that gradient, and what had to be replaced for it."""
    given = _pull(loss, dumped)
    if bool(given.isfinite().all()):
        if not torch.equal(given, _pull(loss, dumped)):
            raise ValueError("the loss has another gradient when it is called again; make it deterministic")
        return dumped, given, []
    rows = _filled(dumped, -1.0)
    again, at = _pull(loss, rows), (~given.isfinite()).nonzero()
    first = at[0].tolist()
    if not bool(again.isfinite().all()):
        raise ValueError(
            f"the gradient at {first} is {given[tuple(first)].item()}, also with ordinary numbers behind the mask; "
            "bound the log-ratios before exp, then audit again"
        )
    remark = Advised(
        f"values behind the mask make the gradient NaN or infinite at {len(at):,} places, first at {first}",
        "error",
        "One such value destroys the whole update, since NaN · 0 is NaN.",
        "Replace masked values before the arithmetic: `logp = torch.where(mask, logp, 0.0)`, and the others too.",
    )
    return rows, again, [remark]


def _between(rows: _Rows, plus: Tensor, minus: Tensor) -> Tensor:
    """The gradient without advantages, from those of both signs: what divides by their spread has none at zero."""
    keep, log_w = rows.mask != 0, (rows.p - rows.q).double()
    half = torch.where(keep, (plus - minus) / 2 * (-log_w).exp(), math.nan)
    of_row = half.nanmedian(1, keepdim=True).values
    # A clip stops a token for one of the signs, which leaves half of its response's pull.
    once = keep & ((half - of_row / 2).abs() < 1e-3 * of_row.abs())
    return torch.where(once, torch.where(of_row * log_w > 0, plus, minus), (plus + minus) / 2)


def _is_single(loss: Loss, rows: _Rows, g: Tensor) -> bool:
    """Whether the loss rounds to single precision: far smaller changes then change nothing at most tokens."""
    rng = torch.Generator().manual_seed(0)
    nudged = rows.p * (1 + 1e-11 * torch.rand(rows.p.shape, generator=rng, dtype=torch.float64).to(rows.p))
    same = (_pull(loss, rows._replace(p=nudged)) == g)[g != 0]
    return bool(same.double().mean() > 0.5)


def _half_precision(loss: Loss, rows: _Rows, g: Tensor) -> Iterator[Advised]:
    """Whether the loss rounds its log-probabilities to half precision."""
    for dtype in (torch.bfloat16, torch.float16):
        rounded = rows._replace(p=rows.p.to(dtype).to(rows.p.dtype))
        moved = (rounded.p - rows.p).abs()[rows.mask != 0]
        if float(moved.max()) <= _SINGLE:
            continue
        # A gradient that does not look at log π_θ is not changed by anything.
        further = rows._replace(p=rounded.p * (1 + 16 * torch.finfo(dtype).eps))
        unchanged = float((_pull(loss, rounded) - g).norm()) <= 1e-6 * float(g.norm())
        if unchanged and float(((_pull(loss, further) - g) / g)[g != 0].abs().median()) > _SINGLE:
            yield Advised(
                f"the log-probabilities are computed in {str(dtype).removeprefix('torch.')} inside the loss",
                "warning",
                f"Rounding moves a ratio by up to {float(moved.max()):.1g}: terms are known to {_HALF:.0%} only.",
                "Compute log-probabilities and ratios in float32: `logp = logits.float().log_softmax(-1)`.",
            )
            return


class _Fit(NamedTuple):
    """Coefficients of the fields, and what is left of the target."""

    c: list[float]
    left: Float[Tensor, "B T"]

    def share(self, target: Tensor) -> float:
        return float(self.left.norm() / target.norm().clamp(min=1e-300))


def _fit(target: Tensor, fields: list[Tensor], live: Tensor) -> _Fit:
    """Solve target = Σ c·field on the live tokens; a field of zero gets no coefficient."""
    if not bool(live.any()):
        return _Fit([0.0] * len(fields), torch.zeros_like(target))
    matrix = torch.stack([field[live] for field in fields], 1)
    norms = matrix.norm(dim=0)
    norms = torch.where(norms > 0, norms, 1.0)
    solved = torch.linalg.lstsq(matrix / norms, target[live].unsqueeze(1), driver="gelsd").solution.squeeze(1)
    left = torch.zeros_like(target)
    left[live] = target[live] - matrix / norms @ solved
    return _Fit((solved / norms).tolist(), left)


class _Normaliser(NamedTuple):
    """A token of a response of length T weighs n·Tᵖ."""

    power: float
    n: float


def _alive(x: Tensor, keep: Tensor) -> Tensor:
    return keep & (x.abs() > _ZERO * x.abs().max())


def _normaliser(at: _Gradients, declared: Objective | None) -> _Normaliser:
    """How tokens weigh: by the reward's part, or where there is none by the penalty's."""
    rewarded = bool(at.reward.any())
    target = at.reward if rewarded else at.penalty
    terms = (
        {} if declared is None else {name: c for name, c in declared.terms.items() if (name == "reward") == rewarded}
    )
    if not any(terms.values()):
        if not rewarded:
            return _Normaliser(0.0, 1 / float(at.keep.sum()))  # nothing tells: take it for a mean over tokens
        terms = {"reward": 1.0}
    field, live = at.objective(terms), _alive(target, at.keep)
    fits = {power: _fit(target, [at.length**power * x for x in (field, at.free)], live) for power in _POWERS}
    exact = [power for power, fit in fits.items() if fit.share(target) <= at.tolerance]
    if exact:
        found = _Normaliser(exact[0], fits[exact[0]].c[0])
        # Advantages divided by a standard deviation hide the size; a penalty that is as declared has it.
        other = _of_penalty(at, declared, exact[0])
        return other if rewarded and other and not _known(at, found) and _known(at, other) else found
    # A power that is none of the usual ones must explain everything.
    for power in (0.0, -1.0) if rewarded else ():
        form = _form(REWARDS, at, target / at.length**power, live)
        if form is not None:
            return _Normaliser(power, form[0])
    power = min((0.0, -1.0), key=lambda power: fits[power].share(target))
    n = fits[power].c[0] or 1 / float(at.keep.sum())
    # The reward does not tell the size: the penalty may, if it is the one that is meant.
    other = _of_penalty(at, declared, power)
    if rewarded and other:
        return other
    usual = 1 / float(at.keep.sum() if power == 0 else at.keep.any(1).sum())
    return _Normaliser(power, math.copysign(usual, n) if 0.5 < abs(n) / usual < 2 else n)


def _of_penalty(at: _Gradients, declared: Objective | None, power: float) -> _Normaliser | None:
    """The normaliser by the penalty's part, if it is the one that is declared, up to its size."""
    terms = {} if declared is None else {name: c for name, c in declared.terms.items() if name != "reward"}
    field = at.objective(terms)
    fit = _fit(at.penalty, [at.length**power * x for x in (field, at.free)], at.keep)
    there = bool(field.any()) and bool(at.penalty.any()) and fit.share(at.penalty) <= at.tolerance
    return _Normaliser(power, fit.c[0]) if there else None


def _whole(at: _Gradients, declared: Objective | None) -> tuple[Objective, _Normaliser] | None:
    """The objective and the normaliser that explain the gradient of every token that has one, if any do.

    A clip that looks at the whole weight, penalty included, leaves no parts to tell apart.
    """
    live = _alive(at.whole, at.keep)
    best: tuple[float, Objective, _Normaliser] | None = None
    for power in _POWERS:
        weigh = at.length**power
        if declared is not None:
            choices = [(declared, [at.objective(declared.terms)])]
        else:
            names = at.names
            reward = [at.right("reward")] if bool(at.reward.any()) else []
            base = {"reward": 1.0} if reward else {}
            choices = [(Objective(base, at.level), reward)] if reward else []
            choices += [
                (Objective(base | {name: 1.0}, at.level), [*reward, at.right(name)]) for name in names if reward
            ]
        for objective, fields in choices:
            fit = _fit(at.whole, [*(weigh * x for x in fields), weigh * at.free], live)
            share = fit.share(at.whole)
            if share <= _WHOLE[at.tolerance] and fit.c[0] and (best is None or share < 0.1 * best[0]):
                n = fit.c[0]
                terms = (
                    objective.terms if declared else dict(zip(objective.terms, (c / n for c in fit.c), strict=False))
                )
                best = share, Objective(terms, at.level), _Normaliser(power, n)
    if best is None and declared is None and bool(at.reward.any()):
        return _whole_of_several(at, live)
    return None if best is None else best[1:]


def _whole_of_several(at: _Gradients, live: Tensor) -> tuple[Objective, _Normaliser] | None:
    """The same with several penalties at once, where there are tokens enough to tell them apart."""
    names = at.names
    if int(live.sum()) < _ENOUGH * (len(names) + 2):
        return None
    for power in _POWERS:
        weigh = at.length**power
        kept = ["reward", *names]
        for _ in range(2):  # once with all of them, once with those that count
            fields = {name: weigh * at.right(name) for name in kept}
            fit = _fit(at.whole, [*fields.values(), weigh * at.free], live)
            if fit.share(at.whole) > _WHOLE[at.tolerance] or not fit.c[0]:
                break
            sizes = {name: abs(c) * float(fields[name].norm()) for name, c in zip(kept, fit.c, strict=False)}
            largest = max((size for name, size in sizes.items() if name != "reward"), default=0.0)
            found, n = dict(zip(kept, fit.c, strict=False)), fit.c[0]
            kept = ["reward", *(name for name in kept if name != "reward" and sizes[name] > _SINGLE * largest)]
        else:
            return Objective({name: c / n for name, c in found.items()}, at.level), _Normaliser(power, n)
    return None


def _found(at: _Gradients, by: _Normaliser, weigh: Tensor | None = None) -> Objective:
    """The objective that explains this batch's gradient best, the reward's coefficient 1."""
    terms = {"reward": 1.0} if bool(at.reward.any()) else {}
    if not float(at.penalty.norm()) > 1e-9 * float(at.whole.norm()):
        return Objective(terms, at.level)
    target = at.penalty / (by.n * at.length**by.power if weigh is None else weigh)
    names = at.names
    fields = {name: at.right(name) for name in names}
    live = _alive(target, at.keep)
    one = {name: _fit(target, [field, at.free], live) for name, field in fields.items()}
    best = min(one, key=lambda name: float(one[name].left.norm()))
    if one[best].share(target) > at.tolerance and int(live.sum()) >= _ENOUGH * len(names):
        joint = _fit(target, [*fields.values(), at.free], live)
        sizes = {name: abs(c) * float(fields[name].norm()) for name, c in zip(names, joint.c, strict=False)}
        kept = [name for name in names if sizes[name] > _SINGLE * max(sizes.values())]
        again = _fit(target, [*(fields[name] for name in kept), at.free], live)
        if again.share(target) <= at.tolerance:
            return Objective(terms | dict(zip(kept, again.c, strict=False)), at.level)
    return Objective(terms | {best: one[best].c[0]}, at.level)


def _report(at: _Gradients, declared: Objective | None, stated: tuple[float, float] | None) -> BatchReport:
    """Take the gradient apart."""
    drawn = at.omega
    at, of_sampler = _sampled(at)
    whole = _whole(at, declared)
    by = _normaliser(at, declared) if whole is None else whole[1]
    objective = whole[0] if whole is not None else _found(at, by) if declared is None else declared
    size, g, remarks = float(at.whole.norm()), at.whole, [*at.remarks, *of_sampler]
    weigh = by.n * at.length**by.power
    gain = at.objective({"reward": objective.terms.get("reward", 0.0)})
    penalty = at.objective({name: c for name, c in objective.terms.items() if name != "reward"})
    parts = dict.fromkeys(PARTS, torch.zeros_like(g))
    parts |= {"masked": torch.where(at.keep, 0.0, g), "behind_mask": at.behind, "rounding": at.rounding}
    rewarded = bool(at.reward.any())
    if whole is not None:
        stopped = at.keep & ~_alive(g, at.keep) & _alive(gain + penalty, at.keep)
    else:
        alive = _alive(at.reward, at.keep)
        # A loss that changes the advantages pulls responses whose own is 0.
        pulled = _alive(gain, at.keep) | (at.one_each & alive.any(1, keepdim=True))
        stopped = at.keep & ~alive & pulled & (at.omega != 0) & rewarded
        if rewarded:
            weigh, found = _of_reward(at, gain, weigh, at.keep & ~stopped, parts)
            remarks += found
            if declared is None and found:
                objective = _found(at, by, weigh)
                penalty = at.objective({name: c for name, c in objective.terms.items() if name != "reward"})
        else:
            parts["reward"] = weigh * gain
        parts["penalty"] = _fit(at.penalty - weigh * penalty, [weigh * at.free], at.keep & ~(stopped & (g == 0))).left
    parts["sampler"] = weigh * at._replace(omega=drawn - at.omega).objective(objective.terms)
    direction = at.direction.copysign(at.direction * by.n) if whole is None else gain + penalty
    if bool(parts["advantages"].any()):
        # Responses of one group with one reward have no advantage left.
        direction = torch.where(_alive(at.reward, at.keep).any(1, keepdim=True), direction, 0.0)
        stopped = stopped & (direction != 0)
    parts["stopped"] = torch.where(stopped, weigh * torch.where(g == 0, gain + penalty, gain), 0.0)
    live = at.keep & ~stopped
    parts["normaliser"] = _fit(weigh * (gain + penalty), [gain + penalty], live).left
    stops = _stops(at, direction, stopped)
    low, high = stated or _clip_of(at, stops)
    parts["outside"] = torch.where(live & ((at.w < low) | (at.w > high)), g, 0.0)
    shares = {name: float(parts[name].norm()) / size for name in PARTS}
    # Rounding has no share.
    shares = {name: share if share > _ZERO else 0.0 for name, share in shares.items()}
    tokens = {name: int((parts[name].abs() > _ZERO * size).sum()) if shares[name] else 0 for name in PARTS}
    remarks += _remarks(at, by, objective, shares, tokens, weigh, live, declared is not None)
    remarks += _clip_remarks(at, direction, stopped, stops, (low, high), stated is not None)
    return BatchReport(
        objective, declared is not None, shares, tokens, _divisor(at, by), abs(by.n), (low, high), tuple(remarks)
    )


def _sampled(at: _Gradients) -> tuple[_Gradients, list[Advised]]:
    """Find the weight that the advantages' part has for the sampler, and measure everything else under it."""
    pull = torch.where(at.keep, at.w * at.A, 0.0)
    live = _alive(at.reward, at.keep) & _alive(pull, at.keep)
    if not bool(at.drift.any()) or not bool(live.any()):
        return at, []
    for power in (0.0, -1.0):
        factor = torch.where(live, at.reward / torch.where(live, at.length**power * pull, 1.0), 0.0)
        for name, weigh in SAMPLER_WEIGHTS.items():
            omega = weigh(at.drift, at.keep)
            ratio = (factor / omega)[live]
            if float((ratio / ratio.median() - 1).abs().max()) <= 10 * at.tolerance:
                low, high = float(omega[live].min()), float(omega[live].max())
                out = at.keep & ((omega < low * (1 - _MOVED)) | (omega > high * (1 + _MOVED)))
                omega = torch.where(out, 0.0, omega)
                return at._replace(omega=omega), list(_sampler_remarks(name, int(out.sum()), low, high))
        # Where a ratio is near 1 no bound acts: there the unit can be told.
        near = live & (at.drift.abs() <= at.drift[live].abs().quantile(0.25))
        unit = float((factor / at.omega)[near].median())
        found = (factor / unit)[live]
        low, high = float(found.min()), float(found.max())
        clamped = at.omega.clamp(low, high)
        if float((found / clamped[live] - 1).abs().max()) <= 10 * at.tolerance:
            bounded = int((at.keep & (clamped != at.omega)).sum())
            remark = Advised(
                f"the sampler's weight is clamped to [{low:.3g}, {high:.3g}] at {bounded:,} tokens",
                "note",
                "A bound trades variance for bias at the tokens outside it.",
                "Nothing is to be done if the bound is meant.",
            )
            return at._replace(omega=clamped), [remark]
    return at, []


def _sampler_remarks(name: str, out: int, low: float, high: float) -> Iterator[Advised]:
    if name not in RIGHT_WEIGHTS:
        yield Advised(
            f"the sampler's weight is wrong: the advantages' part is multiplied by {name}",
            "error",
            "Only π_old/π_sampler, of that token or of its response, makes the tokens stand for π_old's.",
            "Multiply each token's whole loss: `loss = (logp_old - logp_sampler).exp().detach() * loss`.",
        )
    elif name != next(iter(RIGHT_WEIGHTS)):
        yield Advised(
            f"the advantages' part is multiplied by {name}",
            "note",
            "This belongs to objectives of whole responses, or to a history that is weighted as well.",
            "Nothing is to be done if that is meant.",
        )
    if out:
        yield Advised(
            f"{out:,} tokens get no gradient since the sampler's weight is outside [{low:.3g}, {high:.3g}]",
            "note",
            "A bound trades variance for bias at the tokens outside it.",
            "Nothing is to be done if the bound is meant.",
        )


def _of_reward(
    at: _Gradients, gain: Tensor, weigh: Tensor, live: Tensor, parts: dict[str, Tensor]
) -> tuple[Tensor, list[Advised]]:
    """What is wrong with the reward's part: its weights, the advantages, or denominators that differ by response.

    Returns:
        How each token weighs, and what is to be said; the parts are written.
    """
    left = _fit(at.reward - weigh * gain, [weigh * at.free], live).left
    tolerance = at.tolerance * float(at.reward.norm())
    if float(left.norm()) <= tolerance:
        return weigh, []
    # One number for each response, whatever it is.
    field = torch.where(live, weigh * at.free, 0.0)
    of_row = (at.reward * field).sum(1) / field.square().sum(1).clamp(min=1e-300)
    within = torch.where(live, at.reward - of_row[:, None] * field, 0.0)
    given = at.given
    if not at.one_each or float(within.norm()) > tolerance:
        parts["reward"] = left
        return weigh, []
    used = live.any(1)
    factor, runs = _runs(torch.where(used & (given != 0), of_row / given, math.nan))
    if bool((of_row[used & (given == 0)].abs() > 1e-6 * of_row.abs().max()).any()):
        runs = 0  # a denominator leaves an advantage of 0 where it is
    if runs:
        return weigh * factor[:, None], [
            Advised(
                f"responses are divided by {runs} different denominators, one for each run of consecutive responses",
                "warning",
                "The same batch gives another update when the number of micro-batches or ranks changes.",
                "Divide by one number for all micro-batches: the step's `mask.sum()`, all-reduced, or a constant.",
            )
        ]
    parts["advantages"] = left
    return weigh, [_advantages_remark(of_row[used], given[used], float(left.norm() / at.whole.norm()))]


def _runs(x: Tensor) -> tuple[Tensor, int]:
    """The values with NaN filled by the one before, and the number of runs of equal ones if they are few; else 0."""
    known = x[~x.isnan()]
    if not len(known) or bool((known <= 0).any()):
        return x, 0
    last = (~x.isnan()).cumsum(0).clamp(min=1) - 1
    filled = known[last]
    runs = int(((known[1:] / known[:-1] - 1).abs() > 1e-6).sum()) + 1
    return filled, runs if 1 < runs <= len(known) // 2 else 0


def _advantages_remark(used: Tensor, given: Tensor, share: float) -> Advised:
    """Say what the loss does with the advantages, if that is known."""
    size = _SINGLE * used.abs().max()
    straight = torch.stack([given, torch.ones_like(given)], 1)
    slope, shift = torch.linalg.lstsq(straight, used[:, None]).solution.squeeze(1).tolist()
    if bool((used - slope * given - shift).abs().max() <= size) and slope > 0:
        shifted = "" if abs(shift) <= size else ", their mean subtracted,"
        return Advised(
            f"the advantages are normalised over the batch: {slope:.3g} times as large{shifted} as they are given",
            "warning",
            "A response's update depends on the other responses of the batch, and on its split.",
            "Normalise once, where the advantages are computed; within each prompt's group if that is documented.",
        )
    for sign in (1.0, -1.0):
        part = given * sign > 0
        if not bool(part.any()):
            break
        ratio = used[part] / given[part]
        if bool((ratio - ratio.mean()).abs().max() > _SINGLE * ratio.abs().mean()):
            break
    else:
        up, down = (float((used[part] / given[part]).mean()) for part in (given > 0, given < 0))
        return Advised(
            f"a response weighs by the sign of its advantage: {up / down:.3g} times as much above 0 as below",
            "note",
            "This is right where it is documented; the reward part is then not the gradient of E[R].",
            "Nothing is to be done if the weights are meant.",
        )
    for group in range(2, len(given) // 2 + 1):
        if len(given) % group:
            continue
        x, y = given.view(-1, group), used.view(-1, group)
        x, centred = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        slopes = (x * centred).sum(1, keepdim=True) / x.square().sum(1, keepdim=True).clamp(min=1e-300)
        straight_ones = bool((centred - slopes * x).abs().max() <= size) and bool((slopes > -_ZERO).all())
        if straight_ones and bool(y.mean(1).abs().max() <= size):
            return Advised(
                f"the advantages are normalised within groups of {group} consecutive responses",
                "note",
                "This is right where each group holds one prompt's responses, and a second time where they were "
                "normalised before.",
                "Normalise once. Keep each prompt's responses together, and never split a group into micro-batches.",
            )
    return Advised(
        "responses do not move in proportion to their advantages",
        "warning",
        f"Two responses with equal advantages are trained differently; it is {share:.1%} of the gradient's length.",
        "Index the advantages with the rows of the batch, and change them only where they are computed.",
    )


class _Stops(NamedTuple):
    """Which stopped tokens a clip explains, by the sign of the advantage and the side of w = 1 that they are on.

    A clip stops every token beyond its bound; a filter leaves some of them.
    """

    good_above: Bool[Tensor, "B T"]
    good_below: Bool[Tensor, "B T"]
    bad_above: Bool[Tensor, "B T"]
    bad_below: Bool[Tensor, "B T"]

    @property
    def interval(self) -> tuple[Tensor, Tensor]:
        """Tokens below the clip, and above it."""
        return self.bad_below, self.good_above


def _stops(at: _Gradients, A: Tensor, stopped: Tensor) -> _Stops:
    log_w, found = at.p - at.q, []
    for sign in (1.0, -1.0):
        for side in (1.0, -1.0):
            there = at.keep & (at.omega != 0) & (A * sign > 0) & (log_w * side > _MOVED)
            hit, left = there & stopped, there & ~stopped
            beyond = bool(hit.any()) and not bool((left & (log_w * side > (log_w * side)[hit].min())).any())
            found.append(hit if beyond else torch.zeros_like(hit))
    return _Stops(*found)


def _clip_of(at: _Gradients, stops: _Stops) -> tuple[float, float]:
    """The interval of w outside which tokens were seen to stop: below it bad ones, above it good ones."""
    below, above = stops.interval
    low = float(at.w[below].max()) if bool(below.any()) else 0.0
    return low, float(at.w[above].min()) if bool(above.any()) else math.inf


def _clip_remarks(
    at: _Gradients, A: Tensor, stopped: Tensor, stops: _Stops, clip: tuple[float, float], stated: bool
) -> Iterator[Advised]:
    log_w = at.p - at.q
    rows = (stopped | ~at.keep).all(1) & at.keep.any(1) & stopped.any(1)
    if bool(rows.any()):
        yield Advised(
            f"{int(rows.sum()):,} responses get no gradient although their advantages are not 0",
            "note",
            "They were sampled and scored for nothing, unless a mask for whole responses is meant.",
            "Nothing is to be done if the mask is meant.",
        )
    single = stopped & ~rows[:, None]
    # A dual clip stops bad tokens far above 1, and the ordinary clip beside it those below 1.
    mirrored = at.keep & ~stopped & (A < 0)
    bad = stops.bad_above & single
    wrong_bad = bool(bad.any()) and bool((mirrored & (log_w < -log_w[bad].min())).any())
    wrong_bad = wrong_bad and not bool(stops.bad_below.any())
    explained = stops.good_above | stops.bad_below | stops.bad_above
    wrong_sides = (
        (stops.good_below & single, True, "good", "fallen below"),
        (bad, wrong_bad, "bad", "risen above"),
    )
    for wrong, is_wrong, which, side in wrong_sides:
        # One token alone is the last on its side by chance.
        if is_wrong and int(wrong.sum()) > 1:
            explained = explained | wrong
            yield Advised(
                f"{int(wrong.sum()):,} tokens of {which} responses that have {side} π_old get no gradient: the clip "
                "acts on the wrong side",
                "error",
                "The clip holds the policy where it is wrong and lets go where it should hold.",
                "`gain = torch.minimum(w * A, w.clamp(1 - eps, 1 + eps) * A)`, for both signs of A.",
            )
    left_out = single & ~explained
    if bool(left_out.any()):
        count = at.keep.cumsum(1)
        ends = {"first": at.keep & (count == 1), "last": at.keep & (count == count[:, -1:])}
        place = next((name for name, end in ends.items() if torch.equal(left_out | stopped & end, end)), "")
        yield Advised(
            f"the {place} token of each response gets no gradient"
            if place
            else f"{int(left_out.sum()):,} tokens get no gradient although their advantages are not 0, and no clip "
            "stops just these",
            "warning" if place else "note",
            "Part of each response is not trained, unless a filter of tokens is meant.",
            "Keep every sampled token in the mask, EOS included; nothing is to be done if a filter is meant.",
        )
    out = at.keep & (at.reward * log_w > 0) & ((at.w < clip[0] * (1 - _MOVED)) | (at.w > clip[1] * (1 + _MOVED)))
    if stated and bool(out.any()):
        yield Advised(
            f"{int(out.sum()):,} tokens outside the clip [{clip[0]:.3g}, {clip[1]:.3g}] are still pushed further out: "
            f"{float(at.whole[out].norm() / at.whole.norm()):.1%} of the gradient's length",
            "warning",
            "The clip that is stated does not hold these tokens.",
            "`gain = torch.minimum(w * A, w.clamp(1 - eps, 1 + eps) * A)`, w the ratio of that token.",
        )


def _remarks(
    at: _Gradients,
    by: _Normaliser,
    objective: Objective,
    shares: Mapping[str, float],
    tokens: Mapping[str, int],
    weigh: Tensor,
    live: Tensor,
    declared: bool,
) -> Iterator[Advised]:
    """What the shares mean."""
    if by.n < 0 and objective.terms.get("reward", 0.0) > 0:
        yield Advised(
            "the whole loss has the wrong sign",
            "error",
            "Good responses become rarer.",
            "Minimise the negative: `loss = -(w * advantages[:, None]).mean()`.",
        )
    if shares["masked"] > 0:
        yield Advised(
            f"{tokens['masked']:,} places that the mask leaves out get a gradient, "
            f"{shares['masked']:.1%} of its length",
            "error",
            "The policy is trained on padding or on tokens that it did not write.",
            "Average over the kept tokens only: `torch.where(mask, per_token, 0.0).sum() / mask.sum()`.",
        )
    if shares["behind_mask"] > at.tolerance:
        yield Advised(
            f"values behind the mask change the gradient of the tokens that count, by {shares['behind_mask']:.1%}",
            "error",
            "The update depends on numbers that no model computed.",
            "Replace them before any sum, mean or product: `x = torch.where(mask, x, 0.0)`.",
        )
    if not bool(at.reward.any()) and objective.terms.get("reward"):
        yield Advised(
            "the advantages change nothing",
            "error",
            "The loss learns nothing from the reward.",
            "Multiply the weight by the advantage, `-(w * advantages[:, None])`.",
        )
    elif shares["reward"] > at.tolerance:
        form = _form(REWARDS, at, at.reward / weigh, live)
        yield Advised(
            f"the advantages' weight is not π_θ/π_old: {shares['reward']:.2g} of the gradient's length"
            + (f"; it is that of {form[1]}" if form else ""),
            "error" if declared and form else "warning",
            "Off-policy the gradient is not that of E[R], unless this is another estimate of it: see `identify(loss)`.",
            "Weigh each token by its importance ratio: `-(logp - logp_old).exp() * advantages[:, None]`.",
        )
    size = float(at.penalty.norm() / at.whole.norm())
    if shares["penalty"] > max(at.tolerance * size, 1e-9):
        yield _penalty_remark(at, objective, declared, shares["penalty"], at.penalty / weigh)
    if by.power != 0 and shares["normaliser"] > at.tolerance:
        usual = by.power == -1.0
        yield Advised(
            f"a token of a response of length T weighs {_POWERS[by.power]}: {shares['normaliser']:.2g} of the "
            "gradient's length is due to that",
            "note" if usual else "error",
            "A mean over each response has another expected gradient than the objective unless all are equally long."
            if usual
            else "No usual aggregation weighs so: some lengths hardly count.",
            "Divide by a constant, such as the responses times the largest length allowed, or by `mask.sum()`.",
        )
    if shares["rounding"] > 1e-3:
        yield Advised(
            f"the dumped precision moves the gradient by {shares['rounding']:.2g} of its length",
            "warning",
            "That part of the update is rounding.",
            "Keep log-probabilities in float32: `logp = logits.float().log_softmax(-1)`.",
        )


def _penalty_remark(at: _Gradients, objective: Objective, declared: bool, share: float, target: Tensor) -> Advised:
    """Name what the penalty is instead."""
    wanted = {name: c for name, c in objective.terms.items() if name != "reward" and c}
    what, fix = "it is that of no known term", "For KL(π‖ref): `beta * (logp - logp_old).exp() * k3(logp_ref - logp)`."
    single = {
        name: _fit(target, [at.right(name), at.free], _alive(target, at.keep)) for name in TERMS if name != "reward"
    }
    exact = [name for name, fit in single.items() if fit.share(target) <= at.tolerance and abs(fit.c[0]) > 0]
    form = _form(PENALTIES, at, target, at.keep)
    if not bool(target.any()):
        what = "there is none"
    elif exact:
        name = next((name for name in exact if name in wanted), exact[0])
        what = f"it is that of {Objective({name: single[name].c[0]}, at.level)}"
        fix = "Correct the coefficient." if list(wanted) == [name] else fix
    elif form:
        what = f"it is that of {form[0]:.3g} × {form[1]}"
    meant = str(Objective(wanted, at.level)) if wanted else "none"
    return Advised(
        f"the penalty is wrong, measured against {meant}: {share:.2g} of the gradient's length; {what}",
        "error" if declared and (exact or form or not bool(target.any())) else "warning",
        "The update descends another penalty, unless this is another estimate of it: see `identify(loss)`.",
        fix,
    )


def _form(forms: Mapping[str, Loss], at: _Gradients, target: Tensor, live: Tensor) -> tuple[float, str] | None:
    """The coefficient and the name of the known form that has this gradient, row by row without padding."""
    sizes = torch.where(live, target, 0.0).norm(dim=1)
    rows = [i for i in sizes.argsort(descending=True)[:_NAMED_ROWS].tolist() if bool(live[i].any())]
    if not rows or at.level == "sequence":
        return None
    wanted = torch.cat([target[i][live[i]] for i in rows])
    for name, form in forms.items():
        found = []
        for i in rows:
            kept = at.keep[i]
            p, q, r = (x[i][kept][None] for x in (at.p, at.q, at.r))
            pull = _pull(form, _Rows(p, q, r, torch.ones_like(p[:, 0]), p))[0]
            found.append((pull * at.A[i][kept] if forms is REWARDS else pull)[live[i][kept]])
        shape = torch.cat(found)
        c = float(shape @ wanted / shape.square().sum().clamp(min=1e-300))
        if float((wanted - c * shape).norm()) <= at.tolerance * float(wanted.norm()):
            return c, name
    return None


def _known(at: _Gradients, by: _Normaliser) -> bool:
    """Whether the normaliser is a usual number."""
    return "times the number of" not in _divisor(at, by)


def _divisor(at: _Gradients, by: _Normaliser) -> str:
    """What the sum over tokens is divided by, in words."""
    kept, rows = int(at.keep.sum()), int(at.keep.any(1).sum())
    known = {
        0.0: {
            f"the {kept:,} tokens that the mask keeps": kept,
            f"the {at.keep.numel():,} places of the batch, padding counted": at.keep.numel(),
            f"the {rows:,} responses": rows,
            "1": 1,
        },
        -1.0: {f"each response's tokens and the {rows:,} responses": rows, "each response's tokens": 1},
    }
    unit = f"by weights of {_POWERS[by.power]} and "
    for words, count in known.get(by.power, {}).items():
        if abs(abs(by.n) * count - 1) < 1e-4:
            return words
    number = 1 / abs(by.n)
    nearest = kept if by.power == 0 else rows
    what = "tokens" if by.power == 0 else "responses"
    return f"{'' if by.power == 0 else unit}{number:.6g}, {number / nearest:.4g} times the number of {what}"
