"""Token level: every token is a sample of its own, and the objective is that of frozen histories.

Policies, old policy, anchor and rewards are arbitrary at every state of the tree. Left-hand sides are what a trainer
computes, sums over samples of π_old; right-hand sides are definitions.

Source: ours; the paper (arXiv 2505.17508) writes x for a whole sample and applies its formulas token by token.
"""

import sympy as sp

from proofs.certificate import TREES, Claim, Statement, equal
from proofs.language import KL, SG, E, Given, Grad, Next, at, over, score
from proofs.symbols import R, T, beta, f, f_prime, p, q, r, t, u, v, w


def frozen_history(sampler: sp.Expr, histories: sp.Expr) -> sp.Expr:
    """Return Σ_t of E over histories of E_πθ[Q] − β·D, where the sampler continues. Source: ours."""
    gain = Next(t, at(p, t), Given(t, sampler, R))
    return E(histories, over(t, gain - beta * Next(t, at(r, t), f(at(v, t)))))


_TOKEN_WEIGHT = at(w, t) * R - beta * at(u, t) * at(v, t) * f_prime(at(v, t))
SURROGATE = over(t, -at(w, t) * R + beta * at(u, t) * f(at(v, t)))
REINFORCE = over(t, -SG(_TOKEN_WEIGHT) * sp.log(at(p, t)))
ON_POLICY_REWARD = Grad(E(SG(p), over(t, at(p, t) / SG(at(p, t)) * R)))
RETURN = Grad(E(p, R))


def _descends(loss: sp.Expr, histories: sp.Expr = q) -> Statement:
    return equal(Grad(E(q, loss)), -Grad(frozen_history(q, histories)), TREES)


def _whole(left: sp.Expr, kl: sp.Expr) -> Statement:
    return equal(Grad(left), Grad(kl), TREES)


TOKEN_LEVEL = Claim(
    id="token_level",
    source="ours; token level of arXiv 2505.17508, Algorithms 1, 2",
    statements=(
        equal(E(q, over(t, _TOKEN_WEIGHT * score(at(p, t)))), Grad(frozen_history(q, q)), TREES),
        equal(ON_POLICY_REWARD, RETURN, TREES),
        _descends(SURROGATE),
        _descends(REINFORCE),
    ),
    near_misses={
        "reward, off-policy: ∇E[R]": equal(Grad(E(q, over(t, at(w, t) * R))), RETURN, TREES),
        "histories of π_θ": _descends(SURROGATE, p),
        "reverse KL, on-policy: that of whole sequences": _whole(
            E(SG(p), over(t, at(p, t) / SG(at(p, t)) * sp.log(at(v, t)))), KL(p, r)
        ),
        "reverse KL, off-policy: that of whole sequences": _whole(E(q, over(t, at(w, t) * sp.log(at(v, t)))), KL(p, r)),
        "k2, on-policy: that of whole sequences": _whole(E(SG(p), over(t, sp.log(at(v, t)) ** 2 / 2)), KL(p, r)),
        "each token's k1 in its own reward, on-policy: that of whole sequences": _whole(
            E(SG(p), over(t, SG(sp.log(at(v, t))) * sp.log(at(p, t)))), KL(p, r)
        ),
        "reverse KL to π_old: that of whole sequences": _whole(E(q, over(t, at(w, t) * sp.log(at(w, t)))), KL(p, q)),
    },
    printed=2,
)

FKL_SUM, UFKL_SUM = over(t, -sp.log(at(w, t))), over(t, at(w, t) - 1 - sp.log(at(w, t)))
TOKEN_FORWARD_KL = Claim(
    id="token_forward_kl",
    source="ours; token level of arXiv 2505.17508, Props 3.2, E.1",
    statements=(
        _whole(E(q, FKL_SUM), KL(q, p)),
        _whole(E(q, UFKL_SUM), KL(q, p)),
        _whole(E(q, over(t, KL(at(q, t), at(p, t)))), KL(q, p)),
    ),
    near_misses={
        "π_ref ≠ π_old": _whole(E(q, over(t, -at(u, t) * sp.log(at(v, t)))), KL(r, p)),
        "per-sequence means, unequal lengths": _whole(E(q, FKL_SUM / T), KL(q, p)),
        "URKL for UFKL": _whole(E(q, over(t, at(w, t) * sp.log(at(w, t)) - at(w, t))), KL(p, q)),
    },
)

CLAIMS = (TOKEN_LEVEL, TOKEN_FORWARD_KL)
