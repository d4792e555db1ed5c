"""Which objective does a whole trainer optimise? Its step is given a model whose every probability is known."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from rpg_ref.audit.identify import Descent, Report, find
from rpg_ref.audit.oracle import token_logp
from rpg_ref.audit.population import balanced, population
from rpg_ref.audit.prefix_lm import BOS, FIRST, PrefixTreeLM, Step, model_batch, run_step
from rpg_ref.audit.remarks import Remark
from rpg_ref.audit.tokens import read_tokens
from rpg_ref.checks import check_number


def identify_model(step: Step, *, level: str = "token", temperature: float = 0.7, seed: int = 0) -> Report:
    """Find the objective whose gradient a whole trainer's step follows, and name what it does to the model's tokens.

    Args:
        step: step(model, batch) ↦ the scalar loss, model a PrefixTreeLM and batch a ModelBatch.
        level: of the terms it is compared with, "token" or "sequence".
        temperature: at which the batch was sampled; 1 for a step that knows none.
        seed: of the policies.

    Returns:
        Report; its faults name labels shifted, a temperature missing, prompt or padding scored, EOS dropped, padding
        seen by the model, tokens not the batch's.

    Raises:
        ValueError: the step returns no scalar tensor, or nothing that depends on the model; or the level is unknown.

    Source: ours.
    """
    check_number("temperature", temperature, 0.0, math.inf, "()")
    tokens = read_tokens(step, temperature)
    grouped = any(remark.kind == "group_normalised" for remark in tokens)
    report = _find(step, level, temperature, seed, grouped=grouped)
    remarks = (*report.remarks, *tokens)
    if any("temperature is missing" in remark for remark in remarks):
        at_one = _find(step, level, 1.0, seed)
        remarks = (*remarks, Remark("at_temperature_one", verdict=str(at_one).splitlines()[0]))
    return replace(report, remarks=remarks)


def _find(step: Step, level: str, temperature: float, seed: int, *, grouped: bool = False) -> Report:
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

    return find(black_box, batch, level)
