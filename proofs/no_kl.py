"""The "none" cells of the ground-truth table: gradients of no combination of KLs, whatever the coefficients.

A gradient says how a policy moves in each direction. At one policy of n + 2 outcomes the term and the n candidates are
taken in n + 1 directions: where that determinant is not 0, no coefficients will do, even such as depend on the
policies. A term that is a combination has determinant 0, which the near misses show.

Source: the ground-truth table of the errata (ours).
"""

from proofs.certificate import Claim
from proofs.definitions import k3
from proofs.kl_estimators import ALL_KLS, ANCHOR_KLS, ROWS, Y, no_combination, off_policy, on_policy

TERMS = {row.id: row.term for row in ROWS} | {"k3_in_loss": k3(Y)}
OFF = (
    "k2_in_loss",
    "k2_live_weight",
    "k3_in_loss",
    "k1_straight_through",
    "k3_straight_through",
    "k3_in_reward_at_old",
)
CLAIM = Claim(
    id="no_kl",
    source="ours; errata, ground-truth table",
    statements=(
        *(no_combination(off_policy(TERMS[name]), ALL_KLS) for name in OFF),
        no_combination(on_policy(TERMS["k2_live_weight"]), ANCHOR_KLS),
    ),
    near_misses={
        f"{name}, on-policy": no_combination(on_policy(TERMS[name]), ANCHOR_KLS)
        for name in ("k2_in_loss", "k3_in_loss", "k3_in_reward_at_old")
    },
)
