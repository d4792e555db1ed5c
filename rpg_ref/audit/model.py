"""Which objective does a whole trainer optimise? Its step is given a model whose every probability is known."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from rpg_ref.audit.identify import Descent, Report, find
from rpg_ref.audit.oracle import token_logp
from rpg_ref.audit.population import as_loss, balanced, population, sentence_of
from rpg_ref.audit.prefix_lm import BOS, EOS, FIRST, PAD, PrefixTreeLM, Step, model_batch, run_step
from rpg_ref.audit.probes import Probed, Subject, probe, uneven_rows
from rpg_ref.audit.remarks import Remark
from rpg_ref.audit.scripted import step_as_loss
from rpg_ref.audit.tokens import read_tokens
from rpg_ref.checks import check_number


def identify_model(
    step: Step, *, level: str = "token", temperature: float = 0.7, seed: int = 0, absolute_positions: bool = False
) -> Report:
    """Find the objective whose gradient a whole trainer's step follows, and name what it does to the model's tokens.

    Args:
        step: step(model, batch) ↦ the scalar loss, model a PrefixTreeLM and batch a ModelBatch.
        level: of the terms it is compared with, "token" or "sequence".
        temperature: at which the batch was sampled; 1 for a step that knows none.
        seed: of the policies.
        absolute_positions: whether the model counts positions from the start of the row, padding included, unless the
            step passes position_ids, as models with learnt positions do.

    Returns:
        Report; its faults name labels shifted, a temperature missing, prompt or padding scored, EOS dropped, padding
        seen by the model, tokens not the batch's, and whatever ``identify`` names.

    Raises:
        ValueError: the step returns no scalar tensor, or nothing that depends on the model; or the level is unknown.

    Source: ours.
    """
    check_number("temperature", temperature, 0.0, math.inf, "()")
    tokens = read_tokens(step, temperature, absolute=absolute_positions)
    probed = _probe(step, temperature, tokens)
    grouped = probed.grouped or any(remark.kind == "group_normalised" for remark in tokens)
    coarse = "" if probed.dtype is None else str(probed.dtype).removeprefix("torch.")
    report = _find(step, level, temperature, seed, grouped=grouped, coarse=coarse)
    remarks = (*report.remarks, *tokens, *probed.remarks)
    if any("temperature is missing" in remark for remark in remarks):
        at_one = _find(step, level, 1.0, seed)
        remarks = (*remarks, Remark("at_temperature_one", verdict=str(at_one).splitlines()[0]))
    return replace(report, remarks=remarks, normaliser=probed.normaliser)


_SAID = {
    "normalised_batch": ("normalised", "centred", "group_normalised"),
    "centred": ("normalised", "group_normalised"),
    "group_normalised": ("normalised", "centred"),
    "token_filter": ("value_filter",),
    "token_weights": ("value_filter",),
    "own_transform": ("sign_weights",),
    "sign_weights": ("own_transform",),
}
"""What need not be said a second time by the probes of a loss, by what the tokens showed."""


def _probe(step: Step, temperature: float, tokens: tuple[Remark, ...]) -> Probed:
    """Give the step what a loss is given, once its tokens are right."""
    if any(remark.severity == "error" for remark in tokens):
        return Probed((Remark("unchecked", what="the probes of a loss, before the step's tokens are right"),))
    try:
        probed = probe(as_loss(step_as_loss(step, temperature)), contiguous=True)
    except ValueError as error:
        return Probed((Remark("unchecked", what=f"the probes of a loss, since {error}"),))
    said = {kind for remark in tokens for kind in (remark.kind, *_SAID.get(remark.kind, ()))}
    remarks = [remark for remark in probed.remarks if remark.kind not in said]
    return probed._replace(remarks=(*remarks, *_pad_is_eos(step, temperature)))


def _pad_is_eos(step: Step, temperature: float) -> list[Remark]:
    """Whether the step takes EOS for padding where both have one id."""
    rows = uneven_rows()
    try:
        apart, alike = (Subject(as_loss(step_as_loss(step, temperature, pad))).pull(rows) for pad in (PAD, EOS))
    except Exception as error:  # whatever a black box raises
        return [Remark("refused", error=sentence_of(error), what="padding with EOS")]
    count = int(((apart - alike).abs() > 1e-5 * apart.abs().max()).sum())
    return [Remark("pad_is_eos", count=count)] if count else []


def _find(step: Step, level: str, temperature: float, seed: int, *, grouped: bool = False, coarse: str = "") -> Report:
    batch = balanced(seed) if grouped else population(seed)
    model = PrefixTreeLM(batch.tree)
    tokens = (FIRST + batch.tree.tokens[batch.rows]).tolist()
    old, ref = (token_logp(batch.tree, table)[batch.rows] for table in (batch.old, batch.ref))
    prompts = [(BOS, FIRST)] * len(tokens)
    rollout = model_batch(prompts, list(map(tuple, tokens)), old, ref, batch.reward[batch.rows], temperature)

    def black_box(logits: Tensor, advantage: Tensor) -> Descent:
        model.set_policy(logits, temperature)
        run_step(step, model, replace(rollout, advantages=advantage[batch.rows]))
        gradient = torch.zeros_like(model.rows) if model.rows.grad is None else model.rows.grad
        pulls = sum(float(call.logits.grad.abs().sum()) for call in model.calls if call.logits.grad is not None)
        # The policy's logits are the model's divided by the temperature.
        return Descent(-temperature * gradient[:, FIRST:].flatten().double(), temperature * pulls)

    return find(black_box, batch, level, coarse=coarse)
