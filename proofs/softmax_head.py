"""A softmax over a linear head: the gradient of one token's log-probability says what the entropy is.

Logits z = W·h/τ are linear in h, so ⟨h, ∂g/∂h⟩ = ⟨z, ∂g/∂z⟩ for any g; with ∂ log π_y/∂z = onehot(y) − π that is
z_y − Σ π z, the entropy less the surprise −log π_y. Each equation here holds for every token y.

Source: ours; Euler's theorem on homogeneous functions, and the definition of a softmax.
"""

from collections.abc import Sequence
from itertools import product

import sympy as sp

from proofs.certificate import Claim
from proofs.expectations import Equation

TOKENS, WIDTH = range(3), range(2)
HEAD = sp.Matrix(3, 2, lambda y, k: sp.Symbol(f"W{y}{k}", real=True))
HIDDEN, BIAS = (sp.Matrix(sp.symbols(names, real=True)) for names in ("h1:3", "b1:4"))
TEMPERATURE, CAP = sp.symbols("tau c", positive=True)
LOGITS = sp.Matrix(sp.symbols("z1:4", real=True))
LINEAR = HEAD * HIDDEN / TEMPERATURE


def _tanh(x: sp.Expr) -> sp.Expr:
    return 1 - 2 / (sp.exp(2 * x) + 1)


def _softmax(logits: sp.Matrix) -> tuple[sp.Matrix, sp.Matrix]:
    """Return π and log π."""
    powers = logits.applyfunc(sp.exp)
    return powers / sum(powers), logits - sp.ones(3, 1) * sp.log(sum(powers))


def _score(token: int, logits: sp.Matrix, inputs: Sequence[sp.Symbol]) -> sp.Matrix:
    return sp.Matrix([_softmax(logits)[1][token].diff(x) for x in inputs])


def _entropy(logits: sp.Matrix) -> sp.Expr:
    chances, logs = _softmax(logits)
    return -(chances.T * logs)[0]


def _read_off(token: int, logits: sp.Matrix, factor: sp.Expr = sp.S.One) -> sp.Expr:
    """Return −log π_y + ⟨h, ∂ log π_y/∂h⟩, the last term times a factor that should be 1."""
    return factor * (HIDDEN.T * _score(token, logits, HIDDEN))[0] - _softmax(logits)[1][token]


def _one_hot_less_pi(token: int, logits: sp.Matrix) -> sp.Matrix:
    return sp.Matrix([int(other == token) for other in TOKENS]) - _softmax(logits)[0]


def _identities() -> dict[str, Equation]:
    equations = {}
    for y in TOKENS:
        gradient = _one_hot_less_pi(y, LINEAR) / TEMPERATURE
        of_h, of_head = HEAD.T * gradient, gradient * HIDDEN.T
        equations[f"entropy from token {y}"] = (_entropy(LINEAR), _read_off(y, LINEAR))
        for j in TOKENS:
            equations[f"∂log π_{y}/∂z_{j}"] = (_score(y, LOGITS, LOGITS)[j], _one_hot_less_pi(y, LOGITS)[j])
        for k in WIDTH:
            equations[f"∂log π_{y}/∂h_{k}"] = (_score(y, LINEAR, HIDDEN)[k], of_h[k])
        for j, k in product(TOKENS, WIDTH):
            equations[f"∂log π_{y}/∂W_{j}{k}"] = (_score(y, LINEAR, [HEAD[j, k]])[0], of_head[j, k])
    return equations


def _miss(logits: sp.Matrix) -> Equation:
    return _entropy(logits), _read_off(0, logits)


CLAIM = Claim(
    id="softmax_head",
    statement="π = softmax(W·h/τ): ∂log π_y/∂z = onehot(y) − π and H(π) = −log π_y + ⟨h, ∂log π_y/∂h⟩ for every y",
    source="ours; Euler on homogeneous functions",
    identities=_identities,
    near_misses=lambda: {
        "a bias in the head": _miss(LINEAR + BIAS),
        "a soft cap on the logits": _miss((LINEAR / CAP).applyfunc(_tanh) * CAP),
        "the other sign": (_entropy(LINEAR), _read_off(0, LINEAR, sp.S.NegativeOne)),
        "without 1/τ": (_entropy(LINEAR), _read_off(0, LINEAR, TEMPERATURE)),
        "the surprise alone": (_entropy(LINEAR), _read_off(0, LINEAR, sp.S.Zero)),
        "∂log π_0/∂z_0 without π": (_score(0, LOGITS, LOGITS)[0], sp.S.One),
        "∂log π_0/∂h without 1/τ": (_score(0, LINEAR, HIDDEN)[0], (HEAD.T * _one_hot_less_pi(0, LINEAR))[0]),
    },
)
