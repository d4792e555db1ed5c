"""Samples drawn by a fourth policy: what SG(π_old/π_sampler) on the whole loss makes exact again.

An inference engine's probabilities differ a little from π_old, as the trainer computes them. Let x be the whole
response, or as much of it as the loss ℓ depends on, and let the sampler give a positive probability to whatever π_old
does: then the expectation and the gradient are π_old's, for any ℓ. The ratio is a constant in θ, and belongs to the
reward term and to the penalty alike. Token by token it is another matter. A token's loss depends on the histories and
the continuations too, which stay the sampler's: unclipped, the result is the sampler's frozen-history objective.

Source: ours; Yao et al. 2025 (truncated importance sampling for mismatched engines), here without truncation.
"""

import sympy as sp

from proofs.certificate import DIFFERENT, TREES, Claim, Statement, equal, related
from proofs.language import SG, E, Given, Grad, Next, at, over
from proofs.one_idea import OBJECTIVE, WEIGHT, reinforce_loss
from proofs.symbols import A, J, R, beta, f, loss, p, q, r, s, t, u, v, w

CORRECTION = SG(q / s)
REWARD, PENALTY = -w * A, beta * u * f(v)
TOKEN = -at(w, t) * R + beta * at(u, t) * f(at(v, t))
BY_TOKEN = Grad(E(s, over(t, SG(at(q, t) / at(s, t)) * TOKEN)))


def _frozen(sampler: sp.Expr) -> sp.Expr:
    gain = Next(t, at(p, t), Given(t, sampler, R))
    return E(sampler, over(t, gain - beta * Next(t, at(r, t), f(at(v, t)))))


def _sampled(loss_: sp.Expr) -> Statement:
    return equal(Grad(E(s, loss_)), -Grad(J), J=OBJECTIVE)


CLAIM = Claim(
    id="sampler_correction",
    source="ours; after Yao et al. 2025",
    statements=(
        equal(E(s, CORRECTION * loss), E(q, loss)),
        equal(Grad(E(s, CORRECTION * loss)), Grad(E(q, loss))),
        equal(BY_TOKEN, -Grad(_frozen(s)), TREES),
        related(BY_TOKEN, DIFFERENT, -Grad(_frozen(q)), TREES),
        _sampled(CORRECTION * (REWARD + PENALTY)),
        _sampled(CORRECTION * reinforce_loss(WEIGHT)),
    ),
    near_misses={
        "no correction": _sampled(REWARD + PENALTY),
        "the reward term only": _sampled(CORRECTION * REWARD + PENALTY),
        "the penalty only": _sampled(REWARD + CORRECTION * PENALTY),
        "the inverse ratio": _sampled((REWARD + PENALTY) / CORRECTION),
        "π_θ/π_sampler for the correction": _sampled(w * q / s * (REWARD + PENALTY)),
        "token by token: the expectation over π_old": equal(BY_TOKEN, Grad(E(q, over(t, TOKEN))), TREES),
    },
    printed=4,
)
