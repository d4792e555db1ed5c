"""Proposition 3.2: the unnormalised forward KL, UKL(π_old‖π_θ).

Source: arXiv 2505.17508, Proposition 3.2 and Definition 3.1.
"""

from sympy import log

from proofs.certificate import Claim
from proofs.definitions import ukl
from proofs.expectations import policy_gradient, wrong_losses, wrong_weights
from proofs.symbols import R, Z, beta, p, q, w

OBJECTIVE = p * R - beta * ukl(q, p)
WEIGHT = w * R - beta * (w - 1)
LOSS = -w * R + beta * (w - log(w) - 1)

CLAIM = Claim(
    id="prop_3_2_ufkl",
    statement="∇J = Z·E[(wR − β(w − 1)) ∇log π_θ]; loss Z·E[−wR + β(w − log w − 1)]",
    source="arXiv 2505.17508, Prop. 3.2",
    identities=lambda: policy_gradient(OBJECTIVE, WEIGHT, {"loss": LOSS}),
    near_misses=lambda: {
        **wrong_weights(
            OBJECTIVE,
            {
                "penalty's sign flipped": w * R + beta * (w - 1),
                "reward without importance weight": R - beta * (w - 1),
                "the reverse direction": w * (R - beta * log(w)),
                "w of the normalised π̃_old": WEIGHT.subs(w, w * Z),
                "no mass Z": WEIGHT / Z,
            },
        ),
        **wrong_losses(
            OBJECTIVE,
            {
                "−log w dropped": -w * R + beta * (w - 1),
                "−w·A_reg, A_reg live (Algorithm 1 as printed)": -w * (R - beta * (1 - 1 / w)),
            },
        ),
    },
)
