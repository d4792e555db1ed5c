"""Using a batch twice: after a step along a batch's own gradient, the same batch's next gradient is biased by α/G·Cov.

One update goes from θ₀ to θ₁ = θ₀ + α·ĝ(θ₀), where ĝ is the mean of g(x, θ) over a batch of G independent samples, and
g is unbiased for ∇J at every θ. To first order in α the batch's gradient at θ₁ is ĝ + α·∂ĝ·ĝ, ∂ being the derivative in
θ, and ∇J(θ₁) is E[g] + α·E[∂g]·ĝ. The mean of their difference is α/G·(E[∂g·g] − E[∂g]·E[g]): a sample's own gradient
is in the step, with a share of 1/G. For several parameters ∂ĝ·ĝ is a sum of products, one component of ∂ĝ with one of
ĝ each. The statement about any two values h and A of a sample covers every such product. The rest is O(α²), since g is
smooth. Where a baseline ties the samples of a group together, an outcome is a whole group, and G counts groups.

A sample that had no part in the step has no such term: given θ₁, its gradient has the mean ∇J(θ₁), exactly, with any
baseline that does not hold its own reward, since E[w·∇log p] = 0 at every θ. So disjoint mini-batches of whole groups
are exact. A group that is split is not: the advantages in the step hold the rewards of the samples that were left out.
Let sample j be in the step, and i be used after it, both with leave-one-out advantages. Then the term α·∂²J·∂J of the
gradient at θ₁ comes out 1 + 1/(G − 1)² times, for every such pair.

Source: ours; on the epochs of Schulman et al. 2017 (PPO).
"""

import sympy as sp

from proofs.certificate import GROUPS, Claim, Statement, equal
from proofs.language import NOT, E, Grad, OfGroup, at, covariance, over, score
from proofs.symbols import A, G, R, b, g, h, i, j, p, q, w

_alpha = sp.Symbol("alpha", positive=True)


def _same(first: sp.Expr, second: sp.Expr, value: sp.Expr) -> Statement:
    return equal(OfGroup(q, over(i, at(first, i) * over(j, at(second, j)) / G) / G), value, GROUPS)


AGAIN = at(g, i) + _alpha * Grad(at(g, i)) * over(j, at(g, j)) / G
OTHERS = at(g, i) + _alpha * Grad(at(g, i)) * over(j, at(g, j), NOT, i) / (G - 1)
EXACT = E(q, g) + _alpha * E(q, Grad(g)) * E(q, g)
SHARE = covariance(q, Grad(g), g)


def _next(gradient: sp.Expr, value: sp.Expr) -> Statement:
    return equal(OfGroup(q, over(i, gradient) / G), value, GROUPS)


def _unbiased(coefficient: sp.Expr) -> Statement:
    return equal(E(q, coefficient * score()), Grad(E(p, R)), GROUPS)


# Sample j is in the step and i is used after it. E[∂(w·∇log p)] = 0, so ∂²J and ∂J are the two means on the right.
SCORE = w * score()
CURVED = E(q, R * Grad(SCORE)) * E(q, R * SCORE)
_k, _l = sp.symbols("k l", integer=True)
ADVANTAGES = (
    at(R, i) * at(R, j)
    - at(R, i) * over(_l, at(R, _l), NOT, j) / (G - 1)
    - at(R, j) * over(_k, at(R, _k), NOT, i) / (G - 1)
    + over(_k, at(R, _k) * over(_l, at(R, _l), NOT, j), NOT, i) / (G - 1) ** 2
)


def _split(factor: sp.Expr) -> Statement:
    pairs = over(i, over(j, at(Grad(SCORE), i) * at(SCORE, j) * ADVANTAGES, NOT, i))
    return equal(OfGroup(q, pairs) / (G * (G - 1)), factor * CURVED, GROUPS)


CLAIM = Claim(
    id="batch_reuse",
    source="ours; on the epochs of Schulman et al. 2017 (PPO)",
    statements=(
        _next(AGAIN, EXACT + _alpha / G * SHARE),
        _next(OTHERS, EXACT),
        _same(h, A, E(q, h) * E(q, A) + covariance(q, h, A) / G),
        _unbiased(w * (R - b)),
        _split(1 + 1 / (G - 1) ** 2),
    ),
    near_misses={
        "no bias": _next(AGAIN, EXACT),
        "a share of 1/G²": _next(AGAIN, EXACT + _alpha / G**2 * SHARE),
        "a share of 1, whatever the batch": _next(AGAIN, EXACT + _alpha * SHARE),
        "the bias is that of E[∂g·g]": _next(AGAIN, EXACT + _alpha / G * E(q, Grad(g) * g)),
        "other samples have the bias too": _next(OTHERS, EXACT + _alpha / G * SHARE),
        "two values: independent": _same(h, A, E(q, h) * E(q, A)),
        "a split group: no bias": _split(sp.Integer(1)),
        "a split group: a share of 1/G": _split(1 + 1 / G),
        "no weight at θ₁": _unbiased(R - b),
    },
    printed=2,
)
