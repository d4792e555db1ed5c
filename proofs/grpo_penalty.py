"""GRPO's unweighted k3(π_ref/π_θ) off-policy: the gradient of no KL, and yet a penalty that draws π_θ to π_ref.

k3(1/v) is ≥ 0, and 0 at v = 1 alone: it is UFKL's generator at 1/v (`nonnegativity`). Its slope in log π_θ is (v −
1)/v, which has the sign of v − 1: every sample is drawn to v = 1, whoever drew it.

Source: ours; after arXiv 2505.17508, §2.2.
"""

import sympy as sp

from proofs.certificate import DIVERGENCE, Claim, Statement, equal, related
from proofs.definitions import k1, k3
from proofs.language import Grad, score
from proofs.symbols import v
from proofs.worlds import Numbers

PENALTY = k3(1 / v)


def _slope(value: sp.Expr) -> Statement:
    return equal(Grad(PENALTY), value * score())


CLAIM = Claim(
    id="grpo_penalty",
    source="ours; after arXiv 2505.17508, §2.2",
    statements=(related(PENALTY, DIVERGENCE, 0, Numbers()), _slope((v - 1) / v)),
    near_misses={
        "k1 is such a penalty": related(k1(1 / v), DIVERGENCE, 0, Numbers()),
        "slope v − 1": _slope(v - 1),
        "slope log v": _slope(sp.log(v)),
        "slope of k3(v)": equal(Grad(k3(v)), (v - 1) / v * score()),
        "slope of the other direction": _slope((1 - v) / v),
    },
)
