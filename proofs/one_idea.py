"""One idea: every loss of the paper is one weight, w·A − β·u·v·f′(v), for one generator f.

The generator, the policy, π_old with its mass Z, and π_ref ≠ π_old with its own mass are all arbitrary. A is the reward
or the advantage: `baseline` shows that both have one gradient.

Source: the unification (ours) of arXiv 2505.17508, Propositions 3.2, 3.6, E.1, E.3 and 4.1, F.1, F.3, F.4, F.5.
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.language import SG, E, Grad, score
from proofs.symbols import A, Z, beta, f, f_prime, p, q_tilde, r, u, v, w

OBJECTIVE = E(p, A) - beta * E(r, f(v))
WEIGHT = w * A - beta * u * v * f_prime(v)
SURROGATE = -w * A + beta * u * f(v)
J = sp.Symbol("J")


def reinforce_loss(weight: sp.Expr) -> sp.Expr:
    """Return −SG(weight)·log π_θ. Source: arXiv 2505.17508, Propositions 4.1, F.1, F.3, F.4, F.5."""
    return -SG(weight) * sp.log(p)


def _weight(weight: sp.Expr) -> Statement:
    return equal(Grad(J), Z * E(q_tilde, weight * score()), J=OBJECTIVE)


def _loss(per_sample: sp.Expr) -> Statement:
    return equal(-Grad(J), Grad(Z * E(q_tilde, per_sample)), J=OBJECTIVE)


CLAIM = Claim(
    id="one_idea",
    source="ours; unifies arXiv 2505.17508, Props 3.2, 3.6, E.1, E.3, 4.1, F.1, F.3–F.5",
    statements=(
        _weight(WEIGHT),
        _loss(SURROGATE),
        _loss(reinforce_loss(WEIGHT)),
        equal(Grad(SURROGATE), -WEIGHT * score()),
    ),
    near_misses={
        "f′(v) for v f′(v)": _weight(w * A - beta * u * f_prime(v)),
        "penalty without u": _weight(w * A - beta * v * f_prime(v)),
        "f′ at w": _weight(w * A - beta * w * f_prime(w)),
        "penalty's sign flipped": _weight(w * A + beta * u * v * f_prime(v)),
        "no mass Z": _weight(WEIGHT / Z),
        "penalty detached": _loss(-w * A + SG(beta * u * f(v))),
        "weight not detached": _loss(-WEIGHT * sp.log(p)),
    },
    printed=3,
)
