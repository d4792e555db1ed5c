"""Schulman's estimators k1, k2, k3 put into a loss or a reward: whose gradient each placement descends.

y = π_ref/π_θ throughout. A penalty k in the reward adds −k to the advantage, hence −SG(−w·k)·log π_θ to the loss;
libraries often evaluate it once, at π_old. A row of the ground-truth table is one claim: the exact gradient of the term
on samples of any π_old; the divergence whose gradient that is on-policy, and off-policy; every other candidate refuted.
Where it is of no KL, no combination of the KLs between the three policies has it, at one policy of several outcomes
and with any coefficients. The three placements of GRPO's k3 are in `grpo_mismatch`.

Source: the ground-truth table of the errata (ours); the estimators are Schulman's, "Approximating KL divergence", 2020.
"""

from dataclasses import dataclass

import sympy as sp

from proofs.certificate import NO_COMBINATION, Claim, Statement, equal, related
from proofs.definitions import k1, k2, k3
from proofs.language import KL, SG, E, Grad, score
from proofs.one_idea import reinforce_loss
from proofs.symbols import p, q, r, u, v, w
from proofs.worlds import Listed

LIVE_ONE = p / SG(p)  # exp(log π_θ − SG(log π_θ)): its value is 1, its gradient ∇log π_θ
Y, Y_AT_OLD = 1 / v, u  # π_ref/π_θ and π_ref/π_old

REVERSE, FORWARD = KL(p, r), KL(r, p)
REVERSE_OLD, FORWARD_OLD = KL(p, q), KL(q, p)
CANDIDATES = {
    "0": sp.Integer(0),
    "∇KL(π_θ‖π_ref)": REVERSE,
    "∇KL(π_ref‖π_θ)": FORWARD,
    "∇KL(π_θ‖π_old)": REVERSE_OLD,
    "∇KL(π_old‖π_θ)": FORWARD_OLD,
}
ANCHOR_KLS, ALL_KLS = (REVERSE, FORWARD), (REVERSE, FORWARD, REVERSE_OLD, FORWARD_OLD)


@dataclass(frozen=True)
class Row:
    """One placement: the term of the loss, its gradient's coefficient of ∇log π_θ, and what it descends, or None.

    Source: the ground-truth table of the errata (ours).
    """

    id: str
    term: sp.Expr
    coefficient: sp.Expr
    on_policy: sp.Expr | None
    off_policy: sp.Expr | None


def on_policy(term: sp.Expr) -> sp.Expr:
    """Return the term's expectation over samples of π_θ: π_old is π_θ, which a gradient does not see. Source: ours."""
    return E(SG(p), term.xreplace({w: p / SG(p), u: r / SG(p)}))


def off_policy(term: sp.Expr) -> sp.Expr:
    """Return the term's expectation over samples of π_old. Source: definition."""
    return E(q, term)


def no_combination(value: sp.Expr, kls: tuple[sp.Expr, ...]) -> Statement:
    """Return: the gradient is no combination of these KLs' gradients, whatever the coefficients. Source: ours."""
    world = Listed(outcomes=len(kls) + 2)
    return related(Grad(value), NO_COMBINATION, tuple(map(Grad, kls)), world)


def _in_the_reward(k: sp.Expr) -> sp.Expr:
    return reinforce_loss(-w * k)


def _gradient(value: sp.Expr) -> sp.Expr:
    return Grad(value) if value else sp.Integer(0)


def _claim(row: Row) -> Claim:
    on, off = on_policy(row.term), off_policy(row.term)
    regimes = ((on, row.on_policy, ANCHOR_KLS), (off, row.off_policy, ALL_KLS))
    found = [
        no_combination(value, kls) if target is None else equal(Grad(value), _gradient(target))
        for value, target, kls in regimes
    ]
    wrong = {
        f"{regime}: {name}": equal(Grad(value), _gradient(candidate))
        for regime, value, target in (("on-policy", on, row.on_policy), ("off-policy", off, row.off_policy))
        for name, candidate in CANDIDATES.items()
        # On-policy π_old is a copy of π_θ, from which no KL has a gradient: the candidate 0 again.
        if candidate != target and (regime == "off-policy" or candidate not in (REVERSE_OLD, FORWARD_OLD))
    }
    return Claim(
        id=row.id,
        source="ours; estimators of Schulman 2020; errata, ground-truth table",
        statements=(*found, equal(Grad(off), E(q, row.coefficient * score()))),
        near_misses=wrong,
    )


ROWS = (
    Row("k1_in_loss", k1(Y), sp.Integer(1), sp.Integer(0), -FORWARD_OLD),
    Row("k2_in_loss", k2(Y), sp.log(v), REVERSE, None),
    Row("k2_detached_weight", SG(w) * k2(Y), w * sp.log(v), REVERSE, REVERSE),
    Row("k2_live_weight", w * k2(Y), w * (k2(Y) + sp.log(v)), None, None),
    Row("k1_live_weight", w * k1(Y), w * (sp.log(v) + 1), REVERSE, REVERSE),
    Row("k1_straight_through", LIVE_ONE * k1(Y), sp.log(v) + 1, REVERSE, None),
    Row("k3_straight_through", LIVE_ONE * k3(Y), sp.log(v), REVERSE, None),
    Row("k1_in_reward", _in_the_reward(k1(Y)), w * sp.log(v), REVERSE, REVERSE),
    Row("k1_in_reward_at_old", _in_the_reward(k1(Y_AT_OLD)), -w * sp.log(u), REVERSE, REVERSE - REVERSE_OLD),
    Row(
        "k3_in_reward",
        _in_the_reward(k3(Y)),
        w * (1 / v - 1 + sp.log(v)),
        REVERSE - FORWARD,
        REVERSE - FORWARD,
    ),
    Row("k3_in_reward_at_old", _in_the_reward(k3(Y_AT_OLD)), w * (u - 1 - sp.log(u)), REVERSE - FORWARD, None),
)
CLAIMS = tuple(_claim(row) for row in ROWS)
