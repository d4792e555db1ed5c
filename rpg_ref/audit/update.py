"""A whole optimiser step, audited: is its gradient the same under every split of the batch, and divided by what?

The update is given a policy and one batch of eight responses, split over ranks, accumulation steps and micro-batches in
several ways. The policy is a table, so that the gradient that is left in ``.grad`` tells the weight of every token.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rpg_ref.audit.advised import Advised, advice_lines, advice_records
from rpg_ref.audit.identify import Report
from rpg_ref.audit.model import identify_model
from rpg_ref.audit.oracle import prefix_tree
from rpg_ref.audit.prefix_lm import BOS, EOS, FIRST, ModelBatch, PrefixTreeLM, model_batch
from rpg_ref.audit.size import MEANS, Law, Part, Shape, Weights, law_of, weights, words, wrong_size
from rpg_ref.checks import check_number

_SAME = 1e-5
_READ = 1e-4
_PROMPTS = ((BOS, FIRST), (BOS, FIRST + 2, FIRST + 1))
# Every response begins with another token, so that no two tokens are drawn from the same row with the same label.
_COMPLETIONS = tuple(
    tuple(FIRST + token if token >= 0 else EOS for token in row)
    for row in ((0, 3, 1, 2), (1, 2, 5, -1), (2, 4, -1), (3, 0, 7, 6), (4, -1), (5, -1), (6, 1, -1), (7, -1))
)
# Rows of each micro-batch, by accumulation step, by rank.
_SPLITS: tuple[tuple[tuple[tuple[int, ...], ...], ...], ...] = (
    (((8,),),),
    (((2, 2, 2, 2),),),
    (((2,), (2,), (2,), (2,)),),
    (((2, 2), (2, 2)),),
    (((2, 2),), ((2, 2),)),
    (((2,), (2,)), ((2,), (2,))),
    (((5, 3),),),
    (((5,), (3,)),),
    (((3, 2),), ((1, 2),)),
)


@dataclass(frozen=True)
class Split:
    """One batch as an optimiser step receives it: ``for rank in split: for step in rank: for batch in step``.

    Attributes:
        parts: the micro-batches of each accumulation step of each rank.

    Source: ours.
    """

    parts: tuple[tuple[tuple[ModelBatch, ...], ...], ...]

    def __iter__(self) -> Iterator[tuple[tuple[ModelBatch, ...], ...]]:
        """Iterate over the ranks."""
        return iter(self.parts)

    def __len__(self) -> int:
        """Return the number of ranks."""
        return len(self.parts)

    @property
    def ranks(self) -> int:
        """How many ranks there are."""
        return len(self.parts)

    @property
    def accumulation(self) -> int:
        """How many accumulation steps each rank makes before the optimiser steps."""
        return len(self.parts[0])

    @property
    def micro_batches(self) -> int:
        """How many micro-batches each accumulation step has."""
        return len(self.parts[0][0])

    @property
    def batches(self) -> tuple[ModelBatch, ...]:
        """All micro-batches, to count over the whole step: ``sum(b.completion_mask.sum() for b in split.batches)``."""
        return tuple(chain.from_iterable(chain.from_iterable(self.parts)))

    def __str__(self) -> str:
        """Return ranks × accumulation steps × micro-batches, and the rows of each where they are uneven."""
        sizes = [len(batch.input_ids) for batch in self.batches]
        uneven = f" of {', '.join(map(str, sizes))} responses" if len(set(sizes)) > 1 else ""
        return f"{self.ranks} × {self.accumulation} × {self.micro_batches}{uneven}"


Update = Callable[[PrefixTreeLM, Split], Any]
"""update(policy, split): leave the gradient of one optimiser step in the policy's ``.grad``."""


@dataclass(frozen=True)
class UpdateReport:
    """What a whole optimiser step was found to be.

    Attributes:
        report: the objective of the step on a batch in one piece, as from ``identify_model``.
        equal: whether every split has the same gradient, size included.
        ratios: by split, the length of its gradient over that of the batch in one piece.
        normaliser: what the sum over tokens is divided by, in words.
        weights: the weight of each response of the batch in one piece; None: it could not be read.
        lengths: of the responses.
        remarks: what is wrong, with advice.

    Source: ours.
    """

    report: Report
    equal: bool
    ratios: dict[str, float]
    normaliser: str
    weights: Weights | None = field(repr=False)
    lengths: Tensor = field(repr=False)
    remarks: tuple[Advised, ...]

    @property
    def ok(self) -> bool:
        """Whether no remark is an error and the step has no fault."""
        return not self.report.faults and all(remark.severity != "error" for remark in self.remarks)

    def mistakes(self, normaliser: str | int | float | None = None) -> list[str]:
        """Return what is wrong with the size under any split, and in one piece if a normaliser is meant."""
        remarks = [str(remark) for remark in self.remarks if remark.severity != "note"]
        return remarks + ([] if normaliser is None else list(wrong_size(self.weights, self.lengths, normaliser)))

    def record(self) -> dict[str, Any]:
        """Return plain values, as a JSON file holds them."""
        return {
            "verdict": str(self.report),
            "equal": self.equal,
            "ratios": dict(self.ratios),
            "normaliser": self.normaliser,
            "remarks": advice_records(self.remarks),
        }

    def __str__(self) -> str:
        """Return the objective, the normaliser, the size under each split, and the remarks."""
        same = "the same gradient under every split" if self.equal else "another gradient under other splits"
        lines = [str(self.report), f"{same}; the sum over tokens is divided by {self.normaliser}"]
        sizes = ", ".join(f"{name}: {ratio:.4g}" for name, ratio in self.ratios.items())
        if not self.equal:
            lines.append(f"length of the gradient by ranks × accumulation steps × micro-batches: {sizes}")
        return "\n".join([*lines, *advice_lines(self.remarks)])


def identify_update(update: Update, *, level: str = "token", temperature: float = 0.7, seed: int = 0) -> UpdateReport:
    """Say whether an optimiser step has the same gradient under every split of its batch, and what it is divided by.

    Args:
        update: update(policy, split) leaves the gradient of one whole optimiser step in ``policy.parameters()``'s
            ``.grad``, as it stands before clipping and before the optimiser. ``split`` holds each rank's accumulation
            steps and their micro-batches; write the ranks' all-reduce out, such as ``loss / len(split)`` for a mean.
        level: of the terms that the objective is compared with, "token" or "sequence".
        temperature: at which the batch was sampled; 1 for a step that knows none.
        seed: of the policies.

    Returns:
        UpdateReport; print it.

    Raises:
        ValueError: the update leaves no gradient, or one that is not finite; or as ``identify_model``.

    Source: ours.
    """
    check_number("temperature", temperature, 0.0, math.inf, "()")

    def step(model: PrefixTreeLM, batch: ModelBatch) -> None:
        _run(update, model, Split((((batch,),),)))

    report = identify_model(step, level=level, temperature=temperature, seed=seed)
    model, whole = _batch(temperature)
    read = _Reader(model, whole)
    splits = [_split(whole, sizes) for sizes in _SPLITS]
    shapes = [_shape(sizes) for sizes in _SPLITS]
    lengths = whole.completion_mask.sum(1)
    plus = [_gradient(update, model, split) for split in splits]
    for split, x in zip(splits, plus, strict=True):
        if not bool(x.isfinite().all()):
            raise ValueError(f"the gradient of the split {split} is NaN or infinite; bound the log-ratios before exp")
    zero = [_gradient(update, model, _with_advantages(split, 0.0)) for split in splits]
    if not all(bool(x.isfinite().all()) for x in zero):
        minus = [_gradient(update, model, _with_advantages(split, -1.0)) for split in splits]
        zero = [(a + b) / 2 for a, b in zip(plus, minus, strict=True)]
    size = float(plus[0].norm())
    ratios = {str(split): float(x.norm()) / size for split, x in zip(splits, plus, strict=True)}
    equal = all(float((x - plus[0]).norm()) <= _SAME * size for x in plus)
    rewards = [a - b for a, b in zip(plus, zero, strict=True)]
    remarks, found = list[Advised](), dict[str, Law | None]()
    whole_weights: Weights | None = None
    for part, gradients, pulled in (("reward", rewards, whole.advantages), ("penalty", zero, None)):
        if float(gradients[0].norm()) <= 1e-9 * size:
            continue
        pulls = [read(x) for x in gradients]
        changed = _changed(pulls, shapes, whole) if part == "reward" else None
        if changed is not None:
            remarks.append(changed)
            continue
        lost = _lost(pulls, shapes)
        if lost is not None:
            # It is said once, and no law of sizes holds beside it.
            if lost not in remarks:
                remarks.append(lost)
            continue
        of = [_weights(x, pulled, whole) for x in pulls]
        if part == "reward":
            whole_weights = of[0]
        # What cannot be read may still have the same direction under every split.
        told = [x for x in of if x is not None]
        told = told if len(told) == len(of) else list(_parallel(gradients, len(lengths)))
        found[part] = law_of(told, shapes, lengths) if len(told) == len(of) else None
        remarks += list(_remarks(part, found[part], found.get("reward"), whole.completion_mask.shape[1]))
    width = whole.completion_mask.shape[1]
    normaliser = "a number that cannot be told" if whole_weights is None else words(whole_weights, lengths, width)
    law = found.get("reward")
    if law is not None and law.scope != "whole step":
        normaliser = f"the number of {_unit(law, width)} of each {law.scope}"
        normaliser = f"each response's length and {normaliser}" if law.shared else normaliser
    return UpdateReport(report, equal, ratios, normaliser, whole_weights, lengths, tuple(remarks))


def _weights(pull: Tensor | None, advantages: Tensor | None, batch: ModelBatch) -> Weights | None:
    """The weights of a part that the advantages pull, or a penalty that is the same at every token; of either sign."""
    if pull is None:
        return None
    given = torch.ones(len(pull), dtype=torch.float64) if advantages is None else advantages
    sign = (pull * given[:, None]).sum().sign()
    return weights(pull, sign * given, batch.completion_mask == 1)


def _parallel(gradients: Sequence[Tensor], rows: int) -> Iterator[Weights]:
    """Each gradient as a multiple of the first, where it is one."""
    first = gradients[0]
    for x in gradients:
        ratio = float(x @ first / (first @ first))
        if ratio > 0 and float((x - ratio * first).norm()) <= _READ * float(x.norm()):
            yield Weights(torch.full((rows,), ratio, dtype=torch.float64), False)


def _run(update: Update, model: PrefixTreeLM, split: Split) -> None:
    model.zero_grad()
    update(model, split)
    if all(p.grad is None for p in model.parameters()):
        raise ValueError(
            "the update left no gradient in the policy's .grad; call backward and do not zero it afterwards"
        )


def _gradient(update: Update, model: PrefixTreeLM, split: Split) -> Float[Tensor, "K"]:
    """−gradient of the table and of every other context."""
    model.calls.clear()
    copies = tuple(tuple(tuple(batch.copy() for batch in step) for step in rank) for rank in split)
    _run(update, model, Split(copies))
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in (model.rows, model.stray)]
    return -torch.cat([x.flatten() for x in grads]).double()


@cache
def _batch(temperature: float) -> tuple[PrefixTreeLM, ModelBatch]:
    """Eight responses of two to four tokens to two prompts; π_old is π_θ, and every token is 0.3 nats off π_ref."""
    rng = torch.Generator().manual_seed(1)
    model = PrefixTreeLM(prefix_tree(8, 4), _PROMPTS)
    with torch.no_grad():
        model.rows.copy_(torch.randn(model.rows.shape, generator=rng, dtype=torch.float64))
    A = torch.randn(len(_COMPLETIONS), generator=rng, dtype=torch.float64)
    prompts = [_PROMPTS[i % 2] for i in range(len(_COMPLETIONS))]
    blank = torch.zeros((len(prompts), max(map(len, _COMPLETIONS))), dtype=torch.float64)
    batch = model_batch(prompts, _COMPLETIONS, blank, blank, A, temperature)
    with torch.no_grad():
        logits = model(batch.input_ids, batch.attention_mask).logits[:, batch.prompt_ids.shape[1] - 1 : -1]
    logp = (logits / temperature).log_softmax(-1).gather(-1, batch.completion_ids[..., None]).squeeze(-1)
    return model, model_batch(prompts, _COMPLETIONS, logp, logp - 0.3, A, temperature)


def _rows(batch: ModelBatch, rows: Sequence[int]) -> ModelBatch:
    index = torch.tensor(rows)
    fields: dict[str, Any] = {name: x[index] if isinstance(x, Tensor) else x for name, x in batch.items()}
    return ModelBatch(**fields)


def _shape(sizes: tuple[tuple[tuple[int, ...], ...], ...]) -> Shape:
    """Number the rows from the first rank's first micro-batch on."""
    parts, start = [], 0
    for rank in sizes:
        of_rank = tuple(range(start, start + sum(map(sum, rank))))
        for step in rank:
            of_step = tuple(range(start, start + sum(step)))
            for size in step:
                parts.append(Part(tuple(range(start, start + size)), of_step, of_rank))
                start += size
    return Shape(len(sizes), len(sizes[0]), len(sizes[0][0]), parts)


def _split(batch: ModelBatch, sizes: tuple[tuple[tuple[int, ...], ...], ...]) -> Split:
    parts = iter(_shape(sizes).parts)
    return Split(tuple(tuple(tuple(_rows(batch, next(parts).rows) for _ in step) for step in rank) for rank in sizes))


def _with_advantages(split: Split, factor: float) -> Split:
    def changed(batch: ModelBatch) -> ModelBatch:
        copy = batch.copy()
        copy.advantages = factor * batch.advantages
        return copy

    return Split(tuple(tuple(tuple(map(changed, step)) for step in rank) for rank in split))


class _Reader:
    """Reads each token's pull off the gradient of the table: no two tokens' gradients depend on each other."""

    def __init__(self, model: PrefixTreeLM, batch: ModelBatch) -> None:
        self.mask = batch.completion_mask == 1
        leaf = model.rows.detach().clone().requires_grad_()
        vectors = []
        tree, tokens = model.tree, batch.completion_ids - FIRST
        index = {
            tuple(response[:t].tolist()): int(state[t])
            for response, state in zip(tree.tokens, tree.state, strict=True)
            for t in range(tree.horizon)
        }
        for i, t in self.mask.nonzero().tolist():
            state = index[tuple(tokens[i, :t].tolist())]
            logp = (leaf[state] / batch.temperature).log_softmax(-1)[batch.completion_ids[i, t]]
            (vector,) = torch.autograd.grad(logp, leaf)
            vectors.append(vector.flatten())
        matrix = torch.stack(vectors, 1)
        self.used = matrix.abs().sum(1) > 0
        self.matrix = matrix[self.used]

    def __call__(self, gradient: Float[Tensor, "K"]) -> Float[Tensor, "B T"] | None:
        """The pull of each token, or None where the gradient is not that of the batch's tokens."""
        size = len(self.used)
        inside = gradient[:size][self.used]
        solution = torch.linalg.lstsq(self.matrix, inside[:, None], driver="gelsd").solution.squeeze(1)
        left = float((inside - self.matrix @ solution).norm())
        outside = float(torch.cat([gradient[:size][~self.used], gradient[size:]]).norm())
        if left + outside > _READ * float(gradient.norm()):
            return None
        pull = torch.zeros(self.mask.shape, dtype=torch.float64)
        pull[self.mask] = solution
        return pull


_WHAT = ("ranks", "accumulation steps", "micro-batches")
_FIX = {
    "ranks": "Sum over ranks by an all-reduced count, or average over ranks and divide by count / ranks: not both.",
    "accumulation steps": "Divide once: means by the accumulation steps, or sums by the whole step's count. A trainer "
    "or an engine may divide already.",
    "micro-batches": "Count the denominator over the whole step before its first micro-batch; divide by it alone.",
}


def _factors(powers: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Each factor in words, and the first thing that it counts; things of one power share a factor."""
    for power in sorted(set(powers) - {0}):
        names = [name for name, x in zip(_WHAT, powers, strict=True) if x == power]
        how = "divided" if power < 0 else "multiplied"
        what = " times ".join(f"the number of {name}" for name in names)
        exponent = {1: "", 2: "the square of "}.get(abs(power), f"power {abs(power)} of ")
        yield f"{how} by {exponent}{what}", names[0]


def _unit(law: Law, width: int) -> str:
    """What a law counts; responses times the width are places."""
    padded = law.unit == "responses" and not law.shared and abs(law.factor * width - 1) < _READ
    return "places, padding counted," if padded else law.unit


_CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "centred": lambda x: x - x.mean(),
    "standardised": lambda x: (x - x.mean()) / (x.std() if len(x) > 1 else 1.0),
    "divided by their standard deviation": lambda x: x / (x.std() if len(x) > 1 else 1.0),
}


def _changed(pulls: Sequence[Tensor | None], shapes: Sequence[Shape], batch: ModelBatch) -> Advised | None:
    """Whether the advantages are normalised within each part of a split, so that the split matters."""
    A, lengths, mask = batch.advantages, batch.completion_mask.sum(1), batch.completion_mask == 1
    for how, change in _CHANGES.items():
        for scope in ("micro-batch", "accumulation step", "rank"):
            found = []
            for pull, shape in zip(pulls, shapes, strict=True):
                given = A.clone()
                for part in shape.parts:
                    own = {"micro-batch": part.rows, "accumulation step": part.step, "rank": part.rank}[scope]
                    given[list(own)] = change(A[list(own)])
                told = given.abs() > 1e-9
                read = None if pull is None else weights(pull[told], given[told], mask[told])
                if read is None:
                    break
                full = torch.full_like(A, math.nan)
                full[told] = read.read_as(False, lengths[told]).of_response
                found.append(Weights(full, False))
            for shared in (False, True) if len(found) == len(pulls) else ():
                law = law_of([x.read_as(shared, lengths)._replace(shared=shared) for x in found], shapes, lengths)
                if law is not None:
                    return Advised(
                        f"the advantages are {how} within each {scope}",
                        "warning",
                        "A response's update depends on which others are in its part, and another split gives another.",
                        "Normalise once for the whole batch, within each prompt's group, before the batch is split.",
                    )
    return None


def _lost(pulls: Sequence[Tensor | None], shapes: Sequence[Shape]) -> Advised | None:
    """Whether whole responses have no gradient under some split, and which."""
    first = pulls[0]
    if first is None or any(x is None for x in pulls):
        return None
    there = [x.abs().sum(1) > 1e-9 * first.abs().sum(1).max() for x in pulls if x is not None]
    if not bool(there[0].all()) or all(bool(x.all()) for x in there):
        return None
    kinds: dict[str, Callable[[Shape], tuple[int, ...]]] = {
        "the last micro-batch": lambda shape: shape.parts[-1].rows,
        "the first micro-batch": lambda shape: shape.parts[0].rows,
        "the last accumulation step of the last rank": lambda shape: shape.parts[-1].step,
        "the first accumulation step of the first rank": lambda shape: shape.parts[0].step,
        "the last rank": lambda shape: shape.parts[-1].rank,
        "the first rank": lambda shape: shape.parts[0].rank,
        "the last micro-batch of each rank": lambda shape: tuple(
            row for part in shape.parts if part.rows[-1] == part.rank[-1] for row in part.rows
        ),
    }
    rows = [tuple(x.nonzero().flatten().tolist()) for x in there]
    kind = next(
        (k for k, of in kinds.items() if all(of(s) == kept for s, kept in zip(shapes, rows, strict=True))), None
    )
    return Advised(
        f"only the gradient of {kind} is left" if kind else "some responses get no gradient under other splits",
        "error",
        "The other responses were sampled and scored for nothing.",
        "Call `zero_grad()` once, before the first micro-batch, add gradients up, and all-reduce over all ranks.",
    )


def _remarks(part: str, law: Law | None, reward: Law | None, width: int) -> Iterator[Advised]:
    """What is wrong with the law of one part's size."""
    whose = "the gradient" if part == "reward" else "the penalty's gradient"
    if law is None:
        yield Advised(
            f"{whose} depends on the split of the batch, by no known law",
            "error",
            "The same batch gives another update when the number of ranks or micro-batches changes.",
            "Divide every micro-batch's sum by one number: the step's `mask.sum()`, all-reduced, or a constant.",
        )
        return
    if part == "penalty" and reward is not None:
        if (law.scope, law.powers) == (reward.scope, reward.powers):
            return  # it is said of the reward's part
        if law.scope == reward.scope:
            relative = [mine - theirs for mine, theirs in zip(law.powers, reward.powers, strict=True)]
            for factor, name in _factors(relative):
                yield Advised(
                    f"the penalty is {factor}, compared with the advantages' part",
                    "error",
                    "The penalty's coefficient depends on how the batch is split.",
                    _FIX[name],
                )
            return
    unit = _unit(law, width)
    extra = [power - mean for power, mean in zip(law.powers, MEANS[law.scope], strict=True)]
    summed = law.scope != "whole step" and not any(law.powers)
    if summed:
        grows = next(_factors(extra))[0]
        yield Advised(
            f"{whose} is a sum of means: each {law.scope} divides by its own number of {unit}, so that it is {grows}",
            "error",
            "Its size changes with the number of parts, and a token in a part with few tokens weighs more.",
            f"Divide by the number of {unit} of the whole step, summed over micro-batches and ranks.",
        )
        return
    if law.scope != "whole step":
        yield Advised(
            f"{whose} is a mean of means: each {law.scope} divides by its own number of {unit}",
            "warning",
            f"A token in a {law.scope} with few {unit} weighs more, and another split gives another update.",
            f"Divide by the number of {unit} of the whole step, summed over micro-batches and ranks.",
        )
    for factor, name in _factors(extra):
        yield Advised(
            f"{whose} is {factor}" + ("" if " of the " in factor.split("by", 1)[1] else " once too often"),
            "error",
            f"The learning rate is in effect another one when the number of {name} changes.",
            _FIX[name],
        )
