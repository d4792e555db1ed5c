"""An entropy bonus is a reverse KL to the uniform policy, and over responses of uneven length a bonus on length too.

For one decision among n outcomes H(p) = log n − KL(p‖1/n), and log n is a constant. A response is a sequence of
decisions. Let n_t be the number of tokens among which token t is chosen. Then the entropy of responses is E[Σ log n_t]
less the reverse KL to the policy that draws every token uniformly. With one vocabulary of V tokens E[Σ log n_t] is
log V·E[T]: the bonus pays for tokens. Where all lengths are equal it is a constant again, and so it is at token level,
where histories are frozen at π_old.

Source: ours; Ziebart 2010 (maximum entropy).
"""

import sympy as sp

from proofs.certificate import NORMALISED, TREES, Claim, Statement, equal
from proofs.language import KL, E, Grad, Next, Total, at, over
from proofs.symbols import R, T, beta, p, q, t
from proofs.worlds import Tree

_n, _size = sp.symbols("n n_t", positive=True)
COUNT = {"n": Total(sp.Integer(1))}
CHOICES = {"n_t": Next(t, at(p, t), 1 / at(p, t))}  # Σ 1 over the tokens that may come next
ENTROPY = -E(p, sp.log(p))
# One vocabulary of two tokens, of which the first ends a response.
BINARY = Tree(leaves=((0,), (1, 0), (1, 1, 0), (1, 1, 1)), old_is_normalised=True)


def _bonus(penalised: sp.Expr) -> Statement:
    return equal(E(p, R) + beta * ENTROPY, penalised, NORMALISED, **COUNT)


def _gradient(divergence: sp.Expr) -> Statement:
    return equal(Grad(E(p, R) + beta * ENTROPY), Grad(E(p, R) - beta * divergence), NORMALISED, **COUNT)


def _of_responses(length: sp.Expr) -> Statement:
    tokens = E(p, over(t, KL(at(p, t), 1 / _size)))
    return equal(ENTROPY, length - tokens, TREES, **CHOICES)


def _frozen(divergence: sp.Expr) -> Statement:
    entropies = E(q, over(t, Next(t, at(p, t), -sp.log(at(p, t)))))
    return equal(Grad(entropies), -Grad(E(q, over(t, divergence))), TREES, **CHOICES)


def _of_one_vocabulary(value: sp.Expr) -> Statement:
    return equal(ENTROPY + E(p, over(t, KL(at(p, t), sp.Rational(1, 2)))), value, BINARY)


CLAIM = Claim(
    id="entropy_bonus",
    source="ours; after Ziebart 2010",
    statements=(
        _bonus(E(p, R) - beta * KL(p, 1 / _n) + beta * sp.log(_n)),
        _of_responses(E(p, over(t, sp.log(_size)))),
        _of_one_vocabulary(sp.log(2) * E(p, T)),
        _gradient(KL(p, 1 / _n)),
        _frozen(KL(at(p, t), 1 / _size)),
        equal(Total(1 / _n), 1, NORMALISED, **COUNT),
        equal(E(p, over(t, Next(t, 1 / _size, sp.Integer(1)))), E(p, T), TREES, **CHOICES),
    ),
    near_misses={
        "the forward KL": _gradient(KL(1 / _n, p)),
        "KL up for KL down": _gradient(-KL(p, 1 / _n)),
        "without log n": _bonus(E(p, R) - beta * KL(p, 1 / _n)),
        "log n with the other sign": _bonus(E(p, R) - beta * KL(p, 1 / _n) - beta * sp.log(_n)),
        "responses: no bonus on length": _of_responses(sp.Integer(0)),
        "token by token: the forward KL": _frozen(KL(1 / _size, at(p, t))),
        "responses: log V for log V·E[T]": _of_one_vocabulary(sp.log(2)),
    },
    printed=3,
)
