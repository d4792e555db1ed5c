"""Rules of what is right, spelling by spelling; and the processes that judge, whatever a response does to them.

Workers import this file for its rules: it imports nothing heavy.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from tiers import full

from train.answering import checker
from train.answering.checker import Checker
from train.answering.rules import RULES, Rule, by_exact, by_released

BOUNDED = sys.platform == "linux"  # a worker's memory


# Rules

# answer: responses that are right, responses that are wrong
RELEASED = {
    "42": (
        ["Answer: 42", "so\nAnswer: $42$", "Answer: \\boxed{42}", "Answer: x = 42", "answer :42", "ANSWER:\n\n 42"]
        + ["Answer: 41\nAnswer: 42", "Answer: $x=42$", "Answer: 42 dollars", "Answer: 42^\\circ", "Answer: \\$42"]
        + ["Answer: the sum is $42$.", "Answer: $42.$", "Answer: \\text{42}", "Answer: \\textbf{42}", "Answer: 4 2"]
        + ["x" * 1000 + "Answer: 42", "Answer: 42\n" + "x" * 289, "Answer: 42\r"],
        ["Answer: 42.", "**Answer:** 42", "**Answer: 42**", "Answer: 042", "Answer: 42.0", "\\boxed{42}", "42", ""]
        + ["Answer: 42\nAnswer: 41", "Answer: -42", "Answer: 84/2", "Answer is 42", "Answer:", "Answer: 42 or 43"]
        + ["Answer: 42\n" + "x" * 290, "Answer: \uff14\uff12", "Answer\uff1a42", "Answer: \\boxed{42"],
    ),
    "27": (["Answer: 27"], ["Answer: 27.0", "Answer: 027", "Answer: 27%"]),
    "1234": (["Answer: 1,234", "Answer: 1234", "Answer: 1{,}234", "Answer: 12,34"], ["Answer: 1.234"]),
    "1,234": (["Answer: 1234", "Answer: 1,234"], []),
    "\\frac12": (["Answer: \\frac{1}{2}", "Answer: $\\frac12$"], ["Answer: 1/2", "Answer: 0.5"]),
    "\\sqrt{2}": (["Answer: \\sqrt2"], ["Answer: sqrt(2)"]),
    "336^\\circ": (["Answer: 336", "Answer: 336 degrees", "Answer: $336^{\\circ}$"], ["Answer: 336\u00b0"]),
}
EXACT = {
    "42": (["42", " 42\n"], ["", "042", "42.", "42.0", "4 2", "Answer: 42", "$42$", "\uff14\uff12"]),
    " x = 1 ": (["x = 1"], ["x=1"]),
}
RUBBISH, LONG = "\ud800\0\U0001f642\u202e\\{$" * 1000, "word " * 200_000
# What math-verify 0.9 does, the surprising included.
MATH = {
    "42": (
        ["42", "Answer: 42", "Answer: 42.", "**Answer:** 42", "**Answer: 42**", "$42$", "\\boxed{42}", "Answer: 042"]
        + ["Answer: 42.0", "x = 42", "$x=42$", "$y=42$", "84/2", "$\\frac{84}{2}$", "$2\\cdot 21$", "Answer: 40+2"]
        + ["The answer is 42 apples", "$42\\text{ cm}$", "$42^\\circ$", "Answer: $42", "$\\{42\\}$", "42%", "42\n\nA"]
        + ["Answer: 41\nAnswer: 42", "$1$ Answer: 42", "Answer: 42\n#### 43", "Answer: 42. A fine day"]
        # It reads a number, not what is written on to it without LaTeX's dollars.
        + ["Answer: 42\\sqrt{2}", "Answer: 42x", "Answer: 42!", "Answer: 42 + 3i"]
        + [RUBBISH + "\nAnswer: 42", LONG + "\nAnswer: 42", LONG + "$42$"],
        ["", "Answer:", "I do not know", "Answer: 41", "Answer: -42", "Answer: 42\nAnswer: 41", "forty-two"]
        + ["$42$ or $43$", "\\boxed{42} \\boxed{41}", "\\boxed{1}\nAnswer: 42", "Answer: 42 $1$", "$42!$", "$42x$"]
        + ["Answer: 42.0000001", "Answer: 4 2", "42 at first, then 43", "Answer: 42/2", "Answer: 42^2"]
        # These are right, and not read.
        + ["(42)", "Answer: (42)", "Answer: [42]", "Answer: +42", "\\boxed{42", "Answer\uff1a42", "\uff14\uff12"]
        + [RUBBISH, LONG],
    ),
    "\\frac12": (
        ["0.5", "Answer: .5", "Answer: 0,5", "Answer: 1/2", "2/4", "$\\frac12$", "$\\frac{2}{4}$", "$2^{-1}$", "50%"]
        + ["\\boxed{\\dfrac{1}{2}}", "Answer: \\frac{1}{2}", "0.4999999"],
        ["0.49", "1", "2", "Answer: \\frac12"],
    ),
    "1234": (["1,234", "$1,234$", "\\boxed{1{,}234}", "1 234", "$1.234\\times10^3$"], ["12,34", "1.234e3", "234"]),
    "1,234": (["1234", "\\boxed{1234}"], ["1.234"]),
    "x=42": (["42", "x=42", "$x=42$"], ["$y=42$", "41"]),
    "-1": (["-1", "$-1$", "\\boxed{-1}"], ["1", "Answer: - 1", "Answer: \u22121", "(-1)"]),
    "336^\\circ": (["336", "336 degrees", "$336^\\circ$"], ["33.6"]),
    "\\sqrt{2}": (["$\\sqrt2$", "$\\frac{2}{\\sqrt{2}}$", "1.414214"], ["1.414", "sqrt(2)", "\u221a2"]),
    "x^2+2x+1": (["$(x+1)^2$", "$1+2x+x^2$"], ["$(y+1)^2$", "$(x+1)^3$"]),
    "\\{1,2\\}": (
        ["$\\{1,2\\}$", "$\\{2,1\\}$", "$\\{1,1,2\\}$", "$1,2$", "$1$ and $2$", "$x=1,x=2$", "$(1,2)$"],
        ["$\\{1,2,3\\}$", "$\\{1\\}$", "1,2", "Answer: 1, 2", "x=1 or x=2"],
    ),
    "(1,2,3)": (["$(1,2,3)$", "$1,2,3$"], ["$(3,2,1)$", "$\\{3,2,1\\}$", "Answer: (1,2,3)"]),
    "[1,2)": (["$[1,2)$"], ["$(1,2)$", "$[1,2]$", "$1\\le x<2$"]),
    "\\begin{pmatrix}1\\\\2\\end{pmatrix}": (
        ["$\\begin{bmatrix}1\\\\2\\end{bmatrix}$"],
        ["$\\begin{pmatrix}2\\\\1\\end{pmatrix}$"],
    ),
    "B": (
        ["Answer: B", "B.", "Answer: **B**", "$B$", "\\boxed{\\text{B}}"],
        ["C", "Answer: C", "b", "(B)", "Answer: A"],
    ),
    "\\text{east}": (["$\\text{east}$", "\\boxed{\\text{East}}", "\\boxed{east}"], ["\\boxed{west}", "east"]),
}


def table(rows):
    """The pairs, and whether each is right."""
    return [
        ((r, a), right) for a, both in rows.items() for right, rs in zip((True, False), both, strict=True) for r in rs
    ]


@pytest.mark.parametrize(("rule", "rows"), [("released", RELEASED), ("exact", EXACT), full("math-verify", MATH)])
def test_which_spellings_are_right(rule, rows, capfd):
    pairs, expected = zip(*table(rows), strict=True)
    with Checker(rule, processes=1, seconds=60) as judge:
        verdicts = judge.check(pairs)
    assert not [pair for pair, verdict, right in zip(pairs, verdicts, expected, strict=True) if verdict != right]
    assert counts(judge) == (0, 0, 0) and capfd.readouterr() == ("", "")


def test_released_and_exact_take_any_text():
    for text in ("", "\0" * 999, "Answer: " + "\\" * 999, "Answer:" * 99999, "$" * 10**6, RUBBISH):
        assert not by_released(text, "42") and not by_exact(text, "42")
        assert by_released(text + "\nAnswer: 42", "42")


# Workers


def strange(response, answer):
    """A rule that does what it is told."""
    if response == "0":
        warnings.warn("nobody is to read this", stacklevel=1)
    if response == "sleep":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    if response == "spin":
        9**9**9  # in C, so no Python code of this process runs meanwhile
    if response == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if response == "raise":
        raise ArithmeticError(answer)
    if response == "allocate":
        return len(bytearray(2**31)) > 0
    return response.strip("x") == answer


def stillborn(response, answer):
    sys.exit(3)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    for judge in (strange, stillborn):
        monkeypatch.setitem(RULES, judge.__name__, Rule(judge, may_hang=True))


@pytest.fixture(autouse=True)
def _none_left_behind():
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) == before


def counts(judge):
    return judge.timeouts, judge.crashes, judge.errors


def pids():
    return [process.pid for process in multiprocessing.active_children()]


def test_what_hangs_or_dies_is_wrong_and_counted_and_the_others_are_judged_in_order(capfd):
    told = ["segfault", "raise", "allocate" if BOUNDED else "segfault", "raise", "spin", "sleep"]
    pairs = [(told.pop() if told and i % 40 == 20 else str(i % 3), "1") for i in range(320)]
    expected = [response == "1" for response, _ in pairs]
    with Checker("strange", processes=2, seconds=1, memory=2**30) as judge:
        assert judge.check(pairs) == expected
        assert not told and counts(judge) == (2, 2, 2)
        assert judge.check(pairs[:20]) == expected[:20] and counts(judge) == (2, 2, 2)
        assert len(pids()) <= 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.full
def test_real_hangs_of_math_verify_end(capfd):
    """One in sympy's arithmetic, one in a regular expression."""
    tower, pattern = "$2^{2^{2^{2^{2^{2}}}}}$", "Answer: $" * 50_000
    with Checker(processes=2, seconds=2) as judge:
        assert judge.check([(text, "42") for text in (tower, pattern, "42")]) == [False, False, True]
        assert counts(judge) == (2, 0, 0)
    assert capfd.readouterr() == ("", "")


def test_no_pairs_start_no_process_and_few_start_few_which_stay():
    with Checker("strange", processes=4, seconds=0.3) as judge:
        assert judge.check([]) == [] and not pids()
        judge.check([("1", "1")])
        first = pids()
        time.sleep(1.4)  # longer than the alarm of a worker without a trainer
        judge.check([("1", "1")])
        assert pids() == first and len(first) == 1
    with Checker("released") as judge:
        assert judge.check([("Answer: 1", "1")] * 3) == [True] * 3 and not pids()


def test_a_worker_that_dies_while_idle_costs_no_verdict():
    with Checker("strange", processes=1) as judge:
        judge.check([("1", "1")])
        [worker] = multiprocessing.active_children()
        worker.kill()
        worker.join()
        assert judge.check([("1", "1"), ("2", "1")]) == [True, False] and counts(judge) == (0, 0, 0)
        judge.close()
        judge.close()
        assert judge.check([("1", "1")]) == [True]


def test_several_threads_share_a_checker():
    with Checker("strange", processes=2, seconds=1) as judge:
        verdicts = {}

        def work(name):
            verdicts[name] = judge.check([(name, "1"), ("sleep" if name == "1" else name, "1"), ("1" * 50, "1" * 50)])

        threads = [threading.Thread(target=work, args=(name,)) for name in "012"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert verdicts == {name: [name == "1", False, True] for name in "012"} and counts(judge) == (1, 0, 0)


def test_an_interrupted_check_leaves_no_worker_and_no_stale_verdict(monkeypatch):
    judge = Checker("strange", processes=2)
    calls = iter([checker.wait, checker.wait])

    def interrupted(*arguments):
        function = next(calls, None)
        if function is None:
            raise KeyboardInterrupt
        return function(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checker, "wait", interrupted)
        judge.check([("sleep", "")] * 9)
    assert not pids()
    with judge:
        assert judge.check([("0", "1")] * 3) == [False] * 3


# It does without torch, which rpg_ref.checks would load.
SCRIPT = """
import multiprocessing, sys, threading, time, types
from test_answers import RULES, Checker, Rule, strange

def tell():
    while len(multiprocessing.active_children()) < 2 or not all(w.pair is not None for w in judge._workers):
        time.sleep(0.05)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)

if __name__ == "__main__":
    RULES["strange"] = Rule(strange, may_hang=True)
    sys.modules["rpg_ref"] = types.ModuleType("rpg_ref")
    sys.modules["rpg_ref.checks"] = types.SimpleNamespace(Table=lambda _, rows: rows, check_number=lambda *_: None)
    with Checker("strange", processes=2, seconds=SECONDS) as judge:
        threading.Thread(target=tell, daemon=True).start()
        judge.check([("spin", ""), ("sleep", "")])
"""


def runs(pid):
    """Whether a process is there and not just waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(("stop", "seconds"), [(signal.SIGINT, 60), (signal.SIGKILL, 0.7)])
def test_no_worker_outlives_the_trainer_however_it_ends(tmp_path, stop, seconds):
    """After kill -9 a worker that hangs in C code is ended by its own alarm."""
    path = tmp_path / "main.py"
    path.write_text(SCRIPT.replace("SECONDS", str(seconds)))
    here = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Started in the background of a script, this process ignores Ctrl-C, and so would its own.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    trainer = subprocess.Popen([sys.executable, path], env=env, **pipes)
    signal.signal(signal.SIGINT, before)
    with trainer:
        workers = [int(pid) for pid in trainer.stdout.readline().split()]
        assert len(workers) == 2 and all(map(runs, workers))
        if stop == signal.SIGINT:  # Ctrl-C goes to the workers as well; they leave it to the trainer
            for pid in workers:
                os.kill(pid, stop)
            time.sleep(0.3)
            assert all(map(runs, workers))
        trainer.send_signal(stop)
        trainer.wait(10)
        end = time.monotonic() + 10
        while any(map(runs, workers)) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(map(runs, workers))
        assert trainer.stderr.read().count(b"Traceback") == (stop == signal.SIGINT)


def test_workers_that_cannot_start_are_an_error_not_a_loop():
    with (
        Checker("stillborn", processes=2) as judge,
        pytest.raises(RuntimeError, match="3 answer workers in a row ended"),
    ):
        judge.check([("1", "1")] * 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "math_verify"}, "unknown rule 'math_verify'; the nearest are math-verify"),
        ({"processes": 0}, "processes must be a number in [1, 4096], got 0"),
        ({"seconds": 0}, "seconds must be a number in (0, 3600], got 0"),
        ({"seconds": float("nan")}, "seconds must be a number in (0, 3600], got nan"),
        ({"memory": 1}, "memory must be a number in [2.68435e+08,"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError) as refused:
        Checker(**arguments)
    assert message in str(refused.value)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ValueError, match=r"'math-verify' needs math-verify, .* pip install '.\[train\]' brings it"):
        Checker()
