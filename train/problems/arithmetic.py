"""Two-digit arithmetic: sums of two-digit numbers that have two digits themselves."""

import random
from typing import Any

NUMBERS = range(10, 100)


def generate(seed: int, test_problems: int) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of a train and a test split, in the schema of ``train.problems.files``.

    A sum and its mirror image (47+38, 38+47) are one problem: never is one in train and the other in test.

    Args:
        seed: shuffles the problems.
        test_problems: how many are held out, fewer than there are.

    Returns:
        Rows by split, "train" and "test".

    Raises:
        ValueError: as many problems are to be held out as there are, or more.
    """
    problems = [(a, b) for a in NUMBERS for b in NUMBERS if a <= b and a + b in NUMBERS]
    if test_problems >= len(problems):
        raise ValueError(f"data.test_problems is {test_problems}; hold out fewer than the {len(problems)} there are")
    rng = random.Random(seed)
    rng.shuffle(problems)
    test, train = problems[:test_problems], problems[test_problems:]
    train += [(b, a) for a, b in train if a < b]
    rng.shuffle(train)
    return {
        split: [_row(*terms, i, split) for i, terms in enumerate(of)]
        for split, of in (("train", train), ("test", test))
    }


def _row(a: int, b: int, index: int, split: str) -> dict[str, Any]:
    question = f"{a}+{b}"
    return {
        "data_source": "two_digit_arithmetic",
        "prompt": [{"content": question, "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": str(a + b), "style": "exact"},
        "extra_info": {"index": index, "raw_problem": question, "split": split},
    }
