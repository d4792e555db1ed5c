"""Merged policies are optima at another β: interpolation, moving-average anchors, averaged logits, on a softmax table.

Merging takes a weighted mean of logits, so it takes weighted geometric means of policies. Let p* be the reverse KL's
optimum at β from π_ref. A mean with weight μ on p* and 1 − μ on π_ref is the optimum at β/μ. If after each exact round
the anchor moves by μ towards the optimum, k rounds leave it at π_ref·e^{kμR/β}: by induction, since one more round adds
μR/β. The mean of the optima of two rewards is the optimum of the mean reward. Any number of models follow, a mean of
many being a mean of two, over and over. Optima at several β have the mean 1/β.

Source: ours; after arXiv 2406.16768 (WARP), linear merging alone; logits are a table's, not a network's weights.
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.language import Total
from proofs.optimum import BOLTZMANN
from proofs.symbols import R, best, beta, h, r

mu, _k = sp.symbols("mu k", positive=True)
_anchor, _now, _of_h, _at_2, _strength = sp.symbols("a_k p_k p_h p_2 beta_2", positive=True)


def _tilted(reference: sp.Expr, exponent: sp.Expr) -> sp.Expr:
    return reference * sp.exp(exponent) / Total(reference * sp.exp(exponent))


def merged(first: sp.Expr, second: sp.Expr) -> sp.Expr:
    """Return the policy whose logits are (1 − μ)·(those of the first) + μ·(those of the second). Source: definition."""
    mean = first ** (1 - mu) * second**mu
    return mean / Total(mean)


def _interpolated(strength: sp.Expr) -> Statement:
    return equal(merged(r, best), _tilted(r, R / strength), best=BOLTZMANN)


ANCHOR = _tilted(r, _k * mu * R / beta)  # after k rounds


def _moved(rounds: sp.Expr) -> Statement:
    found = _tilted(r, rounds * mu * R / beta)
    return equal(merged(_anchor, _now), found, a_k=ANCHOR, p_k=_tilted(_anchor, R / beta))


def _rewards(reward: sp.Expr) -> Statement:
    return equal(merged(best, _of_h), _tilted(r, reward / beta), best=BOLTZMANN, p_h=_tilted(r, h / beta))


def _strengths(exponent: sp.Expr) -> Statement:
    return equal(merged(best, _at_2), _tilted(r, exponent), best=BOLTZMANN, p_2=_tilted(r, R / _strength))


CLAIM = Claim(
    id="merging",
    source="ours; after arXiv 2406.16768",
    statements=(
        _interpolated(beta / mu),
        _moved(_k + 1),
        _rewards((1 - mu) * R + mu * h),
        _strengths((1 - mu) * R / beta + mu * R / _strength),
    ),
    near_misses={
        "interpolated: β·μ": _interpolated(beta * mu),
        "interpolated: β": _interpolated(beta),
        "moving anchor: one round": _moved(sp.Integer(1)),
        "moving anchor: as with μ = 1": _moved((_k + 1) / mu),
        "rewards: their sum": _rewards(R + h),
        "a mean of probabilities": equal((1 - mu) * r + mu * best, _tilted(r, mu * R / beta), best=BOLTZMANN),
        "strengths: the mean β": _strengths(R / ((1 - mu) * beta + mu * _strength)),
    },
)
