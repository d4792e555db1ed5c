"""What a proposition of the paper says of one divergence: the gradient of J as a weight, and a loss that has it.

Source: arXiv 2505.17508, Propositions 3.2, 3.6, E.1, E.3.
"""

from collections.abc import Mapping

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.language import E, Grad, score
from proofs.symbols import Z, q_tilde

J = sp.Symbol("J")


def weighted(objective: sp.Expr, weight: sp.Expr) -> Statement:
    """Return ∇J = Z·E[weight·∇log π_θ]. Source: arXiv 2505.17508, Propositions 3.2, 3.6, E.1, E.3."""
    return equal(Grad(J), Z * E(q_tilde, weight * score()), J=objective)


def descended(objective: sp.Expr, loss: sp.Expr) -> Statement:
    """Return −∇J = ∇ Z·E[loss]. Source: arXiv 2505.17508, Propositions 3.2, 3.6, E.1, E.3."""
    return equal(-Grad(J), Grad(Z * E(q_tilde, loss)), J=objective)


def proposition(
    name: str,
    source: str,
    objective: sp.Expr,
    weight: sp.Expr,
    loss: sp.Expr,
    *,
    wrong_weights: Mapping[str, sp.Expr],
    wrong_losses: Mapping[str, sp.Expr],
) -> Claim:
    """Return the claim: the weight and the loss as printed, and wrong ones of each. Source: as the claim's."""
    return Claim(
        id=name,
        source=source,
        statements=(weighted(objective, weight), descended(objective, loss)),
        near_misses={
            **{wrong: weighted(objective, value) for wrong, value in wrong_weights.items()},
            **{wrong: descended(objective, value) for wrong, value in wrong_losses.items()},
        },
    )
