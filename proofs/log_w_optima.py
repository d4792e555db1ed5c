"""Where the two methods that follow log w come to rest: CPGD without its clip, and PMD-mean.

CPGD ascends E_q[(A + β)·log π_θ]. Let A + β > 0 everywhere. Then p* = q·(A + β)/E_q[A + β] is the optimum, because
any other policy is short of it by E_q[A + β]·KL(p*‖p). Where E_q[A] = 0 this is p* = q·(1 + A/β).

Let now A + β < 0 for one outcome, and let ε be its probability, the others keeping their shares of 1 − ε. The
objective is −d·log ε + n·log(1 − ε) plus a constant, with −d = q·(A + β) of that outcome. Divided by log(1/ε) it
tends to d > 0. So it is unbounded above.

PMD-mean's gradient is −E_q[X·∇log π_θ] with X = A − β·(log w + c·w) and c = KL(q‖p) + E_q[A]/β, and E_q[X] = 0. On
a softmax table ∇log p(x) is the unit vector of x less p. So the gradient is −q·X, outcome by outcome, and vanishes
only where X = 0. There (cw)·e^{cw} = c·e^{A/β}. If c > 0 that is w = W(c·e^{A/β})/c, with Lambert's function W. The
gradient of E_p[A] − β·KL(p‖q) − ½βc·χ²(p‖q), c held fixed, is E_q[w·X·∇log π_θ], and vanishes there too.

Let E_q[A] = 0, and let A be no constant. Then exactly one policy has X = 0. For each outcome X = 0 makes c a
falling function of w, and so w a falling function of c. So E_q[w] falls as c grows. As c → 0 it tends to
E_q[e^{A/β}] > 1, by Jensen's inequality, and as c → ∞ it tends to 0. So it is 1 at one c. The mean of log w + c·w =
A/β over π_old then says that this c is KL(q‖p).

Source: Liu et al. 2025, arXiv 2505.12504 (CPGD); Xu et al. 2026, arXiv 2602.05933 (PMD-mean).
"""

import sympy as sp

from proofs.certificate import LESS, NORMALISED, Claim, Statement, equal, related
from proofs.in_log_w import CPGD, PMD
from proofs.language import KL, SG, ChiSquare, E, Grad, Limit, Slope, score
from proofs.symbols import A, best, beta, p, q, w
from proofs.worlds import Numbers

_c = sp.Symbol("c_", positive=True)
_m, _d, _epsilon = sp.symbols("m d epsilon", positive=True)
_n, _x = sp.symbols("n x", real=True)


def _short_of(value: sp.Expr, tilted: sp.Expr = best) -> Statement:  # noqa: B008
    gap = E(q, (A + beta) * sp.log(tilted)) - E(q, (A + beta) * sp.log(p))
    return equal(gap, value, NORMALISED, A=POSITIVE)


def _grows(limit: sp.Expr | int) -> Statement:
    value = -_d * sp.log(_epsilon) + _n * sp.log(1 - _epsilon)
    return equal(Limit(value / sp.log(1 / _epsilon), _epsilon), limit, Numbers())


# Any A with A + β > 0: m is the mass of q·(A + β), and p* its share.
POSITIVE = _m * best / q - beta
MASS = E(q, A + beta)
CPGD_CLAIM = Claim(
    id="cpgd_optimum",
    source="ours; on Liu et al. 2025, arXiv 2505.12504 (CPGD)",
    statements=(
        equal(Grad(E(q, CPGD)), -Grad(E(q, (A + beta) * sp.log(p)))),
        _short_of(MASS * KL(best, p)),
        equal(q * (A + beta) / MASS, best, NORMALISED, A=POSITIVE),
        _grows(_d),
        equal(Grad(E(q, CPGD)), -E(q, (A + beta) * score())),
    ),
    near_misses={
        "the optimum is q·e^{A/β}": _short_of(MASS * KL(best, p), q * sp.exp(A / beta) / E(q, sp.exp(A / beta))),
        "the gap is the other KL": _short_of(MASS * KL(p, best)),
        "the gap is β·KL for any A": _short_of(beta * KL(best, p)),
        "the optimum is q·(1 + A/β) for any A": equal(q * (1 + A / beta), best, NORMALISED, A=POSITIVE),
        "it stays bounded": _grows(0),
        "likelihood weighted by A alone": equal(Grad(E(q, CPGD)), -Grad(E(q, A * sp.log(p)))),
    },
    printed=4,
)
X = A - beta * (sp.log(w) + _c * w)
C = KL(q, p) + E(q, A) / beta
REGULARISED = E(p, A) - beta * KL(p, q) - beta / 2 * SG(_c) * ChiSquare(p, q)


def _pmd(value: sp.Expr, c: sp.Expr = C) -> Statement:  # noqa: B008
    return equal(Grad(E(q, PMD)), value, NORMALISED, c_=c)


def _regularised(objective: sp.Expr) -> Statement:
    return equal(Grad(objective), E(q, w * X * score()), NORMALISED, c_=C)


def _lambert(left: sp.Expr, right: sp.Expr) -> Statement:
    return equal(left, right, Numbers(), x=sp.log(w) + _c * w)  # x is A/β at rest


OF_W = (A / beta - sp.log(w)) / w
PMD_MEAN = Claim(
    id="pmd_mean",
    source="ours; on Xu et al. 2026, arXiv 2602.05933 (PMD-mean)",
    statements=(
        _pmd(-E(q, X * score())),
        equal(E(q, X), 0, NORMALISED, c_=C),
        _regularised(REGULARISED),
        _lambert(_c * w * sp.exp(_c * w), _c * sp.exp(_x)),
        equal(Slope(OF_W, w), -_c - 1 / w, Numbers(), c_=OF_W),
        related(-_c - 1 / w, LESS, 0, Numbers()),
    ),
    near_misses={
        "c = KL(q‖p) for any A": equal(E(q, X), 0, NORMALISED, c_=KL(q, p)),
        "c = KL(p‖q)": equal(E(q, X), 0, NORMALISED, c_=KL(p, q) + E(q, A) / beta),
        "it rests at the mirror-descent step": _lambert(w, sp.exp(_x)),
        "no χ² term": _regularised(E(p, A) - beta * KL(p, q)),
        "χ² at twice the strength": _regularised(E(p, A) - beta * KL(p, q) - beta * SG(_c) * ChiSquare(p, q)),
        "c is differentiated": _regularised(E(p, A) - beta * KL(p, q) - beta / 2 * _c * ChiSquare(p, q)),
        "w = W(e^{A/β})": _lambert(w * sp.exp(w), sp.exp(_x)),
        "it ascends E[A], off-policy": _pmd(-Grad(E(p, A))),
    },
    printed=4,
)
CLAIMS = (CPGD_CLAIM, PMD_MEAN)
