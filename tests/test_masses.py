"""Measures that are not distributions: which β an unnormalised π_old really sets, and which rows stay divergences.

Sums over all outcomes; D and its gradients are the NumPy oracle's.
"""

import numpy as np
import numpy_oracle
import pytest
import torch
from divergence_facts import FACTS
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy_oracle import DIVERGENCE, softmax
from strategies import DIVERGENCE_NAMES, floats

from rpg_ref import DIVERGENCES, DualClip, differentiable_loss, grpo_loss, reinforce_loss

masses = st.floats(0.05, 20.0)
AT_REST = [name for name, facts in FACTS.items() if facts.f_prime_at_one == 0]


@st.composite
def two_measures(draw):
    """Logits p and r over the same outcomes, and a mass for each."""
    size = draw(st.integers(2, 6))
    logits = floats(size, st.floats(-4.0, 4.0))
    return draw(logits), draw(logits), draw(masses), draw(masses)


def gradient_of_divergence(name, logits, ref):
    return numpy_oracle.gradient(lambda x: DIVERGENCE[name](softmax(x), ref), logits)


# The β that an unnormalised π_old sets -------------------------------------------------------------------------------

EFFECTIVE_BETA = {name: facts.mass_factor for name, facts in FACTS.items() if facts.mass_factor}


def descent(loss, logits, old_logits, Z, reward, name, beta):
    """∇ of the expected loss: π_old = Z·softmax, anchor too, samples from π_old/Z."""
    leaf, sampler = torch.tensor(logits, requires_grad=True), torch.tensor(old_logits).log_softmax(-1)
    log_mass = float(np.log(Z))
    value = loss(leaf.log_softmax(-1), sampler + log_mass, torch.tensor(reward), name, beta, log_mass_old=log_mass)
    return torch.autograd.grad((sampler.exp() * value).sum(), leaf)[0].numpy()


THREE = (np.array([0.0, 1.0, 2.0]), np.array([0.0, 0.0, -2.0]))


@pytest.mark.parametrize("loss", [differentiable_loss, reinforce_loss])
@pytest.mark.parametrize(("name", "factor"), [(name, factor(4.0)) for name, factor in EFFECTIVE_BETA.items()])
def test_a_sampler_of_mass_four_sets_this_multiple_of_beta(loss, name, factor):
    logits, old = THREE
    found = descent(loss, logits, old, 4.0, np.zeros(3), name, 1.0)
    normalised = gradient_of_divergence(name, logits, softmax(old))
    assert np.abs(found - factor * normalised).max() < 1e-14
    for wrong in {0.25, 1, 4} - {factor}:
        assert np.abs(found - wrong * normalised).max() > 1e-2


@pytest.mark.parametrize(("name", "moves"), [(name, name not in EFFECTIVE_BETA) for name in DIVERGENCE_NAMES])
def test_only_jeffreys_and_jensen_shannon_turn_with_the_mass(name, moves):
    logits, old = THREE
    one, four = (descent(differentiable_loss, logits, old, Z, np.zeros(3), name, 1.0) for Z in (1.0, 4.0))
    cosine = one @ four / np.linalg.norm(one) / np.linalg.norm(four)
    assert cosine < 1 - 1e-3 if moves else cosine > 1 - 1e-14


@given(case=two_measures(), name=st.sampled_from(sorted(EFFECTIVE_BETA)), data=st.data())
def test_the_mass_rescales_beta_and_leaves_the_reward_alone(case, name, data):
    logits, old, Z, _ = case
    R = data.draw(floats(len(logits), st.floats(-1.0, 1.0)))
    gain = numpy_oracle.gradient(lambda x: np.sum(softmax(x) * R), logits)
    penalty = EFFECTIVE_BETA[name](Z) * gradient_of_divergence(name, logits, softmax(old))
    found = descent(differentiable_loss, logits, old, Z, R, name, 0.5)
    # χ² = Σ p²/r + … bounds what cancels in any row.
    size = 1 + Z + DIVERGENCE["chi2"](softmax(logits), Z * softmax(old))
    assert np.abs(found - (0.5 * penalty - gain)).max() < 1e-13 * size


@given(case=two_measures())
def test_jeffreys_weighs_its_two_halves_by_z_and_one(case):
    """So its direction is that of Z·∇KL(r‖p) + ∇KL(p‖r)."""
    logits, old, Z, _ = case
    forward, reverse = (gradient_of_divergence(name, logits, softmax(old)) for name in ("fkl", "rkl"))
    found = descent(differentiable_loss, logits, old, Z, np.zeros(len(logits)), "jeffreys", 1.0)
    assert np.abs(found - (Z * forward + reverse)).max() < 1e-13 * (Z + 10)


# Which rows are divergences at any masses ----------------------------------------------------------------------------


def code_divergence(name, p, r):
    log_v = torch.tensor(np.log(p) - np.log(r))
    return float((torch.tensor(r) * DIVERGENCES[name].f(log_v)).sum())


@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
def test_from_twice_the_mass_only_the_plain_reverse_kl_is_negative(name):
    p, r = np.full(2, 0.5), np.ones(2)
    assert code_divergence(name, p, r) == pytest.approx(FACTS[name].at_half, rel=1e-14)
    assert DIVERGENCE[name](p, r) == pytest.approx(FACTS[name].at_half, rel=1e-14)
    assert code_divergence(name, r, r) == DIVERGENCE[name](r, r) == 0


def test_from_half_the_mass_only_the_plain_forward_kl_is_negative():
    found = {name: code_divergence(name, np.ones(2), np.full(2, 0.5)) for name in DIVERGENCE_NAMES}
    assert found.pop("fkl") == pytest.approx(-np.log(2)) and min(found.values()) > 0.05


@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
def test_a_plain_kl_is_zero_for_measures_that_differ(name):
    """p = (¾, ¼), r = m·(½, ½): KL(p‖r) = KL(p‖½) − log m is 0 at m = e^KL, and KL(r‖p) = 0 where log m = −KL(½‖p)."""
    p, half = np.array([0.75, 0.25]), np.full(2, 0.5)
    for mass, zero in ((np.exp(DIVERGENCE["rkl"](p, half)), "rkl"), (np.exp(-DIVERGENCE["fkl"](p, half)), "fkl")):
        found = code_divergence(name, p, mass * half)
        assert abs(found) < 1e-15 if name == zero else abs(found) > 1e-3


@given(case=two_measures(), name=st.sampled_from(AT_REST), same=st.booleans())
def test_rows_at_rest_at_one_are_divergences_at_any_masses(case, name, same):
    """f ≥ 0 = f(1) = f′(1): term by term, so D > 0 without rounding error unless the measures are equal."""
    logits_p, logits_r, mass_p, mass_r = case
    p, r = mass_p * softmax(logits_p), mass_r * softmax(logits_r)
    assume(np.abs(np.log(p / r)).max() > 1e-6)
    assert code_divergence(name, p, p if same else r) == 0 if same else code_divergence(name, p, r) > 0


@given(case=two_measures())
def test_a_plain_kl_is_negative_where_the_masses_outweigh_the_shapes(case):
    """KL(p‖r) = m_p·(KL of the shapes − log(m_r/m_p)): never negative at *equal* masses, whatever they are."""
    logits_p, logits_r, mass_p, mass_r = case
    shape_p, shape_r = softmax(logits_p), softmax(logits_r)
    p, r = mass_p * shape_p, mass_r * shape_r
    for name, heavier in (("rkl", mass_p), ("fkl", mass_r)):
        of_shapes, gap = DIVERGENCE[name](shape_p, shape_r), np.log(mass_r / mass_p) * (1 if name == "rkl" else -1)
        rounding = 1e-14 * (1 + np.abs(np.log(p / r)).max())
        assert abs(code_divergence(name, p, r) / heavier - (of_shapes - gap)) < rounding
        # Pinsker's inequality: D ≥ ½‖·‖₁², so zero only for equal shapes.
        far = np.abs(shape_p - shape_r).sum() ** 2 / 2
        assert code_divergence(name, mass_p * shape_p, mass_p * shape_r) / mass_p >= far - rounding


# The unweighted k3 off-policy ----------------------------------------------------------------------------------------


def k3_loss(leaf, log_q, log_r):
    """GRPO's penalty at samples of q, without weight."""
    log_p = leaf.log_softmax(-1)
    no_reward = torch.zeros_like(log_q)
    return (log_q.exp() * grpo_loss(log_p, log_q, no_reward, "urkl", 1.0, logp_ref=log_r, clip=DualClip())).sum()


def k3_slope(logits, q, r):
    leaf = torch.tensor(logits, requires_grad=True)
    return torch.autograd.grad(k3_loss(leaf, torch.tensor(np.log(q)), torch.tensor(np.log(r))), leaf)[0].numpy()


def test_unweighted_k3_by_hand():
    """p = (½, ½), r = (¼, ¾): k3(r/p) is ½ − 1 + log 2 on the first arm, 3/2 − 1 − log 3/2 on the second."""
    p, r, q = np.full(2, 0.5), np.array([0.25, 0.75]), np.array([0.9, 0.1])
    value = k3_loss(torch.tensor(np.log(p)), *(torch.tensor(np.log(x)) for x in (q, r))).item()
    assert value == pytest.approx(0.9 * (np.log(2) - 0.5) + 0.1 * (0.5 - np.log(1.5)), rel=1e-14)
    # Σ q(1 − r/p)(onehot − p): 1 − r/p = ±½ and the first arm's score is ±½, so ¼ from either arm.
    assert k3_slope(np.log(p), q, r) == pytest.approx([0.25, -0.25], rel=1e-14)
    assert k3_slope(np.log(r), q, r) == pytest.approx([0, 0], abs=1e-15)


def test_unweighted_k3_off_policy_descends_no_known_divergence():
    """With 16 arms it is no combination of the table's gradients and of the KLs to the sampler; on-policy it is."""
    rng = np.random.default_rng(0)
    logits, q, r = rng.normal(size=16), softmax(rng.normal(size=16)), softmax(rng.normal(size=16))

    def known(q):
        rows = [gradient_of_divergence(name, logits, r) for name in ("fkl", "rkl", "js", "chi2")]
        return np.array(rows + [gradient_of_divergence(name, logits, q) for name in ("fkl", "rkl")]).T

    for sampler, explained in ((q, False), (softmax(logits), True)):
        target, candidates = k3_slope(logits, sampler, r), known(sampler)
        fit = np.linalg.lstsq(candidates, target, rcond=1e-12)[0]
        missing = np.linalg.norm(candidates @ fit - target) / np.linalg.norm(target)
        assert missing < 1e-13 if explained else missing > 0.2
    assert np.abs(k3_slope(logits, softmax(logits), r) - gradient_of_divergence("fkl", logits, r)).max() < 1e-15


@given(case=two_measures(), data=st.data())
def test_unweighted_k3_off_policy_is_a_penalty_with_one_resting_point(case, data):
    """≥ 0, and 0 only at π_θ = π_ref; elsewhere its gradient is at least that of the arm with the largest or least v.

    Of Σ q(1 − 1/v)·(onehot − p) the k-th entry is q_k(1 − 1/v_k) − p_k·c: whatever the sign of c, one of the two arms
    is pulled home by its own term.
    """
    logits, ref = case[:2]
    q, p, r = (softmax(x) for x in (data.draw(floats(len(logits), st.floats(-4.0, 4.0))), logits, ref))
    log_v = np.log(p / r)
    assume(np.ptp(log_v) > 1e-3)
    value = k3_loss(*(torch.tensor(np.log(x)) for x in (p, q, r))).item()
    assert value >= (q * (np.exp(-log_v) - 1 + log_v)).max() * (1 - 1e-6) > 0
    assert abs(k3_loss(*(torch.tensor(np.log(x)) for x in (r, q, r))).item()) < 1e-28
    most, least = log_v.argmax(), log_v.argmin()
    pull = min(q[most] * -np.expm1(-log_v[most]), q[least] * np.expm1(-log_v[least]))
    slope = k3_slope(logits, q, r)
    assert np.abs(slope).max() >= pull - 1e-13 * np.exp(-log_v.min())
    assert np.abs(k3_slope(ref, q, r)).max() < 1e-13
