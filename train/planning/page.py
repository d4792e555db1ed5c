"""A plan as tables: each number with its arithmetic."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from train.planning.devices import GIB
from train.planning.memory import key_value_bytes
from train.planning.plan import GPUS, Advice, Plan

WIDTH = 120
PHASES = {"start": "at the start", "draw": "while drawing", "learn": "while learning", "keep": "at a checkpoint"}


def show(plan: Plan, found: Sequence[Advice], console: Console, *, guessed: Sequence[str] = ()) -> None:
    """Print a plan: what is assumed, memory, time, and the verdict.

    Args:
        plan: the plan.
        found: what would make it fit, where it does not.
        console: where to.
        guessed: which of ``length`` and ``prompt`` nobody gave.
    """
    for line in _heading(plan, guessed):
        console.print(line, highlight=False)
    console.print(_memory(plan))
    console.print(_time(plan))
    for line in _verdict(plan, found):
        console.print(line, highlight=False)


def _heading(plan: Plan, guessed: Sequence[str]) -> list[str]:
    case = plan.case
    config, sizes, device = case.config, case.sizes, case.devices.each
    of = {
        "length": f"responses of {case.length:,} tokens in the mean (half of rollout.max_tokens; --length)",
        "prompt": f"prompts of {case.prompt:,} (--prompt)",
    }
    assumed = " and ".join(of[name] for name in guessed)
    draws = " in one draw (the filter may need more)" if config.rollout.filter else ""
    flops = device.flops[config.model.precision]
    return [
        f"[bold]{config.name}[/]: {config.model.path or 'a random model'}, {sizes.parameters:,} parameters, "
        f"{key_value_bytes(case):,} B of keys and values a token",
        f"{case.devices}: {device.memory / GIB:,.1f} GiB for tensors, {flops / 1e12:,.3g} TFLOP/s "
        f"{config.model.precision}, {device.bandwidth / 1e12:,.3g} TB/s ({device.source})",
        f"a rollout batch: {case.drawn:,} responses drawn{draws}, {case.trained:,} trained on in {case.updates} "
        "updates:",
        f"{case.drawn * case.length:,} tokens drawn, {case.trained * case.mean:,} learned from, prompts included",
        *([f"[yellow]assumed: {assumed}[/]"] if assumed else []),
    ]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, width=WIDTH, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number == 1 else "left", no_wrap=number < 2)
    return table


def _memory(plan: Plan) -> Table:
    table = _table("memory of a process", "GiB", "how")
    for moment in plan.moments:
        full = moment in plan.too_full
        table.add_section()
        table.add_row(
            f"[bold]{PHASES[moment.phase]}[/]",
            f"[bold {'red' if full else 'green'}]{moment.bytes / GIB:,.2f}[/]",
            f"[bold]the fullest moment: {moment.name}{'; too much' if full else ''}[/]",
        )
        for part in moment.parts:
            table.add_row(f"  {part.name}", f"{part.bytes / GIB:,.2f}", part.how)
    if plan.host:
        table.add_section()
        table.add_row("[bold]of the machine[/]", "", "[bold]beside its GPUs; a checkpoint in the first process[/]")
        for part in plan.host:
            table.add_row(f"  {part.name}", f"{part.bytes / GIB:,.2f}", part.how)
    return table


def _time(plan: Plan) -> Table:
    table = _table("time of a rollout batch", "seconds", "how")
    for phase in plan.phases:
        table.add_row(phase.name, f"{phase.seconds:,.1f}", phase.how)
    table.add_section()
    steps = plan.case.config.steps
    table.add_row(
        "[bold]together[/]",
        f"[bold]{plan.seconds:,.1f}[/]",
        f"[bold]× {steps:,} rollout batches = {_clock(steps * plan.seconds)}[/], evaluations and warm start left out",
    )
    return table


def _clock(seconds: float) -> str:
    units = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
    size, unit = next(((size, unit) for size, unit in units if seconds >= 2 * size), units[-1])
    return f"{seconds / size:,.1f} {unit}"


def _verdict(plan: Plan, found: Sequence[Advice]) -> list[str]:
    lines = _of_memory(plan, found)
    if plan.in_time:
        return lines
    timeout = plan.case.config.engine.timeout
    late = f"A draw takes {plan.drawing:,.0f} s, and engine.timeout ends the run after {timeout:,.0f}: raise that."
    return [*lines, f"[bold red]It is not done in time.[/] {late}"]


def _of_memory(plan: Plan, found: Sequence[Advice]) -> list[str]:
    device = plan.case.devices.each
    if plan.fits:
        fullest = max(moment.bytes for moment in plan.moments)
        return [f"[bold green]It fits[/]: {fullest / GIB:,.1f} of {device.memory / GIB:,.1f} GiB."]
    phases = " and ".join(PHASES[moment.phase] for moment in plan.too_full)
    lines = [f"[bold red]It does not fit[/] {phases}: there are {device.memory / GIB:,.1f} GiB."]
    if not found:
        return [*lines, "No change of a setting here is enough; take larger devices, or a smaller model."]
    return [*lines, "Each of these was planned anew, and fits:", *map(_advised, found)]


def _advised(found: Advice) -> str:
    words = " ".join(
        f"--gpus {value}x{found.plan.case.devices.each.name}" if key == GPUS else f"--{key} {_said(value)}"
        for key, value in found.changes.items()
    )
    fullest = max(moment.bytes for moment in found.plan.moments)
    return f"  {words}  ({fullest / GIB:,.1f} GiB, {found.plan.seconds:,.0f} s a rollout batch)"


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
