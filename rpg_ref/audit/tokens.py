"""Which tokens does a step score, at which positions and which temperature? Read off the gradient at the logits.

A log-probability of label y at temperature τ leaves c·(1[v = y] − softmax(z/τ)[v])/τ at the logits z of its position:
of all tokens y alone has another sign, and the others' log-magnitudes lie on a line of slope 1/τ over z.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rpg_ref.audit.oracle import prefix_tree
from rpg_ref.audit.prefix_lm import BOS, EOS, FIRST, PAD, Call, ModelBatch, PrefixTreeLM, Step, model_batch, run_step
from rpg_ref.audit.probes import PAIRED, of_groups, weighing
from rpg_ref.audit.remarks import Remark

_LINE = 1e-4
_ROUNDING = 1e-12
_PROMPTS = ((BOS, FIRST), (BOS, FIRST + 2, FIRST + 1, FIRST + 3))
# Neighbours differ, so that a shifted label is another token.
_COMPLETIONS = tuple(
    tuple(FIRST + token if token >= 0 else EOS for token in row)
    for row in ((1, 2, 0), (3, 0, -1), (2, -1), (1, 0, 3), (2, 3, -1), (1, -1), (3, 1, 2), (0, -1))
)


class Scored(NamedTuple):
    """A position of which the step used the log-probability of one token.

    Attributes:
        row: of the batch.
        place: of the position in the row as the model was given it, padding counted.
        at: the same among the row's tokens, padding left out; None on padding.
        label: the token.
        temperature: that the logits were divided by.
        pull: coefficient of ∇log-probability in the descent direction.
        ordinary: whether the context was the prompt and the response so far, nothing else.
    """

    row: int
    place: int
    at: int | None
    label: int
    temperature: float
    pull: float
    ordinary: bool


class Unreadable(ValueError):
    """The gradient at the logits is none that log-probabilities of the batch's tokens leave."""

    def __init__(self, sentence: str, by_place: bool = True) -> None:
        """Say whether the places at least can be seen."""
        super().__init__(sentence)
        self.by_place = by_place


def read_tokens(step: Step, temperature: float, *, absolute: bool = False) -> tuple[Remark, ...]:
    """Say what a step does to the batch's tokens.

    Args:
        step: as for ``identify_model``.
        temperature: of the batch.
        absolute: as of ``PrefixTreeLM``.

    Returns:
        Remarks; none for a step that scores each response token once, in its own context.

    Raises:
        ValueError: as ``run_step``; or the step's gradient is another one when it is run again.

    Source: the gradient of a log-softmax.
    """
    model = PrefixTreeLM(prefix_tree(4, 3), _PROMPTS, absolute=absolute)
    batch = _batch(model, temperature)
    A = batch.advantages
    plus, again, minus, twice, raised, zero = (
        _pulls(step, model, replace(batch, advantages=x)) for x in (A, A, -A, 2 * A, A + 1, 0 * A)
    )
    if not all(torch.equal(one, other) for (_, one), (_, other) in zip(plus, again, strict=True)):
        raise ValueError("the step has another gradient when it is run again on the same batch; make it deterministic")
    if len({tuple(call.ids.shape for call, _ in run) for run in (plus, minus, twice, raised, zero)}) > 1:
        return (Remark("another_gradient"),)
    changes = [_difference(run, zero) for run in (plus, minus, twice, raised)]
    largest = max((float(pull.abs().max()) for run in (plus, zero) for _, pull in run), default=0.0)
    # A clip stops a token for one sign of its advantage: between them the two signs show all.
    rewarded = any(float(pull.abs().max()) > _ROUNDING * largest for side in changes[:2] for _, pull in side)
    penalised = any(float(pull.abs().max()) > _ROUNDING * largest for _, pull in zero)
    coupled = _moved_together(step, model, batch, plus) if rewarded else ()
    remarks = _read_part(changes[:2], batch, weighed=True, coupled=bool(coupled)) if rewarded else []
    if penalised:
        remarks += [remark.in_penalty() for remark in _read_part([zero], batch) if remark not in remarks]
    if any(remark.kind in _BY_VALUE for remark in remarks):
        remarks = _by_the_models_choice(step, batch, changes[0] if rewarded else zero, remarks)
    if 0 < len(coupled) < len(A):
        remarks.append(_of_group(step, model, batch, plus, coupled))
    elif rewarded:
        remarks += _of_advantages(*changes, together=bool(coupled))
    return tuple(remarks)


_BY_VALUE = {"missing_tokens": "token_filter", "uneven_tokens": "token_weights"}
"""Mistakes that are none where the model's own probabilities choose the tokens, and what they are then."""


def _by_the_models_choice(step: Step, batch: ModelBatch, change: "Pulls", remarks: list[Remark]) -> list[Remark]:
    """Try the step on another model: a filter by its probabilities then chooses other tokens, a mistake the same."""
    model = PrefixTreeLM(prefix_tree(4, 3), _PROMPTS)
    other = _batch(model, batch.temperature, seed=2)
    runs = [_pulls(step, model, replace(other, advantages=x)) for x in (other.advantages, 0 * other.advantages)]
    elsewhere = _difference(*runs) if any(pull.any() for _, pull in _difference(*runs)) else runs[0]
    try:
        here, there = _weights(change, batch), _weights(elsewhere, other)
    except Unreadable:
        return remarks
    if torch.equal(here != 0, there != 0) and bool((here - there).abs().max() <= 1e-5 * here.abs().max()):
        return remarks
    chosen = torch.equal(here != 0, there != 0)
    return [
        Remark(_BY_VALUE[remark.kind], **remark.values)
        if remark.kind in _BY_VALUE and (remark.kind == "uneven_tokens" or not chosen)
        else remark
        for remark in remarks
    ]


def _weights(change: "Pulls", batch: ModelBatch) -> Float[Tensor, "B L"]:
    """The coefficient of each token's log-probability."""
    weights = torch.zeros(batch.input_ids.shape, dtype=torch.float64)
    for s in _scored(change, batch):
        weights[s.row, s.at or 0] = s.pull
    return weights


def _moved_together(step: Step, model: PrefixTreeLM, batch: ModelBatch, plus: "Pulls") -> tuple[int, ...]:
    """The responses that move with the advantage of the first one, if others do."""
    first = torch.arange(len(batch.advantages)) == 0
    bumped = _pulls(step, model, replace(batch, advantages=batch.advantages + 0.3 * first))
    rows = _rows_of(_difference(bumped, plus), batch)
    return rows if len(rows) > 1 else ()


def _rows_of(change: "Pulls", batch: ModelBatch) -> tuple[int, ...]:
    """The rows of the batch whose logits have a gradient."""
    largest = max((float(pull.abs().max()) for _, pull in change), default=0.0)
    small = [(call, pull.where(pull.abs() > 1e-5 * largest, 0.0)) for call, pull in change]
    try:
        return tuple(sorted({s.row for s in _scored(small, batch, by_place=True)}))
    except Unreadable:
        return ()


def _of_group(step: Step, model: PrefixTreeLM, batch: ModelBatch, plus: "Pulls", rows: tuple[int, ...]) -> Remark:
    """What is done to the advantages of a group: add to them all, and multiply them all."""
    together = torch.zeros_like(batch.advantages)
    together[list(rows)] = 1.0
    A = batch.advantages
    size = 1e-3 * max(float(pull.abs().max()) for _, pull in plus)
    centred, scaled = (
        all(float(pull.abs().max()) <= size for _, pull in _difference(run, plus))
        for run in (_pulls(step, model, replace(batch, advantages=x)) for x in (A + together, A * (1 + together)))
    )
    return of_groups(len(rows), centred=centred, scaled=scaled)


Pulls = list[tuple[Call, Tensor]]
"""Each call of the model and −∂loss/∂logits, [B, L, V]."""


def _difference(run: Pulls, other: Pulls) -> Pulls:
    return [(call, pull - rest) for (call, pull), (_, rest) in zip(run, other, strict=True)]


def _of_advantages(plus: Pulls, minus: Pulls, twice: Pulls, raised: Pulls, *, together: bool) -> Iterator[Remark]:
    """Whether the step uses the advantages as they are given."""
    if not together:
        return
    once, doubled, shifted = (torch.cat([pull.flatten() for _, pull in run]) for run in (plus, twice, raised))
    size = 1e-5 * once.abs().max()
    if (doubled - 2 * once).abs().max() > 2 * size:
        yield Remark("normalised_batch")
    elif (shifted - once).abs().max() <= size:
        yield Remark("centred")


def _read_part(sides: list[Pulls], batch: ModelBatch, *, weighed: bool = False, coupled: bool = False) -> list[Remark]:
    """The mistakes of one part of the gradient, seen from one or two sides."""
    try:
        read = [list(_scored(side, batch)) for side in sides]
    except Unreadable as error:
        if weighed or not error.by_place:
            return [Remark("unreadable", what=str(error))]
        # An entropy is no token's log-probability; where it is taken can still be seen.
        read = [list(_scored(side, batch, by_place=True)) for side in sides]
    scored = {(s.row, s.place): s for side in reversed(read) for s in side}
    mistakes = list(_mistakes(list(scored.values()), batch))
    if weighed and any(len({(s.row, s.place) for s in side}) < len(side) for side in read):
        mistakes.append(Remark("scored_twice"))
    weights = _weighing(read[0], batch, coupled) if weighed and not mistakes else None
    return mistakes if weights is None else [weights]


def _batch(model: PrefixTreeLM, temperature: float, seed: int = 1) -> ModelBatch:
    """Eight responses of two and three tokens, four to each of two prompts of different lengths; π_old is π_θ."""
    rng = torch.Generator().manual_seed(seed)
    prompts = [_PROMPTS[i * 2 // len(_COMPLETIONS)] for i in range(len(_COMPLETIONS))]
    with torch.no_grad():
        model.rows.copy_(torch.randn(model.rows.shape, generator=rng, dtype=torch.float64))
    blank = torch.zeros((len(prompts), max(map(len, _COMPLETIONS))), dtype=torch.float64)
    batch = model_batch(prompts, _COMPLETIONS, blank, blank, PAIRED, temperature)
    with torch.no_grad():
        positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        logits = model(batch.input_ids, batch.attention_mask, positions).logits / temperature
    ids, width = batch.completion_ids, batch.prompt_ids.shape[1]
    logp = logits[:, width - 1 : -1].log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    ref = logp + 0.3 * torch.randn(logp.shape, generator=rng, dtype=torch.float64)
    return model_batch(prompts, _COMPLETIONS, logp, ref, PAIRED, temperature)


def _pulls(step: Step, model: PrefixTreeLM, batch: ModelBatch) -> Pulls:
    run_step(step, model, batch)
    return [(call, -call.logits.grad.double()) for call in model.calls if call.logits.grad is not None]


def _tokens(ids: list[int]) -> list[int]:
    return [token for token in ids if token != PAD]


def _scored(calls: Pulls, batch: ModelBatch, *, by_place: bool = False) -> Iterator[Scored]:
    """Every position with a gradient; with ``by_place``, as if it scored the token that comes next."""
    row_of = {tuple(_tokens(row)): i for i, row in enumerate(batch.input_ids.tolist())}
    smallest = 1e-9 * max((float(pull.abs().max()) for _, pull in calls), default=0.0)
    for call, pull in calls:
        for ids, part, ordinary, logits, gradients in _sequences(call, pull):
            live = [place for place, g in enumerate(gradients) if g.abs().max() > smallest]
            row = row_of.get(tuple(_tokens(ids)))
            if live and row is None:
                raise Unreadable("the step scores sequences that are not the batch's prompts and responses", False)
            for place in live:
                at = None if ids[place] == PAD else len(_tokens(ids[: place + 1])) - 1
                following = [*_tokens(ids), PAD][(at or 0) + 1]
                label, temperature, c = (
                    (following, batch.temperature, 1.0) if by_place else _read(gradients[place], logits[place])
                )
                yield Scored(row or 0, part + place, at, label, temperature, c, bool(ordinary[place]))


def _sequences(call: Call, pull: Tensor) -> Iterator[tuple[list[int], int, Tensor, Tensor, Tensor]]:
    """Each sequence of a call, and where it begins: a row, or a piece of one in which several are packed."""
    for ids, begins, ordinary, logits, gradients in zip(
        call.ids.tolist(), call.begins, call.ordinary, call.logits.detach(), pull, strict=True
    ):
        starts = begins.nonzero().flatten().tolist()
        cuts = [0, *starts[1:], len(ids)]
        for start, end in pairwise(cuts):
            yield ids[start:end], start if len(cuts) > 2 else 0, *(x[start:end] for x in (ordinary, logits, gradients))


def _read(gradient: Float[Tensor, "V"], logits: Float[Tensor, "V"]) -> tuple[int, float, float]:
    """The label, temperature and coefficient of a log-probability whose gradient at the logits this is."""
    best = (float("inf"), 0, 0.0, 0.0)
    used = gradient != 0  # a token that the step never allows has none
    for label in used.nonzero().flatten().tolist():
        others = used & (torch.arange(len(logits)) != label)
        g, z = gradient[others], logits[others]
        if not (bool((g > 0).all()) or bool((g < 0).all())):
            continue
        x, y = z - z.mean(), g.abs().log() - g.abs().log().mean()
        slope = float((x * y).sum() / x.square().sum())
        error = float((y - slope * x).abs().max())
        if slope > 0 and error < best[0]:
            softmax = (logits[used] * slope).softmax(-1)[int(used[:label].sum())]
            best = (error, label, 1 / slope, float(gradient[label] / slope / (1 - softmax)))
    if best[0] > _LINE:
        raise Unreadable("a position's gradient is not that of one token's log-probability: its tokens cannot be read")
    return best[1:]


def _mistakes(scored: list[Scored], batch: ModelBatch) -> Iterator[Remark]:
    rows = [_tokens(row) for row in batch.input_ids.tolist()]
    starts = batch.prompt_mask.sum(1).tolist()
    yield from _wrong_temperature({round(s.temperature, 6) for s in scored}, batch.temperature)
    on_tokens = [(s, s.at) for s in scored if s.at is not None]

    def hits(offset: int) -> int:
        return sum(s.label == dict(enumerate(rows[s.row])).get(at + offset, PAD) for s, at in on_tokens)

    offset = max((1, 0, 2, -1), key=hits)
    if hits(offset) < 0.9 * len(on_tokens):
        yield Remark("wrong_labels", hits=hits(1), all=len(on_tokens))
        return
    if offset != 1:
        scores = {0: "the token at it", 2: "the second next token", -1: "the token before it"}[offset]
        yield Remark("shifted_labels", what=scores)
        return
    found = {(s.row, at + 1): s for s, at in on_tokens}
    wanted = {(row, k) for row, start in enumerate(starts) for k in range(start, len(rows[row]))}
    if found.keys() != wanted and _takes_left_padding_for_right(scored, batch):
        yield Remark("padding_sides")
        return
    prompt = [key for key in found if key[1] < starts[key[0]]]
    if prompt:
        yield Remark("prompt_scored", count=len(prompt))
    behind = len(found.keys() - wanted) - len(prompt) + len(scored) - len(on_tokens)
    if behind:
        yield Remark("padding_scored", count=behind)
    yield from _missing(wanted - found.keys(), wanted, rows, starts)
    strays = sum(not found[key].ordinary for key in wanted & found.keys())
    if strays:
        yield Remark("stray_context", count=strays)


def _takes_left_padding_for_right(scored: list[Scored], batch: ModelBatch) -> bool:
    """Whether all rows are cut out at their prompt's number of tokens, as if nothing stood before the prompt."""
    width = batch.prompt_ids.shape[1]
    padding, lengths = (width - batch.prompt_mask.sum(1)).tolist(), batch.completion_mask.sum(1).tolist()
    early = {(i, width - 1 + t - n) for i, n in enumerate(padding) for t in range(lengths[i])}
    return {(s.row, s.place) for s in scored} == early


def _weighing(scored: list[Scored], batch: ModelBatch, coupled: bool) -> Remark | None:
    pull = torch.zeros(batch.completion_ids.shape, dtype=torch.float64)
    for s in scored:
        pull[s.row, (s.at or 0) + 1 - int(batch.prompt_mask[s.row].sum())] = s.pull
    return weighing(pull, batch.advantages, batch.completion_mask == 1, coupled=coupled)


def _wrong_temperature(found: set[float], wanted: float) -> Iterator[Remark]:
    for tau in sorted(found):
        if abs(tau - wanted) > 1e-4 * wanted:
            known = {1.0: "missing", 1 / wanted: "inverted", wanted**2: "applied twice"}
            how = next((text for t, text in known.items() if abs(tau - t) < 1e-4 * t), "wrong")
            yield Remark("wrong_temperature", how=how, found=tau, wanted=wanted)


def _missing(
    missing: set[tuple[int, int]], wanted: set[tuple[int, int]], rows: list[list[int]], prompts: list[int]
) -> Iterator[Remark]:
    ended = {key[0] for key in wanted if rows[key[0]][key[1]] == EOS}
    kinds = {
        "responses cut off before EOS are left out": {key for key in wanted if key[0] not in ended},
        "EOS is dropped": {key for key in wanted if rows[key[0]][key[1]] == EOS},
        "the first token of each response is dropped": {key for key in wanted if key[1] == prompts[key[0]]},
        "the last token of each response is dropped": {key for key in wanted if key[1] == len(rows[key[0]]) - 1},
    }
    for kind, keys in kinds.items():
        if missing and missing == keys:
            yield Remark("missing_kind", which=kind, count=len(missing))
            return
    if missing:
        yield Remark("missing_tokens", count=len(missing), all=len(wanted))
