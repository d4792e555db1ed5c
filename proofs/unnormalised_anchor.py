"""Anchoring to an unnormalised π_old of mass Z instead of π̃_old only rescales β, for five of the seven divergences.

Jeffreys and JS turn: at a policy of three outcomes no number, not even one that depends on the policy, makes one
gradient of the other in two directions at once. Of two outcomes there is one direction, and nothing can turn.

Source: ours; the masses are those of arXiv 2505.17508, Definitions 3.1 and 3.4.
"""

import sympy as sp

from proofs.certificate import ANY, NO_COMBINATION, Claim, Statement, equal, related
from proofs.divergence_table import TABLE
from proofs.language import JS, KL, UKL, ChiSquare, Grad, Jeffreys, Total
from proofs.symbols import Z, p, q, q_tilde


def _rescaled(name: str, factor: sp.Expr | int) -> Statement:
    divergence = TABLE[name].definition
    return equal(Grad(Total(divergence(p, q))), factor * Grad(Total(divergence(p, q_tilde))))


def _turned(kind: type) -> Statement:
    return related(Grad(kind(p, q)), NO_COMBINATION, (Grad(kind(p, q_tilde)),), ANY)


CLAIM = Claim(
    id="unnormalised_anchor",
    source="ours; masses of arXiv 2505.17508, Defs 3.1, 3.4",
    statements=(
        equal(Grad(KL(q, p)), Z * Grad(KL(q_tilde, p))),
        equal(Grad(UKL(q, p)), Z * Grad(UKL(q_tilde, p))),
        equal(Grad(KL(p, q)), Grad(KL(p, q_tilde))),
        equal(Grad(UKL(p, q)), Grad(UKL(p, q_tilde))),
        equal(Grad(ChiSquare(p, q)), Grad(ChiSquare(p, q_tilde)) / Z),
        _turned(Jeffreys),
        _turned(JS),
    ),
    near_misses={
        "UFKL with c = 1": _rescaled("ufkl", 1),
        "URKL with c = Z": _rescaled("urkl", Z),
        "χ² with c = Z": _rescaled("chi2", Z),
        "Jeffreys with c = 1": _rescaled("jeffreys", 1),
        "JS with c = 1": _rescaled("js", 1),
        "RKL turns": _turned(KL),
    },
)
