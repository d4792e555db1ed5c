"""Say on stderr what a slow command is doing, so that standard output keeps the result alone."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SILENCE = 10.0
"""The longest time without a line, in seconds."""


@contextmanager
def progress(
    what: str, total: int, seconds: float, *, silence: float = SILENCE, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[str], None]]:
    """Give a function that announces the next step: its number of how many, its name, and how long the rest will take.

    While a step runs for longer than ``silence``, a line says so each time that ``silence`` has passed. ::

        with progress("verify", len(recipes), seconds=1.5) as begin:
            for recipe in recipes:
                begin(recipe.name)  # "verify 3/32 rpg-fkl: about 40 s left"

    Args:
        what: the name of the command.
        total: how many steps there will be.
        seconds: what a step usually takes; once a step is done, the mean of those that are done replaces it.
        silence: seconds without a line before the next one.
        clock: seconds since any moment.

    Yields:
        A function that takes a step's name, to be called before the step.

    Source: ours.
    """
    begun = since = spoke = clock()
    number, current, ended = 0, "", threading.Event()

    def say(line: str) -> None:
        nonlocal spoke
        spoke = clock()
        print(f"{what} {number}/{total} {current}: {line}", file=sys.stderr, flush=True)

    def begin(name: str) -> None:
        nonlocal number, current, since
        since = clock()
        each = (since - begun) / number if number else seconds
        left = each * (total - number)
        number, current = number + 1, name
        say(f"about {duration(left)} left")

    def watch() -> None:
        while not ended.wait(silence / 10):
            if number and clock() - spoke >= silence * 0.9:
                say(f"still running after {duration(clock() - since)}")

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield begin
    finally:
        ended.set()
        watcher.join()


def duration(seconds: float) -> str:
    """Return seconds as people say them: seconds up to two minutes, then minutes.

    Args:
        seconds: how many.

    Returns:
        Such as "40 s" or "3 min".

    Source: ours.
    """
    return f"{max(1, round(seconds))} s" if seconds < 120 else f"{round(seconds / 60)} min"
