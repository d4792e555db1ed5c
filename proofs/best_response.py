"""A zero-sum game in which each player pays β times a reverse KL: each best response is the reverse KL's optimum.

One player draws x from p and earns M(x, y); the other draws y from s and pays it. Their anchors are r and q. Given s,
the mean payoff V(x) = E_{y∼s}[M(x, y)] is a reward like any other: by `optimum` the best response is p* ∝ r·e^{V/β}.
Given p, the other player's is s* ∝ q·e^{−U/β} with U(y) = E_{x∼p}[M(x, y)]. The gap is the sum of what each could gain
by its best response, and it is β·KL(p‖p*) + β·KL(s‖s*). So it is zero if and only if each plays its best response,
which is the equilibrium.

Source: ours; the game of arXiv 2510.13060.
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.language import KL, E, Grad, Total, Versus, score
from proofs.symbols import best, beta, p, payoff, q, r, s, transposed, v
from proofs.worlds import Listed

s_best = sp.Symbol("s_best", positive=True)
GAME = Listed(any_mass=(), old_is_normalised=True)
V, U = Versus(s, payoff), Versus(p, transposed)
ANSWER, REPLY = r * sp.exp(V / beta), q * sp.exp(-U / beta)


def _shortfall(distance: sp.Expr, answer: sp.Expr = ANSWER) -> Statement:
    left = (E(best, V) - beta * KL(best, r)) - (E(p, V) - beta * KL(p, r))
    return equal(left, distance, GAME, best=answer / Total(answer))


def _gap(distance: sp.Expr, reply: sp.Expr = REPLY) -> Statement:
    mine = E(best, V) - beta * KL(best, r) + beta * KL(s, q)
    theirs = E(s_best, U) - beta * KL(p, r) + beta * KL(s_best, q)
    return equal(mine - theirs, distance, GAME, best=ANSWER / Total(ANSWER), s_best=reply / Total(reply))


GAP = beta * KL(p, best) + beta * KL(s, s_best)
CLAIM = Claim(
    id="best_response",
    source="ours; the game of arXiv 2510.13060",
    statements=(
        _shortfall(beta * KL(p, best)),
        _gap(GAP),
        equal(E(p, V), E(s, U), GAME),
        equal(Grad(E(p, V) - beta * KL(p, r)), E(p, (V - beta * sp.log(v)) * score()), GAME),
    ),
    near_misses={
        "KL(p*‖p)": _shortfall(beta * KL(best, p)),
        "no β": _shortfall(KL(p, best)),
        "tilted by half the payoff": _shortfall(beta * KL(p, best), r * sp.exp(V / (2 * beta))),
        "the gap of one player": _gap(beta * KL(p, best)),
        "the opponent gains too": _gap(GAP, q * sp.exp(U / beta)),
    },
    printed=2,
)
