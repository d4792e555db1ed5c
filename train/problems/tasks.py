"""The problems of a run: read, held out, put into tokens, and dealt out step by step."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar, cast

from transformers import PreTrainedTokenizerBase

from train.answering.rules import right_response
from train.architecture import architecture
from train.config import Config, DataConfig
from train.problems.files import Problem, name_of, parse, read
from train.seeds import derive
from train.tokenizer import answer_ids, prompt_ids

Item = TypeVar("Item")
Warn = Callable[[str], object]


class Task(NamedTuple):
    """A problem as the policy sees it: the prompt's token ids; the answer; and which test set it is of, "" for none."""

    prompt: list[int]
    answer: str
    test_set: str = ""


class Split(NamedTuple):
    """What is trained on and what is held out; no problem is in both."""

    train: list[Problem]
    test: list[Problem]


def arithmetic(rows: dict[str, list[dict[str, Any]]]) -> Split:
    """Return generated rows as problems, by way of the checks that a file's rows go through."""
    return Split(*(parse(f"generated {name} problems", rows[name]) for name in Split._fields))


def read_split(data: DataConfig) -> Split:
    """Read the problems; without a test set the last ``test_problems`` of the training problems are held out.

    Args:
        data: names what to train on.

    Returns:
        Both parts; of several test sets each problem knows its own, one that stands in two of them is there twice.

    Raises:
        ValueError: a source is unreadable, a problem stands in both parts, two test sets have one name, or no problem
            would be left to train on.
    """
    drop = data.contradictions == "drop"
    train = read(cast(str, data.train), "train", drop_contradictions=drop)
    if data.test is None:
        if data.test_problems >= len(train):
            few = f"{data.train} has {len(train)} distinct problems, too few to hold out {data.test_problems}"
            raise ValueError(f"{few}; lower data.test_problems or name a file with data.test")
        return Split(train[: -data.test_problems], train[-data.test_problems :])
    asked = {problem.prompt for problem in train}
    test: list[Problem] = []
    for name, source in _named((data.test,) if isinstance(data.test, str) else data.test).items():
        problems = read(source, "test", drop_contradictions=drop)
        both = sum(problem.prompt in asked for problem in problems)
        if both:
            raise ValueError(f"{both} problems of {source} stand in {data.train} too; remove them from one of the two")
        test += [replace(problem, test_set=name) for problem in problems]
    return Split(train, test)


def _named(sources: Sequence[str]) -> dict[str, str]:
    """Return test sets by their short names."""
    if not sources:
        raise ValueError("data.test is an empty list; name a test set, or leave it out")
    named: dict[str, str] = {}
    for source in sources:
        name = name_of(source)
        if name in named:
            raise ValueError(f"{named[name]} and {source} of data.test are both called {name}; rename one of them")
        named[name] = source
    return named


def encode(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    warn: Warn = str,
    what: str = "prompts",
) -> list[Task]:
    """Put prompts into token ids.

    Args:
        problems: at least one.
        tokenizer: the policy's.
        config: the run's.
        warn: is told how many prompts are too long.
        what: the warning calls them.

    Returns:
        A task for each.

    Raises:
        ValueError: an answer, in the form that the run's rule judges right, does not fit into a response, the model
            does not know a token, or as ``tasks_of``.
    """
    right = [right_response(config.data.rule, problem.answer) for problem in problems]
    answers = [answer_ids(tokenizer, response) for response in right]
    need, longest = max(zip(map(len, answers), right, strict=True))
    if need > config.rollout.max_tokens:
        raise ValueError(
            f"rollout.max_tokens is {config.rollout.max_tokens} but the answer {longest!r} needs {need}; raise it"
        )
    tasks = tasks_of(problems, tokenizer, config.data.max_prompt_tokens, warn, what, "data.max_prompt_tokens")
    places, vocabulary = (
        [problem.place for problem in problems],
        architecture(config.model).get_text_config().vocab_size,
    )
    check_ids({"prompt": [task.prompt for task in tasks], "answer": answers}, places, tokenizer, vocabulary)
    return tasks


def tasks_of(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, limit: int, warn: Warn, what: str, key: str
) -> list[Task]:
    """Put prompts into token ids; a prompt of more than ``limit`` tokens loses its beginning.

    Args:
        problems: at least one.
        tokenizer: the policy's.
        limit: the longest prompt.
        warn: is told how many are longer.
        what: the warning calls them.
        key: of the limit in the configuration.

    Returns:
        A task for each.

    Raises:
        ValueError: the chat template refuses a prompt; the error names its row.
    """
    tasks, too_long = [], 0
    for problem in problems:
        try:
            ids = prompt_ids(tokenizer, problem.prompt)
        except ValueError as error:
            raise ValueError(f"{problem.place}: {error}") from error
        too_long += len(ids) > limit
        tasks.append(Task(ids[-limit:], problem.answer, problem.test_set))
    if too_long:
        warn(
            f"{too_long} of {len(tasks)} {what} are longer than {key} = {limit} and lose their beginning, such as the "
            "role's header and the first words of the problem; raise it"
        )
    return tasks


def check_ids(
    of: Mapping[str, Sequence[list[int]]],
    places: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
) -> None:
    """Refuse a token that the model has no embedding for: a pass over it would fail, perhaps hours into a run.

    Args:
        of: the ids of each problem's prompt, and of its answer, by that name.
        places: the row of each problem.
        tokenizer: the policy's.
        vocabulary: rows of the model's embedding.

    Raises:
        ValueError: there is one.
    """
    lacks = (
        f"the embedding of the model has {vocabulary} rows; take the tokenizer of this model, or resize its embedding"
    )
    if tokenizer.pad_token_id >= vocabulary:
        raise ValueError(f"the padding token {tokenizer.pad_token!r} has the id {tokenizer.pad_token_id}, but {lacks}")
    for what, rows in of.items():
        for place, ids in zip(places, rows, strict=True):
            if max(ids) >= vocabulary:
                token = tokenizer.convert_ids_to_tokens(max(ids))
                raise ValueError(f"{place}: the {what} holds the token {token!r}, whose id is {max(ids)}, but {lacks}")


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
