"""Five divergences are ≥ 0, and 0 only where the densities are equal, whatever their masses; the two plain KLs are not.

D = ∫π_ref f(v) (`divergence_table`, any masses), so it is enough that f ≥ 0 with f = 0 at v = 1 alone. The checker's
rule is Taylor's: f(1) = f′(1) = 0 and f″ a quotient of sums of positive terms give f(v) = ∫₀¹ (1 − s)(v − 1)² f″(1 +
s(v − 1)) ds, which is positive unless v = 1. A plain KL is its unnormalised one less a difference of masses: ≥ 0 only
where the masses are equal.

Source: ours; arXiv 2505.17508, Definitions 3.1, 3.4 and Remark 3.5; Csiszár 1967.
"""

import sympy as sp

from proofs.certificate import ANY_MASS, DIVERGENCE, Claim, Statement, equal, related
from proofs.divergence_table import TABLE, defined
from proofs.language import KL, UKL
from proofs.symbols import p, q_tilde, r
from proofs.worlds import Numbers

POSITIVE = ("ufkl", "urkl", "jeffreys", "js", "chi2")


def _is_divergence(generator: sp.Expr) -> Statement:
    return related(generator, DIVERGENCE, 0, Numbers())


CLAIM = Claim(
    id="nonnegativity",
    source="ours; arXiv 2505.17508, Defs 3.1, 3.4",
    statements=(
        *(_is_divergence(TABLE[name].f) for name in POSITIVE),
        equal(KL(q_tilde, p), UKL(q_tilde, p)),
        equal(KL(p, q_tilde), UKL(p, q_tilde)),
        *(defined(name, TABLE[name].f) for name in POSITIVE),
        equal(KL(q_tilde, 2 * q_tilde), -sp.log(2)),
        equal(UKL(q_tilde, 2 * q_tilde), 1 - sp.log(2)),
    ),
    near_misses={
        "f of FKL is ≥ 0": _is_divergence(TABLE["fkl"].f),
        "f of RKL is ≥ 0": _is_divergence(TABLE["rkl"].f),
        "KL is UKL at any masses": equal(KL(p, r), UKL(p, r), ANY_MASS),
        "UKL(π‖2π) = 0: equal up to mass": equal(UKL(q_tilde, 2 * q_tilde), 0),
        "½(RKL − FKL) is a divergence": _is_divergence((TABLE["rkl"].f - TABLE["fkl"].f) / 2),
    },
    printed=7,
)
