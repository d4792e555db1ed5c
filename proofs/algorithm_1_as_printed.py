"""Algorithm 1 as printed differentiates Â = R − β·f′(w) inside −w·Â; detaching Â mends it. π_ref = π_old throughout.

For FKL and UFKL w·f′(w) is −1 and w − 1, whose expectations no normalised policy can move: the penalty has no
expected gradient. For RKL and URKL the expected gradient is right, with a term β·w·∇log π_θ of zero mean in every
sample: at π_θ = π_old it doubles RKL's penalty gradient, four times the variance, and is all of URKL's. In the
clipped branches w is a constant but Â still moves.

Source: errata, paper rows 1–3 (ours), on arXiv 2505.17508, Algorithm 1, lines 11–14, 26, 27, 32.
"""

from collections.abc import Iterator

import sympy as sp

from proofs import prop_3_6_urkl, prop_e_3_rkl
from proofs.certificate import Claim, Statement, equal
from proofs.divergence_table import TABLE
from proofs.language import KL, SG, UKL, E, Grad, score
from proofs.symbols import R, beta, p, q, v, w

KINDS = {"fkl": KL(q, p), "ufkl": UKL(q, p), "rkl": KL(p, q), "urkl": UKL(p, q)}
LOSSES = {"rkl": prop_e_3_rkl.LOSS, "urkl": prop_3_6_urkl.LOSS}
EXTRA = {"fkl": score(), "ufkl": score(), "rkl": w * score(), "urkl": w * score()}
LOST = ("fkl", "ufkl")  # of which nothing is left
BOUND = sp.Symbol("bound", positive=True)  # 1 + ε2 or c
HERE = p / SG(p)  # w where π_old = π_θ


def a_hat(name: str) -> sp.Expr:
    """Return Â = R − β·f′(w). Source: arXiv 2505.17508, Algorithm 1, lines 11–14."""
    return R - beta * TABLE[name].f_prime.subs(v, w)


def _live(name: str) -> sp.Expr:
    return -w * a_hat(name)


def _detached(name: str) -> sp.Expr:
    return -w * SG(a_hat(name))


def _descends(name: str, loss: sp.Expr, strength: sp.Expr | int) -> Statement:
    return equal(-Grad(E(q, loss)), Grad(E(p, R) - strength * KINDS[name]))


def _clipped(name: str, value: sp.Expr | int) -> Statement:
    return equal(Grad(-BOUND * a_hat(name)), value)


def _at_start(name: str, times: int, *, detached: bool = False) -> Statement:
    penalty = beta * TABLE[name].f_prime.subs(v, HERE)
    return equal(Grad(HERE * (SG(penalty) if detached else penalty)), times * beta * score())


def _identities() -> Iterator[Statement]:
    for name in KINDS:
        yield equal(Grad(_live(name) - _detached(name)), beta * EXTRA[name])
        yield _clipped(name, BOUND * beta * w * TABLE[name].f_prime.diff(v).subs(v, w) * score())
    for name, loss in LOSSES.items():
        yield equal(_live(name), loss + beta * w)
    yield equal(E(q, w * score()), 0)
    for name, (live, detached) in {"rkl": (2, 1), "urkl": (1, 0)}.items():
        yield _at_start(name, live)
        yield _at_start(name, detached, detached=True)


CLAIM = Claim(
    id="algorithm_1_as_printed",
    source="errata, paper rows 1–3; on arXiv 2505.17508, Algorithm 1",
    statements=(
        *(_descends(name, _live(name), 0 if name in LOST else beta) for name in KINDS),
        *(_descends(name, _detached(name), beta) for name in KINDS),
        *_identities(),
    ),
    near_misses={
        **{f"{name}: live": _descends(name, _live(name), beta) for name in LOST},
        **{f"{name}: live, sample by sample": equal(Grad(_live(name)), Grad(_detached(name))) for name in KINDS},
        **{f"{name}: a clipped sample is at rest": _clipped(name, 0) for name in KINDS},
        "rkl: −wÂ is the proposition's loss": equal(_live("rkl"), LOSSES["rkl"]),
    },
    printed=8,
)
