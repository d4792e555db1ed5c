"""Groups of unequal size, and samples dropped from their group by a rule that sees one sample.

Sizes that do not depend on the samples: the sum over a prompt's group of G is (G − 1)·∇E[R] under `group_mean`, so
divided by the number N of all samples a prompt counts (G − 1)/N. Under `leave_one_out` it counts G/N.

A rule K keeps a sample or drops it, by the sample alone. Given which are kept, these are independent samples of q_K =
q·K/q(K). Let m be how many; a statement about q_K^G is about m = G of them. If the mean is taken over the kept, each m
gives (m − 1)₊ times one and the same vector, hence E[(m − 1)₊] times it, where E[(m − 1)₊] = E[m] − 1 + P(m = 0). That
is listed for G = 2, 3 too. On-policy this vector is ∇E[R | K], K held fixed, since the advantages of a group add up to
zero: nothing is learnt about being kept. If the mean is taken over all G, the dropped included, c = E[R] is subtracted
from a kept sample's reward: the gradient of E[K·(R − c)], c held fixed.

Source: ours; overlong filtering of Yu et al. 2025 (DAPO).
"""

import sympy as sp

from proofs.certificate import GROUPS, Claim, Statement, equal
from proofs.group_advantages import EXACT, GROUP_MEAN_ADVANTAGE, LEAVE_ONE_OUT_ADVANTAGE
from proofs.language import E, Grad, OfGroup, Ratio, at, over, score
from proofs.symbols import G, K, R, i, j, p, q, w
from proofs.worlds import Listed

_all, _p_kept, _q_kept = sp.symbols("N mass_K_p mass_K_q", positive=True)
_p_k, _q_k = sp.symbols("p_K q_K", positive=True)
OLD = {"mass_K_q": E(q, K), "q_K": q * K / _q_kept}
POLICY = {"mass_K_p": E(p, K), "p_K": p * K / _p_kept}
KEPT = over(j, at(K, j))
MEAN_OF_KEPT = Ratio(over(j, at(K, j) * at(R, j)), KEPT)
CONDITIONAL = Grad(E(p, K * R) / _p_kept)


def _sum(advantage: sp.Expr, weight: sp.Expr = at(w, i)) -> sp.Expr:  # noqa: B008
    return over(i, advantage * weight * score(at(p, i)))


def _counts(advantage: sp.Expr, share: sp.Expr) -> Statement:
    return equal(OfGroup(q, _sum(advantage)) / _all, share * EXACT, GROUPS)


def _kept(value: sp.Expr) -> Statement:
    return equal(OfGroup(_q_k, _sum(GROUP_MEAN_ADVANTAGE)), value, GROUPS, **OLD)


def _kept_on_policy(value: sp.Expr) -> Statement:
    return equal(OfGroup(_p_k, _sum(GROUP_MEAN_ADVANTAGE, sp.Integer(1))), value, GROUPS, **POLICY)


def _mean_of_all(value: sp.Expr) -> Statement:
    return equal(OfGroup(q, _sum(at(K, i) * GROUP_MEAN_ADVANTAGE)), value, GROUPS)


def _listed(size: int, value: sp.Expr, kept: tuple[int, ...] = (1, 0, 1)) -> Statement:
    left = OfGroup(p, _sum(at(K, i) * (at(R, i) - MEAN_OF_KEPT), sp.Integer(1)))
    return equal(left, value, Listed(group=size, old_is_normalised=True, at={K: kept}), mass_K_p=E(p, K))


EXCESS = G * _p_kept - 1 + (1 - _p_kept) ** G  # E[(m − 1)₊] = E[m] − 1 + P(m = 0)
BASELINE = E(q, K * R) / _q_kept
CLAIM = Claim(
    id="uneven_groups",
    source="ours; overlong filtering of Yu et al. 2025",
    statements=(
        _counts(GROUP_MEAN_ADVANTAGE, (G - 1) / _all),
        _counts(LEAVE_ONE_OUT_ADVANTAGE, G / _all),
        _kept_on_policy((G - 1) * CONDITIONAL),
        _mean_of_all((G - 1) * (Grad(E(p, K * R)) - E(q, R) * Grad(E(p, K)))),
        _kept((G - 1) / _q_kept * (Grad(E(p, K * R)) - BASELINE * Grad(E(p, K)))),
        *(_listed(n, EXCESS * CONDITIONAL, kept) for n in (2, 3) for kept in ((1, 0, 1), (0, 1, 0))),
    ),
    near_misses={
        "a prompt counts G/N": _counts(GROUP_MEAN_ADVANTAGE, G / _all),
        "all prompts count alike": _counts(GROUP_MEAN_ADVANTAGE, 1 / _all),
        "the kept: the gradient of E[R]": _kept_on_policy((G - 1) * EXACT),
        "the kept: the gradient of E[K·R]": _kept_on_policy((G - 1) * Grad(E(p, K * R))),
        "off-policy too: the gradient of E[R | K]": _kept((G - 1) * Grad(E(p, K * R) / E(p, K))),
        "the mean of all: the gradient of E[K·R]": _mean_of_all((G - 1) * Grad(E(p, K * R))),
        "E[m] − 1 for E[(m − 1)₊]": _listed(2, (G * _p_kept - 1) * CONDITIONAL),
    },
    printed=4,
)
