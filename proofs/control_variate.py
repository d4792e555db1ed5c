"""The unnormalised KL is the KL plus a control variate: the difference of masses, constant for a normalised π_θ.

Hence their expected gradients agree whatever the mass of the anchor, and only the variance differs: contrary to
Remark 3.3, the unnormalised KL cannot pull π_θ towards that mass.

Source: arXiv 2505.17508, Definitions 3.1, 3.4 and Remark 3.3.
"""

from proofs.certificate import ANY_MASS, Claim, equal
from proofs.definitions import kl, ukl
from proofs.language import KL, UKL, E, Grad
from proofs.symbols import p, r, v

CLAIM = Claim(
    id="control_variate",
    source="arXiv 2505.17508, Defs 3.1, 3.4, Remark 3.3",
    statements=(
        equal(UKL(r, p), KL(r, p) + E(r, v - 1)),
        equal(UKL(p, r), KL(p, r) - E(r, v - 1)),
        equal(Grad(E(r, v - 1)), 0),
        equal(Grad(UKL(r, p)), Grad(KL(r, p))),
        equal(Grad(UKL(p, r)), Grad(KL(p, r))),
    ),
    near_misses={
        "forward, sample by sample": equal(Grad(ukl(r, p)), Grad(kl(r, p))),
        "reverse, sample by sample": equal(Grad(ukl(p, r)), Grad(kl(p, r))),
        "π_θ of any mass": equal(Grad(UKL(r, p)), Grad(KL(r, p)), ANY_MASS),
        "equal values": equal(UKL(r, p), KL(r, p)),
    },
)
