"""Proposition 3.6: the unnormalised reverse KL, UKL(π_θ‖π_old).

Source: arXiv 2505.17508, Proposition 3.6 and Definition 3.4.
"""

from sympy import log

from proofs.language import SG, UKL, E
from proofs.propositions import proposition
from proofs.symbols import R, Z, beta, p, q, w

OBJECTIVE = E(p, R) - beta * UKL(p, q)
WEIGHT = w * (R - beta * log(w))
LOSS = -w * R + beta * (w * log(w) - w)

CLAIM = proposition(
    "prop_3_6_urkl",
    "arXiv 2505.17508, Prop. 3.6",
    OBJECTIVE,
    WEIGHT,
    LOSS,
    wrong_weights={
        "penalty's sign flipped": w * (R + beta * log(w)),
        "penalty without importance weight": w * R - beta * log(w),
        "the forward direction": w * R - beta * (w - 1),
        "no mass Z": WEIGHT / Z,
    },
    wrong_losses={
        "penalty log w (k1 without importance weight)": -w * R + beta * log(w),
        "penalty's w detached": -w * R + beta * SG(w) * (log(w) - 1),
    },
)
