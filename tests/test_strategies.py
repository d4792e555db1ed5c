"""The strategies reach what they are there for: counted over derandomised runs, each case in one example of fifty."""

import math
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from strategies import (
    ANY_REFERENCE,
    Batch,
    SampleInputs,
    bandits,
    batches,
    clips_on_a_bound,
    dtypes,
    far,
    log_ratios,
    reward_groups,
    sample_inputs,
    trees,
)

from rpg_ref import DualClip

EXAMPLES, LEAST = 200, 2
CLIP = DualClip()

CLIP_SIDES = {
    "clipped high": lambda A, w: (A > 0) & (w >= 1 + CLIP.high),
    "clipped low": lambda A, w: (A < 0) & (w <= 1 - CLIP.low),
    "beyond the dual bound": lambda A, w: (A < 0) & (w >= CLIP.dual),
    "live, rising": lambda A, w: (A > 0) & (w < 1 + CLIP.high),
    "live, falling": lambda A, w: (A < 0) & (1 - CLIP.low < w) & (w < CLIP.dual),
    "no advantage": lambda A, w: A == 0,
    "on-policy": lambda A, w: w == 1,
    "a ratio beyond e¹⁰⁰": lambda A, w: w > math.exp(100),
    "a ratio below e⁻¹⁰⁰": lambda A, w: w < math.exp(-100),
}


def any_of(condition):
    """Of a batch: some unmasked token has it."""

    def found(batch: Batch) -> bool:
        A, w = batch.advantages.unsqueeze(1), (batch.logps[0] - batch.logps[1]).exp()
        return bool((condition(A, w) & batch.mask).any())

    return found


def lengths(batch: Batch) -> list[int]:
    return batch.mask.sum(1).tolist()


SHAPES_OF_A_BATCH = {
    "an empty row beside others": lambda b: 0 in lengths(b) and max(lengths(b)) > 0,
    "a sequence of one token": lambda b: 1 in lengths(b),
    "a horizon of one": lambda b: b.mask.shape[1] == 1,
    "one sequence": lambda b: b.mask.shape[0] == 1,
    "uneven lengths": lambda b: len({*lengths(b)} - {0}) > 1,
    "padding on the left": lambda b: bool((~b.mask[:, :-1] & b.mask[:, 1:]).any()),
    "padding on the right": lambda b: bool((b.mask[:, :-1] & ~b.mask[:, 1:]).any()),
    "π_ref = π_old": lambda b: b.logps[2] is not None and torch.equal(b.logps[2], b.logps[1]),
    "π_ref ≠ π_old": lambda b: b.logps[2] is not None and not torch.equal(b.logps[2], b.logps[1]),
    "masked NaN": lambda b: bool(b.padding[:, ~b.mask].isnan().any()),
    "masked +inf": lambda b: bool(b.padding[:, ~b.mask].isposinf().any()),
    "masked −inf": lambda b: bool(b.padding[:, ~b.mask].isneginf().any()),
}
NEAR = {k: any_of(v) for k, v in CLIP_SIDES.items() if "e¹⁰⁰" not in k and "e⁻¹⁰⁰" not in k}
FAR = {k: any_of(v) for k, v in CLIP_SIDES.items()} | SHAPES_OF_A_BATCH
EMPTY = {
    "a batch without tokens": lambda b: not b.mask.any(),
    "no reference": lambda b: b.logps[2] is None,
}


def is_far(x: SampleInputs) -> torch.Tensor:
    return (x.logp - x.logp_old).abs() > 100


SAMPLES = {
    k: lambda x, condition=condition: bool(condition(x.advantage, (x.logp - x.logp_old).exp()).any())
    for k, condition in CLIP_SIDES.items()
} | {
    "anchored": lambda x: x.logp_ref is not None,
    "not anchored": lambda x: x.logp_ref is None,
    "a reference beyond 100 nats": lambda x: x.logp_ref is not None and bool(((x.logp - x.logp_ref).abs() > 100).any()),
    "far from one and near the other": lambda x: (
        x.logp_ref is not None and bool((is_far(x) & ((x.logp - x.logp_ref).abs() < 1)).any())
    ),
    "a certain sample": lambda x: bool((x.logp == 0).any()),
}


def on_bound(which):
    def found(case: tuple[Batch, DualClip]) -> bool:
        batch, clip = case
        w = (batch.logps[0] - batch.logps[1]).exp()
        bound = {"low": 1 - clip.low, "high": 1 + clip.high, "dual": clip.dual}[which]
        return bool((w == bound).any())

    return found


def of_group(rewards, ids):
    return [rewards[ids == i] for i in ids.unique()]


# (strategy, what it must reach)
STRATEGIES = {
    "batches": (batches(), NEAR | SHAPES_OF_A_BATCH),
    "batches, far": (batches(far, empty=True, references=ANY_REFERENCE), FAR | EMPTY),
    "sample_inputs": (sample_inputs(), SAMPLES),
    "clips_on_a_bound": (
        batches().flatmap(lambda b: st.tuples(st.just(b), clips_on_a_bound(b))),
        {which: on_bound(which) for which in ("low", "high", "dual")},
    ),
    "reward_groups": (
        reward_groups(),
        {
            "equal rewards": lambda g: any(len(r.unique()) == 1 for r in of_group(*g)),
            "unequal rewards": lambda g: any(len(r.unique()) > 1 for r in of_group(*g)),
            "both": lambda g: len({len(r.unique()) > 1 for r in of_group(*g)}) == 2,
            "mixed order": lambda g: bool((g.ids.diff() < 0).any()),
            "several groups": lambda g: len(g.ids.unique()) > 1,
        },
    ),
    "dtypes": (
        st.tuples(dtypes, st.integers()),  # alone it would be over after three examples
        {str(d): lambda x, d=d: x[0] is d for d in (torch.bfloat16, torch.float32, torch.float64)},
    ),
    "log_ratios": (
        log_ratios,
        {
            "zero": lambda d: d == 0,
            "tiny": lambda d: 0 < abs(d) < 1e-6,
            "over 100": lambda d: d > 100,
            "under −100": lambda d: d < -100,
        },
    ),
    "bandits": (
        bandits(),
        {
            "a reference": lambda b: b.ref is not None,
            "none": lambda b: b.ref is None,
            "two actions": lambda b: len(b.logits) == 2,
            "a policy far from its sampler": lambda b: np.abs(b.logits - b.old).max() > 4,
        },
    ),
    "trees": (
        trees(),
        {
            "uneven lengths": lambda t: t.shape[2] is not None,
            "a branching of four": lambda t: t.shape[0] == 4,
            "a horizon of three": lambda t: t.shape[1] == 3,
        },
    ),
}


@cache
def reached(name: str) -> Counter:
    """How many of the examples had each property."""
    strategy, properties = STRATEGIES[name]
    counts: Counter = Counter()

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, phases=[Phase.generate])
    @given(strategy)
    def count(x):
        counts.update(key for key, holds in properties.items() if holds(x))

    count()
    return counts


@pytest.mark.full
@pytest.mark.parametrize("name", STRATEGIES)
def test_reaches(name):
    found = reached(name)
    assert not {what: found[what] for what in STRATEGIES[name][1] if found[what] < LEAST}


@given(batch=batches(far, references=ANY_REFERENCE))
def test_batches_are_log_probabilities_on_the_grid(batch: Batch):
    """No probability above 1, at least one token, and log-ratios that are exact however they are summed."""
    assert batch.mask.any() and len(batch.advantages) == len(batch.mask)
    for x in batch.logps:
        if x is not None:
            assert bool((x <= 0).all()) and torch.equal(x * 1024, (x * 1024).round())
            columns = range(x.shape[1])
            assert sum(x[:, t] for t in columns).equal(sum(x[:, t] for t in reversed(columns)))
