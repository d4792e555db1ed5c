"""`identify_model` against whole trainer steps: a right one has no fault, each usual bug is named."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from tiers import quick

from rpg_ref import k3
from rpg_ref.audit import PrefixTreeLM, assert_gradient, identify_model
from rpg_ref.audit.oracle import prefix_tree, token_logp
from rpg_ref.audit.prefix_lm import BOS, EOS, FIRST, PAD, model_batch
from rpg_ref.audit.scripted import ScriptedLM, scripted_batch

BETA = 0.04
OBJECTIVE = {"reward": 1.0, "reverse_kl": BETA}


def loss_of(logp, batch, mask=None, old=None, ref=None):
    mask = batch.completion_mask if mask is None else mask
    old, ref = batch.logp_old if old is None else old, batch.logp_ref if ref is None else ref
    w, A = (logp - old).exp(), batch.advantages[:, None]
    gain = torch.minimum(w * A, w.clamp(0.8, 1.2) * A)
    return ((BETA * w * k3(ref - logp) - gain) * mask).sum() / mask.sum()


def logits_of(model, batch, **inputs):
    inputs = {"attention_mask": batch.attention_mask} | inputs
    return model(batch.input_ids, **inputs).logits / batch.temperature


def picked(logits, ids):
    return logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def start(batch):
    return batch.prompt_ids.shape[1]


def of_completions(model, batch, **inputs):
    return picked(logits_of(model, batch, **inputs)[:, start(batch) - 1 : -1], batch.completion_ids)


def right(model, batch):
    return loss_of(of_completions(model, batch), batch)


def right_kept(model, batch):
    length = batch.completion_ids.shape[1]
    logits = logits_of(model, batch, logits_to_keep=length + 1)
    return loss_of(picked(logits[:, :-1], batch.completion_ids), batch)


def right_with_positions(model, batch):
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return loss_of(of_completions(model, batch, position_ids=positions), batch)


def right_from_labels(model, batch):
    labels = batch.labels[:, 1:]
    logp = picked(logits_of(model, batch)[:, :-1], labels.clamp(min=0))[:, start(batch) - 1 :]
    return loss_of(logp, batch, (labels != -100)[:, start(batch) - 1 :])


def right_backward_inside(model, batch):
    loss = right(model, batch)
    loss.backward()
    return float(loss.detach())


def right_in_micro_batches(model, batch):
    """Two calls, rows sorted by length, one denominator."""
    order = batch.completion_mask.sum(1).argsort()
    total = 0.0
    for rows in order.chunk(2):
        part = type(batch)(*(x[rows] if isinstance(x, torch.Tensor) else x for x in vars(batch).values()))
        total = total + right(model, part) * part.completion_mask.sum() / batch.completion_mask.sum()
    return total


def right_unpadded(model, batch):
    """Every row by itself, without padding."""
    total = 0.0
    for row in range(len(batch.input_ids)):
        ids = batch.input_ids[row][batch.attention_mask[row] == 1][None]
        n = int(batch.completion_mask[row].sum())
        logp = picked(model(ids).logits[:, -n - 1 : -1] / batch.temperature, ids[:, -n:])
        one = SimpleNamespace(
            advantages=batch.advantages[row : row + 1],
            completion_mask=torch.ones(1, n),
            logp_old=batch.logp_old[row : row + 1, :n],
            logp_ref=batch.logp_ref[row : row + 1, :n],
        )
        total = total + loss_of(logp, one) * n / batch.completion_mask.sum()
    return total


def shifted(model, batch):
    return loss_of(picked(logits_of(model, batch)[:, start(batch) :], batch.completion_ids), batch)


def shifted_further(model, batch):
    logits = logits_of(model, batch)[:, start(batch) - 1 : -2]
    return loss_of(
        picked(logits, batch.completion_ids[:, 1:]),
        batch,
        batch.completion_mask[:, 1:],
        batch.logp_old[:, 1:],
        batch.logp_ref[:, 1:],
    )


def without_temperature(model, batch):
    logits = model(batch.input_ids, batch.attention_mask).logits[:, start(batch) - 1 : -1]
    return loss_of(picked(logits, batch.completion_ids), batch)


def temperature_twice(model, batch):
    logits = logits_of(model, batch)[:, start(batch) - 1 : -1] / batch.temperature
    return loss_of(picked(logits, batch.completion_ids), batch)


def inverted_temperature(model, batch):
    logits = model(batch.input_ids, batch.attention_mask).logits[:, start(batch) - 1 : -1] * batch.temperature
    return loss_of(picked(logits, batch.completion_ids), batch)


def prompt_in_the_loss(model, batch):
    logp = picked(logits_of(model, batch)[:, :-1], batch.input_ids[:, 1:])
    before = logp[:, : start(batch) - 1].detach()
    old, ref = (torch.cat([before, x], 1) for x in (batch.logp_old, batch.logp_ref))
    return loss_of(logp, batch, batch.attention_mask[:, 1:], old, ref)


def eos_dropped(model, batch):
    return loss_of(of_completions(model, batch), batch, batch.completion_mask * (batch.completion_ids != EOS))


def first_token_dropped(model, batch):
    mask = batch.completion_mask.clone()
    mask[:, 0] = 0
    return loss_of(of_completions(model, batch), batch, mask)


def padding_counted(model, batch):
    return loss_of(of_completions(model, batch), batch, torch.ones_like(batch.completion_mask))


def no_attention_mask(model, batch):
    return loss_of(of_completions(model, batch, attention_mask=None), batch)


def right_padded_attention_mask(model, batch):
    length = batch.attention_mask.sum(1, keepdim=True)
    mask = (torch.arange(batch.input_ids.shape[1]) < length).long()
    return loss_of(of_completions(model, batch, attention_mask=mask), batch)


def positions_with_gaps(model, batch):
    ids = torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)
    at_completion = (ids >= start(batch)).long()
    return loss_of(of_completions(model, batch, position_ids=ids + 3 * at_completion), batch)


def left_padding_taken_for_right(model, batch):
    logp = picked(logits_of(model, batch)[:, :-1], batch.input_ids[:, 1:])
    first = batch.prompt_mask.sum(1, keepdim=True) - 1
    return loss_of(logp.gather(1, first + torch.arange(batch.completion_ids.shape[1])), batch)


def wrong_tokens(model, batch):
    logits = logits_of(model, batch)[:, start(batch) - 1 : -1]
    return loss_of(picked(logits, logits.argmax(-1)), batch)


def other_rows(model, batch):
    ids = batch.input_ids.roll(1, 1)
    logits = model(ids).logits[:, start(batch) - 1 : -1] / batch.temperature
    return loss_of(picked(logits, batch.completion_ids), batch)


def twice(model, batch):
    return right(model, batch) + right(model, batch)


def length_twice(model, batch):
    logp, mask = of_completions(model, batch), batch.completion_mask
    return -((logp * mask).sum(1) / mask.sum(1) ** 2 * batch.advantages).mean()


def smoothed_labels(model, batch):
    logp = logits_of(model, batch)[:, start(batch) - 1 : -1].log_softmax(-1)
    smoothed = 0.9 * logp.gather(-1, batch.completion_ids.unsqueeze(-1)).squeeze(-1) + 0.1 * logp.mean(-1)
    return -(smoothed * batch.advantages[:, None] * batch.completion_mask).sum() / batch.completion_mask.sum()


def k3_of(model, batch):
    return k3(batch.logp_ref - of_completions(model, batch))


def penalty_over_padding(model, batch):
    return gain(model, batch) + BETA * k3_of(model, batch).mean()


def penalty_without_eos(model, batch):
    mask = batch.completion_mask * (batch.completion_ids != EOS)
    return gain(model, batch) + BETA * (k3_of(model, batch) * mask).sum() / mask.sum()


def penalty_without_temperature(model, batch):
    logits = model(batch.input_ids, batch.attention_mask).logits[:, start(batch) - 1 : -1]
    penalty = k3(batch.logp_ref - picked(logits, batch.completion_ids)) * batch.completion_mask
    return gain(model, batch) + BETA * penalty.sum() / batch.completion_mask.sum()


def entropy_over_padding(model, batch):
    logits = logits_of(model, batch)[:, start(batch) - 1 : -1]
    return gain(model, batch) + 0.01 * (logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


def entropy_over_the_prompt(model, batch):
    logits = logits_of(model, batch)[:, :-1]
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1) * batch.attention_mask[:, 1:]
    return gain(model, batch) - 0.01 * entropy.sum() / batch.attention_mask[:, 1:].sum()


def gain(model, batch):
    mask = batch.completion_mask
    w = (of_completions(model, batch) - batch.logp_old).exp()
    return -(w * batch.advantages[:, None] * mask).sum() / mask.sum()


def truncated_left_out(model, batch):
    ended = (batch.completion_ids == EOS).any(1, keepdim=True)
    if not ended.any():
        return right(model, batch)
    return loss_of(of_completions(model, batch), batch, batch.completion_mask * ended)


def last_dropped(model, batch):
    last = batch.completion_mask.cumsum(1) == batch.completion_mask.sum(1, keepdim=True)
    return loss_of(of_completions(model, batch), batch, batch.completion_mask * ~last)


def one_response_left_out(model, batch):
    mask = batch.completion_mask.clone()
    mask[0] = 0
    return loss_of(of_completions(model, batch), batch, mask)


def only_when_advantages_differ(model, batch):
    if not batch.advantages.any():
        return right(model, batch) + 0 * model(batch.input_ids).logits.sum()
    return right(model, batch)


def mean_of_micro_batches(model, batch):
    parts = []
    for rows in torch.arange(len(batch.input_ids)).chunk(2):
        part = type(batch)(*(x[rows] if isinstance(x, torch.Tensor) else x for x in batch.values()))
        parts.append(right(model, part))
    return sum(parts) / 2


def right_divided_in_place(model, batch):
    logits = model(batch.input_ids, batch.attention_mask).logits
    logits.div_(batch.temperature)
    return loss_of(picked(logits[:, start(batch) - 1 : -1], batch.completion_ids), batch)


def right_with_a_copy(model, batch):
    of_completions(model, batch)
    reference = copy.deepcopy(model)
    with torch.no_grad():
        of_completions(reference, batch)
    batch["advantages"] = batch["advantages"].clone()
    batch.advantages *= 1.0
    assert "advantages" in batch and dict(batch.items()) and {**batch}
    return right(model, batch)


def right_packed(model, batch):
    """All rows in one, positions beginning anew, no attention mask."""
    kept = batch.attention_mask.bool()
    positions = (batch.attention_mask.cumsum(1) - 1)[kept]
    logits = model(batch.input_ids[kept][None], position_ids=positions[None]).logits[0] / batch.temperature
    padded = torch.zeros((*kept.shape, logits.shape[-1]), dtype=logits.dtype)
    padded[kept] = logits
    return loss_of(picked(padded[:, start(batch) - 1 : -1], batch.completion_ids), batch)


RIGHT = [
    right_divided_in_place,
    right_with_a_copy,
    right_packed,
    right,
    right_kept,
    right_with_positions,
    right_from_labels,
    right_backward_inside,
    right_in_micro_batches,
]
BUGS = {
    shifted: "labels are shifted by one: each position is scored on the token at it",
    shifted_further: "labels are shifted by one: each position is scored on the second next token",
    without_temperature: "the temperature is missing: the step's is 1, that of the batch 0.7",
    temperature_twice: "the temperature is applied twice: the step's is 0.49, that of the batch 0.7",
    inverted_temperature: "the temperature is inverted: the step's is 1.43",
    prompt_in_the_loss: "prompt tokens are in the loss",
    eos_dropped: "EOS is dropped",
    first_token_dropped: "the first token of each response is dropped",
    padding_counted: "padding is counted",
    no_attention_mask: "in a wrong context: the model sees padding",
    right_padded_attention_mask: "in a wrong context: the model sees padding",
    positions_with_gaps: "positions with gaps",
    left_padding_taken_for_right: "left and right padding are mixed up",
    wrong_tokens: "log-probabilities of wrong tokens",
    other_rows: "sequences that are not the batch's prompts and responses",
    twice: "tokens are scored twice",
    length_twice: "divided by the length twice",
    penalty_over_padding: "in the penalty, padding is counted",
    penalty_without_eos: "in the penalty, EOS is dropped",
    penalty_without_temperature: "in the penalty, the temperature is missing",
    entropy_over_padding: "in the penalty, padding is counted",
    entropy_over_the_prompt: "in the penalty, prompt tokens are in the loss",
    truncated_left_out: "responses cut off before EOS are left out",
    last_dropped: "the last token of each response is dropped",
    one_response_left_out: "of 21 response tokens get no gradient",
    only_when_advantages_differ: "the model is called differently when the advantages change",
    mean_of_micro_batches: "a denominator for each micro-batch",
    smoothed_labels: "is not that of one token's log-probability",
}
LONG = {shifted_further, temperature_twice, inverted_temperature, penalty_without_temperature, one_response_left_out}
LONG |= {
    wrong_tokens,
    last_dropped,
    positions_with_gaps,
    penalty_without_eos,
    entropy_over_padding,
    entropy_over_the_prompt,
}


def terms(finding):
    return None if finding.objective is None else pytest.approx(dict(finding.objective.terms), rel=1e-9)


@pytest.mark.parametrize("step", quick(RIGHT, RIGHT[::2]), ids=lambda step: step.__name__)
def test_a_right_step_has_its_objective_and_no_fault(step):
    report = identify_model(step)
    # True of its token-mean, and of a product with the mask.
    assert report.faults == () and {hazard.kind for hazard in report.hazards} == {"split", "nan_behind"}
    assert terms(report.on_policy) == OBJECTIVE and terms(report.off_policy) == OBJECTIVE
    assert_gradient(report, **OBJECTIVE)


def test_a_step_that_calls_the_model_row_by_row():
    """A thousand rows one by one take a while: only the tokens are read."""
    from rpg_ref.audit.tokens import read_tokens

    assert read_tokens(right_unpadded, 0.7) == ()


@pytest.mark.parametrize("step", quick(BUGS, set(BUGS) - LONG), ids=lambda step: step.__name__)
def test_a_bug_is_named(step):
    report = identify_model(step)
    assert BUGS[step] in report.faults[0], report
    with pytest.raises(AssertionError) as failure:
        assert_gradient(report, **OBJECTIVE)
    assert BUGS[step] in str(failure.value)


def of_the_batch(per_token, mean=None):
    """A step that scores its tokens rightly, and does with them what a loss does."""

    def step(model, batch):
        mask = batch.completion_mask.bool()
        logp = torch.where(mask, of_completions(model, batch), 0.0)
        old, ref = (torch.where(mask, x, 0.0) for x in (batch.logp_old, batch.logp_ref))
        x = per_token(logp, old, ref, batch.advantages)
        if mean is not None:
            return mean(x, mask)
        return torch.where(mask, x, 0.0).sum(1).mean()

    return step


def surrogate(p, q, r, A):
    A = A if A.ndim == 2 else A[:, None]
    return BETA * (p - q).exp() * k3(r - p) - (p - q).exp() * A


def clipped(choose):
    def per_token(p, q, r, A):
        w, a = (p - q).exp(), A[:, None]
        return -choose(w * a, w.clamp(0.8, 1.2) * a)

    return of_the_batch(per_token)


def in_micro_batches(per_part):
    """A mean for each half of the batch; their mean, or their sum."""

    def step(model, batch):
        parts = []
        for rows in torch.arange(len(batch.input_ids)).chunk(2):
            part = type(batch)(*(x[rows] if isinstance(x, torch.Tensor) else x for x in batch.values()))
            parts.append(per_part(model, part))
        return sum(parts)

    return step


def with_attention_mask(model, batch):
    """Tokens in a hole of the completion's mask are seen by the model: this step trains them."""
    mask = batch.attention_mask[:, start(batch) :]
    return loss_of(of_completions(model, batch), batch, mask)


def mask_from_ids(model, batch):
    return loss_of(of_completions(model, batch), batch, batch.completion_ids != model.config.pad_token_id)


def holes_moved(model, batch):
    inside = batch.attention_mask[:, start(batch) :].bool()
    holes = (inside & ~batch.completion_mask.bool()).roll(1, 1)
    return loss_of(of_completions(model, batch), batch, inside & ~holes)


def in_bfloat16(model, batch):
    cast = batch.copy()
    for name in ("logp_old", "logp_ref", "advantages"):
        cast[name] = batch[name].bfloat16()
    return loss_of(of_completions(model, batch).bfloat16(), cast)


def averaged_advantage(masked):
    def step(model, batch):
        A, mask = batch.advantages, batch.completion_mask.bool()
        A = A[:, None].expand(mask.shape) if A.ndim == 1 else A
        A = torch.where(mask, A, 0.0).sum(1) / mask.sum(1) if masked else A.mean(1)
        w = (of_completions(model, batch) - batch.logp_old).exp()
        return -torch.where(mask, w * A[:, None], 0.0).sum() / len(mask)

    return step


# What a population of three-token responses cannot show: the fault, its right twin, and the remark.
LIKE_A_LOSS = {
    "exchanged clip": (clipped(torch.maximum), clipped(torch.minimum), "clip_exchanged"),
    "padding in the denominator": (
        of_the_batch(surrogate, lambda x, mask: torch.where(mask, x, 0.0).mean()),
        of_the_batch(surrogate),
        "padding_denominator",
    ),
    "clamped value": (
        of_the_batch(lambda p, q, r, A: k3(r - p).clamp(-10, 10) * BETA - (p - q).exp() * A[:, None]),
        of_the_batch(surrogate),
        "dead",
    ),
    "a mean for each micro-batch": (
        in_micro_batches(of_the_batch(surrogate)),
        of_the_batch(surrogate),
        "term_times",
    ),
    "divided by the steps again": (
        lambda model, batch: right(model, batch) / 4,
        right,
        "size_divided",
    ),
    "tool tokens trained": (with_attention_mask, right, "holes_trained"),
    "tool tokens shifted": (holes_moved, right, "holes_shifted"),
    "mask from ids": (mask_from_ids, right, "pad_is_eos"),
    "bfloat16": (in_bfloat16, right, "precision"),
    "advantages averaged with padding": (averaged_advantage(False), averaged_advantage(True), "advantages_behind"),
}


@pytest.mark.parametrize("name", quick(LIKE_A_LOSS, {"bfloat16", *list(LIKE_A_LOSS)[:4]}))
def test_a_step_is_probed_as_a_loss_is(name):
    faulty, twin, kind = LIKE_A_LOSS[name]
    assert kind in {remark.kind for remark in identify_model(faulty).all_remarks}, identify_model(faulty)
    found = identify_model(twin)
    assert found.faults == () and kind not in {remark.kind for remark in found.all_remarks}, found
    assert {hazard.kind for hazard in found.hazards} <= {"split", "nan_behind"}


def test_what_was_not_checked_is_said():
    report = identify_model(eos_dropped)
    assert "not checked: the probes of a loss, before the step's tokens are right" in report.notes
    assert not any(note.kind == "unchecked" and "probes of a loss" in note for note in identify_model(right).notes)


def test_a_hole_that_the_model_does_not_see_is_not_checked():
    """A step may make its attention mask from the completion's, since its trainer keeps tool tokens elsewhere."""

    def step(model, batch):
        seen = torch.cat([batch.prompt_mask, batch.completion_mask], 1)
        return loss_of(of_completions(model, batch, attention_mask=seen), batch)

    report = identify_model(step)
    assert report.faults == () and {hazard.kind for hazard in report.hazards} == {"split", "nan_behind"}
    assert any("other contexts than the batch's: a mask with holes" in note for note in report.notes)


def test_the_batch_holds_zero_behind_the_mask():
    """A sum over all of ``logp_old`` is right: the batch holds 0 on padding."""

    def step(model, batch):
        logp = of_completions(model, batch) * batch.completion_mask
        return -((logp.sum(1) - batch.logp_old.sum(1)).exp() * batch.advantages).mean()

    assert identify_model(step, level="sequence").faults == ()


def test_a_step_that_refuses_to_pad_with_eos_is_not_accused():
    def step(model, batch):
        assert model.config.pad_token_id != EOS, "two ids"
        return right(model, batch)

    report = identify_model(step)
    assert report.faults == () and any("two ids" in note and "padding with EOS" in note for note in report.notes)


def test_absolute_positions():
    """A model with learnt positions needs position_ids; without them it sees each prompt's padding."""
    assert identify_model(right_with_positions, absolute_positions=True).faults == ()
    report = identify_model(right, absolute_positions=True)
    assert any("in a wrong context" in fault for fault in report.faults)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("pad", [PAD, EOS])
def test_a_scripted_model_says_what_it_is_told(temperature, pad):
    """Its log-probabilities are the table's, and each one's gradient is its own alone."""
    rng = torch.Generator().manual_seed(3)
    p, q, r = -torch.rand((3, 5, 4), generator=rng, dtype=torch.float64) - 0.1
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]).bool()
    batch = scripted_batch(q, r, torch.arange(5.0), mask, temperature, pad)
    model = ScriptedLM(p, batch, pad)
    found = of_completions(model, batch)
    assert torch.allclose(found[mask], p[mask], atol=1e-14)
    weights = torch.randn(mask.shape, generator=rng, dtype=torch.float64)
    (weights * found)[mask].sum().backward()
    assert torch.allclose(model.logp.grad, torch.where(mask, weights, 0.0), atol=1e-14)
    assert torch.equal(batch.labels[:, start(batch) :] != -100, mask)
    assert len({tuple(row) for row in batch.prompt_ids.tolist()}) == 5
    assert sorted(set(batch.prompt_mask.sum(1).tolist())) == [7, 8]


def test_a_step_with_advantages_per_token_and_its_own_backward():
    def step(model, batch):
        of_the_batch(surrogate)(model, batch).backward()

    report = identify_model(step)
    assert report.faults == () and terms(report.off_policy) == OBJECTIVE
    assert not any("advantages [B, T]" in note for note in report.notes)


@pytest.mark.parametrize("temperature", quick([0.5, 1.0, 1.7], [1.0]))
def test_other_temperatures(temperature):
    report = identify_model(right, temperature=temperature)
    assert report.faults == () and terms(report.off_policy) == OBJECTIVE
    # A mean over tokens of responses of three: the gradient is that of J over three, at any temperature.
    assert report.off_policy.scale == pytest.approx(1 / 3)
    named = any(
        "the temperature is missing" in fault
        for fault in identify_model(without_temperature, temperature=temperature).faults
    )
    assert named == (temperature != 1.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be a number"):
        identify_model(right, temperature=temperature)


def test_whitened_advantages_in_a_step():
    def step(model, batch):
        batch.advantages = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-6)
        return right(model, batch)

    report = identify_model(step)
    assert report.faults == () and "normalised or clipped inside" in report.hazards[0]


def test_what_a_missing_temperature_hides_is_told():
    report = identify_model(without_temperature)
    assert report.on_policy.objective is None
    said = "with a batch of temperature 1 it is on-policy: E[R] − 0.04·KL(π‖ref) per token"
    assert any(note.startswith(said) for note in report.notes)


def test_an_exact_entropy_bonus():
    def step(model, batch):
        logits = logits_of(model, batch)[:, start(batch) - 1 : -1]
        entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
        mask = batch.completion_mask
        return right(model, batch) - 0.01 * (entropy * mask).sum() / mask.sum()

    report = identify_model(step)
    assert terms(report.off_policy) == OBJECTIVE | {"entropy": 0.01}


def test_rounding_of_what_cancels_is_no_finding():
    """k1's gradient cancels on-policy; in single precision what is left is noise, and no part of an objective."""

    def step(model, batch):
        logits = logits_of(model, batch)[:, start(batch) - 1 : -1].float()
        logp, mask = picked(logits, batch.completion_ids), batch.completion_mask
        w = (logp - batch.logp_old.float()).exp()
        gain = w * batch.advantages[:, None].float()
        return ((BETA * (logp - batch.logp_ref.float()) - gain) * mask).sum() / mask.sum()

    report = identify_model(step)
    assert terms(report.on_policy) == {"reward": 1.0} and "single precision" in report.on_policy.verdict
    assert set(report.off_policy.objective.terms) == {"reward", "forward_kl_old"}


def test_a_sequence_ratio():
    def step(model, batch):
        mask = batch.completion_mask
        log_w = ((of_completions(model, batch) - batch.logp_old) * mask).sum(1)
        return -(log_w.exp() * batch.advantages).mean()

    report = identify_model(step, level="sequence")
    assert terms(report.off_policy) == {"reward": 1.0} and report.faults == ()


@pytest.mark.parametrize(
    "step, message",
    [
        (lambda model, batch: batch.advantages.sum(), "the step returned .* without a gradient"),
        (lambda model, batch: None, "the step must return a scalar tensor, got a NoneType"),
        (lambda model, batch: of_completions(model, batch), "got a tensor of shape"),
        (lambda model, batch: right(model, batch) * math.nan, "the step returned NaN"),
        (lambda model, batch: right(model, batch) * torch.rand(()), "make it deterministic"),
        (lambda model, batch: model(batch.input_ids, torch.ones(1, 1, 2, 2)).logits.sum(), "attention_mask has shape"),
    ],
)
def test_what_is_no_step_is_refused(step, message):
    with pytest.raises(ValueError, match=message):
        identify_model(step)


def test_the_models_distribution_is_the_trees():
    tree = prefix_tree(3, 2)
    model = PrefixTreeLM(tree, prompts=((BOS, FIRST), (BOS, EOS, EOS)))
    logits = torch.randn((tree.states, 3), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    model.set_policy(logits, temperature=0.5)
    for prompt in ((BOS, FIRST), (BOS, EOS, EOS)):
        ids = torch.cat([torch.tensor(prompt).expand(len(tree.tokens), -1), FIRST + tree.tokens], 1)
        found = picked(model(ids).logits[:, len(prompt) - 1 : -1] / 0.5, FIRST + tree.tokens)
        assert torch.allclose(found, token_logp(tree, logits.log_softmax(-1)), atol=1e-15)


def test_a_prompt_that_continues_another_is_refused():
    with pytest.raises(ValueError, match="continues another"):
        PrefixTreeLM(prefix_tree(3, 2), prompts=((BOS,), (BOS, FIRST)))


def test_padding_does_not_change_the_model_unless_it_is_seen():
    model = PrefixTreeLM(prefix_tree(4, 3))
    with torch.no_grad():
        model.rows.normal_(generator=torch.Generator().manual_seed(0))
    ids, padded = torch.tensor([[BOS, FIRST, FIRST + 1]]), torch.tensor([[PAD, BOS, FIRST, FIRST + 1]])
    plain = model(ids).logits
    assert torch.equal(model(padded, (padded != PAD).long()).logits[:, 1:], plain)
    assert not torch.allclose(model(padded).logits[:, 1:], plain)
    assert model.config.vocab_size == plain.shape[-1] == 7
    assert model.dtype == plain.dtype == torch.float64 and model.device == plain.device
    fields = SimpleNamespace(logits=plain)
    assert torch.equal(model(ids)[0], fields.logits)


def test_a_batch_pads_prompts_left_and_completions_right():
    rows = torch.zeros((2, 3), dtype=torch.float64) - 1
    batch = model_batch([(BOS,), (BOS, 4)], [(3, EOS), (4, 5, 6)], rows, rows, torch.ones(2), 1.0)
    assert batch.input_ids.tolist() == [[PAD, BOS, 3, EOS, PAD], [BOS, 4, 4, 5, 6]]
    assert batch.attention_mask.tolist() == [[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch.labels.tolist() == [[-100, -100, 3, EOS, -100], [-100, -100, 4, 5, 6]]
    assert batch.logp_old.tolist() == [[-1, -1, 0], [-1, -1, -1]]
    assert dict(batch)["temperature"] == 1.0
