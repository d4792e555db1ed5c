"""From one outcome to an expectation: the settings in which a formula is proved, and the stop-gradient.

A *setting* turns an integrand, written about one outcome, into a number:

    pointwise   the integrand itself; every policy has any mass
    finite      the sum over three outcomes with arbitrary smooth probabilities
    group       the sum over tuples of such outcomes: independent samples
    gaussian    the integral over the real line: Gaussian policies, a general quadratic reward

A pointwise identity survives every sum or integral that may be differentiated under its sign; the other two settings
do the sum, and know that probabilities add up to one.

Source: arXiv 2505.17508, §3 (expectations under a π_old of mass Z_old) and §4 (stop-gradient).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import product
from math import prod

import sympy as sp

from proofs.symbols import RATIOS, A, R, Z, g, p, payoff, policy, q_tilde, r, s, score, theta, theta_frozen

Setting = Callable[[sp.Expr], sp.Expr]
Sample = Setting  # one outcome drawn: from an integrand to its value there
Equation = tuple[sp.Expr, sp.Expr]  # left- and right-hand side
OUTCOMES = range(3)


def stop_gradient(expression: sp.Expr) -> sp.Expr:
    """Return SG(expression), read from a frozen copy of the parameters. Source: arXiv 2505.17508, §4."""
    return pointwise(expression).xreplace({theta: theta_frozen})


def gradient(setting: Setting, integrand: sp.Expr) -> sp.Expr:
    """Return ∇θ of the expectation; the frozen copy is set to θ after differentiating.

    Source: arXiv 2505.17508, §4.
    """
    return setting(integrand).diff(theta).xreplace({theta_frozen: theta})


def expectation_old(per_sample: sp.Expr) -> sp.Expr:
    """Return the integrand of Z·E_{x∼π̃_old}[per_sample], π̃_old = π_old/Z. Source: arXiv 2505.17508, §3."""
    return Z * q_tilde * per_sample


def on_policy(off_policy: sp.Expr) -> sp.Expr:
    """Return the integrand where π_old is π_θ: the same probabilities, which a gradient does not see.

    Source: ours; samples already drawn are fixed.
    """
    return pointwise(off_policy).xreplace({q_tilde: stop_gradient(p) / Z})


def pointwise(integrand: sp.Expr) -> sp.Expr:
    """Return the integrand with its ratios written as densities. Source: arXiv 2505.17508, §2."""
    return integrand.xreplace(RATIOS)


@cache
def at_outcome(x: int, integrand: sp.Expr, *, normalised: bool = True) -> sp.Expr:
    """Return the integrand at outcome x of three, R, A, g and π_ref arbitrary at each.

    π_θ is any smooth curve of positive probabilities, given by its odds a against the last outcome; where not
    `normalised` it also has a mass M(θ). π̃_old and π_sampler, given by their odds b and c, sum to one.
    Source: arXiv 2505.17508, §2.
    """
    a1, a2 = sp.Function("a1", positive=True), sp.Function("a2", positive=True)
    b1, b2, c1, c2 = sp.symbols("b1 b2 c1 c2", positive=True)

    def probability(t: sp.Expr) -> sp.Expr:
        return _mass(t, normalised) * (a1(t), a2(t), 1)[x] / (a1(t) + a2(t) + 1)

    values = {
        q_tilde: (b1, b2, 1)[x] / (b1 + b2 + 1),
        s: (c1, c2, 1)[x] / (c1 + c2 + 1),
        r: sp.Symbol(f"r{x}", positive=True),
        R: sp.Symbol(f"R{x}", real=True),
        A: sp.Symbol(f"A{x}", real=True),
    }
    at_x = pointwise(integrand).replace(policy, probability).replace(payoff, sp.Function(f"g{x}"))
    return at_x.xreplace(values).doit()


def finite(integrand: sp.Expr, *, normalised: bool = True) -> sp.Expr:
    """Return the sum over the three outcomes of `at_outcome`. Source: arXiv 2505.17508, §2."""
    return sum((at_outcome(x, integrand, normalised=normalised) for x in OUTCOMES), sp.S.Zero)


def group(size: int, estimate: Callable[[Sequence[Sample]], sp.Expr], *, density: sp.Expr = p) -> sp.Expr:
    """Return the expectation of an estimate from `size` independent samples, by enumerating every tuple of outcomes.

    Args:
        size: G, how many samples.
        estimate: given the samples, each a function from an integrand to its value there.
        density: what the samples are drawn from, normalised.

    Returns:
        The expectation.

    Source: arXiv 2505.17508, §5 (groups of responses to one prompt).
    """
    samples = [partial(at_outcome, x) for x in OUTCOMES]
    return sum(prod(at(density) for at in drawn) * estimate(drawn) for drawn in product(samples, repeat=size))


def gaussian(integrand: sp.Expr, *, normalised: bool = True) -> sp.Expr:
    """Return the integral over the real line; μ(θ), σ(θ), both other Gaussians and the quadratic R are arbitrary.

    A log-density is a quadratic in x, so every integrand here is a sum of density × polynomial, integrated term by
    term. Where not `normalised`, π_θ has a mass M(θ); π_ref always has one. Source: arXiv 2505.17508, §3.
    """
    mean, scale = sp.Function("mu", real=True), sp.Function("sigma", positive=True)
    parameters = {policy(t): (_mass(t, normalised), mean(t), scale(t)) for t in (theta, theta_frozen)}
    parameters[q_tilde] = (sp.S.One, sp.Symbol("mu_old"), sp.Symbol("sigma_old", positive=True))
    parameters[r] = (sp.Symbol("Z_ref", positive=True), sp.Symbol("mu_ref"), sp.Symbol("sigma_ref", positive=True))
    log_density = {
        sp.log(density): sp.log(m) + sp.expand_log(sp.log(_NORMAL)).xreplace({_mean: mu, _scale: sigma})
        for density, (m, mu, sigma) in parameters.items()
    }
    payoffs = {
        R: sum(sp.Symbol(f"c{n}") * _x**n for n in range(3)),
        g: sum(sp.Function(f"d{n}")(theta) * _x**n for n in range(3)),
    }
    score_in_x = log_density[sp.log(p)].diff(theta)
    in_x = sp.expand_log(pointwise(integrand)).xreplace({p.diff(theta): p * score_in_x, **log_density, **payoffs})
    total = sp.S.Zero
    for (power, *densities), coefficient in sp.Poly(in_x.doit().expand(), _x, *parameters).terms():
        if sum(densities) != 1:
            raise ValueError(f"a Gaussian integrand must be linear in the densities; this one has powers {densities}.")
        m, mu, sigma = list(parameters.values())[densities.index(1)]
        total += coefficient * m * _moment(power).xreplace({_mean: mu, _scale: sigma})
    return total


def _mass(t: sp.Expr, normalised: bool) -> sp.Expr:
    return sp.S.One if normalised else sp.Function("M", positive=True)(t)


_x, _mean = sp.symbols("x mean", real=True)
_scale = sp.Symbol("scale", positive=True)
_NORMAL = sp.exp(-((_x - _mean) ** 2) / (2 * _scale**2)) / (_scale * sp.sqrt(2 * sp.pi))


@cache
def _moment(power: int) -> sp.Expr:
    return sp.integrate(_x**power * _NORMAL, (_x, -sp.oo, sp.oo))


# The settings a claim is proved in when π_θ is normalised, as every policy is, and when it has any mass.
NORMALISED: Mapping[str, Setting] = {"finite": finite, "gaussian": gaussian}
PROPOSITION: Mapping[str, Setting] = {"pointwise": pointwise, **NORMALISED}
ANY_MASS: Mapping[str, Setting] = {
    "pointwise": pointwise,
    "finite": lambda integrand: finite(integrand, normalised=False),
    "gaussian": lambda integrand: gaussian(integrand, normalised=False),
}


def policy_gradient(
    objective: sp.Expr, weight: sp.Expr, losses: Mapping[str, sp.Expr], settings: Mapping[str, Setting] = PROPOSITION
) -> dict[str, Equation]:
    """Return the identities ∇J = Z·E[weight·∇log π_θ] and −∇loss = the same, in every setting.

    Args:
        objective: integrand of J, from the definitions.
        weight: coefficient of ∇log π_θ, as printed.
        losses: per-sample losses by name, as printed; one may be written with `stop_gradient`.
        settings: by name; an arbitrary generator, for one, has no closed Gaussian integral.

    Returns:
        The equations by name.

    Source: arXiv 2505.17508, Propositions 3.2, 3.6, E.1, E.3.
    """
    identities = {}
    for name, setting in settings.items():
        estimated = setting(expectation_old(weight * score))
        identities[f"{name}: gradient"] = (gradient(setting, objective), estimated)
        for loss_name, loss in losses.items():
            identities[f"{name}: {loss_name}"] = (-gradient(setting, expectation_old(loss)), estimated)
    return identities


def wrong_weights(objective: sp.Expr, weights: Mapping[str, sp.Expr]) -> dict[str, Equation]:
    """Return the false equations ∇J = Z·E[weight·∇log π_θ], one for each wrong weight.

    They are stated as expectations, since a pointwise difference may be a baseline and vanish on average.
    Source: arXiv 2505.17508, Propositions 3.2, 3.6, E.1, E.3, of which they are misreadings.
    """
    exact = gradient(finite, objective)
    return {name: (exact, finite(expectation_old(weight * score))) for name, weight in weights.items()}


def wrong_losses(objective: sp.Expr, losses: Mapping[str, sp.Expr]) -> dict[str, Equation]:
    """Return the false equations ∇J = −∇ Z·E[loss], one for each wrong loss.

    Source: arXiv 2505.17508, Propositions 3.2, 3.6, E.1, E.3 and §4, of which they are misreadings.
    """
    exact = gradient(finite, objective)
    return {name: (exact, -gradient(finite, expectation_old(loss))) for name, loss in losses.items()}
