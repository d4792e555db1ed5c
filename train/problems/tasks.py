"""The problems of a run: read, held out, put into tokens, and dealt out step by step."""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar, cast

from transformers import PreTrainedTokenizerBase

from train.config import Config, DataConfig
from train.problems.files import Problem, parse, read
from train.seeds import derive
from train.tokenizer import answer_ids, prompt_ids

Item = TypeVar("Item")


class Task(NamedTuple):
    """A problem as the policy sees it: the prompt's token ids; and the answer."""

    prompt: list[int]
    answer: str


class Split(NamedTuple):
    """What is trained on and what is held out; no problem is in both."""

    train: list[Problem]
    test: list[Problem]


def arithmetic(rows: dict[str, list[dict[str, Any]]]) -> Split:
    """Return generated rows as problems, by way of the checks that a file's rows go through."""
    return Split(*(parse(f"generated {name} problems", rows[name]) for name in Split._fields))


def read_split(data: DataConfig) -> Split:
    """Read the problems; without a test file the last ``test_problems`` of the training file are held out.

    Args:
        data: names a training file.

    Returns:
        Both parts.

    Raises:
        ValueError: a file is unreadable, a problem stands in both, or none would be left to train on.
    """
    train = read(cast(str, data.train))
    if data.test is None:
        if data.test_problems >= len(train):
            few = f"{data.train} has {len(train)} distinct problems, too few to hold out {data.test_problems}"
            raise ValueError(f"{few}; lower data.test_problems or name a file with data.test")
        return Split(train[: -data.test_problems], train[-data.test_problems :])
    test = read(data.test)
    asked = {problem.prompt for problem in train}
    both = sum(problem.prompt in asked for problem in test)
    if both:
        raise ValueError(f"{both} problems of {data.test} stand in {data.train} too; remove them from one of the files")
    return Split(train, test)


def encode(problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, config: Config) -> list[Task]:
    """Put prompts into token ids.

    Raises:
        ValueError: an answer does not fit into a response, so that no policy could earn its reward.
    """
    longest = max((problem.answer for problem in problems), key=lambda answer: len(answer_ids(tokenizer, answer)))
    need = len(answer_ids(tokenizer, longest))
    if need > config.rollout.max_tokens:
        raise ValueError(
            f"rollout.max_tokens is {config.rollout.max_tokens} but the answer {longest!r} needs {need}; raise it"
        )
    limit = config.data.max_prompt_tokens
    return [Task(prompt_ids(tokenizer, problem.prompt, limit), problem.answer) for problem in problems]


def deal(items: Sequence[Item], size: int, step: int, seed: int) -> list[Item]:
    """Return the batch of a step: the items in an order shuffled anew each epoch, with no state between steps."""
    return deal_from(items, step * size, size, seed)


def deal_from(items: Sequence[Item], first: int, size: int, seed: int) -> list[Item]:
    """Return the next items after the first so many were dealt."""
    chosen: list[Item] = []
    for position in range(first, first + size):
        epoch, place = divmod(position, len(items))
        if not chosen or place == 0:
            order = random.Random(derive(seed, "epoch", epoch)).sample(range(len(items)), len(items))
        chosen.append(items[order[place]])
    return chosen
