"""Weights of other methods in w's place: smooth gates, trust regions of probabilities, and rules of whole responses."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rpg_ref.checks import Table, check_number
from rpg_ref.clipping import DualClip, bounded_loss, region
from rpg_ref.numerics import rounded
from rpg_ref.ratios import WeightBound
from rpg_ref.recipe import Recipe
from rpg_ref.surrogates import PerSample, terms


class Seen(NamedTuple):
    """What a gate may look at, all in float64 and without gradient: log w, log π_old and A, and which samples exist."""

    log_w: Float[Tensor, "*shape"]
    logp_old: Float[Tensor, "*shape"]
    advantage: Float[Tensor, "*shape"]
    alive: Bool[Tensor, "*shape"]


def _mean(x: Float[Tensor, "*batch S"], alive: Bool[Tensor, "*batch S"]) -> Float[Tensor, "*batch 1"]:
    """Mean over the samples of each response."""
    return torch.where(alive, x, 0.0).sum(-1, keepdim=True) / alive.sum(-1, keepdim=True).clamp(min=1)


@dataclass(frozen=True)
class SigmoidGate:
    """w·f′(w) with f(w) = (4/τ)·σ(τ(w − 1)): 1 at w = 1, fading on both sides, never zero.

    Attributes:
        tau_pos: τ > 0 where A ≥ 0; larger fades faster.
        tau_neg: the same where A < 0.

    Source: Gao et al. 2025, arXiv 2511.20347 (SAPO).
    """

    tau_pos: float = 1.0
    tau_neg: float = 1.05

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_number("tau_pos", self.tau_pos, 0.0, math.inf, "()")
        check_number("tau_neg", self.tau_neg, 0.0, math.inf, "()")

    def __call__(self, seen: Seen) -> Tensor:
        """Return the weight."""
        w = seen.log_w.exp()
        tilted = torch.where(seen.advantage >= 0, self.tau_pos * (w - 1), self.tau_neg * (w - 1))
        # w·4σ(x)σ(−x), in logarithms: w overflows where the gate has long vanished.
        log_gate = torch.nn.functional.logsigmoid(tilted) + torch.nn.functional.logsigmoid(-tilted)
        return 4 * (seen.log_w + log_gate).exp()


def _total_variation(log_old: Tensor, log_new: Tensor) -> Tensor:
    return (log_new.exp() - log_old.exp()).abs()


def _coin_kl(log_old: Tensor, log_new: Tensor) -> Tensor:
    """KL(old‖new) of the coins "this token or another one"; 0 where a measure above 1 has no coin."""
    others = torch.log1p(-log_old.exp()) - torch.log1p(-log_new.exp())
    tails = torch.where(log_old < 0, -log_old.expm1() * others, 0.0)
    return torch.where((log_old <= 0) & (log_new <= 0), log_old.exp() * (log_old - log_new) + tails, 0.0)


DISTANCES: Table[Callable[[Tensor, Tensor], Tensor]] = Table("distance", {"tv": _total_variation, "kl": _coin_kl})
"""How far one token's probability moved, from log π_old and log π_θ.

Source: arXiv 2602.04879 (DPPO), the two binary approximations.
"""


@dataclass(frozen=True)
class TrustRegion:
    """min(w, cap), and 0 where the token has moved away from π_old, in the direction of A, by more than δ.

    Attributes:
        distance: "tv", |π_θ − π_old|, or "kl", KL of the coins "this token or another one", from π_old to π_θ.
        delta_low: δ > 0 where A < 0.
        delta_high: δ > 0 where A ≥ 0.
        cap: largest weight > 0.

    Source: arXiv 2602.04879 (DPPO); the cap is that of its released code.
    """

    distance: str
    delta_low: float
    delta_high: float
    cap: float = 20.0

    def __post_init__(self) -> None:
        """Check the name and the ranges."""
        DISTANCES.check(self.distance)
        for name in ("delta_low", "delta_high", "cap"):
            check_number(name, getattr(self, name), 0.0, math.inf, "(]")

    def __call__(self, seen: Seen) -> Tensor:
        """Return the weight."""
        up = seen.advantage >= 0
        moved = DISTANCES[self.distance](seen.logp_old, seen.logp_old + seen.log_w)
        away = torch.where(up, seen.log_w > 0, seen.log_w < 0)
        stopped = away & torch.where(up, moved > self.delta_high, moved > self.delta_low)
        return torch.where(stopped, 0.0, seen.log_w.clamp(max=math.log(self.cap)).exp())


@dataclass(frozen=True)
class GammaWeight:
    """w^k·e^{λ(1 − w)}, a smooth weight that is 1 at w = 1 and vanishes at both ends.

    Attributes:
        k_pos: k ≥ 0 where A ≥ 0.
        lambda_pos: λ > 0 where A ≥ 0.
        k_neg: k where A < 0.
        lambda_neg: λ where A < 0.

    Source: arXiv 2602.10693 (VESPO).
    """

    k_pos: float = 2.0
    lambda_pos: float = 3.0
    k_neg: float = 3.0
    lambda_neg: float = 2.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("k_pos", "k_neg"):
            check_number(name, getattr(self, name), 0.0, math.inf, "[)")
        for name in ("lambda_pos", "lambda_neg"):
            check_number(name, getattr(self, name), 0.0, math.inf, "()")

    def __call__(self, seen: Seen) -> Tensor:
        """Return the weight."""
        up, w = seen.advantage >= 0, seen.log_w.exp()
        pos, neg = (
            k * seen.log_w + rate * (1 - w)
            for k, rate in ((self.k_pos, self.lambda_pos), (self.k_neg, self.lambda_neg))
        )
        return torch.where(up, pos, neg).exp()


@dataclass(frozen=True)
class SequenceMask:
    """PPO's clipped w of each token, and 0 for every token of a bad response that π_θ has left by more than δ.

    Attributes:
        delta: δ > 0, the largest mean of log π_old/π_θ over a response whose mean advantage is below 0.
        clip: PPO's bounds of each token.

    Source: DeepSeek-AI 2025, arXiv 2512.02556 (DeepSeek-V3.2), off-policy sequence masking.
    """

    delta: float
    clip: DualClip = DualClip(0.2, 0.2, math.inf)

    def __post_init__(self) -> None:
        """Check the range."""
        check_number("delta", self.delta, 0.0, math.inf, "(]")

    def __call__(self, seen: Seen) -> Tensor:
        """Return the weight."""
        # Advantages of tokens may differ in sign; the response is kept or dropped as a whole.
        kept = (_mean(seen.advantage, seen.alive) >= 0) | (-_mean(seen.log_w, seen.alive) <= self.delta)
        w = seen.log_w.exp()
        return torch.where(kept & region(seen.advantage, w, self.clip).inside, w, 0.0)


@dataclass(frozen=True)
class ClippedGeometricMean:
    """The geometric mean of the response's ratios, each clipped first; 0 for the tokens that are clipped.

    Attributes:
        low: a ratio below e^{−low} is clipped where A < 0.
        high: a ratio above e^{high} is clipped where A ≥ 0.

    Source: Zhao et al. 2025, arXiv 2507.20673 (GMPO).
    """

    low: float = 0.4
    high: float = 0.4

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_number("low", self.low, 0.0, math.inf, "(]")
        check_number("high", self.high, 0.0, math.inf, "(]")

    def __call__(self, seen: Seen) -> Tensor:
        """Return the weight."""
        up = seen.advantage >= 0
        clipped = torch.where(up, seen.log_w.clamp(max=self.high), seen.log_w.clamp(min=-self.low))
        inside = torch.where(up, seen.log_w < self.high, seen.log_w > -self.low)
        return torch.where(inside, _mean(clipped, seen.alive).exp(), 0.0)


@dataclass(frozen=True)
class SecondMoment:
    """w, and 0 for the samples of the batch with the largest (log w)² until the mean over the others is below a budget.

    Splitting a batch changes it, so that no recipe of this package has it.

    Attributes:
        budget: τ > 0, the largest mean of (log w)² over the samples that stay.

    Source: Zheng et al. 2025, arXiv 2510.01161 (M2PO).
    """

    budget: float = 0.04

    def __post_init__(self) -> None:
        """Check the range."""
        check_number("budget", self.budget, 0.0, math.inf, "(]")

    def __call__(self, seen: Seen) -> Tensor:
        """Return the weight."""
        squares = seen.log_w[seen.alive].square()
        order = squares.argsort()
        means = squares[order].cumsum(0) / torch.arange(1, len(squares) + 1, device=squares.device)
        # Squares rise, and so do their means: those below the budget come first.
        stays = torch.zeros_like(squares, dtype=torch.bool)
        stays[order] = means < self.budget
        kept = torch.zeros_like(seen.alive)
        kept[seen.alive] = stays
        return torch.where(kept, seen.log_w.exp(), 0.0)


Gate = Callable[[Seen], Tensor]


def gated_loss(
    logp: Float[Tensor, "*shape"],
    logp_old: Float[Tensor, "*shape"],
    advantage: PerSample,
    *,
    gate: Gate,
    alive: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """−SG(weight·A)·log π_θ, the gate's weight being in w's place.

    Args:
        logp: log π_θ of the samples in nats, any shape; the only input that carries a gradient. For a gate that looks
            at responses the last axis is that of one response's samples.
        logp_old: log π_old, same shape.
        advantage: A = R − b, same shape or one number, larger is better.
        gate: Seen ↦ the weight.
        alive: which samples there are, same shape; None means all.

    Returns:
        One loss per sample, same shape; its gradient is −weight·A·∇log π_θ.

    Raises:
        ValueError: shapes or dtypes do not fit.

    Source: each gate names its own.
    """
    t = terms(logp, logp_old, advantage, 0.0)
    log_w, there = t.log_w.detach(), torch.ones_like(t.logp, dtype=torch.bool) if alive is None else alive
    weight = gate(Seen(log_w, t.logp.detach() - log_w, t.advantage, there))
    return rounded(-(weight * t.advantage).detach() * t.logp, logp)


_bare = partial(Recipe, on_policy_penalty={}, off_policy_penalty={}, beta=0.0, baseline="group_std")
_response = partial(_bare, aggregation="seq-mean-token-mean")
_bounded = partial(_bare, loss=bounded_loss)
_geometric = partial(_bounded, level="geometric", off_policy_reward=False)

GATED = [
    # Yao et al. 2025 (truncated importance sampling of an engine that is not the trainer): min(w, 2).
    _bounded("tis", bound=WeightBound(high=2.0)),
    _bounded("tis-sequence", bound=WeightBound(high=2.0), level="sequence", aggregation="seq-mean-token-sum"),
    _geometric("tis-geometric", bound=WeightBound(high=2.0), aggregation="seq-mean-token-mean"),
    # Masked importance sampling: zero where w > 2, as in verl's rollout correction; of a geometric mean on both sides.
    _bounded("mis", bound=WeightBound("mask", high=2.0)),
    _bounded("mis-sequence", bound=WeightBound("mask", high=2.0), level="sequence", aggregation="seq-mean-token-sum"),
    _geometric("mis-geometric", bound=WeightBound("mask", 0.99, 1.01), aggregation="seq-mean-token-mean"),
    # Ling Team 2025 (IcePop): a mask on both sides.
    _bounded("icepop", bound=WeightBound("mask", 0.5, 5.0)),
    # arXiv 2511.20347 (SAPO).
    _response("sapo", gated_loss, gate=SigmoidGate(), off_policy_reward=False),
    # arXiv 2602.04879 (DPPO); the bounds are of its example in verl, the cap is verl's default.
    _bare("dppo-tv", gated_loss, gate=TrustRegion("tv", 0.15, 0.15)),
    _bare("dppo-kl", gated_loss, gate=TrustRegion("kl", 0.05, 0.05)),
    # arXiv 2602.10693 (VESPO).
    _bare(
        "vespo",
        gated_loss,
        gate=GammaWeight(),
        level="sequence",
        off_policy_reward=False,
        aggregation="seq-mean-token-sum",
    ),
    # arXiv 2512.02556 (DeepSeek-V3.2), which prints no δ; 0.5 is what TRL proposes.
    _response("opsm", gated_loss, gate=SequenceMask(0.5), baseline="group_mean"),
    # arXiv 2507.20673 (GMPO): ratios clipped to (e^−0.4, e^0.4).
    _response("gmpo", gated_loss, gate=ClippedGeometricMean(), off_policy_reward=False),
]
"""Rows of RECIPES: other methods' rules for importance weights. Source: beside each."""
