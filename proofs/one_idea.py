"""One idea: every loss of the paper is one weight, w·A − β·u·v·f′(v), for one generator f.

The generator, the policy, π_old with its mass Z, and π_ref ≠ π_old with its own mass are all arbitrary. R is the reward
or the advantage: `baseline` shows that both have one gradient.

Source: the unification (ours) of arXiv 2505.17508, Propositions 3.2, 3.6, E.1, E.3 and 4.1, F.1, F.3, F.4, F.5.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.expectations import Equation, finite, pointwise, policy_gradient, stop_gradient, wrong_losses, wrong_weights
from proofs.reinforce import reinforce_loss
from proofs.symbols import R, Z, beta, f, f_prime, p, r, u, v, w

OBJECTIVE = p * R - beta * r * f(p / r)  # J = E_πθ[R] − β·D, D = ∫π_ref f(π_θ/π_ref)
WEIGHT = w * R - beta * u * v * f_prime(v)
SURROGATE = -w * R + beta * u * f(v)


def _sample_by_sample() -> Equation:
    log_p = sp.Symbol("log_p", real=True)
    surrogate, weight = (pointwise(e).subs(p, sp.exp(log_p)) for e in (SURROGATE, WEIGHT))
    return surrogate.diff(log_p), -weight


CLAIM = Claim(
    id="one_idea",
    statement="∇J = Z·E[(wA − βu·v f′(v)) ∇log π_θ]; losses −wA + βu f(v) and −SG(weight)·log π_θ, any generator f",
    source="ours; unifies arXiv 2505.17508, Props 3.2, 3.6, E.1, E.3, 4.1, F.1, F.3–F.5",
    identities=lambda: {
        "∂surrogate/∂log π_θ = −weight": _sample_by_sample(),
        # An arbitrary f has no closed Gaussian integral.
        **policy_gradient(
            OBJECTIVE,
            WEIGHT,
            {"surrogate": SURROGATE, "REINFORCE": reinforce_loss(WEIGHT)},
            settings={"pointwise": pointwise, "finite": finite},
        ),
    },
    near_misses=lambda: {
        **wrong_weights(
            OBJECTIVE,
            {
                "f′(v) for v f′(v)": w * R - beta * u * f_prime(v),
                "penalty without u": w * R - beta * v * f_prime(v),
                "f′ at w": w * R - beta * w * f_prime(w),
                "penalty's sign flipped": w * R + beta * u * v * f_prime(v),
                "no mass Z": WEIGHT / Z,
            },
        ),
        **wrong_losses(
            OBJECTIVE,
            {
                "penalty detached": -w * R + stop_gradient(beta * u * f(v)),
                "weight not detached": -WEIGHT * sp.log(p),
            },
        ),
    },
)
