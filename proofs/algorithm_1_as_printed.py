"""Algorithm 1 as printed differentiates Â = R − β·f′(w) inside −w·Â; detaching Â mends it.

For FKL and UFKL w·f′(w) is −1 and w − 1, whose expectations no normalised policy can move: the penalty has no
expected gradient. For RKL and URKL the expected gradient is right, with a term β·w·∇log π_θ of zero mean in every
sample: at π_θ = π_old it doubles RKL's penalty gradient, four times the variance, and is all of URKL's. In the
clipped branches w is a constant but Â still moves.

Source: errata, paper rows 1–3 (ours), on arXiv 2505.17508, Algorithm 1, lines 11–14, 26, 27, 32.
"""

from collections.abc import Callable

import sympy as sp

from proofs import prop_3_6_urkl, prop_e_3_rkl
from proofs.certificate import Claim
from proofs.divergence_table import TABLE
from proofs.expectations import (
    NORMALISED,
    Equation,
    Setting,
    expectation_old,
    finite,
    gradient,
    pointwise,
    stop_gradient,
)
from proofs.symbols import R, Z, beta, p, q, q_tilde, score, v, w

NAMES = ("fkl", "ufkl", "rkl", "urkl")
LOSSES = {"rkl": prop_e_3_rkl.LOSS, "urkl": prop_3_6_urkl.LOSS}
EXTRA = {"fkl": score, "ufkl": score, "rkl": w * score, "urkl": w * score}
BOUND = sp.Symbol("bound", positive=True)  # 1 + ε2 or c


def a_hat(name: str) -> sp.Expr:
    """Return Â = R − β·f′(w). Source: arXiv 2505.17508, Algorithm 1, lines 11–14."""
    return R - beta * TABLE[name].f_prime.subs(v, w)


def _live(setting: Setting, name: str) -> sp.Expr:
    return gradient(setting, expectation_old(-w * a_hat(name)))


def _detached(setting: Setting, name: str) -> sp.Expr:
    return gradient(setting, expectation_old(-w * stop_gradient(a_hat(name))))


def _minus_objective(setting: Setting, name: str, *, strength: sp.Expr = beta) -> sp.Expr:
    return gradient(setting, strength * TABLE[name].definition(p, q) - p * R)


def _penalty_at_start(gradient_of: Callable[[Setting, str], sp.Expr], name: str) -> sp.Expr:
    return (gradient_of(pointwise, name) / q).subs({R: 0, q_tilde: p / Z})


def _identities() -> dict[str, Equation]:
    equations = {}
    for name in NAMES:
        left = sp.S.Zero if name in ("fkl", "ufkl") else beta  # the strength that is left
        for where, setting in NORMALISED.items():
            equations[f"{where}, {name}: live"] = _live(setting, name), _minus_objective(setting, name, strength=left)
        for where, setting in {"pointwise": pointwise, "finite": finite}.items():
            equations[f"{where}, {name}: detached"] = _detached(setting, name), _minus_objective(setting, name)
        equations |= {
            f"{name}: what a sample adds": (
                _live(pointwise, name) - _detached(pointwise, name),
                beta * pointwise(expectation_old(EXTRA[name])),
            ),
            f"{name}: a clipped sample still moves": (
                gradient(pointwise, -BOUND * a_hat(name)),
                BOUND * beta * pointwise(w * TABLE[name].f_prime.diff(v).subs(v, w) * score),
            ),
        }
    for name, loss in LOSSES.items():
        equations[f"{name}: −wÂ is the proposition's loss + β·w"] = (-w * a_hat(name), loss + beta * w)
    for name, (live, detached) in {"rkl": (2, 1), "urkl": (1, 0)}.items():
        equations |= {
            f"{name}: live, a sample at π_θ = π_old": (_penalty_at_start(_live, name), live * beta * score),
            f"{name}: detached, a sample at π_θ = π_old": (_penalty_at_start(_detached, name), detached * beta * score),
        }
    return equations | {"the added term has zero mean": (finite(expectation_old(w * score)), sp.S.Zero)}


CLAIM = Claim(
    id="algorithm_1_as_printed",
    statement="Â live: the KL's expected gradient is 0 for FKL, UFKL, right for RKL, URKL; Â detached: right for all",
    source="errata, paper rows 1–3; on arXiv 2505.17508, Algorithm 1",
    identities=_identities,
    near_misses=lambda: {
        **{f"{name}: live": (_live(finite, name), _minus_objective(finite, name)) for name in ("fkl", "ufkl")},
        **{f"{name}: live, sample by sample": (_live(pointwise, name), _detached(pointwise, name)) for name in NAMES},
        **{
            f"{name}: a clipped sample is at rest": (gradient(pointwise, -BOUND * a_hat(name)), sp.S.Zero)
            for name in NAMES
        },
        "rkl: −wÂ is the proposition's loss": (-w * a_hat("rkl"), LOSSES["rkl"]),
    },
)
