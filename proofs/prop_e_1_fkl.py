"""Proposition E.1: the forward KL, KL(π_old‖π_θ).

Source: arXiv 2505.17508, Proposition E.1; Remark E.2 for R = 0.
"""

from sympy import log

from proofs.certificate import Claim
from proofs.definitions import kl
from proofs.expectations import (
    PROPOSITION,
    expectation_old,
    finite,
    gradient,
    policy_gradient,
    wrong_losses,
    wrong_weights,
)
from proofs.symbols import R, Z, beta, p, q, w

OBJECTIVE = p * R - beta * kl(q, p)
WEIGHT = w * R + beta
LOSS = -w * R - beta * log(p)
NO_REWARD = OBJECTIVE.subs(R, 0)
LOG_LIKELIHOOD = beta * expectation_old(log(p))  # of the samples that π_old drew

CLAIM = Claim(
    id="prop_e_1_fkl",
    statement="∇J = E_old[(wR + β) ∇log π_θ]; loss E_old[−wR − β log π_θ]; maximum likelihood when R = 0",
    source="arXiv 2505.17508, Prop. E.1, Remark E.2",
    identities=lambda: {
        **policy_gradient(OBJECTIVE, WEIGHT, {"loss": LOSS}),
        **{
            f"{name}: R = 0, maximum likelihood": (gradient(setting, NO_REWARD), gradient(setting, LOG_LIKELIHOOD))
            for name, setting in PROPOSITION.items()
        },
    },
    near_misses=lambda: {
        **wrong_weights(
            OBJECTIVE,
            {
                "penalty's sign flipped": w * R - beta,
                "reward without importance weight": R + beta,
                "penalty with importance weight": w * (R + beta),
                "mean over π̃_old for E_old": WEIGHT / Z,
            },
        ),
        "R = 0: likelihood of samples of π_θ": (gradient(finite, NO_REWARD), gradient(finite, beta * p * log(p))),
        **wrong_losses(
            OBJECTIVE,
            {
                "penalty's sign flipped in the loss": -w * R + beta * log(p),
                "−w·A_reg, A_reg live (Algorithm 1 as printed)": -w * (R + beta / w),
            },
        ),
    },
)
