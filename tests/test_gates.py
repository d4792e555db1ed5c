"""Other methods' weights: by hand at single ratios, by their papers' objectives, and as rows of the recipes."""

import math
from dataclasses import astuple, replace

import pytest
import torch
from test_curves import hold
from torch.testing import assert_close

from rpg_ref import RECIPES, DualClip, gated_loss
from rpg_ref.audit import weight_curves
from rpg_ref.audit.verify import verify
from rpg_ref.gates import (
    GATED,
    ClippedGeometricMean,
    GammaWeight,
    SecondMoment,
    SequenceMask,
    SigmoidGate,
    TrustRegion,
)

NAMES = [row.name for row in GATED]


def coefficients(gate, w, A, *, old=1e-3, alive=None):
    """c of every token: w and old [B, T] or numbers, A [B, T] or a number."""
    w = torch.as_tensor(w, dtype=torch.float64)
    logp_old = torch.as_tensor(old, dtype=torch.float64).log().expand(w.shape).clone()
    logp = (logp_old + w.log()).requires_grad_()
    loss = gated_loss(logp, logp_old, A, gate=gate, alive=alive)
    return -torch.autograd.grad(loss.sum(), logp)[0]


def sech2(x):
    return 1 / math.cosh(x) ** 2


@pytest.mark.parametrize(
    ("gate", "old", "A", "expected"),
    [
        # w: 1/2, 1, 2, 30
        (SigmoidGate(2.0, 3.0), 1e-3, 1.0, [0.5 * sech2(0.5), 1.0, 2 * sech2(1), 30 * sech2(29)]),
        (SigmoidGate(2.0, 3.0), 1e-3, -1.0, [-0.5 * sech2(0.75), -1.0, -2 * sech2(1.5), -30 * sech2(43.5)]),
        # At π_old = 0.02 probabilities move by −0.01, 0, 0.02 and 0.58.
        (TrustRegion("tv", 0.15, 0.15, 20.0), 0.02, 1.0, [0.5, 1.0, 2.0, 0.0]),
        (TrustRegion("tv", 0.15, 0.15, 20.0), 0.02, -1.0, [-0.5, -1.0, -2.0, -20.0]),
        (TrustRegion("tv", 0.009, 0.019, 20.0), 0.02, 1.0, [0.5, 1.0, 0.0, 0.0]),
        (TrustRegion("tv", 0.009, 0.019, 20.0), 0.02, -1.0, [0.0, -1.0, -2.0, -20.0]),
        # KL of the coins 0.02 and 0.01 is 0.003912, of 0.02 and 0.04 it is 0.006344.
        (TrustRegion("kl", 0.0039, 0.0063), 0.02, 1.0, [0.5, 1.0, 0.0, 0.0]),
        (TrustRegion("kl", 0.0040, 0.0064), 0.02, 1.0, [0.5, 1.0, 2.0, 0.0]),
        (TrustRegion("kl", 0.0039, 0.0064), 0.02, -1.0, [0.0, -1.0, -2.0, -20.0]),
        (TrustRegion("kl", 0.0040, 0.0063), 0.02, -1.0, [-0.5, -1.0, -2.0, -20.0]),
        (GammaWeight(), 1e-3, 1.0, [0.25 * math.exp(1.5), 1.0, 4 * math.exp(-3), 900 * math.exp(-87)]),
        (GammaWeight(), 1e-3, -1.0, [-0.125 * math.exp(1), -1.0, -8 * math.exp(-2), -27000 * math.exp(-58)]),
    ],
    ids=str,
)
def test_a_gate_of_one_sample_by_hand(gate, old, A, expected):
    found = coefficients(gate, [0.5, 1.0, 2.0, 30.0], A, old=old)
    assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-30)


def test_a_sequence_mask_by_hand():
    """Mean log-ratios −0.5·log 2, +, and −log 2 of the two tokens that count; ε = 0.6 and 1.5."""
    w = [[0.5, 1.0, 7.0], [0.5, 4.0, 7.0], [0.5, 0.5, 7.0]]
    alive = torch.tensor([[True, True, False]] * 3)
    gate = SequenceMask(0.5, DualClip(0.6, 1.5, math.inf))
    bad = coefficients(gate, w, -1.0, alive=alive)[:, :2]
    assert_close(bad, -torch.tensor([[0.5, 1.0], [0.5, 4.0], [0.0, 0.0]], dtype=torch.float64))
    good = coefficients(gate, w, 1.0, alive=alive)[:, :2]
    assert_close(good, torch.tensor([[0.5, 1.0], [0.5, 0.0], [0.5, 0.5]], dtype=torch.float64))


def test_a_clipped_geometric_mean_by_hand():
    """Good: 4 counts as 2 and is stopped, √(2·½) = 1; bad: ¼ counts as ½ and is stopped, √(½·2) = 1."""
    alive = torch.tensor([[True, True, False]])
    gate = ClippedGeometricMean(math.log(2), math.log(2))
    good = coefficients(gate, [[4.0, 0.5, 7.0]], 1.0, alive=alive)[:, :2]
    assert_close(good, torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    bad = coefficients(gate, [[0.25, 2.0, 7.0]], -1.0, alive=alive)[:, :2]
    assert_close(bad, torch.tensor([[0.0, -1.0]], dtype=torch.float64))


def test_the_second_moment_s_budget_by_hand():
    """(log w)² are 0.01, 0.04, 0.25 and 1, their means 0.01, 0.025, 0.1 and 0.325: below 0.2, the first three stay."""
    x = torch.tensor([[1.0, -0.1], [0.2, -0.5]], dtype=torch.float64)
    found = coefficients(SecondMoment(0.2), x.exp(), 1.0)
    expected = x.exp()
    expected[0, 0] = 0.0
    assert_close(found, expected)
    alive = torch.tensor([[True, True], [False, True]])
    # Of 0.01, 0.25 and 1 the means are 0.01, 0.13 and 0.42.
    assert coefficients(SecondMoment(0.43), x.exp(), 1.0, alive=alive)[0, 0] > 0
    assert coefficients(SecondMoment(0.41), x.exp(), 1.0, alive=alive)[0, 0] == 0
    assert not coefficients(SecondMoment(0.001), x.exp(), 1.0, alive=alive).any()


@pytest.mark.parametrize(
    "gate", [SigmoidGate(), TrustRegion("kl", 0.05, 0.05), GammaWeight(), SequenceMask(0.5)], ids=str
)
def test_far_ratios_neither_overflow_nor_become_nan(gate):
    log_w = torch.tensor([-900.0, -40.0, 40.0, 900.0], dtype=torch.float64)
    logp_old = torch.where(log_w > 0, -log_w - 1, -1.0)
    for A in (1.0, -1.0):
        logp = (logp_old + log_w).requires_grad_()
        loss = gated_loss(logp, logp_old, A, gate=gate)
        slope = torch.autograd.grad(loss[:3].sum(), logp)[0]
        assert bool(slope.isfinite().all())


def test_a_masked_sample_of_probability_1_is_finite():
    zeros = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for distance in ("tv", "kl"):
        loss = gated_loss(zeros, zeros.detach(), 1.0, gate=TrustRegion(distance, 0.1, 0.1))
        assert torch.equal(torch.autograd.grad(loss.sum(), zeros)[0], torch.tensor([-1.0, -1.0]).double())


CLIP = {"low": 0.8, "high": 1.2}
DPPO = {"delta_low": 0.15, "delta_high": 0.15}, {"delta_low": 0.05, "delta_high": 0.05}
READ = {
    "tis": ("token", [("cap", "token", {"high": 2.0})]),
    "tis-sequence": ("response", [("cap", "response", {"high": 2.0})]),
    "tis-geometric": ("geometric", [("cap", "geometric", {"high": 2.0})]),
    "mis": ("token", [("mask", "token", {"high": 2.0})]),
    "mis-sequence": ("response", [("mask", "response", {"high": 2.0})]),
    "mis-geometric": ("geometric", [("mask", "geometric", {"low": 0.99, "high": 1.01})]),
    "icepop": ("token", [("mask", "token", {"low": 0.5, "high": 5.0})]),
    "sapo": ("token", [("smooth gate", "token", {"tau_pos": 1.0, "tau_neg": 1.05})]),
    "dppo-tv": (
        "token",
        [("trust-region mask by total variation", "probability", DPPO[0]), ("cap", "token", {"high": 20.0})],
    ),
    "dppo-kl": (
        "token",
        [("trust-region mask by KL(old‖new)", "probability", DPPO[1]), ("cap", "token", {"high": 20.0})],
    ),
    "vespo": (
        "response",
        [("gamma weight", "response", {"k_pos": 2.0, "lambda_pos": 3.0, "k_neg": 3.0, "lambda_neg": 2.0})],
    ),
    "opsm": (
        "token",
        [("PPO clip", "token", CLIP), ("off-policy sequence mask", "geometric", {"delta": 0.5})],
    ),
    "gmpo": (
        "geometric",
        [("clipped geometric mean", "token", {"low": math.exp(-0.4), "high": math.exp(0.4)})],
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_named_from_its_gradient(name):
    hold(weight_curves(RECIPES[name]), *READ[name])


def test_a_bad_response_is_dropped_whole_whatever_its_tokens_advantages():
    """Two responses far from π_old, whose tokens' advantages add up to −1 and to +1."""
    gate = SequenceMask(0.5, DualClip(0.6, 1.5, math.inf))
    logp_old = torch.full((2, 2), -1.0, dtype=torch.float64)
    logp = (logp_old + torch.tensor([[-0.7, -0.5], [-0.7, -0.5]])).requires_grad_()
    advantage = torch.tensor([[1.0, -2.0], [2.0, -1.0]], dtype=torch.float64)
    gated_loss(logp, logp_old, advantage, gate=gate).sum().backward()
    kept = -torch.tensor([2 * math.exp(-0.7), -math.exp(-0.5)], dtype=torch.float64)
    assert torch.equal(logp.grad[0], torch.zeros(2, dtype=torch.float64))
    assert torch.allclose(logp.grad[1], kept, rtol=1e-7)


def test_gspo_token_is_gspo():
    assert RECIPES["gspo-token"] is RECIPES["gspo"]


def test_the_second_moment_is_named_and_no_recipe_has_it():
    def loss(logp, old, ref, A, mask):
        return gated_loss(logp, old, A[:, None].expand_as(logp), gate=SecondMoment(0.07), alive=mask).mean()

    hold(weight_curves(loss), "token", [("second-moment budget", "batch", {"tau": 0.07})])
    assert not any(isinstance(row.gate, SecondMoment) for row in RECIPES.values())


@pytest.mark.parametrize(
    "make",
    [
        lambda: SigmoidGate(0.0),
        lambda: SigmoidGate(1.0, math.inf),
        lambda: TrustRegion("js", 0.1, 0.1),
        lambda: TrustRegion("tv", -0.1, 0.1),
        lambda: TrustRegion("kl", 0.1, 0.0),
        lambda: TrustRegion("tv", 0.1, 0.1, 0.0),
        lambda: GammaWeight(k_pos=-1.0),
        lambda: GammaWeight(lambda_neg=0.0),
        lambda: SequenceMask(0.0),
        lambda: ClippedGeometricMean(low=0.0),
        lambda: ClippedGeometricMean(high=math.nan),
        lambda: SecondMoment(-1.0),
        lambda: replace(RECIPES["sapo"], gate=None),
        lambda: replace(RECIPES["ppo"], gate=SigmoidGate()),
    ],
)
def test_what_is_out_of_range_is_refused(make):
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize("name", [name for name in NAMES if RECIPES[name].gate])
def test_each_number_of_a_gate_matters(name):
    """Doubling any of them, or halving where that is more, changes some token's gradient."""
    recipe, rng = RECIPES[name], torch.Generator().manual_seed(0)
    log_w = 2 * torch.randn((64, 4), generator=rng, dtype=torch.float64)
    old = (0.05 + 0.9 * torch.rand((64, 4), generator=rng, dtype=torch.float64)).log() - log_w.clamp(min=0)
    A = torch.randn(64, generator=rng, dtype=torch.float64)

    def slope(recipe):
        leaf = (old + log_w).requires_grad_()
        loss = recipe(leaf, old, None, A, torch.ones(64, 4)).loss
        return torch.autograd.grad(loss, leaf)[0]

    for field, value in zip(recipe.gate.__dataclass_fields__, astuple(recipe.gate), strict=True):
        if isinstance(value, float):
            changed = replace(recipe.gate, **{field: value / 5})
            assert not torch.equal(slope(recipe), slope(replace(recipe, gate=changed))), field


@pytest.mark.parametrize("seed", [1, 4])
def test_sapo_is_no_objective_off_policy_though_it_is_one_to_second_order(seed):
    row = verify(RECIPES["sapo"], seed=seed)
    assert row.ok and row.found[1] is None and 1e-5 < row.residual[1] < 1e-3


def faulty(change):
    """A gate's call that sees something else."""
    return lambda right: lambda gate, seen: right(gate, change(seen))


FAULTS = {
    "SAPO's temperatures exchanged": ("sapo", faulty(lambda seen: seen._replace(advantage=-seen.advantage))),
    "SAPO without w": ("sapo", lambda right: lambda gate, seen: right(gate, seen) * (-seen.log_w).exp()),
    "DPPO that stops the other direction": (
        "dppo-tv",
        faulty(lambda seen: seen._replace(advantage=-seen.advantage)),
    ),
    "DPPO with the policies exchanged": (
        "dppo-kl",
        faulty(lambda seen: seen._replace(logp_old=seen.logp_old + seen.log_w)),
    ),
    "VESPO's k and λ exchanged": ("vespo", faulty(lambda seen: seen._replace(advantage=-seen.advantage))),
    "OPSM of π_θ/π_old": ("opsm", faulty(lambda seen: seen._replace(log_w=-seen.log_w))),
    "OPSM that counts what is masked": ("opsm", faulty(lambda seen: seen._replace(alive=seen.alive | True))),
    "GMPO that counts what is masked": ("gmpo", faulty(lambda seen: seen._replace(alive=seen.alive | True))),
    "GMPO that stops nothing": (
        "gmpo",
        lambda right: lambda gate, seen: right(gate, seen).amax(-1, keepdim=True).expand_as(seen.log_w),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, monkeypatch):
    name, broken = FAULTS[fault]
    kind = type(RECIPES[name].gate)
    monkeypatch.setattr(kind, "__call__", broken(kind.__call__))
    assert not verify(RECIPES[name]).ok
