"""The "none" cells of the ground-truth table: gradients of no combination of KLs, whatever the coefficients.

Were a term's gradient a fixed combination of n candidates', the n + 1 columns (term, candidates), each taken at the
same n + 1 policies, would have determinant 0. Exact rational policies where it is not 0 disprove every combination at
once. A term that is a combination has determinant 0, which is the control.

Source: the ground-truth table of the errata (ours).
"""

import sympy as sp
from sympy.core.function import AppliedUndef

from proofs.certificate import Claim
from proofs.definitions import k3
from proofs.expectations import expectation_old, finite, gradient, on_policy
from proofs.kl_estimators import FORWARD, FORWARD_OLD, REVERSE, REVERSE_OLD, ROWS, Y

TERMS = {row.id: row.term for row in ROWS} | {"k3_in_loss": k3(Y)}
ON_POLICY, OFF_POLICY = (REVERSE, FORWARD), (REVERSE, FORWARD, REVERSE_OLD, FORWARD_OLD)


def _determinant(loss: sp.Expr, candidates: tuple[sp.Expr, ...]) -> sp.Expr:
    columns = [gradient(finite, integrand) for integrand in (loss, *candidates)]
    kinds = (sp.Derivative, AppliedUndef, sp.Symbol)  # in this order: a derivative contains the other two
    unknowns = [sorted(set().union(*(column.atoms(kind) for column in columns)), key=str) for kind in kinds]
    rows = []
    for k in range(len(columns)):
        row = columns
        for kind in unknowns:
            values = {x: sp.Rational((29 * i + 41 * k + 7) % 31 + 1, 16) for i, x in enumerate(kind)}
            row = [entry.xreplace(values) for entry in row]
        rows.append(row)
    return sp.Matrix(rows).det(method="berkowitz")


def _on_policy(name: str) -> sp.Expr:
    return _determinant(on_policy(expectation_old(TERMS[name])), ON_POLICY)


def _off_policy(name: str) -> sp.Expr:
    return _determinant(expectation_old(TERMS[name]), OFF_POLICY)


CLAIM = Claim(
    id="no_kl",
    statement="the “none” cells: no combination, with any coefficients, of the KLs between π_θ, π_ref and π_old",
    source="ours; errata, ground-truth table",
    identities=lambda: {
        f"{name}, on-policy, is a combination": (_on_policy(name), sp.S.Zero)
        for name in ("k2_in_loss", "k3_in_loss", "k3_in_reward_at_old")
    },
    near_misses=lambda: {
        "k2_live_weight, on-policy": (_on_policy("k2_live_weight"), sp.S.Zero),
        **{
            f"{name}, off-policy": (_off_policy(name), sp.S.Zero)
            for name in (
                "k2_in_loss",
                "k2_live_weight",
                "k3_in_loss",
                "k1_straight_through",
                "k3_straight_through",
                "k3_in_reward_at_old",
            )
        },
    },
)
