"""The unnormalised KL cannot teach a policy its anchor's mass: ∇∫(π_θ − π_old) = 0, since π_θ is normalised.

In value, UKL to an anchor Z·π̃_old is KL to π̃_old, times Z in the forward direction, plus a number that π_θ cannot
move.

Source: errata, paper row 10 (ours), on arXiv 2505.17508, Remark 3.3 and Definitions 3.1, 3.4.
"""

import sympy as sp

from proofs.certificate import ANY_MASS, Claim, equal
from proofs.language import KL, UKL, Grad, Total
from proofs.symbols import Z, p, q, q_tilde

CLAIM = Claim(
    id="mass_gradient",
    source="errata, paper row 10; on arXiv 2505.17508, Remark 3.3",
    statements=(
        equal(Grad(Total(p - q)), 0),
        equal(UKL(q, p), Z * KL(q_tilde, p) + Z * sp.log(Z) + 1 - Z),
        equal(UKL(p, q), KL(p, q_tilde) - sp.log(Z) + Z - 1),
    ),
    near_misses={
        "π_θ of any mass": equal(Grad(Total(p - q)), 0, ANY_MASS),
        "UKL(π_old‖π_θ) does not see Z": equal(UKL(q, p), KL(q_tilde, p)),
        "UKL(π_old‖π_θ) scaled by Z alone": equal(UKL(q, p), Z * KL(q_tilde, p)),
        "UKL(π_θ‖π_old) scaled by Z": equal(Grad(UKL(p, q)), Z * Grad(KL(p, q_tilde))),
    },
)
