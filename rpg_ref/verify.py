"""Hold a recipe against the oracle: what it declares must be what it is found to be, on this machine."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rpg_ref.audit.identify import FIT, Finding, descent, exact_gradient, find
from rpg_ref.audit.objective import Objective
from rpg_ref.audit.oracle import (
    Policies,
    algorithm_1,
    flat_gradient,
    gradient,
    integrand,
    live_samples,
    penalty_slope,
    unweighted_slope,
)
from rpg_ref.audit.population import Loss, population
from rpg_ref.clipping import bounded_loss, clipped_loss, clipped_loss_as_printed
from rpg_ref.divergences import DIVERGENCES
from rpg_ref.log_ratio import cpgd_loss, pmd_mean_loss
from rpg_ref.ppo import grpo_corrected_loss, grpo_loss, k2_loss, kl_in_reward_loss
from rpg_ref.prefix import per_decision_loss
from rpg_ref.ratios import WeightBound
from rpg_ref.recipes import LossOutput, Recipe
from rpg_ref.surrogates import differentiable_loss, reinforce_loss

# Each of the population's 3,000 terms is right to 2⁻²⁴ and they partly cancel; 1e-7 is measured.
FLOAT32_TOLERANCE = 2e-6
_ROWS, _LENGTH, _FAR_NATS = 512, 4, 3.0


@dataclass(frozen=True)
class Row:
    """One recipe's verification.

    Attributes:
        recipe: its name.
        declared: the objectives declared on-policy and off-policy.
        found: the objectives found; None is the gradient of no known objective.
        residual: of each fit, relative to the gradient at zero advantages.
        spread: largest |log π_θ/π_old| off-policy, at which no sample was clipped.
        gradient_error: worst relative error of the float64 gradient: in expectation, in both regimes, with and without
            advantages; and token by token far off-policy, where most samples are clipped.
        float32_error: the same in float32, in expectation.
        ok: whether everything agrees.

    Source: ours.
    """

    recipe: str
    declared: tuple[Objective | None, Objective | None]
    found: tuple[Objective | None, Objective | None]
    residual: tuple[float, float]
    spread: float
    gradient_error: float
    float32_error: float
    ok: bool

    @property
    def verdict(self) -> str:
        """One line: what was declared and what was found."""
        declared, found = (" on-policy and ".join(map(describe, pair)) for pair in (self.declared, self.found))
        return (
            f"{self.recipe} is {'verified' if self.ok else 'NOT verified'}: declared {declared} off-policy, found "
            f"{found} off-policy, gradient error {self.gradient_error:.0e} (float32: {self.float32_error:.0e})"
        )


def describe(objective: Objective | None) -> str:
    """Return an objective's formula, or what None stands for."""
    return "no known objective" if objective is None else str(objective)


def verify(recipe: Recipe, *, device: str | torch.device = "cpu", seed: int = 0) -> Row:
    """Verify a recipe in expectation, in both regimes, and token by token far off-policy.

    The second part is run as training runs it: responses of uneven lengths with NaN behind their ends, split in two
    micro-batches with the whole batch's denominator, with a reference and without. A loss that is not of this package
    is held to Algorithm 2's region if its recipe states one, and else only in expectation.

    Args:
        recipe: the recipe.
        device: where the recipe runs; the oracle stays on the CPU.
        seed: of the random policies.

    Returns:
        Row; ``ok`` is False where a declared objective is not found, an undeclared one is, or an error is too large.

    Source: ours.
    """
    loss, loss32 = (partial(_run, recipe, torch.device(device), dtype) for dtype in (torch.float64, torch.float32))
    batch = population(seed)
    report = find(partial(descent, loss, batch), batch, recipe.measured_at)
    regimes = ((report.on_policy, recipe.on_policy), (report.off_policy, recipe.off_policy))
    known = [(finding, declared) for finding, declared in regimes if declared is not None]
    errors = [_gradient_error(loss, finding, declared, seed) for finding, declared in known]
    float32_errors = [_gradient_error(loss32, finding, declared, seed) for finding, declared in known]
    stated = STATED.get(recipe.loss, _clipped if recipe.clip is not None and recipe.clips_penalty else None)
    if stated is not None:
        errors += [_token_error(recipe, stated, torch.device(device), seed, anchored) for anchored in (True, False)]
    worst, worst32 = _largest(errors), _largest(float32_errors)
    return Row(
        recipe.name,
        (recipe.on_policy, recipe.off_policy),
        (report.on_policy.objective, report.off_policy.objective),
        (report.on_policy.residual, report.off_policy.residual),
        report.off_policy.spread,
        worst,
        worst32,
        all(_agrees(*regime) for regime in regimes) and worst < FIT and worst32 < FLOAT32_TOLERANCE,
    )


def _largest(errors: Iterable[float]) -> float:
    """The largest error; NaN if any is, which Python's max would lose."""
    return float(torch.tensor([0.0, *errors], dtype=torch.float64).max())


def _run(
    recipe: Recipe,
    device: torch.device,
    dtype: torch.dtype,
    *tensors: Tensor,
    anchored: bool = True,
    denominator: Tensor | None = None,
) -> LossOutput:
    logp, old, ref, advantages, mask = (x.to(device, dtype if x.is_floating_point() else None) for x in tensors)
    return recipe(logp, old, ref if anchored else None, advantages, mask, denominator=denominator)


def _agrees(finding: Finding, declared: Objective | None) -> bool:
    if declared is None or finding.objective is None:
        return declared is None and finding.residual > finding.no_fit
    names = declared.terms.keys() | finding.objective.terms.keys()
    pairs = [(declared.terms.get(name, 0.0), finding.objective.terms.get(name, 0.0)) for name in names]
    return all(abs(a - b) <= FIT * abs(a) for a, b in pairs)


def _gradient_error(loss: Loss, finding: Finding, declared: Objective, seed: int) -> float:
    """Worst error of the gradient, with the rewards as advantages and with none, relative to its largest entry."""
    batch = population(seed)
    logits = batch.old + finding.drift * batch.drift
    leaf = logits.clone().requires_grad_()
    policies = Policies(leaf.log_softmax(-1), batch.old, batch.ref)
    errors, size = [], 0.0
    for advantage in (batch.reward, 0.0 * batch.reward):
        exact = finding.scale * gradient(declared, batch.tree, policies, advantage, [leaf])
        # Without penalty nothing is left at zero advantages: its rounding is then seen beside the reward's gradient.
        size = float(exact.abs().max()) or size
        errors.append(float((exact_gradient(loss, batch, logits, advantage) - exact).abs().max()) / size)
    return _largest(errors)


class LevelDefinition(NamedTuple):
    """A level from its definition: token log-probs, 0 where masked, ↦ the samples', and coefficients the way back."""

    samples: Callable[[Tensor, Tensor], Tensor]
    tokens: Callable[[Tensor, Tensor], Tensor]


def _length(mask: Tensor) -> Tensor:
    return mask.sum(1, keepdim=True).double()


def _to_go(x: Tensor) -> Tensor:
    """Σ_{s≥t} x_s."""
    return x.flip(1).cumsum(1).flip(1)


# fmt: off
LEVEL_DEFINITIONS = {
    "token":     LevelDefinition(lambda x, mask: x,                           lambda c, mask: c),
    "sequence":  LevelDefinition(lambda x, mask: x.sum(1, True),              lambda c, mask: c),
    "geometric": LevelDefinition(lambda x, mask: x.sum(1, True) / _length(mask), lambda c, mask: c / _length(mask)),
    "prefix":    LevelDefinition(lambda x, mask: x.cumsum(1),                 lambda c, mask: _to_go(c)),
}
# fmt: on

Stated = Callable[[Recipe, Policies, Tensor], Tensor]
"""(recipe, log-probs of the samples, their advantages) ↦ each sample's coefficient of ∇log π_θ."""


def _surrogate(recipe: Recipe, pi: Policies, A: Tensor) -> Tensor:
    return (pi.current - pi.old).exp() * A - recipe.beta * penalty_slope(recipe.divergence, pi)


def _clipped(recipe: Recipe, pi: Policies, A: Tensor) -> Tensor:
    weight = _surrogate(recipe, pi, A)
    return torch.where(live_samples(weight, pi.current, pi.old, _bounds(recipe)), weight, 0.0)


def _as_printed(recipe: Recipe, pi: Policies, A: Tensor) -> Tensor:
    leaf = pi.current.clone().requires_grad_()
    loss = algorithm_1(recipe.divergence, recipe.beta, pi._replace(current=leaf), A, _bounds(recipe))
    return -torch.autograd.grad(loss.sum(), leaf)[0]


def _bounded(recipe: Recipe, pi: Policies, A: Tensor) -> Tensor:
    w, bound = (pi.current - pi.old).exp(), recipe.bound or WeightBound()
    inside = (bound.low <= w) & (w <= bound.high)
    bounded = {"clamp": w.clamp(bound.low, bound.high), "mask": torch.where(inside, w, 0.0)}[bound.rule]
    return bounded / w * _surrogate(recipe, pi, A)


def _ppo(recipe: Recipe, pi: Policies, A: Tensor) -> Tensor:
    return _live(recipe, pi, A) * (pi.current - pi.old).exp() * A


def _live(recipe: Recipe, pi: Policies, A: Tensor) -> Tensor:
    return live_samples(A, pi.current, pi.old, _bounds(recipe)).double()


def _bounds(recipe: Recipe) -> tuple[float, float, float]:
    clip = recipe.clip
    return (1.0, math.inf, math.inf) if clip is None else (clip.low, clip.high, clip.dual)


def _per_decision(recipe: Recipe, pi: Policies, A: Tensor) -> Tensor:
    """The loss of prefixes, from each token's own integrand, differentiated automatically."""
    leaf = pi.current.clone().requires_grad_()
    prefixes = pi._replace(current=leaf)
    before = Policies(*(torch.cat([0 * x[:, :1], x[:, :-1]], 1) for x in prefixes))
    token = Policies(*(x - y for x, y in zip(prefixes, before, strict=True)))
    history = before.current if DIVERGENCES[recipe.divergence].history == "current" else before.ref
    penalty = (history - before.old - token.old).exp() * integrand(recipe.divergence, token.current, token.ref)
    gain = (leaf - pi.old).exp() * A - recipe.beta * penalty
    return torch.autograd.grad(gain.sum(), leaf)[0]


STATED: dict[Callable[..., Tensor], Stated] = {
    differentiable_loss: _surrogate,
    reinforce_loss: _surrogate,
    clipped_loss: _clipped,
    clipped_loss_as_printed: _as_printed,
    bounded_loss: _bounded,
    per_decision_loss: _per_decision,
    grpo_loss: lambda r, pi, A: _ppo(r, pi, A) - r.beta * unweighted_slope(r.divergence, pi),
    grpo_corrected_loss: lambda r, pi, A: _ppo(r, pi, A) - r.beta * penalty_slope(r.divergence, pi),
    k2_loss: lambda r, pi, A: _ppo(r, pi, A) - r.beta * (pi.current - pi.ref),
    kl_in_reward_loss: lambda r, pi, A: _ppo(r, pi, A - r.beta * _to_go(pi.old - pi.ref)),
    pmd_mean_loss: lambda r, pi, A: A - r.beta * (pi.current - pi.old),
    cpgd_loss: lambda r, pi, A: _live(r, pi, A) * A - r.beta * (pi.current - pi.old).expm1(),
}
"""What each loss states of one sample: its coefficient of ∇log π_θ, from the oracle's own pieces."""


def _normalisers(recipe: Recipe, mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B 1"]:
    """What multiplies each sample's loss in the batch's, by the aggregation's definition."""
    one_a_token = recipe.level in ("token", "prefix")
    length = _length(mask if one_a_token else mask.any(1, keepdim=True))
    sequences = mask.any(1).sum()
    return {
        "token-mean": torch.ones_like(length) / length.sum(),
        "seq-mean-token-mean": 1 / (length * sequences),
        "seq-mean-token-sum": torch.ones_like(length) / sequences,
    }[recipe.aggregation]


def _token_error(recipe: Recipe, statement: Stated, device: torch.device, seed: int, anchored: bool) -> float:
    """Worst error of ∂loss/∂log π_θ of a token, relative to its size, against what the loss states."""
    rng = torch.Generator().manual_seed(seed)
    level, ratio, gap = torch.randn((3, _ROWS, _LENGTH), generator=rng, dtype=torch.float64)
    mask = torch.arange(_LENGTH) < torch.randint(1, _LENGTH + 1, (_ROWS, 1), generator=rng)
    advantage = torch.randn((_ROWS, 1), generator=rng, dtype=torch.float64)
    current = -2 * _FAR_NATS - level.abs()
    old = current - _FAR_NATS * ratio.tanh()
    pi = Policies(current, old, current + gap.tanh() if anchored else old)
    samples, tokens = LEVEL_DEFINITIONS[recipe.level]
    drawn = Policies(*(samples(torch.where(mask, x, 0.0), mask) for x in pi))
    at_the_end = mask & (torch.arange(1, _LENGTH + 1) == _length(mask))
    A = torch.where(at_the_end, advantage, 0.0) if recipe.level == "prefix" else advantage.expand_as(drawn.current)
    stated = tokens(statement(recipe, drawn, A), mask)
    # What cancels in a sample's weight, or is clipped, leaves rounding of this size.
    size = tokens(1 + (drawn.current - drawn.old).exp() + (drawn.ref - drawn.old).exp(), mask)
    normalisers = _normalisers(recipe, mask)
    hostile = Policies(*(torch.where(mask, x, math.nan) for x in pi))
    leaf, found = hostile.current.clone().requires_grad_(), torch.zeros_like(hostile.current)
    halves = (slice(0, _ROWS // 2), slice(_ROWS // 2, _ROWS))
    denominator = torch.stack([recipe.count(mask[half]) for half in halves]).sum()
    for half in halves:
        tensors = (leaf[half], hostile.old[half], hostile.ref[half], advantage[half].squeeze(1), mask[half])
        loss = _run(recipe, device, torch.float64, *tensors, anchored=anchored, denominator=denominator).loss
        found += flat_gradient(loss, [leaf]).reshape(leaf.shape)
    expected = torch.where(mask, -normalisers * stated, 0.0)
    return _largest([float(((found - expected) / (normalisers * size)).abs().max())])
