"""Which objective does a black-box loss optimise? Its exact gradient, fitted by those of every known term."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache, partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rpg_ref.audit.advised import SEVERITIES
from rpg_ref.audit.forms import PENALTIES, REWARDS
from rpg_ref.audit.oracle import Policies, gradient, token_logp
from rpg_ref.audit.population import Loss, Population, as_loss, balanced, population, scalar_of
from rpg_ref.audit.probes import Normaliser, probe
from rpg_ref.audit.remarks import QUIET, Remark
from rpg_ref.checks import Table
from rpg_ref.objective import TERMS, Objective
from rpg_ref.recipe import Recipe

FIT = 1e-8
"""Largest residual of a fit."""
NO_FIT = 1e-4
"""Smallest residual that is no fit. Nearer than _NEAR it shrinks with the spread, since a loss that is wrong off-policy
is wrong by no more than the policy has moved. Under a tenth of it, single precision explains what a fit leaves."""

DISTANCES = (0.1, 0.5, 1.0)
"""The largest |log π_θ/π_old| at which the share of the gradient that is wrong is measured."""

AGAINST_SAMPLER = ("reverse_kl_old", "forward_kl_old")
_LARGEST_DRIFT, _HALVINGS, _NEAR = 0.8, 15, 0.01
# Weights that depend smoothly on the advantage's sign never are linear in it: nothing is clipped there.
_NEVER_LINEAR = 0.1
# A clip that stops one of the population's rows changes the gradient by far more, single precision by far less.
_LINEAR = 1e-5
_ROUNDING = 1e-12
# Where pulls cancel, rounding leaves about 1e-17 of their sum, 1e-9 in single precision, which nothing fits.
_ZERO_SINGLE = 1e-7
# What half precision leaves of a right gradient.
_COARSE = 0.05


class Descent(NamedTuple):
    """Where gradient descent on a loss moves the policy's logits, [K], and the sum of all rows' pulls, uncancelled."""

    vector: Float[Tensor, "K"]
    pulls: float


BlackBox = Callable[[Tensor, Tensor], Descent]
"""(the policy's logits [S, V], advantage of each response [N]) ↦ Descent."""

Descend = Callable[[float, float], Descent]
"""(drift along the population's, factor of the rewards as advantages) ↦ Descent; each is computed once."""


def descent(loss_fn: Loss, population: Population, logits: Float[Tensor, "S V"], advantage: Tensor) -> Descent:
    """Return −∇loss over the population, the direction that gradient descent on the loss ascends.

    Args:
        loss_fn: the loss.
        population: the batch.
        logits: of the policy, [S, V].
        advantage: of each response, [N].

    Returns:
        Descent, K = S·V, in float64.

    Raises:
        ValueError: as ``scalar_of``.

    Source: ours.
    """
    leaf = logits.detach().clone().requires_grad_()
    tree, rows = population.tree, population.rows
    current = leaf.log_softmax(-1)
    if torch.equal(leaf, population.old):
        # To the last bit: |log π_θ/π_old| has no gradient where they are equal, and one of size 1 beside it.
        current = population.old + (current - current.detach())
    logp, old, ref = (token_logp(tree, table)[rows] for table in (current, population.old, population.ref))
    loss = scalar_of(loss_fn(logp, old, ref, advantage[rows], tree.mask[rows]), "loss")
    # Both at once: a compiled loss can be differentiated one time only.
    of_logits, of_logp = torch.autograd.grad(loss, [leaf, logp], allow_unused=True, materialize_grads=True)
    return Descent(-of_logits.double().flatten(), float(of_logp.double().abs().sum()))


def exact_gradient(
    loss_fn: Loss, population: Population, logits: Float[Tensor, "S V"], advantage: Float[Tensor, "N"]
) -> Float[Tensor, "K"]:
    """Return −∇loss over the population, the direction that gradient descent on the loss ascends.

    Args:
        loss_fn: the loss.
        population: the batch.
        logits: of the policy, [S, V].
        advantage: of each response, [N].

    Returns:
        [K] with K = S·V, in float64.

    Raises:
        ValueError: as ``scalar_of``.

    Source: ours.
    """
    return descent(loss_fn, population, logits, advantage).vector


@dataclass(frozen=True)
class Finding:
    """What a loss was found to optimise in one regime.

    Attributes:
        coefficients: of each term in J, the common normaliser divided out so that the reward's is 1 (−1 for a loss
            that descends it, 0 for one that ignores the advantages); empty: no fit.
        residual: part of the gradient that no combination explains, relative to the gradient at zero advantages
            (or to the reward's, where it is in the reward's part); inf where the gradient is not finite.
        parts: the objective of each of its two parts, "reward" (what the advantages change) and "penalty" (what is
            left at zero advantages), None where there is none; a part that is zero is left out.
        scale: the common normaliser that was divided out, > 0; 1 where there is no reward to measure it by.
        condition: condition number of the fit.
        drift: how far along the population's drift the policy stood, as logits; 0 on-policy.
        spread: largest |log π_θ/π_old| of a state and token there.
        unidentified: terms whose gradient vanishes in this regime.
        level: the level of the fitted terms.
        normalised: whether the reward's part told the normaliser; else coefficients are known up to one common factor.
        coarse: the half precision that the loss computes in, such as "bfloat16"; empty for single and double.
        weighed: the objective where R stands for the rewards as the loss weighs them; empty unless it is that.
        vectors: the two parts' gradients.

    Source: ours.
    """

    coefficients: dict[str, float]
    residual: float
    scale: float
    condition: float
    drift: float
    spread: float
    unidentified: tuple[str, ...]
    level: str
    parts: Mapping[str, Objective | None] = field(default_factory=dict)
    normalised: bool = False
    coarse: str = ""
    weighed: str = ""
    vectors: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def no_fit(self) -> float:
        """The smallest residual that is no fit here."""
        return NO_FIT * min(1.0, self.spread / _NEAR) if self.drift else NO_FIT

    @property
    def objective(self) -> Objective | None:
        """The objective found, exactly or to single precision, or None."""
        terms = {name: c for name, c in self.coefficients.items() if c != 0}
        return Objective(terms, self.level) if self.residual < max(FIT, self.no_fit / 10) else None

    @property
    def flees(self) -> bool:
        """Whether the loss pushes the policy away from its sampler."""
        return any(self.coefficients.get(name, 0.0) < 0 for name in AGAINST_SAMPLER)

    @property
    def undecided(self) -> bool:
        """Whether rounding leaves too little to fit: no objective is found, and none is excluded."""
        return self.objective is None and self.residual < max(self.no_fit, _COARSE if self.coarse else 0.0)

    @property
    def verdict(self) -> str:
        """The finding in words."""
        if math.isinf(self.residual):
            return "a gradient that is not finite"
        if self.weighed:
            return f"{self.weighed}, where R is the reward as the loss weighs it"
        where = f" at |log π/π_old| ≤ {self.spread:.2g}" if self.drift else ""
        residual = f"residual {self.residual:.1g}{where}"
        if self.undecided:
            of_half = f": {self.coarse} leaves too little to fit" if self.coarse else ""
            return f"undecided{of_half} ({residual})"
        if self.residual >= self.no_fit:
            known = [
                (name, part) for name, part in self.parts.items() if part and (self.normalised or len(part.terms) > 1)
            ]
            fit = "".join(f"; its {name} part is that of {part}" for name, part in known)
            return f"the gradient of no known objective ({residual}{fit})"
        assert self.objective is not None
        if not self.objective.terms:
            return "nothing, its expected gradient is zero"
        return f"{self.objective} ({residual}{'' if self.residual < FIT else ', single precision'})"


@dataclass(frozen=True)
class Report:
    """What a loss was found to be.

    Attributes:
        on_policy: the finding at π_θ = π_old.
        off_policy: the finding near π_old: nearer than any clip.
        population: the batch it was found on.
        remarks: what was found beside the objectives, each with a severity, a reason and a remedy.
        normaliser: what the loss divides by, or None where that cannot be told.
        share_wrong: by the largest |log π_θ/π_old|, the share of the gradient that is not the on-policy objective's;
            empty where both regimes have one objective, or on-policy there is none. Clipping is left out of it as long
            as the reward part is right.
        calls: how often the loss was called: for the "standard" report, and for the shares in ``share_wrong``.

    Source: ours.
    """

    on_policy: Finding
    off_policy: Finding
    population: Population = field(repr=False)
    remarks: tuple[Remark, ...] = ()
    normaliser: Normaliser | None = None
    share_wrong: Mapping[float, float] = field(default_factory=dict)
    calls: Mapping[str, int] = field(default_factory=dict)

    def _of(self, severity: str) -> tuple[Remark, ...]:
        return tuple(remark for remark in self.remarks if remark.severity == severity)

    @property
    def faults(self) -> tuple[Remark, ...]:
        """The errors: mistakes that no objective excuses, such as a mask ignored or a wrong token."""
        return self._of("error")

    @property
    def hazards(self) -> tuple[Remark, ...]:
        """The warnings: what holds only sometimes, such as NaN far away or a dependence on padding or on the split."""
        return self._of("warning")

    @property
    def notes(self) -> tuple[Remark, ...]:
        """What the loss does that is right where it is meant, and what was not checked."""
        return self._of("note")

    @property
    def all_remarks(self) -> tuple[Remark, ...]:
        """Every remark, the most severe first, those on the verdicts and on the forms of the parts included."""
        remarks = (*self.remarks, *self.suspects, *_of_verdicts(self))
        return tuple(sorted(remarks, key=lambda remark: SEVERITIES.index(remark.severity)))

    @property
    def regimes_agree(self) -> bool:
        """Whether both regimes have one objective as far as it can be told on-policy, and none flees the sampler."""
        on, off = self.on_policy, self.off_policy
        if on.objective is None or off.objective is None:
            return False
        return not off.flees and all(abs(c - off.coefficients[name]) <= 1e-5 for name, c in on.coefficients.items())

    @cached_property
    def forms(self) -> Mapping[str, Remark]:
        """The known form, right or wrong, that a part has in both regimes, a sentence by the name of the part."""
        return dict(_forms(self))

    @property
    def suspects(self) -> tuple[Remark, ...]:
        """The forms of the parts that are no objective's, or not the same one's in both regimes."""
        if self.regimes_agree:
            return ()
        on, off = self.on_policy.parts, self.off_policy.parts
        fine = {part for part in self.forms if _same_part(on.get(part), off.get(part))}
        return tuple(sentence for part, sentence in self.forms.items() if part not in fine)

    def __str__(self) -> str:
        """Return both verdicts and, line by line, what else was found."""
        verdicts = f"on-policy: {self.on_policy.verdict}; off-policy: {self.off_policy.verdict}"
        notes = (note for note in self.notes if note.kind not in QUIET)
        return "\n".join([verdicts, *(f"- {line}" for line in (*self.faults, *self.suspects, *self.hazards, *notes))])


def identify(loss_fn: Loss, *, level: str = "token", seed: int = 0) -> Report:
    """Find the objective whose gradient a loss follows, on-policy and off-policy, and what else is wrong with it.

    Args:
        loss_fn: loss_fn(logp, logp_old, logp_ref, advantages, mask), log-probs and mask [B, T], advantages [B], or
            [B, T] where it does not take [B]; a Recipe is one, called with a constant denominator if it needs one. It
            returns a scalar to minimise, or a LossOutput. A loss that corrects for its sampler takes the sampler's
            log-probabilities too, [B, T], as ``logp_sampler`` or as a sixth argument.
        level: of the terms it is compared with, "token" or "sequence".
        seed: of the policies.

    Returns:
        Report.

    Raises:
        ValueError: the loss returns no scalar tensor, NaN, a constant, or different values for the same batch; or the
            level is unknown.

    Source: ours; the terms are those of TERMS.
    """
    batch = population(seed)
    if isinstance(loss_fn, Recipe):
        constant = float(len(batch.rows)) if loss_fn.needs_denominator else None
        loss_fn = partial(loss_fn.scalar_loss, denominator=constant)
    loss = as_loss(loss_fn)
    probed = probe(loss)
    if probed.grouped:
        batch = balanced(seed)
    coarse = "" if probed.dtype is None else str(probed.dtype).removeprefix("torch.")
    black_box = partial(descent, loss, batch)
    descend = descender(black_box, batch)
    report = find(black_box, batch, level, coarse=coarse, descend=descend)
    if any(remark.kind in ("sign_weights", "own_transform") for remark in probed.remarks):
        reward = _weighed(loss, batch)
        weighed = find(black_box, batch, level, reward=reward, descend=descend)
        report = _with_weighed_rewards(report, weighed)
    extra = len(report.share_wrong)
    calls = {"standard": loss.calls - extra, "share_wrong": extra}
    remarks = (*report.remarks, *probed.remarks)
    return replace(report, remarks=remarks, normaliser=probed.normaliser, calls=calls)


def _weighed(loss: Loss, batch: Population) -> Float[Tensor, "N"]:
    """What a loss makes of each response's reward on-policy: how hard it pulls its first token up, up to a factor."""
    leaf = token_logp(batch.tree, batch.old)[batch.rows].requires_grad_()
    ref = token_logp(batch.tree, batch.ref)[batch.rows]
    pulls = []
    for sign in (1.0, -1.0, 0.0):
        value = loss(leaf, leaf.detach(), ref, sign * batch.reward[batch.rows], batch.tree.mask[batch.rows])
        (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)
        pulls.append(-gradient[:, 0])
    plus, minus, zero = pulls
    moved = plus - zero if bool(zero.isfinite().all()) else (plus - minus) / 2
    reward = torch.zeros_like(batch.reward)
    reward[batch.rows] = moved
    return reward * (batch.reward.abs().max() / reward.abs().max())


def _with_weighed_rewards(report: Report, weighed: Report) -> Report:
    """Say which objective it is with the rewards as the loss weighs them, where it is none with the rewards given."""
    on, off = (
        replace(as_given, weighed=as_weighed.verdict)
        if as_given.objective is None and as_weighed.objective
        else as_given
        for as_given, as_weighed in (
            (report.on_policy, weighed.on_policy),
            (report.off_policy, weighed.off_policy),
        )
    )
    return replace(report, on_policy=on, off_policy=off)


def descender(black_box: BlackBox, batch: Population) -> Descend:
    """Return a black box's gradient at a drift and a factor of the rewards, each computed once.

    Args:
        black_box: its gradient, from the policy's logits and the advantages.
        batch: the population.

    Returns:
        Descend.

    Source: ours.
    """

    @cache
    def descend(drift: float, sign: float) -> Descent:
        return black_box(batch.old + drift * batch.drift, sign * batch.reward)

    return descend


def find(
    black_box: BlackBox,
    batch: Population,
    level: str,
    *,
    coarse: str = "",
    reward: Tensor | None = None,
    descend: Descend | None = None,
) -> Report:
    """Fit a black box's gradient in both regimes.

    Args:
        black_box: its gradient, from the policy's logits and the advantages.
        batch: the population.
        level: of the terms.
        coarse: the half precision that the black box computes in; empty for single and double.
        reward: of each response in the objective, [N], if it is another one than the advantages that the loss is given.
        descend: from ``descender``, where its gradients are shared with another fit.

    Returns:
        Report, without the remarks that need more than this gradient.

    Source: ours.
    """
    descend = descend or descender(black_box, batch)
    batch = batch if reward is None else replace(batch, reward=reward)
    on = _find(descend, batch, 0.0, level)
    off = _find_near(descend, batch, level, on.scale)
    remarks = []
    rewarded = on.vectors["reward"].any() or off.vectors["reward"].any()
    if not rewarded and bool(on.vectors["penalty"].any() or off.vectors["penalty"].any()):
        remarks.append(Remark("no_advantages"))
    other = {"token": "sequence", "sequence": "token"}[level]
    for regime, finding in (("on-policy", on), ("off-policy", off)):
        elsewhere = None if finding.objective else _find(descend, batch, finding.drift, other, on.scale)
        if elsewhere is not None and elsewhere.objective is not None:
            remarks.append(Remark("other_level", regime=regime, other=other, verdict=elsewhere.verdict))
    on, off = (replace(finding, coarse=coarse) for finding in (on, off))
    report = Report(on, off, batch, tuple(remarks))
    if on.objective is None or not on.objective.terms.get("reward") or report.regimes_agree or coarse:
        return report
    return replace(report, share_wrong=dict(_shares_wrong(descend, report, level)))


def _shares_wrong(descend: Descend, report: Report, level: str) -> Iterator[tuple[float, float]]:
    """How much of the gradient is not that of the on-policy objective, at several distances."""
    on, batch = report.on_policy, report.population
    reward_is_right = report.off_policy.parts.get("reward") is not None
    for distance in DISTANCES:
        drift = _drift_at(batch, distance)
        gradients, _ = _exact_gradients(batch, drift, level)
        wanted = {name: on.scale * c * gradients[name] for name, c in on.coefficients.items()}
        total = sum(wanted.values(), torch.zeros_like(gradients["reward"]))
        # Where the reward part is right, only a clip can be wrong with it: the penalty alone is compared.
        penalty = total - wanted["reward"]
        found = descend(drift, 0.0 if reward_is_right else 1.0).vector
        off = found - (penalty if reward_is_right else total)
        if bool(found.isfinite().all()):
            yield distance, float(off.norm() / (total + off).norm())


@lru_cache(maxsize=64)
def _drift_at(batch: Population, distance: float) -> float:
    """The drift at which the largest |log π_θ/π_old| is this distance, by bisection."""
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        moved = (batch.old + middle * batch.drift).log_softmax(-1) - batch.old
        low, high = (middle, high) if float(moved.abs().max()) < distance else (low, middle)
    return low


def _find_near(descend: Descend, batch: Population, level: str, scale: float) -> Finding:
    """The finding where nothing is clipped; nearer, if it is only there that an objective is found."""
    drift = _largest_linear(descend)
    farthest = _find(descend, batch, drift, level, scale)
    if farthest.residual < farthest.no_fit:
        return farthest
    # A bound that does not look at the advantages leaves the gradient linear in them; inside it nothing is left but
    # rounding, where what is merely nearer shrinks with the distance.
    nearer = (_find(descend, batch, drift / shrink, level, scale) for shrink in (16, 256, 4096))
    exact = (finding for finding in nearer if finding.residual < _ROUNDING and _is_as_large(finding, farthest))
    return next(exact, farthest)


def _largest_linear(descend: Descend) -> float:
    """The largest of the drifts, each half of the one before, at which no sample is clipped, by bisection."""
    drifts = [_LARGEST_DRIFT / 2.0**halvings for halvings in range(_HALVINGS)]
    if _is_linear(descend, drifts[0]):
        return drifts[0]
    if not _is_linear(descend, drifts[-1]):
        return _NEVER_LINEAR
    clipped, linear = 0, _HALVINGS - 1
    while linear - clipped > 1:
        middle = (clipped + linear) // 2
        clipped, linear = (clipped, middle) if _is_linear(descend, drifts[middle]) else (middle, linear)
    return drifts[linear]


def _is_as_large(nearer: Finding, farther: Finding) -> bool:
    """Whether no part has vanished on the way: a gradient of second order in the distance is not zero."""
    return all(bool(vector.any()) or not farther.vectors[part].any() for part, vector in nearer.vectors.items())


def _is_linear(descend: Descend, drift: float) -> bool:
    """Whether the gradient is linear in the advantages: no sample is clipped."""
    plus, minus, zero = (descend(drift, sign).vector for sign in (1.0, -1.0, 0.0))
    return bool((plus + minus - 2 * zero).norm() <= _LINEAR * (plus - minus).norm())


class Fit(NamedTuple):
    """A least-squares fit: coefficients, what is left relative to the target, and the condition number."""

    coefficients: dict[str, float]
    residual: float
    condition: float


def _fit(fields: dict[str, Tensor], target: Tensor) -> Fit:
    """Solve target = Σ c·field by least squares on fields of norm 1."""
    matrix = torch.stack(list(fields.values()), dim=1)
    norms = matrix.norm(dim=0)
    solution = torch.linalg.lstsq(matrix / norms, target.unsqueeze(1), driver="gelsd").solution.squeeze(1)
    residual = float((target - matrix / norms @ solution).norm() / target.norm())
    condition = float(torch.linalg.cond(matrix / norms))
    # What the residual could have moved is no coefficient.
    solution[solution.abs() <= max(FIT, residual * condition) * solution.abs().max()] = 0.0
    return Fit(dict(zip(fields, (solution / norms).tolist(), strict=True)), residual, condition)


@lru_cache(maxsize=256)
def _exact_gradients(batch: Population, drift: float, level: str) -> tuple[Mapping[str, Tensor], float]:
    """The exact gradient of each term at a drift, and the spread there: the same for every black box."""
    leaf = (batch.old + drift * batch.drift).requires_grad_()
    policies = Policies(leaf.log_softmax(-1), batch.old, batch.ref)
    gradients = {
        name: gradient(Objective({name: 1.0}, level), batch.tree, policies, batch.reward, [leaf])
        for name in TERMS
        if drift > 0 or name not in AGAINST_SAMPLER
    }
    return gradients, float((policies.current - policies.old).abs().max().detach())


def _find(descend: Descend, batch: Population, drift: float, level: str, scale: float = 1.0) -> Finding:
    """The finding at a drift; ``scale`` is the loss's normaliser if its reward part does not tell."""
    gradients, spread = _exact_gradients(batch, drift, level)
    facts = (drift, spread, tuple(name for name in TERMS if name not in gradients), level)
    terms = {
        "reward": {"reward": gradients["reward"]},
        "penalty": {name: vector for name, vector in gradients.items() if name != "reward"},
    }

    plus, zero = descend(drift, 1.0), descend(drift, 0.0)
    pulls = {"reward": plus.pulls + zero.pulls, "penalty": zero.pulls}
    first = _solve(terms, {"reward": plus.vector - zero.vector, "penalty": zero.vector}, pulls, scale, facts)
    if first.residual < first.no_fit:
        return first
    # What divides by the advantages' spread, or drops responses without an advantage, has no gradient at zero to read.
    minus = descend(drift, -1.0)
    halves = {"reward": (plus.vector - minus.vector) / 2, "penalty": (plus.vector + minus.vector) / 2}
    second = _solve(terms, halves, dict.fromkeys(halves, plus.pulls + minus.pulls), scale, facts)
    return second if second.residual < second.no_fit or math.isinf(first.residual) else first


def _solve(
    terms: dict[str, dict[str, Tensor]],
    vectors: dict[str, Tensor],
    pulls: dict[str, float],
    scale: float,
    facts: tuple[float, float, tuple[str, ...], str],
) -> Finding:
    """Fit each part's gradient by the terms it may have."""
    if not all(bool(part.isfinite().all()) for part in vectors.values()):
        return Finding({}, math.inf, math.nan, math.nan, *facts, vectors=vectors)
    found, fits = dict.fromkeys((name for part in terms.values() for name in part), 0.0), dict[str, Fit]()
    for part, vector in vectors.items():
        fit = _fit(terms[part], vector) if vector.any() else None
        if fit is None or (fit.residual > NO_FIT and vector.norm() < _ZERO_SINGLE * pulls[part]):
            vectors[part] = torch.zeros_like(vector)
        else:
            fits[part], found = fit, found | fit.coefficients
    worst = max((fit.residual for fit in fits.values()), default=0.0)
    condition = max((fit.condition for fit in fits.values()), default=1.0)
    # What ignores the advantages, or does something else with them, has no reward to measure its normaliser by.
    measured = "reward" in fits and fits["reward"].residual < NO_FIT
    scale = abs(found["reward"]) if measured else scale
    found = {name: c / scale for name, c in found.items()}
    finding = Finding(found, worst, scale, condition, *facts, normalised=measured or scale != 1.0, vectors=vectors)
    parts = {
        part: Objective({name: found[name] for name in terms[part] if found[name]}, finding.level)
        if fit.residual < finding.no_fit
        else None
        for part, fit in fits.items()
    }
    return replace(finding, parts=parts, coefficients=found if worst < finding.no_fit else {})


_EXPLAINED = ("value_filter", "token_filter", "token_weights", "own_transform", "sign_weights")
"""Notes on what is no objective's gradient and is right where it is documented."""


def _of_verdicts(report: Report) -> Iterator[Remark]:
    """What the verdicts themselves say, as remarks."""
    on, off = report.on_policy, report.off_policy
    for regime, finding in (("on-policy", on), ("off-policy", off)):
        if math.isinf(finding.residual):
            yield Remark("not_finite", regime=regime)
    if on.coefficients.get("reward", 0.0) < 0:
        yield Remark("descends")
    unknown = [x.objective is None and not x.undecided and not x.weighed and x.residual < math.inf for x in (on, off)]
    explained = any(remark.kind in _EXPLAINED for remark in report.remarks)
    if all(unknown) and not explained:
        yield Remark("no_objective")
    elif unknown[1] and not math.isinf(on.residual):
        yield Remark("no_objective_off_policy")
    elif on.objective is not None and off.objective is not None and not report.regimes_agree:
        yield Remark("flees" if off.flees else "regimes_differ")


def _same_part(a: Objective | None, b: Objective | None) -> bool:
    """Whether two parts are one objective, as far as their coefficients are known."""
    if a is None or b is None:
        return False
    pairs = [(a.terms.get(name, 0.0), b.terms.get(name, 0.0)) for name in a.terms.keys() | b.terms.keys()]
    return all(math.isclose(x, y, rel_tol=1e-5, abs_tol=1e-9) for x, y in pairs)


def _forms(report: Report) -> Iterator[tuple[str, Remark]]:
    """Name the known form that has a part's gradient, with one factor for both regimes."""
    on, off = report.on_policy, report.off_policy
    for part, rows in (("reward", REWARDS), ("penalty", PENALTIES)):
        right = part == "reward" and None not in (on.parts.get(part), off.parts.get(part))
        if right or not off.vectors[part].any():
            continue
        for form, loss_fn in rows.items():
            size = _factor(report, part, loss_fn)
            if size is not None:
                amount = f"{size:.3g}" if size > 0 else f"a bonus of {-size:.3g}"
                yield part, Remark(f"{part}_form", form=form, amount=amount)
                break


def _factor(report: Report, part: str, loss_fn: Loss) -> float | None:
    """The factor of a form that gives a part's gradient in both regimes, in units of the reward's, or None."""
    on, off, batch = report.on_policy, report.off_policy, report.population
    target = torch.cat([on.vectors[part], off.vectors[part]])
    logits = (batch.old + at.drift * batch.drift for at in (on, off))
    shape = torch.cat([exact_gradient(loss_fn, batch, x, batch.reward) for x in logits])
    c = float(shape @ target / shape.square().sum())
    if not (target - c * shape).norm() < off.no_fit / 10 * target.norm():
        return None
    return c / on.scale


def has_form(report: Report, form: str) -> bool:
    """Return whether a part of a loss has the gradient of a known form, in both regimes.

    Args:
        report: of the loss.
        form: a name in REWARDS or PENALTIES, such as "A times the response's ratio" or "unweighted k3".

    Returns:
        True if it has.

    Raises:
        ValueError: the form is unknown.

    Source: ours.
    """
    known: Table[tuple[str, Loss]] = Table(
        "form", {name: (part, row) for part, rows in _PARTS.items() for name, row in rows.items()}
    )
    return _factor(report, *known[form]) is not None


_PARTS = {"reward": REWARDS, "penalty": PENALTIES}
