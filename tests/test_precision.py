"""Every public loss called directly, up to 300 nats off, in four dtypes: value and gradient against 60 digits.

A loss is a sum of terms, and so is its gradient. Each is written here a second time, term by term. What rounding may
cost follows from that: float64's share of the terms' size, and one rounding of the sum to the dtype of the answer.
"""

import inspect
import math
import random
from collections.abc import Callable
from typing import NamedTuple

import mpmath
import pytest
import torch
from divergence_facts import FACTS
from mpmath import mpf
from strategies import CHAIN_NAMES, DIVERGENCE_NAMES
from test_losses import LOSSES
from tiers import quick

import rpg_ref
from rpg_ref import DualClip, WeightBound
from rpg_ref.gates import GammaWeight, SigmoidGate, TrustRegion

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CLIP, OPEN = DualClip(0.2, 0.28, 10.0), DualClip(1.0, math.inf, math.inf)
BOUNDS = (WeightBound("clamp", 0.1, 5.0), WeightBound("mask", 0.1, 5.0), WeightBound())
# Differences of these are exact in float64, whatever dtype holds them: what is seen is the losses' own rounding.
LOGPS = (0.0, -(2.0**-10), -0.5, -1.0, -1.25, -3.0, -20.0, -90.0, -105.0, -300.0)
ADVANTAGES, BETAS = (0.0, 1.0, -1.0, 2.5, -0.3), (0.0, 1e-4, 1.0)
GATES = (SigmoidGate(), TrustRegion("tv", 0.1, 0.2), TrustRegion("kl", 0.05, 0.3, cap=10.0), GammaWeight())
ROWS, ENTROPY = 4, 0.5
exp, log = mpmath.exp, mpmath.log

# f(v), v·f′(v) and its derivative along log v = d, in terms that may cancel against each other.
F = {name: lambda v, d, facts=facts: [facts.f(v, log)] for name, facts in FACTS.items()}
SLOPE = {name: lambda v, d, facts=facts: facts.slope_terms(v, d, log) for name, facts in FACTS.items()}
SLOPE_OF_SLOPE = {
    name: lambda v, d, facts=facts: facts.slope_of_slope_terms(v, d, log) for name, facts in FACTS.items()
}


class Undecided(Exception):
    """The clip's sign, or its side, is decided by rounding."""


class Sample(NamedTuple):
    """A sample's log-probabilities, and the choices of its loss."""

    p: mpf
    q: mpf
    r: mpf
    A: mpf
    beta: mpf
    name: str
    clip: DualClip
    bound: WeightBound
    gate: Callable | None

    log_w = property(lambda x: x.p - x.q)
    d = property(lambda x: x.p - x.r)
    w = property(lambda x: exp(x.p - x.q))
    v = property(lambda x: exp(x.p - x.r))
    u = property(lambda x: exp(x.r - x.q))


def times(c, terms):
    return [c * term for term in terms]


def coefficient(x):
    """The weight's terms: w·A and −β·u·slope."""
    return [x.w * x.A, *times(-x.beta * x.u, SLOPE[x.name](x.v, x.d))]


def regularised(x):
    """Those of A − β·f′(v)."""
    return [x.A, *times(-x.beta / x.v, SLOPE[x.name](x.v, x.d))]


def side(direction, w, clip):
    """Whether w is inside the clip, and the clamped w."""
    total, size = sum(direction), sum(map(abs, direction))
    low, high, dual = 1 - mpf(clip.low), 1 + mpf(clip.high), mpf(clip.dual)
    if abs(total) < 1e-9 * size or any(abs(w - bound) < 1e-9 * w for bound in (low, high, dual)):
        raise Undecided
    if total >= 0:
        return w < high, min(w, high)
    return low < w < dual, min(max(w, low), dual)


def clipped_term(x, terms=None):
    """PPO's −clip(w)·A: value and gradient, A as terms."""
    terms = [x.A] if terms is None else terms
    inside, clamped = side(terms, x.w, x.clip)
    return times(-clamped, terms), times(-x.w, terms) if inside else []


def weight(x):
    return coefficient(x), [x.w * x.A, *times(-x.beta * x.u, SLOPE_OF_SLOPE[x.name](x.v, x.d))]


def differentiable_loss(x):
    return [-x.w * x.A, *times(x.beta * x.u, F[x.name](x.v, x.d))], times(-1, coefficient(x))


def reinforce_loss(x):
    return times(-x.p, coefficient(x)), times(-1, coefficient(x))


def entropy_loss(x):
    value, gradient = differentiable_loss(x)
    # The product rule's two terms, w·(log π_θ − 1) and w, of which w·log π_θ is left.
    bonus, slope = [x.w * x.p, -x.w, mpf(1)], [x.w * (x.p - 1), x.w]
    return value + times(mpf(ENTROPY), bonus), gradient + times(mpf(ENTROPY), slope)


def clipped_loss(x):
    excess = max(mpf(0), x.log_w - log(max(1 + mpf(x.clip.high), mpf(x.clip.dual))) - 1)
    w, d = exp(x.log_w - excess), x.d - excess
    C = times(-x.beta * x.u, SLOPE[x.name](exp(d), d))
    inside, clamped = side([w * x.A, *C], w, x.clip)
    return times(-x.p, [clamped * x.A, *C]), times(-1, coefficient(x)) if inside else []


def clipped_loss_as_printed(x):
    advantage = regularised(x)
    inside, clamped = side(advantage, x.w, x.clip)
    slopes = [*times(-1, SLOPE_OF_SLOPE[x.name](x.v, x.d)), *SLOPE[x.name](x.v, x.d)]
    through_advantage = times(-clamped * x.beta / x.v, slopes)
    return times(-clamped, advantage), through_advantage + (times(-x.w, advantage) if inside else [])


def bounded_loss(x):
    low, high = mpf(x.bound.low), mpf(x.bound.high)
    if any(abs(x.w - bound) < 1e-9 * x.w for bound in (low, high)):
        raise Undecided
    inside = low < x.w < high
    bounded = x.w if inside else mpf(0) if x.bound.rule == "mask" else min(max(x.w, low), high)
    return times(-bounded * x.p, regularised(x)), times(-bounded, regularised(x))


def coin_kl(old, new):
    """KL of two coins from their probabilities, to more digits than any dtype has."""
    sides = ((old, new), (1 - old, 1 - new))
    return sum((a * log(a / b) if b else mpf("inf")) for a, b in sides if a)


def sigmoid_gate(x):
    slope = mpf(x.gate.tau_pos if x.A >= 0 else x.gate.tau_neg)
    chance = 1 / (1 + exp(-slope * (x.w - 1)))
    return 4 * x.w * chance / (1 + exp(slope * (x.w - 1)))


def trust_region(x):
    old, new = exp(x.q), exp(x.p)
    moved = abs(new - old) if x.gate.distance == "tv" else coin_kl(old, new)
    limit, cap = mpf(x.gate.delta_high if x.A >= 0 else x.gate.delta_low), mpf(x.gate.cap)
    if abs(moved - limit) < 1e-9 or abs(x.w - cap) < 1e-9:
        raise Undecided
    away = x.w > 1 if x.A >= 0 else x.w < 1
    return mpf(0) if away and moved > limit else min(x.w, cap)


def gamma_weight(x):
    k, rate = (x.gate.k_pos, x.gate.lambda_pos) if x.A >= 0 else (x.gate.k_neg, x.gate.lambda_neg)
    return x.w ** mpf(k) * exp(mpf(rate) * (1 - x.w))


WEIGHTS = {SigmoidGate: sigmoid_gate, TrustRegion: trust_region, GammaWeight: gamma_weight}


def gated_loss(x):
    coefficient = WEIGHTS[type(x.gate)](x) * x.A
    return [-coefficient * x.p], [-coefficient]


def ppo_loss(x):
    return clipped_term(x)


def with_penalty(x, value, slope):
    reward, gradient = clipped_term(x)
    return reward + times(x.beta, value), gradient + times(x.beta, slope)


def grpo_loss(x):
    f, slope = F[x.name](x.v, x.d), SLOPE[x.name](x.v, x.d)
    return with_penalty(x, times(1 / x.v, f), times(1 / x.v, [*slope, *times(-1, f)]))


def grpo_corrected_loss(x):
    return with_penalty(x, times(x.u, F[x.name](x.v, x.d)), times(x.u, SLOPE[x.name](x.v, x.d)))


def k2_loss(x):
    return with_penalty(x, [x.d**2 / 2], [x.d])


def pmd_mean_loss(x):
    return [-x.A * x.log_w, x.beta * x.log_w**2 / 2], [-x.A, x.beta * x.log_w]


def cpgd_loss(x):
    inside, clamped = side([x.A], x.w, x.clip)
    value = [-x.A * log(clamped), *times(x.beta, F["ufkl"](x.w, x.log_w))]
    return value, [-x.A * inside, *times(x.beta, SLOPE["ufkl"](x.w, x.log_w))]


def kl_in_reward_loss(sequence):
    answers = []
    for t, x in enumerate(sequence):
        to_go = [y.beta * (y.q - y.r) for y in sequence[t:]]
        answers.append(clipped_term(x, [x.A, *times(-1, to_go)]))
    return answers


def per_decision_loss(sequence):
    """Of cumulative log-probabilities: a prefix is in the penalty of its last token, and in the history of the next."""
    start = sequence[0]._replace(p=mpf(0), q=mpf(0), r=mpf(0))
    values, gradients = [], []
    for before, x in zip([start, *sequence], sequence, strict=False):
        log_u, d = (x.r - x.q) - (before.r - before.q), x.d - before.d
        value, own, of_before = [-x.w * x.A], [-x.w * x.A], []
        for a, b, name in FACTS[x.name].history:
            scale = x.beta * exp(a * before.log_w + b * (before.r - before.q) + log_u)
            f, slope = (times(scale, of[name](exp(d), d)) for of in (F, SLOPE))
            value, own = value + f, own + slope
            of_before = of_before + times(a, f) + times(-1, slope)
        if gradients:
            gradients[-1] += of_before
        values.append(value)
        gradients.append(own)
    return list(zip(values, gradients, strict=True))


REFERENCES: dict[str, Callable] = {loss.__name__: globals()[loss.__name__] for loss in LOSSES}
OF_SEQUENCES = ("kl_in_reward_loss", "per_decision_loss")


def log_probs(random: random.Random, loss: str, name: str) -> list[tuple[float, float, float]]:
    """One sequence of two samples, log-ratios within 300 nats: of each, of their steps, and of a chi2's history."""
    while True:
        rows = [tuple(random.choice(LOGPS) for _ in range(3)) for _ in range(2)]
        if loss != "per_decision_loss":
            return rows
        (p, q, r), later = rows
        steps = [a - b for a, b in zip(later, rows[0], strict=True)]
        history = max(abs(a * (p - q) + b * (r - q)) for a, b, _ in FACTS[name].history)
        if max(steps) - min(steps) <= 300 and history <= 300:
            return rows


def wrong(found: float, exact: mpf, tolerance: mpf, dtype: torch.dtype) -> bool:
    """Whether a number of the dtype is further from the exact one than the tolerance; inf may stand for an overflow."""
    if math.isinf(found):
        of_other_sign = abs(exact) > tolerance and found * exact < 0
        return of_other_sign or abs(exact) + tolerance < torch.finfo(dtype).max
    return math.isnan(found) or abs(mpf(found) - exact) > tolerance


def tolerance(terms: list[mpf], dtype: torch.dtype) -> mpf:
    """Half a unit in the last place of the sum, and float64's rounding of each term.

    That is 64 units for the functions of a ratio (js), and 300 for the exp of one rounded exponent of 300 nats.
    """
    info, wide = torch.finfo(dtype), torch.finfo(torch.float64)
    size, total = sum(map(abs, terms), mpf(0)), sum(terms, mpf(0))
    # Twice the smallest number, and a share of the last place: bfloat16 is reached through float32.
    smallest = 2 * mpf(info.smallest_normal) * info.eps + mpf(wide.smallest_normal)
    return (1 + mpf(2) ** -14) * info.eps / 2 * abs(total) + (64 + 300) * wide.eps * size + smallest


@pytest.mark.parametrize("dtype", quick(DTYPES, [torch.float32]), ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_values_and_gradients_are_rounded_once(loss, dtype):
    names, reference = inspect.signature(loss).parameters, REFERENCES[loss.__name__]
    divergences = DIVERGENCE_NAMES if "divergence" in names else ("urkl",)
    if loss is rpg_ref.per_decision_loss:
        divergences = CHAIN_NAMES
    answered = torch.promote_types(dtype, torch.float32)
    decided, finite = 0, 0
    for name in divergences:
        draw = random.Random(f"{loss.__name__} {name}")
        for clip, bound, beta in [(c, b, beta) for c in (CLIP, OPEN) for b in BOUNDS for beta in BETAS]:
            rows = torch.tensor([log_probs(draw, loss.__name__, name) for _ in range(ROWS)], dtype=dtype)
            p, q, r = (rows[..., i].clone() for i in range(3))
            anchored = draw.random() < 0.7
            A = torch.tensor([[draw.choice(ADVANTAGES) for _ in range(2)] for _ in range(ROWS)], dtype=torch.float64)
            choices = {"divergence": name, "beta": beta, "logp_ref": r if anchored else None}
            gate = draw.choice(GATES) if "gate" in names else None
            choices |= {"clip": clip, "bound": bound, "entropy": ENTROPY, "gate": gate}
            leaf = p.requires_grad_()
            value = loss(leaf, q, A, **{key: choices[key] for key in choices if key in names})
            assert value.dtype == answered
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            with mpmath.workdps(60):
                numbers = [x.tolist() for x in (p.double(), q.double(), (r if anchored else q).double(), A)]
                for i in range(ROWS):
                    samples = [
                        Sample(*(mpf(x[i][t]) for x in numbers), mpf(beta), name, clip, bound, gate) for t in range(2)
                    ]
                    try:
                        exact = reference(samples) if reference.__name__ in OF_SEQUENCES else map(reference, samples)
                        exact = list(exact)
                    except Undecided:
                        continue
                    for t, (x, terms) in enumerate(zip(samples, exact, strict=True)):
                        decided += 1
                        for what, found, of, kind in zip(
                            ("value", "gradient"), (value, gradient), terms, (answered, dtype), strict=True
                        ):
                            number = found[i, t].item()
                            finite += math.isfinite(number)
                            total = sum(of, mpf(0))
                            assert not wrong(number, total, tolerance(of, kind), kind), (what, number, total, x)
    assert decided > 60 * len(divergences) and finite > decided


def of_one(loss, logp, logp_old, advantage, *choices, **named):
    """Value and gradient of one float32 sample."""
    leaf = torch.tensor([logp], requires_grad=True)
    value = loss(leaf, torch.tensor([logp_old]), advantage, *choices, **named)
    return value.item(), torch.autograd.grad(value, leaf)[0].item()


def test_a_bounded_weight_is_finite_where_the_weight_is_not():
    """w = e¹⁰⁰ and e⁻¹⁰⁴ are inf and 0 in float32; the loss holds the bounded ones, 5, 0 and 0.1."""
    high, mask = WeightBound(high=5.0), WeightBound("mask", high=5.0)
    low = WeightBound(low=0.1, high=5.0)
    assert of_one(rpg_ref.bounded_loss, -1.0, -101.0, 1.0, "urkl", 0.0, bound=high) == (5.0, -5.0)
    assert of_one(rpg_ref.bounded_loss, -1.0, -101.0, 1.0, "urkl", 0.0, bound=mask) == (0.0, 0.0)
    assert of_one(rpg_ref.bounded_loss, -105.0, -1.0, 1.0, "urkl", 0.0, bound=low) == pytest.approx((10.5, -0.1))


def test_what_cancels_cancels_before_it_is_rounded():
    """w·A and the penalty's gradient are both e³⁰⁰; log π_θ ≈ 0 times w = e¹⁰⁰ is 3e13."""
    far = {"logp_ref": torch.tensor([-300.0]), "clip": DualClip(dual=math.inf)}
    assert of_one(rpg_ref.grpo_corrected_loss, -300.0, -600.0, -1.0, "fkl", 1.0, **far)[1] == 0.0
    assert of_one(rpg_ref.reinforce_loss, -1e-30, -100.0, 1.0, "urkl", 0.0)[0] == pytest.approx(math.exp(100) * 1e-30)
    assert of_one(rpg_ref.clipped_loss, 0.0, -100.0, 1.0, "urkl", 0.0, clip=OPEN)[0] == 0.0
