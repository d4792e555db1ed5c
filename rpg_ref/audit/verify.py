"""Hold a recipe against the oracle: what it declares must be what it is found to be, on this machine."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rpg_ref.audit.denominator import Bias, bias
from rpg_ref.audit.identify import FIT, Finding, descent, exact_gradient, find
from rpg_ref.audit.oracle import Policies, flat_gradient, gradient
from rpg_ref.audit.population import Loss, population
from rpg_ref.audit.statements import CHECKED_AGAINST, LEVEL_DEFINITIONS, checked_against, statement_of, token_count
from rpg_ref.fused import fused_loss
from rpg_ref.objective import Objective
from rpg_ref.recipe import Recipe

# Each of the population's 3,000 terms is right to 2⁻²⁴ and they partly cancel, 1e-7 is measured; behind a softmax of 64
# words it is right to a few times that, and 5e-7 is measured.
FLOAT32_TOLERANCE = 2e-6
# Of exact logits, a term is rounded to 2⁻⁸ four times at most: π − onehot, hidden times the token's coefficient, their
# product (in float32 on a GPU) and the sum; 6e-3 is measured.
BFLOAT16_TOLERANCE = 4 * 2**-8
_ROWS, _LENGTH, _WORDS, _FAR_NATS = 128, 4, 64, 3.0
# Lengths being 1, 2, 3, 4 in turn, a chunk of this size ends within a response.
_MICRO_BATCHES, _CHUNK = (slice(0, _ROWS // 2), slice(_ROWS // 2, _ROWS)), 95
_FAR = ((torch.float64, True), (torch.float64, False), (torch.float32, True), (torch.bfloat16, True))


@dataclass(frozen=True)
class Row:
    """One recipe's verification.

    Attributes:
        recipe: its name.
        level: of the objectives, "token" or "sequence".
        declared: the objectives declared on-policy and off-policy.
        found: the objectives found; None is the gradient of no known objective.
        residual: of each fit, relative to the gradient at zero advantages.
        spread: largest |log π_θ/π_old| off-policy, at which no sample was clipped.
        gradient_error: worst relative error of the float64 gradient: in expectation, in both regimes, with and without
            advantages; token by token far off-policy, where most samples are clipped; and there of ``fused_loss``, the
            gradients of hidden states and head, and log π_θ.
        float32_error: the same in float32, and log π_θ of ``fused_loss`` in bfloat16, which is in float32 too.
        bfloat16_error: the same in bfloat16, but not in expectation; exact is the gradient of the rounded numbers.
        checked_against: what a token's gradient was compared with far off-policy, a name in CHECKED_AGAINST.
        bias: of the recipe's own aggregation and baseline, on-policy; None where no objective is declared there. It
            is a property of the method, not an error, and ``ok`` does not depend on it.
        ok: whether everything agrees.

    Source: ours.
    """

    recipe: str
    level: str
    declared: tuple[Objective | None, Objective | None]
    found: tuple[Objective | None, Objective | None]
    residual: tuple[float, float]
    spread: float
    gradient_error: float
    float32_error: float
    bfloat16_error: float
    checked_against: str
    bias: Bias | None
    ok: bool

    @property
    def verdict(self) -> str:
        """One line: what was declared and what was found."""
        declared, found = (" on-policy and ".join(map(describe, pair)) for pair in (self.declared, self.found))
        return (
            f"{self.recipe} is {'verified' if self.ok else 'NOT verified'}: declared {declared} off-policy, found "
            f"{found} off-policy, checked against {CHECKED_AGAINST[self.checked_against]}, "
            f"gradient error {self.gradient_error:.0e} "
            f"(float32: {self.float32_error:.0e}, bfloat16: {self.bfloat16_error:.0e})"
        )


def describe(objective: Objective | None) -> str:
    """Return an objective's formula, or what None stands for."""
    return "no known objective" if objective is None else str(objective)


def check_device(device: str | torch.device) -> torch.device:
    """Return a device that computes in float64.

    Args:
        device: the device, or its name.

    Returns:
        The device.

    Raises:
        ValueError: it is not there, or has no float64.

    Source: ours.
    """
    try:
        return torch.ones(1, dtype=torch.float64, device=device).cpu().to(device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}); try cpu") from error


def verify(recipe: Recipe, *, device: str | torch.device = "cpu", seed: int = 0) -> Row:
    """Verify a recipe in expectation, in both regimes, and token by token far off-policy, from log-probs and fused.

    Far off-policy it is run as training runs it: responses of uneven lengths with NaN behind their ends, split in two
    micro-batches with the whole batch's denominator, with a reference and without; and ``fused_loss`` in chunks that
    end within responses. A loss that is not of this package is checked against Algorithm 2's region if its recipe
    states one, else against its own gradient in float64; ``Row.checked_against`` says which.

    Args:
        recipe: the recipe.
        device: where the recipe runs; the oracle stays on the CPU.
        seed: of the random policies.

    Returns:
        Row; ``ok`` is False where a declared objective is not found, an undeclared one is, or an error is too large.

    Raises:
        ValueError: the device cannot be used here.

    Source: ours.
    """
    device = check_device(device)
    loss, loss32 = (partial(_run, recipe, device, dtype) for dtype in (torch.float64, torch.float32))
    batch = population(seed)
    report = find(partial(descent, loss, batch), batch, recipe.measured_at)
    regimes = ((report.on_policy, recipe.on_policy), (report.off_policy, recipe.off_policy))
    known = [(finding, declared) for finding, declared in regimes if declared is not None]
    errors = {
        torch.float64: [_gradient_error(loss, finding, declared, seed) for finding, declared in known],
        torch.float32: [_gradient_error(loss32, finding, declared, seed) for finding, declared in known],
        torch.bfloat16: [],
    }
    tokens = {}
    for dtype, anchored in _FAR:
        if not anchored and statement_of(recipe) is None:
            continue  # a loss that is not of this package may need a reference
        far = _far_off_policy(seed, dtype, anchored)
        tokens[dtype] = _token_error(recipe, device, dtype, far)
        fused, logp = _fused_errors(recipe, device, dtype, far)
        errors[dtype] += [tokens[dtype], fused]
        errors[torch.promote_types(dtype, torch.float32)].append(logp)
    worst, worst32, worst16 = map(_largest, errors.values())
    # From log-probs of any dtype a recipe computes in float64: nothing but its gradient is rounded.
    rounded_once = all(tokens[dtype] < torch.finfo(dtype).eps / 2 for dtype in (torch.float32, torch.bfloat16))
    near = worst32 < FLOAT32_TOLERANCE and worst16 < BFLOAT16_TOLERANCE and rounded_once
    return Row(
        recipe.name,
        recipe.measured_at,
        (recipe.on_policy, recipe.off_policy),
        (report.on_policy.objective, report.off_policy.objective),
        (report.on_policy.residual, report.off_policy.residual),
        report.off_policy.spread,
        worst,
        worst32,
        worst16,
        checked_against(recipe),
        bias(recipe, seed=seed),
        all(_agrees(*regime) for regime in regimes) and worst < FIT and near,
    )


def _largest(errors: Iterable[float]) -> float:
    """The largest error; NaN if any is, which Python's max would lose."""
    return float(torch.tensor([0.0, *errors], dtype=torch.float64).max())


def _placed(device: torch.device, dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    return [x.to(device, dtype if x.is_floating_point() else None) for x in tensors]


def _run(
    recipe: Recipe,
    device: torch.device,
    dtype: torch.dtype,
    *tensors: Tensor,
    anchored: bool = True,
    denominator: Tensor | None = None,
) -> Float[Tensor, ""]:
    logp, old, ref, advantages, mask = _placed(device, dtype, *tensors)
    if denominator is None and recipe.needs_denominator:
        denominator = recipe.count(mask)
    return recipe.scalar_loss(logp, old, ref if anchored else None, advantages, mask, denominator=denominator)


def _agrees(finding: Finding, declared: Objective | None) -> bool:
    if declared is None or finding.objective is None:
        # In double precision a residual that is no fit's is no rounding either: SAPO's weight is w to second order.
        return declared is None and finding.objective is None and finding.residual > FIT
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


def _normalisers(recipe: Recipe, mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B 1"]:
    """What multiplies each sample's loss in the batch's, by the aggregation's definition."""
    one_a_token = recipe.level in ("token", "prefix")
    length = token_count(mask if one_a_token else mask.any(1, keepdim=True))
    sequences = mask.any(1).sum()
    return {
        "token-mean": torch.ones_like(length) / length.sum(),
        "seq-mean-token-mean": 1 / (length * sequences),
        "seq-mean-token-sum": torch.ones_like(length) / sequences,
    }[recipe.aggregation]


class _Batch(NamedTuple):
    """Responses of uneven lengths far off-policy; π_θ is the softmax of hidden·headᵀ, and score ∂ log π_θ/∂logits."""

    hidden: Float[Tensor, "B T d"]
    head: Float[Tensor, "V d"]
    tokens: Int[Tensor, "B T"]
    score: Float[Tensor, "B T V"]
    pi: Policies
    advantage: Float[Tensor, "B"]
    mask: Bool[Tensor, "B T"]
    anchored: bool


@cache
def _far_off_policy(seed: int, dtype: torch.dtype, anchored: bool) -> _Batch:
    """Draw a batch of numbers that the dtype holds, but for log π_θ and its score."""
    rng = torch.Generator().manual_seed(seed)
    # Logits of at most 256 sixteenths, sums of 16 halves times eighths: bfloat16's eight bits hold them exactly.
    hidden = torch.randint(-2, 3, (_ROWS, _LENGTH, 16), generator=rng).double() / 2
    head = torch.randint(-8, 9, (_WORDS, 16), generator=rng).double() / 8
    logits = (hidden @ head.T).requires_grad_()
    log_pi = logits.log_softmax(-1)
    tokens = log_pi.detach().exp().flatten(0, 1).multinomial(1, generator=rng).view(_ROWS, _LENGTH, 1)
    sampled = log_pi.gather(-1, tokens).squeeze(-1)
    (score,) = torch.autograd.grad(sampled.sum(), logits)
    current = sampled.detach()
    ratio, gap = torch.randn((2, _ROWS, _LENGTH), generator=rng, dtype=torch.float64).tanh()
    advantage = torch.randn(_ROWS, generator=rng, dtype=torch.float64)
    mask = torch.arange(_LENGTH) <= torch.arange(_ROWS)[:, None] % _LENGTH
    old, ref, A = (x.to(dtype).double() for x in (current - _FAR_NATS * ratio, current + gap, advantage))
    pi = Policies(current, old, ref if anchored else old)
    return _Batch(hidden, head, tokens.squeeze(-1), score, pi, A, mask, anchored)


def _stated_slope(recipe: Recipe, batch: _Batch, logp: Float[Tensor, "B T"]) -> tuple[Tensor, Tensor]:
    """∂loss/∂log π_θ of each token as the loss states it, or else as float64 has it, and the size of its terms."""
    mask, normalisers = batch.mask, _normalisers(recipe, batch.mask)
    samples, tokens = LEVEL_DEFINITIONS[recipe.level]
    drawn = Policies(*(samples(torch.where(mask, x, 0.0), mask) for x in batch.pi._replace(current=logp)))
    # What cancels in a sample's weight, or is clipped, leaves rounding of this size.
    size = normalisers * tokens(1 + (drawn.current - drawn.old).exp() + (drawn.ref - drawn.old).exp(), mask)
    statement = statement_of(recipe)
    if statement is None:
        slope = _slope(recipe, torch.device("cpu"), torch.float64, batch, logp)
    else:
        A = batch.advantage[:, None].expand_as(drawn.current)
        if recipe.level == "prefix":
            A = torch.where(mask & (torch.arange(1, _LENGTH + 1) == token_count(mask)), A, 0.0)
        slope = torch.where(mask, -normalisers * tokens(statement(recipe, drawn, A), mask), 0.0)
    return slope, torch.maximum(size, slope.abs())


def _slope(
    recipe: Recipe, device: torch.device, dtype: torch.dtype, batch: _Batch, logp: Float[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """∂loss/∂log π_θ of each token as the recipe has it, in micro-batches and with NaN where masked."""
    leaf, old, ref = (torch.where(batch.mask, x, math.nan) for x in (logp, batch.pi.old, batch.pi.ref))
    leaf.requires_grad_()
    slope, denominator = torch.zeros_like(leaf), _denominator(recipe, batch)
    for rows in _MICRO_BATCHES:
        part = (x[rows] for x in (leaf, old, ref, batch.advantage, batch.mask))
        loss = _run(recipe, device, dtype, *part, anchored=batch.anchored, denominator=denominator)
        slope += flat_gradient(loss, [leaf]).view_as(leaf)
    return slope


def _denominator(recipe: Recipe, batch: _Batch) -> Float[Tensor, ""]:
    return torch.stack([recipe.count(batch.mask[rows]) for rows in _MICRO_BATCHES]).sum()


def _token_error(recipe: Recipe, device: torch.device, dtype: torch.dtype, batch: _Batch) -> float:
    """Worst error of ∂loss/∂log π_θ of a token, relative to the size of its terms, from log π_θ in the dtype."""
    logp = batch.pi.current.to(dtype).double()
    stated, size = _stated_slope(recipe, batch, logp)
    return float(((_slope(recipe, device, dtype, batch, logp) - stated) / size).abs().max())


def _fused_errors(recipe: Recipe, device: torch.device, dtype: torch.dtype, batch: _Batch) -> tuple[float, float]:
    """Worst errors of ``fused_loss``: of a gradient, relative to the size of its terms, and of log π_θ."""
    hidden = torch.where(batch.mask[..., None], batch.hidden, math.nan).requires_grad_()
    head, logp = batch.head.clone().requires_grad_(), torch.zeros_like(batch.pi.current)
    found, denominator = torch.zeros(hidden.numel() + head.numel()).double(), _denominator(recipe, batch)
    for rows in _MICRO_BATCHES:
        part = (x[rows] for x in (hidden, batch.tokens, batch.pi.old, batch.pi.ref, batch.advantage, batch.mask))
        W, h, tokens, old, ref, A, mask = _placed(device, dtype, head, *part)
        anchor = ref if batch.anchored else None
        out = fused_loss(recipe, h, W, tokens, old, anchor, A, mask, denominator=denominator, chunk=_CHUNK)
        found += flat_gradient(out.loss, [hidden, head])
        logp[rows] = out.logp.double().cpu()
    slope, size = (x[..., None] * batch.score for x in _stated_slope(recipe, batch, logp))
    error = found - _pull(slope, batch.hidden, batch.head)
    terms = _pull(size.abs(), batch.hidden.abs(), batch.head.abs())
    off = torch.where(batch.mask, logp - batch.pi.current, 0.0) / batch.pi.current.abs().clamp(min=1.0)
    return float((error / terms).abs().max()), float(off.abs().max())


def _pull(
    slope: Float[Tensor, "B T V"], hidden: Float[Tensor, "B T d"], head: Float[Tensor, "V d"]
) -> Float[Tensor, "K"]:
    """From ∂loss/∂logits to the gradients of hidden states and head, flat."""
    return torch.cat([(slope @ head).flatten(), torch.einsum("btv,btd->vd", slope, hidden).flatten()])
