"""GRPO's penalty, k3(π_ref/π_θ) without importance weight: whose gradient it is, and two ways to weight it.

On-policy its value estimates the reverse KL, but its gradient, the samples held fixed, is the forward KL's. Samples
drawn from π_θ have density SG(π_θ): the same probabilities, which autograd does not see.

Source: arXiv 2505.17508, §2.2 (the off-policy mismatch and its correction); the on-policy direction and SG(w) are ours.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.definitions import k3, kl, ukl
from proofs.expectations import ANY_MASS, Equation, expectation_old, finite, gradient, pointwise, stop_gradient
from proofs.symbols import Z, p, q, r, score, v, w

PENALTY = k3(1 / v)
ON_POLICY = stop_gradient(p) * PENALTY
OFF_POLICY = expectation_old(PENALTY)
DETACHED_WEIGHT = expectation_old(stop_gradient(w) * PENALTY)
LIVE_WEIGHT = expectation_old(w * PENALTY)


def _descends_forward_kl(penalty: sp.Expr) -> dict[str, Equation]:
    return {
        "pointwise, any mass": (gradient(pointwise, penalty), gradient(pointwise, ukl(r, p))),
        "finite": (gradient(finite, penalty), gradient(finite, kl(r, p))),
    }


def _near_misses(penalty: sp.Expr, gradients_of: dict[str, sp.Expr]) -> dict[str, Equation]:
    return {
        f"∇{name}": (gradient(finite, penalty), gradient(finite, divergence))
        for name, divergence in gradients_of.items()
    }


CLAIMS = (
    Claim(
        id="grpo_on_policy",
        statement="∇ of k3(π_ref/π_θ) on samples of π_θ is ∇KL(π_ref‖π_θ), the forward KL's",
        source="ours; after arXiv 2505.17508, §2.2",
        identities=lambda: _descends_forward_kl(ON_POLICY),
        near_misses=lambda: _near_misses(
            ON_POLICY, {"KL(π_θ‖π_ref)": kl(p, r), "UKL(π_θ‖π_ref)": ukl(p, r), "sampling not frozen": p * PENALTY}
        ),
    ),
    Claim(
        id="grpo_off_policy",
        statement="∇ of k3(π_ref/π_θ) on samples of π_old is E_old[(1 − 1/v) ∇log π_θ], the gradient of neither KL",
        source="arXiv 2505.17508, §2.2",
        identities=lambda: {
            name: (gradient(setting, OFF_POLICY), setting(expectation_old((1 - 1 / v) * score)))
            for name, setting in {"pointwise": pointwise, "finite": finite}.items()
        },
        near_misses=lambda: _near_misses(
            OFF_POLICY,
            {
                "KL(π_ref‖π_θ)": kl(r, p),
                "KL(π_θ‖π_ref)": kl(p, r),
                "KL(π_old‖π_θ)": kl(q, p),
                "KL(π_θ‖π_old)": kl(p, q),
            },
        ),
    ),
    Claim(
        id="grpo_live_weight",
        statement="E_old[w·k3(π_ref/π_θ)] is UKL(π_θ‖π_ref), and with w live its gradient too",
        source="arXiv 2505.17508, §2.2",
        identities=lambda: {
            f"{name}: {what}": equation
            for name, setting in ANY_MASS.items()
            for what, equation in {
                "value": (setting(LIVE_WEIGHT), setting(ukl(p, r))),
                "gradient": (gradient(setting, LIVE_WEIGHT), gradient(setting, ukl(p, r))),
            }.items()
        },
        near_misses=lambda: _near_misses(
            LIVE_WEIGHT, {"KL(π_ref‖π_θ)": kl(r, p), "w detached": DETACHED_WEIGHT, "no mass Z": LIVE_WEIGHT / Z}
        ),
    ),
    Claim(
        id="grpo_detached_weight",
        statement="∇E_old[SG(w)·k3(π_ref/π_θ)] is ∇KL(π_ref‖π_θ) again: the weight must stay differentiable",
        source="ours; after arXiv 2505.17508, §2.2",
        identities=lambda: _descends_forward_kl(DETACHED_WEIGHT),
        near_misses=lambda: _near_misses(
            DETACHED_WEIGHT, {"KL(π_θ‖π_ref)": kl(p, r), "no weight": OFF_POLICY, "no mass Z": DETACHED_WEIGHT / Z}
        ),
    ),
)
