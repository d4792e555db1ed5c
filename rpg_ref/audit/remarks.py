"""Everything the audit can say beside an objective: each remark with its severity, why it matters and how to fix it.

An error is wrong for every batch. A warning is wrong for some batches, or wrong unless it is meant. A note tells what
the loss does, or what the audit did not check.
"""

from typing import NamedTuple

from rpg_ref.audit.advised import Advised
from rpg_ref.checks import Table

QUIET = ("unchecked", "sampler_corrected")
"""Notes that a short report leaves out."""


class Advice(NamedTuple):
    """One row: how bad it is, the sentence with its blanks, why it matters, and the line to write."""

    severity: str
    sentence: str
    why: str
    fix: str


_MEAN = "`loss = torch.where(mask, per_token, 0.0).sum() / mask.sum()`"

# fmt: off
_ROWS = {
    # The mask.
    "mask_ignored": Advice("error",
        "tokens behind the mask get a gradient: the mask is ignored, padding is counted",
        "The policy is trained on padding.",
        f"Average over the kept tokens only: {_MEAN}."),
    "mask_values": Advice("error",
        "values behind the mask change the gradient of the tokens before it",
        "The update depends on numbers that no model computed.",
        "Replace them before any sum, mean or product: `x = torch.where(mask, x, 0.0)`."),
    "holes_trained": Advice("error",
        "tokens in a hole of the mask get a gradient: {hit} tokens that the policy did not write are trained on",
        "Tool outputs and other foreign tokens are learnt as if the policy had sampled them.",
        f"Use the mask token by token, never its length: {_MEAN}."),
    "holes_shifted": Advice("error",
        "holes in the mask are shifted by {shift} to the {side}: tool tokens get a gradient, response tokens get none",
        "Foreign tokens are learnt, and some of the policy's own are not.",
        "Cut the mask as the labels are cut: column t of `mask` belongs to column t of `logp`."),
    "holes_dropped": Advice("error",
        "{missed} response tokens get no gradient when the mask has holes, such as tool tokens",
        "Part of each response is not trained.",
        f"Use the mask token by token, never its length: {_MEAN}."),
    "left_padding": Advice("warning",
        "with padding on the left, {wrong} tokens are wrongly kept or dropped: the mask is taken for a length",
        "Padding is trained on and response tokens are not, as soon as padding stands on the left.",
        f"Use the mask token by token, never its length: {_MEAN}."),
    "advantages_behind": Advice("error",
        "advantages [B, T] of {fill} behind the mask change the gradient: they are averaged with the padding",
        "A response's advantage shrinks with its padding, or becomes NaN.",
        "Average over the kept tokens: `A = torch.where(mask, A, 0.0).sum(1) / mask.sum(1)`."),
    "advantages_at_other_tokens": Advice("error",
        "advantages [B, T] that differ within a response are used at other tokens than their own",
        "Token-level credit does not reach its token.",
        "Multiply token by token: `(w * advantages)[b, t]`, both [B, T]; average over the response only if that is "
        "meant."),
    "padding_denominator": Advice("warning",
        "two more columns of padding multiply the gradient by {ratio:.3g}: padding is counted in the denominator",
        "The step size depends on the longest response of the batch.",
        f"Divide by the kept tokens: {_MEAN}."),
    "padding_changes": Advice("warning",
        "two more columns of padding change the gradient",
        "The update depends on the longest response of the batch.",
        f"Use neither the number of columns nor positions counted from the last one: {_MEAN}."),
    "nan_behind": Advice("warning",
        "{name} behind the mask makes the gradient NaN: replace masked values before the arithmetic",
        "A single NaN in the padding destroys the whole update, since NaN · 0 is NaN.",
        "Before the first exp: `logp = torch.where(mask, logp, 0.0)`, and the same for logp_old and logp_ref."),
    # How tokens and responses weigh.
    "length_twice": Advice("error",
        "{part}a token of a response of length T weighs 1/T², as if divided by the length twice",
        "Long responses hardly count.",
        "Divide once: by `mask.sum(1)` for a mean over each response, or by `mask.sum()` for a mean over tokens."),
    "length_root": Advice("error",
        "{part}a token of a response of length T weighs 1/√T",
        "No usual aggregation weighs so.",
        f"Choose one aggregation, such as {_MEAN}."),
    "length_times": Advice("error",
        "{part}a token of a response of length T weighs T",
        "Long responses dominate the update.",
        "Do not multiply by `mask.sum(1)` again: a sum over tokens holds the length already."),
    "broadcast": Advice("error",
        "{part}every response moves by one number, not by its own advantage: a [B, 1] times [B] broadcast",
        "The advantages of the batch are mixed, and nothing is learnt from them.",
        "Give both the same shape: `ratio.squeeze(1) * advantages`, or `ratio * advantages[:, None]`."),
    "uneven_tokens": Advice("error",
        "{part}the tokens of one response do not weigh the same on-policy",
        "Some positions are trained more than others, for no reason that the batch gives.",
        "Multiply each kept token by the same weight; check slices such as `x[:, 1:]` and shifted masks."),
    "disproportionate": Advice("error",
        "{part}responses do not move in proportion to their advantages: a denominator for each micro-batch, a "
        "filter, or "
        "another response's advantage",
        "Two responses with equal advantages are trained differently.",
        "Use one `mask.sum()` for all micro-batches of a step, and `advantages[rows]` beside `logp[rows]`."),
    "value_filter": Advice("note",
        "the tokens of one response are filtered or weighted by their log-probability",
        "This is right where it is documented; the objective then counts the kept tokens only.",
        "Nothing is to be done if the filter is meant."),
    "sign_weights": Advice("note",
        "the weight of a response depends on the sign of its advantage: {up:.3g} above 0 for {down:.3g} below",
        "This is right where it is documented; the reward part is then not the gradient of E[R].",
        "Nothing is to be done if the weights are meant."),
    "own_transform": Advice("note",
        "each response's advantage is transformed inside, by itself: the pull is no multiple of it",
        "This is right where it is documented; the reward part is then not the gradient of E[R].",
        "Nothing is to be done if the transformation or the added term is meant."),
    "old_misaligned": Advice("error",
        "a token's log π_old is used at another token: it is not aligned with log π_θ",
        "The importance ratio compares two different tokens.",
        "Cut both the same way: column t of `logp_old` belongs to column t of `logp`."),
    "ref_misaligned": Advice("error",
        "a token's log π_ref is used at another token: it is not aligned with log π_θ",
        "The penalty compares two different tokens.",
        "Cut both the same way: column t of `logp_ref` belongs to column t of `logp`."),
    # Regions.
    "clip_exchanged": Advice("error",
        "min and max of the clip are exchanged: a good response that has fallen below w = {low:.2g} is never raised "
        "again, a bad one above {high:.2g} never lowered",
        "The clip holds the policy where it is wrong and lets go where it should hold.",
        "`gain = torch.minimum(w * A, w.clamp(1 - eps, 1 + eps) * A)`, for both signs of A."),
    "clip_good": Advice("error",
        "for A > 0 the clip acts on the wrong side: the gradient is zero below w = {low:.2g}, where a good response "
        "has "
        "become too rare, and there is no bound above",
        "Good responses are never raised again once they have fallen.",
        "`gain = torch.minimum(w * A, w.clamp(1 - eps, 1 + eps) * A)`, for both signs of A."),
    "clip_bad": Advice("error",
        "for A < 0 the clip acts on the wrong side: the gradient is zero above w = {high:.2g}, where a bad response "
        "has "
        "become too likely, and there is no bound below",
        "Bad responses are never lowered again once they have risen, and are lowered without bound.",
        "`gain = torch.minimum(w * A, w.clamp(1 - eps, 1 + eps) * A)`, for both signs of A."),
    "mask_per_token": Advice("warning",
        "a response far from π_old is dropped token by token: a token's own advantage decides, not its response's",
        "A mask for whole responses is meant to drop all tokens of a bad response or none.",
        "Decide once a response: `bad = (torch.where(mask, A, 0.0).sum(1) / mask.sum(1)) < 0`."),
    "dead": Advice("warning",
        "the penalty has no gradient {beyond} log π_θ/π_ref = {word}{nats:.1f}: a clamp of its value stops the tokens "
        "that drifted most",
        "The tokens that need the penalty most get none of it.",
        "Clamp the log-ratio's size only where exp would overflow, or clamp nothing."),
    "far": Advice("warning",
        "NaN or infinite gradient at log π_θ/{name} = {word}{nats:.0f}",
        "One token far from the other policy destroys the whole update.",
        "Bound the log-ratio before exp: `log_w = (logp - logp_old).clamp(-20, 20)`."),
    # The sampler.
    "sampler_ignored": Advice("warning",
        "the sampler's log-probabilities change nothing: the loss does not correct for a sampler that is not π_old",
        "Where the engine's probabilities differ from the trainer's, the gradient is biased.",
        "Multiply by the detached ratio: `w = w * (logp_old - logp_sampler).exp().clamp(max=2.0).detach()`."),
    "sampler_inverted": Advice("error",
        "the correction for the sampler is inverted: it is the sampler's probability over that of π_old",
        "It doubles the bias that it should remove.",
        "Divide by the sampler: `(logp_old - logp_sampler).exp().detach()`."),
    "sampler_temperature": Advice("error",
        "the sampler's log-probabilities are multiplied by {factor:.3g} in the correction: they are taken at the "
        "temperature {temperature:.3g} of their own",
        "The correction is not 1 where the sampler is π_old, and differs from token to token.",
        "Take both log-probabilities at the temperature of sampling, once: `(logits / temperature).log_softmax(-1)`."),
    "old_temperature": Advice("error",
        "log π_old is multiplied by {factor:.3g} in the correction for the sampler: it is taken at another temperature",
        "The correction is not 1 where the sampler is π_old, and differs from token to token.",
        "Take both log-probabilities at the temperature of sampling, once: `(logits / temperature).log_softmax(-1)`."),
    "sampler_misaligned": Advice("error",
        "the sampler's log-probabilities are used one token too {when}",
        "The correction compares two different tokens.",
        "Cut both the same way: column t of `logp_sampler` belongs to column t of `logp`."),
    "sampler_corrected": Advice("note",
        "the loss corrects for the sampler by π_old over the sampler, {how}",
        "This is right as long as no bound of the ratio is hit.",
        "Nothing is to be done."),
    "sampler_unread": Advice("note",
        "the sampler's log-probabilities change the gradient in a way that the audit does not know",
        "Nothing is said of that correction.",
        "Nothing is to be done if the correction is meant."),
    # Batches.
    "detached": Advice("warning",
        "{what} the loss's value and not its gradient: unweighted k1, or a detached term",
        "The logged loss shows a term that the update does not follow.",
        "Put the term under a gradient, such as `ratio * k3(logp_ref - logp)`, or leave it out of the loss."),
    "split": Advice("warning",
        "the gradient depends on the split into micro-batches, for {what}",
        "The same batch gives another update when the number of micro-batches or ranks changes.",
        "Divide by one number for all micro-batches: the step's `mask.sum()`, all-reduced, or a constant."),
    "term_times": Advice("error",
        "{which} is multiplied by the number of micro-batches: by {factor:.3g} for {rows} rows",
        "The weight of that term depends on how the batch is split.",
        "Count each term's `mask.sum()` over the whole step, not in each micro-batch."),
    "size_divided": Advice("warning",
        "the gradient is that of the mean over {unit} divided by {factor:.4g}: as if the number of accumulation steps, "
        "micro-batches or ranks were divided out twice",
        "The learning rate is in effect {factor:.4g} times smaller than it says.",
        "Divide once: by the denominator of the whole step, and by nothing else."),
    "size_times": Advice("warning",
        "the gradient is {factor:.4g} times that of the mean over {unit}: as if it were multiplied by the number of "
        "accumulation steps, micro-batches or ranks",
        "The learning rate is in effect {factor:.4g} times larger than it says.",
        "Divide by the denominator of the whole step, and multiply only if a later step averages."),
    "equal_nan": Advice("warning",
        "equal advantages make the gradient NaN: they are divided by their standard deviation, 0",
        "One group whose responses all have the same reward destroys the whole update.",
        "`A = (r - r.mean()) / (r.std() + 1e-6)`."),
    "normalised": Advice("warning",
        "the gradient is not proportional to the advantages: they are normalised or clipped inside",
        "A response's update depends on the other responses in its batch.",
        "Normalise once, where the advantages are computed; within each prompt's group if that is what is documented."),
    "normalised_batch": Advice("warning",
        "the gradient is not proportional to the advantages: they are normalised or clipped inside, over the whole "
        "batch "
        "and not within each prompt's group",
        "An easy prompt's responses are then all good, a hard prompt's all bad.",
        "Subtract and divide within each prompt's group: `r = r.view(-1, G); A = (r - r.mean(1, True)) / (r.std(1, "
        "True) "
        "+ 1e-6)`."),
    "centred": Advice("warning",
        "a constant added to all advantages changes nothing: their mean is subtracted inside",
        "Advantages that have a baseline already get a second one.",
        "Subtract a baseline once, where the advantages are computed."),
    "group_normalised": Advice("note",
        "the advantages are normalised within groups of {size} responses: {how}",
        "This is right where each group holds one prompt's responses; the objective is found on groups of mean zero.",
        "Keep each prompt's responses together in a batch; never split a group into micro-batches."),
    "no_advantages": Advice("warning",
        "the advantages change nothing: the coefficients are known up to one common factor, the loss's normaliser",
        "The loss learns nothing from the reward.",
        "Multiply the weight by the advantage, `-(w * advantages[:, None])`, unless the loss is a penalty alone."),
    "other_level": Advice("warning",
        "{regime}, it is an objective at {other} level: {verdict}",
        "At the level that was asked for it is none.",
        "Pass level=\"{other}\" if that is what is meant."),
    "precision": Advice("warning",
        "the log-probabilities are computed in {dtype} inside the loss: its gradient is known to {digits} only",
        "Rounding moves each ratio by about {digits}, which is as much as the policy moves in a step.",
        "Compute log-probabilities and ratios in float32: `logp = logits.float().log_softmax(-1)`."),
    "refused": Advice("note",
        "not checked, since it raises {error}: {what}",
        "The loss refuses these inputs; nothing is said of it there.",
        "Nothing is to be done if such inputs never occur."),
    "unchecked": Advice("note",
        "not checked: {what}",
        "The loss was not asked, so that nothing is said of it there.",
        "Nothing is to be done."),
    # Verdicts.
    "no_objective": Advice("warning",
        "the loss follows the gradient of no known objective, neither on-policy nor off-policy",
        "Nothing says what the policy converges to.",
        "For E[R] − β·KL(π‖ref): `w = (logp - logp_old).exp(); per_token = beta * w * k3(logp_ref - logp) - w * A[:, "
        "None]`."),
    "no_objective_off_policy": Advice("note",
        "off-policy, the loss follows the gradient of no known objective",
        "The more steps are taken on one rollout, the less the update is that of the on-policy objective.",
        "Weigh every term by the importance ratio `w = (logp - logp_old).exp()`, or take one step a rollout."),
    "regimes_differ": Advice("warning",
        "the loss follows another objective off-policy than on-policy",
        "What is optimised depends on how many steps are taken on one rollout.",
        "Weigh every term by the importance ratio: `w = (logp - logp_old).exp()`."),
    "flees": Advice("warning",
        "off-policy, the loss pushes the policy away from its sampler",
        "The further the policy has moved, the harder it is pushed on.",
        "Weigh the penalty by the importance ratio: `w * k3(logp_ref - logp)`."),
    "not_finite": Advice("error",
        "{regime}, the gradient is not finite",
        "One such step destroys the policy.",
        "Look for sqrt, log or a division at 0, and put `torch.where` before it."),
    "descends": Advice("error",
        "the loss lowers the reward: its sign is wrong",
        "Gradient descent on it makes good responses rarer.",
        "`loss = -(w * advantages[:, None])`: what is to be maximised is subtracted."),
    # Forms.
    "reward_form": Advice("warning",
        "the reward part has the gradient of {form}",
        "It is another one than that of E[R] in one of the two regimes.",
        "Weigh each token by its importance ratio: `-(logp - logp_old).exp() * advantages[:, None]`."),
    "penalty_form": Advice("warning",
        "the penalty part has the gradient of {amount} × {form}",
        "It is another one than that of the KL it estimates in one of the two regimes.",
        "For KL(π‖ref): `beta * (logp - logp_old).exp() * k3(logp_ref - logp)`."),
    # A step's tokens.
    "another_gradient": Advice("error",
        "the model is called differently when the advantages change: the step's tokens cannot be read",
        "Responses without an advantage are skipped, or padded otherwise, so that the audit sees another step each "
        "time.",
        "Call `model(input_ids, attention_mask)` on the same rows whatever the advantages are."),
    "unreadable": Advice("error", "{part}{what}",
        "The step trains something else than the log-probabilities of the batch's tokens.",
        "Gather the labels' log-probabilities: `logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])`."),
    "scored_twice": Advice("error",
        "tokens are scored twice: the model is called more than once on the same rows",
        "Their gradient is doubled, and so is the cost.",
        "Call the model once with a gradient; put other calls under `torch.no_grad()`."),
    "wrong_labels": Advice("error",
        "{part}log-probabilities of wrong tokens: {hits} of {all} labels are the token that comes next",
        "The policy is trained on tokens that it did not sample.",
        "Gather with the sampled ids: `logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])`."),
    "shifted_labels": Advice("error",
        "{part}labels are shifted by one: each position is scored on {what}, not on the next token",
        "The policy is trained on tokens that it did not sample there.",
        "Logits of position t predict token t + 1: `logits[:, :-1]` with `ids[:, 1:]`."),
    "padding_sides": Advice("error",
        "{part}left and right padding are mixed up: responses are cut out where they would start without the padding",
        "Other tokens than the responses' are trained on.",
        "With padding on the left every response starts at the same column: `logits[:, P - 1 : -1]`."),
    "prompt_scored": Advice("error",
        "{part}prompt tokens are in the loss: {count} of them get a gradient",
        "The policy is trained on its prompts.",
        "Multiply by `completion_mask`, not by `attention_mask`."),
    "padding_scored": Advice("error",
        "{part}padding is counted: {count} places that hold padding get a gradient",
        "The policy is trained on padding.",
        "Multiply by `completion_mask` before the sum, and divide by its sum."),
    "stray_context": Advice("error",
        "{part}{count} response tokens are scored in a wrong context: the model sees padding, or positions with "
        "gaps; pass "
        "attention_mask, and position_ids counted from it",
        "The log-probabilities are not those that the sampler used.",
        "`position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)`; pass attention_mask with it."),
    "wrong_temperature": Advice("error",
        "{part}the temperature is {how}: the step's is {found:.3g}, that of the batch {wanted:.3g}",
        "The ratio compares two different distributions, and is not 1 on-policy.",
        "`logp = (logits / temperature).log_softmax(-1)`, once."),
    "pad_is_eos": Advice("error",
        "with pad_token_id equal to eos_token_id the gradient is another one: {count} tokens are wrongly kept or "
        "dropped",
        "The end of each response is taken for padding, so that the policy never learns to stop.",
        "Take masks from lengths, never from ids: `completion_mask`, not `ids != pad_token_id`."),
    "at_temperature_one": Advice("note",
        "with a batch of temperature 1 it is {verdict}",
        "This is what the step would follow without the missing temperature.",
        "Nothing is to be done beside the temperature."),
    "missing_kind": Advice("error",
        "{part}{which}: {count} response tokens get no gradient",
        "The policy never learns these tokens, such as when to stop.",
        "Keep every sampled token in `completion_mask`, EOS included."),
    "missing_tokens": Advice("error",
        "{part}{count} of {all} response tokens get no gradient",
        "Part of the responses is not trained, always at the same places.",
        "Keep every sampled token in `completion_mask`."),
    "token_filter": Advice("note",
        "{part}{count} of {all} response tokens get no gradient: the model's own probabilities choose which",
        "This is right where a filter, such as one by entropy, is documented.",
        "Nothing is to be done if the filter is meant."),
    "token_weights": Advice("note",
        "{part}the tokens of one response weigh by the model's own probabilities",
        "This is right where such weights are documented.",
        "Nothing is to be done if the weights are meant."),
}
# fmt: on
REMARKS: Table[Advice] = Table("remark", _ROWS)


class Remark(Advised):
    """One thing that was found, in a sentence: a row of REMARKS.

    Attributes:
        kind: a name in REMARKS.
        severity: "error", "warning" or "note".
        why: one sentence on why it matters.
        fix: one sentence on what to do, with the line to write.
        values: what the blanks of the sentence were filled with.

    Source: ours.
    """

    kind: str
    values: dict[str, object]

    def __new__(cls, kind: str, /, **values: object) -> "Remark":
        """Fill in the blanks of a row of REMARKS."""
        advice = REMARKS[kind]
        values = {"part": ""} | values
        texts = (advice.why.format(**values), advice.fix.format(**values))
        sentence = advice.sentence.format(**values)
        self: Remark = super().__new__(cls, sentence, advice.severity, *texts)  # type: ignore[assignment]
        self.kind, self.values = kind, values
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, object]]:
        """Say how to make a copy."""
        return (self.kind,), self.values

    def in_penalty(self) -> "Remark":
        """Return the same, said of the penalty alone."""
        return Remark(self.kind, **(self.values | {"part": "in the penalty, "}))
