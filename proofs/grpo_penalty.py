"""GRPO's unweighted k3(π_ref/π_θ) off-policy: the gradient of no KL, and yet a penalty that draws π_θ to π_ref.

k3(1/v) is UFKL's generator at 1/v, so `nonnegativity` makes it positive unless v = 1. Its slope in log π_θ is (v −
1)/v, which has the sign of v − 1: every sample is drawn to v = 1, whoever drew it.

Source: ours; after arXiv 2505.17508, §2.2.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.definitions import k1, k3
from proofs.divergence_table import TABLE
from proofs.expectations import gradient, pointwise
from proofs.nonnegativity import SECOND_DERIVATIVES, T, remainder, step
from proofs.symbols import score, v

PENALTY = k3(1 / v)
TAYLOR = remainder(TABLE["ufkl"].f, TABLE["ufkl"].f_prime).subs(v, 1 / v)
INTEGRAND = ((1 - step) * (v - 1) ** 2 * SECOND_DERIVATIVES["ufkl"].subs(v, T)).subs(v, 1 / v)

CLAIM = Claim(
    id="grpo_penalty",
    statement="k3(π_ref/π_θ) ≥ 0, = 0 iff π_θ = π_ref, with slope (v − 1)/v in log π_θ: it draws every sample to v = 1",
    source="ours; after arXiv 2505.17508, §2.2",
    identities=lambda: {
        "k3(1/v) = F(1)": (PENALTY, TAYLOR.subs(step, 1)),
        "F(0) = 0": (TAYLOR.subs(step, 0), sp.S.Zero),
        "F′(s) ≥ 0": (TAYLOR.diff(step), INTEGRAND),
        "slope (v − 1)/v": (gradient(pointwise, PENALTY), pointwise((v - 1) / v * score)),
    },
    near_misses=lambda: {
        "k1 is that penalty": (k1(1 / v), TAYLOR.subs(step, 1)),
        "slope v − 1": (gradient(pointwise, PENALTY), pointwise((v - 1) * score)),
        "slope log v": (gradient(pointwise, PENALTY), pointwise(sp.log(v) * score)),
        "k3 of the inverse ratio": (k3(v), TAYLOR.subs(step, 1)),
    },
)
