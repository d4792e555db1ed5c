"""Each loss stated a second time, from the oracle's own definitions: what one sample's coefficient of ∇log π_θ must be.

`verify` compares the shipped losses with these statements token by token, far off-policy.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rpg_ref.audit.oracle import DEFINITIONS, Policies
from rpg_ref.clipping import bounded_loss, clipped_loss, clipped_loss_as_printed
from rpg_ref.cpgd_pmd import cpgd_loss, pmd_mean_loss
from rpg_ref.gates import ClippedGeometricMean, GammaWeight, SequenceMask, SigmoidGate, TrustRegion, gated_loss
from rpg_ref.ppo import grpo_corrected_loss, grpo_loss, k2_loss, kl_in_reward_loss
from rpg_ref.prefix import per_decision_loss
from rpg_ref.ratios import WeightBound
from rpg_ref.recipe import Recipe
from rpg_ref.surrogates import differentiable_loss, entropy_loss, reinforce_loss


def integrand(name: str, log_p: Float[Tensor, "*shape"], log_r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return what single samples add to D.

    Args:
        name: the divergence, a key of DEFINITIONS.
        log_p: log π_θ of the samples, any shape.
        log_r: log π_ref, same shape.

    Returns:
        Same shape.

    Source: the definition, over one outcome.
    """
    return DEFINITIONS[name](log_p.unsqueeze(-1), log_r.unsqueeze(-1))


def penalty_slope(name: str, policies: Policies) -> Float[Tensor, "*shape"]:
    """Return (∂d/∂log π_θ)/π_old of single samples, d the integrand of D: what β multiplies in the weight.

    Args:
        name: the divergence, a key of DEFINITIONS.
        policies: log-probabilities of the samples, any shape.

    Returns:
        Same shape.

    Source: the integrand of each definition, differentiated automatically.
    """
    leaf = policies.current.detach().requires_grad_()
    (derivative,) = torch.autograd.grad(integrand(name, leaf, policies.ref).sum(), leaf)
    return derivative * (-policies.old).exp()


def unweighted_slope(name: str, policies: Policies) -> Float[Tensor, "*shape"]:
    """Return ∂(d/π_θ)/∂log π_θ of single samples: the slope of D's estimate at samples of π_θ, without a weight.

    Args:
        name: the divergence, a key of DEFINITIONS; for urkl the estimate is k3(π_ref/π_θ).
        policies: log-probabilities of the samples, any shape.

    Returns:
        Same shape.

    Source: paper §2.2 (GRPO's penalty).
    """
    leaf = policies.current.detach().requires_grad_()
    estimate = integrand(name, leaf, policies.ref) / leaf.exp()
    return torch.autograd.grad(estimate.sum(), leaf)[0]


def samples_inside(
    direction: Float[Tensor, "*shape"],
    logp: Float[Tensor, "*shape"],
    logp_old: Float[Tensor, "*shape"],
    bounds: tuple[float, float, float],
) -> Bool[Tensor, "*shape"]:
    """Return which samples a clip lets move the policy, from ψ and w as Algorithm 2 states it.

    Args:
        direction: A′ or anything of its sign; ψ = A′·ℓ with ℓ = −log π_θ > 0.
        logp: log π_θ, any shape.
        logp_old: log π_old, same shape.
        bounds: ε1, ε2 and c.

    Returns:
        Same shape.

    Source: paper Algorithm 2; PAPER §4.
    """
    epsilon1, epsilon2, c = bounds
    psi, w = direction * -logp, logp.exp() / logp_old.exp()
    rising, falling = w < 1 + epsilon2, (w > 1 - epsilon1) & (w < c)
    return ((psi >= 0) & rising) | ((psi < 0) & falling)


def algorithm_1(
    name: str, beta: float, policies: Policies, advantage: Float[Tensor, "*shape"], bounds: tuple[float, float, float]
) -> Float[Tensor, "*shape"]:
    """Return Algorithm 1's loss with its max and min as printed, Â = A − β·(∂d/∂log π_θ)/π_θ differentiated too.

    Args:
        name: the divergence, a key of DEFINITIONS; d is its integrand.
        beta: strength of the penalty.
        policies: log-probabilities of the samples, any shape; ``current`` carries the gradient.
        advantage: same shape.
        bounds: ε1, ε2 and c.

    Returns:
        One loss per sample, same shape.

    Source: paper Algorithm 1; PAPER §4.
    """
    epsilon1, epsilon2, c = bounds
    density = integrand(name, policies.current, policies.ref)
    (derivative,) = torch.autograd.grad(density.sum(), policies.current, create_graph=True)
    regularised = advantage - beta * derivative / policies.current.exp()
    w = policies.current.exp() / policies.old.exp()
    outer = torch.maximum(-w * regularised, -w.clamp(1 - epsilon1, 1 + epsilon2) * regularised)
    return torch.where(regularised >= 0, outer, torch.minimum(outer, -c * regularised))


class LevelDefinition(NamedTuple):
    """A level from its definition: token log-probs, 0 where masked, ↦ the samples', and coefficients the way back."""

    samples: Callable[[Tensor, Tensor], Tensor]
    tokens: Callable[[Tensor, Tensor], Tensor]


def token_count(mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B 1"]:
    """Return the number of tokens of each response."""
    return mask.sum(1, keepdim=True).double()


def _to_go(x: Tensor) -> Tensor:
    """Σ_{s≥t} x_s."""
    return x.flip(1).cumsum(1).flip(1)


# fmt: off
LEVEL_DEFINITIONS = {
    "token":     LevelDefinition(lambda x, mask: x,                           lambda c, mask: c),
    "sequence":  LevelDefinition(lambda x, mask: x.sum(1, True),              lambda c, mask: c),
    "geometric": LevelDefinition(lambda x, mask: x.sum(1, True) / token_count(mask),
                                 lambda c, mask: c / token_count(mask)),
    "sequence-over-length": LevelDefinition(lambda x, mask: x.sum(1, True), lambda c, mask: c / token_count(mask)),
    "prefix":    LevelDefinition(lambda x, mask: x.cumsum(1),                 lambda c, mask: _to_go(c)),
}
# fmt: on

Stated = Callable[[Recipe, Policies, Tensor], Tensor]
"""(recipe, log-probs of the samples, their advantages) ↦ each sample's coefficient of ∇log π_θ."""


def _surrogate(recipe: Recipe, pi: Policies, A: Tensor) -> Tensor:
    return (pi.current - pi.old).exp() * A - recipe.beta * penalty_slope(recipe.divergence, pi)


def _clipped(recipe: Recipe, pi: Policies, A: Tensor) -> Tensor:
    weight = _surrogate(recipe, pi, A)
    return torch.where(samples_inside(weight, pi.current, pi.old, _bounds(recipe)), weight, 0.0)


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
    return _inside(recipe, pi, A) * (pi.current - pi.old).exp() * A


def _inside(recipe: Recipe, pi: Policies, A: Tensor) -> Tensor:
    return samples_inside(A, pi.current, pi.old, _bounds(recipe)).double()


def _bounds(recipe: Recipe) -> tuple[float, float, float]:
    clip = recipe.clip
    return (1.0, math.inf, math.inf) if clip is None else (clip.low, clip.high, clip.dual)


# fmt: off
CHAIN_RULES: dict[str, dict[str, Callable[[Policies], Tensor]]] = {
    "fkl":      {"fkl": lambda h: h.ref},
    "ufkl":     {"ufkl": lambda h: h.ref},
    "rkl":      {"rkl": lambda h: h.current},
    "urkl":     {"urkl": lambda h: h.current},
    "jeffreys": {"rkl": lambda h: h.current, "fkl": lambda h: h.ref},
    "chi2":     {"chi2": lambda h: 2 * h.current - h.ref},
}
"""By which divergences of tokens that of responses is summed, and log of the measure of the histories before them.

Source: the chain rule of each; χ² of products is Π(1 + χ²_t) − 1, with p²/r as the histories' measure.
"""
# fmt: on


def _per_decision(recipe: Recipe, pi: Policies, A: Tensor) -> Tensor:
    """The loss of prefixes, from each token's own integrands, differentiated automatically."""
    leaf = pi.current.clone().requires_grad_()
    prefixes = pi._replace(current=leaf)
    before = Policies(*(torch.cat([0 * x[:, :1], x[:, :-1]], 1) for x in prefixes))
    token = Policies(*(x - y for x, y in zip(prefixes, before, strict=True)))
    penalty = sum(
        (history(before) - before.old - token.old).exp() * integrand(name, token.current, token.ref)
        for name, history in CHAIN_RULES[recipe.divergence].items()
    )
    gain = (leaf - pi.old).exp() * A - recipe.beta * penalty
    return torch.autograd.grad(gain.sum(), leaf)[0]


def _sapo(gate: SigmoidGate, pi: Policies, A: Tensor) -> Tensor:
    """The slope of f(w)·A with f(w) = (4/τ)·σ(τ(w − 1)), differentiated automatically."""
    leaf = pi.current.clone().requires_grad_()
    tau = torch.where(A < 0, A * 0 + gate.tau_neg, A * 0 + gate.tau_pos)
    gain = 4 / tau / (1 + (-tau * ((leaf - pi.old).exp() - 1)).exp()) * A
    return torch.autograd.grad(gain.sum(), leaf)[0]


def _dppo(gate: TrustRegion, pi: Policies, A: Tensor) -> Tensor:
    """min(w, cap)·A unless the probability has moved too far; measures above 1 are no coins and never too far."""
    new, old = pi.current.exp(), pi.old.exp()
    kl = old * (old / new).log() + (1 - old) * ((1 - old) / (1 - new)).log()
    far = {"tv": (new - old).abs(), "kl": torch.where(old <= 1, kl, 0.0)}[gate.distance]
    rises, falls = (A >= 0) & (new > old) & (far > gate.delta_high), (A < 0) & (new < old) & (far > gate.delta_low)
    return torch.where(rises | falls, 0.0, (new / old).clamp(max=gate.cap) * A)


def _vespo(gate: GammaWeight, pi: Policies, A: Tensor) -> Tensor:
    w = pi.current.exp() / pi.old.exp()
    pos, neg = w**gate.k_pos * (gate.lambda_pos * (1 - w)).exp(), w**gate.k_neg * (gate.lambda_neg * (1 - w)).exp()
    return torch.where(A < 0, neg, pos) * A


def _means(x: Tensor, pi: Policies) -> Tensor:
    """Mean over the tokens of each response; log π_θ = 0 is where there is none."""
    return x.sum(1, keepdim=True) / (pi.current < 0).sum(1, keepdim=True)


def _opsm(gate: SequenceMask, pi: Policies, A: Tensor) -> Tensor:
    bad = _means(torch.where(pi.current < 0, A, 0.0), pi) < 0
    masked = bad & (_means(pi.old - pi.current, pi) > gate.delta)
    clip = (gate.clip.low, gate.clip.high, gate.clip.dual)
    inside = samples_inside(A, pi.current, pi.old, clip)
    return torch.where(inside & ~masked, pi.current.exp() / pi.old.exp() * A, 0.0)


def _gmpo(gate: ClippedGeometricMean, pi: Policies, A: Tensor) -> Tensor:
    """T times the slope of A·exp(mean of min(sign·log w, clip)·sign) of each response, differentiated automatically."""
    leaf = pi.current.clone().requires_grad_()
    log_w = leaf - pi.old
    kept = torch.where(A < 0, torch.maximum(log_w, 0 * log_w - gate.low), torch.minimum(log_w, 0 * log_w + gate.high))
    gain = A[:, :1] * _means(kept, pi).exp() * (pi.current < 0).sum(1, keepdim=True)
    return torch.autograd.grad(gain.sum(), leaf)[0]


# fmt: off
GATES_STATED: dict[type, Callable[..., Tensor]] = {
    SigmoidGate: _sapo,
    TrustRegion: _dppo,
    GammaWeight: _vespo,
    SequenceMask: _opsm,
    ClippedGeometricMean: _gmpo,
}
# fmt: on
"""What each gate states of one sample, from its paper's objective."""

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
    entropy_loss: lambda r, pi, A: _surrogate(r, pi, A) - (r.entropy or 0.0) * pi.current * (pi.current - pi.old).exp(),
    gated_loss: lambda r, pi, A: GATES_STATED[type(r.gate)](r.gate, pi, A),
    cpgd_loss: lambda r, pi, A: _inside(r, pi, A) * A - r.beta * (pi.current - pi.old).expm1(),
}
"""What each loss states of one sample: its coefficient of ∇log π_θ, from the oracle's own pieces."""


def statement_of(recipe: Recipe) -> Stated | None:
    """Return what a recipe's loss states of one sample, or None for a loss that is not of this package."""
    return STATED.get(recipe.loss, _clipped if recipe.clip is not None and recipe.clips_penalty else None)


CHECKED_AGAINST = {
    "statement": "the loss written a second time from the definitions",
    "Algorithm 2": "Algorithm 2, whose region the recipe states; the loss is not of this package",
    "itself": "its own gradient in float64, which shows rounding and nothing else; the loss is not of this package",
}
"""What ``verify`` may compare a token's gradient with, far off-policy."""


def checked_against(recipe: Recipe) -> str:
    """Return which of CHECKED_AGAINST it is for a recipe's loss.

    Args:
        recipe: the recipe.

    Returns:
        A name in CHECKED_AGAINST.

    Source: ours.
    """
    if recipe.loss in STATED:
        return "statement"
    return "itself" if statement_of(recipe) is None else "Algorithm 2"
