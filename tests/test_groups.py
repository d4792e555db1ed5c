"""What a group's baseline, its lengths and its being dropped do to the expected gradient: every group enumerated.

PAPER §6. A sample has w = π_θ/π_old, so all of it is off-policy too, except where a whole response is one sample.
"""

import functools
import itertools
import math

import numpy as np
import numpy_oracle
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy_oracle import DIVERGENCE, bandit_objective, gradient, softmax
from strategies import Bandit, Tree, bandits, divergence_names, floats, rewards

from rpg_ref import advantages, aggregate, differentiable_loss, k1
from rpg_ref.audit import oracle

FACTOR = {"none": lambda G: 1, "leave_one_out": lambda G: 1, "group_mean": lambda G: (G - 1) / G}
unscaled = st.sampled_from(sorted(FACTOR))
prefix_tree = functools.cache(oracle.prefix_tree)


def every_group(outcomes, size):
    return np.array(list(itertools.product(range(outcomes), repeat=size)))


def advantages_of(groups, reward, baseline):
    """A of every member of every group [N, G]; batch_mean sees one group at a time, which is then the whole batch."""
    R = torch.tensor(reward)[groups]
    if baseline == "batch_mean":
        return torch.stack([advantages(r, torch.arange(len(r)), baseline) for r in R])
    ids = torch.arange(len(groups)).repeat_interleave(groups.shape[1])
    return advantages(R.flatten(), ids, baseline).reshape(groups.shape)


def ascent(p, q, reward, size, baseline, name="urkl", beta=0.0, keep=None):
    """−∇ of the expected mean loss of a group drawn from q, given that it is kept, and the chance of that."""
    groups = every_group(len(p), size)
    chance = q[groups].prod(1) * (1.0 if keep is None else keep(reward[groups]))
    leaf = torch.tensor(np.log(p), requires_grad=True)
    picked = torch.tensor(groups)
    logp, logp_old = leaf.log_softmax(-1)[picked], torch.tensor(np.log(q))[picked]
    loss = differentiable_loss(logp, logp_old, advantages_of(groups, reward, baseline), name, beta).mean(1)
    total = (torch.tensor(chance / chance.sum()) * loss).sum()
    return -torch.autograd.grad(total, leaf)[0].numpy(), chance.sum()


def reward_gradient(p, reward):
    """∇E_p[R] by hand: p·(R − E R)."""
    return p * (reward - p @ reward)


def off_direction(found, exact):
    """The part of it that is along no multiple of the exact gradient, as a fraction."""
    unit = exact / np.linalg.norm(exact)
    return np.linalg.norm(found - np.sum(found * unit) * unit) / np.linalg.norm(found)


# The baseline's factor -----------------------------------------------------------------------------------------------

P, Q, R = np.array([0.2, 0.5, 0.3]), np.array([0.4, 0.25, 0.35]), np.array([1.0, -0.5, 0.25])


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("baseline", FACTOR)
def test_a_mean_that_holds_the_samples_own_reward_costs_one_gth(baseline, size):
    """So β acts as β·G/(G − 1) under group_mean, and as itself under leave_one_out."""
    factor = FACTOR[baseline](size)
    found, _ = ascent(P, Q, R, size, baseline)
    assert np.abs(found - factor * reward_gradient(P, R)).max() < 1e-15
    assert np.abs(found - (size - 1) / (size + 1) * reward_gradient(P, R)).max() > 1e-3
    found, _ = ascent(P, Q, R, size, baseline, "rkl", 0.3)
    exact = gradient(bandit_objective("rkl", 0.3 / factor, R, Q), np.log(P))
    assert np.abs(found - factor * exact).max() < 1e-15


@given(
    bandit=bandits(),
    size=st.integers(2, 5),
    baseline=unscaled,
    name=divergence_names,
    beta=st.sampled_from([0.0, 0.04, 1.0]),
)
def test_a_baseline_scales_the_reward_and_leaves_the_penalty(bandit: Bandit, size, baseline, name, beta):
    assume(len(bandit.logits) ** size <= 1300)
    p, q = softmax(bandit.logits), softmax(bandit.old)
    found, _ = ascent(p, q, bandit.reward, size, baseline, name, beta)
    exact = FACTOR[baseline](size) * reward_gradient(p, bandit.reward) + gradient(
        bandit_objective(name, beta, np.zeros(len(p)), q), bandit.logits
    )
    # Σp²/q bounds every row's weights, as it does E_p w.
    assert np.abs(found - exact).max() < 1e-13 * (10 + 10 * (p * p / q).sum())


def batch_mean_ascent(p, q, reward, samples):
    """The same for a batch of that many samples of each prompt, p, q and reward being [prompts, arms]."""
    leaf = torch.tensor(np.log(p), requires_grad=True)
    prompt = np.arange(len(p)).repeat(samples)
    batches = every_group(p.shape[1], len(prompt))
    drawn, ids = (np.tile(prompt, (len(batches), 1)), batches), torch.tensor(prompt)
    A = torch.stack([advantages(torch.tensor(r), ids, "batch_mean") for r in reward[drawn]])
    loss = differentiable_loss(leaf.log_softmax(-1)[drawn], torch.tensor(np.log(q))[drawn], A, "urkl", 0.0).mean(1)
    return -torch.autograd.grad((torch.tensor(q[drawn].prod(1)) * loss).sum(), leaf)[0].numpy()


@given(
    logits=floats((2, 2, 2), st.floats(-3.0, 3.0)),
    reward=floats((2, 2), rewards),
)
def test_the_mean_of_a_batch_of_two_costs_a_half_whatever_the_prompts(logits, reward):
    p, q = softmax(logits)
    exact = np.stack([reward_gradient(*row) for row in zip(p, reward, strict=True)]) / 2
    assert np.abs(batch_mean_ascent(p, q, reward, 1) - exact / 2).max() < 1e-12


def test_the_mean_of_a_batch_of_n_costs_one_nth_and_not_one_gth():
    """Two prompts of two samples: ¾, not ½. By hand p·(R − E R) of each, half of the batch."""
    p, q = np.array([[0.25, 0.75], [0.5, 0.5]]), np.full((2, 2), 0.5)
    found = batch_mean_ascent(p, q, np.array([[1.0, 0.0], [0.0, 1.0]]), 2)
    by_hand = np.array([[3, -3], [-4, 4]]) / 16 / 2
    assert np.abs(found - 3 / 4 * by_hand).max() < 1e-16 and np.abs(found - by_hand / 2).max() > 1e-2


@given(value=st.floats(-1e6, 1e6), sizes=st.lists(st.integers(2, 5), min_size=1, max_size=3))
def test_equal_rewards_teach_nothing(value, sizes):
    """To the bit, though the sum of a group's rewards may round; without a baseline they do teach."""
    groups = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    equal = torch.full((len(groups),), value, dtype=torch.float64)
    for baseline in ("group_mean", "leave_one_out", "group_std"):
        assert (advantages(equal, groups, baseline) == 0).all()
    assert torch.equal(advantages(equal, groups, "none"), equal)


# Division by the standard deviation ----------------------------------------------------------------------------------


def std_factor(chance, size):
    """Expected gradient over ∇p for a 0/1 reward of success rate p: a group is its number K of successes.

    Σ_i A_i ∇log π(y_i) is A₊·K/p − A₋·(G − K)/(1 − p) times ∇p in expectation given K.
    """
    groups = np.array([[1.0] * K + [0.0] * (size - K) for K in range(size + 1)])
    ids = torch.arange(size + 1).repeat_interleave(size)
    A = advantages(torch.tensor(groups.ravel()), ids, "group_std").numpy().reshape(groups.shape)
    given_K = (A * np.where(groups == 1, 1 / chance, -1 / (1 - chance))).mean(1)
    binomial = [math.comb(size, K) * chance**K * (1 - chance) ** (size - K) for K in range(size + 1)]
    return float(binomial @ given_K)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_counting_successes_is_enumerating_groups(size):
    p = np.array([0.1, 0.2, 0.4, 0.3])
    found, _ = ascent(p, p, np.array([1.0, 1.0, 0.0, 0.0]), size, "group_std")
    exact = std_factor(0.3, size) * reward_gradient(p, np.array([1.0, 1.0, 0.0, 0.0]))
    assert np.abs(found - exact).max() < 1e-15


@pytest.mark.parametrize(("size", "constant"), [(2, 1 / math.sqrt(2)), (3, 2 / math.sqrt(3))])
def test_division_by_std_is_a_rescaling_for_pairs_and_triples_of_zeros_and_ones(size, constant):
    """Every mixed group of two or of three has one and the same standard deviation: G·k(1 − k)/std is a constant."""
    for chance in (0.01, 0.1, 0.5, 0.8):
        assert std_factor(chance, size) == pytest.approx(constant, rel=1e-12)


def test_from_groups_of_four_division_by_std_favours_hard_and_easy_problems():
    """G = 4: 3/2 − (3 − 3√3/2)·p(1 − p), by hand. Two problems of one set get different factors."""
    for chance in (0.1, 0.5, 0.8):
        by_hand = 1.5 - (3 - 1.5 * math.sqrt(3)) * chance * (1 - chance)
        assert std_factor(chance, 4) == pytest.approx(by_hand, rel=1e-13)
    ratios = [std_factor(0.1, size) / std_factor(0.5, size) for size in (4, 8, 16, 256)]
    assert ratios[0] > 1.04 and ratios == sorted(ratios) and ratios[-1] == pytest.approx(5 / 3, rel=0.01)


def test_division_by_std_is_a_constant_for_pairs_and_triples_alone():
    """(G − 1)/√G as ρ → 0, and below 2(G − 1)/G at ½, which is no more than that: no constant from G = 4 on."""
    for size in range(4, 41):
        rare, even = std_factor(1e-9, size), std_factor(0.5, size)
        assert rare == pytest.approx((size - 1) / math.sqrt(size), rel=1e-6)
        assert even < 2 * (size - 1) / size <= (size - 1) / math.sqrt(size) * (1 + 1e-15)
        # With the population's deviation both are √(G/(G − 1)) times this.
        population = math.sqrt(size / (size - 1))
        assert population * rare == pytest.approx(math.sqrt(size - 1), rel=1e-6)
        assert population * even < 2 * math.sqrt((size - 1) / size)
        assert rare - even > 0.05


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_off_policy_the_factor_is_that_of_the_samplers_chance(size):
    """∇ρ_θ times a factor of ρ_old, which tends to 1/√(ρ_old(1 − ρ_old)): not the arcsine of ρ_θ."""
    right = np.array([0.0, 1.0, 1.0])
    found, _ = ascent(P, Q, right, size, "group_std")
    chance_old, chance = Q @ right, P @ right
    assert np.abs(found - std_factor(chance_old, size) * reward_gradient(P, right)).max() < 1e-15
    if size > 3:
        assert np.abs(found - std_factor(chance, size) * reward_gradient(P, right)).max() > 1e-4
    assert std_factor(chance_old, 512) == pytest.approx(1 / math.sqrt(chance_old * (1 - chance_old)), rel=3e-3)


def test_division_by_std_of_other_rewards_is_no_rescaling_even_in_pairs():
    """A pair's advantages are ±1/√2, whatever the distance of its rewards."""
    found, _ = ascent(P, P, R, 2, "group_std")
    assert off_direction(found, reward_gradient(P, R)) > 0.1
    by_sign = sum(P[a] * P[b] * np.sign(R[a] - R[b]) * (np.eye(3)[a] - P) for a in range(3) for b in range(3))
    assert np.abs(found - by_sign / math.sqrt(2)).max() < 1e-15


@pytest.mark.parametrize("chance", [0.5, 0.2, 0.9])
def test_large_groups_divided_by_std_ascend_the_arcsine(chance):
    """d/dp 2 arcsin √p = 1/√(p(1 − p)), approached as 1 − (½ + 1/(8p(1 − p)))/G: ½ from the degree of freedom."""
    slope = float(gradient(lambda x: 2 * np.arcsin(np.sqrt(x[0])), np.array([chance]))[0])
    assert slope == pytest.approx(1 / math.sqrt(chance * (1 - chance)), rel=1e-14)
    missing = [G * (1 - std_factor(chance, G) / slope) for G in (128, 512)]
    expected = 1 / 2 + 1 / 8 / chance / (1 - chance)
    assert missing[1] == pytest.approx(expected, rel=0.01)
    assert (missing[0] - expected) / (missing[1] - expected) == pytest.approx(4, rel=0.2)


@given(chance=st.floats(0.05, 0.95), size=st.integers(2, 40))
def test_the_arcsine_is_approached_at_the_rate_of_one_over_g(chance, size):
    """With k = K/G and m = p(1 − p) the factor is √((G − 1)/G)·E√(k(1 − k))/m.

    Above by Jensen, E k(1 − k) being m(1 − 1/G); below by √t ≥ 1 + (t − 1)/2 − (t − 1)²/2 at t = k(1 − k)/m, since
    E(k(1 − k) − m)² ≤ E(k − p)² = m/G.
    """
    m = chance * (1 - chance)
    found = std_factor(chance, size) * math.sqrt(m)
    assert found <= (1 - 1 / size) * (1 + 1e-12)
    assert found >= math.sqrt(1 - 1 / size) * (1 - (1 + 1 / m) / (2 * size)) - 1e-12


# Lengths -------------------------------------------------------------------------------------------------------------


def tree_ascent(tree: Tree, size, baseline, how, denominator=None, name="fkl", beta=0.0, estimator=None):
    """−∇ of the expected aggregate of a group of responses; of an estimator of log r/p, if given, instead of a loss."""
    enumeration = prefix_tree(*tree.shape)
    leaf = torch.tensor(tree.logits, requires_grad=True)
    tables = leaf.log_softmax(-1), *(torch.tensor(x).log_softmax(-1) for x in (tree.old, tree.ref))
    logp, old, ref = (oracle.token_logp(enumeration, table) for table in tables)
    groups = every_group(len(old), size)
    logp, old, ref, mask = (x[groups] for x in (logp, old, ref, enumeration.mask))
    A = advantages_of(groups, tree.reward, baseline)[..., None].expand_as(logp)
    values = estimator(ref - logp) if estimator else differentiable_loss(logp, old, A, name, beta, logp_ref=ref)
    chance = old.sum((1, 2)).exp()
    parts = [aggregate(*group, how, denominator=denominator) for group in zip(values, mask, strict=True)]
    return -torch.autograd.grad(chance @ torch.stack(parts), leaf)[0].numpy()


def expectation(tree: Tree, statistic, size=1):
    """θ ↦ E[statistic] of a group of responses, given as (rewards, lengths)."""
    states = {prefix: s for s, prefix in enumerate(numpy_oracle.prefixes(*tree.shape))}
    ends = list(numpy_oracle.responses(*tree.shape))
    lengths = np.array([len(y) for y in ends])
    groups = every_group(len(ends), size)
    values = np.array([statistic(tree.reward[g], lengths[g]) for g in groups])

    def J(logits):
        table = softmax(logits)
        p = np.array([np.prod([table[states[y[:t]], token] for t, token in enumerate(y)]) for y in ends])
        return np.sum(p[groups].prod(1) * values)

    return J


UNEVEN = Tree(
    (2, 3, 0),
    np.array([[0.3, 0.0], [-0.4, 0.2], [0.5, -0.1]]),
    np.array([[-0.2, 0.1], [0.3, 0.0], [0.0, 0.4]]),
    np.array([[0.6, -0.3], [0.1, 0.2], [0.0, 0.0]]),
    np.array([1.0, -0.5, 0.3, 0.8]),
)
EVEN = Tree((2, 2, None), *UNEVEN[1:4], UNEVEN.reward)
SUMS = [("seq-mean-token-sum", None), ("token-mean", 2.0)]
RATIOS = [("seq-mean-token-mean", None), ("token-mean", None)]


@st.composite
def uneven_trees(draw):
    """Responses of one, two and three tokens, sampled from the policy itself."""
    logits, ref = (draw(floats((3, 2), st.floats(-2.0, 2.0))) for _ in range(2))
    return Tree((2, 3, 0), logits, logits, ref, draw(floats(4, rewards)))


@pytest.mark.parametrize(("how", "denominator"), SUMS)
@pytest.mark.parametrize("baseline", FACTOR)
def test_sums_leave_a_baseline_unbiased_at_uneven_lengths(baseline, how, denominator):
    """Off-policy, with the penalty, at token level."""
    found = tree_ascent(UNEVEN, 2, baseline, how, denominator, "rkl", 0.4)
    old, ref = softmax(UNEVEN.old), softmax(UNEVEN.ref)
    exact = [
        gradient(numpy_oracle.tree_objective("rkl", b, r, old, ref, UNEVEN.shape, "token"), UNEVEN.logits)
        for b, r in ((0.0, UNEVEN.reward), (0.4, 0 * UNEVEN.reward))
    ]
    assert np.abs(found - FACTOR[baseline](2) * exact[0] - exact[1]).max() < 1e-15


@pytest.mark.parametrize("baseline", [*FACTOR, "batch_mean", "group_std"])
def test_means_over_lengths_bias_every_baseline(baseline):
    """With a 0/1 reward sums ascend along ∇E[R] whatever the baseline, means over uneven lengths do not."""
    for tree, how, denominator, biased in (
        *((UNEVEN, *how, True) for how in RATIOS),
        *((EVEN, *how, False) for how in RATIOS),
        *((UNEVEN, *how, False) for how in SUMS),
    ):
        tree = tree._replace(old=tree.logits, reward=np.array([1.0, 0.0, 0.0, 1.0]))
        found = tree_ascent(tree, 2, baseline, how, denominator)
        exact = gradient(expectation(tree, lambda R, T: R[0]), tree.logits)
        assert off_direction(found, exact) > 0.02 if biased else off_direction(found, exact) < 1e-14


def test_a_mean_over_lengths_teaches_a_constant_reward_to_stop_early():
    """Stopping at once has chance a, else there are two tokens: E[Σ ∇log π/T] = a(1 − a)/2·(1, −1), not 0."""
    a, reward = 0.3, np.ones(3)
    table = np.log(np.array([[a, 1 - a], [0.6, 0.4]]))
    tree = Tree((2, 2, 0), table, table, np.zeros((2, 2)), reward)
    expected = np.array([[1, -1], [0, 0]]) * a * (1 - a) / 2
    assert np.abs(tree_ascent(tree, 1, "none", "seq-mean-token-mean") - expected).max() < 1e-15
    assert np.abs(tree_ascent(tree, 1, "none", "seq-mean-token-sum")).max() < 1e-15
    # k1 in the loss has the same gradient with the other sign: its zero mean is gone too.
    assert np.abs(tree_ascent(tree, 1, "none", "seq-mean-token-mean", estimator=k1) + expected).max() < 1e-15
    assert np.abs(tree_ascent(tree, 1, "none", "seq-mean-token-sum", estimator=k1)).max() < 1e-15


@given(tree=uneven_trees(), baseline=unscaled)
def test_a_mean_over_each_length_ascends_the_reward_per_token(tree: Tree, baseline):
    """Without a baseline it is ∇E[R/T]; a baseline takes E[R]·∇E[1/T] off, which is not zero."""
    found = tree_ascent(tree, 2, baseline, "seq-mean-token-mean")
    per_token, inverse = (
        gradient(expectation(tree, statistic), tree.logits)
        for statistic in (lambda R, T: R[0] / T[0], lambda R, T: 1 / T[0])
    )
    mean = 0.0 if baseline == "none" else expectation(tree, lambda R, T: R[0])(tree.logits)
    assert np.abs(found - FACTOR[baseline](2) * (per_token - mean * inverse)).max() < 1e-13


@given(tree=uneven_trees(), size=st.integers(1, 2))
def test_k1_under_a_mean_of_tokens_descends_the_inverse_length(tree: Tree, size):
    """E[Σ ∇log π/Σ T] = ∇E[1/Σ T] of the group's tokens: 0 under sums and constant denominators only."""
    by_tokens = gradient(expectation(tree, lambda R, T: 1 / T.sum(), size), tree.logits)
    assert np.abs(tree_ascent(tree, size, "none", "token-mean", estimator=k1) + by_tokens).max() < 1e-13
    for how, denominator in SUMS:
        assert np.abs(tree_ascent(tree, 1, "none", how, denominator, estimator=k1)).max() < 1e-13


# Dropping groups that are all right or all wrong ---------------------------------------------------------------------

ONE_ZERO = np.array([1.0, 0.0, 0.0])


def mixed(rewards):
    """Whether a group is neither all right nor all wrong."""
    return (rewards.min(1) != rewards.max(1)).astype(float)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out", "group_std"])
def test_dropping_uniform_groups_multiplies_the_reward_gradient_by_one_over_the_chance_to_keep(baseline, size):
    """A uniform group has no advantage. Without a baseline it has one, and dropping it is something else."""
    whole, _ = ascent(P, Q, ONE_ZERO, size, baseline)
    kept, chance = ascent(P, Q, ONE_ZERO, size, baseline, keep=mixed)
    assert chance == pytest.approx(1 - 0.4**size - 0.6**size, rel=1e-14)
    assert np.abs(kept - whole / chance).max() < 1e-15
    whole, kept = (ascent(P, Q, ONE_ZERO, size, "none", keep=keep)[0] for keep in (None, mixed))
    assert np.abs(kept - whole / chance).max() > 1e-2


@pytest.mark.parametrize("reward", [R, np.array([1.0, 1.0, 0.0]), np.array([2.0, -1.0, 2.0])])
def test_dropping_uniform_groups_needs_a_baseline_that_is_zero_on_them(reward):
    """Any reward: 1/P_old(keep), off-policy; and without a baseline another gradient, not only another length."""
    for baseline in ("group_mean", "leave_one_out", "group_std"):
        whole, _ = ascent(P, Q, reward, 3, baseline)
        kept, chance = ascent(P, Q, reward, 3, baseline, keep=mixed)
        uniform = sum(Q[reward == value].sum() ** 3 for value in set(reward))
        assert chance == pytest.approx(1 - uniform, rel=1e-14)
        assert np.abs(kept - whole / chance).max() < 1e-15
    whole, kept = (ascent(P, Q, reward, 3, "none", keep=keep)[0] for keep in (None, mixed))
    assert np.abs(kept - whole / chance).max() > 1e-2


def test_the_penalty_is_averaged_over_the_groups_that_are_kept():
    """Of a mixed pair one is right: q = (0.4, 0.25, 0.35) becomes (½, 5/24, 7/24); the factor is no 1/P(keep)."""
    whole, _ = ascent(P, Q, 0 * R, 2, "none", "fkl", 1.0)
    kept, chance = ascent(P, Q, ONE_ZERO, 2, "leave_one_out", "fkl", 1.0, mixed)
    reward, _ = ascent(P, Q, ONE_ZERO, 2, "leave_one_out", keep=mixed)
    assert whole == pytest.approx(Q - P, abs=1e-15)
    assert kept - reward == pytest.approx(np.array([1 / 2, 5 / 24, 7 / 24]) - P, abs=1e-15)
    for wrong in (whole, whole / chance):
        assert np.abs(kept - reward - wrong).max() > 1e-2


@given(
    bandit=bandits(),
    size=st.integers(2, 4),
    name=divergence_names,
    baseline=st.sampled_from(["group_mean", "group_std"]),
)
def test_kept_samples_are_right_more_or_less_often_and_otherwise_as_drawn(bandit: Bandit, size, name, baseline):
    """Reward: 1/P(keep). Penalty: that of samples right with chance (P − Pᴳ)/(1 − Pᴳ − (1 − P)ᴳ) instead of P."""
    assume(len(bandit.logits) ** size <= 1300)
    p, q = softmax(bandit.logits), softmax(bandit.old)
    right = np.arange(len(p)) < (len(p) + 1) // 2
    success = q[right].sum()
    whole, _ = ascent(p, q, right.astype(float), size, baseline)
    kept, chance = ascent(p, q, right.astype(float), size, baseline, keep=mixed)
    both, _ = ascent(p, q, right.astype(float), size, baseline, name, 1.0, mixed)
    scale = (10 + 10 * (p * p / q).sum()) / chance
    assert np.abs(kept - whole / chance).max() < 1e-13 * scale
    share = (success - success**size) / (1 - success**size - (1 - success) ** size)
    drawn = q * np.where(right, share / success, (1 - share) / (1 - success))
    # Each sample is pushed by its own slope of D, as the NumPy oracle differentiates it in p itself.
    slope = gradient(lambda x: DIVERGENCE[name](x, q), p) * p / q
    penalty = -(drawn * slope - p * (drawn @ slope))
    assert np.abs(both - kept - penalty).max() < 1e-12 * scale


def test_with_several_prompts_the_factor_is_the_overall_chance_to_keep():
    """A mean over kept groups weighs a prompt by its chance to be kept, which undoes the 1/P(keep) of its own."""
    hard, easy = np.array([0.1, 0.5, 0.4]), np.array([0.6, 0.3, 0.1])
    runs = [ascent(p, p, ONE_ZERO, 4, "leave_one_out", keep=mixed) for p in (hard, easy)]
    chances = [chance for _, chance in runs]
    pooled = [g * chance / sum(chances) for g, chance in runs]
    for g, p in zip(pooled, (hard, easy), strict=True):
        assert np.abs(g - reward_gradient(p, ONE_ZERO) / 2 / np.mean(chances)).max() < 1e-15
    assert abs(chances[0] - chances[1]) > 0.3
