"""Full relative precision of φ and of every row, against 340 digits; the gradient of f against the slope."""

import math

import mpmath
import numpy as np
import pytest
import torch
from divergence_facts import FACTS
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import DIVERGENCE_NAMES

from rpg_ref import DIVERGENCES, k1, k2, k3
from rpg_ref.numerics import phi

# d² of a d whose square is still a normal float64 is 1e-308 of the 1 that it is subtracted from.
DIGITS = 340
GRID = [s * x for s in (1.0, -1.0) for x in (*np.geomspace(1e-30, 80.0, 400), 0.5, 1.0, 2.0, 80.0)]
EDGES = [np.nextafter(s * x, s * y) for s in (1, -1) for x in (0.5, 1.0, 2.0) for y in (0.0, 9.0)]
LOG_RATIOS = [*GRID, *EDGES]
ULPS = {name: facts.ulps for name, facts in FACTS.items()}


def generator(name: str, d: mpmath.mpf) -> mpmath.mpf:
    """f(v) as the table of divergences prints it, at v = eᵈ."""
    return FACTS[name].f(mpmath.exp(d), mpmath.log)


def generator_slope(name: str, d: mpmath.mpf) -> mpmath.mpf:
    """v·f′(v), with the table's f′."""
    v = mpmath.exp(d)
    return v * FACTS[name].f_prime(v, mpmath.log)


def ulps(found: float, exact: mpmath.mpf, dtype: torch.dtype) -> float:
    """Distance in units of the exact value's last place; 0 where that is not a normal number of the dtype."""
    info = torch.finfo(dtype)
    if exact == 0:
        return 0.0 if found == 0 else math.inf
    if not info.tiny <= abs(exact) <= info.max:
        return 0.0
    ulp = mpmath.mpf(2) ** (mpmath.floor(mpmath.log(abs(exact), 2)) - (23 if dtype == torch.float32 else 52))
    return float(abs(mpmath.mpf(found) - exact) / ulp)


def worst(function, exact, points: list[float], dtype: torch.dtype) -> float:
    x = torch.tensor(points, dtype=dtype)
    with mpmath.workdps(DIGITS):
        pairs = zip(function(x).tolist(), x.tolist(), strict=True)
        return max(ulps(found, exact(mpmath.mpf(d)), dtype) for found, d in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_phi(dtype):
    assert worst(phi, lambda d: mpmath.exp(d) - 1 - d, LOG_RATIOS, dtype) <= 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
def test_generator_and_slope(name, dtype):
    row = DIVERGENCES[name]
    assert worst(row.f, lambda d: generator(name, d), LOG_RATIOS, dtype) <= ULPS[name]
    assert worst(row.slope, lambda d: generator_slope(name, d), LOG_RATIOS, dtype) <= ULPS[name]


@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
@given(d=st.one_of(st.floats(-80.0, 80.0), st.floats(-2.5, 2.5), st.floats(-1e-3, 1e-3)))
def test_generator_and_slope_anywhere(name, d):
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor(d, dtype=dtype).item()
        row = DIVERGENCES[name]
        assert worst(row.f, lambda d: generator(name, d), [x], dtype) <= ULPS[name]
        assert worst(row.slope, lambda d: generator_slope(name, d), [x], dtype) <= ULPS[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
def test_autograd_of_f_is_the_slope(name, dtype):
    """To 4 ulp of its magnitude; 2.5 are measured."""
    x = torch.tensor(LOG_RATIOS, dtype=dtype, requires_grad=True)
    (found,) = torch.autograd.grad(DIVERGENCES[name].f(x).sum(), x)
    info = torch.finfo(dtype)
    with mpmath.workdps(DIGITS):
        for g, d in zip(found.tolist(), map(mpmath.mpf, x.tolist()), strict=True):
            size = FACTS[name].slope_size(d, mpmath.exp(d))
            if 1e3 * info.tiny <= size <= info.max:
                assert abs(mpmath.mpf(g) - generator_slope(name, d)) <= 4 * info.eps * size, (name, d)


@given(d=st.floats(-80.0, 80.0))
@example(d=1e-4)
@example(d=1e-30)
def test_estimators(d):
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor(d, dtype=dtype).item()
        assert worst(k3, lambda y: mpmath.exp(y) - 1 - y, [x], dtype) <= 8
        assert worst(k2, lambda y: y * y / 2, [x], dtype) <= 1
        assert worst(k1, lambda y: -y, [x], dtype) == 0


def test_the_plain_form_loses_everything():
    """What φ is for: in float32, exp(d) − d − 1 at 1e-4 has no correct digit."""
    d = torch.tensor([1e-4])
    assert ((d.exp() - d - 1) / 5e-9 - 1).abs().item() > 0.9
    assert (phi(d) / 5.0001667e-9 - 1).abs().item() < 1e-6


@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
def test_zero_at_one_and_beyond_overflow(name):
    row = DIVERGENCES[name]
    d = torch.tensor([0.0, 1e3, -1e3, math.nan], dtype=torch.float64, requires_grad=True)
    f = row.f(d)
    (g,) = torch.autograd.grad(f[:3].sum(), d)
    assert f[0] == 0 and not f[:3].isnan().any() and f[3].isnan()
    assert g[0] == row.slope(d)[0] and not g[2].isnan()
    assert (f[1:3] >= 0).all() or name in ("fkl", "rkl")


def test_every_row_is_named_and_says_whose_histories_its_chain_rule_averages_over():
    histories = {name: (row.name, [(term.w, term.u) for term in row.history]) for name, row in DIVERGENCES.items()}
    assert histories == {name: (name, [(w, u) for w, u, _ in facts.history]) for name, facts in FACTS.items()}


@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
def test_half_precision_is_widened(name):
    d = torch.tensor([0.125, -0.5], dtype=torch.bfloat16)
    row = DIVERGENCES[name]
    for function in (row.f, row.slope, k1, k2, k3):
        assert function(d).dtype == torch.float32
        assert torch.equal(function(d), function(d.float()))
