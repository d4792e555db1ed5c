"""`identify_update` against whole optimiser steps, right ones and wrong ones, and `assert_gradient`'s normaliser."""

import itertools
import json
import math

import pytest
import torch
from tiers import quick

from rpg_ref import k3
from rpg_ref.audit import assert_gradient, identify_update
from rpg_ref.audit.size import MEANS, Law, Weights, law_of, weights
from rpg_ref.audit.update import _SPLITS, _shape

BETA = 0.04
MEANT = {"reward": 1.0, "reverse_kl": BETA}


def picked(policy, batch):
    start = batch.prompt_ids.shape[1]
    logits = policy(batch.input_ids, attention_mask=batch.attention_mask).logits[:, start - 1 : -1]
    return (logits / batch.temperature).log_softmax(-1).gather(-1, batch.completion_ids[..., None]).squeeze(-1)


def parts(policy, batch):
    """The gain and the penalty of each token."""
    logp = picked(policy, batch)
    w = (logp - batch.logp_old).exp()
    mask = batch.completion_mask
    return w * batch.advantages[:, None] * mask, BETA * w * k3(batch.logp_ref - logp) * mask


def tokens(*batches):
    return sum(batch.completion_mask.sum() for batch in batches)


def rows(*batches):
    return sum(len(batch.input_ids) for batch in batches)


def flat(rank):
    return [batch for step in rank for batch in step]


def divided_by(denominator, penalty=None):
    """An update whose micro-batches are sums over tokens divided by denominator(split, rank, step, batch)."""

    def update(policy, split):
        for rank, step, batch in ((r, s, b) for r in split for s in r for b in s):
            gain, cost = parts(policy, batch)
            by = denominator(split, rank, step, batch)
            (-gain.sum() / by + cost.sum() / (penalty or denominator)(split, rank, step, batch)).backward()

    return update


def whole(split, rank, step, batch):
    return tokens(*split.batches)


def all_parts(split):
    return split.ranks * split.accumulation * split.micro_batches


def over_responses(policy, split):
    for batch in split.batches:
        gain, cost = parts(policy, batch)
        (((cost - gain).sum(1) / batch.completion_mask.sum(1)).sum() / rows(*split.batches)).backward()


def with_entropy(policy, split):
    """An entropy bonus is no token's log-probability; its size can be told all the same."""
    for batch in split.batches:
        gain, cost = parts(policy, batch)
        start = batch.prompt_ids.shape[1]
        logits = policy(batch.input_ids, attention_mask=batch.attention_mask).logits[:, start - 1 : -1]
        logp = (logits / batch.temperature).log_softmax(-1)
        bonus = -(logp.exp() * logp).sum(-1) * batch.completion_mask
        ((cost - gain - 0.01 * bonus).sum() / tokens(*split.batches)).backward()


def as_ddp(policy, split):
    """Every rank accumulates sums; an all-reduce averages, and the loss is multiplied by the ranks to undo that."""
    total = None
    for rank in split:
        policy.zero_grad()
        for batch in flat(rank):
            gain, cost = parts(policy, batch)
            ((cost - gain).sum() * split.ranks / tokens(*split.batches)).backward()
        own = [None if p.grad is None else p.grad.clone() for p in policy.parameters()]
        pairs = zip(own if total is None else total, own, strict=True)
        total = own if total is None else [a if b is None else b if a is None else a + b for a, b in pairs]
    for p, gradient in zip(policy.parameters(), total, strict=True):
        p.grad = None if gradient is None else gradient / len(split)


RIGHT = {
    "tokens": (divided_by(whole), "the number of tokens", "tokens"),
    "responses": (divided_by(lambda s, *_: rows(*s.batches)), "the number of responses", "sequences"),
    "a constant": (divided_by(lambda *_: 1000.0), "1000", 1000.0),
    "twice the tokens": (divided_by(lambda s, *_: 2 * tokens(*s.batches)), "48, 2 times the number of tokens", 48),
    "over responses": (over_responses, "each response's length and the number of responses", "sequences"),
    "an entropy bonus": (with_entropy, "the number of tokens", "tokens"),
    "padding": (divided_by(lambda s, *_: 32.0), "the number of places, padding counted", 32.0),
    "DDP": (as_ddp, "the number of tokens", "tokens"),
}


@pytest.mark.parametrize("name", quick(RIGHT, ["tokens", "over responses", "DDP"]))
def test_a_right_update_is_the_same_under_every_split(name):
    update, words, normaliser = RIGHT[name]
    report = identify_update(update)
    assert report.equal and report.remarks == () and report.ok
    assert (
        f"the same gradient under every split; the sum over tokens is divided by {words}" == str(report).split("\n")[-1]
    )
    assert report.normaliser == words and max(abs(x - 1) for x in report.ratios.values()) < 1e-9
    meant = MEANT | ({"entropy": 0.01} if name == "an entropy bonus" else {})
    assert_gradient(report, normaliser=normaliser, **meant)
    with pytest.raises(AssertionError, match="the sum over tokens is divided by"):
        assert_gradient(report, normaliser=999, **meant)


def twice_more(split, *_):
    return tokens(*split.batches) * split.accumulation


FAULTS = {
    "accumulation twice": (divided_by(twice_more), "divided by the number of accumulation steps once too often"),
    "ranks twice": (
        divided_by(lambda s, *_: tokens(*s.batches) * s.ranks),
        "the gradient is divided by the number of ranks once too often",
    ),
    "ranks squared": (
        divided_by(lambda s, *_: tokens(*s.batches) * s.ranks**2),
        "the gradient is divided by the square of the number of ranks",
    ),
    "cubed": (
        divided_by(lambda s, *_: tokens(*s.batches) / s.micro_batches**3),
        "the gradient is multiplied by power 3 of the number of micro-batches",
    ),
    "micro-batches and accumulation": (
        divided_by(lambda s, *_: tokens(*s.batches) * s.accumulation * s.micro_batches),
        "divided by the number of accumulation steps times the number of micro-batches once too often",
    ),
    "means of means": (
        divided_by(lambda s, r, t, b: tokens(b) * all_parts(s)),
        "a mean of means: each micro-batch divides by its own number of tokens",
    ),
    "means of steps": (
        divided_by(lambda s, r, t, b: tokens(*t) * s.ranks * s.accumulation),
        "a mean of means: each accumulation step divides by its own number of tokens",
    ),
    "means of ranks": (
        divided_by(lambda s, r, t, b: tokens(*flat(r)) * s.ranks),
        "a mean of means: each rank divides by its own number of tokens",
    ),
    "means of responses": (
        divided_by(lambda s, r, t, b: rows(b) * all_parts(s)),
        "a mean of means: each micro-batch divides by its own number of responses",
    ),
    "padded means of means": (
        divided_by(lambda s, r, t, b: b.completion_mask.numel() * all_parts(s)),
        "each micro-batch divides by its own number of places, padding counted,",
    ),
    "sums of means": (
        divided_by(lambda s, r, t, b: tokens(b)),
        "a sum of means: each micro-batch divides by its own number of tokens, so that it is multiplied by the number",
    ),
    "means divided again": (
        divided_by(lambda s, r, t, b: tokens(b) * all_parts(s) * s.accumulation),
        "divided by the number of accumulation steps once too often",
    ),
    "penalty times micro-batches": (
        divided_by(whole, lambda s, *_: tokens(*s.batches) / s.micro_batches),
        "the penalty is multiplied by the number of micro-batches, compared with the advantages' part",
    ),
    "penalty counted in the micro-batch": (
        divided_by(whole, lambda s, r, t, b: tokens(b)),
        "the penalty's gradient is a sum of means",
    ),
    "unknown": (
        divided_by(lambda s, r, t, b: tokens(*s.batches) + 7 * len(t) * (len(t) - 1)),
        "depends on the split of the batch, by no known law",
    ),
}


@pytest.mark.parametrize("name", quick(FAULTS, ["accumulation twice", "means of means", "penalty times micro-batches"]))
def test_a_wrong_factor_is_named(name):
    update, sentence = FAULTS[name]
    report = identify_update(update)
    assert not report.equal and any(sentence in remark for remark in report.remarks), report
    assert all(x.severity in ("error", "warning") and x.why and x.fix for x in report.remarks)
    assert len(report.remarks) == (2 if name == "means divided again" else 1) + (name == "unknown")
    with pytest.raises(AssertionError) as failure:
        assert_gradient(report, **MEANT)
    assert sentence in str(failure.value)


@pytest.mark.parametrize("how", ["centred", "standardised"])
@pytest.mark.parametrize("scope", quick(["micro-batch", "accumulation step", "rank"], ["micro-batch"]))
@pytest.mark.parametrize("mean", quick(["tokens", "responses"], ["responses"]))
def test_advantages_normalised_within_a_part(how, scope, mean):
    def update(policy, split):
        for rank, step, batch in ((r, s, b) for r in split for s in r for b in s):
            own = {"micro-batch": [batch], "accumulation step": step, "rank": flat(rank)}[scope]
            every = torch.cat([x.given for x in own])
            batch.advantages = batch.given - every.mean()
            if how == "standardised" and len(every) > 1:
                batch.advantages = batch.advantages / every.std()
            gain, cost = parts(policy, batch)
            share = batch.completion_mask.sum(1, keepdim=True) if mean == "responses" else 1
            ((cost - gain) / share / tokens(*split.batches)).sum().backward()

    def with_given(policy, split):
        for batch in split.batches:
            batch["given"] = batch.advantages.clone()
        update(policy, split)

    report = identify_update(with_given)
    (remark,) = (x for x in report.remarks if "advantages" in x)
    assert remark.startswith(f"the advantages are {how} within each {scope}") and remark.severity == "warning"
    assert not any("no gradient" in x for x in report.remarks) and report.ok


def keeping(which):
    """An update that calls backward on some of its micro-batches only, or forgets the others' gradients."""

    def update(policy, split):
        for batch in which(split):
            gain, cost = parts(policy, batch)
            ((cost - gain).sum() / tokens(*split.batches)).backward()

    return update


LOST = {
    "the last micro-batch": lambda s: s.batches[-1:],
    "the first micro-batch": lambda s: s.batches[:1],
    "the last accumulation step of the last rank": lambda s: s.parts[-1][-1],
    "the first accumulation step of the first rank": lambda s: s.parts[0][0],
    "the last rank": lambda s: flat(s.parts[-1]),
    "the first rank": lambda s: flat(s.parts[0]),
    "the last micro-batch of each rank": lambda s: [flat(rank)[-1] for rank in s],
}


@pytest.mark.parametrize("name", quick([*LOST, "others"], ["the last micro-batch", "others"]))
def test_a_gradient_that_is_lost_is_named(name):
    report = identify_update(keeping(LOST.get(name, lambda s: s.batches[::2])))
    sentence = f"only the gradient of {name} is left" if name in LOST else "some responses get no gradient under other"
    assert [x.severity for x in report.remarks] == ["error"] and sentence in report.remarks[0]
    assert not report.equal
    with pytest.raises(AssertionError, match=sentence):
        assert_gradient(report, **MEANT)


def test_advantages_normalised_inside():
    """Their standard deviation is 0 at equal advantages: the penalty is read off both signs."""

    def update(policy, split):
        every = torch.cat([x.advantages for x in split.batches])
        for batch in split.batches:
            batch.advantages = batch.advantages / (every.square().mean() - every.mean() ** 2).sqrt()
        divided_by(whole)(policy, split)

    report = identify_update(update)
    assert report.equal and report.remarks == ()


def test_one_loss_with_the_wrong_sign_is_left_to_the_objective():
    def update(policy, split):
        for batch in split.batches:
            (sum(parts(policy, batch)).sum() / tokens(*split.batches)).backward()

    report = identify_update(update)
    assert report.equal and report.remarks == () and report.normaliser == "the number of tokens"
    with pytest.raises(AssertionError, match="the whole loss has the wrong sign"):
        assert_gradient(report, reward=1.0, reverse_kl=-BETA)


def test_what_cannot_be_read_and_is_not_parallel():
    def update(policy, split):
        for batch in split.batches:
            gain, cost = parts(policy, batch)
            extra = policy(batch.input_ids[:, :2]).logits.log_softmax(-1)[:, 0, 3] * batch.advantages
            (-(gain - cost).sum() / tokens(*split.batches) - extra.mean()).backward()

    report = identify_update(update)
    assert report.normaliser == "a number that cannot be told" and report.weights is None
    assert any("by no known law" in remark for remark in report.remarks) and not report.ok
    with pytest.raises(AssertionError, match="cannot be told"):
        assert_gradient(report, normaliser="tokens", **MEANT)


def test_the_report_as_text_and_as_json():
    report = identify_update(FAULTS["means of means"][0])
    text = str(report)
    assert "another gradient under other splits; the sum over tokens is divided by the number of tokens of each" in text
    assert "1 × 1 × 2 of 5, 3 responses: 1.157" in text and "- warning: the gradient is a mean of means" in text
    record = json.loads(json.dumps(report.record(), allow_nan=False))
    assert record["equal"] is False and record["remarks"][0]["severity"] == "warning"
    shared = identify_update(
        lambda policy, split: [
            (-(parts(policy, b)[0].sum(1) / b.completion_mask.sum(1)).mean() / all_parts(split)).backward()
            for b in split.batches
        ]
    )
    assert shared.normaliser == "each response's length and the number of responses of each micro-batch"


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (lambda policy, split: None, "the update left no gradient"),
        (lambda policy, split: (torch.rand(()) * whole_loss(policy, split)).backward(), "another gradient"),
        (lambda policy, split: (whole_loss(policy, split) / (len(split.batches) < 2)).backward(), "NaN or infinite"),
    ],
)
def test_what_cannot_be_audited_is_refused(update, message):
    with pytest.raises(ValueError, match=message):
        identify_update(update)


def whole_loss(policy, split):
    return sum((cost - gain).sum() for gain, cost in (parts(policy, batch) for batch in split.batches))


LENGTHS = torch.tensor([4, 4, 3, 4, 2, 2, 3, 2])


def by_hand(shape, unit, scope, powers):
    """The weight of each response, from the definition."""
    own = {}
    for part in shape.parts:
        counted = {"micro-batch": part.rows, "accumulation step": part.step, "rank": part.rank}.get(scope, range(8))
        count = {"tokens": sum(int(LENGTHS[i]) for i in counted), "responses": len(counted), "a constant": 1}[unit]
        own |= {i: math.prod(x**y for x, y in zip(shape[:3], powers, strict=True)) / count for i in part.rows}
    return torch.tensor([own[i] for i in range(8)], dtype=torch.float64)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("unit", "scope"), [*itertools.product(["tokens", "responses"], MEANS)])
def test_every_law_is_told_from_every_other(unit, scope, shared):
    shapes = [_shape(sizes) for sizes in _SPLITS]
    for powers in itertools.product((-2, -1, 0, 1), repeat=3):
        found = [Weights(by_hand(shape, unit, scope, powers), shared) for shape in shapes]
        law = law_of(found, shapes, LENGTHS)
        # The whole step's count is the same in every split: only its size tells what it is.
        same = scope == "whole step" or (law.unit, law.factor) == (unit, pytest.approx(1.0))
        assert same and law == Law(law.unit, scope, powers, law.factor, shared)


def test_weights_that_follow_no_law():
    shapes = [_shape(sizes) for sizes in _SPLITS]
    rng = torch.Generator().manual_seed(0)
    assert law_of([Weights(torch.rand(8, generator=rng).double(), False) for _ in shapes], shapes, LENGTHS) is None


def masked_sum(x, mask):
    return torch.where(mask, x, 0.0).sum()


def test_weights_need_a_pull_along_every_advantage():
    mask = torch.ones((2, 3), dtype=torch.bool)
    A = torch.tensor([1.0, -2.0])
    assert weights(A[:, None].expand(2, 3), A, mask).of_response.tolist() == [1.0, 1.0]
    assert weights(-A[:, None].expand(2, 3), A, mask) is None
