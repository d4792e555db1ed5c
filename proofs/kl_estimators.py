"""Schulman's estimators k1, k2, k3 put into a loss or a reward: whose gradient each placement descends.

y = π_ref/π_θ throughout. On-policy samples have density SG(π_θ). A penalty k in the reward adds −k to the advantage,
hence −SG(−w·k)·log π_θ to the loss; libraries often evaluate it once, at π_old.

Source: the ground-truth table of the errata (ours); the estimators are Schulman's, "Approximating KL divergence", 2020.
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.definitions import k1, k2, k3, kl
from proofs.expectations import Equation, expectation_old, finite, gradient, stop_gradient
from proofs.reinforce import reinforce_loss
from proofs.symbols import p, q, r, u, v, w

ON_POLICY = stop_gradient(p)
LIVE_ONE = p / ON_POLICY  # exp(log π_θ − SG(log π_θ)): its value is 1, its gradient ∇log π_θ
Y, Y_AT_OLD = 1 / v, u  # π_ref/π_θ and π_ref/π_old


def _in_the_reward(k: sp.Expr) -> sp.Expr:
    return expectation_old(reinforce_loss(-w * k))


def _rows(rows: dict[str, tuple[sp.Expr, sp.Expr]]) -> dict[str, Equation]:
    return {name: (gradient(finite, loss), gradient(finite, target)) for name, (loss, target) in rows.items()}


CLAIM = Claim(
    id="kl_estimators",
    statement="k1, k2, k3 in the loss or the reward, on- and off-policy: the KL whose gradient each descends, or none",
    source="ours; estimators of Schulman 2020",
    identities=lambda: _rows(
        {
            "k1 on-policy: 0": (ON_POLICY * k1(Y), sp.S.Zero),
            "k1 off-policy: −∇KL(π_old‖π_θ)": (expectation_old(k1(Y)), -kl(q, p)),
            "k2 on-policy: reverse KL": (ON_POLICY * k2(Y), kl(p, r)),
            "SG(w)·k2: reverse KL": (expectation_old(stop_gradient(w) * k2(Y)), kl(p, r)),
            "w·k1, live: reverse KL": (expectation_old(w * k1(Y)), kl(p, r)),
            "k1·exp(log π_θ − SG) on-policy: reverse KL": (ON_POLICY * LIVE_ONE * k1(Y), kl(p, r)),
            "k3·exp(log π_θ − SG) on-policy: reverse KL": (ON_POLICY * LIVE_ONE * k3(Y), kl(p, r)),
            "k1 in the reward at π_θ: reverse KL": (_in_the_reward(k1(Y)), kl(p, r)),
            "k1 in the reward at π_old": (_in_the_reward(k1(Y_AT_OLD)), kl(p, r) - kl(p, q)),
            "k3 in the reward at π_θ": (_in_the_reward(k3(Y)), kl(p, r) - kl(r, p)),
        }
    ),
    near_misses=lambda: _rows(
        {
            "k1 on-policy: reverse KL": (ON_POLICY * k1(Y), kl(p, r)),
            "k1 off-policy: reverse KL": (expectation_old(k1(Y)), kl(p, r)),
            "k2 off-policy: reverse KL": (expectation_old(k2(Y)), kl(p, r)),
            "w·k2, live: reverse KL": (expectation_old(w * k2(Y)), kl(p, r)),
            "k3·exp(log π_θ − SG) off-policy: reverse KL": (expectation_old(LIVE_ONE * k3(Y)), kl(p, r)),
            "k1 in the reward at π_old: reverse KL": (_in_the_reward(k1(Y_AT_OLD)), kl(p, r)),
            "k3 in the reward at π_θ: reverse KL": (_in_the_reward(k3(Y)), kl(p, r)),
            "k3 in the reward at π_old: k3 at π_θ": (_in_the_reward(k3(Y_AT_OLD)), kl(p, r) - kl(r, p)),
        }
    ),
)
