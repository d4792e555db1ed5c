"""A recipe is one frozen record of every choice; the table holds the named ones, each with what it optimises."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from rpg_ref.advantages import BASELINES
from rpg_ref.aggregation import AGGREGATIONS, aggregate, count
from rpg_ref.audit.objective import Objective
from rpg_ref.checks import Table, check_log_probs, check_mask, check_number, check_tensor
from rpg_ref.clipping import DualClip, clipped_loss, clipped_loss_as_printed, region
from rpg_ref.divergences import DIVERGENCES
from rpg_ref.estimators import k3
from rpg_ref.numerics import at_least_float32, widest
from rpg_ref.ppo import grpo_corrected_loss, grpo_loss
from rpg_ref.ratios import LEVELS, log_ratios, truncate
from rpg_ref.surrogates import differentiable_loss, reinforce_loss, weight

Samples = Float[Tensor, "*shape"]


class LossOutput(NamedTuple):
    """A scalar to minimise, and detached scalar metrics over unmasked samples.

    Attributes:
        loss: the scalar; minimise it.
        metrics: over samples of π_old: ``ratio_mean`` and ``ratio_max`` of w; the mean of k3(w), ``forward_kl_old``,
            which estimates UKL(π_old‖π_θ), and of u·f_URKL(v), ``reverse_kl``, which estimates UKL(π_θ‖π_ref), both in
            nats; and the shares that the clip stops: ``clip_high`` (w ≥ 1 + ε2), ``clip_low`` (w ≤ 1 − ε1) and
            ``clip_dual`` (w ≥ c).

    Source: Remark 3.5 for the two estimates; Algorithm 2 for the shares.
    """

    loss: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]]


class Batch(NamedTuple):
    """A batch as samples: masked entries replaced by 0, summed to the recipe's level, in float64."""

    logp: Float[Tensor, "B S"]
    logp_old: Float[Tensor, "B S"]
    logp_ref: Float[Tensor, "B S"] | None
    advantage: Float[Tensor, "B S"]
    alive: Bool[Tensor, "B S"]


@dataclass(frozen=True)
class Recipe:
    """Every choice of a policy-gradient loss; calling it gives the loss of a batch.

    Attributes:
        name: the row's name.
        loss: one value per sample, from logp, logp_old, advantage, divergence, beta, logp_ref (and clip if any).
        divergence: name of the penalty's row in DIVERGENCES.
        on_policy_penalty: terms whose gradient, β times, the penalty has when π_old = π_θ; None: of no known one.
        off_policy_penalty: the same when π_old ≠ π_θ, near enough that nothing is clipped.
        clip: the bounds, or None.
        clips_penalty: whether the clip's direction is the whole weight's sign (RPG) or the advantage's (PPO).
        beta: strength β ≥ 0 of the penalty.
        level: what one sample is, a name in LEVELS.
        baseline: the advantage meant for it, a name in BASELINES.
        aggregation: a name in AGGREGATIONS.
        sampler_cap: with ``logp_sampler``, each loss is multiplied by min(π_old/π_sampler, sampler_cap), a constant.

    Raises:
        ValueError: an unknown name or a number out of range.

    Source: paper §3–4; each row of RECIPES names its own.
    """

    name: str
    loss: Callable[..., Samples]
    divergence: str
    on_policy_penalty: tuple[str, ...] | None
    off_policy_penalty: tuple[str, ...] | None
    clip: DualClip | None = None
    clips_penalty: bool = True
    beta: float = 1e-4
    level: str = "token"
    baseline: str = "group_mean"
    aggregation: str = "token-mean"
    sampler_cap: float = math.inf

    def __post_init__(self) -> None:
        """Check names and numbers."""
        for table, name in (
            (DIVERGENCES, self.divergence),
            (LEVELS, self.level),
            (BASELINES, self.baseline),
            (AGGREGATIONS, self.aggregation),
        ):
            table[name]
        check_number("beta", self.beta, 0.0, math.inf, "[)")
        _ = self.on_policy, self.off_policy  # an Objective checks the penalties' names
        if ("clip" in inspect.signature(self.loss).parameters) != (self.clip is not None):
            raise ValueError(f"clip is {self.clip}, which does not fit the loss; change both")
        check_number("sampler_cap", self.sampler_cap, 0.0, math.inf, "(]")

    @property
    def on_policy(self) -> Objective | None:
        """The objective whose gradient this is when π_old = π_θ, or None.

        Under seq-mean-token-mean that is so for responses of equal length: E[Σ_t ∇log π_θ / T] is not zero otherwise.
        """
        return self._objective(self.on_policy_penalty)

    @property
    def off_policy(self) -> Objective | None:
        """The objective whose gradient this is when π_old ≠ π_θ and no sample is clipped, or None; as ``on_policy``."""
        return self._objective(self.off_policy_penalty)

    def _objective(self, penalty: tuple[str, ...] | None) -> Objective | None:
        if penalty is None and self.beta > 0:
            return None
        return Objective({"reward": 1.0, **{term: self.beta for term in penalty or ()}}, self.level)

    def count(self, mask: Shaped[Tensor, "B T"]) -> Float[Tensor, ""]:
        """Return what this batch adds to the denominator: sum it over micro-batches and ranks."""
        return count(LEVELS[self.level](mask != 0), self.aggregation)

    def __call__(
        self,
        logp: Float[Tensor, "B T"],
        logp_old: Float[Tensor, "B T"],
        logp_ref: Float[Tensor, "B T"] | None,
        advantages: Float[Tensor, "B"] | Float[Tensor, "B T"],
        mask: Shaped[Tensor, "B T"],
        *,
        logp_sampler: Float[Tensor, "B T"] | None = None,
        denominator: float | Float[Tensor, ""] | None = None,
    ) -> LossOutput:
        """Return the batch's loss, whose gradient ascends the declared objective, and metrics.

        Masked positions may hold anything, NaN and ±inf included: they are replaced before any arithmetic.

        Args:
            logp: log π_θ of the sampled tokens, [B, T]; the only input that carries a gradient.
            logp_old: log π_old, [B, T].
            logp_ref: log π_ref, [B, T]; None means π_ref = π_old.
            advantages: one per sequence [B], or one per token [B, T].
            mask: [B, T], nonzero for tokens that count.
            logp_sampler: log-probabilities under the engine that really sampled, [B, T], if it is not π_old.
            denominator: as in ``aggregate``: the count of the whole batch, when this is a part of it.

        Returns:
            LossOutput(loss, metrics).

        Raises:
            ValueError: shapes or dtypes do not fit; nothing is unmasked and no denominator is given.

        Source: paper §3–4, Algorithms 1 and 2.
        """
        check_log_probs(logp, logp_old=logp_old, logp_ref=logp_ref, logp_sampler=logp_sampler)
        if logp.ndim != 2:
            raise ValueError(f"logp must be [B, T], got shape {tuple(logp.shape)}; add the missing axis")
        check_mask(mask, logp.shape)
        check_tensor("advantages", advantages)
        shapes = {"token": (logp.shape[:1], logp.shape), "sequence": (logp.shape[:1],)}[self.level]
        if advantages.shape not in shapes:
            wanted = " or ".join(str(tuple(shape)) for shape in shapes)
            got = tuple(advantages.shape)
            raise ValueError(f"advantages must have shape {wanted} at {self.level} level, got {got}; reshape them")
        keep, level = mask != 0, LEVELS[self.level]
        alive = level(keep) != 0

        def samples(x: Float[Tensor, "B T"]) -> Float[Tensor, "B S"]:
            return level(torch.where(keep, widest(x), 0.0))

        A = torch.where(alive, widest(advantages if advantages.ndim == 2 else advantages.unsqueeze(-1)), 0.0)
        batch = Batch(samples(logp), samples(logp_old), None if logp_ref is None else samples(logp_ref), A, alive)
        clip = {} if self.clip is None else {"clip": self.clip}
        loss = self.loss(batch.logp, batch.logp_old, A, self.divergence, self.beta, logp_ref=batch.logp_ref, **clip)
        if logp_sampler is not None:
            loss = loss * truncate(log_ratios(batch.logp_old, samples(logp_sampler)).log_w, self.sampler_cap).detach()
        total = aggregate(loss, alive, self.aggregation, denominator=denominator)
        return LossOutput(total.to(at_least_float32(logp).dtype), self._metrics(batch))

    @torch.no_grad()
    def _metrics(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        logp, logp_old, logp_ref, A, alive = batch
        log_w, log_v, log_u = log_ratios(logp, logp_old, logp_ref)
        w = log_w.exp()
        fractions = {
            "ratio_mean": w,
            "forward_kl_old": k3(log_w),
            "reverse_kl": log_u.exp() * DIVERGENCES["urkl"].f(log_v),
        }
        if self.clip is not None:
            clip_beta = self.beta if self.clips_penalty else 0.0
            direction = weight(logp, logp_old, A, self.divergence, clip_beta, logp_ref=logp_ref)
            dead = ~region(direction, w, self.clip).live
            fractions |= {
                "clip_high": dead & ~(direction < 0),
                "clip_low": dead & (direction < 0) & (w <= 1 - self.clip.low),
                "clip_dual": dead & (direction < 0) & (w >= self.clip.dual),
            }
        number = alive.sum().clamp(min=1)
        means = {name: torch.where(alive, x, 0.0).sum() / number for name, x in fractions.items()}
        # The appended zero is the largest ratio of a batch without any.
        ratios = torch.cat([torch.where(alive, w, 0.0).flatten(), w.new_zeros(1)])
        return means | {"ratio_max": ratios.max()}


# The penalty each row is the gradient of: unnormalised rows differ from the normalised ones by a constant in θ.
PENALTY = {"fkl": ("forward_kl",), "ufkl": ("forward_kl",), "rkl": ("reverse_kl",), "urkl": ("reverse_kl",)}
# As printed, w·f′(w) is differentiated, and that is −1 for fkl and w − 1 for ufkl: its expected gradient is zero.
PRINTED_PENALTY = PENALTY | {"fkl": (), "ufkl": ()}


def _rpg(
    style: str,
    loss: Callable[..., Samples],
    clip: DualClip | None = None,
    penalties: Mapping[str, tuple[str, ...]] = PENALTY,
) -> list[Recipe]:
    return [Recipe(style.format(x), loss, x, penalty, penalty, clip) for x, penalty in penalties.items()]


GRPO: dict[str, Any] = {
    "divergence": "urkl",
    "clip": DualClip(low=0.2, high=0.2, dual=math.inf),  # Schulman et al. 2017; paper §5
    "clips_penalty": False,
    "beta": 0.04,  # Shao et al. 2024 (DeepSeekMath), §4.2
    "baseline": "group_std",
    "aggregation": "seq-mean-token-mean",
}

_ROWS = [
    *_rpg("rpg-{}", differentiable_loss),
    *_rpg("rpg-reinforce-{}", reinforce_loss),
    *_rpg("rpg-reinforce-{}-clip", clipped_loss, DualClip()),
    *_rpg("rpg-{}-clip-as-printed", clipped_loss_as_printed, DualClip(), PRINTED_PENALTY),
    Recipe("grpo", grpo_loss, on_policy_penalty=("forward_kl",), off_policy_penalty=None, **GRPO),
    Recipe(
        "grpo-corrected",
        grpo_corrected_loss,
        on_policy_penalty=("reverse_kl",),
        off_policy_penalty=("reverse_kl",),
        **GRPO,
    ),
]

RECIPES: Table[Recipe] = Table("recipe", {row.name: row for row in _ROWS})
"""The named recipes; ``rpg-X-clip`` is another name of ``rpg-reinforce-X-clip``.

Source: paper §3 (rpg-X), §4 (rpg-reinforce-X), Algorithm 2 (…-clip), Algorithm 1 (…-as-printed), §2.2 (grpo).
"""
RECIPES |= {f"rpg-{x}-clip": RECIPES[f"rpg-reinforce-{x}-clip"] for x in PENALTY}
