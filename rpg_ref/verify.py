"""Hold a recipe against the oracle: what it declares must be what it is found to be, on this machine."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from rpg_ref.audit.identify import FIT, NO_FIT, Finding, Loss, exact_gradient, identify, population
from rpg_ref.audit.objective import Objective
from rpg_ref.audit.oracle import Policies, flat_gradient, gradient, live_samples, sample_weight
from rpg_ref.clipping import DualClip, clipped_loss_as_printed
from rpg_ref.recipes import LossOutput, Recipe

# Each of the population's 3,000 terms is right to 2⁻²⁴ and they partly cancel; 1e-7 is measured.
FLOAT32_TOLERANCE = 2e-6
_FAR_SAMPLES, _FAR_NATS, _FAR_BETA = 4000, 3.0, 0.5


@dataclass(frozen=True)
class Row:
    """One recipe's verification.

    Attributes:
        recipe: its name.
        declared: the objectives declared on-policy and off-policy.
        found: the objectives found; None is the gradient of no known objective.
        residual: of each fit, relative to the gradient at zero advantages.
        gradient_error: worst relative error of the float64 gradient, over both regimes, with and without advantages,
            and over the samples of the clipped far regime.
        float32_error: the same in float32 (near regime).
        ok: whether everything agrees.

    Source: ours.
    """

    recipe: str
    declared: tuple[Objective | None, Objective | None]
    found: tuple[Objective | None, Objective | None]
    residual: tuple[float, float]
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
    """Verify a recipe in both regimes and, where it states a clip region, sample by sample far off-policy.

    Args:
        recipe: the recipe.
        device: where the recipe runs; the oracle stays on the CPU.
        seed: of the random policies.

    Returns:
        Row; ``ok`` is False where a declared objective is not found, an undeclared one is, or an error is too large.

    Source: ours.
    """
    loss, loss32 = (partial(_run, recipe, torch.device(device), dtype) for dtype in (torch.float64, torch.float32))
    report = identify(loss, level=recipe.level, seed=seed)
    regimes = ((report.on_policy, recipe.on_policy), (report.off_policy, recipe.off_policy))
    known = [(finding, declared) for finding, declared in regimes if declared is not None]
    errors = [_gradient_error(loss, finding, declared, seed) for finding, declared in known]
    float32_errors = [_gradient_error(loss32, finding, declared, seed) for finding, declared in known]
    # Algorithm 1 as printed also moves samples outside its region; its tests say how.
    if recipe.clip is not None and recipe.loss is not clipped_loss_as_printed:
        errors += [
            _far_error(replace(recipe, beta=beta), recipe.clip, device, seed) for beta in (recipe.beta, _FAR_BETA)
        ]
    agree = all(_agrees(finding, declared) for finding, declared in regimes)
    worst, worst32 = max(errors), max(float32_errors)
    return Row(
        recipe.name,
        (recipe.on_policy, recipe.off_policy),
        (report.on_policy.objective, report.off_policy.objective),
        (report.on_policy.residual, report.off_policy.residual),
        worst,
        worst32,
        agree and worst < FIT and worst32 < FLOAT32_TOLERANCE,
    )


def _run(recipe: Recipe, device: torch.device, dtype: torch.dtype, *tensors: Tensor) -> LossOutput:
    logp, old, ref, advantages, mask = (x.to(device, dtype if x.is_floating_point() else None) for x in tensors)
    return recipe(logp, old, ref, advantages, mask)


def _agrees(finding: Finding, declared: Objective | None) -> bool:
    if declared is None or finding.objective is None:
        return declared is None and finding.residual > NO_FIT
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
    return max(errors)


def _far_error(recipe: Recipe, clip: DualClip, device: str | torch.device, seed: int) -> float:
    """Worst error of single samples' gradients, of which most are clipped, against the region as stated."""
    rng = torch.Generator().manual_seed(seed)
    spread, level, ref_gap, advantage = torch.randn((4, _FAR_SAMPLES, 1), generator=rng, dtype=torch.float64)
    logp = -2 * _FAR_NATS - level.abs()
    old, ref = logp - _FAR_NATS * spread.tanh(), logp + ref_gap.tanh()
    beta = recipe.beta if recipe.clips_penalty else 0.0
    stated = sample_weight(recipe.divergence, beta, logp, old, ref, advantage)
    stated = stated * live_samples(stated, logp, old, (clip.low, clip.high, clip.dual))

    def moved(advantage: Float[Tensor, "N 1"]) -> Float[Tensor, "N 1"]:
        leaf = logp.clone().requires_grad_()
        rest = (old, ref, advantage.squeeze(1), torch.ones_like(logp))
        loss = _run(recipe, torch.device(device), logp.dtype, leaf, *rest).loss
        return -_FAR_SAMPLES * flat_gradient(loss, [leaf]).reshape(leaf.shape)

    found = moved(advantage) if recipe.clips_penalty else moved(advantage) - moved(torch.zeros_like(advantage))
    return float((found - stated).abs().max() / stated.abs().max())
