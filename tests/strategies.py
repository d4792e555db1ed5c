"""What Hypothesis draws: policies, per-sample inputs that reach extremes, batches with hostile padding.

What each strategy must reach is held by test_strategies.py.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from divergence_facts import FACTS
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rpg_ref import DualClip

F64 = np.float64
EXAMPLES = settings.default.max_examples


def share(n: int) -> settings:
    """For slow properties: an n-th of the profile's examples, but all of them in the nightly run."""
    return settings(max_examples=EXAMPLES if EXAMPLES > 100 else max(5, EXAMPLES // n))


DIVERGENCE_NAMES = tuple(FACTS)
PAPER_NAMES = DIVERGENCE_NAMES[:4]
CHAIN_NAMES = tuple(name for name, facts in FACTS.items() if facts.history)
"""Those whose divergence of responses is a known sum over tokens."""
SHAPES = ((2, 3, 0), (3, 2, None), (3, 3, 1), (4, 2, 3))
"""(vocabulary, horizon, eos): uneven lengths wherever there is an eos."""

divergence_names = st.sampled_from(DIVERGENCE_NAMES)
paper_names = st.sampled_from(PAPER_NAMES)
chain_names = st.sampled_from(CHAIN_NAMES)
betas = st.sampled_from([0.0, 1e-4, 0.04, 1.0, 3.0])
log_masses = st.sampled_from([0.0, -1.5, 0.3, 2.0])
tree_shapes = st.sampled_from(SHAPES)

# Products of subnormal numbers have no relative precision to check.
ordinary = st.floats(-3.0, 3.0).map(lambda x: x if abs(x) > 1e-100 else 0.0)
tiny = st.sampled_from([0.0, -0.0, 1e-30, -1e-30, 1e-8, -1e-8, 1e-4, -1e-4])
far = st.one_of(st.floats(-120.0, 120.0), st.floats(100.0, 120.0), st.floats(-120.0, -100.0))
log_ratios = st.one_of(ordinary, tiny, far)
rewards = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), ordinary)


def floats(shape: int | tuple[int, ...], elements: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    # Without this most entries of an array would be one and the same number.
    return arrays(F64, shape, elements=elements, fill=st.nothing())


def grid(low: float, high: float) -> st.SearchStrategy[float]:
    """Multiples of 2⁻¹⁰: their sums and differences are exact, so that no order of summation moves a log-ratio."""
    return st.integers(round(low * 1024), round(high * 1024)).map(lambda k: k / 1024)


def integers(draw: st.DrawFn, shape: int | tuple[int, ...]) -> np.ndarray:
    """Integers in [0, 2¹⁶), drawn as one string of bytes: element by element they would cost 0.2 ms each."""
    size = 2 * int(np.prod(shape))
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint16).astype(int).reshape(shape)


def on_grid(k: np.ndarray, low: float, high: float) -> np.ndarray:
    """Take integers to the grid's numbers in [low, high]."""
    return (1024 * low + k % (1024 * (high - low) + 1)) / 1024


def near(k: np.ndarray) -> np.ndarray:
    """Log-ratios within 3 nats, half of them zero, or beyond a side of the clip, or within a quarter."""
    often = np.array([0.0, -0.5, 0.5, 2.5])[k % 4]
    return np.select([k % 8 < 4, k % 8 == 4], [often, on_grid(k // 8, -0.25, 0.25)], on_grid(k // 8, -3.0, 3.0))


def far(k: np.ndarray) -> np.ndarray:
    """Log-ratios of which a quarter each is beyond 100 nats and below −100."""
    distance = on_grid(k // 4, 100.0, 108.0)
    return np.select([k % 4 == 1, k % 4 == 2], [distance, -distance], near(k // 4))


dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])
HOSTILE = (math.nan, math.inf, -math.inf, 1e30, 0.0)
"""What padding may hold."""


class SampleInputs(NamedTuple):
    """Arbitrary per-sample inputs: log-probabilities of samples, not of whole distributions."""

    logp: torch.Tensor
    logp_old: torch.Tensor
    logp_ref: torch.Tensor | None
    advantage: torch.Tensor


@st.composite
def sample_inputs(draw: st.DrawFn, ratios: st.SearchStrategy[float] = log_ratios, size: int = 6) -> SampleInputs:
    logp = -np.abs(draw(floats(size, st.floats(0.0, 20.0))))
    log_w, log_v, advantage = (draw(floats(size, s)) for s in (ratios, ratios, rewards))
    anchored = draw(st.booleans())
    return SampleInputs(
        torch.tensor(logp),
        torch.tensor(logp - log_w),
        torch.tensor(logp - log_v) if anchored else None,
        torch.tensor(advantage),
    )


class Batch(NamedTuple):
    """Log-probabilities [B, T] of policy, sampler and reference, advantages [B], mask, and four fillings of padding."""

    logps: list[torch.Tensor | None]
    advantages: torch.Tensor
    mask: torch.Tensor
    padding: torch.Tensor


@st.composite
def batches(
    draw: st.DrawFn,
    ratios: Callable[[np.ndarray], np.ndarray] = near,
    empty: bool = False,
    references: tuple[str, ...] = ("old", "own", "own"),
) -> Batch:
    """Up to 4 × 4; ``empty`` allows a batch without any token, the reference "none" one that is None."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    logp, log_w, log_v, kept, junk = integers(draw, (5, *shape))
    logp = on_grid(logp, -6.0, -3.0)
    old = logp if draw(st.sampled_from([True, False, False, False])) else logp - ratios(log_w)
    reference = draw(st.sampled_from(references))
    ref = logp - ratios(log_v) if reference == "own" else old
    excess = np.maximum(0.0, np.maximum(old, ref))  # no probability above 1
    mask = kept % 2 == 1
    if empty:
        mask &= draw(st.sampled_from([True, True, True, False]))
    else:
        mask[draw(st.integers(0, shape[0] - 1)), 0] = True
    k = integers(draw, shape[0])
    padding = np.array(HOSTILE)[(junk + np.arange(4).reshape(4, 1, 1)) % len(HOSTILE)]
    current, old, ref = (torch.tensor(x - excess) for x in (logp, old, ref))
    return Batch(
        [current, old, None if reference == "none" else ref],
        torch.tensor(np.where(k % 2, k // 2 % 3 - 1.0, on_grid(k // 2, -2.0, 2.0))),
        torch.tensor(mask),
        torch.tensor(padding),
    )


ANY_REFERENCE = ("old", "own", "own", "none")


@st.composite
def clips_on_a_bound(draw: st.DrawFn, batch: Batch) -> DualClip:
    """A clip one of whose bounds is the ratio of one of the batch's tokens, to the last bit."""
    w = draw(st.sampled_from((batch.logps[0] - batch.logps[1]).exp().flatten().tolist()))
    # 1 − (1 − w) = w only from one half on, and 1 + (w − 1) = w only below two.
    fitting = [
        clip
        for fits, clip in (
            (0.5 <= w < 1, {"low": 1 - w}),
            (1 < w < 2, {"high": w - 1}),
            (1 < w, {"dual": w}),
        )
        if fits
    ]
    return DualClip(**draw(st.sampled_from(fitting or [{}])))


class Groups(NamedTuple):
    """Rewards [B] and the id of each sample's group [B], at least two samples a group, in any order."""

    rewards: torch.Tensor
    ids: torch.Tensor


@st.composite
def reward_groups(draw: st.DrawFn) -> Groups:
    sizes = np.array(draw(st.lists(st.integers(2, 4), min_size=1, max_size=3)))
    ids = np.arange(len(sizes)).repeat(sizes)
    equal = integers(draw, len(sizes)) % 2 == 1
    k, order = integers(draw, (2, len(ids)))
    first = np.searchsorted(ids, ids)
    drawn = np.where(k % 2, k // 2 % 3 - 1.0, on_grid(k // 2, -3.0, 3.0) / 3)
    order = np.argsort(order, kind="stable")
    return Groups(torch.tensor(np.where(equal[ids], drawn[first], drawn)[order]), torch.tensor(ids[order]))


class Bandit(NamedTuple):
    """One state: logits of the policy and of the normalised sampler, a reference measure or None, rewards."""

    logits: np.ndarray
    old: np.ndarray
    ref: np.ndarray | None
    reward: np.ndarray


@st.composite
def bandits(draw: st.DrawFn) -> Bandit:
    size = draw(st.integers(2, 6))
    logits = st.floats(-5.0, 5.0)
    ref = draw(floats(size, logits)) if draw(st.booleans()) else None
    return Bandit(draw(floats(size, logits)), draw(floats(size, logits)), ref, draw(floats(size, rewards)))


class Tree(NamedTuple):
    """An autoregressive policy: (vocabulary, horizon, eos), logits [S, V] three times over, reward [N]."""

    shape: tuple[int, int, int | None]
    logits: np.ndarray
    old: np.ndarray
    ref: np.ndarray
    reward: np.ndarray


@st.composite
def trees(draw: st.DrawFn, spread: float = 2.0) -> Tree:
    import numpy_oracle

    shape = draw(tree_shapes)
    states = len(list(numpy_oracle.prefixes(*shape)))
    size = len(list(numpy_oracle.responses(*shape)))
    table = floats((states, shape[0]), st.floats(-spread, spread))
    return Tree(shape, draw(table), draw(table), draw(table), draw(floats(size, rewards)))
