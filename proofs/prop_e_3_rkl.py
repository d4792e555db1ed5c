"""Proposition E.3: the reverse KL, KL(π_θ‖π_old).

Source: arXiv 2505.17508, Proposition E.3.
"""

from sympy import log

from proofs.certificate import Claim
from proofs.definitions import kl
from proofs.expectations import policy_gradient, stop_gradient, wrong_losses, wrong_weights
from proofs.symbols import R, Z, beta, p, q, w

OBJECTIVE = p * R - beta * kl(p, q)
WEIGHT = w * (R - beta * (log(w) + 1))
LOSS = w * (-R + beta * log(w))

CLAIM = Claim(
    id="prop_e_3_rkl",
    statement="∇J = E_old[w(R − β(log w + 1)) ∇log π_θ]; loss E_old[w(−R + β log w)]",
    source="arXiv 2505.17508, Prop. E.3",
    identities=lambda: policy_gradient(OBJECTIVE, WEIGHT, {"loss": LOSS}),
    near_misses=lambda: {
        **wrong_weights(
            OBJECTIVE,
            {
                "penalty's sign flipped": w * (R + beta * (log(w) + 1)),
                "+1 outside the importance weight": w * (R - beta * log(w)) - beta * (log(w) + 1),
                "penalty without importance weight": w * R - beta * (log(w) + 1),
                "the forward direction": w * R + beta,
                "mean over π̃_old for E_old": WEIGHT / Z,
            },
        ),
        **wrong_losses(
            OBJECTIVE,
            {
                "penalty log w (k1 without importance weight)": -w * R + beta * log(w),
                "w detached": stop_gradient(w) * (-R + beta * log(w)),
            },
        ),
    },
)
