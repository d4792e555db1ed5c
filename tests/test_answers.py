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
from pathlib import Path

import pytest

from train import checker
from train.answers import RULES, Rule, by_exact, by_released
from train.checker import Checker

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are Linux's")


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
# What math-verify 0.9 does, the surprising included.
MATH = {
    "42": (
        ["42", "Answer: 42", "Answer: 42.", "**Answer:** 42", "**Answer: 42**", "$42$", "\\boxed{42}", "Answer: 042"]
        + ["Answer: 42.0", "x = 42", "$x=42$", "$y=42$", "84/2", "$\\frac{84}{2}$", "$2\\cdot 21$", "Answer: 40+2"]
        + ["The answer is 42 apples", "$42\\text{ cm}$", "$42^\\circ$", "Answer: $42", "$\\{42\\}$", "42%", "42\n\nA"]
        + ["Answer: 41\nAnswer: 42", "$1$ Answer: 42", "Answer: 42\n#### 43", "Answer: 42. A fine day"]
        # It reads a number, not what is written on to it without LaTeX's dollars.
        + ["Answer: 42\\sqrt{2}", "Answer: 42x", "Answer: 42!", "Answer: 42 + 3i"],
        ["", "Answer:", "I do not know", "Answer: 41", "Answer: -42", "Answer: 42\nAnswer: 41", "forty-two"]
        + ["$42$ or $43$", "\\boxed{42} \\boxed{41}", "\\boxed{1}\nAnswer: 42", "Answer: 42 $1$", "$42!$", "$42x$"]
        + ["Answer: 42.0000001", "Answer: 4 2", "42 at first, then 43", "Answer: 42/2", "Answer: 42^2"]
        # These are right, and not read.
        + ["(42)", "Answer: (42)", "Answer: [42]", "Answer: +42", "\\boxed{42", "Answer\uff1a42", "\uff14\uff12"],
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
    "B": (["Answer: B", "B.", "Answer: **B**", "$B$", "\\boxed{\\text{B}}"], ["C", "Answer: C", "b", "(B)", "Answer: A"]),
    "\\text{east}": (["$\\text{east}$", "\\boxed{\\text{East}}", "\\boxed{east}"], ["\\boxed{west}", "east"]),
}


def table(rows):
    """The pairs, and whether each is right."""
    return [((r, a), right) for a, both in rows.items() for right, rs in zip((True, False), both, strict=True) for r in rs]


@pytest.mark.parametrize(("rule", "rows"), [("released", RELEASED), ("exact", EXACT), ("math-verify", MATH)])
def test_which_spellings_are_right(rule, rows):
    pairs, expected = zip(*table(rows), strict=True)
    with Checker(rule, processes=1, seconds=20) as judge:
        verdicts = judge.check(pairs)
    surprises = [pair for pair, verdict, right in zip(pairs, verdicts, expected, strict=True) if verdict != right]
    assert not surprises
    assert (judge.timeouts, judge.crashes, judge.errors) == (0, 0, 0)
