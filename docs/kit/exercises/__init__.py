"""The exercises' graders: one module a page, each with ``check(answer)``, which asks the oracle."""

import importlib
from typing import Any


def grade(page: str, answer: Any) -> bool:
    """Say whether an answer to a page's exercise is right, and if not, what is wrong with it.

    Args:
        page: the page's name, such as "one-idea".
        answer: what its exercise asks for.

    Returns:
        Whether it is right; the sentence is printed.

    Raises:
        ModuleNotFoundError: the page has no exercise.

    Source: ours.
    """
    wrong = importlib.import_module(f"docs.kit.exercises.{page.replace('-', '_')}").check(answer)
    print(f"right: {page}" if wrong is None else f"not yet: {wrong}")
    return wrong is None
