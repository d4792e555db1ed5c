"""Where a stop-gradient on the importance weight is needed: beside log π_θ, and nowhere else.

−w·A and −SG(w)·A·log π_θ have one gradient, sample by sample, because ∇w = w·∇log π_θ. So the live w of a surrogate
is right. In −w·A·log π_θ the same w must be detached. If it is live, training ascends E_p[A·log π_θ] with A held
fixed, and its gradient exceeds ∇E_p[A] by E_p[A·log π_θ·∇log π_θ].

A baseline is then no longer free. A constant b in A makes training also ascend −b times the entropy −∫π_θ·log π_θ.
With log w in the place of log π_θ, it makes training ascend b times KL(π_θ‖π_old).

Source: ours; on the rollout-correction note of verl (docs/algo/rollout_corr_math.md, §3.2.2).
"""

import sympy as sp

from proofs.certificate import TREES, Claim, Statement, equal
from proofs.language import KL, SG, E, Grad, Total, at, over, score
from proofs.symbols import A, R, b, p, q, t, w

LIVE, DETACHED, BOTH_LIVE = w * A, SG(w) * A * sp.log(p), w * A * sp.log(p)
ENTROPY = -Total(p * sp.log(p))


def _is(value: sp.Expr, objective: sp.Expr) -> Statement:
    return equal(Grad(E(q, value)), objective)


CLAIM = Claim(
    id="stop_gradient",
    source="ours; on verl, docs/algo/rollout_corr_math.md",
    statements=(
        equal(Grad(LIVE), Grad(DETACHED)),
        _is(LIVE, Grad(E(p, A))),
        _is(BOTH_LIVE, Grad(E(p, A * sp.log(p)))),
        _is(BOTH_LIVE, Grad(E(p, A)) + E(p, A * sp.log(p) * score())),
        _is(w * b * sp.log(p), -b * Grad(ENTROPY)),
        _is(w * b * sp.log(w), b * Grad(KL(p, q))),
        equal(Grad(E(q, w * R * over(t, sp.log(at(p, t))))), Grad(E(p, R * over(t, sp.log(at(p, t))))), TREES),
    ),
    near_misses={
        "live w in w·A: ∇E[A·log π]": _is(LIVE, Grad(E(p, A * sp.log(p)))),
        "live w beside log π: ∇E[A]": _is(BOTH_LIVE, Grad(E(p, A))),
        "live w beside log w: ∇E[A]": _is(w * A * sp.log(w), Grad(E(p, A))),
        "all of w·A detached": _is(SG(w) * A, Grad(E(p, A))),
        "no w beside log π": _is(A * sp.log(p), Grad(E(p, A))),
        "a constant in A is free": _is(w * b * sp.log(p), 0),
        "a constant in A adds entropy": _is(w * b * sp.log(p), b * Grad(ENTROPY)),
    },
    printed=6,
)
