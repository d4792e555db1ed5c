"""Schulman's estimators k1, k2, k3 put into a loss or a reward: whose gradient each placement descends.

y = π_ref/π_θ throughout. A penalty k in the reward adds −k to the advantage, hence −SG(−w·k)·log π_θ to the loss;
libraries often evaluate it once, at π_old. A row of the ground-truth table is one claim: the exact gradient of the term
on samples of any π_old; the divergence whose gradient that is on-policy, and off-policy; every other candidate refuted.
The three placements of GRPO's k3 are in `grpo_mismatch`.

Source: the ground-truth table of the errata (ours); the estimators are Schulman's, "Approximating KL divergence", 2020.
"""

from dataclasses import dataclass

import sympy as sp

from proofs.certificate import Claim
from proofs.definitions import k1, k2, k3, kl
from proofs.expectations import Equation, expectation_old, finite, gradient, on_policy, pointwise, stop_gradient
from proofs.reinforce import reinforce_loss
from proofs.symbols import p, q, r, score, u, v, w

LIVE_ONE = p / stop_gradient(p)  # exp(log π_θ − SG(log π_θ)): its value is 1, its gradient ∇log π_θ
Y, Y_AT_OLD = 1 / v, u  # π_ref/π_θ and π_ref/π_old

NOTHING = sp.S.Zero
REVERSE, FORWARD = kl(p, r), kl(r, p)
REVERSE_OLD, FORWARD_OLD = kl(p, q), kl(q, p)
CANDIDATES = {
    "0": NOTHING,
    "∇KL(π_θ‖π_ref)": REVERSE,
    "∇KL(π_ref‖π_θ)": FORWARD,
    "∇KL(π_θ‖π_old)": REVERSE_OLD,
    "∇KL(π_old‖π_θ)": FORWARD_OLD,
}


@dataclass(frozen=True)
class Row:
    """One placement: the term of the loss, its gradient's coefficient of ∇log π_θ, and what it descends, or None.

    Source: the ground-truth table of the errata (ours).
    """

    id: str
    statement: str
    term: sp.Expr
    coefficient: sp.Expr
    on_policy: sp.Expr | None
    off_policy: sp.Expr | None


def _in_the_reward(k: sp.Expr) -> sp.Expr:
    return reinforce_loss(-w * k)


def _regimes(row: Row) -> dict[str, tuple[sp.Expr, sp.Expr | None]]:
    term = expectation_old(row.term)
    return {"on-policy": (on_policy(term), row.on_policy), "off-policy": (term, row.off_policy)}


def _identities(row: Row) -> dict[str, Equation]:
    term = expectation_old(row.term)
    equations = {"E_old[c ∇log π_θ]": (gradient(pointwise, term), pointwise(expectation_old(row.coefficient * score)))}
    for regime, (loss, target) in _regimes(row).items():
        if target is not None:
            equations[regime] = (gradient(finite, loss), gradient(finite, target))
    return equations


def _near_misses(row: Row) -> dict[str, Equation]:
    return {
        f"{regime}: {name}": (gradient(finite, loss), gradient(finite, candidate))
        for regime, (loss, target) in _regimes(row).items()
        for name, candidate in CANDIDATES.items()
        # On-policy π_old is a copy of π_θ, from which no KL has a gradient: the candidate 0 again.
        if candidate != target and (regime == "off-policy" or candidate not in (REVERSE_OLD, FORWARD_OLD))
    }


def _claim(row: Row) -> Claim:
    return Claim(
        id=row.id,
        statement=row.statement,
        source="ours; estimators of Schulman 2020; errata, ground-truth table",
        identities=lambda: _identities(row),
        near_misses=lambda: _near_misses(row),
    )


ROWS = (
    Row(
        "k1_in_loss",
        "∇ of k1 = log v: 0 on samples of π_θ, −∇KL(π_old‖π_θ) on those of π_old: away from the sampler",
        k1(Y),
        sp.S.One,
        NOTHING,
        -FORWARD_OLD,
    ),
    Row(
        "k2_in_loss",
        "∇ of k2 = ½(log v)²: ∇KL(π_θ‖π_ref) on samples of π_θ, of no KL on those of π_old",
        k2(Y),
        sp.log(v),
        REVERSE,
        None,
    ),
    Row(
        "k2_detached_weight",
        "∇E_old[SG(w)·k2] = ∇KL(π_θ‖π_ref), on- and off-policy",
        stop_gradient(w) * k2(Y),
        w * sp.log(v),
        REVERSE,
        REVERSE,
    ),
    Row(
        "k2_live_weight",
        "∇E_old[w·k2], w live: of no KL, on- or off-policy",
        w * k2(Y),
        w * (k2(Y) + sp.log(v)),
        None,
        None,
    ),
    Row(
        "k1_live_weight",
        "∇E_old[w·k1], w live: ∇KL(π_θ‖π_ref), on- and off-policy",
        w * k1(Y),
        w * (sp.log(v) + 1),
        REVERSE,
        REVERSE,
    ),
    Row(
        "k1_straight_through",
        "∇ of k1·exp(log π_θ − SG(log π_θ)): ∇KL(π_θ‖π_ref) on samples of π_θ, of no KL on those of π_old",
        LIVE_ONE * k1(Y),
        sp.log(v) + 1,
        REVERSE,
        None,
    ),
    Row(
        "k3_straight_through",
        "∇ of k3·exp(log π_θ − SG(log π_θ)): ∇KL(π_θ‖π_ref) on samples of π_θ, of no KL on those of π_old",
        LIVE_ONE * k3(Y),
        sp.log(v),
        REVERSE,
        None,
    ),
    Row(
        "k1_in_reward",
        "k1 in the reward, evaluated at π_θ: ∇KL(π_θ‖π_ref), on- and off-policy",
        _in_the_reward(k1(Y)),
        w * sp.log(v),
        REVERSE,
        REVERSE,
    ),
    Row(
        "k1_in_reward_at_old",
        "k1 in the reward, frozen at π_old: ∇KL(π_θ‖π_ref) on-policy, ∇[KL(π_θ‖π_ref) − KL(π_θ‖π_old)] off-policy",
        _in_the_reward(k1(Y_AT_OLD)),
        -w * sp.log(u),
        REVERSE,
        REVERSE - REVERSE_OLD,
    ),
    Row(
        "k3_in_reward",
        "k3 in the reward, evaluated at π_θ: ∇[KL(π_θ‖π_ref) − KL(π_ref‖π_θ)], on- and off-policy",
        _in_the_reward(k3(Y)),
        w * (1 / v - 1 + sp.log(v)),
        REVERSE - FORWARD,
        REVERSE - FORWARD,
    ),
    Row(
        "k3_in_reward_at_old",
        "k3 in the reward, frozen at π_old: ∇[KL(π_θ‖π_ref) − KL(π_ref‖π_θ)] on-policy, of no KL off-policy",
        _in_the_reward(k3(Y_AT_OLD)),
        w * (u - 1 - sp.log(u)),
        REVERSE - FORWARD,
        None,
    ),
)
CLAIMS = tuple(_claim(row) for row in ROWS)
