"""Remark 3.5 and Appendix D: k3 averaged over the first argument is the unnormalised KL, whatever the two masses.

Definitions 3.1 and 3.4 are the same sums, written with φ(log w) and with w·log w.

Source: arXiv 2505.17508, Remark 3.5, Appendix D, and Definitions 3.1, 3.4.
"""

import sympy as sp

from proofs.certificate import ANY_MASS, Claim, Statement, equal
from proofs.definitions import k3
from proofs.language import KL, SG, UKL, E, Grad, Total
from proofs.symbols import p, q, q_tilde, w

d = sp.Symbol("d")
PHI = sp.exp(d) - 1 - d


def _is(value: sp.Expr, divergence: sp.Expr) -> Statement:
    return equal(value, divergence, ANY_MASS)


def _moves(value: sp.Expr, divergence: sp.Expr) -> Statement:
    return equal(Grad(value), Grad(divergence), ANY_MASS)


CLAIM = Claim(
    id="k3_identity",
    source="arXiv 2505.17508, Remark 3.5, App. D",
    statements=(
        _is(E(q, k3(w)), UKL(q, p)),
        _is(E(p, k3(1 / w)), UKL(p, q)),
        _moves(E(q, k3(w)), UKL(q, p)),
        _moves(E(p, k3(1 / w)), UKL(p, q)),
    ),
    near_misses={
        "KL(π_old‖π_θ) where the masses differ": _is(E(q, k3(w)), KL(q, p)),
        "KL(π_θ‖π_old) where the masses differ": _is(E(p, k3(1 / w)), KL(p, q)),
        "the other direction": _is(E(q, k3(w)), UKL(p, q)),
        "k3 of the inverse ratio": _is(E(q, k3(1 / w)), UKL(q, p)),
        "mean over π̃_old without Z": _is(E(q_tilde, k3(w)), UKL(q, p)),
        "θ in the sampling frozen": _moves(E(SG(p), k3(1 / w)), UKL(p, q)),
    },
)

FORWARD_DEFINITION = Claim(
    id="ukl_forward_definition",
    source="arXiv 2505.17508, Def. 3.1",
    statements=(
        _is(UKL(q, p), Total(q * sp.log(q / p)) + Total(p - q)),
        equal(UKL(q, p), E(q, PHI), ANY_MASS, d=sp.log(w)),
    ),
    near_misses={
        "the masses the other way round": _is(UKL(q, p), Total(q * sp.log(q / p)) + Total(q - p)),
        "φ(−log w)": equal(UKL(q, p), E(q, PHI), ANY_MASS, d=-sp.log(w)),
        "KL": _is(KL(q, p), Total(q * sp.log(q / p)) + Total(p - q)),
    },
)

REVERSE_DEFINITION = Claim(
    id="ukl_reverse_definition",
    source="arXiv 2505.17508, Def. 3.4",
    statements=(
        _is(UKL(p, q), Total(p * sp.log(p / q)) + Total(q - p)),
        _is(UKL(p, q), E(q, w * sp.log(w) - w + 1)),
    ),
    near_misses={
        "the masses the other way round": _is(UKL(p, q), Total(p * sp.log(p / q)) + Total(p - q)),
        "the forward generator": _is(UKL(p, q), E(q, w - 1 - sp.log(w))),
        "KL": _is(KL(p, q), E(q, w * sp.log(w) - w + 1)),
    },
)

CLAIMS = (CLAIM, FORWARD_DEFINITION, REVERSE_DEFINITION)
