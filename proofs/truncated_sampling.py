"""Top-p and top-k: a sampler that draws from a kept set S alone shows the gradient of what was kept, and no more.

K is 1 on the kept set. The sampler's measure is K·s, where s is what it gives to a kept outcome. What s is elsewhere
does not matter. Top-p of one decision is s = q/q(S). Where every token has a kept set of its own, an outcome is a whole
response. It is kept if all its tokens are, and s is the product of q/q(S) over its tokens. At token level every history
is one decision, with its own S and with the sampler's continuation in the reward.

A baseline b is not free, since Σ_S ∇p = ∇p(S), which is not 0. So rows that differ by a baseline differ here. Two ways
make baselines free again, with S held fixed. One renormalises the policy over S, as the sampler is. The other is the
leave-one-out baseline, for one decision, on-policy, without a weight. Both give the gradient of E[R | S].

Source: ours; top-p of Holtzman et al. 2020, top-k of Fan et al. 2018.
"""

import sympy as sp

from proofs.baseline_shift import PLAIN_SLOPE, SHIFTED_SLOPE
from proofs.certificate import DIFFERENT, GROUPS, NORMALISED, Claim, Statement, equal, related
from proofs.group_advantages import GROUP_MEAN_ADVANTAGE, LEAVE_ONE_OUT_ADVANTAGE, group_gradient
from proofs.language import SG, E, Grad, OfGroup, at, score
from proofs.symbols import A, G, K, R, b, beta, f, i, loss, p, q, r, s, v, w
from proofs.worlds import Space

SAMPLER = Space(any_mass=(r, s))
_kappa = sp.Symbol("kappa", real=True)
_q_kept, _p_kept = sp.Symbol("mass_q", positive=True), sp.Symbol("mass_p", positive=True)
_p_s, _q_s = sp.symbols("p_S q_S", positive=True)
KEPT, KEPT_REWARD = E(p, K), E(p, K * R)
TO_SAMPLER = p / s
CONDITIONAL = Grad(KEPT_REWARD / _p_kept)  # of E[R | S]


def _weight(slope: sp.Expr) -> sp.Expr:
    return TO_SAMPLER * A - beta * (r / s) * slope


def _baseline(value: sp.Expr) -> Statement:
    return equal(E(s, K * TO_SAMPLER * b * score()), value, SAMPLER)


def _rows(value: sp.Expr) -> Statement:
    return equal(E(s, K * (_weight(SHIFTED_SLOPE) - _weight(PLAIN_SLOPE)) * score()), value, SAMPLER)


def _whole(mark: sp.Expr) -> Statement:
    objective = E(p, mark * A) - beta * E(r, mark * f(v))
    return equal(E(s, K * _weight(PLAIN_SLOPE) * score()), Grad(objective), SAMPLER)


POLICY = {"mass_p": KEPT, "p_S": p * K / _p_kept}
OLD = {"mass_q": E(q, K), "q_S": q * K / _q_kept}


def _one_decision(ratio: sp.Expr, value: sp.Expr) -> Statement:
    return equal(E(_q_s, ratio * b * score()), value, NORMALISED, **OLD)


def _corrected(value: sp.Expr) -> Statement:
    return equal(E(s, K * SG(q / s) * loss), value, SAMPLER)


def _renormalised(policy: sp.Expr) -> Statement:
    left = E(_q_s, w * _q_kept / _p_kept * (R - b) * score(policy))
    return equal(left, CONDITIONAL, NORMALISED, mass_p=KEPT, **OLD)


def _group(advantage: sp.Expr, value: sp.Expr) -> Statement:
    return equal(OfGroup(_p_s, group_gradient(advantage, sp.Integer(1))), value, GROUPS, **POLICY)


CLAIM = Claim(
    id="truncated_sampling",
    source="ours; on top-p and top-k sampling",
    statements=(
        _baseline(b * Grad(KEPT)),
        related(Grad(KEPT), DIFFERENT, 0),
        _rows(-_kappa * beta * Grad(KEPT)),
        _whole(K),
        _corrected(E(q, loss) - E(q, (1 - K) * loss)),
        _renormalised(p / _p_kept),
        _one_decision(w * _q_kept, b * Grad(KEPT)),
        _one_decision(w, b * Grad(KEPT) / _q_kept),
        _group(LEAVE_ONE_OUT_ADVANTAGE, CONDITIONAL),
        _group(GROUP_MEAN_ADVANTAGE, (G - 1) / G * CONDITIONAL),
    ),
    near_misses={
        "a baseline is free": _baseline(sp.Integer(0)),
        "UFKL and FKL agree in expectation": _rows(sp.Integer(0)),
        "the gradient of the whole objective": _whole(sp.Integer(1)),
        "SG(q/s) restores the expectation": _corrected(E(q, loss)),
        "p/q needs no division": _one_decision(w, b * Grad(KEPT)),
        "p/q is to be multiplied by q(S) twice": _one_decision(w * _q_kept**2, b * Grad(KEPT)),
        "the sampler renormalised, the policy not": _renormalised(p),
        "no baseline: the gradient of E[R | S]": _group(at(R, i), CONDITIONAL),
        "leave-one-out: the gradient of Σ_S p·R": _group(LEAVE_ONE_OUT_ADVANTAGE, Grad(KEPT_REWARD)),
    },
    printed=6,
)
