"""Proposition E.1: the forward KL, KL(π_old‖π_θ); and Remark E.2: without reward it is maximum likelihood.

Source: arXiv 2505.17508, Proposition E.1; Remark E.2 for R = 0.
"""

from sympy import log

from proofs.certificate import Claim, equal
from proofs.language import KL, E, Grad, score
from proofs.propositions import proposition
from proofs.symbols import R, Z, beta, p, q, w

OBJECTIVE = E(p, R) - beta * KL(q, p)
WEIGHT = w * R + beta
LOSS = -w * R - beta * log(p)
NO_REWARD = -beta * KL(q, p)

CLAIM = proposition(
    "prop_e_1_fkl",
    "arXiv 2505.17508, Prop. E.1",
    OBJECTIVE,
    WEIGHT,
    LOSS,
    wrong_weights={
        "penalty's sign flipped": w * R - beta,
        "reward without importance weight": R + beta,
        "penalty with importance weight": w * (R + beta),
        "mean over π̃_old for E_old": WEIGHT / Z,
    },
    wrong_losses={
        "penalty's sign flipped in the loss": -w * R + beta * log(p),
        "−w·A_reg, A_reg live (Algorithm 1 as printed)": -w * (R + beta / w),
    },
)

REMARK_E_2 = Claim(
    id="remark_e_2",
    source="arXiv 2505.17508, Remark E.2",
    statements=(
        equal(Grad(NO_REWARD), beta * E(q, score())),
        equal(Grad(NO_REWARD), beta * Grad(E(q, log(p)))),
    ),
    near_misses={
        "likelihood of samples of π_θ": equal(Grad(NO_REWARD), beta * E(p, score())),
        "likelihood of samples of π_θ, live": equal(Grad(NO_REWARD), beta * Grad(E(p, log(p)))),
        "the other sign": equal(Grad(NO_REWARD), -beta * E(q, score())),
    },
)

CLAIMS = (CLAIM, REMARK_E_2)
