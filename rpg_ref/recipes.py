"""A recipe is one frozen record of every choice; the table holds the named ones, each with what it optimises."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from rpg_ref.advantages import BASELINES
from rpg_ref.aggregation import AGGREGATIONS, CONSTANT_REMEDY, EXACT_UNDER, aggregate, count
from rpg_ref.checks import Table, check_log_probs, check_mask, check_number, check_tensor
from rpg_ref.clipping import DualClip, bounded_loss, clipped_loss, clipped_loss_as_printed, region
from rpg_ref.cpgd_pmd import cpgd_loss, pmd_mean_loss
from rpg_ref.divergences import DIVERGENCES
from rpg_ref.estimators import k3
from rpg_ref.numerics import at_least_float32, widest
from rpg_ref.objective import Objective
from rpg_ref.ppo import grpo_corrected_loss, grpo_loss, k2_loss, kl_in_reward_loss
from rpg_ref.prefix import per_decision_loss
from rpg_ref.ratios import LEVELS, Level, WeightBound, bounded_log_weight, log_ratios
from rpg_ref.surrogates import differentiable_loss, entropy_loss, reinforce_loss, weight

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
    advantage: Float[Tensor, "B S"]
    alive: Bool[Tensor, "B S"]


@dataclass(frozen=True)
class Recipe:
    """Every choice of a policy-gradient loss; calling it gives the loss of a batch.

    Attributes:
        name: the row's name.
        loss: one value per sample. It is called with logp, logp_old and advantage, and by name with those of
            divergence, beta, logp_ref, clip, bound and entropy that its signature has.
        on_policy_penalty: the penalty's terms and multiples of β when π_old = π_θ; None: no known objective's.
        off_policy_penalty: the same when π_old ≠ π_θ, near enough that nothing is clipped.
        divergence: name of the penalty's row in DIVERGENCES, for the losses that take any.
        off_policy_reward: whether the reward's term has the gradient of E[R] off-policy.
        clip: RPG's or PPO's region, or None.
        bound: of the importance weight, or None.
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
        for name in ("clip", "bound", "entropy"):
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
        if self.needs_denominator and denominator is None:
            raise ValueError(f"recipe {self.name!r} divides by a constant and denominator is None; {CONSTANT_REMEDY}")
        loss, alive, metrics = self.per_sample(logp, logp_old, logp_ref, advantages, mask, logp_sampler)
        total = aggregate(loss, alive, self.aggregation, denominator=denominator)
        return LossOutput(total.to(at_least_float32(logp).dtype), metrics)

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
        samples = partial(_samples, level, keep)
        reward = advantages if advantages.ndim == 2 else level.reward(advantages[:, None], keep)
        A = torch.where(alive, widest(reward), 0.0)
        batch = Batch(samples(logp), samples(logp_old), None if logp_ref is None else samples(logp_ref), A, alive)
        choices = {"logp_ref": batch.logp_ref} | {
            name: getattr(self, name) for name in ("divergence", "beta", "clip", "bound", "entropy")
        }
        taken = {name: x for name, x in choices.items() if name in self._taken}
        loss = self.loss(batch.logp, batch.logp_old, A, **taken) * level.share(keep)
        shares: dict[str, Tensor] = {}
        if logp_sampler is not None:
            log_drift = log_ratios(batch.logp_old, samples(logp_sampler)).log_w
            log_weight = bounded_log_weight(log_drift, self.sampler)
            loss = loss * log_weight.exp().detach()
            shares["sampler_bounded"] = _share(log_weight != log_drift, alive)
        return SampleLosses(loss, alive, self._metrics(batch) | shares)

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
            outside = ~region(direction, w, self.clip).inside
            fractions |= {
                "clip_high": outside & ~(direction < 0),
                "clip_low": outside & (direction < 0) & (w <= 1 - self.clip.low),
                "clip_dual": outside & (direction < 0) & (w >= self.clip.dual),
            }
        if self.bound is not None:
            fractions |= {"above_bound": w > self.bound.high, "below_bound": w < self.bound.low}
        # The appended zero is the largest ratio of a batch without any.
        ratios = torch.cat([torch.where(alive, w, 0.0).flatten(), w.new_zeros(1)])
        return {name: _share(x, alive) for name, x in fractions.items()} | {"ratio_max": ratios.max()}


def _share(x: Shaped[Tensor, "B S"], alive: Bool[Tensor, "B S"]) -> Float[Tensor, ""]:
    return torch.where(alive, x, 0.0).sum() / alive.sum().clamp(min=1)


def _samples(level: Level, keep: Bool[Tensor, "B T"], x: Float[Tensor, "B T"]) -> Float[Tensor, "B S"]:
    return level.samples(torch.where(keep, widest(x), 0.0), keep)


# The penalty each row is the gradient of: unnormalised rows differ from the normalised ones by a constant in θ.
FORWARD, REVERSE, NONE = {"forward_kl": 1.0}, {"reverse_kl": 1.0}, dict[str, float]()
FROM_SAMPLER = {"reverse_kl": 1.0, "reverse_kl_old": -1.0}
PENALTY = {"fkl": FORWARD, "ufkl": FORWARD, "rkl": REVERSE, "urkl": REVERSE}
# As printed, w·f′(w) is differentiated, and that is −1 for fkl and w − 1 for ufkl: its expected gradient is zero.
PRINTED_PENALTY = PENALTY | {"fkl": NONE, "ufkl": NONE}
# The divergences of responses that are sums over tokens.
CHAIN_RULES = PENALTY | {"jeffreys": FORWARD | REVERSE, "chi2": {"chi2": 1.0}}


def _rpg(
    style: str, loss: Callable[..., Samples], penalties: Mapping[str, Mapping[str, float]] = PENALTY, **choices: Any
) -> list[Recipe]:
    return [Recipe(style.format(x), loss, y, y, x, **choices) for x, y in penalties.items()]


# Schulman et al. 2017; paper §5.
_ppo = partial(Recipe, clip=DualClip(low=0.2, high=0.2, dual=math.inf), clips_penalty=False)
# Shao et al. 2024 (DeepSeekMath), §4.2.
_grpo = partial(_ppo, beta=0.04, baseline="group_std", aggregation="seq-mean-token-mean")
# The same without a penalty, its loss being then PPO's alone.
_bare = partial(_grpo, loss=grpo_corrected_loss, on_policy_penalty=NONE, off_policy_penalty=NONE, beta=0.0)

_ROWS = [
    *_rpg("rpg-{}", differentiable_loss),
    *_rpg("rpg-reinforce-{}", reinforce_loss),
    *_rpg("rpg-reinforce-{}-clip", clipped_loss, clip=DualClip()),
    *_rpg("rpg-{}-clip-as-printed", clipped_loss_as_printed, PRINTED_PENALTY, clip=DualClip()),
    *_rpg("rpg-{}-prefix", per_decision_loss, CHAIN_RULES, level="prefix"),
    # Mnih et al. 2016 (A3C), §4: an entropy bonus of 0.01.
    Recipe("rpg-urkl-entropy", entropy_loss, REVERSE, REVERSE, entropy=0.01),
    # For top-p and top-k samples: logp_sampler = logp_old − log(kept mass). There a baseline b adds −b·∇p(kept).
    Recipe("rpg-urkl-top-p", differentiable_loss, REVERSE, REVERSE, baseline="none"),
    _grpo("grpo", grpo_loss, FORWARD, None),
    _grpo("grpo-corrected", grpo_corrected_loss, REVERSE, REVERSE),
    # Schulman et al. 2017; the advantages are a critic's, one per token.
    _bare("ppo", baseline="none", critic=True, aggregation="token-mean"),
    # Yu et al. 2025, Eqs. 8–12.
    _bare("dapo", clip=DualClip(low=0.2, high=0.28, dual=math.inf), aggregation="token-mean"),
    # Liu et al. 2025 (Understanding R1-Zero-like training), §3: no std, and a constant denominator.
    _bare("dr-grpo", baseline="group_mean", aggregation="seq-mean-token-sum", needs_denominator=True),
    # Zheng et al. 2025, Eqs. 5–7 and §5.1.
    _bare("gspo", clip=DualClip(low=3e-4, high=4e-4, dual=math.inf), level="geometric", off_policy_reward=False),
    # MiniMax 2025 (M1), Eqs. 4–5, no lower bound; the upper one of Khatri et al. 2025 (ScaleRL).
    Recipe("cispo", bounded_loss, NONE, NONE, beta=0.0, bound=WeightBound(high=5.0), baseline="group_std"),
    # Hu et al. 2025; β is OpenRLHF's default.
    _ppo("reinforce++", kl_in_reward_loss, REVERSE, None, beta=0.01, baseline="batch_std", objective_level="sequence"),
    _ppo("reinforce++-baseline", k2_loss, REVERSE, None, beta=0.01, baseline="group_mean_batch_std"),
    # Ahmadian et al. 2024; clip and β are TRL's defaults.
    _ppo("rloo", kl_in_reward_loss, REVERSE, FROM_SAMPLER, beta=0.05, baseline="leave_one_out", level="sequence"),
    # Kimi Team 2025 (k1.5); Xu et al. 2026. Both anchor at π_old, whose KL has no gradient on-policy.
    Recipe("pmd-mean", pmd_mean_loss, NONE, None, level="sequence", off_policy_reward=False),
    # Xu et al. 2026 as released (OpenKimi): τ = 0.01, and each response's loss is divided by its length.
    Recipe(
        "pmd-mean-released",
        pmd_mean_loss,
        NONE,
        None,
        beta=0.01,
        level="sequence-over-length",
        baseline="leave_one_out",
        off_policy_reward=False,
    ),
    # Liu et al. 2025 (CPGD), Eq. 4.
    _ppo("cpgd", cpgd_loss, NONE, None, off_policy_reward=False),
]

ALIASES = {f"rpg-{x}-clip": f"rpg-reinforce-{x}-clip" for x in PENALTY}
RECIPES: Table[Recipe] = Table("recipe", {row.name: row for row in _ROWS}, ALIASES)
"""The named recipes, each once; ``RECIPES["rpg-X-clip"]`` is ``rpg-reinforce-X-clip``, by the table ALIASES.

Source: paper §3 (rpg-X), §4 (rpg-reinforce-X), Algorithm 2 (…-clip), Algorithm 1 (…-as-printed), §2.2 (grpo), §5 (its
comparisons); PAPER §5 (…-prefix); the others beside their rows.
"""
