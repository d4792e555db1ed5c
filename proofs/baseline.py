"""Appendix C.1: a baseline that does not depend on the action leaves the policy gradient unbiased.

The state is fixed throughout: b(s) is one number, the same for every action.

Source: arXiv 2505.17508, Appendix C.1.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.expectations import NORMALISED, Equation, expectation_old, finite, gradient
from proofs.symbols import R, b, p, score, w


def _identities() -> dict[str, Equation]:
    equations = {}
    for name, setting in NORMALISED.items():
        exact = gradient(setting, p * R)
        equations |= {
            f"{name}: E_πθ[b ∇log π_θ] = 0": (setting(p * b * score), sp.S.Zero),
            f"{name}: on-policy, R − b": (exact, setting(p * (R - b) * score)),
            f"{name}: off-policy, w(R − b)": (exact, setting(expectation_old(w * (R - b) * score))),
        }
    return equations


CLAIM = Claim(
    id="baseline",
    statement="E_πθ[b(s) ∇log π_θ(a|s)] = 0, so R − b(s) has the gradient of R, also under importance weights",
    source="arXiv 2505.17508, App. C.1",
    identities=_identities,
    near_misses=lambda: {
        "off-policy, baseline without w": (gradient(finite, p * R), finite(expectation_old((w * R - b) * score))),
        "baseline that depends on the action": (finite(p * R * score), sp.S.Zero),
        "policy that is not normalised": (finite(p * b * score, normalised=False), sp.S.Zero),
    },
)
