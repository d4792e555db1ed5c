"""`identify` against losses written by hand: right ones pass, each planted fault is caught and named."""

import math

import pytest
import torch
from tiers import quick

from rpg_ref import RECIPES, LossOutput, Objective, k2, k3
from rpg_ref.audit import assert_gradient, identify
from rpg_ref.audit.identify import FIT
from rpg_ref.audit.oracle import token_logp
from rpg_ref.audit.population import population

BETA = 0.1
REWARD, TO_REFERENCE = {"reward": 1.0}, {"reward": 1.0, "reverse_kl": BETA}
TO_POLICY = {"reward": 1.0, "forward_kl": BETA}


def masked_mean(x, mask):
    return torch.where(mask, x, 0.0).sum() / mask.sum()


def ratio(p, q):
    return (p - q).exp()


def ppo(p, q, A):
    w = ratio(p, q)
    return -torch.minimum(w * A[:, None], w.clamp(0.8, 1.2) * A[:, None])


def in_the_loss(penalty, gain=ppo, mean=masked_mean):
    """A black box as a user writes one, penalty a function of log π_θ, log π_old and log π_ref."""
    return lambda p, q, r, A, mask: mean(gain(p, q, A) + BETA * penalty(p, q, r), mask)


def reverse_kl(p, q, r):
    return ratio(p, q) * k3(r - p)


RIGHT = in_the_loss(reverse_kl)


def terms(finding):
    return None if finding.objective is None else pytest.approx(dict(finding.objective.terms), rel=1e-6)


# What each loss is on-policy and off-policy, and a word of the mistake that the report names.
FAULTS = {
    "unweighted k1": (in_the_loss(lambda p, q, r: p - r), REWARD, REWARD | {"forward_kl_old": -BETA}, "unweighted k1"),
    "unweighted k2": (in_the_loss(lambda p, q, r: k2(r - p)), TO_REFERENCE, None, "0.1 × unweighted k2"),
    "unweighted k3": (in_the_loss(lambda p, q, r: k3(r - p)), TO_POLICY, None, "0.1 × unweighted k3"),
    "detached weight": (
        in_the_loss(lambda p, q, r: ratio(p, q).detach() * k3(r - p)),
        TO_POLICY,
        TO_POLICY,
        "k3 times the detached ratio",
    ),
    "weighted twice": (
        in_the_loss(lambda p, q, r: ratio(p, q) ** 2 * k3(r - p)),
        {"reward": 1.0, "reverse_kl": 2 * BETA, "forward_kl": -BETA},
        None,
        "k3 times the ratio squared",
    ),
    "on-policy weight": (
        in_the_loss(lambda p, q, r: ratio(p, p.detach()) * (p - r)),
        TO_REFERENCE,
        None,
        "k1 times exp(log π − SG log π)",
    ),
    # (k3 + k3′)∇log π is k1·∇log π, sample by sample.
    "on-policy weight of k3": (
        in_the_loss(lambda p, q, r: ratio(p, p.detach()) * k3(r - p)),
        TO_REFERENCE,
        None,
        "unweighted k2",
    ),
    "arguments swapped": (
        in_the_loss(lambda p, q, r: k3(p - r)),
        {"reward": 1.0, "chi2": BETA / 2},
        None,
        "k3 of π/ref for ref/π",
    ),
    "sign of the penalty": (
        in_the_loss(lambda p, q, r: -reverse_kl(p, q, r)),
        {"reward": 1.0, "reverse_kl": -BETA},
        {"reward": 1.0, "reverse_kl": -BETA},
        "the wrong sign",
    ),
    "sign of the loss": (
        lambda *batch: -RIGHT(*batch),
        {"reward": -1.0, "reverse_kl": -BETA},
        {"reward": -1.0, "reverse_kl": -BETA},
        "the whole loss has the wrong sign",
    ),
    "penalty counted twice": (
        in_the_loss(lambda p, q, r: 2 * reverse_kl(p, q, r)),
        {"reward": 1.0, "reverse_kl": 2 * BETA},
        {"reward": 1.0, "reverse_kl": 2 * BETA},
        "counted twice",
    ),
    "own sample in the baseline": (
        in_the_loss(lambda p, q, r: 7 / 8 * reverse_kl(p, q, r)),
        {"reward": 1.0, "reverse_kl": 7 / 8 * BETA},
        {"reward": 1.0, "reverse_kl": 7 / 8 * BETA},
        "(G − 1)/G with G = 8",
    ),
    "no importance weight": (
        in_the_loss(reverse_kl, gain=lambda p, q, A: -p * A[:, None]),
        TO_REFERENCE,
        None,
        "A·log π, unweighted",
    ),
    "geometric-mean ratio": (
        in_the_loss(reverse_kl, gain=lambda p, q, A: -ratio(p, q).log().mean(1, True).exp() * A[:, None] + 0 * p),
        TO_REFERENCE,
        None,
        "A times the response's geometric-mean ratio",
    ),
    "detached ratio": (
        in_the_loss(reverse_kl, gain=lambda p, q, A: -ratio(p, q).detach() * A[:, None]),
        {"reverse_kl": BETA / 3},
        {"reverse_kl": BETA / 3},
        "the advantages change the loss's value and not its gradient",
    ),
    "mask ignored": (
        in_the_loss(reverse_kl, mean=lambda x, mask: x.mean()),
        TO_REFERENCE,
        TO_REFERENCE,
        "the mask is ignored",
    ),
    "values behind the mask": (
        lambda p, q, r, A, mask: RIGHT(p, q, r, A, mask) * (p - p.mean()).square().mean().detach(),
        TO_REFERENCE,
        TO_REFERENCE,
        "values behind the mask change the gradient",
    ),
    "length counted twice": (
        in_the_loss(reverse_kl, mean=lambda x, mask: ((x * mask).sum(1) / mask.sum(1) ** 2).mean()),
        TO_REFERENCE,
        TO_REFERENCE,
        "divided by the length twice",
    ),
}


def test_a_right_loss_passes_and_has_no_fault():
    report = identify(RIGHT)
    assert terms(report.on_policy) == TO_REFERENCE and terms(report.off_policy) == TO_REFERENCE
    assert report.faults == () and report.regimes_agree
    assert max(report.on_policy.residual, report.off_policy.residual) < 1e-14
    assert_gradient(RIGHT, reward=1.0, reverse_kl=BETA)
    assert_gradient(RIGHT, reward=2.0, reverse_kl=2 * BETA)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_named(name):
    loss, on, off, word = FAULTS[name]
    report = identify(loss)
    assert terms(report.on_policy) == on and terms(report.off_policy) == off
    with pytest.raises(AssertionError) as failure:
        assert_gradient(report, reward=1.0, reverse_kl=BETA)
    assert word in str(failure.value)
    for finding in (report.on_policy, report.off_policy):
        assert finding.residual < 1e-12 if finding.objective else finding.residual > 1e-4


@pytest.mark.parametrize("seed", quick([1, 2, 3], [1]))
@pytest.mark.parametrize("name", ["unweighted k3", "detached weight", "no importance weight", "weighted twice"])
def test_a_fault_is_found_with_other_policies(name, seed):
    loss, on, off, word = FAULTS[name]
    report = identify(loss, seed=seed)
    assert terms(report.on_policy) == on and terms(report.off_policy) == off
    assert any(word in form for form in report.forms.values())


# What is right only sometimes: the gradient fits, and a hazard says when it does not.
HAZARDS = {
    "NaN behind the mask": (lambda p, q, r, A, mask: ((ppo(p, q, A)) * mask).sum() / mask.sum(), "behind the mask"),
    "denominator with padding": (
        in_the_loss(reverse_kl, mean=lambda x, mask: torch.where(mask, x, 0.0).mean()),
        "padding is counted in the denominator",
    ),
    "token-mean of a micro-batch": (RIGHT, "micro-batches, for responses of different lengths"),
    "whitened advantages": (
        lambda p, q, r, A, mask: masked_mean(ppo(p, q, (A - A.mean()) / (A.std() + 1e-6)), mask),
        "normalised or clipped inside",
    ),
    "centred advantages": (
        lambda p, q, r, A, mask: masked_mean(ppo(p, q, A - A.mean()), mask),
        "their mean is subtracted inside",
    ),
    "coupled rows": (
        lambda p, q, r, A, mask: masked_mean(ppo(p, q, A / (A.std() + 1e-6)), mask),
        "micro-batches, for responses of equal lengths",
    ),
    "nothing added to the standard deviation": (
        lambda p, q, r, A, mask: masked_mean(ppo(p, q, (A - A.mean()) / A.std()), mask),
        "equal advantages make the gradient NaN",
    ),
    "single precision": (
        lambda p, q, r, A, mask: RIGHT(p.float(), q.float(), r.float(), A.float(), mask),
        "log π_θ/π_old = +90",
    ),
    "value clamp": (
        in_the_loss(lambda p, q, r: k3(r - p).clamp(max=10.0)),
        "no gradient below log π_θ/π_ref = −2.6",
    ),
    "a constant": (in_the_loss(lambda p, q, r: (p - r).detach()), "the reference changes the loss's value"),
    "no reward": (lambda p, q, r, A, mask: masked_mean(reverse_kl(p, q, r), mask), "up to one common factor"),
}


@pytest.mark.parametrize("name", HAZARDS)
def test_a_hazard_is_named(name):
    loss, word = HAZARDS[name]
    report = identify(loss)
    assert any(word in hazard for hazard in report.hazards), report
    assert report.faults == ()


FOUR_KINDS = ("rpg-reinforce-ufkl-clip", "rpg-urkl-prefix", "grpo", "reinforce++")


@pytest.mark.parametrize("name", quick(RECIPES, FOUR_KINDS))
def test_every_recipe_is_identified_as_it_declares(name):
    recipe = RECIPES[name]
    report = identify(recipe, level=recipe.measured_at)
    for finding, declared in ((report.on_policy, recipe.on_policy), (report.off_policy, recipe.off_policy)):
        assert terms(finding) == (None if declared is None else dict(declared.terms))
    assert report.faults == ()
    allowed = ("micro-batches, for responses of different lengths", "the reference changes the loss's value")
    assert all(any(word in hazard for word in allowed) for hazard in report.hazards)


@pytest.mark.parametrize(
    "loss, message",
    [
        (lambda p, *rest: p, r"must return a scalar tensor, got a tensor of shape \(8, 5\)"),
        (lambda p, *rest: 0.5, "must return a scalar tensor, got a float"),
        (lambda p, *rest: None, "must return a scalar tensor, got a NoneType"),
        (lambda p, *rest: torch.tensor(2.0), "returned 2 without a gradient"),
        (lambda p, *rest: p.detach().sum(), "without a gradient"),
        (lambda p, *rest: 0.0 * p.sum() + 3.0, "is 3 with a gradient of zero"),
        (lambda p, *rest: math.nan * p.sum(), "is NaN for ordinary"),
        (lambda p, *rest: torch.nn.functional.dropout(p).sum(), "make it deterministic"),
        (lambda p, q: p.sum(), "TypeError, .* takes 2 positional arguments"),
        (lambda p, *rest: p.no_such_method(), "AttributeError, .*no_such_method"),
    ],
)
def test_what_is_no_loss_is_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        identify(loss)
    with pytest.raises(ValueError, match=message):
        assert_gradient(loss, reward=1.0)


def test_an_error_of_the_loss_itself_is_told():
    def loss(*batch):
        raise FileNotFoundError("weights")

    with pytest.raises(ValueError, match="the loss raised FileNotFoundError, weights; it must take"):
        identify(loss)


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, q, r, A, mask: -(ratio(p, q) * A)[mask].mean(),
        lambda p, q, r, A, mask: -(ratio(p, q) * A[:, None] * (1 - (1 - mask))).sum() / mask.sum(),
        lambda p, q, r, A, mask: LossOutput(-(ratio(p, q) * A * mask.masked_fill(mask == 0, 0.0)).sum(), {}),
    ],
    ids=["advantages per token", "mask of floats", "both, and a LossOutput"],
)
def test_advantages_and_masks_of_either_shape(loss):
    assert_gradient(loss, reward=1.0)


def test_no_known_objective_in_either_regime():
    report = identify(lambda p, q, r, A, mask: masked_mean(ppo(p, q, A) + (p - r) ** 4, mask))
    assert report.on_policy.objective is None and report.off_policy.objective is None
    assert str(report).count("the gradient of no known objective") == 2
    assert str(report).count("its reward part is that of E[R] per token") == 2


def test_the_normaliser_is_separated():
    report = identify(lambda *batch: LossOutput(7.0 * RECIPES["rpg-urkl"](*batch).loss, {}))
    assert report.off_policy.scale == pytest.approx(7.0 / 3)
    assert dict(report.off_policy.objective.terms) == pytest.approx({"reward": 1.0, "reverse_kl": 1e-4})


def test_a_loss_that_descends_the_reward():
    report = identify(lambda *batch: -RECIPES["rpg-urkl"](*batch).loss)
    assert str(report.off_policy.objective) == "− E[R] + 0.0001·KL(π‖ref) per token"


def test_a_loss_without_a_reward():
    def loss(p, q, r, A, mask):
        return 5 * masked_mean(k3(r - p), mask)

    report = identify(loss)
    assert dict(report.on_policy.objective.terms) == pytest.approx({"forward_kl": 5 / 3})
    assert report.on_policy.coefficients["reward"] == 0
    assert_gradient(loss, reward=0.0, forward_kl=1.0, regimes=["on_policy"])
    with pytest.raises(AssertionError, match="has no effect"):
        assert_gradient(loss, reward=1.0, forward_kl=1.0, regimes=["on_policy"])


def test_a_gradient_that_is_not_finite_on_policy():
    report = identify(lambda p, q, r, A, mask: masked_mean(ppo(p, q, A) + (p - q).abs().sqrt(), mask))
    assert report.on_policy.residual == math.inf and report.on_policy.objective is None
    assert str(report).startswith("on-policy: a gradient that is not finite; off-policy: ")


def test_no_coefficients_where_nothing_fits():
    report = identify(RECIPES["grpo"])
    assert report.off_policy.coefficients == {} and report.off_policy.objective is None
    assert report.on_policy.coefficients["forward_kl"] == pytest.approx(0.04)


def test_what_vanishes_on_policy_is_named_and_never_guessed():
    report = identify(RIGHT)
    assert set(report.on_policy.unidentified) == {"reverse_kl_old", "forward_kl_old"}
    assert not set(report.on_policy.unidentified) & set(report.on_policy.coefficients)
    assert report.off_policy.unidentified == ()
    assert 1 < report.off_policy.condition < 1e4


def test_a_sequence_objective_is_recognised_at_token_level():
    def loss(p, q, r, A, mask):
        return (-torch.where(mask, p - q, 0.0).sum(1).exp() * A).mean()

    report = identify(loss)
    assert report.off_policy.objective is None
    assert any(
        "off-policy, it is an objective at sequence level: E[R] per response" in hazard for hazard in report.hazards
    )
    assert_gradient(loss, level="sequence", reward=1.0)


@pytest.mark.parametrize("bound", [1.02, 1.0005])
def test_a_bound_tighter_than_the_policies_are_apart(bound):
    """A bound that ignores the advantages leaves the gradient linear in them: only nearer policies fit."""

    def loss(p, q, r, A, mask):
        return masked_mean(-ratio(p, q).clamp(max=bound).detach() * p * A[:, None], mask)

    finding = identify(loss).off_policy
    assert finding.spread < math.log(bound) and dict(finding.objective.terms) == pytest.approx(REWARD)


def test_what_is_merely_nearer_is_no_fit():
    """SAPO's gate is flat to second order: its residual falls as the square of the distance, and never to rounding."""

    def loss(p, q, r, A, mask):
        tau = torch.where(A > 0, 1.0, 1.05)[:, None]
        gate = 4 / tau * (tau * (ratio(p, q) - 1)).sigmoid()
        return masked_mean(-gate * A[:, None], mask)

    report = identify(loss)
    assert terms(report.on_policy) == REWARD and report.off_policy.objective is None


@pytest.mark.parametrize("seed", [0, 1])
def test_a_population_is_what_it_says(seed):
    """π_old in tenths, responses in exact proportion, a drift whose largest entry is 1, three policies that differ."""
    batch = population(seed)
    tenths = 10 * batch.old.exp()
    assert torch.allclose(tenths, tenths.round(), atol=1e-12)
    share = torch.bincount(batch.rows) / len(batch.rows)
    assert torch.allclose(share.double(), token_logp(batch.tree, batch.old).sum(-1).exp(), atol=1e-7)
    assert batch.drift.abs().max() == 1.0
    assert (batch.ref - batch.old).abs().max() > 0.5
    assert torch.allclose(batch.ref.exp().sum(-1), torch.ones(()).double())
    far = identify(RECIPES["rpg-urkl"], seed=seed).off_policy
    moved = (batch.old + far.drift * batch.drift).log_softmax(-1) - batch.old
    assert far.drift == 0.8 and far.spread == pytest.approx(float(moved.abs().max()))


def test_single_precision_is_named_and_not_taken_for_a_fit():
    def rounded(logp, logp_old, logp_ref, advantages, mask):
        return RIGHT(logp.float(), logp_old.float(), logp_ref.float(), advantages.float(), mask)

    finding = identify(rounded).off_policy
    assert FIT < finding.residual < 1e-6 and dict(finding.objective.terms) == pytest.approx(TO_REFERENCE, rel=1e-5)
    assert finding.verdict.endswith("single precision)")


def test_nothing_is_claimed_between_single_precision_and_no_fit():
    """A gradient that is wrong by a ten-thousandth is no rounding, and too near for none."""

    def loss(p, q, r, A, mask):
        return masked_mean(ppo(p, q, A) + BETA * reverse_kl(p, q, r) + 1e-4 * BETA * (p - r) ** 4, mask)

    finding = identify(loss).on_policy
    assert 1e-5 < finding.residual < 1e-4 and finding.objective is None
    assert finding.verdict.startswith("undecided (residual ")


def test_an_assertion_takes_a_report_a_regime_and_a_tolerance():
    unweighted = FAULTS["unweighted k2"][0]
    assert_gradient(unweighted, reward=1.0, reverse_kl=BETA, regimes=["on_policy"])
    with pytest.raises(AssertionError, match="off-policy: no known objective"):
        assert_gradient(identify(unweighted), reward=1.0, reverse_kl=BETA)
    nearly = in_the_loss(lambda p, q, r: 1.001 * reverse_kl(p, q, r))
    assert_gradient(nearly, reward=1.0, reverse_kl=BETA, tolerance=2e-3)
    with pytest.raises(AssertionError, match="the objective has − 0.1001·KL\\(π‖ref\\), not − 0.1·KL"):
        assert_gradient(nearly, reward=1.0, reverse_kl=BETA)


def test_an_assertion_refuses_what_it_cannot_mean():
    with pytest.raises(ValueError, match="unknown term 'kl'"):
        assert_gradient(RIGHT, reward=1.0, kl=BETA)
    with pytest.raises(ValueError, match="no term is asked for"):
        assert_gradient(RIGHT)
    with pytest.raises(ValueError, match="level must be"):
        assert_gradient(RIGHT, level="word", reward=1.0)
    with pytest.raises(ValueError, match="unknown regime 'offpolicy'"):
        assert_gradient(RIGHT, reward=1.0, regimes=["offpolicy"])


def test_an_assertion_without_a_penalty_names_one_that_is_there():
    with pytest.raises(AssertionError, match="the objective has − 0.1·KL\\(π‖ref\\), not no KL"):
        assert_gradient(RIGHT, reward=1.0)
    assert identify(RIGHT).off_policy.objective == Objective(dict(identify(RIGHT).off_policy.objective.terms))


@pytest.mark.parametrize(
    "loss, off",
    [
        (lambda p, q, r, A, mask: masked_mean(p - r, mask), {"forward_kl_old": -1 / 3}),
        (lambda p, q, r, A, mask: -masked_mean(p, mask), {"forward_kl_old": 1 / 3}),
        (lambda p, q, r, A, mask: masked_mean(p.float() - r.float(), mask), {"forward_kl_old": -1 / 3}),
        (lambda p, q, r, A, mask: masked_mean(ratio(p, q).detach() * p, mask), {}),
    ],
    ids=["k1", "log π", "k1 in single precision", "detached ratio times log π"],
)
def test_an_expected_gradient_of_zero_is_nothing(loss, off):
    report = identify(loss)
    assert report.on_policy.verdict == "nothing, its expected gradient is zero"
    assert dict(report.off_policy.objective.terms) == pytest.approx(off, rel=1e-6)


def exchanged(p, q, r, A, mask):
    w = ratio(p, q)
    return masked_mean(-torch.maximum(w * A[:, None], w.clamp(0.8, 1.2) * A[:, None]), mask)


def broadcast(p, q, r, A, mask):
    return -(torch.where(mask, p - q, 0.0).sum(1, keepdim=True).exp() * A).mean()


def late(x):
    return torch.cat([x[:, :1], x[:, :-1]], 1)


MISALIGNED = {
    "exchanged clip": (exchanged, "min and max of the clip are exchanged"),
    "broadcast": (broadcast, "a [B, 1] times [B] broadcast"),
    "reference one token late": (
        lambda p, q, r, A, mask: RIGHT(p, q, late(r), A, mask),
        "a token's log π_ref is used at another token",
    ),
    "sampler one token late": (
        lambda p, q, r, A, mask: masked_mean(-ratio(p, late(q)) * A[:, None], mask),
        "a token's log π_old is used at another token",
    ),
    "penalty divided by the length twice": (
        lambda p, q, r, A, mask: (
            masked_mean(ppo(p, q, A), mask) + (torch.where(mask, k3(r - p), 0.0).sum(1) / mask.sum(1) ** 2).mean()
        ),
        "in the penalty, a token of a response of length T weighs 1/T²",
    ),
    "another response's advantage": (
        lambda p, q, r, A, mask: masked_mean(ppo(p, q, A.roll(1)), mask),
        "another response's advantage",
    ),
    "first token alone": (
        lambda p, q, r, A, mask: masked_mean(ppo(p, q, A) * (torch.arange(p.shape[1]) == 0), mask),
        "the tokens of one response do not weigh the same",
    ),
}


@pytest.mark.parametrize("name", MISALIGNED)
def test_a_fault_that_equal_lengths_hide_is_named(name):
    loss, word = MISALIGNED[name]
    report = identify(loss)
    assert any(word in fault for fault in report.faults), report
    with pytest.raises(AssertionError, match="fault beside it|another gradient"):
        assert_gradient(report, reward=1.0)


@pytest.mark.parametrize("low", [0.8, None], ids=["dual clip", "no lower bound"])
def test_a_right_clip_is_no_fault(low):
    def loss(p, q, r, A, mask):
        w = ratio(p, q)
        gain = torch.minimum(w * A[:, None], w.clamp(low, 1.2) * A[:, None])
        return masked_mean(-torch.where(A[:, None] < 0, gain.clamp(min=3 * A[:, None]), gain), mask)

    assert identify(loss).faults == ()


def refusing(p, q, r, A, mask):
    loss = -(ratio(p, q) * A[:, None] * mask).sum() / mask.sum()
    assert torch.isfinite(loss), "NaN loss"
    return loss


def test_a_loss_that_refuses_is_told_and_not_lost():
    report = identify(refusing)
    assert terms(report.off_policy) == REWARD
    assert any(
        "not checked, since it raises AssertionError, NaN loss: more padding, −inf or NaN" in note
        for note in report.notes
    )


def checked(dtype, shape):
    def loss(p, q, r, A, mask):
        assert mask.dtype == dtype and A.shape == shape(p), "wrong form"
        return -(ratio(p, q) * A.reshape(len(p), -1) * mask).sum() / mask.sum()

    return loss


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [lambda p: (len(p),), lambda p: (len(p), 1), lambda p: p.shape], ids=["B", "B1", "BT"]
)
def test_a_loss_that_checks_its_arguments(dtype, shape):
    loss = checked(dtype, shape)
    assert_gradient(loss, reward=1.0)


def test_a_loss_may_write_into_its_arguments():
    def loss(p, q, r, A, mask):
        A -= A.mean()
        p[~mask] = 0.0
        q[~mask] = 0.0
        mask[:, 0] &= True
        return masked_mean(ppo(p, q, A), mask)

    report = identify(loss)
    assert terms(report.off_policy) == REWARD and report.faults == ()


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, q, r, A, mask: masked_mean(ppo(p, q, (A - A.mean()) / A.std()) + BETA * reverse_kl(p, q, r), mask),
        lambda p, q, r, A, mask: RIGHT(p, q, r, A, mask & (A.abs() > 1e-9)[:, None]),
    ],
    ids=["divided by a standard deviation", "rows without an advantage dropped"],
)
def test_a_gradient_that_is_not_there_without_advantages(loss):
    report = identify(loss)
    assert set(report.off_policy.objective.terms) == {"reward", "reverse_kl"}


@pytest.mark.parametrize("seed", quick(range(8), range(2)))
@pytest.mark.parametrize("beta", [1e-3, 1e-6])
def test_single_precision_does_not_fail_an_assertion(beta, seed):
    def loss(*batch):
        p, q, r, A = (x.float() for x in batch[:4])
        return masked_mean(-ratio(p, q) * A[:, None] + beta * reverse_kl(p, q, r), batch[4])

    assert_gradient(loss, reward=1.0, reverse_kl=beta, seed=seed)


def test_no_number_without_a_normaliser():
    report = identify(lambda p, q, r, A, mask: masked_mean(-ratio(p, q) * A[:, None] ** 3 + BETA * k3(r - p), mask))
    assert report.on_policy.objective is None and "its penalty part" not in str(report)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"reverse_kl": math.nan}, "reverse_kl must be a number"),
        ({"reward": 1.0, "regimes": []}, "regimes is"),
        ({"reward": 1.0, "regimes": "on_policy"}, "regimes is 'on_policy'; pass a list"),
        ({"reward": 1.0, "tolerance": 0.0}, "tolerance must be a number"),
    ],
)
def test_an_assertion_that_could_not_fail_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        assert_gradient(RIGHT, **arguments)
    with pytest.raises(ValueError, match="the report is of token level, the objective of sequence"):
        assert_gradient(identify(RIGHT), level="sequence", reward=1.0)


@pytest.mark.parametrize(
    "loss, message",
    [
        (lambda p, *rest: (p.sum(), {}), "got a tuple; pass lambda"),
        (lambda p, *rest: p.sum() / 0, "is (-inf|inf) for ordinary"),
        (lambda p, *rest: (p - p).abs().sqrt().sum() + p.sum(), "gradient is NaN or infinite"),
    ],
)
def test_what_cannot_be_audited_is_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        identify(loss)
