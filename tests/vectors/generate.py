"""Test vectors, each computed from its definition with 180 digits; nothing of rpg_ref is imported.

    python tests/vectors/generate.py            rewrite every file
    python tests/vectors/generate.py CLAIM_ID   print the cases of one claim
    python tests/vectors/generate.py --check    exit with 1 if a file is not what this writes

Two ideas carry the file. *A complex step is the derivative*: Im L(x + ih)/h with h = 1e-1000, so that the
stop-gradient SG(z) is simply the real part of z. *A mistake is an edit*: of the inputs, of each sample, or of the
formula; the rest of the computation is the one that gives the right answer.
"""

import json
import math
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import mpmath
from mpmath import im, inf, mp, mpc, mpf, sqrt
from mpmath import re as SG

sys.path.append(str(Path(__file__).parents[1]))  # where divergence_facts is when this file runs as a script
from divergence_facts import FACTS

HERE = Path(__file__).parent
mp.dps = 180
STEP = mpf(10) ** -1000
exp, log = lru_cache(mpmath.exp), lru_cache(mpmath.log)

# ---------------------------------------------------------------------------------------------------- divergences
# D = E_ref[f(v)], v = π_θ/π_ref; then f′. Both are written out in tests/divergence_facts.py.
F = {name: partial(facts.f, log=log) for name, facts in FACTS.items()}
F_PRIME = {name: partial(facts.f_prime, log=log) for name, facts in FACTS.items()}
OTHER_DIRECTION = {"fkl": "rkl", "ufkl": "urkl", "rkl": "fkl", "urkl": "ufkl"}
OTHER_MASS = {"fkl": "ufkl", "ufkl": "fkl", "rkl": "urkl", "urkl": "rkl"}


# Schulman's estimators of KL(p‖r), of y = r/p.
def k1(y):
    return -log(y)


def k2(y):
    return log(y) ** 2 / 2


def k3(y):
    return y - 1 - log(y)


# ------------------------------------------------------------------------------------------------ inputs, samples
@dataclass(frozen=True)
class Inputs:
    """What a trainer is given. ``loss`` and ``each`` may be replaced by a mistake."""

    loss: str | Callable
    logp: list
    logp_old: list
    logp_ref: list | None
    advantages: list
    mask: list
    beta: float
    divergence: str
    level: str = "token"
    aggregation: str = "token-mean"
    denominator: float | None = None
    clip: dict | None = None
    bound: dict | None = None
    logp_sampler: list | None = None
    sampler_bound: dict | None = None
    log_mass_old: float | None = None
    micro_batches: list | None = None
    entropy: float | None = None
    version: list | None = None
    logp_versions: list | None = None
    each: Callable = lambda sample: sample

    def json(self) -> dict:
        """The inputs that a file shows: the first twelve always, the others where they are used."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "each"}
        return {name: x for i, (name, x) in enumerate(named.items()) if i < 12 or x is not None}


class Sample(NamedTuple):
    """One sample of π_old: a token, or a response as one."""

    logp: mpf
    log_w: mpf  # log π_θ/π_old
    log_v: mpf  # log π_θ/π_ref
    u: mpf  # π_ref/π_old
    A: mpf
    drift: mpf  # log π_old/π_sampler
    last: bool = True

    w = property(lambda x: exp(x.log_w))
    v = property(lambda x: exp(x.log_v))


def responses(c: Inputs) -> Iterator[list[Sample]]:
    """The unmasked tokens of each row. What a mask hides is never looked at."""
    old, ref = c.logp_old, c.logp_ref or c.logp_old
    sampler = c.logp_sampler or old
    for b, row in enumerate(c.mask):
        alive = [t for t, keep in enumerate(row) if keep]
        tokens = []
        for t in alive:
            p, q, r, s = (x if isinstance(x, mpc) else mpf(x) for x in (m[b][t] for m in (c.logp, old, ref, sampler)))
            A = c.advantages[b]
            token = Sample(p, p - q, p - r, exp(r - q), mpf(A[t] if isinstance(A, list) else A), q - s, t == alive[-1])
            tokens.append(c.each(token))
        yield tokens


def summed(tokens: list[Sample], share) -> list[Sample]:
    """One sample of a response: log-ratios added, times ``share`` of its length."""
    n = share(len(tokens)) if tokens else 0
    names = "logp", "log_w", "log_v", "drift"
    logp, log_w, log_v, drift = (n * sum(getattr(x, name) for x in tokens) for name in names)
    return [Sample(logp, log_w, log_v, exp(SG(log_w - log_v)), tokens[0].A, drift)] if tokens else []


def prefixes(tokens: list[Sample]) -> list[Sample]:
    """Tokens whose drift is that of the prefix they end; per_decision multiplies the other ratios itself."""
    return [x._replace(drift=sum(y.drift for y in tokens[: t + 1])) for t, x in enumerate(tokens)]


LEVELS = {
    "token": lambda tokens: tokens,
    "sequence": lambda tokens: summed(tokens, lambda n: mpf(1)),
    "geometric": lambda tokens: summed(tokens, lambda n: mpf(1) / n),
    "sequence-over-length": lambda tokens: summed(tokens, lambda n: mpf(1)),
    "prefix": prefixes,
}


# --------------------------------------------------------------------------------------- losses, one value a sample
def weight(x: Sample, c: Inputs):
    """The coefficient of ∇log π_θ: w·A − β·u·v·f′(v)."""
    return x.w * x.A - c.beta * x.u * x.v * F_PRIME[c.divergence](x.v)


def differentiable(x, c):
    return -x.w * x.A + c.beta * x.u * F[c.divergence](x.v)


def with_entropy(x, c):
    """Less c·H: the reverse KL to the measure of density 1, whose own control variate is 1 − w."""
    return differentiable(x, c) + c.entropy * (x.w * x.logp + 1 - x.w)


def reinforce(x, c):
    return -SG(weight(x, c)) * x.logp


def clip(x, low, high):
    """x with its derivative inside (low, high), and a bound without one outside."""
    return min(max(x, low, key=SG), high, key=SG)


def low_high(c):
    return 1 - mpf(c.clip["low"]), 1 + mpf(c.clip["high"]), mpf(c.clip["dual"])


def clipped(x, c, rises=None, dead_penalty=1):
    """Algorithm 2, branch by branch: ℓ = −log π_θ, C the penalty's part of the weight, ψ = (w·A + C)·ℓ/w."""
    low, high, dual = low_high(c)
    nll, w, A, C = -x.logp, SG(x.w), x.A, -c.beta * SG(x.u * x.v * F_PRIME[c.divergence](x.v))
    if w * A + C >= 0 if rises is None else rises:
        return (w * A + C) * nll if w < high else (high * A + dead_penalty * C) * SG(nll)
    if w <= low:
        return (low * A + dead_penalty * C) * SG(nll)
    return (w * A + C) * nll if w < dual else (dual * A + dead_penalty * C) * SG(nll)


def regularised_advantage(x, c):
    return x.A - c.beta * F_PRIME[c.divergence](x.v)


def algorithm_1(x, c, A):
    """Algorithm 1's max and min, of the advantage given."""
    low, high, dual = low_high(c)
    larger = max(-x.w * A, -clip(x.w, low, high) * A, key=SG)
    return larger if SG(A) >= 0 else min(larger, -dual * A, key=SG)


def clipped_as_printed(x, c):
    return algorithm_1(x, c, regularised_advantage(x, c))


def ppo(x, c):
    return algorithm_1(x, c, x.A)


def bounded_ratio(w, bound):
    """w clamped to [low, high], or 0 outside for the rule "mask"."""
    inside = bound["low"] <= SG(w) <= bound["high"]
    return w if inside else mpf(0) if bound["rule"] == "mask" else clip(w, mpf(bound["low"]), mpf(bound["high"]))


def bounded(x, c):
    return -SG(bounded_ratio(x.w, c.bound) * regularised_advantage(x, c)) * x.logp


def grpo(x, c):
    return ppo(x, c) + c.beta * F[c.divergence](x.v) / x.v


def grpo_corrected(x, c):
    return ppo(x, c) + c.beta * x.w * F[c.divergence](x.v) / x.v


def k2_loss(x, c):
    return ppo(x, c) + c.beta * k2(1 / x.v)


def kl_in_reward(tokens, c, share=lambda t, s: s >= t):
    """A less β·log π_old/π_ref of this token and all later ones."""
    k = [SG(x.log_v - x.log_w) for x in tokens]
    to_go = [sum(k[s] for s in range(len(k)) if share(t, s)) for t in range(len(k))]
    return [ppo(x._replace(A=x.A - c.beta * kl), c) for x, kl in zip(tokens, to_go, strict=True)]


def per_decision(tokens, c, history=None, rewarded=None):
    """−w_{1:t}·A_t + β·h_{<t}·u_t·f(v_t); the history h is w, live, for the reverse KL and u for the forward one."""
    history = history or {"r": lambda x: x.w, "f": lambda x: x.u}[c.divergence.lstrip("u")[0]]
    losses, w, h = [], mpf(1), mpf(1)
    for x in tokens:
        w, penalty = w * x.w, h * x.u * F[c.divergence](x.v)
        h = h * history(x)
        by_token = isinstance(c.advantages[0], list)
        A = x.A if by_token or x.last else 0
        losses.append((rewarded(x, A) if rewarded else -w * A) + c.beta * penalty)
    return losses


def whole_response(tokens, c):
    """The same with the response's ratio w_{1:T} at every token."""
    w = exp(sum(x.log_w for x in tokens))
    return [-w * (x.A if x.last else 0) + c.beta * w * F[c.divergence](x.v) / x.v for x in tokens]


def pmd_mean(x, c):
    """(A − β·log w)²/2β, less a constant: log w is regressed on A/β."""
    return -x.A * x.log_w + c.beta * k2(1 / x.w)


def cpgd(x, c):
    low, high, _ = low_high(c)
    followed = min(x.log_w * x.A, clip(x.log_w, log(low), log(high)) * x.A, key=SG)
    return -followed + c.beta * k3(x.w)


LOSSES = {
    "differentiable": differentiable,
    "reinforce": reinforce,
    "entropy": with_entropy,
    "clipped": clipped,
    "clipped_as_printed": clipped_as_printed,
    "bounded": bounded,
    "grpo": grpo,
    "grpo_corrected": grpo_corrected,
    "k2": k2_loss,
    "kl_in_reward": kl_in_reward,
    "per_decision": per_decision,
    "pmd_mean": pmd_mean,
    "cpgd": cpgd,
}
OF_A_RESPONSE = (kl_in_reward, per_decision, whole_response)  # the others look at one sample


def correction(x: Sample, c: Inputs):
    """SG(π_old/π_sampler), bounded: what multiplies a loss when another engine drew the samples."""
    return bounded_ratio(exp(x.drift), c.sampler_bound or {"rule": "clamp", "low": 0.0, "high": inf})


# A KL penalty beside the reward's −w·A, in the forms that trainers use. On samples of π_θ or π_old, v = π_θ/π_ref.
FORMS = {
    "unweighted_k1": ("k1_in_loss", "k1 in the loss, without importance weight", lambda x: k1(1 / x.v)),
    "unweighted_k2": ("k2_in_loss", "k2 in the loss, without importance weight", lambda x: k2(1 / x.v)),
    "unweighted_k3": ("grpo_off_policy", "k3 in the loss, without importance weight", lambda x: k3(1 / x.v)),
    "live_weight_k1": ("k1_live_weight", "k1 times the live w", lambda x: x.w * k1(1 / x.v)),
    "live_weight_k2": ("k2_live_weight", "k2 times the live w", lambda x: x.w * k2(1 / x.v)),
    "live_weight_k3": ("grpo_live_weight", "k3 times the live w", lambda x: x.w * k3(1 / x.v)),
    "detached_weight_k2": ("k2_detached_weight", "k2 times a detached w", lambda x: SG(x.w) * k2(1 / x.v)),
    "detached_weight_k3": ("grpo_detached_weight", "k3 times a detached w", lambda x: SG(x.w) * k3(1 / x.v)),
    "straight_through_k1": (
        "k1_straight_through",
        "k1 times exp(log π_θ − SG(log π_θ))",
        lambda x: k1(1 / x.v) * exp(x.logp - SG(x.logp)),
    ),
    "straight_through_k3": (
        "k3_straight_through",
        "k3 times exp(log π_θ − SG(log π_θ))",
        lambda x: k3(1 / x.v) * exp(x.logp - SG(x.logp)),
    ),
    "reward_k1": ("k1_in_reward", "k1 in the reward, evaluated at π_θ", lambda x: x.w * SG(k1(1 / x.v))),
    "reward_k1_at_old": ("k1_in_reward_at_old", "k1 in the reward, frozen at π_old", lambda x: x.w * k1(x.u)),
    "reward_k3": ("k3_in_reward", "k3 in the reward, evaluated at π_θ", lambda x: x.w * SG(k3(1 / x.v))),
    "reward_k3_at_old": ("k3_in_reward_at_old", "k3 in the reward, frozen at π_old", lambda x: x.w * k3(x.u)),
}


def with_penalty(form):
    """−w·A, clipped as PPO does where there is a clip, plus β times a form of the penalty."""
    return lambda x, c: (ppo(x, c) if c.clip else -x.w * x.A) + c.beta * form(x)


LOSSES |= {name: with_penalty(form) for name, (_, _, form) in FORMS.items()}


# ------------------------------------------------------------------------------- from samples to a loss and gradient
def contributions(c: Inputs) -> list:
    """What each row adds to the batch's loss."""
    formula = LOSSES[c.loss] if isinstance(c.loss, str) else c.loss
    of_a_response = getattr(formula, "func", formula) in OF_A_RESPONSE
    mass = exp(mpf(c.log_mass_old or 0))
    rows = []
    for tokens in responses(c):
        samples = LEVELS[c.level](tokens)
        losses = formula(samples, c) if of_a_response else [formula(x, c) for x in samples]
        share = mpf(1) / max(len(tokens), 1) if c.level == "sequence-over-length" else mpf(1)
        rows.append([share * mass * correction(x, c) * loss for x, loss in zip(samples, losses, strict=True)])
    return aggregated(rows, c.aggregation, c.denominator)


def aggregated(rows: list[list], how: str, denominator: float | None) -> list:
    """token-mean Σ/tokens; seq-mean-token-mean Σ_i mean_i/sequences; seq-mean-token-sum Σ/sequences."""
    count = sum(len(row) if how == "token-mean" else len(row) > 0 for row in rows)
    share = {"seq-mean-token-mean": lambda row: mpf(1) / max(len(row), 1)}.get(how, lambda row: 1)
    return [share(row) * sum(row) / (denominator or count) for row in rows]


class Answer(NamedTuple):
    loss: Any
    gradient: Any


def solve(c: Inputs, objective: Callable = contributions) -> Answer:
    """Loss and ∂loss/∂logp [B, T] by complex steps; rows do not mix, so that one step of a column serves them all."""

    def stepped(t):
        return replace(c, logp=[[mpc(x, STEP) if s == t else x for s, x in enumerate(row)] for row in c.logp])

    columns = [objective(stepped(t)) for t in range(len(c.logp[0]))]
    return Answer(SG(sum(columns[0])), [[im(x) / STEP for x in row] for row in zip(*columns, strict=True)])


# ---------------------------------------------------------------------------------------------------- the mistakes
def change(**fields) -> Callable:
    """A mistake in the inputs: each field a value, or a function of the inputs."""
    return lambda c: solve(replace(c, **{name: x(c) if callable(x) else x for name, x in fields.items()}))


def using(loss: Callable) -> Callable:
    """A mistake in the formula."""
    return lambda c: solve(replace(c, loss=loss))


def each(edit: Callable) -> Callable:
    """A mistake in the ratios of each token."""
    return lambda c: solve(replace(c, each=edit))


def nan_where(spoilt: Callable) -> Callable:
    """IEEE arithmetic: the right gradient, but NaN (0·∞ or 0·NaN) at the spoilt tokens, and in the loss."""

    def answer(c):
        loss, g = solve(c)
        at = [(b, t) for b, row in enumerate(g) for t in range(len(row)) if spoilt(c, b, t)]
        for b, t in at:
            g[b][t] = mp.nan
        return Answer(mp.nan if at else loss, g)

    return answer


def hidden_and_not_finite(c, b, t):
    log_probs = [m[b][t] for m in (c.logp, c.logp_old, c.logp_ref) if m]
    return not c.mask[b][t] and not all(map(math.isfinite, log_probs))


def ratio_overflows(limit):
    """Whether w or v is beyond exp(limit)."""

    def spoilt(c, b, t):
        bases = [m[b][t] for m in (c.logp_old, c.logp_ref) if m]
        return bool(c.mask[b][t]) and any(abs(c.logp[b][t] - base) > limit for base in bases)

    return spoilt


def flip(x):
    return lambda c: {**c.clip, **x(c.clip)}


# Formulas that someone has written in a loss's place.
def both_sides(x, c):
    low, high, _ = low_high(c)
    return -SG(weight(x, c)) * (x.logp if low < SG(x.w) < high else SG(x.logp))


def reversed_pessimism(x, c):
    low, high, _ = low_high(c)
    return -max(x.w * x.A, clip(x.w, low, high) * x.A, key=SG)


def reward_clipped_only(x, c):
    return ppo(x, c) + c.beta * x.u * F[c.divergence](x.v)


def hard_clip(x, c):
    low, high, _ = low_high(c)
    return -SG(clip(x.w, low, high) * regularised_advantage(x, c)) * x.logp


def bound_in_the_graph(x, c):
    return -bounded_ratio(x.w, c.bound) * SG(regularised_advantage(x, c))


def chi2_through_expm1(x, c):
    """χ² as autograd sees expm1(log v)²: slope 2(v − 1)·((v − 1) + 1), the bracket in float64."""
    v = float(SG(x.v) - 1) + 1
    return -x.w * x.A + c.beta * 2 * SG(x.u * (x.v - 1) * v) * x.log_v


def micro_means(share: Callable) -> Callable:
    """Each micro-batch's own mean, times its share."""

    def objective(c):
        def part(rows):
            own = {name: getattr(c, name) for name in ("logp", "logp_old", "logp_ref", "advantages", "mask")}
            return replace(c, **{name: m and [m[b] for b in rows] for name, m in own.items()})

        return [share(c, rows) * x for rows in c.micro_batches for x in contributions(part(rows))]

    return lambda c: solve(c, objective)


def in_two_parts(reward: Callable, penalty: Callable) -> Callable:
    """The reward's term of edited inputs plus the penalty of others."""

    def objective(c):
        parts = reward(replace(c, beta=0)), penalty(replace(c, advantages=[0] * len(c.mask)))
        return [sum(pair) for pair in zip(*map(contributions, parts), strict=True)]

    return lambda c: solve(c, objective)


def drawn_by(c, version):
    """The log-probability that each token's version gave it."""
    return [[mpf(c.logp_versions[k][b][t]) for t, k in enumerate(row)] for b, row in enumerate(version)]


def slots(c):
    """Places in the padded tensor."""
    return sum(len(row) for row in c.mask)


def all_ones(c):
    return [[1] * len(row) for row in c.mask]


class Mistake(NamedTuple):
    meaning: str
    answer: Callable[[Inputs], Answer]


# fmt: off
MISTAKES = {name: Mistake(*row) for name, row in {
    # the penalty
    "sign_of_penalty": ("the penalty is subtracted: the policy is pushed away from the reference",
        change(beta=lambda c: -c.beta)),
    "no_penalty": ("the penalty has no gradient, or is missing",
        change(beta=0)),
    "other_direction": ("the KL of the other direction",
        change(divergence=lambda c: OTHER_DIRECTION[c.divergence])),
    "unnormalised_for_normalised": ("the unnormalised KL, with its term ±(v − 1), for the normalised one",
        change(divergence=lambda c: OTHER_MASS[c.divergence])),
    "normalised_for_unnormalised": ("the normalised KL, without the term ±(v − 1), for the unnormalised one",
        change(divergence=lambda c: OTHER_MASS[c.divergence])),
    "no_reference_ratio_u": ("the penalty lacks u = π_ref/π_old",
        each(lambda x: x._replace(u=mpf(1)))),
    "reference_ignored": ("π_old stands in for π_ref",
        each(lambda x: x._replace(log_v=x.log_w, u=mpf(1)))),
    "js_sign_error": ("½(RKL − FKL) for Jensen–Shannon, as in the released code",
        using(lambda x, c: -x.w * x.A + c.beta * x.u * (F["rkl"](x.v) - F["fkl"](x.v)) / 2)),
    "half_jeffreys": ("½(UFKL + URKL), half of Jeffreys",
        using(lambda x, c: -x.w * x.A + c.beta * x.u * F["jeffreys"](x.v) / 2)),
    "chi2_through_expm1": ("v as (v − 1) + 1, which is 0 below e⁻³⁷: autograd through expm1",
        using(chi2_through_expm1)),
    "entropy_penalised": ("the entropy bonus is subtracted: the policy is pushed to be certain",
        change(entropy=lambda c: -c.entropy)),
    "entropy_without_weight": ("log π_θ of the samples for the entropy: its expected gradient is zero on-policy",
        using(lambda x, c: differentiable(x, c) + c.entropy * x.logp)),
    "no_entropy": ("the entropy bonus has no gradient, or is missing",
        change(entropy=0)),
    "mass_dropped": ("the loss lacks Z_old, the mass of the unnormalised π_old",
        change(log_mass_old=None)),
    # the importance weight
    "no_importance_weight": ("the reward's term lacks w: on-policy REINFORCE on samples of π_old",
        each(lambda x: x._replace(log_w=x.log_w - SG(x.log_w)))),
    "detached_ratio": ("w is detached in a loss that has to differentiate it",
        each(lambda x: x._replace(log_w=SG(x.log_w)))),
    "ratio_upside_down": ("π_old/π_θ for π_θ/π_old",
        each(lambda x: x._replace(log_w=-x.log_w))),
    "live_weight": ("the weight is not detached in −SG(weight)·log π_θ",
        using(lambda x, c: -weight(x, c) * x.logp)),
    "k1_in_reward_without_weight": ("weight w·A − β·log v: the penalty lacks w",
        using(lambda x, c: -SG(x.w * x.A - c.beta * x.log_v) * x.logp)),
    # the clip
    "unclipped": ("no sample is clipped",
        using(reinforce)),
    "region_by_advantage_sign": ("the region is chosen by the advantage's sign, not by that of the whole weight",
        using(lambda x, c: clipped(x, c, rises=x.A >= 0))),
    "clip_bounds_swapped": ("ε1 and ε2 are swapped",
        change(clip=flip(lambda clip: {"low": clip["high"], "high": clip["low"]}))),
    "no_dual_bound": ("the bound c on w is missing",
        change(clip=flip(lambda clip: {"dual": math.inf}))),
    "both_sides_clipped": ("samples outside [1 − ε1, 1 + ε2] are stopped on both sides, whatever their sign",
        using(both_sides)),
    "reversed_pessimism": ("max(w·A, clip(w)·A) for min",
        using(reversed_pessimism)),
    "reward_clipped_only": ("the clip stops the reward's term, never the penalty",
        using(reward_clipped_only)),
    "hard_clip": ("w is clipped inside the detached weight, and every sample still moves the policy",
        using(hard_clip)),
    "dead_value_minus_penalty": ("a stopped sample's value has −C for +C, as in the released code",
        using(lambda x, c: clipped(x, c, dead_penalty=-1))),
    "exp_before_clamp": ("exp of a log-ratio overflows: ∞·0 = NaN",
        nan_where(ratio_overflows(709.0))),
    "float32_ratios": ("ratios in float32, where exp(89) overflows: NaN",
        nan_where(ratio_overflows(88.0))),
    "live_advantage": ("Algorithm 1 as printed: Â is differentiated",
        using(clipped_as_printed)),
    "detached_advantage": ("Â is detached, which mends Algorithm 1 but is not what is printed",
        using(lambda x, c: algorithm_1(x, c, SG(regularised_advantage(x, c))))),
    "bound_in_the_graph": ("w̄ is differentiated, so that clamped samples have gradient 0",
        using(bound_in_the_graph)),
    "unbounded": ("the weight is not bounded",
        using(reinforce)),
    "clamp_for_mask": ("weights outside are clamped, not dropped",
        change(bound=lambda c: {**c.bound, "rule": "clamp"})),
    "mask_for_clamp": ("weights outside are dropped, not clamped",
        change(bound=lambda c: {**c.bound, "rule": "mask"})),
    # GRPO and relatives
    "ppo_unclipped": ("no sample is clipped",
        change(clip=flip(lambda clip: {"low": 1.0, "high": math.inf, "dual": math.inf}))),
    "k3_upside_down": ("k3(π_θ/π_ref) for k3(π_ref/π_θ)",
        using(lambda x, c: ppo(x, c) + c.beta * k3(x.v))),
    "k2_not_halved": ("(log v)² for ½(log v)²",
        using(lambda x, c: ppo(x, c) + 2 * c.beta * k2(x.v))),
    "own_token_only": ("a token answers for its own KL, not for that of the tokens after it",
        using(partial(kl_in_reward, share=lambda t, s: s == t))),
    "kl_of_the_past": ("a token answers for the KL of the tokens before it",
        using(partial(kl_in_reward, share=lambda t, s: s <= t))),
    # log-ratio losses
    "ratio_for_log_ratio": ("w for log w in the reward's term",
        using(lambda x, c: -x.w * x.A + c.beta * k2(x.w))),
    "ppo_for_log_ratio": ("PPO's clipped w for the clipped log w",
        using(lambda x, c: ppo(x, c) + c.beta * k3(x.w))),
    "square_not_halved": ("β(log w)² for ½β(log w)²",
        using(lambda x, c: -x.A * x.log_w + 2 * c.beta * k2(x.w))),
    "anchor_at_reference": ("the penalty is anchored at π_ref, not at π_old",
        using(lambda x, c: -x.A * x.log_w + c.beta * k2(x.v))),
    "drift_from_reference": ("the drift is that from π_ref, not from π_old",
        using(lambda x, c: cpgd(x, c) + c.beta * (k3(x.v) - k3(x.w)))),
    "drift_upside_down": ("k3(1/w) for k3(w)",
        using(lambda x, c: cpgd(x, c) + c.beta * (k3(1 / x.w) - k3(x.w)))),
    "drift_clipped": ("the clip stops the drift's gradient as well",
        using(lambda x, c: cpgd(x, replace(c, beta=0)) + c.beta * k3(clip(x.w, *low_high(c)[:2])))),
    # levels
    "token_level": ("each token is a sample of its own",
        change(level="token")),
    "sequence_level": ("the response is the sample: log-probabilities are summed",
        change(level="sequence")),
    "not_over_length": ("the loss of a response is not divided by its length",
        change(level="sequence")),
    "geometric_level": ("the geometric mean of the ratios for their product",
        change(level="geometric")),
    "token_weights": ("each token has its own ratio, not its prefix's",
        change(level="token", loss="differentiable")),
    "sequence_weights": ("every token has the whole response's ratio",
        using(whole_response)),
    "detached_prefix_weight": ("the history's weight is detached: a token does not answer for later KL",
        using(partial(per_decision, history=lambda x: SG(x.w)))),
    "current_history": ("the forward KL's history is weighted by w, not by u",
        using(partial(per_decision, history=lambda x: x.w))),
    "reference_history": ("the reverse KL's history is weighted by u, not by w",
        using(partial(per_decision, history=lambda x: x.u))),
    "no_history": ("the penalty lacks the history's weight",
        using(partial(per_decision, history=lambda x: mpf(1)))),
    "own_ratio_on_reward": ("the reward is weighted by its own token's ratio, not by the prefix's",
        using(partial(per_decision, rewarded=lambda x, A: -x.w * A))),
    "reward_everywhere": ("the final reward is given to every token",
        change(advantages=lambda c: [[A] * len(row) for A, row in zip(c.advantages, c.mask, strict=True)])),
    # aggregation, masks, micro-batches
    "token_mean": ("the mean over tokens",
        change(aggregation="token-mean")),
    "mean_of_sequence_means": ("the mean of the sequences' means",
        change(aggregation="seq-mean-token-mean")),
    "mean_of_sequence_sums": ("the mean of the sequences' sums",
        change(aggregation="seq-mean-token-sum")),
    "sum": ("the sum, not divided",
        change(aggregation="seq-mean-token-sum", denominator=1)),
    "padding_counted": ("divided by the padded number of tokens",
        change(aggregation="seq-mean-token-sum", denominator=slots)),
    "empty_rows_counted": ("rows without any token count as sequences",
        change(denominator=lambda c: len(c.mask))),
    "mask_ignored": ("padding is trained on",
        change(mask=all_ones)),
    "mask_after_arithmetic": ("the mask is applied after the arithmetic: 0·NaN = NaN",
        nan_where(hidden_and_not_finite)),
    "constant_dropped": ("the denominator given is ignored",
        change(denominator=None)),
    "mean_of_micro_batches": ("the mean of the micro-batches' own means",
        micro_means(lambda c, rows: mpf(1) / len(c.micro_batches))),
    "micro_means_by_sequences": ("the micro-batches' own means, weighted by their numbers of sequences",
        micro_means(lambda c, rows: mpf(len(rows)) / len(c.mask))),
    "sum_of_micro_batches": ("the sum of the micro-batches' own means",
        micro_means(lambda c, rows: 1)),
    # the sampling engine
    "sampler_ignored": ("the loss lacks π_old/π_sampler",
        change(logp_sampler=None)),
    "sampler_on_reward_only": ("π_old/π_sampler multiplies the reward's term, not the penalty",
        in_two_parts(reward=lambda c: c, penalty=lambda c: replace(c, logp_sampler=None))),
    "sampler_on_penalty_only": ("π_old/π_sampler multiplies the penalty, not the reward's term",
        in_two_parts(reward=lambda c: replace(c, logp_sampler=None), penalty=lambda c: c)),
    "sampler_upside_down": ("π_sampler/π_old for π_old/π_sampler",
        each(lambda x: x._replace(drift=-x.drift))),
    "sampler_twice_weighted": ("π_θ/π_sampler for π_old/π_sampler: w is counted twice",
        each(lambda x: x._replace(drift=x.drift + SG(x.log_w)))),
    "old_replaced_by_sampler": ("π_sampler stands in for π_old, in v as well",
        change(logp_old=lambda c: c.logp_sampler, logp_sampler=None)),
    "sampler_unbounded": ("π_old/π_sampler is not bounded",
        change(sampler_bound=None)),
    # several versions of the policy in one response
    "newest_version_for_all": ("every token has the log-probability of the newest version",
        change(logp_old=lambda c: c.logp_versions[-1])),
    "oldest_version_for_all": ("every token has the log-probability of the oldest version",
        change(logp_old=lambda c: c.logp_versions[0])),
    "first_version_for_all": ("every token has the log-probability of the version that began its response",
        change(logp_old=lambda c: drawn_by(c, [[row[0] for _ in row] for row in c.version]))),
    "version_one_token_late": ("each token has the log-probability of the version that drew the token before it",
        change(logp_old=lambda c: drawn_by(c, [[row[0], *row[:-1]] for row in c.version]))),
    "mean_of_versions": ("every token has the logarithm of the versions' mean probability",
        change(logp_old=lambda c: entries(lambda *x: log(sum(map(exp, map(mpf, x))) / len(x)), *c.logp_versions))),
}.items()}
# fmt: on
MISTAKES |= {x: Mistake(f"the penalty is {what}", using(with_penalty(form))) for x, (_, what, form) in FORMS.items()}


# --------------------------------------------------------------------------------------- from an answer to a file
MARGIN = mpf("1e-3")


def far(wrong, right, elementwise: bool) -> bool:
    """Whether two arrays (or numbers) differ by the margin, or one is NaN where the other is not."""
    pairs = list(zip(flat(wrong), flat(right), strict=True))
    if any(mp.isnan(a) != mp.isnan(b) for a, b in pairs):
        return True
    largest = max(abs(b) for _, b in pairs)
    return any(abs(a - b) > MARGIN * (abs(b) if elementwise else largest) for a, b in pairs)


def flat(x) -> list:
    return [z for y in x for z in flat(y)] if isinstance(x, list) else [x]


def number(x):
    """A float64 as JSON can hold it: the shortest decimal that reads back as it, or a string for NaN and ±∞."""
    if isinstance(x, dict):
        return {name: number(y) for name, y in x.items()}
    if isinstance(x, list):
        return [number(y) for y in x]
    if x is None or isinstance(x, str | int):
        return x
    x = float(x)
    return x + 0.0 if math.isfinite(x) else "NaN" if math.isnan(x) else "Infinity" if x > 0 else "-Infinity"


def batch(case: str, claim: str, comment: str, c: Inputs, mistakes: str, contract="gradient", value=True) -> dict:
    """One case of a batch's loss. By ``contract`` answers are told apart; without ``value`` no loss is stated."""
    right = solve(c)
    answers = {name: MISTAKES[name].answer(c) for name in mistakes.split()}
    wrong = [
        {"name": name, "meaning": MISTAKES[name].meaning, **answer._asdict()}
        for name, answer in answers.items()
        if far(getattr(answer, contract), getattr(right, contract), elementwise=False)
    ]
    head = {"id": case, "claim": claim, "comment": comment, "contract": contract, "inputs": c.json()}
    return head | {"loss": right.loss if value else None, "gradient": right.gradient, "wrong": wrong}


def entries(f: Callable, *tables: list) -> list:
    """f of each entry of the tables."""
    return [[f(*xs) for xs in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]


def draw(seed: int, lengths=(3, 2), width: int = 3, spread: float = 0.6) -> dict:
    """log π_θ, log π_old, log π_ref of two decimals, advantages of both signs, a mask; padding holds 0."""
    rng = random.Random(seed)
    places = [[t < n for t in range(width)] for n in lengths]

    def table(low, high):
        return [[round(rng.uniform(low, high), 2) if keep else 0.0 for keep in row] for row in places]

    logp = table(-2.6, -0.7)
    old, ref = (entries(lambda x, y: round(x - y, 2), logp, table(-spread, spread)) for _ in "12")
    A = [round((-1) ** b * rng.uniform(0.4, 1.6), 2) for b in range(len(lengths))]
    mask = [[int(keep) for keep in row] for row in places]
    return {"logp": logp, "logp_old": old, "logp_ref": ref, "advantages": A, "mask": mask}


# ------------------------------------------------------------------------------------------------------ the cases
K3 = "unweighted_k3 detached_weight_k3 live_weight_k3 straight_through_k3"
PENALTY = "sign_of_penalty no_penalty no_reference_ratio_u reference_ignored"
CLAIM_OF = {"fkl": "prop_e_1_fkl", "ufkl": "prop_3_2_ufkl", "rkl": "prop_e_3_rkl", "urkl": "prop_3_6_urkl"}
WITH_REFERENCE = {True: "with a reference of its own", False: "π_ref = π_old"}
GRID = {"low": 0.2, "high": 0.28, "dual": 3.0}
PLAIN = {"low": 0.2, "high": 0.2, "dual": math.inf}


def without_reference(drawn: dict) -> dict:
    return drawn | {"logp_ref": None}


def kl_mistakes(name: str) -> str:
    """The KLs that can be taken for this one."""
    if name not in OTHER_MASS:
        return {"js": "js_sign_error", "jeffreys": "half_jeffreys"}.get(name, "")
    mass = "normalised_for_unnormalised" if name[0] == "u" else "unnormalised_for_normalised"
    return f"other_direction {mass}"


def surrogates(name, claim):
    mistakes = f"{PENALTY} {kl_mistakes(name)} no_importance_weight detached_ratio ratio_upside_down"
    for ref in (False, True):
        drawn = draw(10 + len(name)) if ref else without_reference(draw(20 + len(name)))
        c = Inputs("differentiable", **drawn, beta=0.5, divergence=name)
        more = " unweighted_k3 detached_weight_k3" if name in OTHER_MASS else ""
        yield batch(f"surrogate-{name}-{'ref' if ref else 'old'}", claim, WITH_REFERENCE[ref], c, mistakes + more)


def masses(name, claim):
    c = Inputs("differentiable", **draw(31), beta=0.5, divergence=name, log_mass_old=0.7)
    mistakes = "mass_dropped sign_of_penalty no_penalty"
    yield batch(f"surrogate-{name}-mass", claim, "samples of π_old/Z, log Z = log_mass_old", c, mistakes)
    c = replace(c, logp_ref=None)
    yield batch(f"surrogate-{name}-mass-anchor", claim, "the unnormalised π_old is the anchor as well", c, mistakes)


def at_the_anchor(name, claim):
    drawn = draw(32)
    drawn |= {"logp_old": drawn["logp"], "logp_ref": None, "advantages": [0.0, 0.0]}
    c = Inputs("differentiable", **drawn, beta=0.5, divergence=name)
    comment = "π_θ = π_old = π_ref: the penalty's gradient is 0, at each sample if unnormalised, else in the mean"
    mistakes = f"{kl_mistakes(name)} sign_of_penalty unweighted_k3"
    yield batch(f"surrogate-{name}-at-the-anchor", claim, comment, c, mistakes)


def far_above_reference(name, claim):
    far = {"logp": [[-1.0, -0.5]], "logp_old": [[-1.25, -0.25]], "logp_ref": [[-101.0, -90.0]]}
    c = Inputs("differentiable", **far, advantages=[0.75], mask=[[1, 1]], beta=0.5, divergence=name)
    comment = "v is beyond float32, u below it, and their product w is neither"
    yield batch(f"surrogate-{name}-far-above", claim, comment, c, f"float32_ratios {PENALTY} {kl_mistakes(name)}")


def far_below_reference(name, claim):
    far = {"logp": [[-41.0, -19.5]], "logp_old": [[-41.25, -19.25]], "logp_ref": [[-1.0, -0.5]]}
    c = Inputs("differentiable", **far, advantages=[0.75], mask=[[1, 1]], beta=0.5, divergence=name)
    comment = "v is tiny and u large: (v − 1) + 1 is not v in floating point"
    more = "chi2_through_expm1" if name == "chi2" else kl_mistakes(name)
    yield batch(f"surrogate-{name}-far-below", claim, comment, c, f"{PENALTY} {more}")


def reinforces(name, claim):
    mistakes = f"{PENALTY} {kl_mistakes(name)} live_weight no_importance_weight ratio_upside_down"
    more = " k1_in_reward_without_weight" if name == "urkl" else ""
    for ref in (False, True):
        drawn = draw(10 + len(name)) if ref else without_reference(draw(20 + len(name)))
        c = Inputs("reinforce", **drawn, beta=0.5, divergence=name)
        yield batch(f"reinforce-{name}-{'ref' if ref else 'old'}", claim, WITH_REFERENCE[ref], c, mistakes + more)


def penalties(name, claim):
    c = Inputs(name, **draw(40, lengths=(2, 2), width=2), beta=0.5, divergence="urkl")
    yield batch(f"penalty-{name}", claim, FORMS[name][1], c, " ".join(x for x in FORMS if x != name))


def grid(log_w=(-0.28, 0.1, 0.22, 0.6, 1.5), A=(1.2, 0.1, -0.1, -1.2), reference=0.0) -> dict:
    """Every ratio with every advantage: w below, inside and above the region, and beyond c."""
    logp = [[round(-0.6 - 0.25 * t - 0.1 * b, 2) for t in range(len(log_w))] for b in range(len(A))]
    old = [[round(x - y, 2) for x, y in zip(row, log_w, strict=True)] for row in logp]
    ref = [[round(x - reference * (-1) ** (b + t), 2) for t, x in enumerate(row)] for b, row in enumerate(logp)]
    mask = [[1] * len(log_w) for _ in A]
    return {"logp": logp, "logp_old": old, "logp_ref": ref if reference else None, "advantages": list(A), "mask": mask}


REGION = "region_by_advantage_sign clip_bounds_swapped no_dual_bound both_sides_clipped"


def clips(name, claim):
    for reference in (0.0, 0.3):
        c = Inputs("clipped", **grid(reference=reference), beta=0.5, divergence=name, clip=GRID)
        case = f"clip-{name}-{'ref' if reference else 'old'}"
        comment = f"every ratio with every advantage; {WITH_REFERENCE[reference > 0]}"
        yield batch(case, claim, comment, c, f"unclipped {REGION} reward_clipped_only hard_clip")


def clip_values(claim):
    c = Inputs("clipped", **grid(A=(1.2, -1.2)), beta=0.5, divergence="urkl", clip=GRID)
    comment = "what stopped samples report: (bound·A + C)·ℓ"
    yield batch("clip-value", claim, comment, c, "dead_value_minus_penalty hard_clip", contract="loss")


def clip_far(claim):
    far = {"logp": [[-1.0, -1.0, -1.0]], "logp_old": [[-801.0, -801.0, -1.1]], "logp_ref": None, "mask": [[1, 1, 1]]}
    c = Inputs("clipped", **far, advantages=[[1.5, -1.5, 1.5]], beta=0.5, divergence="urkl", clip=GRID)
    comment = "w = e⁸⁰⁰ is stopped: gradient 0, not NaN"
    yield batch("clip-far", claim, comment, c, "exp_before_clamp", value=False)


def bounds(rule, claim):
    bound = {"rule": rule, "low": 0.5, "high": 1.5}
    for reference in (0.0, 0.3):
        drawn = grid((-0.9, 0.1, 0.6), (1.2, -1.2), reference)
        c = Inputs("bounded", **drawn, beta=0.5, divergence="urkl", bound=bound)
        other = {"clamp": "mask_for_clamp", "mask": "clamp_for_mask"}[rule]
        case = f"bound-{rule}-{'ref' if reference else 'old'}"
        yield batch(case, claim, "w̄ in w's place, detached", c, f"{other} unbounded bound_in_the_graph sign_of_penalty")


def printed(name, claim):
    own = {"clipped": "live_advantage", "clipped_as_printed": "detached_advantage"}
    comments = {"clipped": "Algorithm 2, and 1 with Â detached", "clipped_as_printed": "Algorithm 1 to the letter"}
    for loss, mistake in own.items():
        c = Inputs(loss, **grid(A=(1.2, -1.2)), beta=0.5, divergence=name, clip=GRID)
        case = f"algorithm-1-{name}-{'printed' if 'printed' in loss else 'detached'}"
        mistakes = f"{mistake} sign_of_penalty no_penalty clip_bounds_swapped"
        yield batch(case, claim, comments[loss], c, mistakes, value=loss != "clipped")


PPO = "ppo_unclipped reversed_pessimism clip_bounds_swapped"


def ppos(claim):
    for name, clip in {"ppo": PLAIN, "dapo": {**PLAIN, "high": 0.28}, "dual": GRID}.items():
        c = Inputs("grpo_corrected", **grid(A=(1.2, -1.2)), beta=0.0, divergence="urkl", clip=clip)
        more = " no_dual_bound" if name == "dual" else ""
        yield batch(f"ppo-{name}", claim, "−min(w·A, clip(w)·A), no penalty", c, PPO + more + " both_sides_clipped")


def critic(claim):
    drawn = grid((-0.28, 0.1, 0.6), (0.0, 0.0)) | {"advantages": [[1.2, -0.3, 0.7], [-1.1, 0.4, -0.8]]}
    c = Inputs("grpo_corrected", **drawn, beta=0.0, divergence="urkl", clip=PLAIN)
    yield batch("ppo-critic", claim, "one advantage a token", c, PPO)


def grpos(loss, on_policy, claim):
    drawn = draw(51, spread=0.9)
    if on_policy:
        drawn |= {"logp_old": drawn["logp"]}
    c = Inputs(loss, **drawn, beta=0.5, divergence="urkl", clip=PLAIN, aggregation="seq-mean-token-mean")
    mistakes = {
        "grpo": f"{K3} k3_upside_down unweighted_k2 {PENALTY} token_mean padding_counted",
        "grpo_corrected": f"{K3} k3_upside_down unweighted_k2 {PENALTY} token_mean",
        "k2": f"unweighted_k1 unweighted_k3 k2_not_halved {PENALTY} token_mean",
    }
    where = "on-policy" if on_policy else "off-policy"
    comments = {"grpo": "as published", "grpo_corrected": "its penalty weighted by the live w", "k2": "k2 in its place"}
    case = f"{loss.replace('_', '-')}-{where}"
    yield batch(case, claim, f"GRPO, {comments[loss]}; {where}", c, mistakes[loss])


def kl_rewards(level, claim):
    aggregation = {"token": "token-mean", "sequence": "seq-mean-token-sum"}[level]
    spread = {"token": 0.6, "sequence": 0.1}[level]
    c = Inputs("kl_in_reward", **draw(52, (4, 2), 4, spread), beta=0.5, divergence="urkl", clip=PLAIN)
    c = replace(c, level=level, aggregation=aggregation)
    mistakes = f"own_token_only kl_of_the_past sign_of_penalty no_penalty reference_ignored {OTHER_LEVELS[level]}"
    comment = "A less β·Σ_{s≥t} log π_old/π_ref, then PPO's clip"
    yield batch(f"kl-in-reward-{level}", claim, comment, c, mistakes)


OTHER_LEVELS = {"token": "", "sequence": "token_level geometric_level", "geometric": "token_level sequence_level"}


def mirror_descent(claim):
    c = Inputs("pmd_mean", **draw(53), beta=0.5, divergence="urkl", level="sequence")
    mistakes = f"ratio_for_log_ratio square_not_halved anchor_at_reference sign_of_penalty {OTHER_LEVELS['sequence']}"
    yield batch("pmd-mean", claim, "−A·log w + ½β(log w)²; π_ref plays no part", c, mistakes)


def released_mirror_descent(claim):
    c = Inputs("pmd_mean", **draw(54, lengths=(3, 2)), beta=0.5, divergence="urkl", level="sequence-over-length")
    comment = "−A·log w + ½β(log w)² of a response, over its length"
    yield batch("pmd-mean-released", claim, comment, c, "not_over_length token_level geometric_level sign_of_penalty")


def entropies(claim):
    c = Inputs("entropy", **draw(55), beta=0.5, divergence="urkl", entropy=0.25)
    mistakes = "entropy_penalised entropy_without_weight no_entropy sign_of_penalty no_penalty"
    yield batch("surrogate-entropy", claim, "an entropy bonus beside the penalty", c, mistakes)


def cpgds(claim):
    c = Inputs("cpgd", **grid((-0.4, 0.1, 0.6), (1.2, -1.2), 0.3), beta=0.5, divergence="urkl", clip=PLAIN)
    mistakes = "ppo_for_log_ratio drift_from_reference drift_upside_down drift_clipped ppo_unclipped no_penalty"
    yield batch("cpgd", claim, "−A·log w clipped, + β·k3(w), never clipped; π_ref plays no part", c, mistakes)


def levels(level, loss, name, claim):
    clip = GRID if loss == "clipped" else None
    c = Inputs(loss, **draw(60 + len(name)), beta=0.5, divergence=name, level=level, clip=clip)
    c = replace(c, aggregation="seq-mean-token-sum")
    what = {"sequence": "product", "geometric": "geometric mean"}[level]
    comment = f"{loss}, {name}: a response is one sample, its ratio the {what} of its tokens'"
    mistakes = f"{OTHER_LEVELS[level]} reference_ignored sign_of_penalty"
    yield batch(f"{level}-{loss}-{name}", claim, comment, c, mistakes)


def gspo(claim):
    drawn = draw(66, lengths=(3, 2), spread=0.02)
    clip = {"low": 3e-4, "high": 4e-4, "dual": math.inf}
    c = Inputs("grpo_corrected", **drawn, beta=0.0, divergence="urkl", clip=clip, level="geometric")
    mistakes = "token_level sequence_level ppo_unclipped reversed_pessimism"
    yield batch("geometric-gspo", claim, "GSPO: PPO's clip on the geometric mean", c, mistakes)


def prefix(name, claim):
    reverse = name in ("rkl", "urkl")
    history = "detached_prefix_weight reference_history sequence_weights" if reverse else "current_history"
    mistakes = f"token_weights {history} no_history own_ratio_on_reward reward_everywhere sign_of_penalty"
    for ref in (False, True):
        drawn = draw(70 + len(name), lengths=(3, 2)) if ref else without_reference(draw(75 + len(name)))
        c = Inputs("per_decision", **drawn, beta=0.5, divergence=name, level="prefix", aggregation="seq-mean-token-sum")
        case = f"prefix-{name}-{'ref' if ref else 'old'}"
        yield batch(case, claim, f"−w_{{1:t}}·A_t + β·h_{{<t}}·u_t·f(v_t); {WITH_REFERENCE[ref]}", c, mistakes)


def prefix_rewards(claim):
    drawn = draw(79) | {"advantages": [[0.5, -0.25, 1.0], [-0.75, 0.5, 0.0]]}
    c = Inputs("per_decision", **drawn, beta=0.5, divergence="rkl", level="prefix", aggregation="seq-mean-token-sum")
    mistakes = "token_weights own_ratio_on_reward detached_prefix_weight"
    yield batch("prefix-rkl-rewards", claim, "a reward at each token", c, mistakes)


LENGTHS = "token_mean mean_of_sequence_means mean_of_sequence_sums sum padding_counted"


def aggregations(how, claim):
    c = Inputs("differentiable", **draw(80, lengths=(3, 1)), beta=0.5, divergence="urkl", aggregation=how)
    yield batch(f"aggregation-{how}", claim, "uneven lengths", c, LENGTHS)
    if how == "seq-mean-token-sum":
        c = replace(c, denominator=3.0)
        yield batch("aggregation-constant", claim, "Dr. GRPO: a constant denominator", c, f"constant_dropped {LENGTHS}")


def micro_batches(how, claim):
    drawn = draw(90, lengths=(3, 1, 3))
    c = Inputs("differentiable", **drawn, beta=0.5, divergence="urkl", aggregation=how, micro_batches=[[0, 1], [2]])
    comment = "the sum over micro-batches, each with the whole batch's denominator"
    mistakes = "mean_of_micro_batches micro_means_by_sequences sum_of_micro_batches"
    yield batch(f"micro-batch-{how}", claim, comment, c, mistakes)


def samplers(claim):
    drawn = draw(100)
    drift = [[0.3, -0.5, 0.1], [-0.2, 0.4, 0.0]]
    sampler = entries(lambda x, y: round(x + y, 2), drawn["logp_old"], drift)
    c = Inputs("differentiable", **drawn, beta=0.5, divergence="urkl", logp_sampler=sampler)
    one_term = "sampler_on_reward_only sampler_on_penalty_only"
    mistakes = f"sampler_ignored {one_term} sampler_upside_down sampler_twice_weighted"
    yield batch("sampler", claim, "every loss times SG(π_old/π_sampler)", c, mistakes)
    c = replace(c, logp_ref=None)
    yield batch("sampler-old", claim, "π_ref = π_old", c, f"{mistakes} old_replaced_by_sampler")
    for rule in ("clamp", "mask"):
        bounded = replace(c, sampler_bound={"rule": rule, "low": 0.8, "high": 1.5})
        yield batch(f"sampler-{rule}", claim, f"bounded by the rule {rule!r}", bounded, f"{mistakes} sampler_unbounded")
    c = replace(c, level="sequence", aggregation="seq-mean-token-sum")
    yield batch("sampler-sequence", claim, "the ratio of whole responses", c, f"{mistakes} token_level")


VERSION = [[0, 1, 1], [1, 2, 0]]
OF_ONE_VERSION = (
    "newest_version_for_all oldest_version_for_all first_version_for_all version_one_token_late mean_of_versions"
)


def stale(level, claim):
    """Versions 0, 1, 2 of the policy drew the tokens; 2 is the newest. Each row is a response, cut by its mask."""
    drawn = draw(110)
    newest = drawn["logp_old"]
    updates = [draw(seed)["logp"] for seed in (111, 112)]
    older = [
        entries(lambda x, y: round(min(x + (y + 1.6) / 2, -0.05), 2) if x else 0.0, newest, step) for step in updates
    ]
    c = Inputs("differentiable", **drawn, beta=0.5, divergence="urkl", version=VERSION, logp_versions=[*older, newest])
    c = replace(c, logp_old=entries(float, drawn_by(c, VERSION)))
    if level == "prefix":
        c = replace(c, loss="per_decision", level="prefix")
    if level != "token":
        c = replace(c, level=level, aggregation="seq-mean-token-sum")
    comment = f"logp_old is what the version of each token recorded, {level} level"
    yield batch(f"stale-{level}", claim, comment, c, OF_ONE_VERSION)
    if level == "sequence":
        c = replace(c, logp_old=newest, logp_sampler=c.logp_old)
        comment = "logp_old is the newest version, logp_sampler is what the version of each token recorded"
        yield batch("stale-sampler", claim, comment, c, "sampler_ignored sampler_upside_down sampler_twice_weighted")


def hidden(c: Inputs, logp: float, old: float, ref: float) -> Inputs:
    """The same with these values behind the mask."""

    def put(table, x):
        return entries(lambda a, keep: a if keep else x, table, c.mask)

    refs = c.logp_ref and put(c.logp_ref, ref)
    return replace(c, logp=put(c.logp, logp), logp_old=put(c.logp_old, old), logp_ref=refs)


def masked(loss, claim):
    nan, clip = math.nan, GRID if "clip" in loss else None
    c = Inputs(loss, **draw(110), beta=0.5, divergence="urkl", clip=clip)
    after = "mask_after_arithmetic padding_counted"
    yield batch(f"masked-{loss}-nan", claim, "NaN behind the mask", hidden(c, nan, nan, nan), after)
    spoilt = hidden(c, -math.inf, -math.inf, -math.inf)
    yield batch(f"masked-{loss}-inf", claim, "−∞ behind the mask: −∞ − (−∞) = NaN", spoilt, after)
    spoilt = hidden(c, 0.0, -math.inf, math.inf)
    yield batch(f"masked-{loss}-overflow", claim, "ratios of ∞ and 0 behind the mask", spoilt, after)


def masked_levels(level, claim):
    loss = {"prefix": "per_decision"}.get(level, "differentiable")
    c = Inputs(loss, **draw(111), beta=0.5, divergence="urkl", level=level, aggregation="seq-mean-token-sum")
    c = replace(c, mask=[[1, 0, 1], [1, 1, 0]])
    comment = "NaN behind the mask, once within a response"
    yield batch(f"masked-{level}", claim, comment, hidden(c, math.nan, math.nan, math.nan), "mask_after_arithmetic")


def finite_padding(claim):
    c = Inputs("differentiable", **draw(112), beta=0.5, divergence="urkl")
    yield batch("masked-zeros", claim, "zeros behind the mask", c, "mask_ignored padding_counted")
    c = replace(hidden(c, -9.0, -8.5, -8.0), advantages=[[1.0, -0.5, 0.25], [0.5, -1.0, math.nan]])
    yield batch("masked-advantage", claim, "NaN in an advantage behind the mask", c, "padding_counted")


def empty_rows(how, claim):
    c = Inputs("differentiable", **draw(113, lengths=(3, 0, 2)), beta=0.5, divergence="urkl", aggregation=how)
    nan = math.nan
    mistakes = "empty_rows_counted padding_counted"
    yield batch(f"masked-empty-row-{how}", claim, "a row without any token", hidden(c, nan, nan, nan), mistakes)


# ---------------------------------------------------------------------------- functions of a log-ratio, advantages
FUNCTIONS = {
    "phi": lambda d: exp(d) - 1 - d,
    "k1": lambda d: k1(exp(d)),
    "k2": lambda d: k2(exp(d)),
    "k3": lambda d: k3(exp(d)),
} | {name: (lambda d, f=f: f(exp(d))) for name, f in F.items()}


def along(f, points) -> tuple[list, list]:
    """f and ∂f/∂d at each log-ratio d."""
    stepped = [f(mpc(d, STEP)) for d in points]
    return [SG(y) for y in stepped], [im(y) / STEP for y in stepped]


def cancelled(f, points) -> tuple[list, list]:
    """eᵈ − 1 − d as float64 computes it when it is written so."""
    e = [float(exp(mpf(d))) for d in points]
    return [x - 1 - d for x, d in zip(e, points, strict=True)], [x - 1 for x in e]


# fmt: off
OF_FUNCTIONS = {
    "roles_swapped": ("v·f(1/v): the divergence with its arguments swapped",
        lambda name: lambda d: exp(d) * FUNCTIONS[name](-d)),
    "ratio_upside_down": ("the estimator of 1/y for that of y",
        lambda name: lambda d: FUNCTIONS[name](-d)),
    "unnormalised_for_normalised": ("with the term ±(v − 1)", lambda name: FUNCTIONS[OTHER_MASS[name]]),
    "normalised_for_unnormalised": ("without the term ±(v − 1)", lambda name: FUNCTIONS[OTHER_MASS[name]]),
    "half_jeffreys": ("½(UFKL + URKL)", lambda name: lambda d: FUNCTIONS[name](d) / 2),
    "half_chi2": ("½(v − 1)²", lambda name: lambda d: FUNCTIONS[name](d) / 2),
    "js_sign_error": ("½(RKL − FKL), as in the released code",
        lambda name: lambda d: (FUNCTIONS["rkl"](d) - FUNCTIONS["fkl"](d)) / 2),
    "not_halved": ("twice the function", lambda name: lambda d: 2 * FUNCTIONS[name](d)),
    "k1": ("k1", lambda name: FUNCTIONS["k1"]),
    "k2": ("k2", lambda name: FUNCTIONS["k2"]),
    "k3": ("k3", lambda name: FUNCTIONS["k3"]),
}
# fmt: on


def function(name, mistakes, points, comment, claim):
    value, slope = along(FUNCTIONS[name], points)
    wrong = [(x, OF_FUNCTIONS[x][0], *along(OF_FUNCTIONS[x][1](name), points)) for x in mistakes.split()]
    if name in F:
        without_v = [F_PRIME[name](exp(mpf(d))) for d in points]
        wrong.append(("slope_without_v", "f′(v) for ∂f/∂log v = v·f′(v)", value, without_v))
    if name in ("phi", "ufkl", "k3"):
        wrong.append(("cancellation", "eᵈ − 1 − d in float64 as written", *cancelled(name, points)))
    kept = [x for x in wrong if far(x[3], slope, elementwise=True)]
    yield {
        "id": f"function-{name}-{comment.split()[0]}",
        "claim": claim,
        "comment": comment,
        "contract": "gradient",
        "inputs": {"function": name, "log_ratio": points},
        "value": value,
        "gradient": slope,
        "wrong": [dict(zip(("name", "meaning", "value", "gradient"), x, strict=True)) for x in kept],
    }


TINY = [1e-20, -1e-16, 1e-12, -1e-9, 1e-7, -1e-5, 1e-4]
ORDINARY = [-2.0, -0.75, -0.25, 0.25, 1.0, 2.5]
LARGE = [-300.0, -89.0, -40.0, 40.0, 89.0, 300.0]
POINTS = {"tiny log-ratios": TINY, "ordinary log-ratios, and 0": [*ORDINARY, 0.0], "large log-ratios": LARGE}


def divergences(name, claim):
    for comment, points in POINTS.items():
        mass = kl_mistakes(name).split()[-1:] if name in OTHER_MASS else []
        yield from function(name, " ".join([*FACTS[name].wrong_functions, *mass]), points, comment, claim)


def estimators(name, claim):
    others = " ".join(x for x in ("k1", "k2", "k3") if name != x and name != "phi")
    more = {"k2": " not_halved", "k3": " ratio_upside_down", "phi": " ratio_upside_down not_halved"}.get(name, "")
    for comment, points in POINTS.items():
        yield from function(name, others + more, points, comment, claim)


def mean(xs):
    return sum(xs) / mpf(len(xs))


def std(xs, less=1):
    return sqrt(sum((x - mean(xs)) ** 2 for x in xs) / (len(xs) - less))


def standardised(x, own, xs, less=1):
    """(x − mean own)/std xs; 0 where all are equal."""
    return (x - mean(own)) / std(xs, less) if std(xs, less) > 0 else mpf(0)


# (reward, rewards of its group, all rewards, all rewards less their group's mean) ↦ advantage
RULES = {
    "none": lambda r, own, batch, less: r,
    "batch_mean": lambda r, own, batch, less: r - mean(batch),
    "batch_std": lambda r, own, batch, less: standardised(r, batch, batch),
    "group_mean": lambda r, own, batch, less: r - mean(own),
    "group_mean_batch_std": lambda r, own, batch, less: (r - mean(own)) / std(less),
    "leave_one_out": lambda r, own, batch, less: r - (sum(own) - r) / (len(own) - 1),
    "group_std": lambda r, own, batch, less: standardised(r, own, own),
}
# fmt: off
WRONG_RULES = {
    "own_sample_baseline": ("the baseline holds the sample's own reward", RULES["group_mean"]),
    "leave_one_out": ("the mean of the others as the baseline", RULES["leave_one_out"]),
    "batch_for_group": ("the mean of the batch for that of the group", RULES["batch_mean"]),
    "group_for_batch": ("the mean of the group for that of the batch", RULES["group_mean"]),
    "no_baseline": ("no baseline", RULES["none"]),
    "not_divided": ("not divided by a standard deviation", RULES["group_mean"]),
    "batch_std_for_group": ("the standard deviation of the batch for that of the group", RULES["group_mean_batch_std"]),
    "group_std_for_batch": ("the standard deviation of the group for that of the batch", RULES["group_std"]),
    "population_std": ("divided by the standard deviation of G, not of G − 1",
        lambda r, own, batch, less: standardised(r, own, own, 0)),
    "population_std_of_batch": ("divided by the batch's standard deviation of B, not of B − 1",
        lambda r, own, batch, less: standardised(r, batch, batch, 0)),
    "std_of_rewards": ("divided by the standard deviation of the rewards, not of the centred ones",
        lambda r, own, batch, less: (r - mean(own)) / std(batch)),
    "zero_over_zero": ("a group of equal rewards gives 0/0 = NaN",
        lambda r, own, batch, less: RULES["group_std"](r, own, batch, less) if std(own) > 0 else mp.nan),
}
# fmt: on
REWARDS = {
    "uneven groups": ([1.0, 0.0, 1.0, 1.0, 0.25, -1.0, 0.5], [4, 4, 9, 4, 9, 4, 9]),
    "equal rewards in a group": ([1.0, 1.0, 0.0, 1.0, -0.5], [0, 0, 1, 0, 1]),
}


def applied(rule, rewards, groups):
    batch = [mpf(r) for r in rewards]
    own = [[x for x, other in zip(batch, groups, strict=True) if other == g] for g in groups]
    less = [r - mean(xs) for r, xs in zip(batch, own, strict=True)]
    return [rule(r, xs, batch, less) for r, xs in zip(batch, own, strict=True)]


def advantages(baseline, mistakes, claim):
    for comment, (rewards, groups) in REWARDS.items():
        right = applied(RULES[baseline], rewards, groups)
        wrong = {name: applied(WRONG_RULES[name][1], rewards, groups) for name in mistakes.split()}
        yield {
            "id": f"advantages-{baseline}-{comment.split()[0]}",
            "claim": claim,
            "comment": comment,
            "contract": "value",
            "inputs": {"rewards": rewards, "groups": groups, "baseline": baseline},
            "value": right,
            "wrong": [
                {"name": name, "meaning": WRONG_RULES[name][0], "value": x}
                for name, x in wrong.items()
                if far(x, right, elementwise=False)
            ],
        }


# -------------------------------------------------------------------------------------- the table: claim ↦ cases
class Topic(NamedTuple):
    """One file: its kind of case, what it is about, and the formula of the right answers."""

    kind: str
    about: str
    formula: str


SYMBOLS = "w = π_θ/π_old, v = π_θ/π_ref, u = π_ref/π_old, SG = stop-gradient"
TOPICS = {
    "surrogate": Topic("batch", "The differentiable surrogate", "Z·(−w·A + β·u·f(v))"),
    "reinforce": Topic("batch", "The REINFORCE-style loss", "−SG(w·A − β·u·v·f′(v))·log π_θ"),
    "penalties": Topic("batch", "Which form of the KL penalty do you have?", "−w·A + β·form"),
    "clip": Topic("batch", "RPG-Style Clip (Algorithm 2), bounded weights", "SG(clamp(w)·A + C)·ℓ, C = −β·u·v·f′(v)"),
    "algorithm_1_as_printed": Topic("batch", "Algorithm 1, mended and as printed", "−clamp(w)·Â, Â = A − β·f′(v)"),
    "ppo_grpo": Topic("batch", "PPO, GRPO, and the KL in the reward", "−min(w·A, clip(w)·A) + penalty"),
    "log_ratio": Topic("batch", "Losses that follow log w", "−A·log w + penalty"),
    "levels": Topic("batch", "A response, its prefixes, its geometric mean as samples", "log w summed, or averaged"),
    "aggregation": Topic("batch", "From losses to one number", "Σ/tokens, mean of means, Σ/sequences, Σ/constant"),
    "micro_batch": Topic("batch", "A batch in parts has the gradient of the whole", "Σ over parts of Σ/denominator"),
    "sampler": Topic("batch", "Samples drawn by another engine", "SG(π_old/π_sampler)·loss"),
    "stale": Topic("batch", "Several versions of the policy drew one response", "w_t = π_θ/π_version(t)"),
    "masked": Topic("batch", "What a mask hides may hold anything", "replace first, then compute"),
    "divergences": Topic("function", "Seven divergences of d = log v", "value f(v), gradient ∂f/∂d = v·f′(v)"),
    "estimators": Topic("function", "k1, k2, k3 of d = log y, and φ", "−d, d²/2, eᵈ − 1 − d; φ(d) = eᵈ − 1 − d"),
    "advantages": Topic("advantages", "From rewards to advantages", "R − b, for some over a standard deviation"),
}

KLS = tuple(OTHER_MASS)
AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")
# claim, file, builder; a claim or a file may have several rows
TABLE: list[tuple[str, str, Callable]] = [
    *((CLAIM_OF.get(x, "divergence_table"), "surrogate", partial(surrogates, x)) for x in F),
    *((CLAIM_OF[x], "surrogate", partial(masses, x)) for x in ("ufkl", "urkl")),
    *(("control_variate_variance", "surrogate", partial(at_the_anchor, x)) for x in KLS),
    *(("one_idea", "surrogate", partial(far_above_reference, x)) for x in ("urkl", "rkl")),
    *(("one_idea", "surrogate", partial(far_below_reference, x)) for x in ("ufkl", "jeffreys", "js", "chi2")),
    *((f"reinforce_{x}" if x in KLS else "one_idea", "reinforce", partial(reinforces, x)) for x in F),
    *((claim, "penalties", partial(penalties, x)) for x, (claim, _, _) in FORMS.items()),
    *(("clip_region", "clip", partial(clips, x)) for x in (*KLS, "js")),
    ("clip_region", "clip", clip_values),
    ("clip_region", "clip", clip_far),
    *(("clip_bias", "clip", partial(bounds, rule)) for rule in ("clamp", "mask")),
    *(("algorithm_1_as_printed", "algorithm_1_as_printed", partial(printed, x)) for x in KLS),
    ("clip_region", "ppo_grpo", ppos),
    ("clip_region", "ppo_grpo", critic),
    ("grpo_off_policy", "ppo_grpo", partial(grpos, "grpo", False)),
    ("grpo_on_policy", "ppo_grpo", partial(grpos, "grpo", True)),
    ("grpo_live_weight", "ppo_grpo", partial(grpos, "grpo_corrected", False)),
    ("k2_in_loss", "ppo_grpo", partial(grpos, "k2", False)),
    *(("k1_in_reward_at_old", "ppo_grpo", partial(kl_rewards, x)) for x in ("token", "sequence")),
    ("one_idea", "surrogate", entropies),
    ("optimum", "log_ratio", mirror_descent),
    ("length_normalisation", "log_ratio", released_mirror_descent),
    ("k3_identity", "log_ratio", cpgds),
    *(("sequence_level", "levels", partial(levels, "sequence", "differentiable", x)) for x in ("fkl", "urkl", "js")),
    *(("sequence_level", "levels", partial(levels, "sequence", x, "urkl")) for x in ("reinforce", "clipped")),
    *(("geometric_level", "levels", partial(levels, "geometric", "differentiable", x)) for x in ("ufkl", "rkl")),
    ("geometric_level", "levels", gspo),
    *(("prefix_level", "levels", partial(prefix, x)) for x in ("rkl", "urkl")),
    ("prefix_level", "levels", prefix_rewards),
    *(("prefix_forward_kl", "levels", partial(prefix, x)) for x in ("fkl", "ufkl")),
    *(("aggregation", "aggregation", partial(aggregations, x)) for x in AGGREGATIONS),
    *(("aggregation", "micro_batch", partial(micro_batches, x)) for x in AGGREGATIONS),
    ("sampler_correction", "sampler", samplers),
    *(("stale_sampler", "stale", partial(stale, x)) for x in ("token", "sequence", "prefix")),
    ("prop_3_6_urkl", "masked", partial(masked, "differentiable")),
    ("reinforce_urkl", "masked", partial(masked, "reinforce")),
    ("clip_region", "masked", partial(masked, "clipped")),
    *((f"{x}_level", "masked", partial(masked_levels, x)) for x in ("sequence", "prefix", "geometric")),
    ("aggregation", "masked", finite_padding),
    *(("aggregation", "masked", partial(empty_rows, x)) for x in AGGREGATIONS),
    *(("divergence_table", "divergences", partial(divergences, x)) for x in F),
    ("k3_identity", "estimators", partial(estimators, "phi")),
    ("k1_in_loss", "estimators", partial(estimators, "k1")),
    ("k2_in_loss", "estimators", partial(estimators, "k2")),
    ("grpo_penalty", "estimators", partial(estimators, "k3")),
    ("prop_2_1", "advantages", partial(advantages, "none", "own_sample_baseline")),
    ("baseline", "advantages", partial(advantages, "batch_mean", "group_for_batch no_baseline")),
    ("group_std", "advantages", partial(advantages, "batch_std", "population_std_of_batch group_std_for_batch")),
    ("group_mean", "advantages", partial(advantages, "group_mean", "leave_one_out batch_for_group no_baseline")),
    (
        "group_std",
        "advantages",
        partial(advantages, "group_mean_batch_std", "group_std_for_batch std_of_rewards not_divided"),
    ),
    ("leave_one_out", "advantages", partial(advantages, "leave_one_out", "own_sample_baseline no_baseline")),
    (
        "group_std",
        "advantages",
        partial(advantages, "group_std", "population_std batch_std_for_group not_divided zero_over_zero"),
    ),
]


def cases(claim: str | None = None, topic: str | None = None) -> list[dict]:
    """The cases of a claim, or of a file, in the table's order, their numbers as JSON holds them."""
    rows = [row for row in TABLE if claim in (None, row[0]) and topic in (None, row[1])]
    return [number(case) for name, _, build in rows for case in build(claim=name)]


def text(topic: str) -> str:
    """A file: one line for each field of a case, and for each wrong answer."""
    dump = partial(json.dumps, ensure_ascii=False, allow_nan=False)

    def lines(case):
        wrong = ",\n    ".join(map(dump, case["wrong"]))
        shown = [f"{dump(name)}: {dump(x)}" for name, x in case.items() if name != "wrong"]
        return "  {" + ",\n   ".join([*shown, f'"wrong": [\n    {wrong}]']) + "}"

    head = {"format": 1, "topic": topic, **TOPICS[topic]._asdict()}
    if head["kind"] == "batch":
        head["symbols"] = SYMBOLS
    opening = "".join(f"{dump(name)}: {dump(x)},\n" for name, x in head.items())
    return "{" + opening + '"cases": [\n' + ",\n".join(map(lines, cases(topic=topic))) + "\n]}\n"


def schema() -> str:
    """The schema on file, with the names of the divergences in the place of those that it lists."""
    names = ", ".join(f'"{name}"' for name in F)
    on_file = Path(__file__).with_name("schema.json").read_text("utf-8")
    return re.sub(r'(?<="divergence": { "enum": \[).*?(?=\])', names, on_file)


def main(arguments: list[str]) -> int:
    files = {HERE / f"{topic}.json": partial(text, topic) for topic in TOPICS} | {HERE / "schema.json": schema}
    if arguments == ["--check"]:
        stale = [path for path, write in files.items() if not path.exists() or path.read_text("utf-8") != write()]
        print("\n".join(f"{path.name} is not what generate.py writes" for path in stale) or "all as generated")
        return bool(stale)
    if arguments:
        found = cases(claim=arguments[0])
        print(json.dumps(found, ensure_ascii=False, indent=1) if found else f"no case of the claim {arguments[0]!r}")
        return not found
    for path, write in files.items():
        path.write_text(write(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
