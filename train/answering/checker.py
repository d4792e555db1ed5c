"""Many answers judged in worker processes, which are killed and replaced when a rule hangs or dies of a response."""

import importlib.util
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from train.answering.rules import RULES

_STARTING, _STARTS = 120.0, 3  # seconds until a worker is ready, from a slow disk; failures in a row that end it


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    deadline: float
    ready: bool = False
    pair: int | None = None


class Checker:
    """Judges many responses at once, whatever one of them does to the rule.

    Workers start at the first check and stay for the next; ``close``, or the end of a ``with``, ends them. Any thread
    may check. A worker imports the main script anew, which therefore needs its ``if __name__ == "__main__"``.

    Attributes:
        timeouts: responses judged wrong because the rule took too long; their worker was killed and replaced.
        crashes: those judged wrong because the worker died; it was replaced.
        errors: those judged wrong because the rule raised.
    """

    def __init__(
        self, rule: str = "math-verify", *, processes: int = 4, seconds: float = 5.0, memory: int = 2 * 2**30
    ) -> None:
        """Choose the rule; nothing is started yet.

        Args:
            rule: a name in RULES.
            processes: the most workers at a time; a rule that cannot hang needs none.
            seconds: by the clock on the wall, the limit for one response.
            memory: bytes of address space, the limit for one worker; kept on Linux only.

        Raises:
            ValueError: an unknown rule, one whose package is missing, or a number out of range.
        """
        # Not above: it imports torch, which takes seconds and 200 MB, and every worker imports this file.
        from rpg_ref.checks import Table, check_number

        self._rule = Table("rule", RULES)[rule]
        check_number("processes", processes, 1.0, 4096.0)
        check_number("seconds", seconds, 0.0, 3600.0, "(]")
        check_number("memory", memory, 2.0**28, 2.0**50)
        package = self._rule.package
        if package and importlib.util.find_spec(package.replace("-", "_")) is None:
            raise ValueError(f"the rule {rule!r} needs {package}, which is missing; pip install '.[train]' brings it")
        self._processes, self._seconds, self._memory = processes, seconds, memory
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._lock = threading.RLock()
        self.timeouts = self.crashes = self.errors = 0

    @property
    def unjudged(self) -> int:
        """Responses so far that count as wrong because the rule took too long, died or raised."""
        return self.timeouts + self.crashes + self.errors

    def check(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Judge responses.

        Args:
            pairs: each a response and the right answer.

        Returns:
            Which are right, in the order of the pairs.

        Raises:
            RuntimeError: one worker after another ends before it is ready.
        """
        if not self._rule.may_hang:
            return [self._rule.judge(*pair) for pair in pairs]
        verdicts = [False] * len(pairs)
        waiting = list(reversed(range(len(pairs))))
        with self._lock:
            try:
                while waiting or self._busy():
                    self._hand_out(pairs, waiting)
                    self._listen(verdicts)
            except BaseException:
                self.close()  # a worker that is still at one of these pairs would give its verdict to the next check
                raise
        return verdicts

    def close(self) -> None:
        """End every worker; another check would start new ones."""
        with self._lock:
            while self._workers:
                self._bury(self._workers[-1])

    def __enter__(self) -> "Checker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _busy(self) -> int:
        return sum(worker.pair is not None for worker in self._workers)

    def _hand_out(self, pairs: Sequence[tuple[str, str]], waiting: list[int]) -> None:
        """Give each idle worker a pair; start workers while there are more pairs than workers."""
        while len(self._workers) < min(self._processes, len(waiting) + self._busy()):
            self._start()
        for worker in list(self._workers):
            if not waiting or not worker.ready or worker.pair is not None:
                continue
            try:
                worker.pipe.send(pairs[waiting[-1]])
            except OSError:  # it died while it was idle: the pair waits for another
                self._bury(worker)
            else:
                worker.pair, worker.deadline = waiting.pop(), time.monotonic() + self._seconds

    def _listen(self, verdicts: list[bool]) -> None:
        """Wait until a worker speaks, dies or is out of time."""
        soonest = min((worker.deadline for worker in self._workers), default=0.0)
        heard = wait([worker.pipe for worker in self._workers], max(0.0, soonest - time.monotonic()))
        for worker in list(self._workers):
            if worker.pipe in heard:
                try:
                    said = worker.pipe.recv_bytes()
                except (EOFError, OSError):
                    self._lose(worker, "crashes")
                    continue
                if worker.pair is not None:  # else it says that it is ready
                    verdicts[worker.pair] = said == b"right"
                    self.errors += said == b"error"
                worker.ready, worker.pair, worker.deadline = True, None, float("inf")
                self._failed_starts = 0
            elif worker.deadline <= time.monotonic():
                self._lose(worker, "timeouts")

    def _lose(self, worker: _Worker, counter: str) -> None:
        self._bury(worker)
        if worker.pair is not None:
            setattr(self, counter, getattr(self, counter) + 1)
        elif not worker.ready:
            self._failed_starts += 1
            if self._failed_starts % _STARTS == 0:
                remedy = 'mend what they print, or give the main script its if __name__ == "__main__"'
                raise RuntimeError(f"{_STARTS} answer workers in a row ended before they were ready; {remedy}")

    def _start(self) -> None:
        # Never a fork: of a process with torch's threads in it, that deadlocks.
        context = get_context("spawn")
        pipe, theirs = context.Pipe()
        arguments = theirs, self._rule.judge, self._seconds, self._memory
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()  # so that its death closes the pipe
        self._workers.append(_Worker(process, pipe, time.monotonic() + _STARTING))

    def _bury(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()


def _serve(pipe: Connection, judge: Callable[[str, str], bool], seconds: float, memory: int) -> None:
    """Judge what comes through the pipe until it closes: the life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process of a terminal; the trainer decides
    if sys.platform == "linux":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (memory if hard == resource.RLIM_INFINITY else min(memory, hard), hard))
    warnings.simplefilter("ignore")  # python -W error would change verdicts
    logging.disable()
    judge("$1$", "1")  # loads what the rule needs, before any clock runs
    with suppress(EOFError, OSError):  # the trainer is gone
        pipe.send_bytes(b"ready")
        while True:
            pair = pipe.recv()
            # For when nobody is left to kill a worker that hangs: the alarm's own default ends it, in C code as well.
            signal.setitimer(signal.ITIMER_REAL, seconds + 1)
            try:
                said = b"right" if judge(*pair) else b"wrong"
            except MemoryError:
                os._exit(1)  # nothing in here can be relied on now
            except Exception:
                said = b"error"
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send_bytes(said)
