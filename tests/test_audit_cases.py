"""Faults that trainers really had, each beside its right twin: the first is named, the second is never accused."""

import pytest
import torch
from tiers import quick

from rpg_ref import k3
from rpg_ref.audit import assert_gradient, identify, identify_model

BETA = 0.1


def mean(x, mask):
    return torch.where(mask.bool(), x, 0.0).sum() / mask.sum()


def per_token(A, p):
    return A[:, None] if A.ndim == 1 else A


def gain(p, q, A):
    w, a = (p - q).exp(), per_token(A, p)
    return torch.minimum(w * a, w.clamp(0.8, 1.2) * a)


def right(p, q, r, A, mask):
    return -mean(gain(p, q, A) - BETA * (p - q).exp() * k3(r - p), mask)


def of_response(A, mask):
    """One advantage for each response, from [B, T]."""
    return torch.where(mask, A, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True)


def clip_by_sign(for_good, for_bad):
    def loss(p, q, r, A, mask):
        w, a = (p - q).exp(), A[:, None]
        x, y = w * a, w.clamp(0.8, 1.2) * a
        return -mean(torch.where(a >= 0, for_good(x, y), for_bad(x, y)), mask)

    return loss


def sequence_mask(decide):
    """Drop a response that is bad and far from π_old."""

    def loss(p, q, r, A, mask):
        a = A if A.ndim == 2 else A[:, None].expand(p.shape)
        far = torch.where(mask, q - p, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True) > 0.1
        keep = ~((decide(a, mask) < 0) & far)
        return -mean(torch.where(keep, (p - q).exp() * a, 0.0), mask)

    return loss


def accumulated(extra):
    def loss(p, q, r, A, mask):
        parts = torch.where(mask, gain(p, q, A), 0.0).chunk(4)
        return -sum(part.sum() / mask.sum() / extra for part in parts)

    return loss


def sft_term(of_the_batch):
    """A log-likelihood term on good responses, its denominator counted in the batch or in each micro-batch."""

    def loss(p, q, r, A, mask):
        good, total = mask & (A > 0)[:, None], 0.0
        for rows in torch.arange(len(p)).chunk(4):
            n = (good if of_the_batch else good[rows]).sum().clamp(min=1)
            total = total - torch.where(mask, gain(p, q, A), 0.0)[rows].sum() / mask.sum()
            total = total - BETA * torch.where(good[rows], p[rows], 0.0).sum() / n
        return total

    return loss


def tool_tokens(shift):
    def loss(p, q, r, A, mask):
        ends = mask.shape[1] - mask.flip(1).long().argmax(1, keepdim=True)
        inside = torch.arange(mask.shape[1]) < ends
        holes = (inside & ~mask).roll(shift, 1)
        return -mean(gain(p, q, A), inside & ~holes)

    return loss


def by_length(p, q, r, A, mask):
    return -mean(gain(p, q, A), torch.arange(mask.shape[1]) < mask.sum(1, keepdim=True))


def averaged(of):
    return lambda p, q, r, A, mask: -mean((p - q).exp() * of(A, mask), mask)


def sapo(p, q, r, A, mask):
    return -mean(4 * ((p - q).exp() - 1).sigmoid() * A[:, None], mask)


def sapo_without_advantage(p, q, r, A, mask):
    return -mean(4 * ((p - q).exp() - 1).sigmoid(), mask)


def cast(dtype):
    def loss(p, q, r, A, mask):
        return right(p.to(dtype), q.to(dtype), r.to(dtype), A.to(dtype), mask)

    return loss


def rounded(dtype):
    """Log-probabilities in half precision, the arithmetic after them in single."""
    return lambda p, q, r, A, mask: right(*(x.to(dtype).float() for x in (p, q, r)), A.float(), mask)


def loop(mean_of):
    """Row by row, divided by the batch's tokens or by each row's own and never averaged."""

    def loss(p, q, r, A, mask):
        total = 0.0
        for i in range(len(p)):
            row = slice(i, i + 1)
            total = total - torch.where(mask[row], gain(p[row], q[row], A[row]), 0.0).sum() / mean_of(mask, row)
        return total

    return loss


def each_its_own_mean(p, q, r, A, mask):
    parts = zip(*(x.chunk(4) for x in (p, q, r, A, mask)), strict=True)
    return sum(right(*part) for part in parts)


def added_to_the_batch(p, q, r, A, mask):
    penalty = torch.where(mask, k3(r - p), 0.0)
    return -mean((p - q).exp() * A[:, None], mask) + BETA * sum(x.sum() / (x != 0).sum() for x in penalty.chunk(2))


# Name: the faulty loss, its right twin, and a word of the remark.
PAIRS = {
    "maximum for bad responses": (
        clip_by_sign(torch.minimum, torch.maximum),
        clip_by_sign(torch.minimum, torch.minimum),
        "for A < 0 the clip acts on the wrong side: the gradient is zero above w = 1.2",
    ),
    "maximum for good responses": (
        clip_by_sign(torch.maximum, torch.minimum),
        clip_by_sign(torch.minimum, torch.minimum),
        "for A > 0 the clip acts on the wrong side: the gradient is zero below w = 0.7",
    ),
    "sequence mask per token": (
        sequence_mask(lambda a, mask: a),
        sequence_mask(of_response),
        "dropped token by token",
    ),
    "divided by the accumulation steps again": (accumulated(4), accumulated(1), "divided by 4"),
    "multiplied by the ranks": (
        lambda *batch: 8 * right(*batch),
        right,
        "8 times that of the mean over tokens",
    ),
    "a term per micro-batch": (sft_term(False), sft_term(True), "multiplied by the number of micro-batches: by 4"),
    "a penalty per micro-batch": (added_to_the_batch, right, "multiplied by the number of micro-batches: by 2"),
    "a mean per micro-batch, summed": (each_its_own_mean, right, "multiplied by the number of micro-batches: by 4"),
    "tool tokens shifted": (tool_tokens(1), tool_tokens(0), "holes in the mask are shifted by one column to the right"),
    "tool tokens shifted back": (tool_tokens(-1), tool_tokens(0), "shifted by one column to the left"),
    "the mask's length": (by_length, right, "tokens in a hole of the mask get a gradient"),
    "advantages averaged with padding": (
        averaged(lambda A, mask: A.mean(1, keepdim=True)),
        averaged(of_response),
        "advantages [B, T] of 0 behind the mask",
    ),
    "NaN advantages averaged": (
        averaged(lambda A, mask: (A * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)),
        averaged(of_response),
        "NaN in the advantages [B, T] behind the mask",
    ),
    "advantages of the next token": (
        averaged(lambda A, mask: A.roll(1, 1) if A.shape[1] > 1 else A),
        averaged(lambda A, mask: A),
        "used at other tokens than their own",
    ),
    "SAPO without the advantage": (sapo_without_advantage, sapo, "the advantages change nothing"),
    "bfloat16": (cast(torch.bfloat16), right, "computed in bfloat16"),
    "bfloat16 log-probabilities": (rounded(torch.bfloat16), right, "computed in bfloat16"),
    "float16": (cast(torch.float16), cast(torch.float32), "computed in float16"),
    "counted from the last column": (
        lambda p, q, r, A, mask: -mean(gain(p, q, A) * 0.9 ** (p.shape[1] - torch.arange(p.shape[1])), mask),
        right,
        "two more columns of padding change the gradient",
    ),
    "a penalty over all columns": (
        lambda p, q, r, A, mask: (
            -mean((p - q).exp() * A[:, None], mask) + BETA * torch.where(mask, (p - q).exp() * k3(r - p), 0.0).mean()
        ),
        right,
        "padding is counted in the denominator",
    ),
    "row loop without a mean": (
        loop(lambda mask, row: mask[row].sum() ** 2),
        loop(lambda mask, row: mask.sum()),
        "divided by the length twice",
    ),
}

# True of each of these losses, and of a right one as well.
ALLOWED = (
    "micro-batches, for responses of different lengths",
    "−inf behind the mask",
    "NaN behind the mask",
    "= +90",
    "= −90",
)


def remarks(report):
    return [remark for remark in report.all_remarks if not any(word in remark for word in ALLOWED)]


def accusations(report):
    return [remark for remark in remarks(report) if remark.severity != "note"]


@pytest.mark.parametrize("name", quick(PAIRS, {x for x in PAIRS if not x.startswith("row loop")}))
def test_a_fault_is_named_and_its_right_twin_is_not_accused(name):
    faulty, twin, word = PAIRS[name]
    assert any(word in remark for remark in accusations(identify(faulty))), identify(faulty)
    found = identify(twin)
    assert found.faults == () and not any(word in remark for remark in found.all_remarks), found
    assert accusations(found) == [], found


def test_half_precision_is_named_and_nothing_else_is_accused():
    for dtype in (torch.bfloat16, torch.float16):
        for loss in (cast(dtype), rounded(dtype)):
            report = identify(loss)
            assert [remark.kind for remark in accusations(report)] == ["precision"], report
            assert report.on_policy.undecided and report.off_policy.undecided
            assert f"undecided: {str(dtype)[6:]} leaves too little to fit" in str(report)
    with pytest.raises(AssertionError, match="bfloat16"):
        assert_gradient(cast(torch.bfloat16), reward=1.0, reverse_kl=BETA)
    # A mistake beside it is still found.
    report = identify(lambda p, q, r, A, mask: cast(torch.bfloat16)(p, q, r, A, torch.ones_like(mask)))
    assert any("the mask is ignored" in fault for fault in report.faults)


def test_what_is_of_second_order_is_not_nothing():
    report = identify(sapo_without_advantage)
    assert report.on_policy.verdict == "nothing, its expected gradient is zero"
    assert "the gradient of no known objective" in report.off_policy.verdict


class Double(torch.autograd.Function):
    """2·x with a backward pass of its own."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def in_place(p, q, r, A, mask):
    log_w = p - q
    log_w.masked_fill_(~mask, 0.0)
    w = log_w.exp()
    r[~mask], A[A.abs() < 1e-12] = -1.0, 0.0
    return (BETA * torch.where(mask, w * k3(r - p), 0.0) - torch.where(mask, w * A[:, None], 0.0)).sum() / mask.sum()


def under_autocast(*batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return right(*batch)


def vectorised(p, q, r, A, mask):
    rows = torch.func.vmap(lambda p, q, r, a: a * (p - q).exp() - BETA * (p - q).exp() * k3(r - p))(p, q, r, A)
    return -mean(rows, mask)


def own_gradient(p, q, r, A, mask):
    """The gradient by torch.func, handed to a surrogate."""
    pull = torch.func.grad(lambda x: -right(x, q, r, A, mask))(p.detach())
    return -(torch.where(mask, pull, 0.0) * p).sum()


def row_loop(p, q, r, A, mask):
    rows = [right(p[i, None], q[i, None], r[i, None], A[i, None], mask[i, None]) * mask[i].sum() for i in range(len(p))]
    return sum(rows) / mask.sum()


def compiled(backend):
    def loss(*batch):
        return torch.compile(right, backend=backend, dynamic=True)(*batch)

    return loss


WRITTEN_OTHERWISE = {
    "in place": in_place,
    "autocast": under_autocast,
    "vmap": vectorised,
    "torch.func.grad": own_gradient,
    "custom Function": lambda p, q, r, A, mask: 0.5 * Double.apply(right(p, q, r, A, mask)),
    "row loop": row_loop,
    "compiled, eager": compiled("eager"),
    "compiled, aot_eager": compiled("aot_eager"),
    "compiled, inductor": compiled("inductor"),
}


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(
    "name",
    quick(WRITTEN_OTHERWISE, {x for x in WRITTEN_OTHERWISE if x != "row loop" and not x.startswith("compiled")}),
)
def test_a_right_loss_is_right_however_it_is_written(name):
    torch.compiler.reset()
    loss = WRITTEN_OTHERWISE[name]
    report = identify(loss)
    assert accusations(report) == [], report
    assert_gradient(report, reward=1.0, reverse_kl=BETA)


def within_groups(size, normalise):
    def loss(p, q, r, A, mask):
        return right(p, q, r, normalise(A.view(-1, size)).flatten(), mask)

    return loss


def centred(r):
    return r - r.mean(1, keepdim=True)


def whitened(r):
    return centred(r) / (r.std(1, keepdim=True) + 1e-6)


def over_their_spread(r):
    return r / (r.std(1, keepdim=True) + 1e-6)


def whitened_without_a_guard(r):
    return centred(r) / r.std(1, keepdim=True)


def leave_one_out(r):
    return r - (r.sum(1, keepdim=True) - r) / (r.shape[1] - 1)


def centred_then_scaled(r):
    return centred(r) / (centred(r).std() + 1e-6)


GROUPS = [
    (whitened, 4, "their mean is subtracted and they are divided by their standard deviation"),
    (whitened, 2, "their mean is subtracted and they are divided by their standard deviation"),
    (centred, 4, "their mean is subtracted"),
    (over_their_spread, 4, "they are divided by their spread"),
    (leave_one_out, 4, "their mean is subtracted"),
    (whitened, 8, "their mean is subtracted and they are divided by their standard deviation"),
    (whitened, 16, "their mean is subtracted and they are divided by their standard deviation"),
    (centred_then_scaled, 4, "their mean is subtracted, and the whole batch is divided by its standard deviation"),
]


@pytest.mark.parametrize("normalise, size, how", GROUPS)
def test_normalisation_within_groups_is_recognised(normalise, size, how):
    report = identify(within_groups(size, normalise))
    # The whole batch's standard deviation is another one in each micro-batch.
    of_the_batch = ["split"] if normalise is centred_then_scaled else []
    assert [remark.kind for remark in accusations(report)] == of_the_batch, report
    assert f"the advantages are normalised within groups of {size} responses: {how}" in report.notes
    assert set(report.off_policy.objective.terms) == {"reward", "reverse_kl"}


def test_groups_without_a_guard_are_told_so():
    report = identify(within_groups(4, whitened_without_a_guard))
    assert [remark.kind for remark in accusations(report)] == ["equal_nan"]
    assert any("within groups of 4" in note for note in report.notes)


def test_normalisation_over_the_batch_is_no_groups():
    report = identify(lambda p, q, r, A, mask: right(p, q, r, whitened(A[None])[0], mask))
    assert any("normalised or clipped inside" in hazard for hazard in report.hazards)
    assert not any("within groups" in remark for remark in report.all_remarks)


def by_sign(p, q, r, A, mask):
    return -mean((p - q).exp() * torch.where(A > 0, 0.1 * A, A)[:, None], mask)


def good_alone(p, q, r, A, mask):
    return -mean((p - q).exp() * A.clamp(min=0.0)[:, None], mask)


def bounded_advantage(p, q, r, A, mask):
    return -mean((p - q).exp() * A.clamp(-1.0, 1.0)[:, None], mask)


def least_likely_half(p, q, r, A, mask):
    kept = mask & (p.detach() <= p.detach()[mask].quantile(0.5))
    return -mean(gain(p, q, A), kept)


def best_half(p, q, r, A, mask):
    return -mean(gain(p, q, A) * (A >= A.median())[:, None], mask)


def squashed(p, q, r, A, mask):
    return -mean(gain(p, q, A.tanh()), mask)


DOCUMENTED = {
    "weights by sign": (by_sign, "depends on the sign of its advantage: 0.1 above 0 for 1 below"),
    "good responses alone": (good_alone, "depends on the sign of its advantage: 1 above 0 for 0 below"),
    "bounded advantages": (bounded_advantage, "is transformed inside, by itself"),
    "squashed advantages": (squashed, "is transformed inside, by itself"),
    "a filter by log-probability": (least_likely_half, "filtered or weighted by their log-probability"),
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_what_is_documented_is_a_note(name):
    loss, word = DOCUMENTED[name]
    report = identify(loss)
    assert accusations(report) == [], report
    assert any(word in note for note in report.notes)


def truncated(p, q, r, A, mask):
    return -mean((p - q).exp().clamp(max=2.0) * A[:, None], mask)


def gspo_token(p, q, r, A, mask):
    log_s = torch.where(mask, p - q, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    w, a = log_s.exp().detach() * (p - p.detach()).exp(), per_token(A, p)
    return -mean(torch.minimum(w * a, w.clamp(0.9, 1.1) * a), mask)


def far_penalty(p, q, r, A, mask):
    """|log π_θ/π_old| on the tokens of largest covariance: no gradient where they are equal, to the last bit."""
    a = A[:, None].expand(p.shape)
    covariance = (a - a[mask].mean()) * (p.detach() - p.detach()[mask].mean())
    chosen = mask & (covariance >= covariance[mask].quantile(0.8))
    return -mean((p - q).exp() * a - torch.where(chosen, (p - q).abs(), 0.0), mask)


def without_rows_of_no_advantage(p, q, r, A, mask):
    """It takes [B] alone: given [B, T] it would broadcast."""
    kept = mask * (A.abs() > 1e-9)[:, None]
    return -(gain(p, q, A) * kept).sum() / kept.sum().clamp(min=1)


@pytest.mark.parametrize("loss", [truncated, gspo_token, far_penalty, without_rows_of_no_advantage])
def test_a_documented_loss_has_no_fault(loss):
    report = identify(loss)
    assert report.faults == () and str(report.on_policy.objective) == "E[R] per token", report


def test_the_best_half_of_a_batch_depends_on_the_split_and_has_no_fault():
    report = identify(best_half)
    assert report.faults == () and [remark.kind for remark in accusations(report)] == ["split"]


def test_another_response_s_advantage_of_the_same_sign_is_a_fault():
    report = identify(lambda p, q, r, A, mask: right(p, q, r, A.roll(2), mask))
    assert any("another response's advantage" in fault for fault in report.faults)


def test_a_ratio_to_the_reference_is_named():
    report = identify(lambda p, q, r, A, mask: -mean((p - r).exp() * A[:, None], mask))
    assert any("π/ref for π/π_old" in remark for remark in report.suspects)


def test_a_pull_that_fades_is_no_clamp():
    """In single precision the pull of ref/π − 1 is rounded to nothing far above the reference, and was small before."""

    def loss(p, q, r, A, mask):
        p, q, r = (x.float() for x in (p, q, r))
        fades = 0.5 * torch.where(r - p < -15.0, 0.0, (r - p).exp())
        return mean(BETA * fades - (p - q).exp() * A.float()[:, None], mask)

    assert not any(remark.kind == "dead" for remark in identify(loss).all_remarks)


def test_a_weight_that_forgets_the_sign_is_no_weight_by_sign():
    report = identify(lambda p, q, r, A, mask: -mean((p - q).exp() * A.abs()[:, None], mask))
    assert any("do not move in proportion" in fault for fault in report.faults)


def test_a_right_part_is_no_suspect_for_its_rounding():
    def loss(p, q, r, A, mask):
        log_w = torch.where(mask, p - q, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return mean(BETA * (p - q).exp() * k3(r - p) - log_w.exp() * A[:, None], mask)

    report = identify(loss)
    assert [remark.kind for remark in report.suspects] == ["reward_form"]


@pytest.mark.parametrize(
    "bad_shape",
    [
        lambda p, mask: len(p) > 100 and len(p) != 1000,
        lambda p, mask: not mask[:, 0].all(),
        lambda p, mask: bool(p.isinf().any() or p.isnan().any()),
    ],
    ids=["large batches", "padding on the left", "no finite numbers"],
)
def test_a_refusal_is_no_fault(bad_shape):
    def loss(p, q, r, A, mask):
        if bad_shape(p, mask):
            raise RuntimeError("not for me")
        return right(p, q, r, A, mask)

    report = identify(loss)
    assert report.faults == () and any("raises RuntimeError, not for me" in note for note in report.notes)


# Whole steps.
def logits_of(model, batch):
    start = batch.prompt_ids.shape[1]
    return model(batch.input_ids, batch.attention_mask).logits[:, start - 1 : -1] / batch.temperature


def step_with(advantages=lambda batch: batch.advantages, kept=lambda logits, batch: batch.completion_mask):
    def step(model, batch):
        logits = logits_of(model, batch)
        logp = logits.log_softmax(-1).gather(-1, batch.completion_ids.unsqueeze(-1)).squeeze(-1)
        mask = kept(logits.detach(), batch).bool()
        return right(logp, batch.logp_old, batch.logp_ref, advantages(batch), mask)

    return step


def by_prompt(batch):
    _, group = torch.unique(batch.prompt_ids, dim=0, return_inverse=True)
    A = torch.zeros_like(batch.advantages)
    for g in group.unique():
        A[group == g] = whitened(batch.advantages[group == g][None])[0]
    return A


def by_fours(batch):
    return whitened(batch.advantages.view(-1, 4)).flatten()


def over_the_batch(batch):
    return whitened(batch.advantages[None])[0]


@pytest.mark.parametrize("advantages", [by_prompt, by_fours])
def test_a_step_that_whitens_within_groups_is_recognised(advantages):
    report = identify_model(step_with(advantages))
    assert accusations(report) == [], report
    assert any("normalised within groups of 4 responses" in note for note in report.notes)
    assert set(report.off_policy.objective.terms) == {"reward", "reverse_kl"}


def test_a_step_that_whitens_over_the_batch_is_told_from_it():
    report = identify_model(step_with(over_the_batch))
    assert any("over the whole batch and not within each prompt's group" in hazard for hazard in report.hazards)


def entropy_filter(logits, batch):
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    mask = batch.completion_mask.bool()
    return mask & (entropy >= entropy[mask].quantile(0.5))


def test_a_filter_by_entropy_is_a_note():
    report = identify_model(step_with(kept=entropy_filter))
    assert accusations(report) == [], report
    assert any("the model's own probabilities choose which" in note for note in report.notes)


def test_a_filter_by_place_is_a_fault():
    def every_other(logits, batch):
        return batch.completion_mask * (torch.arange(batch.completion_mask.shape[1]) != 1)

    report = identify_model(step_with(kept=every_other))
    assert any("response tokens get no gradient" in fault for fault in report.faults)


# A sampler that is not π_old, as a sixth tensor.
def corrected_by(log_c):
    def loss(p, q, r, A, mask, logp_sampler):
        c = log_c(p, q, logp_sampler, mask).detach().exp().clamp(max=2.0)
        return -mean((p - q).exp() * c * A[:, None], mask)

    return loss


def of_the_response(x, mask):
    return torch.where(mask, x, 0.0).sum(1, keepdim=True)


SAMPLERS = {
    "ignored": (corrected_by(lambda p, q, s, mask: 0 * q), "sampler_ignored", "warning"),
    "inverted": (corrected_by(lambda p, q, s, mask: s - q), "sampler_inverted", "error"),
    "at another temperature": (corrected_by(lambda p, q, s, mask: q - s / 0.7), "sampler_temperature", "error"),
    "π_old at another temperature": (corrected_by(lambda p, q, s, mask: 0.7 * q - s), "old_temperature", "error"),
    "one token late": (corrected_by(lambda p, q, s, mask: q - s.roll(1, 1)), "sampler_misaligned", "error"),
    "one token early": (corrected_by(lambda p, q, s, mask: q - s.roll(-1, 1)), "sampler_misaligned", "error"),
    "half of the tokens": (
        corrected_by(lambda p, q, s, mask: torch.where(s >= q, 0.0, -torch.inf)),
        "sampler_unread",
        "note",
    ),
    "squared": (corrected_by(lambda p, q, s, mask: 2 * (q - s)), "sampler_unread", "note"),
    "of another row": (corrected_by(lambda p, q, s, mask: q - s.roll(1, 0)), "sampler_unread", "note"),
    "by token": (corrected_by(lambda p, q, s, mask: q - s), "sampler_corrected", "note"),
    "by response": (corrected_by(lambda p, q, s, mask: of_the_response(q - s, mask)), "sampler_corrected", "note"),
    "by geometric mean": (
        corrected_by(lambda p, q, s, mask: of_the_response(q - s, mask) / mask.sum(1, keepdim=True)),
        "sampler_corrected",
        "note",
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_a_loss_does_with_its_sampler_is_read(name):
    loss, kind, severity = SAMPLERS[name]
    found = {
        remark.kind: remark.severity
        for remark in identify(loss).all_remarks
        if "sampler" in remark.kind or "old_t" in remark.kind
    }
    assert found == {kind: severity}


def test_a_sampler_s_temperature_is_named():
    report = identify(SAMPLERS["at another temperature"][0])
    assert any("at the temperature 0.7 of their own" in fault for fault in report.faults)


def test_a_sampler_may_be_an_argument_with_a_default():
    def loss(p, q, r, A, mask, beta=BETA, logp_sampler=None):
        assert logp_sampler is not None
        return -mean((p - logp_sampler).exp() * A[:, None] - beta * (p - logp_sampler).exp() * k3(r - p), mask)

    report = identify(loss)
    assert report.faults == () and any(note.kind == "sampler_corrected" for note in report.notes)
    assert_gradient(report, reward=1.0, reverse_kl=BETA)
    assert not any("sampler" in remark.kind for remark in identify(right).all_remarks)


def test_a_loss_that_takes_two_shapes_alone_is_not_accused():
    def loss(p, q, r, A, mask):
        if len(p) != 1000 and p.shape != (8, 5):
            raise RuntimeError("not for me")
        return right(p, q, r, A, mask)

    report = identify(loss)
    assert report.faults == () and report.normaliser is None and len(report.notes) > 8
    assert set(report.off_policy.objective.terms) == {"reward", "reverse_kl"}


def test_tokens_after_a_hole_must_not_be_dropped():
    report = identify(lambda p, q, r, A, mask: -mean(gain(p, q, A), mask.long().cumprod(1).bool()))
    assert any("response tokens get no gradient when the mask has holes" in fault for fault in report.faults)


def test_a_root_of_the_batch_is_no_number_of_micro_batches():
    report = identify(lambda p, q, r, A, mask: len(p) ** 0.3 * right(p, q, r, A, mask))
    assert not any(remark.kind == "term_times" for remark in report.all_remarks)


def test_a_loss_may_have_no_signature():
    class Opaque:
        __signature__ = "none"

        def __call__(self, *batch):
            return right(*batch)

    assert_gradient(Opaque(), reward=1.0, reverse_kl=BETA)


def test_a_step_that_subtracts_the_mean_is_told_so():
    report = identify_model(step_with(lambda batch: batch.advantages - batch.advantages.mean()))
    assert any("their mean is subtracted inside" in hazard for hazard in report.hazards)


def test_a_penalty_that_is_no_log_probability_and_leaves_tokens_out():
    """An entropy on every token but the second: what is left out is seen, though no label can be read."""

    def step(model, batch):
        logits = logits_of(model, batch)
        entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
        kept = batch.completion_mask * (torch.arange(batch.completion_mask.shape[1]) != 1)
        return -(entropy * kept).sum() / kept.sum()

    assert any("in the penalty, " in fault and "get no gradient" in fault for fault in identify_model(step).faults)
