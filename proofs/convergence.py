"""How fast the reverse KL's optimum is reached on a softmax table: by natural steps, and by the plain gradient.

A natural step of size η adds η·(R − β·log v) to the logits: it solves FΔ = ∇J, as in `softmax_fisher`. It multiplies
log(p/p*) by 1 − ηβ, up to a constant. By induction k steps multiply it by (1 − ηβ)^k, and one step of η = 1/β arrives.

The plain gradient: let l = log(p/p*), l̄ = KL(p‖p*) its mean, y = l̄ − l and M = max y. Here ∂J/∂z = −β·p·(l − l̄), so
‖∇J‖² ≥ β²·p_min·E_p[y²]. Since E_p[e^y] = e^l̄ and E_p[y] = 0, log x ≤ x − 1 gives l̄ ≤ E_p[e^y − 1 − y]. By Taylor's
remainder (e^y − 1 − y)/y² = ∫₀¹ (1 − s)·e^{sy} ds =: ψ(y), which rises with y. So l̄ ≤ ψ(M)·E_p[y²]. With J* − J = β·l̄
(`optimum`): ‖∇J‖² ≥ β·p_min·(J* − J)/ψ(M). Steps of at most 1/L, L the Lipschitz constant of ∇J, gain half a step times
‖∇J‖². So the gap falls by a fixed factor a step wherever p_min stays above a positive number; that it does is assumed.

Source: ours; Cen et al. 2022 (natural gradient with entropy), Mei et al. 2020 (plain gradient with entropy).
"""

import sympy as sp

from proofs.certificate import DIVERGENCE, Claim, Statement, equal, related
from proofs.language import KL, By, E, Grad, Total
from proofs.optimum import BOLTZMANN
from proofs.softmax_fisher import SOFTMAX
from proofs.symbols import R, a, best, beta, p, r, v
from proofs.worlds import Numbers

eta, _c, _y, _p_min = sp.Symbol("eta", positive=True), sp.Symbol("c_k"), sp.Symbol("y", real=True), sp.Symbol("p_min")
_now = sp.Symbol("p_k", positive=True)
J = E(p, R) - beta * KL(p, r)
LOG_RATIO, GAP = sp.log(p / best), KL(p, best)
LEADS = GAP - LOG_RATIO  # y


def _tilted(policy: sp.Expr, exponent: sp.Expr) -> sp.Expr:
    return policy * sp.exp(exponent) / Total(policy * sp.exp(exponent))


def _step(policy: sp.Expr) -> sp.Expr:
    return _tilted(policy, eta * (R - beta * sp.log(policy / r)))


def _left(share: sp.Expr) -> sp.Expr:
    return _tilted(best, share * LOG_RATIO)  # the policy whose log-ratio to p* is a multiple of p's


def _contracts(share: sp.Expr) -> Statement:
    return equal(_step(p), _left(share), best=BOLTZMANN)


def _again(share: sp.Expr) -> Statement:
    return equal(_step(_now), _left(share), p_k=_left(_c), best=BOLTZMANN)


def _is_natural(step: sp.Expr) -> Statement:
    fisher = E(p, Grad(sp.log(p), a) * Grad(sp.log(p), step))
    return equal(Grad(J, a), fisher, **SOFTMAX)


def _plain(value: sp.Expr) -> Statement:
    return equal(Grad(J, a), value, **SOFTMAX, best=BOLTZMANN)


def _exponential(value: sp.Expr) -> Statement:
    return equal(sp.log(E(p, sp.exp(LEADS))), value)


def _length(value: sp.Expr) -> Statement:
    """The squared gradient, a the unit vectors in turn: above the bound by a sum of p·(p − p_min)·y² ≥ 0."""
    return equal(beta**2 * Total((p * LEADS) ** 2), beta**2 * _p_min * E(p, LEADS**2) + value)


_excess = sp.exp(_y) - 1 - _y
CLAIM = Claim(
    id="convergence",
    source="ours; after Cen et al. 2022, Mei et al. 2020",
    statements=(
        _contracts(1 - eta * beta),
        _again((1 - eta * beta) * _c),
        _is_natural(R - beta * sp.log(p / r)),
        _plain(-beta * E(p, (LOG_RATIO - GAP) * a)),
        _exponential(GAP),
        equal(_left(sp.Integer(1)), p),
        _length(beta**2 * E(p, (p - _p_min) * LEADS**2)),
        equal(E(p, LEADS), 0),
        related(v - 1 - sp.log(v), DIVERGENCE, 0, Numbers()),
        equal(By(By(_excess, _y), _y), sp.exp(_y), Numbers()),
        equal(By(_excess, _y), sp.exp(_y) - 1, Numbers()),
    ),
    near_misses={
        "1 + ηβ": _contracts(1 + eta * beta),
        "1 − η": _contracts(1 - eta),
        "1/(1 + ηβ), as for an implicit step": _contracts(1 / (1 + eta * beta)),
        "k steps: 1 − kηβ": _again(_c - eta * beta),
        "natural: the reward alone": _is_natural(R),
        "plain: the gradient of −β·KL(p*‖p)": _plain(beta * (E(best, a) - E(p, a))),
        "plain: without p": _plain(-beta * Total((LOG_RATIO - GAP) * a)),
        "E[e^y] = 1": _exponential(sp.Integer(0)),
        "p_min for p": _length(sp.Integer(0)),
    },
    printed=5,
)
