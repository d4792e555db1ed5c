"""The errata as counterexamples: what published KL terms really descend, found by `identify`.

p = π_θ, q = π_old, r = π_ref, w = p/q. Rows are those of ERRATA.md: the ground-truth table, the libraries, the released
code's KL losses, and the statements on sequences below the table. Clips are in test_errata_clip.py.
"""

import dataclasses

import pytest
import torch
from fits import fit

from rpg_ref import DIVERGENCES, RECIPES, Objective, aggregate, clipped_loss, differentiable_loss, k1, k2, k3
from rpg_ref.audit import oracle

BETA = 0.5
REVERSE, FORWARD = {"reverse_kl": BETA}, {"forward_kl": BETA}
DIFFERENCE = {"reverse_kl": BETA, "forward_kl": -BETA}


def in_the_loss(term):
    """−w·A + β·term(p, q, r), from log-probabilities."""

    def loss(p, q, r, advantages, mask):
        return aggregate(-(p - q).exp() * advantages.unsqueeze(1) + BETA * term(p, q, r), mask, "token-mean")

    return loss


def in_the_reward(term):
    """−w·(A − β·SG(term))."""

    def loss(p, q, r, advantages, mask):
        reward = advantages.unsqueeze(1) - BETA * term(p, q, r).detach()
        return aggregate(-(p - q).exp() * reward, mask, "token-mean")

    return loss


def of_a_response(term):
    """−w_{1:T}·A + β·term, the reward exact at sequence level whatever the term."""

    def loss(p, q, r, advantages, mask):
        return (-(p - q).sum(1).exp() * advantages + BETA * term(p, q, r)).mean()

    return loss


def w(p, q):
    return (p - q).exp()


def straight_through(p):
    return (p - p.detach()).exp()


def whole(p, q):
    return (p - q).sum(1).exp()


def prefix(p, q):
    return (p - q).cumsum(1).exp()


def geometric(p, q):
    return (p - q).mean(1, keepdim=True).exp()


def assert_found(finding, penalty):
    """``penalty`` beside a reward of 1; None: the gradient of no known objective."""
    if penalty is None:
        assert finding.residual > 1e-4 and finding.objective is None
        assert "no known objective" in finding.verdict
    else:
        assert finding.residual < 1e-8
        assert dict(finding.objective.terms) == pytest.approx({"reward": 1.0, **penalty}, rel=1e-8)


# (loss, penalty found on-policy, off-policy). Of the libraries' table, trl's, verl's and open-instruct's default is
# "k3", slime's "k1", NeMo-RL's "k3 · exp(log p − SG(log p))", OpenRLHF's and AReaL's "k1 in the reward, frozen at q";
# the fixes they offer are "k3 · w" and "k1 · w".
GROUND_TRUTH = {
    "k1": (in_the_loss(lambda p, q, r: k1(r - p)), {}, {"forward_kl_old": -BETA}),
    "k2": (in_the_loss(lambda p, q, r: k2(r - p)), REVERSE, None),
    "k2 · SG(w)": (in_the_loss(lambda p, q, r: w(p, q).detach() * k2(r - p)), REVERSE, REVERSE),
    "k2 · w": (in_the_loss(lambda p, q, r: w(p, q) * k2(r - p)), None, None),
    "k3": (in_the_loss(lambda p, q, r: k3(r - p)), FORWARD, None),
    "k3 · SG(w)": (in_the_loss(lambda p, q, r: w(p, q).detach() * k3(r - p)), FORWARD, FORWARD),
    "k1 · w": (in_the_loss(lambda p, q, r: w(p, q) * k1(r - p)), REVERSE, REVERSE),
    "k3 · w": (in_the_loss(lambda p, q, r: w(p, q) * k3(r - p)), REVERSE, REVERSE),
    "k1 · exp(log p − SG(log p))": (in_the_loss(lambda p, q, r: straight_through(p) * k1(r - p)), REVERSE, None),
    "k3 · exp(log p − SG(log p))": (in_the_loss(lambda p, q, r: straight_through(p) * k3(r - p)), REVERSE, None),
    "k1 in the reward, at p": (in_the_reward(lambda p, q, r: k1(r - p)), REVERSE, REVERSE),
    "k1 in the reward, frozen at q": (
        in_the_reward(lambda p, q, r: k1(r - q)),
        REVERSE,
        {"reverse_kl": BETA, "reverse_kl_old": -BETA},
    ),
    "k3 in the reward, at p": (in_the_reward(lambda p, q, r: k3(r - p)), DIFFERENCE, DIFFERENCE),
    "k3 in the reward, frozen at q": (in_the_reward(lambda p, q, r: k3(r - q)), DIFFERENCE, None),
}

# The rows of the libraries' table that the ground truth lacks.
LIBRARIES = {
    # trl's use_bias_correction_kl at sequence level, and at token level for comparison.
    "k3 · geometric sequence ratio": (in_the_loss(lambda p, q, r: geometric(p, q) * k3(r - p)), None, None),
    "k3 · token ratio": GROUND_TRUTH["k3 · w"],
    # The trainer recomputes π_old = SG(p) while q is what the engine sampled from: SG(p)/q multiplies the reward's
    # term alone in trl, and must multiply the penalty as well.
    "sampler correction not on the KL": (in_the_loss(lambda p, q, r: w(p, p.detach()) * k3(r - p)), REVERSE, None),
    "sampler correction on the KL": (
        in_the_loss(lambda p, q, r: w(p, q).detach() * w(p, p.detach()) * k3(r - p)),
        REVERSE,
        REVERSE,
    ),
    # AReaL: a missing reference becomes log r = 0; in the reward that is an entropy bonus, not no penalty.
    "k1 in the reward, log r = 0": (in_the_reward(lambda p, q, r: p), {"entropy": BETA}, {"entropy": BETA}),
    "k1 in the reward, log r = 0, frozen at q": (
        in_the_reward(lambda p, q, r: q),
        {"entropy": BETA},
        {"entropy": BETA, "reverse_kl_old": -BETA},
    ),
}

FORWARD_OLD, REVERSE_OLD = {"forward_kl_old": BETA}, {"reverse_kl_old": BETA}
# The released code's KL losses, on v = p/r: the four of the 16 scripts, and two more; (loss, penalty found off-policy
# with r = q as in the scripts, and with another r, where u = r/q is missing). −log v has one gradient whatever r.
RELEASED = {
    "rpg_fkl": (lambda d: -d, FORWARD_OLD, FORWARD_OLD),
    "rpg_ufkl": (lambda d: d.exp() - d - 1, FORWARD_OLD, None),
    "rpg_rkl": (lambda d: d.exp() * d, REVERSE_OLD, None),
    "rpg_urkl": (lambda d: d.exp() * (d - 1) + 1, REVERSE_OLD, None),
    "rpg_js": (lambda d: (d.exp() * d + d) / 2, {"reverse_kl_old": BETA / 2, "forward_kl_old": -BETA / 2}, None),
    "rpg_ujs": (lambda d: (d.exp() * d - d) / 2, {"reverse_kl_old": BETA / 2, "forward_kl_old": BETA / 2}, None),
}

# At sequence level: (penalty of a response, found on-policy, off-policy).
SEQUENCES = {
    "full weight · k1": (lambda p, q, r: whole(p, q) * k1((r - p).sum(1)), REVERSE, REVERSE),
    "full weight · k3 of the response": (lambda p, q, r: whole(p, q) * k3((r - p).sum(1)), REVERSE, REVERSE),
    "live prefix weight · k1": (lambda p, q, r: (prefix(p, q) * k1(r - p)).sum(1), REVERSE, REVERSE),
    "live prefix weight · k3": (lambda p, q, r: (prefix(p, q) * k3(r - p)).sum(1), REVERSE, REVERSE),
    "detached prefix weight · k2": (lambda p, q, r: (prefix(p, q).detach() * k2(r - p)).sum(1), None, None),
    "k1 · token weight": (lambda p, q, r: (w(p, q) * k1(r - p)).sum(1), None, None),
    "k3 · token weight": (lambda p, q, r: (w(p, q) * k3(r - p)).sum(1), None, None),
    "k2": (lambda p, q, r: k2(r - p).sum(1), None, None),
    # On-policy at equal lengths T = 3 it is 1/T of the exact gradient; the tests of uneven lengths take that away.
    "k1 · geometric weight": (lambda p, q, r: (geometric(p, q) * k1(r - p)).sum(1), {"reverse_kl": BETA / 3}, None),
    "k3 · geometric weight": (lambda p, q, r: (geometric(p, q) * k3(r - p)).sum(1), None, None),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", GROUND_TRUTH)
def test_ground_truth(name, seed):
    """The ground-truth table, row by row."""
    loss, *expected = GROUND_TRUTH[name]
    report = fit(loss, seed=seed)
    for finding, penalty in zip((report.on_policy, report.off_policy), expected, strict=True):
        assert_found(finding, penalty)
    assert report.on_policy.unidentified == ("reverse_kl_old", "forward_kl_old")


@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries(name):
    """Other libraries: trl's two corrections, AReaL's missing reference."""
    loss, *expected = LIBRARIES[name]
    report = fit(loss)
    for finding, penalty in zip((report.on_policy, report.off_policy), expected, strict=True):
        assert_found(finding, penalty)


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_codes_kl_losses(name):
    """Released code, rows 1 and 3: four are right; rpg_js is ½(RKL − FKL), rpg_ujs half of Jeffreys."""
    value, anchored_at_old, elsewhere = RELEASED[name]
    report = fit(in_the_loss(lambda p, q, r: value(p - q)))
    assert_found(report.on_policy, {})  # π_ref = π_old = π_θ: the first step sees no penalty
    assert_found(report.off_policy, anchored_at_old)
    assert_found(fit(in_the_loss(lambda p, q, r: value(p - r))).off_policy, elsewhere)


def test_the_jensen_shannon_divergence():
    """Released code, row 3: what rpg_js was to be."""
    report = fit(dataclasses.replace(RECIPES["rpg-urkl"], divergence="js", beta=BETA))
    for finding in (report.on_policy, report.off_policy):
        assert_found(finding, {"js": BETA})


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name):
    """Below the table: exact are the full and the live prefix weight; no token-level reverse KL is, even on-policy."""
    term, *expected = SEQUENCES[name]
    report = fit(of_a_response(term), level="sequence")
    for finding, penalty in zip((report.on_policy, report.off_policy), expected, strict=True):
        assert_found(finding, penalty)


def uneven():
    """A policy with an end of sequence, on-policy: its logits, tree and tables, and log-probs [N, T] of p, q, r."""
    tree = oracle.prefix_tree(3, 3, eos=0)
    rng = torch.Generator().manual_seed(0)
    leaf, ref = torch.randn((2, tree.states, 3), generator=rng, dtype=torch.float64)
    leaf.requires_grad_()
    tables = oracle.Policies(leaf.log_softmax(-1), leaf.detach().log_softmax(-1), ref.log_softmax(-1))
    return leaf, tree, tables, [oracle.token_logp(tree, table) for table in tables]


def assert_biased(found, exact):
    """Not even in direction: no multiple of the exact gradient comes near."""
    along = exact * (found @ exact) / (exact @ exact).clamp(min=1e-30)
    assert (found - along).norm() > 0.05 * found.norm() > 1e-3


# (a term of the loss, the objective whose gradient it has on-policy when summed over tokens; none: a zero)
LENGTHS = {
    "k1": (lambda p, q, r: k1(r - p), {}),
    "k2": (lambda p, q, r: k2(r - p), {"reverse_kl": 1.0}),
    "k3": (lambda p, q, r: k3(r - p), {"forward_kl": 1.0}),
    "k1 · w": (lambda p, q, r: w(p, q) * k1(r - p), {"reverse_kl": 1.0}),
    "a baseline": (lambda p, q, r: -w(p, q), {}),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_means_over_each_response_bias_every_term(name):
    """Below the table, "token sums or equal lengths throughout": with 1/T_i and an end of sequence none is left."""
    term, terms = LENGTHS[name]
    leaf, tree, tables, logps = uneven()
    exact = -oracle.gradient(Objective(terms), tree, tables, torch.zeros(len(tree.tokens)).double(), [leaf])
    per_response = torch.where(tree.mask, term(*logps), 0.0).sum(1)
    summed, averaged = (
        oracle.flat_gradient((logps[1].sum(1).exp() * per_response / n).sum(), [leaf])
        for n in (torch.ones(()), tree.mask.sum(1))
    )
    assert (summed - exact).abs().max() < 1e-14
    assert_biased(averaged, exact)


def test_the_geometric_mean_weight_is_biased():
    """Below the table: it has not even the reward's gradient, off-policy, or on-policy where lengths differ."""

    def loss(weight):
        return lambda p, q, r, advantages, mask: (-weight(p, q) * advantages).mean()

    biased = fit(loss(lambda p, q: geometric(p, q).squeeze(1)), level="sequence")
    assert_found(biased.on_policy, {})  # at equal lengths 1/T of it is
    assert_found(biased.off_policy, None)
    assert_found(fit(loss(whole), level="sequence").off_policy, {})

    leaf, tree, tables, (p, q, _) = uneven()
    reward = torch.randn(len(tree.tokens), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = oracle.gradient(Objective({"reward": 1.0}, "sequence"), tree, tables, reward, [leaf])
    log_w = (p - q).sum(1)
    full, mean = (
        oracle.flat_gradient((q.sum(1).exp() * (log_w / n).exp() * reward).sum(), [leaf])
        for n in (torch.ones(()), tree.mask.sum(1))
    )
    assert (full - exact).abs().max() < 1e-14
    assert_biased(mean, exact)


@pytest.mark.parametrize(("name", "penalty"), [("fkl", {}), ("ufkl", {}), ("rkl", REVERSE), ("urkl", REVERSE)])
def test_algorithm_1_as_printed_loses_the_forward_kl(name, penalty):
    """Paper, row 2; lines 11–14, 27, 32: with Â live the penalty of FKL and UFKL has no expected gradient at all."""
    report = fit(dataclasses.replace(RECIPES[f"rpg-{name}-clip-as-printed"], beta=BETA))
    for finding in (report.on_policy, report.off_policy):
        assert_found(finding, penalty)


@pytest.mark.parametrize("name", ["grpo", "grpo-corrected"])
def test_grpo_descends_the_forward_kl(name):
    """Paper, row 8: on-policy the unweighted k3 has a direction, and it is the other one."""
    expected = {"grpo": (FORWARD, None), "grpo-corrected": (REVERSE, REVERSE)}[name]
    report = fit(dataclasses.replace(RECIPES[name], beta=BETA))
    for finding, penalty in zip((report.on_policy, report.off_policy), expected, strict=True):
        assert_found(finding, penalty)


# (penalty of log v, its slope, the v at which its value is 10, one beyond)
CLAMPED = {
    "rkl of the released code": (lambda d: d.exp() * d, lambda d: d.exp() * (d + 1), 5.7289, 6.0),
    "low_var_kl of verl": (lambda d: k3(-d), lambda d: 1 - (-d).exp(), 1 / 13.61, 1 / 14),
}


@pytest.mark.parametrize("name", CLAMPED)
def test_a_clamp_of_the_penaltys_value_kills_the_gradient_where_it_is_needed(name):
    """Released code, row 4, and verl: beyond ±10 (RKL at w = 5.73, k3 at p = r/13.6) the token is let go."""
    value, slope, *points = CLAMPED[name]
    edge, log_v = torch.tensor(points, dtype=torch.float64).log().unsqueeze(1)
    penalty = value(log_v.requires_grad_())
    assert value(edge).item() == pytest.approx(10, abs=0.01) and penalty.item() > 10
    assert torch.autograd.grad(penalty.clamp(-10, 10).sum(), log_v, retain_graph=True)[0] == 0
    assert torch.autograd.grad(penalty.sum(), log_v)[0].item() == pytest.approx(slope(log_v).item(), rel=1e-12)


def test_exp_without_a_clamp_before_it_is_nan():
    """Released code, row 4: at a log-ratio of 89, float32's inf·0; ours is finite, and zero outside the region."""
    logp = torch.tensor([-1.0], requires_grad=True)
    old = torch.tensor([-90.0])
    for value in (lambda d: d.exp() * d, lambda d: d.exp() * (d - 1) + 1, lambda d: d.exp() - d - 1):
        released = value(logp - old).clamp(-10, 10)
        assert released.item() == 10
        assert torch.autograd.grad(released.sum(), logp)[0].isnan()
    for name in ("rkl", "urkl", "ufkl"):
        for ref in (None, torch.tensor([-1.5])):
            loss = clipped_loss(logp, old, -1.0, name, 1.0, logp_ref=ref)
            assert loss.isfinite() and torch.autograd.grad(loss.sum(), logp)[0] == 0
    # And where the reference is the far one, w·k3(r/p) at w = 1 has the slope log v.
    far = differentiable_loss(logp, logp.detach(), 0.0, "urkl", 1.0, logp_ref=torch.tensor([-90.0]))
    assert torch.autograd.grad(far.sum(), logp)[0].item() == pytest.approx(89.0, rel=1e-6)


def test_token_mean_of_each_micro_batch_depends_on_the_split():
    """Released code, row 5: the mean of two means is not the mean, unless both halves have as many tokens."""
    loss = torch.tensor([[1.0, 2.0, 3.0], [10.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    whole = aggregate(loss, mask, "token-mean")
    means = [aggregate(loss[i : i + 1], mask[i : i + 1], "token-mean") for i in range(2)]
    parts = [aggregate(loss[i : i + 1], mask[i : i + 1], "token-mean", denominator=4.0) for i in range(2)]
    assert whole == sum(parts) == 4.0 and sum(means) / 2 == 6.0


def test_unnormalised_and_normalised_rows_are_one_objective():
    """Paper, row 1: the tables are right; the rows differ by ±(v − 1), whose expected gradient is zero."""
    log_v = torch.linspace(-3, 3, 7, dtype=torch.float64)
    for name, plain, sign in (("ufkl", "fkl", 1), ("urkl", "rkl", -1)):
        difference = DIVERGENCES[name].f(log_v) - DIVERGENCES[plain].f(log_v)
        assert (difference - sign * log_v.expm1()).abs().max() < 1e-13
