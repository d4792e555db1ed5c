"""Time of one rollout batch, phase by phase, from operations and bytes; each formula with its own words."""

from typing import NamedTuple

from train.planning.case import Case
from train.planning.devices import GIB
from train.planning.memory import WIDE, key_value_bytes

VLLM_STEP = 0.01
"""Seconds that vLLM is taken to need for one token of all responses besides what the device does: it schedules and
draws, with a generator for each response."""
BLOCK_STEP = 0.0007
"""Seconds that transformers is taken to need for one block and one token besides what the device does: some thirty
small operations."""
ADAMW = 28
"""Bytes that an optimiser step moves a parameter: weight, moments and gradient read, all but that written."""


class Phase(NamedTuple):
    """A phase of a rollout batch.

    Attributes:
        name: which.
        seconds: how long.
        how: the arithmetic.
    """

    name: str
    seconds: float
    how: str


def phases(case: Case) -> list[Phase]:
    """Return the phases of a rollout batch, in their order."""
    outlives = case.config.reference.replace != "rollout"
    averages = case.config.optimizer.kind == "schedule-free"
    return [
        push(case),
        prefill(case),
        decode(case),
        *([passes(case, "old log-probs")] if case.updates > 1 or averages else []),
        *([passes(case, "reference")] if outlives else []),
        learn(case),
    ]


def rate(case: Case, share: float) -> float:
    """Return the operations a second that a process reaches."""
    return case.devices.each.flops[case.config.model.precision] * share


def body_flops(case: Case, context: float) -> float:
    """Operations of all blocks for a token: two for each number of their matrices, and attention's 4·A per context."""
    return 2 * case.sizes.matrices + 4 * case.sizes.queries * case.sizes.layers * context


def head_flops(case: Case) -> float:
    """Operations of the head for a token: two for each of its numbers."""
    return 2 * case.sizes.head


def sequence_flops(case: Case) -> float:
    """Operations of a pass over a mean sequence, of which the head sees the response.

    With a mask of padding, attention looks at the whole square of tokens, not at half of it.
    """
    return case.mean * body_flops(case, case.mean) + case.length * head_flops(case)


def push(case: Case) -> Phase:
    """Weights are gathered over the link and written where they are sampled from; vLLM gets zeros first, a canary."""
    s, number, device = case.narrow, case.sizes.parameters, case.devices.each
    others = 1 - 1 / case.ranks
    sent = (WIDE if case.vllm else s) * number * others
    written = (2 if case.vllm else 1) * s * number * (case.vllm or case.sharded)
    seconds = sent / device.link + 2 * written / device.bandwidth
    return Phase("push of weights", seconds, f"{_gib(sent)} over the link, {_gib(written)} read and written")


def prefill(case: Case) -> Phase:
    """Each distinct prompt is read once, on the process that draws its responses."""
    number = -(-case.share // case.config.rollout.samples)
    flops = number * case.prompt * body_flops(case, case.prompt)
    seconds = flops / rate(case, case.devices.each.reading)
    return Phase("draw: prefill", seconds, f"{number} prompts × {case.prompt} tokens: {_pflop(flops)} a process")


def step_seconds(case: Case, rows: float) -> float:
    """Seconds of one token of so many responses: weights are read while they are multiplied, then the keys and values.

    max(weights/bandwidth, products/operations a second) + rows·context·keys and values/bandwidth + what is fixed.
    """
    device, sizes = case.devices.each, case.sizes
    speed = device.bandwidth * device.drawing
    weights = case.narrow * (sizes.matrices + sizes.head) / speed
    products = rows * (2 * sizes.matrices + head_flops(case)) / rate(case, device.reading)
    context = case.prompt + case.length / 2
    fixed = VLLM_STEP if case.vllm else BLOCK_STEP * sizes.layers
    return max(weights, products) + rows * context * key_value_bytes(case) / speed + fixed


def at_a_time(case: Case) -> int:
    """Responses that are drawn at a time: as many as there is room for, in vLLM's cache too."""
    if not case.vllm:
        return case.seats
    fit = case.config.engine.kv_gib * GIB / (key_value_bytes(case) * case.mean)
    return max(1, min(case.seats, int(fit)))


def decode(case: Case) -> Phase:
    """All tokens at so many a step; then those that are longer than the mean, a few at a time.

    vLLM fills a seat as soon as it is free, and has one such end; transformers draws one lot after the other.
    """
    rows = at_a_time(case)
    full = case.share * case.length / rows
    ends = (1 if case.vllm else case.share / rows) * (case.config.rollout.max_tokens - case.length)
    seconds = full * step_seconds(case, rows) + ends * step_seconds(case, 1)
    how = (
        f"{full:,.0f} steps of {rows} tokens × {1e3 * step_seconds(case, rows):,.1f} ms"
        f" + {ends:,.0f} of a few × {1e3 * step_seconds(case, 1):,.1f} ms"
    )
    return Phase("draw: decode", seconds, how)


def passes(case: Case, name: str) -> Phase:
    """One pass over all that is trained on."""
    flops = case.trained * sequence_flops(case) / case.ranks
    seconds = flops / rate(case, case.devices.each.reading)
    return Phase(name, seconds, f"{case.trained:,} sequences × {case.mean:,} tokens: {_pflop(flops)} a process")


def learn_flops(case: Case) -> float:
    """Operations for a mean sequence: a pass and twice that on the way back; blocks once more where they recompute."""
    again = case.config.optimizer.recompute
    return 3 * sequence_flops(case) + again * case.mean * body_flops(case, case.mean)


def update_seconds(case: Case) -> float:
    """An optimiser step: all it reads and writes."""
    return ADAMW * case.sizes.parameters / case.ranks / case.devices.each.bandwidth


def learn(case: Case) -> Phase:
    """Gradients of all mini-batches, or what is sent for them if that takes longer; and the optimiser steps."""
    device = case.devices.each
    flops = case.trained * learn_flops(case) / case.ranks
    micro = case.updates * max(1, round(case.trained / case.updates * case.mean / case.ranks / case.micro))
    # For a pass weights are gathered twice, going and coming back; gradients leave in float32.
    sent = micro * (2 * case.narrow + WIDE) * case.sizes.parameters * (1 - 1 / case.ranks)
    computing = flops / rate(case, device.learning)
    seconds = max(computing, sent / device.link) + case.updates * update_seconds(case)
    how = f"{_pflop(flops)} a process" if computing >= sent / device.link else f"{_gib(sent)} over the link"
    return Phase("learn", seconds, f"{how} + {case.updates} updates × {1e3 * update_seconds(case):,.1f} ms")


def _gib(number: float) -> str:
    return f"{number / GIB:,.1f} GiB"


def _pflop(flops: float) -> str:
    return f"{flops / 1e15:,.1f} PFLOP" if flops > 1e14 else f"{flops / 1e9:,.1f} GFLOP"
