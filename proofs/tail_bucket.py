"""A divergence over the top k tokens alone is none; with one bucket for all other tokens it is one.

K holds for the tokens that are not kept, any set of them. The bucket is all of these as one outcome, and its ratio
is v̄ = π_θ(K)/π_ref(K). What the bucket loses is Σ_K π_ref times f's Bregman divergence of v from v̄, for any f and
any masses. For a convex f that is ≥ 0, so that the bucketed divergence bounds the full one from below. For the
reverse KL it is Σ_K π_ref·v̄·φ(v/v̄), where φ(y) = y·log y − y + 1 is ≥ 0, and is 0 at y = 1 alone. A smaller K
gives a larger bound: apply the same to the kept tokens and the bucket as outcomes.

Without the bucket the sum may be negative, and its gradient contains ∇π_θ(kept). At π_θ = π_ref nothing else is
left of it: the penalty pushes probability out of the top k, although nothing has drifted. The sum over renormalised
policies is the KL of the two conditional policies. It is a KL, but no bound: it may exceed the full one.

Source: ours; on verl#7856; the data-processing inequality (Csiszár 1967).
"""

import sympy as sp

from proofs.certificate import ANY_MASS, DIVERGENCE, LESS, NORMALISED, Claim, Statement, equal, related
from proofs.divergence_table import TABLE
from proofs.language import KL, SG, E, Grad, score
from proofs.symbols import K, f, f_prime, p, r, v
from proofs.worlds import Listed, Numbers

_bar, _kept = sp.symbols("vbar v_kept", positive=True)  # the ratio of the bucket, and of all kept tokens together
KEPT, BAR = 1 - K, E(p, K) / E(r, K)
PHI = TABLE["urkl"].f


def _phi(value: sp.Expr) -> sp.Expr:
    return PHI.subs(v, value)


TRUNCATED = E(p, KEPT * sp.log(v))
BUCKETED = TRUNCATED + E(p, K) * sp.log(_bar)
BUCKETED_F = E(r, KEPT * f(v)) + E(r, K) * f(_bar)
BREGMAN = f(v) - f(_bar) - f_prime(_bar) * (v - _bar)
CONDITIONAL = E(p, KEPT * sp.log(v / _kept)) / E(p, KEPT)
RATIOS = {"vbar": BAR, "v_kept": E(p, KEPT) / E(r, KEPT)}
LOST = E(r, K * _bar * _phi(v / _bar))

# At π_θ = π_ref, where a gradient does not see the reference.
TRUNCATED_AT_REST = E(p, KEPT * sp.log(p / SG(p)))
BUCKET_AT_REST = E(p, K) * sp.log(E(p, K) / SG(E(p, K)))


def _loses(lost: sp.Expr) -> Statement:
    return equal(E(r, f(v)) - BUCKETED_F, E(r, K * lost), ANY_MASS, vbar=BAR)


def _kl_loses(bucketed: sp.Expr, bar: sp.Expr) -> Statement:
    return equal(KL(p, r) - bucketed, LOST, ANY_MASS, vbar=bar)


def _slope(value: sp.Expr, coefficient: sp.Expr) -> Statement:
    return equal(Grad(value), E(p, coefficient * score()), vbar=BAR)


def _example(parts: tuple[int, ...], ref: tuple[int, ...], bucket: tuple[int, ...]) -> Listed:
    policies = {x: tuple(sp.Rational(n, sum(y)) for n in y) for x, y in ((p, parts), (r, ref))}
    return Listed(at={**policies, K: bucket})


CLAIM = Claim(
    id="tail_bucket",
    source="ours; on verl#7856; Csiszar 1967",
    statements=(
        _loses(BREGMAN),
        _kl_loses(BUCKETED, BAR),
        related(PHI, DIVERGENCE, 0, Numbers()),
        equal(BUCKETED, E(r, KEPT * PHI) + E(r, K) * _phi(_bar), NORMALISED, vbar=BAR),
        _slope(BUCKETED, KEPT * sp.log(v) + K * sp.log(_bar)),
        _slope(TRUNCATED, KEPT * (sp.log(v) + 1)),
        equal(Grad(TRUNCATED_AT_REST), Grad(E(p, KEPT))),
        related(TRUNCATED, LESS, 0, _example((1, 2, 1), (1, 6, 1), (1, 0, 1))),
        related(KL(p, r), LESS, CONDITIONAL, _example((1, 1, 6), (1, 9, 30), (0, 0, 1)), **RATIOS),
        equal(Grad(TRUNCATED_AT_REST + BUCKET_AT_REST), 0),
    ),
    near_misses={
        "without a bucket nothing is lost": equal(TRUNCATED, KL(p, r), NORMALISED),
        "without a bucket φ's terms are lost": equal(KL(p, r) - TRUNCATED, E(r, K * PHI), NORMALISED),
        "without a bucket it rests at π_θ = π_ref": equal(Grad(TRUNCATED_AT_REST), 0),
        "without a bucket the slope is log v on the top k": _slope(TRUNCATED, KEPT * sp.log(v)),
        "v̄ is the mean of v under π_θ": _kl_loses(BUCKETED, E(p, K * v) / E(p, K)),
        "the bucket's gradient is the full KL's": equal(Grad(BUCKETED), Grad(KL(p, r)), NORMALISED, vbar=BAR),
        "renormalised it is the bucketed KL": equal(CONDITIONAL, BUCKETED, NORMALISED, **RATIOS),
        "the bucket loses f's own sum": _loses(f(v)),
    },
    printed=9,
)
