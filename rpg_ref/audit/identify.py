"""Which objective does a black-box loss optimise? Its exact gradient, fitted by those of every known term."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rpg_ref.audit.objective import TERMS, Objective
from rpg_ref.audit.oracle import Policies, PrefixTree, flat_gradient, gradient, prefix_tree, token_logp

Loss = Callable[..., Any]
"""loss_fn(logp, logp_old, logp_ref, advantages, mask) ↦ a scalar, or anything with a scalar ``.loss``."""

FIT = 1e-8
"""Largest residual of a fit."""
NO_FIT = 1e-4
"""Smallest residual that is no fit; between the two nothing is claimed. Nearer than _NEAR it shrinks with the spread,
since a loss that is wrong off-policy is wrong by no more than the policy has moved."""

AGAINST_SAMPLER = ("reverse_kl_old", "forward_kl_old")
_VOCABULARY, _HORIZON = 4, 3
_COUNTS = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
_LARGEST_DRIFT, _HALVINGS, _NEAR = 0.1, 12, 0.01
# Rounding leaves about 1e-16 of a gradient that cancels; a real one is never this small beside the reward's.
_ZERO = 1e-12


@dataclass(frozen=True)
class Population:
    """A batch whose plain average is an exact expectation: every response, repeated in proportion to π_old.

    Attributes:
        tree: all responses.
        rows: index of the response in each row of the batch, [B].
        old: π_old's table, whose probabilities are tenths, [S, V].
        ref: π_ref's table, [S, V].
        drift: direction in which the policy leaves π_old, as logits, [S, V], largest entry 1.
        reward: of each response, [N].

    Source: ours.
    """

    tree: PrefixTree
    rows: Int[Tensor, "B"]
    old: Float[Tensor, "S V"]
    ref: Float[Tensor, "S V"]
    drift: Float[Tensor, "S V"]
    reward: Float[Tensor, "N"]


@cache
def population(seed: int) -> Population:
    """Draw a population: 21 states, 84 logits, 1,000 rows of three tokens each.

    Args:
        seed: of the policies and rewards; π_old's tenths are a random permutation of 1, 2, 3, 4 in each state.

    Returns:
        The population.

    Source: ours.
    """
    rng = torch.Generator().manual_seed(seed)
    tree = prefix_tree(_VOCABULARY, _HORIZON)
    order = torch.stack([torch.randperm(_VOCABULARY, generator=rng) for _ in range(tree.states)])
    old = (_COUNTS[order] / _COUNTS.sum()).log()
    shape = (tree.states, _VOCABULARY)
    ref = torch.randn(shape, generator=rng, dtype=torch.float64).log_softmax(-1)
    drift = torch.randn(shape, generator=rng, dtype=torch.float64)
    repeats = (token_logp(tree, old).sum(-1).exp() * _COUNTS.sum() ** _HORIZON).round().long()
    rows = torch.arange(len(repeats)).repeat_interleave(repeats)
    reward = torch.randn(len(repeats), generator=rng, dtype=torch.float64)
    return Population(tree, rows, old, ref, drift / drift.abs().max(), reward)


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
        ValueError: the loss is not a scalar tensor.

    Source: ours.
    """
    leaf = logits.detach().clone().requires_grad_()
    tree, rows = population.tree, population.rows
    logp, old, ref = (token_logp(tree, table)[rows] for table in (leaf.log_softmax(-1), population.old, population.ref))
    out = loss_fn(logp, old, ref, advantage[rows], tree.mask[rows])
    loss = getattr(out, "loss", out)
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"the loss must return a scalar tensor, got {got}; average it over the batch")
    return -flat_gradient(loss, [leaf])


@dataclass(frozen=True)
class Finding:
    """What a loss was found to optimise in one regime.

    Attributes:
        coefficients: of each term in J, the common normaliser divided out so that the reward's is 1 (−1 for a loss
            that descends it, 0 for one that ignores the advantages); empty: no fit.
        residual: part of the gradient that no combination explains, relative to the gradient at zero advantages
            (or to the reward's, where it is in the reward's part); inf where the gradient is not finite.
        scale: the common normaliser that was divided out, > 0; 1 where there is no reward to measure it by.
        condition: condition number of the fit.
        drift: how far along the population's drift the policy stood, as logits; 0 on-policy.
        spread: largest |log π_θ/π_old| of a state and token there.
        unidentified: terms whose gradient vanishes in this regime.
        level: the level of the fitted terms.

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

    @property
    def no_fit(self) -> float:
        """The smallest residual that is no fit here."""
        return NO_FIT * min(1.0, self.spread / _NEAR) if self.drift else NO_FIT

    @property
    def objective(self) -> Objective | None:
        """The objective found, or None."""
        terms = {name: c for name, c in self.coefficients.items() if c != 0}
        return Objective(terms, self.level) if self.residual < FIT else None

    @property
    def verdict(self) -> str:
        """The finding in words."""
        if math.isinf(self.residual):
            return "a gradient that is not finite"
        if self.residual >= self.no_fit:
            return f"the gradient of no known objective (residual {self.residual:.1g})"
        if self.objective is None:
            return f"undecided (residual {self.residual:.1g})"
        return f"{self.objective} (residual {self.residual:.1g})"


@dataclass(frozen=True)
class Report:
    """The findings on-policy (π_θ = π_old) and off-policy (near enough that nothing is clipped). Source: ours."""

    on_policy: Finding
    off_policy: Finding

    def __str__(self) -> str:
        """Return both verdicts."""
        return f"on-policy: {self.on_policy.verdict}; off-policy: {self.off_policy.verdict}"


def identify(loss_fn: Loss, *, level: str = "token", seed: int = 0) -> Report:
    """Find the objective whose gradient a loss follows, on-policy and off-policy.

    Args:
        loss_fn: loss_fn(logp, logp_old, logp_ref, advantages, mask), tensors [B, T], advantages [B]; a Recipe is one.
        level: of the terms it is compared with, "token" or "sequence".
        seed: of the policies.

    Returns:
        Report.

    Raises:
        ValueError: the loss does not return a scalar tensor, or the level is unknown.

    Source: ours; the terms are those of TERMS.
    """
    batch = population(seed)
    return Report(_find(loss_fn, batch, 0.0, level), _find(loss_fn, batch, _linear_drift(loss_fn, batch), level))


def _linear_drift(loss_fn: Loss, batch: Population) -> float:
    """Halve the policy's distance from π_old until the gradient is linear in the advantages: nothing is clipped."""
    drift = _LARGEST_DRIFT
    for _ in range(_HALVINGS):
        logits = batch.old + drift * batch.drift
        plus, minus, zero = (exact_gradient(loss_fn, batch, logits, s * batch.reward) for s in (1.0, -1.0, 0.0))
        if (plus + minus - 2 * zero).norm() <= FIT * (plus - minus).norm():
            break
        drift /= 2
    return drift


def _fit(fields: dict[str, Tensor], target: Tensor) -> tuple[dict[str, float], Tensor, float]:
    """Solve target = Σ c·field by least squares on fields of norm 1; return c, what is left, and the condition."""
    matrix = torch.stack(list(fields.values()), dim=1)
    norms = matrix.norm(dim=0)
    solution = torch.linalg.lstsq(matrix / norms, target.unsqueeze(1), driver="gelsd").solution.squeeze(1)
    left = target - matrix / norms @ solution
    coefficients = {name: float(c) for name, c in zip(fields, solution / norms, strict=True)}
    return coefficients, left, float(torch.linalg.cond(matrix / norms))


def _find(loss_fn: Loss, batch: Population, drift: float, level: str) -> Finding:
    logits = batch.old + drift * batch.drift
    leaf = logits.clone().requires_grad_()
    policies = Policies(leaf.log_softmax(-1), batch.old, batch.ref)
    fields = {
        name: gradient(Objective({name: 1.0}, level), batch.tree, policies, batch.reward, [leaf])
        for name in TERMS
        if drift > 0 or name not in AGAINST_SAMPLER
    }
    at_zero = exact_gradient(loss_fn, batch, logits, 0.0 * batch.reward)
    of_reward = exact_gradient(loss_fn, batch, logits, batch.reward) - at_zero
    spread = float((policies.current - policies.old).abs().max().detach())
    facts = (drift, spread, tuple(name for name in TERMS if name not in fields), level)
    if not bool((at_zero + of_reward).isfinite().all()):
        return Finding({}, math.inf, math.nan, math.nan, *facts)

    found, residuals, condition = dict.fromkeys(fields, 0.0), [0.0], 1.0
    reward_field = {"reward": fields.pop("reward")}
    size = max(float(of_reward.norm()), float(at_zero.norm()))
    for part, terms in ((of_reward, reward_field), (at_zero, fields)):
        if part.norm() > _ZERO * size:
            coefficients, left, condition = _fit(terms, part)
            largest = max(map(abs, coefficients.values()))
            found |= {name: c if abs(c) > FIT * largest else 0.0 for name, c in coefficients.items()}
            residuals.append(float(left.norm() / part.norm()))
    # A loss that ignores the advantages has no reward to measure its normaliser by.
    scale = abs(found["reward"]) or 1.0
    fit = Finding({k: c / scale for k, c in found.items()}, max(residuals), scale, condition, *facts)
    return fit if fit.residual < fit.no_fit else replace(fit, coefficients={})
