"""Proposition E.3: the reverse KL, KL(π_θ‖π_old).

Source: arXiv 2505.17508, Proposition E.3.
"""

from sympy import log

from proofs.language import KL, SG, E
from proofs.propositions import proposition
from proofs.symbols import R, Z, beta, p, q, w

OBJECTIVE = E(p, R) - beta * KL(p, q)
WEIGHT = w * (R - beta * (log(w) + 1))
LOSS = w * (-R + beta * log(w))

CLAIM = proposition(
    "prop_e_3_rkl",
    "arXiv 2505.17508, Prop. E.3",
    OBJECTIVE,
    WEIGHT,
    LOSS,
    wrong_weights={
        "penalty's sign flipped": w * (R + beta * (log(w) + 1)),
        "+1 outside the importance weight": w * (R - beta * log(w)) - beta * (log(w) + 1),
        "penalty without importance weight": w * R - beta * (log(w) + 1),
        "the forward direction": w * R + beta,
        "mean over π̃_old for E_old": WEIGHT / Z,
    },
    wrong_losses={
        "penalty log w (k1 without importance weight)": -w * R + beta * log(w),
        "w detached": SG(w) * (-R + beta * log(w)),
    },
)
