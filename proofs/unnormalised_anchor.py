"""Anchoring to an unnormalised π_old of mass Z instead of π̃_old only rescales β, for five of the seven divergences.

Source: ours; the masses are those of arXiv 2505.17508, Definitions 3.1 and 3.4.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.divergence_table import TABLE
from proofs.expectations import Equation, finite, gradient
from proofs.symbols import Z, p, q, q_tilde


def _rescaled(name: str, factor: sp.Expr) -> Equation:
    divergence = TABLE[name].definition
    return gradient(finite, divergence(p, q)), factor * gradient(finite, divergence(p, q_tilde))


CLAIM = Claim(
    id="unnormalised_anchor",
    statement="∇D(π_θ, π_old) = c·∇D(π_θ, π̃_old): c = Z for FKL, UFKL; 1 for RKL, URKL; 1/Z for χ²",
    source="ours; masses of arXiv 2505.17508, Defs 3.1, 3.4",
    identities=lambda: {
        name: _rescaled(name, factor)
        for name, factor in {"fkl": Z, "ufkl": Z, "rkl": sp.S.One, "urkl": sp.S.One, "chi2": 1 / Z}.items()
    },
    near_misses=lambda: {
        "UFKL with c = 1": _rescaled("ufkl", sp.S.One),
        "URKL with c = Z": _rescaled("urkl", Z),
        "χ² with c = Z": _rescaled("chi2", Z),
        "Jeffreys with c = 1": _rescaled("jeffreys", sp.S.One),
        "JS with c = 1": _rescaled("js", sp.S.One),
    },
)
