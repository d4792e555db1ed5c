"""A recipe is one frozen record of every choice that makes a policy-gradient loss, and says what it optimises."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from rpg_ref.advantages import BASELINES
from rpg_ref.aggregation import AGGREGATIONS, CONSTANT_REMEDY, EXACT_UNDER, aggregate, count
from rpg_ref.checks import check_log_probs, check_mask, check_number, check_tensor
from rpg_ref.clipping import DualClip, region
from rpg_ref.divergences import DIVERGENCES
from rpg_ref.estimators import k3
from rpg_ref.numerics import at_least_float32, widest
from rpg_ref.objective import Objective
from rpg_ref.prefix import per_decision_loss
from rpg_ref.ratios import LEVELS, Level, WeightBound, bounded_log_weight, log_ratios
from rpg_ref.surrogates import weight

Samples = Float[Tensor, "*shape"]


class LossOutput(NamedTuple):
    """A scalar to minimise, and detached scalar metrics over unmasked samples.

    Attributes:
        loss: the scalar; minimise it.
        metrics: over samples of π_old: ``ratio_mean`` and ``ratio_max`` of w; the mean of k3(w), ``forward_kl_old``,
            which estimates UKL(π_old‖π_θ), and of u·f_URKL(v), ``reverse_kl``, which estimates UKL(π_θ‖π_ref), both in
            nats; the shares that a clip stops, ``clip_high`` (w ≥ 1 + ε2), ``clip_low`` (w ≤ 1 − ε1) and
            ``clip_dual`` (w ≥ c); those that a bound changes, ``above_bound`` and ``below_bound``; and with
            ``logp_sampler`` those whose π_old/π_sampler the sampler's bound changes, ``sampler_bounded``.

    Source: Remark 3.5 for the two estimates; Algorithm 2 for the shares.
    """

    loss: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]]


class SampleLosses(NamedTuple):
    """The losses that ``aggregate`` sums, before it does.

    Attributes:
        loss: one value per sample, [B, S]: S = T at token and prefix level, else 1.
        alive: which samples there are, [B, S]; the others' losses count for nothing.
        metrics: as LossOutput.metrics.

    Source: paper §3–4.
    """

    loss: Float[Tensor, "B S"]
    alive: Bool[Tensor, "B S"]
    metrics: dict[str, Float[Tensor, ""]]


class Batch(NamedTuple):
    """A batch as samples: masked entries replaced by 0, summed to the recipe's level, in float64."""

    logp: Float[Tensor, "B S"]
    logp_old: Float[Tensor, "B S"]
    logp_ref: Float[Tensor, "B S"] | None
    logp_sampler: Float[Tensor, "B S"] | None
    advantage: Float[Tensor, "B S"]
    alive: Bool[Tensor, "B S"]
    share: Float[Tensor, "B 1"] | float


@dataclass(frozen=True)
class Recipe:
    """Every choice of a policy-gradient loss; calling it gives the loss of a batch.

    Attributes:
        name: the row's name.
        loss: one value per sample. It is called with logp, logp_old and advantage, and by name with those of
            divergence, beta, logp_ref, clip, bound, entropy, gate and alive that its signature has.
        on_policy_penalty: the penalty's terms and multiples of β when π_old = π_θ; None: no known objective's.
        off_policy_penalty: the same when π_old ≠ π_θ, near enough that nothing is clipped.
        divergence: name of the penalty's row in DIVERGENCES, for the losses that take any.
        off_policy_reward: whether the reward's term has the gradient of E[R] off-policy.
        clip: RPG's or PPO's region, or None.
        bound: of the importance weight, or None.
        gate: what puts another weight in w's place (rpg_ref.gates), or None.
        clips_penalty: whether the clip's direction is the whole weight's sign (RPG) or the advantage's (PPO).
        beta: strength β ≥ 0 of the penalty.
        entropy: strength of the entropy bonus, for the losses that have one, or None.
        level: what one sample is, a name in LEVELS.
        objective_level: of the objectives declared, if not the level's own.
        baseline: the advantage meant for it, a name in BASELINES.
        critic: whether the advantages are a learned critic's, one per token, which no baseline gives.
        aggregation: a name in AGGREGATIONS.
        needs_denominator: whether a call without ``denominator`` is refused, since the method divides by a constant.
        sampler: with ``logp_sampler``, each loss is multiplied by π_old/π_sampler within this bound, a constant.

    Raises:
        ValueError: an unknown name or a number out of range.

    Source: paper §3–4; each row of RECIPES names its own.
    """

    name: str
    loss: Callable[..., Samples]
    on_policy_penalty: Mapping[str, float] | None = field(hash=False)
    off_policy_penalty: Mapping[str, float] | None = field(hash=False)
    divergence: str = "urkl"
    off_policy_reward: bool = True
    clip: DualClip | None = None
    bound: WeightBound | None = None
    gate: Callable[..., Samples] | None = None
    clips_penalty: bool = True
    beta: float = 1e-4
    entropy: float | None = None
    level: str = "token"
    objective_level: str | None = None
    baseline: str = "group_mean"
    critic: bool = False
    aggregation: str = "token-mean"
    needs_denominator: bool = False
    sampler: WeightBound = WeightBound()

    def __post_init__(self) -> None:
        """Check names and numbers."""
        for table, name in (
            (DIVERGENCES, self.divergence),
            (LEVELS, self.level),
            (BASELINES, self.baseline),
            (AGGREGATIONS, self.aggregation),
        ):
            table.check(name)
        check_number("beta", self.beta, 0.0, math.inf, "[)")
        _ = self.on_policy, self.off_policy  # an Objective checks the penalties' names
        for name in ("clip", "bound", "entropy", "gate"):
            if (name in self._taken) != (getattr(self, name) is not None):
                raise ValueError(f"{name} is {getattr(self, name)}, which does not fit the loss; change both")
        if (self.loss is per_decision_loss) != (self.level == "prefix"):
            raise ValueError(f"level {self.level!r} does not fit the loss; prefix goes with per_decision_loss alone")

    @cached_property
    def _taken(self) -> frozenset[str]:
        """The names in the loss's signature; one that ends in ``**choices`` takes what every penalty needs."""
        parameters = inspect.signature(self.loss).parameters
        by_any_name = any(x.kind is inspect.Parameter.VAR_KEYWORD for x in parameters.values())
        return frozenset(parameters) | (frozenset(("divergence", "beta", "logp_ref")) if by_any_name else frozenset())

    @property
    def on_policy(self) -> Objective | None:
        """The objective whose gradient this is when π_old = π_θ, or None.

        Under seq-mean-token-mean and at the levels that divide by a length that is so for responses of equal length:
        E[Σ_t ∇log π_θ / T] is not zero otherwise.
        """
        return self._objective(self.on_policy_penalty)

    @property
    def off_policy(self) -> Objective | None:
        """The objective whose gradient this is when π_old ≠ π_θ and no sample is clipped, or None; as ``on_policy``."""
        return self._objective(self.off_policy_penalty) if self.off_policy_reward else None

    def _objective(self, penalty: Mapping[str, float] | None) -> Objective | None:
        if penalty is None and self.beta > 0:
            return None
        terms = {term: self.beta * multiple for term, multiple in (penalty or {}).items()}
        bonus = {} if self.entropy is None else {"entropy": self.entropy}
        return Objective({"reward": 1.0, **terms, **bonus}, self.measured_at)

    @property
    def exact_under(self) -> str:
        """The denominator under which ``on_policy`` and ``off_policy`` are exact for any lengths, if there is one."""
        return EXACT_UNDER[self.level if self.level in EXACT_UNDER else self.aggregation]

    @property
    def measured_at(self) -> str:
        """The level of the objectives, "token" or "sequence"."""
        return self.objective_level or LEVELS[self.level].objective

    def count(self, mask: Shaped[Tensor, "B T"]) -> Float[Tensor, ""]:
        """Return what this batch adds to the denominator: sum it over micro-batches and ranks."""
        return count(LEVELS[self.level].alive(mask != 0), self.aggregation)

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
            logp_old: log π_old, [B, T]; where several versions drew a response, what each token's own version gave it.
            logp_ref: log π_ref, [B, T]; None means π_ref = π_old.
            advantages: one per sequence [B], or one per token [B, T] at token and prefix level, where at prefix
                level [B] is a reward at the end and [B, T] rewards at each token.
            mask: [B, T], nonzero for tokens that count.
            logp_sampler: log-probabilities under the engine that really sampled, [B, T], if it is not π_old.
            denominator: as in ``aggregate``: the count of the whole batch, when this is a part of it.

        Returns:
            LossOutput(loss, metrics).

        Raises:
            ValueError: shapes or dtypes do not fit; nothing is unmasked and no denominator is given, or the recipe
                needs one.

        Source: paper §3–4, Algorithms 1 and 2.
        """
        batch = self._batch(logp, logp_old, logp_ref, advantages, mask, logp_sampler)
        return LossOutput(self._total(batch, logp, denominator), self._metrics(batch))

    def scalar_loss(
        self,
        logp: Float[Tensor, "B T"],
        logp_old: Float[Tensor, "B T"],
        logp_ref: Float[Tensor, "B T"] | None,
        advantages: Float[Tensor, "B"] | Float[Tensor, "B T"],
        mask: Shaped[Tensor, "B T"],
        *,
        logp_sampler: Float[Tensor, "B T"] | None = None,
        denominator: float | Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss alone, as a training step needs it: without metrics it takes 0.3 to 0.75 of the time.

        Args and Raises: as ``__call__``.

        Returns:
            ``LossOutput.loss``.

        Source: paper §3–4, Algorithms 1 and 2.
        """
        return self._total(self._batch(logp, logp_old, logp_ref, advantages, mask, logp_sampler), logp, denominator)

    def metrics(
        self,
        logp: Float[Tensor, "B T"],
        logp_old: Float[Tensor, "B T"],
        logp_ref: Float[Tensor, "B T"] | None,
        advantages: Float[Tensor, "B"] | Float[Tensor, "B T"],
        mask: Shaped[Tensor, "B T"],
        *,
        logp_sampler: Float[Tensor, "B T"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the metrics alone, for a batch whose loss was computed in parts.

        Args and Raises: as ``__call__``.

        Returns:
            ``LossOutput.metrics``.

        Source: Remark 3.5 for the two estimates; Algorithm 2 for the shares.
        """
        return self._metrics(self._batch(logp, logp_old, logp_ref, advantages, mask, logp_sampler))

    def per_sample(
        self,
        logp: Float[Tensor, "B T"],
        logp_old: Float[Tensor, "B T"],
        logp_ref: Float[Tensor, "B T"] | None,
        advantages: Float[Tensor, "B"] | Float[Tensor, "B T"],
        mask: Shaped[Tensor, "B T"],
        logp_sampler: Float[Tensor, "B T"] | None = None,
    ) -> SampleLosses:
        """Return the loss of each sample, for a trainer that aggregates by itself; calling the recipe aggregates them.

        Args and Raises: as ``__call__``.

        Returns:
            SampleLosses(loss, alive, metrics).

        Source: paper §3–4, Algorithms 1 and 2.
        """
        batch = self._batch(logp, logp_old, logp_ref, advantages, mask, logp_sampler)
        return SampleLosses(self._losses(batch), batch.alive, self._metrics(batch))

    def _batch(
        self,
        logp: Tensor,
        logp_old: Tensor,
        logp_ref: Tensor | None,
        advantages: Tensor,
        mask: Tensor,
        logp_sampler: Tensor | None,
    ) -> Batch:
        check_log_probs(logp, logp_old=logp_old, logp_ref=logp_ref, logp_sampler=logp_sampler)
        if logp.ndim != 2:
            raise ValueError(f"logp must be [B, T], got shape {tuple(logp.shape)}; add the missing axis")
        check_mask(mask, logp.shape)
        check_tensor("advantages", advantages)
        keep, level = mask != 0, LEVELS[self.level]
        alive = level.alive(keep)
        shapes = (logp.shape[:1], logp.shape) if alive.shape == logp.shape else (logp.shape[:1],)
        if advantages.shape not in shapes:
            wanted = " or ".join(str(tuple(shape)) for shape in shapes)
            got = tuple(advantages.shape)
            raise ValueError(f"advantages must have shape {wanted} at {self.level} level, got {got}; reshape them")
        reward = advantages if advantages.ndim == 2 else level.reward(advantages[:, None], keep)
        samples = partial(_samples, level, keep)
        ref, sampler = (None if x is None else samples(x) for x in (logp_ref, logp_sampler))
        A = torch.where(alive, widest(reward), 0.0)
        return Batch(samples(logp), samples(logp_old), ref, sampler, A, alive, level.share(keep))

    def _losses(self, batch: Batch) -> Float[Tensor, "B S"]:
        choices = {"logp_ref": batch.logp_ref, "alive": batch.alive} | {
            name: getattr(self, name) for name in ("divergence", "beta", "clip", "bound", "entropy", "gate")
        }
        taken = {name: x for name, x in choices.items() if name in self._taken}
        loss = self.loss(batch.logp, batch.logp_old, batch.advantage, **taken) * batch.share
        if batch.logp_sampler is None:
            return loss
        log_drift = log_ratios(batch.logp_old, batch.logp_sampler).log_w
        return loss * bounded_log_weight(log_drift, self.sampler).exp().detach()

    def _total(self, batch: Batch, logp: Tensor, denominator: float | Tensor | None) -> Float[Tensor, ""]:
        if self.needs_denominator and denominator is None:
            raise ValueError(f"recipe {self.name!r} divides by a constant and denominator is None; {CONSTANT_REMEDY}")
        total = aggregate(self._losses(batch), batch.alive, self.aggregation, denominator=denominator)
        return total.to(at_least_float32(logp).dtype)

    @torch.no_grad()
    def _metrics(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        log_w, log_v, log_u = log_ratios(batch.logp, batch.logp_old, batch.logp_ref)
        w = log_w.exp()
        fractions = {
            "ratio_mean": w,
            "forward_kl_old": k3(log_w),
            "reverse_kl": log_u.exp() * DIVERGENCES["urkl"].f(log_v),
        }
        if self.clip is not None:
            clip_beta = self.beta if self.clips_penalty else 0.0
            of_weight = (batch.logp, batch.logp_old, batch.advantage, self.divergence, clip_beta)
            direction = weight(*of_weight, logp_ref=batch.logp_ref)
            outside = ~region(direction, w, self.clip).inside
            fractions |= {
                "clip_high": outside & ~(direction < 0),
                "clip_low": outside & (direction < 0) & (w <= 1 - self.clip.low),
                "clip_dual": outside & (direction < 0) & (w >= self.clip.dual),
            }
        if self.bound is not None:
            fractions |= {"above_bound": w > self.bound.high, "below_bound": w < self.bound.low}
        if batch.logp_sampler is not None:
            log_drift = log_ratios(batch.logp_old, batch.logp_sampler).log_w
            fractions["sampler_bounded"] = bounded_log_weight(log_drift, self.sampler) != log_drift
        # The appended zero is the largest ratio of a batch without any.
        ratios = torch.cat([torch.where(batch.alive, w, 0.0).flatten(), w.new_zeros(1)])
        return {name: _share(x, batch.alive) for name, x in fractions.items()} | {"ratio_max": ratios.max()}


def _share(x: Shaped[Tensor, "B S"], alive: Bool[Tensor, "B S"]) -> Float[Tensor, ""]:
    return torch.where(alive, x, 0.0).sum() / alive.sum().clamp(min=1)


def _samples(level: Level, keep: Bool[Tensor, "B T"], x: Float[Tensor, "B T"]) -> Float[Tensor, "B S"]:
    return level.samples(torch.where(keep, widest(x), 0.0), keep)
