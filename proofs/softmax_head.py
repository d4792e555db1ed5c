"""A softmax over a linear head: the gradient of one token's log-probability says what the entropy is.

Logits z = W·h/τ are linear in h, so that along h itself they move by themselves: ⟨h, ∂z/∂h⟩ = z. With ∂ log π_y/∂z =
onehot(y) − π, which says that a move a of the logits moves log π_y by a_y − E_π[a], that gives z_y − Σ π z, the entropy
less the surprise −log π_y. It holds for every token y, any number of tokens, and any width of h.

Source: ours; Euler's theorem on homogeneous functions, and the definition of a softmax.
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.language import Along, E, Grad, Total
from proofs.symbols import a, p, z
from proofs.worlds import Space

SOFTMAX = {"p": sp.exp(z) / Total(sp.exp(z))}
ENTROPY = -E(p, sp.log(p))
RAY = Space(ray=True)


def _read_off(factor: sp.Expr | int) -> Statement:
    return equal(ENTROPY, factor * Along(sp.log(p)) - sp.log(p), RAY, **SOFTMAX)


CLAIM = Claim(
    id="softmax_head",
    source="ours; Euler on homogeneous functions",
    statements=(equal(Grad(sp.log(p), a), a - E(p, a), **SOFTMAX), _read_off(1)),
    near_misses={
        "the other sign": _read_off(-1),
        "twice": _read_off(2),
        "the surprise alone": _read_off(0),
        "logits that are not linear in h": equal(ENTROPY, Along(sp.log(p)) - sp.log(p), **SOFTMAX),
        "∂log π/∂z without π": equal(Grad(sp.log(p), a), a, **SOFTMAX),
        "∂log π/∂z with the other sign": equal(Grad(sp.log(p), a), E(p, a) - a, **SOFTMAX),
    },
)
