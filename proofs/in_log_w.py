"""Methods that follow log w where the others follow w: mirror descent by regression (PMD-mean), and CPGD.

−A·log w + ½β·log²w is the square of A − β·log w up to a constant in θ. On-policy it ascends E[R]; off-policy it is the
gradient of no combination of the expected advantage and the KLs. CPGD's drift penalty makes its unclipped gradient that
of E_old[(A + β)·log π_θ]: log-likelihood, weighted by the advantage.

Source: Kimi Team 2025 (k1.5); Xu et al. 2026, arXiv 2602.05933 (PMD-mean); Liu et al. 2025, arXiv 2505.12504 (CPGD).
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.kl_estimators import ALL_KLS, no_combination, off_policy, on_policy
from proofs.language import E, Grad
from proofs.symbols import A, beta, p, q, w

PMD = -A * sp.log(w) + beta / 2 * sp.log(w) ** 2
CPGD = -A * sp.log(w) + beta * (w - 1 - sp.log(w))
OBJECTIVES = (E(p, A), *ALL_KLS)


def _square(value: sp.Expr) -> Statement:
    return equal(PMD, value - A**2 / (2 * beta))


CLAIM = Claim(
    id="in_log_w",
    source="Kimi Team 2025; Xu et al. 2026; Liu et al. 2025 (CPGD)",
    statements=(
        _square((A - beta * sp.log(w)) ** 2 / (2 * beta)),
        equal(Grad(on_policy(PMD)), -Grad(E(p, A))),
        no_combination(off_policy(PMD), OBJECTIVES),
        equal(Grad(E(q, CPGD)), -Grad(E(q, (A + beta) * sp.log(p)))),
        equal(Grad(on_policy(CPGD)), -Grad(E(p, A))),
    ),
    near_misses={
        "PMD: without the ½": _square((A - beta * sp.log(w)) ** 2 / beta),
        "PMD: the other sign": _square((A + beta * sp.log(w)) ** 2 / (2 * beta)),
        "PMD off-policy: ∇E[R]": equal(Grad(E(q, PMD)), -Grad(E(p, A))),
        "CPGD off-policy: ∇E[R]": equal(Grad(E(q, CPGD)), -Grad(E(p, A))),
        "CPGD: likelihood weighted by A alone": equal(Grad(E(q, CPGD)), -Grad(E(q, A * sp.log(p)))),
    },
    printed=4,
)
