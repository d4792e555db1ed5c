"""One idea: every loss of the paper is one weight, w·A − β·u·v·f′(v), for one generator f.

The generator, the policy, π_old with its mass Z, and π_ref ≠ π_old with its own mass are all arbitrary. R stands for
the reward or the advantage: `baseline` says why the two have one gradient.

Source: the unification of Propositions 3.2, 3.6, E.1, E.3 and 4.1, F.1, F.3–F.5 of arXiv 2505.17508.
"""

from proofs.certificate import Claim
from proofs.expectations import policy_gradient, stop_gradient, wrong_losses, wrong_weights
from proofs.symbols import R, Z, beta, f, f_prime, p, r, u, v, w
from sympy import log

OBJECTIVE = p * R - beta * r * f(p / r)  # J = E_πθ[R] − β·D, D = ∫π_ref f(π_θ/π_ref)
WEIGHT = w * R - beta * u * v * f_prime(v)
SURROGATE = -w * R + beta * u * f(v)
REINFORCE = -stop_gradient(WEIGHT) * log(p)

CLAIM = Claim(
    id="one_idea",
    statement="∇J = Z·E[(wA − βu·v f′(v)) ∇log π_θ]; losses −wA + βu f(v) and −SG(weight)·log π_θ, any generator f",
    source="unifies arXiv 2505.17508, Props 3.2, 3.6, E.1, E.3, 4.1, F.1, F.3–F.5",
    identities=lambda: {
        name: equation
        for name, equation in policy_gradient(OBJECTIVE, WEIGHT, {"surrogate": SURROGATE, "REINFORCE": REINFORCE}).items()
        if "gaussian" not in name  # an arbitrary f has no closed integral
    },
    near_misses=lambda: {
        **wrong_weights(
            OBJECTIVE,
            {
                "f′(v) for v f′(v)": w * R - beta * u * f_prime(v),
                "penalty without u": w * R - beta * v * f_prime(v),
                "f′ at w": w * R - beta * w * f_prime(w),
                "penalty with the sign of the reward": w * R + beta * u * v * f_prime(v),
                "no mass Z": WEIGHT / Z,
            },
        ),
        **wrong_losses(
            OBJECTIVE,
            {"penalty u f(v) detached": -w * R + stop_gradient(beta * u * f(v)), "live weight": -WEIGHT * log(p)},
        ),
    },
)
