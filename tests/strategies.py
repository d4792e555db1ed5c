"""What Hypothesis draws: policies, per-sample inputs that reach extremes, batches with hostile padding."""

from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

F64 = np.float64
DIVERGENCE_NAMES = ("fkl", "ufkl", "rkl", "urkl", "jeffreys", "js", "chi2")
PAPER_NAMES = DIVERGENCE_NAMES[:4]
SHAPES = ((2, 3, 0), (3, 2, None), (3, 3, 1), (4, 2, 3))
"""(vocabulary, horizon, eos): uneven lengths wherever there is an eos."""

divergence_names = st.sampled_from(DIVERGENCE_NAMES)
paper_names = st.sampled_from(PAPER_NAMES)
betas = st.sampled_from([0.0, 1e-4, 0.04, 1.0, 3.0])
log_masses = st.sampled_from([0.0, -1.5, 0.3, 2.0])
tree_shapes = st.sampled_from(SHAPES)

# Products of subnormal numbers have no relative precision to check.
ordinary = st.floats(-3.0, 3.0).map(lambda x: x if abs(x) > 1e-100 else 0.0)
tiny = st.sampled_from([0.0, -0.0, 1e-30, -1e-30, 1e-8, -1e-8, 1e-4, -1e-4])
far = st.floats(-120.0, 120.0)
log_ratios = st.one_of(ordinary, tiny, far)
rewards = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), ordinary)


def floats(shape: int | tuple[int, ...], elements: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    # Without this most entries of an array would be one and the same number.
    return arrays(F64, shape, elements=elements, fill=st.nothing())


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
