"""Proposition 3.2: the unnormalised forward KL, UKL(π_old‖π_θ).

Source: arXiv 2505.17508, Proposition 3.2 and Definition 3.1.
"""

from sympy import log

from proofs.language import UKL, E
from proofs.propositions import proposition
from proofs.symbols import R, Z, beta, p, q, w

OBJECTIVE = E(p, R) - beta * UKL(q, p)
WEIGHT = w * R - beta * (w - 1)
LOSS = -w * R + beta * (w - log(w) - 1)

CLAIM = proposition(
    "prop_3_2_ufkl",
    "arXiv 2505.17508, Prop. 3.2",
    OBJECTIVE,
    WEIGHT,
    LOSS,
    wrong_weights={
        "penalty's sign flipped": w * R + beta * (w - 1),
        "reward without importance weight": R - beta * (w - 1),
        "the reverse direction": w * (R - beta * log(w)),
        "w of the normalised π̃_old": WEIGHT.subs(w, w * Z),
        "no mass Z": WEIGHT / Z,
    },
    wrong_losses={
        "−log w dropped": -w * R + beta * (w - 1),
        "−w·A_reg, A_reg live (Algorithm 1 as printed)": -w * (R - beta * (1 - 1 / w)),
    },
)
