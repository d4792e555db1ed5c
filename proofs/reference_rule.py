"""The moving average that replaces the reference: after each step the mean of the KLs seen, older ones less.

With N = Σ_i λ^{n−i}·KL_i and D = Σ_i λ^{n−i} over the n steps so far, the code keeps (1 − λ)·N, and what it has seen
has the weight (1 − λ)·D = 1 − λ^n. One more step makes λN + KL of N and λD + 1 of D, and the quotient is N/D again: the
rule compares it with κ. By induction from N = D = 0.

Source: arXiv 2505.17508, §3.3, App. G; the decay is ours.
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.worlds import Numbers

_decay, _sum, _count, _kl = sp.symbols("lambda_ N D KL", positive=True)
_average, _seen = (1 - _decay) * _sum, (1 - _decay) * _count  # the state, and the weight seen: 1 − λ^n


def _step(average: sp.Expr, seen: sp.Expr) -> Statement:
    return equal(average / seen, (_decay * _sum + _kl) / (_decay * _count + 1), Numbers())


CLAIM = Claim(
    id="reference_rule",
    source="arXiv 2505.17508, §3.3, App. G; the decay ours",
    statements=(
        _step(_decay * _average + (1 - _decay) * _kl, _decay * _seen + (1 - _decay)),
        equal(1 - _decay * (1 - _seen), _decay * _seen + (1 - _decay), Numbers()),
    ),
    near_misses={
        "the new KL in full": _step(_decay * _average + _kl, _decay * _seen + (1 - _decay)),
        "the start-up bias stays": _step(_decay * _average + (1 - _decay) * _kl, sp.Integer(1)),
        "the old average in full": _step(_average + (1 - _decay) * _kl, _decay * _seen + (1 - _decay)),
    },
)
