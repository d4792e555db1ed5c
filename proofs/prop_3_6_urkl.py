"""Proposition 3.6: the unnormalised reverse KL, UKL(π_θ‖π_old).

Source: arXiv 2505.17508, Proposition 3.6 and Definition 3.4.
"""

from sympy import log

from proofs.certificate import Claim
from proofs.definitions import ukl
from proofs.expectations import policy_gradient, stop_gradient, wrong_losses, wrong_weights
from proofs.symbols import R, Z, beta, p, q, w

OBJECTIVE = p * R - beta * ukl(p, q)
WEIGHT = w * (R - beta * log(w))
LOSS = -w * R + beta * (w * log(w) - w)

CLAIM = Claim(
    id="prop_3_6_urkl",
    statement="∇J = Z·E[w(R − β log w) ∇log π_θ]; loss Z·E[−wR + β(w log w − w)]",
    source="arXiv 2505.17508, Prop. 3.6",
    identities=lambda: policy_gradient(OBJECTIVE, WEIGHT, {"loss": LOSS}),
    near_misses=lambda: {
        **wrong_weights(
            OBJECTIVE,
            {
                "penalty's sign flipped": w * (R + beta * log(w)),
                "penalty without importance weight": w * R - beta * log(w),
                "the forward direction": w * R - beta * (w - 1),
                "no mass Z": WEIGHT / Z,
            },
        ),
        **wrong_losses(
            OBJECTIVE,
            {
                "penalty log w (k1 without importance weight)": -w * R + beta * log(w),
                "penalty's w detached": -w * R + beta * stop_gradient(w) * (log(w) - 1),
            },
        ),
    },
)
