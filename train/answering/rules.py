"""Is a response's answer right? Each rule of what counts as right is a function of the response and the answer."""

import re
from collections.abc import Callable
from typing import NamedTuple

_LETTERS = "ABCD"  # those that math-verify looks for
# The normalisation of Lewkowycz et al. 2022, appendix D.1, as the paper's released verifier has it. Of what it removes,
# two with a line break are left out: an answer is a line.
_REPLACED = [
    *(("an ", ""), ("a ", ""), (".$", "$"), ("\\$", ""), ("\\ ", ""), (" ", ""), ("mbox", "text")),
    *((",\\text{and}", ","), ("\\text{and}", ","), ("\\text{m}", "\\text{}")),
]
_REMOVED = r"""
    square ways integers dollars mph inches hours km units \ldots sue points feet minutes digits cents degrees cm gm
    pounds meters meals edges students childrentickets multiples
    \text{s} \text{.} \text{}^2 \text{}^3 \text{} \mathrm{th} ^\circ ^{\circ} \; ,\! {,} " \dots
""".split()
_REWRITTEN = [
    (re.compile(pattern), into)
    for pattern, into in (
        (r".*?\$(.*?)\$.*", r"$\1$"),
        (r"\\text\{(.*?)\}", r"\1"),
        (r"\\textbf\{(.*?)\}", r"\1"),
        (r"\\overline\{(.*?)\}", r"\1"),
        (r"\\boxed\{(.*)\}", r"\1"),
        (r"frac([^{])(.)", r"frac{\1}{\2}"),
        (r"sqrt([^{])", r"sqrt{\1}"),
    )
]


def by_math_verify(response: str, answer: str) -> bool:
    """Say whether the math-verify package finds the answer in the response; it may take forever, or all memory.

    It reads LaTeX and numbers, and lone letters only where the answer is one: else "42. A fine day" would answer A.
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse, verify

    kinds = [LatexExtractionConfig(), ExprExtractionConfig()]
    if answer.strip() in tuple(_LETTERS):
        kinds.append(StringExtractionConfig(strings=tuple(_LETTERS)))
    # None: the package's own limits are alarms, which work in a main thread only.
    true, said = (parse(text, kinds, parsing_timeout=None) for text in (rf"\boxed{{{answer}}}", response))
    return bool(verify(true, said, timeout_seconds=None))


def by_released(response: str, answer: str) -> bool:
    """Say whether what follows the last "Answer:" of the last 300 characters is the answer, both normalised."""
    said = re.findall(r"(?i)Answer\s*:\s*([^\n]+)", response[-300:])
    return bool(said) and _normal(said[-1]) == _normal(answer)


def by_exact(response: str, answer: str) -> bool:
    """Say whether the response is the answer and nothing else; space around it does not matter."""
    return response.strip() == answer.strip()


def _normal(text: str) -> str:
    text = text.split("=")[-1]
    for old, new in (*_REPLACED, *((word, "") for word in _REMOVED)):
        text = text.replace(old, new)
    for pattern, into in _REWRITTEN:
        text = pattern.sub(into, text)
    text = text.replace("$", "")
    digits = text.replace(",", "")
    return digits if digits.isdigit() else text.strip()


class Rule(NamedTuple):
    """What counts as right.

    Attributes:
        judge: takes a response and the answer.
        may_hang: it is run in worker processes.
        package: what to install for it, if anything; its module has the same name, with underscores.
        form: a response that is right whatever the answer, which stands for {}; a warm start teaches it.
    """

    judge: Callable[[str, str], bool]
    may_hang: bool
    package: str | None = None
    form: str = "{}"


# A Table of rpg_ref once it is looked up.
RULES = {
    # A bare 42 is read too, but a bare \sqrt{2} is not.
    "math-verify": Rule(by_math_verify, may_hang=True, package="math-verify", form=r"\boxed{{{}}}"),
    "released": Rule(by_released, may_hang=False, form="Answer: {}"),
    "exact": Rule(by_exact, may_hang=False),
}


def right_response(rule: str, answer: str) -> str:
    """Return the answer in the form that a rule judges right."""
    return RULES[rule].form.format(answer)
