"""The table of divergences D = E_ref[f(v)], v = π_θ/π_ref: one row each, written on log v."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rpg_ref.checks import Table
from rpg_ref.numerics import at_least_float32, phi


class History(NamedTuple):
    """One term of a chain rule over tokens: Σ_t E_old[w_{<t}^w · u_{<t}^u · u_t·f(v_t)].

    Attributes:
        w: the power of w_{<t}, π_θ's weight of the tokens before, which is differentiated too.
        u: the power of u_{<t}, π_ref's.
        f: log v_t ↦ f(v_t), any shape.
    """

    w: int
    u: int
    f: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Divergence:
    """A divergence as its generator f, with f(1) = 0, and the slope that reaches the policy.

    Attributes:
        name: the row's name.
        f: log v ↦ f(v), any shape. D = E_ref[f(v)].
        slope: log v ↦ ∂f/∂log v = v·f′(v), any shape. The penalty's coefficient of ∇log π_θ.
        history: the terms of the chain rule by which D of whole responses is a sum over their tokens; none where no
            such rule is known.

    Source: paper Tables 1 and 2 for fkl, ufkl, rkl, urkl; the unification and the other rows are ours.
    """

    name: str
    f: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    history: tuple[History, ...] = ()


def f_fkl(d: Tensor) -> Tensor:
    """Return −log v."""
    return -d


def f_rkl(d: Tensor) -> Tensor:
    """Return v log v."""
    return d * d.exp()


def f_urkl(d: Tensor) -> Tensor:
    """Return v log v − v + 1, near zero as eᵈ·φ(−d)."""
    near = d.abs() < 1
    small, large = torch.where(near, d, 0.0), torch.where(near, 1.0, d)
    return torch.where(near, small.exp() * phi(-small), large.exp() * (large - 1) + 1)


def v_minus_1(d: Tensor) -> Tensor:
    """Return v − 1 to differentiate: below −1 not as expm1, whose derivative expm1(d) + 1 loses v there."""
    return torch.where(d > -1, d.expm1(), d.clamp(max=-1.0).exp() - 1)


def f_js(d: Tensor) -> Tensor:
    """Return ½[v log v − (1 + v) log((1 + v)/2)] = (1 + v)/2 · (log 2 − H(σ(d))), H the entropy of a coin.

    With h = d/2 the bracket is h·tanh h − log cosh h, which is the form that is exact near zero.
    """
    near = d.abs() < 2
    h, far = torch.where(near, d / 2, 0.0), torch.where(near, 2.0, d).abs()
    bracket_near = h * h.tanh() - (h.sinh() ** 2).log1p() / 2
    bracket_far = math.log(2) + logsigmoid(far) - far * (-far).sigmoid()
    return (1 + d.exp()) / 2 * torch.where(near, bracket_near, bracket_far)


def slope_js(d: Tensor) -> Tensor:
    """Return ½·v·log(2v/(1 + v)), the logarithm as log1p(tanh(d/2)) near zero."""
    near = d.abs() < 1
    small = torch.where(near, d, 0.0)
    return d.exp() / 2 * torch.where(near, (small / 2).tanh().log1p(), math.log(2) + logsigmoid(d))


def f_chi2(d: Tensor) -> Tensor:
    """Return (v − 1)²."""
    return v_minus_1(d) ** 2


# Powers of w_{<t} and u_{<t}: histories drawn by π_θ, by π_ref; χ² + 1 = E_ref[v²], and u·v² = w²/u.
_CURRENT, _REFERENCE, _SQUARED = (1, 0), (0, 1), (2, -1)
_BOTH = {_CURRENT: f_rkl, _REFERENCE: f_fkl}


def _row(
    name: str,
    history: Mapping[tuple[int, int], Callable[[Tensor], Tensor]] | None,
    f: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor],
) -> tuple[str, Divergence]:
    chain = tuple(History(*powers, term) for powers, term in (history or {}).items())
    return name, Divergence(name, lambda d: f(at_least_float32(d)), lambda d: slope(at_least_float32(d)), chain)


# fmt: off
DIVERGENCES: Table[Divergence] = Table("divergence", dict([
    #    name        chain rule            f(v), with d = log v          slope = v·f′(v)                  of the paper
    _row("fkl",      {_REFERENCE: f_fkl},  f_fkl,                        lambda d: -torch.ones_like(d)),  # Prop E.1
    _row("ufkl",     {_REFERENCE: phi},    phi,                          v_minus_1),                      # Prop 3.2
    _row("rkl",      {_CURRENT: f_rkl},    f_rkl,                        lambda d: (d + 1) * d.exp()),    # Prop E.3
    _row("urkl",     {_CURRENT: f_urkl},   f_urkl,                       lambda d: d * d.exp()),          # Prop 3.6
    _row("jeffreys", _BOTH,                lambda d: d * v_minus_1(d),   lambda d: d * d.exp() + v_minus_1(d)),
    _row("js",       None,                 f_js,                         slope_js),
    _row("chi2",     {_SQUARED: f_chi2},   f_chi2,                       lambda d: 2 * d.exp() * d.expm1()),
]))
# fmt: on


def resolve(divergence: str | Divergence) -> Divergence:
    """Return the row named, or the Divergence itself; raise UnknownName (a ValueError) listing the nearest names."""
    return divergence if isinstance(divergence, Divergence) else DIVERGENCES[str(divergence)]
