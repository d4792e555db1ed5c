"""Samples drawn by a fourth policy: SG(π_old/π_sampler) on the whole loss makes it exact again.

An inference engine's probabilities differ a little from π_old, as the trainer computes them. The ratio is a constant
in θ; it belongs to the reward term and to the penalty alike.

Source: ours; Yao et al. 2025 (truncated importance sampling for mismatched engines), here without truncation.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.expectations import Equation, finite, gradient, pointwise
from proofs.one_idea import OBJECTIVE, WEIGHT
from proofs.reinforce import reinforce_loss
from proofs.symbols import R, beta, f, q, s, u, v, w

CORRECTION = q / s
REWARD, PENALTY = -w * R, beta * u * f(v)


def _sampled(loss: sp.Expr) -> Equation:
    return gradient(finite, OBJECTIVE), -gradient(finite, s * loss)


CLAIM = Claim(
    id="sampler_correction",
    statement="E_sampler[SG(π_old/π_sampler)·loss] has the gradient −∇J, any f; correcting one term alone has not",
    source="ours; after Yao et al. 2025",
    identities=lambda: {
        "surrogate": _sampled(CORRECTION * (REWARD + PENALTY)),
        "REINFORCE": _sampled(CORRECTION * reinforce_loss(WEIGHT)),
        "pointwise": (gradient(pointwise, OBJECTIVE), -gradient(pointwise, s * CORRECTION * (REWARD + PENALTY))),
    },
    near_misses=lambda: {
        "no correction": _sampled(REWARD + PENALTY),
        "the reward term only": _sampled(CORRECTION * REWARD + PENALTY),
        "the penalty only": _sampled(REWARD + CORRECTION * PENALTY),
        "the inverse ratio": _sampled((REWARD + PENALTY) / CORRECTION),
        "π_θ/π_sampler for the correction": _sampled(w * q / s * (REWARD + PENALTY)),
    },
)
