"""The errata as counterexamples: the paper's clips, and the released code's, sample by sample and in expectation.

Rows are those of ERRATA.md, "The paper" and "The released code of the paper". KL terms are in test_errata.py.
"""

import math

import pytest
import torch
from fits import fit
from torch.testing import assert_close

from rpg_ref import DIVERGENCES, DualClip, clipped_loss, clipped_loss_as_printed, differentiable_loss, ppo_loss, weight
from rpg_ref import aggregate as aggregated


def f64(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


BETA = 0.5
CLIP = DualClip(low=0.2, high=0.28, dual=3.0)
OPEN = DualClip(low=1.0, high=math.inf, dual=math.inf)
W_LOW, W_HIGH = 1 - CLIP.low, 1 + CLIP.high
NAMES = ["fkl", "ufkl", "rkl", "urkl"]
LOGP = -3.0
# Below, inside and above the region of w, the last beyond c; times rising and falling samples.
W, ADVANTAGE = torch.cartesian_prod(f64(0.5, 0.9, 1.1, 2.0, 4.0), f64(1.5, 0.1, -0.1, -1.5)).unbind(1)


def sample(loss, w=W, A=ADVANTAGE, logp=LOGP):
    """(value, ∂loss/∂log π_θ) of loss(logp, logp_old, A) at the given ratios, π_ref = π_old."""
    leaf = torch.full_like(w, logp).requires_grad_()
    value = loss(leaf, leaf.detach() - w.log(), A)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def parts(logp, old, A, name, beta):
    """w, C = −β·slope(log w) and A′ = A + C/w of samples with π_ref = π_old; w alone is live."""
    w = (logp - old).exp()
    C = -beta * DIVERGENCES[name].slope((logp - old).detach())
    return w, C, A + C / w.detach()


def dual_clip(w, A, clip=CLIP):
    """The coefficient C(w, A): min(w·A, clip(w)·A), for A < 0 at least c·A."""
    smaller = torch.minimum(w * A, w.clamp(1 - clip.low, 1 + clip.high) * A)
    return torch.where(A >= 0, smaller, torch.maximum(smaller, clip.dual * A))


def region(direction, w, clip=CLIP):
    return torch.where(direction >= 0, w < 1 + clip.high, (1 - clip.low < w) & (w < clip.dual))


def bandit(seed=0, size=6, spread=0.7):
    """Logits of π_θ (a leaf), log π_old and rewards of one state."""
    rng = torch.Generator().manual_seed(seed)
    logits, drift, reward = torch.randn((3, size), generator=rng, dtype=torch.float64)
    leaf = (logits + spread * drift).requires_grad_()
    return leaf, logits.log_softmax(-1), reward


def expected_gradient(loss, leaf, old):
    """∇ Σ π_old·loss(log π_θ)."""
    return torch.autograd.grad((old.exp() * loss(leaf.log_softmax(-1))).sum(), leaf)[0]


# The paper -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "constant"), [("rkl", 0.0), ("urkl", 1.0)])
def test_lines_26_and_27_differ_by_beta_w(name, constant):
    """Row 2: −w·Â is the loss + β·w, whose gradient has mean zero: no bias for the reverse rows, only variance."""
    right, printed = (
        sample(lambda p, q, A, loss=loss, kw=kw: loss(p, q, A, name, BETA, **kw))
        for loss, kw in ((differentiable_loss, {}), (clipped_loss_as_printed, {"clip": OPEN}))
    )
    assert_close(printed[0] - right[0], BETA * (W - constant))
    assert_close(printed[1] - right[1], BETA * W)
    leaf, old, reward = bandit()
    means = [
        expected_gradient(lambda p, loss=loss, kw=kw: loss(p, old, reward, name, BETA, **kw), leaf, old)
        for loss, kw in ((differentiable_loss, {}), (clipped_loss_as_printed, {"clip": OPEN}))
    ]
    assert_close(means[0], means[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "w", "lowest", "highest"), [("rkl", 1.0, 4.0, 4.0), ("urkl", 1.1, 100.0, 150.0)])
def test_the_extra_term_of_line_27_is_variance(name, w, lowest, highest):
    """Row 2: the second moment of the KL term alone, ×4 for RKL at w = 1, over ×100 for URKL at w within 10 %."""
    ratio, none = f64(w), f64(0.0)
    _, right = sample(lambda p, q, A: differentiable_loss(p, q, A, name, BETA), ratio, none)
    _, printed = sample(lambda p, q, A: clipped_loss_as_printed(p, q, A, name, BETA, clip=OPEN), ratio, none)
    assert lowest - 1e-9 <= ((printed / right) ** 2).item() <= highest + 1e-9


@pytest.mark.parametrize(("beta", "lowest", "highest"), [(1e-4, 0.999, 1.001), (1.0, 2.0, 4.0)])
def test_the_extra_term_in_the_whole_gradient(beta, lowest, highest):
    """Row 2: beside a reward of one standard deviation RKL's costs nothing at β = 1e-4, and about ×2.8 at β = 1."""
    ratios = []
    for seed in range(5):
        leaf, old, reward = bandit(seed, size=8, spread=0.0)
        advantage = reward - (old.exp() * reward).sum()
        score = torch.eye(8, dtype=torch.float64) - old.exp()
        variances = []
        for loss, kw in ((differentiable_loss, {}), (clipped_loss_as_printed, {"clip": OPEN})):
            logp = old.clone().requires_grad_()
            (g,) = torch.autograd.grad(loss(logp, old, advantage, "rkl", beta, **kw).sum(), logp)
            per_sample = g.unsqueeze(1) * score
            mean = old.exp() @ per_sample
            variances.append((old.exp() @ (per_sample - mean) ** 2).sum())
        ratios.append((variances[1] / variances[0]).item())
    assert lowest < min(ratios) and max(ratios) < highest


@pytest.mark.parametrize("name", NAMES)
def test_the_printed_clipped_branches_still_move_the_policy(name):
    """Row 3: −(1 + ε2)·Â and −c·Â push log π_θ through Â; Algorithm 2 has an exact zero there."""
    w, A = f64(2.0, 0.5, 4.0), f64(9.0, -9.0, -9.0)
    _, printed = sample(lambda p, q, A: clipped_loss_as_printed(p, q, A, name, BETA, clip=CLIP), w, A)
    _, ours = sample(lambda p, q, A: clipped_loss(p, q, A, name, BETA, clip=CLIP), w, A)
    slope = {"fkl": 1 / w, "ufkl": 1 / w, "rkl": w**0, "urkl": w**0}[name]  # of f′(w), along log w
    assert_close(printed, f64(W_HIGH, W_LOW, CLIP.dual) * BETA * slope)
    assert bool((ours == 0).all())


# Four readings of "RPG-Style Clip", each of (logp, logp_old, A), π_ref = π_old.
def algorithm_2(p, q, A, name):
    return clipped_loss(p, q, A, name, BETA, clip=CLIP)


def appendix_g2(p, q, A, name):
    """Appendix G.2: PPO's dual clip of w·SG(Â), w live, Â = A′."""
    w, _, regularised = parts(p, q, A, name, BETA)
    return -dual_clip(w, regularised)


def equation_4_1(p, q, A, name, live=False):
    """Eq. 4.1: −C(w, SG(Â))·log π_θ, C the dual clip's coefficient; the text leaves open whether w is live in it."""
    w, _, regularised = parts(p, q, A, name, BETA)
    return -dual_clip(w if live else w.detach(), regularised) * p


def hard_clip(p, q, A, name):
    """The remark after Prop. F.1: w̄ for w, and log w̄ for log w, inside SG."""
    log_w = (p - q).detach().clamp(math.log(W_LOW), math.log(W_HIGH))
    return -(log_w.exp() * A - BETA * DIVERGENCES[name].slope(log_w)) * p


@pytest.mark.parametrize("name", NAMES)
def test_four_definitions_of_one_clip(name):
    """Row 4: G.2 has Algorithm 2's gradient; Eq. 4.1 zeroes none, or has w live and is wrong; F.1 is a hard clip."""
    coefficient = weight(torch.full_like(W, LOGP), LOGP - W.log(), ADVANTAGE, name, BETA)
    live = region(coefficient, W)
    assert 0 < live.sum() < len(live)
    grads = {f.__name__: sample(lambda p, q, A, f=f: f(p, q, A, name))[1] for f in (algorithm_2, appendix_g2)}
    exact = torch.where(live, -coefficient, 0.0)
    assert_close(grads["algorithm_2"], exact, rtol=1e-12, atol=1e-14)
    assert_close(grads["appendix_g2"], exact, rtol=1e-12, atol=1e-14)

    # Eq. 4.1 detached: outside the region the weight is truncated, w̄·Â, and nothing stops.
    _, detached = sample(lambda p, q, A: equation_4_1(p, q, A, name))
    inside = torch.where(live, W, torch.where(coefficient >= 0, W.clamp(max=W_HIGH), W.clamp(W_LOW, CLIP.dual)))
    assert_close(detached, -inside * coefficient / W, rtol=1e-12, atol=1e-14)
    assert bool((detached != 0).all())

    # Eq. 4.1 with w live: inside the region the product rule multiplies the weight by 1 + log π_θ.
    _, product = sample(lambda p, q, A: equation_4_1(p, q, A, name, live=True))
    assert_close(product[live], -coefficient[live] * (1 + LOGP), rtol=1e-12, atol=1e-14)

    # The remark: Algorithm 2's weight only for w in [1 − ε1, 1 + ε2], elsewhere that of w̄.
    _, hard = sample(lambda p, q, A: hard_clip(p, q, A, name))
    near = (W_LOW < W) & (W < W_HIGH)
    assert_close(hard[near], -coefficient[near], rtol=1e-12, atol=1e-14)
    assert bool((hard[~live] != 0).all()) and bool(((hard - exact)[~near].abs() > 1e-3).any())


@pytest.mark.parametrize("name", NAMES)
def test_which_definitions_are_rpgs_gradient_near_the_sampler(name):
    """Row 4: where nothing is clipped three are exact; Eq. 4.1 with w live is the gradient of no known objective."""
    penalty = {"forward_kl": BETA} if name in ("fkl", "ufkl") else {"reverse_kl": BETA}
    for definition in (algorithm_2, appendix_g2, equation_4_1, hard_clip):
        # π_ref = π_old: a penalty against the sampler is only seen off-policy.
        found = fit(as_a_loss(definition, name)).off_policy
        expected = {f"{term}_old": c for term, c in penalty.items()}
        assert dict(found.objective.terms) == pytest.approx({"reward": 1.0, **expected}, rel=1e-7)
    live = fit(as_a_loss(lambda p, q, A, name: equation_4_1(p, q, A, name, live=True), name))
    assert live.on_policy.objective is live.off_policy.objective is None


def as_a_loss(definition, name):
    def loss(p, q, r, advantages, mask):
        return aggregated(definition(p, q, advantages.unsqueeze(1).expand_as(p), name), mask, "token-mean")

    return loss


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_clipping_zeroes_the_penalty_too(name, seed):
    """Row 5: outside the region β is not felt; the bias is exactly −E_old[1_outside·weight·∇log π_θ]."""
    leaf, old, reward = bandit(seed, size=12, spread=1.5)
    logp = leaf.detach().log_softmax(-1)
    coefficient = weight(logp, old, reward, name, BETA)
    outside = ~region(coefficient, (logp - old).exp())
    clipped, unclipped, lost, lost_penalty = (
        expected_gradient(loss, leaf, old)
        for loss in (
            lambda p: clipped_loss(p, old, reward, name, BETA, clip=CLIP),
            lambda p: differentiable_loss(p, old, reward, name, BETA),
            lambda p: torch.where(outside, coefficient, 0.0) * p,
            lambda p: torch.where(outside, BETA * DIVERGENCES[name].slope(logp - old), 0.0) * p,
        )
    )
    assert_close(-clipped - -unclipped, -lost, rtol=1e-12, atol=1e-14)
    assert min(lost.abs().max(), lost_penalty.abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["fkl", "ufkl"])
def test_the_forward_rows_separate(name):
    """Row 6: weight = w·A′ with A′ = A − β·f′(w) for them too; with G.2's Â = R − b no penalty is left."""
    f_prime = {"fkl": -1 / W, "ufkl": 1 - 1 / W}[name]
    coefficient = weight(torch.full_like(W, LOGP), LOGP - W.log(), ADVANTAGE, name, BETA)
    assert_close(coefficient, W * (ADVANTAGE - BETA * f_prime), rtol=1e-12, atol=1e-14)
    # It is also what the 26 "rf_clip_ppo" scripts run (released code, row 1).
    bare = fit(as_a_loss(lambda p, q, A, name: ppo_loss(p, q, A, clip=CLIP), name))
    for finding in (bare.on_policy, bare.off_policy):
        assert dict(finding.objective.terms) == {"reward": 1.0}


def test_the_forward_kl_avoids_zeros_and_the_reverse_kl_forces_them():
    """Row 7: §2.1 has it the other way round. Limits of one action's term, and the best bell for two peaks."""
    ref, vanishing, tiny = f64(math.log(0.5)), f64(-700.0), f64(-300.0)

    def term(name, p, r):
        """r·f(p/r), from the surrogate with samples of π_old = r."""
        return (r.exp() * differentiable_loss(p, r, 0.0, name, 1.0)).item()

    assert term("fkl", vanishing, ref) > 300 and abs(term("rkl", vanishing, ref)) < 1e-290  # π_θ gives up an action
    assert term("rkl", ref, tiny) > 100 and abs(term("fkl", ref, tiny)) < 1e-100  # π_θ keeps what π_ref excludes

    x = torch.arange(21, dtype=torch.float64)
    peaks = torch.stack([-((x - centre) ** 2) / 2 for centre in (5.0, 15.0)]).logsumexp(0).log_softmax(0)
    best = {}
    for name in ("fkl", "rkl"):
        bells = [
            (-((x - centre) ** 2) / (2 * width**2)).log_softmax(0) for centre in range(21) for width in (1, 2, 3, 5, 8)
        ]
        losses = [(peaks.exp() * differentiable_loss(bell, peaks, 0.0, name, 1.0)).sum() for bell in bells]
        best[name] = bells[int(torch.stack(losses).argmin())].exp()
    assert min(best["fkl"][5], best["fkl"][15]) > 0.04  # covers both peaks, and the valley between them
    assert min(best["rkl"][5], best["rkl"][15]) < 1e-9 and max(best["rkl"][5], best["rkl"][15]) > 0.3


@pytest.mark.parametrize("log_mass", [-1.0, 0.7, 2.0])
def test_the_mass_of_the_sampler_cannot_be_matched(log_mass):
    """Row 10: at π_θ = π_old/Z every UFKL weight is −β(w − 1) ≠ 0, and the expected gradient is zero all the same."""
    leaf, sampler, _ = bandit()
    old = sampler + log_mass
    at_shape = weight(sampler, old, 0.0, "ufkl", BETA, log_mass_old=log_mass)
    assert_close(at_shape, torch.full_like(old, -BETA * (1 - math.exp(log_mass))), rtol=1e-12, atol=0)

    def gradient(name, leaf):
        return expected_gradient(
            lambda p: differentiable_loss(p, old, 0.0, name, BETA, log_mass_old=log_mass), leaf, sampler
        )

    assert gradient("ufkl", sampler.clone().requires_grad_()).abs().max() < 1e-15
    # Everywhere it is Z times the gradient of the normalised KL, which knows of no mass.
    normalised = expected_gradient(lambda p: differentiable_loss(p, sampler, 0.0, "fkl", BETA), leaf, sampler)
    assert_close(gradient("ufkl", leaf), math.exp(log_mass) * normalised, rtol=1e-12, atol=1e-14)
    assert_close(gradient("fkl", leaf), gradient("ufkl", leaf), rtol=1e-12, atol=1e-14)


def test_line_25_is_psi_below_zero():
    """Row 11: at ψ = 0, w < 1 − ε1, line 16 has taken the sample (value 0); "ψ ≤ 0" would give it w_low's value."""
    w = f64(0.5)
    log_w = LOGP - (LOGP - w.log())  # as the loss computes it: the weight w(A − log w) is an exact zero
    value, g = sample(lambda p, q, A: clipped_loss(p, q, A, "urkl", 1.0, clip=CLIP), w, log_w)
    as_commented = (log_w - w * log_w / W_LOW) * W_LOW * -LOGP
    assert value == g == 0 and as_commented.abs().item() > 0.1


# The released code's `compute_policy_loss_reinforce`, which no script calls ------------------------------------------


def released(logp, old, A, name, beta, clip=CLIP, version="clip_ppo"):
    """Its branches in our symbols, (loss, direction on which it branches); C_bar is of the clamped w."""
    w = (logp - old).detach().exp()
    C_bar = -beta * DIVERGENCES[name].slope(w.clamp(1 - clip.low, 1 + clip.high).log())
    inside, nll = (w * A + C_bar) * -logp, -logp.detach()
    high, low = ((bound * A - C_bar) * nll for bound in (1 + clip.high, 1 - clip.low))
    rising = torch.where(w < 1 + clip.high, inside, high)
    falling = torch.where(w < 1 - clip.low, low, torch.where(w < clip.dual, inside, (clip.dual * A + C_bar) * nll))
    # "clip_ppo_v3" asks whether (A + C_bar/w)·log π_θ > 0, which is ψ < 0, and then takes the branch of ψ ≥ 0.
    direction = A if version == "clip_ppo" else -(A + C_bar / w) * nll
    return torch.where(direction > 0, rising, falling), direction


@pytest.mark.parametrize("name", NAMES)
def test_released_dead_branches_have_the_penaltys_sign_wrong(name):
    """Row 2: −kl_term where Algorithm 2 has +: the logged value is off by 2·C·ℓ, the gradient zero in both."""
    # Just beyond the bounds the clamped w is w, so that nothing else differs.
    w, A = f64(W_HIGH * (1 + 1e-12), W_LOW * (1 - 1e-12)), f64(9.0, -9.0)
    value, g = sample(lambda p, q, A: released(p, q, A, name, BETA)[0], w, A)
    right, zero = sample(lambda p, q, A: clipped_loss(p, q, A, name, BETA, clip=CLIP), w, A)
    C = -BETA * DIVERGENCES[name].slope(w.log())
    assert bool((g == 0).all()) and bool((zero == 0).all())
    assert_close(right - value, 2 * C * -LOGP, rtol=1e-9, atol=1e-9)
    assert (right - value).abs().max() > 0.1


@pytest.mark.parametrize("name", ["ufkl", "rkl", "urkl"])
def test_released_penalty_is_that_of_the_clamped_ratio(name):
    """Row 2: a live sample at w = 0.5 is pulled back as if w were 0.8."""
    w, A = f64(0.5), f64(2.0)
    _, g = sample(lambda p, q, A: released(p, q, A, name, BETA)[0], w, A)
    _, right = sample(lambda p, q, A: clipped_loss(p, q, A, name, BETA, clip=CLIP), w, A)
    slope = DIVERGENCES[name].slope
    assert_close(right, -(w * A - BETA * slope(w.log())), rtol=1e-12, atol=0)
    assert_close(g, -(w * A - BETA * slope(f64(W_LOW).log())), rtol=1e-12, atol=0)
    assert (g - right).abs() > 0.05


def test_branching_on_the_advantages_sign_is_another_region():
    """Row 2: A > 0 but weight < 0: Algorithm 2 stops the sample below 1 − ε1, the released code lets it move."""
    log_w, advantage = f64(0.5).log(), 0.1
    logp = f64(-3.0).requires_grad_()
    loss = clipped_loss(logp, logp.detach() - log_w, advantage, "ufkl", 1.0, logp_ref=logp.detach() - 2.0)
    released = clipped_loss(logp, logp.detach() - log_w, advantage, "ufkl", 0.0)  # the advantage alone decides
    assert torch.autograd.grad(loss.sum(), logp)[0] == 0
    assert torch.autograd.grad(released.sum(), logp)[0] != 0


# Percent of samples live in one and dead in the other, β = 0.3: log w ~ N(0, σ²), A ~ N(0, 1).
SHARES = {0.3: (5.6, 2.2, 5.0, 2.1), 0.7: (11.0, 7.1, 9.1, 6.3), 1.0: (13.6, 10.5, 10.8, 8.8)}


@pytest.mark.parametrize("spread", SHARES)
@pytest.mark.parametrize("name", NAMES)
def test_how_many_masks_the_advantages_sign_changes(name, spread):
    """Row 2's 6–13 % is a spread of 0.7 to 1 nats of log w; with A = ±1 and a spread of 0.3 no mask differs."""
    rng = torch.Generator().manual_seed(0)
    log_w, A = torch.randn((2, 200_000), generator=rng, dtype=torch.float64)
    log_w, w = spread * log_w, (spread * log_w).exp()
    share = {}
    for kind, advantage in (("normal", A), ("signs", A.sign())):
        coefficient = weight(torch.zeros_like(w), -log_w, advantage, name, 0.3)
        share[kind] = 100 * (region(coefficient, w, DualClip()) != region(advantage, w, DualClip())).double().mean()
    assert share["normal"].item() == pytest.approx(SHARES[spread][NAMES.index(name)], abs=0.1)
    assert spread > 0.3 or share["signs"] < 0.1


def test_the_v3_branch_is_inverted():
    """Row 2: it takes the branch of ψ ≥ 0 for ψ < 0 and the other for ψ > 0, so each clips where the other must."""
    for A, w, alive in ((9.0, 0.5, True), (9.0, 2.0, False), (-9.0, 0.5, False), (-9.0, 2.0, True)):
        point = f64(w), f64(A)
        _, right = sample(lambda p, q, A: clipped_loss(p, q, A, "urkl", BETA, clip=CLIP), *point)
        _, plain = sample(lambda p, q, A: released(p, q, A, "urkl", BETA)[0], *point)
        _, inverted = sample(lambda p, q, A: released(p, q, A, "urkl", BETA, version="clip_ppo_v3")[0], *point)
        assert bool(right != 0) is bool(plain != 0) is alive
        assert bool(inverted != 0) is not alive
