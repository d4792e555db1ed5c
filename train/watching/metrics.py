"""What a run measures: each metric with its meaning, and those of a mini-batch computed."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rpg_ref import k1, k2, k3


class Metric(NamedTuple):
    """A metric of ``metrics.jsonl``.

    Attributes:
        unit: of its values; "" for a pure number.
        meaning: one sentence.
    """

    unit: str
    meaning: str


EVALUATION = {
    "accuracy": Metric("", "Mean@k: share of right responses to held-out problems, those of all test sets."),
    "stderr": Metric("", "Its standard error, over problems."),
    "pass": Metric("", "Pass@k: share of held-out problems with a right response among k."),
    "pass_stderr": Metric("", "Its standard error, over problems."),
    "accuracy.NAME": Metric("", "Mean@k of the test set NAME alone, where data.test names several; so the next three."),
    "stderr.NAME": Metric("", "Its standard error, over problems of that set."),
    "pass.NAME": Metric("", "Share of that set's problems with a right response among k."),
    "pass_stderr.NAME": Metric("", "Its standard error, over problems of that set."),
    "length": Metric("tokens", "Mean length of the responses, the end included."),
    "entropy": Metric("nats", "Entropy of π_θ at a token of those responses, at the sampling temperature, averaged."),
    "reverse_kl_start": Metric(
        "nats", "KL(π_θ‖π_start) of a response, exact over the vocabulary, along own responses; if π_ref stays."
    ),
    "seconds": Metric("s", "Time it took."),
}

WARM_START = {
    "loss": Metric("nats", "Mean −log π of a demonstrated token."),
    "grad_norm": Metric("", "Norm of the gradient before it is clipped."),
    "seconds": Metric("s", "Time of the step."),
}

POLICY_GRADIENT = {
    "reward": Metric("", "Mean reward of the responses of this rollout batch."),
    "accuracy": Metric("", "Share of right ones among them."),
    "all_right": Metric("", "Share of the drawn groups in which every response is right."),
    "all_wrong": Metric("", "Share of the drawn groups in which none is."),
    "draws": Metric("", "How often problems were drawn; over 1 only with rollout.filter."),
    "response_length": Metric("tokens", "Mean length of a response, its end included."),
    "truncated": Metric("", "Share of responses cut off at rollout.max_tokens."),
    "unjudged": Metric("", "Share of drawn responses that data.rule did not judge: it hung, died or raised. Wrong."),
    "entropy": Metric("nats", "Entropy of π_θ at a response token, at the sampling temperature, averaged."),
    "loss": Metric("", "Of the recipe, which is no measure of progress here."),
    "grad_norm": Metric("", "Norm of the gradient before it is clipped."),
    "learning_rate": Metric("", "Of the last optimiser step."),
    "skipped_steps": Metric("", "Optimiser steps left out because the gradient was not finite."),
    "ratio_mean": Metric("", "Mean of w = π_θ/π_old over samples: about 1."),
    "ratio_p99": Metric("", "99th percentile of w over the tokens of a mini-batch, averaged over mini-batches."),
    "ratio_max": Metric("", "Largest w of the step."),
    "ess": Metric("", "Effective sample size (Σw)²/(n·Σw²) of the n tokens of a mini-batch: 1 on-policy."),
    "reverse_kl": Metric(
        "nats", "Estimate of KL(π_θ‖π_ref) a sample, weighted by w: unbiased at the prefixes of π_old."
    ),
    "forward_kl_old": Metric("nats", "Estimate of KL(π_old‖π_θ) a sample."),
    "k1": Metric("nats", "Mean of log(π_θ/π_ref) over tokens drawn from π_old: what trainers log as the KL."),
    "k2": Metric("nats", "Mean of ½·log²(π_θ/π_ref) over the same tokens."),
    "k3": Metric(
        "nats",
        "Mean of y − 1 − log y, y = π_ref/π_θ, over tokens drawn from π_old: comparable between recipes of any level.",
    ),
    "sampler_gap": Metric(
        "nats", "Mean distance of log π_old from log π_sampler over tokens: how far the engine is from the trainer."
    ),
    "sampler_gap_max": Metric("nats", "The largest of the step."),
    "sampler_bounded": Metric("", "Share of samples whose correction π_old/π_sampler is cut; with engine.correct."),
    "clip_high": Metric("", "Share of tokens without gradient: pushed up with w ≥ 1 + ε₂."),
    "clip_low": Metric("", "The same: pushed down with w ≤ 1 − ε₁."),
    "clip_dual": Metric("", "The same: pushed down with w ≥ c."),
    "above_bound": Metric("", "Share of samples whose weight a recipe's bound lowers."),
    "below_bound": Metric("", "Share of samples whose weight a recipe's bound raises or drops."),
    "tokens_per_second": Metric("1/s", "Response tokens over the time of the whole step."),
    "seconds_push": Metric("s", "Time to give the engine the weights and to see that it has them."),
    "seconds_draw": Metric("s", "Time to draw responses."),
    "seconds_judge": Metric("s", "Time to judge them."),
    "seconds_old": Metric("s", "Time for log π_old."),
    "seconds_reference": Metric("s", "Time for log π_ref, where it is not π_old."),
    "seconds_learn": Metric("s", "Time for gradients and optimiser steps."),
    "seconds": Metric("s", "Time of the whole step."),
}

INTRODUCTION = """# Metrics

Each line of a run's `metrics.jsonl` has a `phase`, a `step` and the keys below; loggers show the same as `phase/key`.
A number that is not finite is `null`. The steps of `evaluation` and `policy_gradient` are rollout batches.

Under `policy_gradient`, `entropy`, `loss`, `grad_norm` and all from `ratio_mean` to `below_bound` are means over the
step's optimiser steps that were taken (`ratio_max`: the largest). At the first of them w = π_θ/π_old is 1, so ratios,
divergences and shares of clips are less extreme than what the last one sees; with schedule-free, whose gradient is
taken elsewhere than where it samples, not even the first is 1. `ratio_mean`, `ratio_max`, `reverse_kl`,
`forward_kl_old` and the shares are over samples of the recipe's level: tokens for most, responses for some.
`ratio_p99`, `ess`, `k1`, `k2` and `k3` are over tokens for all. The shares of a clip or a bound are there only if the
recipe has one.

What each of k1, k2 and k3 estimates, and what its gradient is, are two questions: see [one idea](one-idea.md) and
[errata](errata.md). `reverse_kl` is the one to read off-policy, within one run. Do not compare it between recipes of
different levels: for a response it is a sum over tokens. `report` therefore draws `k3`, which is of a token for every
recipe.
"""

METRICS = {"evaluation": EVALUATION, "warm_start": WARM_START, "policy_gradient": POLICY_GRADIENT}


def page() -> str:
    """Return docs/metrics.md."""
    tables = [
        f"## {phase}\n\n| key | unit | meaning |\n|---|---|---|\n"
        + "".join(f"| `{name}` | {metric.unit} | {metric.meaning} |\n" for name, metric in of_phase.items())
        for phase, of_phase in METRICS.items()
    ]
    return "\n".join([INTRODUCTION, *tables])


@torch.no_grad()
def drift(
    logp: Float[Tensor, "B T"], logp_old: Float[Tensor, "B T"], logp_ref: Float[Tensor, "B T"], mask: Int[Tensor, "B T"]
) -> dict[str, float]:
    """Return how far π_θ is from π_old and π_ref on the tokens of a mini-batch, drawn from π_old.

    Args:
        logp: log π_θ, [B, T].
        logp_old: log π_old, [B, T].
        logp_ref: log π_ref, [B, T].
        mask: 1 for tokens that count, at least one.

    Returns:
        ``ratio_p99``, ``ess``, ``k1``, ``k2`` and ``k3``, as METRICS has them.
    """
    keep = mask != 0
    log_w = (logp - logp_old)[keep].double()
    log_y = (logp_ref - logp)[keep].double()
    # (Σw)²/Σw² does not change when every w is divided by the largest, and then it cannot overflow.
    scaled = (log_w - log_w.max()).exp()
    return {
        "ratio_p99": log_w.kthvalue(math.ceil(0.99 * len(log_w))).values.exp().item(),
        "ess": (scaled.sum() ** 2 / (scaled**2).sum() / len(scaled)).item(),
        **{k.__name__: k(log_y).mean().item() for k in (k1, k2, k3)},
    }


@torch.no_grad()
def sampler_gap(
    logp_old: Float[Tensor, "B T"], logp_sampler: Float[Tensor, "B T"], mask: Int[Tensor, "B T"]
) -> dict[str, float]:
    """Return how far the trainer's log-probabilities are from those of the engine that drew.

    Args:
        logp_old: log π_old, [B, T].
        logp_sampler: log π_sampler, [B, T].
        mask: 1 for tokens that count, at least one.

    Returns:
        ``sampler_gap`` and ``sampler_gap_max``, as METRICS has them.
    """
    gap = (logp_old.double() - logp_sampler.double())[mask != 0].abs()
    return {"sampler_gap": gap.mean().item(), "sampler_gap_max": gap.max().item()}
