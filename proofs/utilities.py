"""Two objectives that are not linear in the policy, and the reward that each of them puts in R's place.

Pass@k is the chance that one of k independent samples is right: 1 − (1 − ρ)^k with ρ = E_p[R] and R of 0 or 1. Its
gradient is the policy gradient of the reward k·(1 − ρ)^{k−1}·R, where ρ is held fixed, and the table of divergences
goes on as before. For k = 2 the other samples of a group estimate it without bias. Let p* ∝ r·e^{c·R/β}. The shortfall
of p is β·KL(p‖p*) and a term that is the Bregman divergence of −pass@k if c is the slope k·(1 − ρ*)^{k−1} at p*.
Pass@k is concave in ρ, so that the term is then not negative, and p* is the optimum.

The variance is a minimum over one number ν, since x² = max_ν(2νx − ν²), attained at ν = x. So the penalty on the
variance is linear in the policy once ν is given: the reward is R − λ·(R − ν)², with ν = E_p[R] held fixed.

Source: Kumar et al. 2022, arXiv 2210.00991, for utilities; Islam et al. 2022, arXiv 2212.14405, for the variance.
"""

import sympy as sp

from proofs.certificate import NORMALISED, Claim, Statement, equal
from proofs.language import KL, NOT, SG, E, Grad, OfGroup, Total, at, over, score, variance
from proofs.symbols import G, J, R, best, beta, f, f_prime, i, j, p, q, r, u, v, w
from proofs.worlds import Numbers, Space

draws, c = sp.symbols("k c", positive=True)
BINARY = Space(any_mass=(), old_is_normalised=True, right=True)
PAIRS = Space(old_is_normalised=True, group=G)
RHO, RHO_BEST = E(p, R), E(best, R)
TILTED = r * sp.exp(c * R / beta)
PENALTY = beta * E(r, f(v))


def pass_at(k: sp.Expr, chance: sp.Expr) -> sp.Expr:
    """Return 1 − (1 − chance)^k. Source: definition."""
    return 1 - (1 - chance) ** k


def _on_policy(reward: sp.Expr) -> Statement:
    return equal(Grad(pass_at(draws, RHO)), E(p, reward * score()), BINARY)


def _off_policy(reward: sp.Expr) -> Statement:
    weight = w * reward - beta * u * v * f_prime(v)
    return equal(E(q, weight * score()), Grad(J), BINARY, J=pass_at(draws, RHO) - PENALTY)


def _from_pairs(others: sp.Expr) -> Statement:
    gain = 2 * at(w * R, i) * (1 - others) * at(score(), i)
    return equal(OfGroup(q, over(i, gain) / G), Grad(pass_at(2, RHO)), PAIRS)


def _shortfall(distance: sp.Expr, slope: sp.Expr) -> Statement:
    left = (pass_at(draws, RHO_BEST) - beta * KL(best, r)) - (pass_at(draws, RHO) - beta * KL(p, r))
    bregman = pass_at(draws, RHO_BEST) - pass_at(draws, RHO) - slope * (RHO_BEST - RHO)
    return equal(left, distance + bregman, BINARY, best=TILTED / Total(TILTED))


SLOPE = draws * (1 - RHO) ** (draws - 1)
OTHERS = over(j, at(w * R, j), NOT, i) / (G - 1)
PASS_AT_K = Claim(
    id="pass_at_k",
    source="ours; after Kumar et al. 2022, arXiv 2210.00991",
    statements=(
        _on_policy(SLOPE * R),
        _off_policy(SLOPE * R),
        _from_pairs(OTHERS),
        _shortfall(beta * KL(p, best), c),
    ),
    near_misses={
        "the reward itself": _on_policy(R),
        "k times the reward": _on_policy(draws * R),
        "the chance that all k fail": _on_policy(draws * (1 - RHO) ** draws * R),
        "off-policy: the chance under π_old": _off_policy(draws * (1 - E(q, R)) ** (draws - 1) * R),
        "the own sample among the others": _from_pairs(over(j, at(w * R, j)) / G),
        "the others without their weights": _from_pairs(over(j, at(R, j), NOT, i) / (G - 1)),
        "KL(p*‖p)": _shortfall(beta * KL(best, p), c),
        "p* for another slope": _shortfall(beta * KL(p, best), draws),
    },
)

level, nu, x = sp.symbols("lambda_ nu x", real=True)
PENALISED = RHO - level * variance(p, R)


def _conjugate(value: sp.Expr) -> Statement:
    return equal(2 * nu * x - nu**2, value, Numbers())


def _at_any_nu(rest: sp.Expr) -> Statement:
    return equal(PENALISED, E(p, R - level * (R - nu) ** 2) + rest, NORMALISED)


def _variance_weight(centre: sp.Expr) -> Statement:
    weight = w * (R - level * (R - centre) ** 2) - beta * u * v * f_prime(v)
    return equal(E(q, weight * score()), Grad(J), NORMALISED, J=PENALISED - PENALTY)


def _from_others(mean: sp.Expr) -> Statement:
    gain = (at(w * (R - level * R**2), i) + 2 * level * at(w * R, i) * mean) * at(score(), i)
    return equal(OfGroup(q, over(i, gain) / G), Grad(PENALISED), PAIRS)


VARIANCE_PENALTY = Claim(
    id="variance_penalty",
    source="after Islam et al. 2022, arXiv 2212.14405; Fenchel's identity",
    statements=(
        _conjugate(x**2 - (x - nu) ** 2),
        _at_any_nu(level * (RHO - nu) ** 2),
        equal(Grad(PENALISED), Grad(E(p, R - level * (R - SG(RHO)) ** 2)), NORMALISED),
        _variance_weight(RHO),
        _from_others(OTHERS),
    ),
    near_misses={
        "ν = x + 1": _conjugate(x**2 - (x + 1 - nu) ** 2),
        "any ν gives the variance": _at_any_nu(sp.Integer(0)),
        "off-policy: π_old's mean": _variance_weight(E(q, R)),
        "no centre": _variance_weight(sp.Integer(0)),
        "the own sample among the others": _from_others(over(j, at(w * R, j)) / G),
        "the others without their weights": _from_others(over(j, at(R, j), NOT, i) / (G - 1)),
    },
)

CLAIMS = (PASS_AT_K, VARIANCE_PENALTY)
