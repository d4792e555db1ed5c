"""GRPO's penalty, k3(π_ref/π_θ) without importance weight: whose gradient it is, and two ways to weight it.

On-policy its value estimates the reverse KL, but its gradient, the samples held fixed, is the forward KL's. Samples
drawn from π_θ have density SG(π_θ): the same probabilities, which autograd does not see.

Source: arXiv 2505.17508, §2.2 (the off-policy mismatch and its correction); the on-policy direction and SG(w) are ours.
"""

import sympy as sp

from proofs.certificate import ANY_MASS, Claim, Statement, equal
from proofs.definitions import k3
from proofs.kl_estimators import ALL_KLS, no_combination
from proofs.language import KL, SG, UKL, E, Grad, score
from proofs.symbols import Z, p, q, r, v, w

PENALTY = k3(1 / v)


def _has_gradient_of(penalty: sp.Expr, divergence: sp.Expr) -> Statement:
    return equal(Grad(penalty), Grad(divergence))


ON_POLICY, OFF_POLICY = E(SG(p), PENALTY), E(q, PENALTY)
DETACHED, LIVE = E(q, SG(w) * PENALTY), E(q, w * PENALTY)
CLAIMS = (
    Claim(
        id="grpo_on_policy",
        source="ours; after arXiv 2505.17508, §2.2",
        statements=(
            equal(Grad(ON_POLICY), E(p, (1 - 1 / v) * score())),
            _has_gradient_of(ON_POLICY, KL(r, p)),
        ),
        near_misses={
            "∇KL(π_θ‖π_ref)": _has_gradient_of(ON_POLICY, KL(p, r)),
            "∇UKL(π_θ‖π_ref)": _has_gradient_of(ON_POLICY, UKL(p, r)),
            "sampling not frozen": _has_gradient_of(E(p, PENALTY), KL(r, p)),
        },
    ),
    Claim(
        id="grpo_off_policy",
        source="arXiv 2505.17508, §2.2",
        statements=(
            equal(Grad(OFF_POLICY), E(q, (1 - 1 / v) * score())),
            no_combination(OFF_POLICY, ALL_KLS),
        ),
        near_misses={
            "∇KL(π_ref‖π_θ)": _has_gradient_of(OFF_POLICY, KL(r, p)),
            "∇KL(π_θ‖π_ref)": _has_gradient_of(OFF_POLICY, KL(p, r)),
            "∇KL(π_old‖π_θ)": _has_gradient_of(OFF_POLICY, KL(q, p)),
            "∇KL(π_θ‖π_old)": _has_gradient_of(OFF_POLICY, KL(p, q)),
        },
    ),
    Claim(
        id="grpo_live_weight",
        source="arXiv 2505.17508, §2.2",
        statements=(
            equal(LIVE, UKL(p, r), ANY_MASS),
            equal(Grad(LIVE), Grad(UKL(p, r)), ANY_MASS),
        ),
        near_misses={
            "∇KL(π_ref‖π_θ)": _has_gradient_of(LIVE, KL(r, p)),
            "w detached": _has_gradient_of(LIVE, DETACHED),
            "no mass Z": _has_gradient_of(LIVE / Z, UKL(p, r)),
        },
    ),
    Claim(
        id="grpo_detached_weight",
        source="ours; after arXiv 2505.17508, §2.2",
        statements=(_has_gradient_of(DETACHED, KL(r, p)),),
        near_misses={
            "∇KL(π_θ‖π_ref)": _has_gradient_of(DETACHED, KL(p, r)),
            "no weight": _has_gradient_of(OFF_POLICY, KL(r, p)),
            "no mass Z": _has_gradient_of(DETACHED / Z, KL(r, p)),
        },
    ),
)
