"""Whether a run will fit and how long it will take, before anything is started; what to change if it does not fit."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any, NamedTuple

from train.architecture import architecture, sizes
from train.config import Config
from train.planning.case import ARITHMETIC, PROMPT, Case
from train.planning.devices import Devices, devices
from train.planning.memory import Moment, Part, host, key_value_bytes, moments
from train.planning.seconds import Phase, phases

GPUS = "gpus"
MOST_GPUS = 64


class Plan(NamedTuple):
    """What a run needs.

    Attributes:
        case: what was planned.
        moments: the fullest moment of each phase.
        host: what is taken of the machine's own memory, beside GPUs.
        phases: of a rollout batch.
    """

    case: Case
    moments: list[Moment]
    host: list[Part]
    phases: list[Phase]

    @property
    def fits(self) -> bool:
        """Whether every moment does."""
        return not self.too_full

    @property
    def too_full(self) -> list[Moment]:
        """The moments that ask for more memory than there is."""
        return [moment for moment in self.moments if moment.bytes > self.case.devices.each.memory]

    @property
    def drawing(self) -> float:
        """Seconds of a draw."""
        return sum(phase.seconds for phase in self.phases if phase.name.startswith("draw"))

    @property
    def in_time(self) -> bool:
        """Whether a draw ends before vLLM's watchdog ends the run."""
        return not self.case.vllm or self.drawing < self.case.config.engine.timeout

    @property
    def seconds(self) -> float:
        """Of a rollout batch."""
        return sum(phase.seconds for phase in self.phases)


class Advice(NamedTuple):
    """Settings under which the plan, made anew, fits.

    Attributes:
        changes: values by key; ``gpus`` is the number of them.
        plan: the new one.
    """

    changes: dict[str, Any]
    plan: Plan


def plan_run(config: Config, gpus: object = None, length: int | None = None, prompt: int | None = None) -> Plan:
    """Plan a run.

    Args:
        config: the run's.
        gpus: as ``devices``; None: what is on this machine, or one processor where the run asks for that.
        length: mean tokens of a response; None: half of rollout.max_tokens.
        prompt: mean tokens of a prompt; None: PROMPT or ARITHMETIC, or data.max_prompt_tokens where those are fewer.

    Returns:
        The plan.

    Raises:
        ValueError: the model's config cannot be read, the devices are unknown, a length is out of range.
    """
    rollout, most = config.rollout, config.data.max_prompt_tokens
    usual = ARITHMETIC if config.data.train is None else PROMPT
    if gpus is None and config.device == "cpu":
        gpus = "cpu"
    case = Case(
        config,
        sizes(architecture(config.model)),
        devices(gpus, config.model.precision),
        _between("prompt", min(usual, most) if prompt is None else prompt, "data.max_prompt_tokens", most),
        _between(
            "length",
            -(-rollout.max_tokens // 2) if length is None else length,
            "rollout.max_tokens",
            rollout.max_tokens,
        ),
    )
    return of_case(case)


def _between(name: str, value: object, limit: str, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"{name} is {value!r}; pass a whole number of tokens from 1 to {limit} = {most}")
    return value


def of_case(case: Case) -> Plan:
    """Plan a case: the arithmetic of train.planning, and of each phase the fullest moment."""
    fullest: dict[str, Moment] = {}
    for moment in moments(case):
        if moment.phase not in fullest or moment.bytes > fullest[moment.phase].bytes:
            fullest[moment.phase] = moment
    return Plan(case, list(fullest.values()), [] if case.devices.is_cpu else host(case), phases(case))


def _halves(first: int, last: int) -> Iterator[int]:
    """Yield first/2, first/4, … while they are at least last."""
    while (first := first // 2) >= last:
        yield first


def _kv_gib(case: Case) -> Iterator[float]:
    """Yield what is left of vLLM's cache after halving it, down to one longest sequence."""
    half = case.config.engine.kv_gib / 2
    while half * 2**30 >= case.longest * key_value_bytes(case):
        yield half
        half /= 2


REMEDIES: dict[str, Callable[[Case], Iterator[Any]]] = {
    "optimizer.recompute": lambda case: iter([] if case.config.optimizer.recompute else [True]),
    "optimizer.micro_tokens": lambda case: _halves(case.micro, case.longest),
    "engine.kv_gib": lambda case: _kv_gib(case) if case.vllm else iter([]),
    "rollout.at_once": lambda case: iter([]) if case.vllm else _halves(case.seats, 1),
    "model.precision": lambda case: iter(["bfloat16"] if case.narrow == 4 else []),
    GPUS: lambda case: iter([] if case.devices.is_cpu else _doubles(case.ranks)),
}
"""What may be changed for the memory's sake, the mildest first, and to which values in turn."""


def _doubles(first: int) -> Iterator[int]:
    while (first := first * 2) <= MOST_GPUS:
        yield first


def advice(plan: Plan) -> list[Advice]:
    """Return each single change that makes a plan fit, or else the shortest list of REMEDIES that does; each was tried.

    Args:
        plan: one that does not fit.

    Returns:
        The changes, or nothing where none of them is enough.
    """
    single = [found for key in REMEDIES if (found := _first_that_fits(plan.case, key)) is not None]
    return single or _together(plan.case)


def _first_that_fits(case: Case, key: str) -> Advice | None:
    for value in REMEDIES[key](case):
        found = of_case(changed(case, {key: value}))
        if found.fits:
            return Advice({key: value}, found)
    return None


def _together(case: Case) -> list[Advice]:
    """Go through the remedies in turn, each as far as it helps, until the plan fits."""
    changes: dict[str, Any] = {}
    for key, values in REMEDIES.items():
        for value in values(case):
            tried = of_case(changed(case, changes | {key: value}))
            if tried.fits:
                return [Advice(changes | {key: value}, tried)]
            if _excess(tried) < _excess(of_case(changed(case, changes))):
                changes[key] = value
    return []


def _excess(plan: Plan) -> float:
    return sum(moment.bytes - plan.case.devices.each.memory for moment in plan.too_full)


def changed(case: Case, changes: dict[str, Any]) -> Case:
    """Return a case with other settings.

    Args:
        case: as it is.
        changes: values by dotted key of the config, and ``gpus``.

    Returns:
        As it would be.
    """
    rest = dict(changes)
    number = rest.pop(GPUS, case.devices.number)
    config = reduce(lambda now, change: _with(now, *change), rest.items(), case.config)
    return dataclasses.replace(case, config=config, devices=Devices(number, case.devices.each))


def _with(config: Config, key: str, value: Any) -> Config:
    section, _, name = key.partition(".")
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{name: value})})
