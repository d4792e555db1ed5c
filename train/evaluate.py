"""Mean@k: how often the policy is right on held-out problems, sampled as in training, with its standard error."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from train.config import Config
from train.problems import Task
from train.sampling import sample
from train.seeds import derive
from train.tokenizer import is_right


class Accuracy(NamedTuple):
    """A mean over problems and the standard error of that mean."""

    mean: float
    stderr: float

    def __str__(self) -> str:
        """The mean ± one standard error."""
        return f"{self.mean:.3f} ± {self.stderr:.3f}"


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tasks: Sequence[Task], config: Config
) -> Accuracy:
    """Draw ``eval_samples`` responses to each problem, with the same random numbers at every call.

    The error is that of the problems' own means: responses to one problem are not independent of one another.
    """
    k = config.eval_samples
    responses = sample(
        model,
        tokenizer,
        [task.prompt for task in tasks for _ in range(k)],
        max_tokens=config.rollout.max_tokens,
        temperature=config.rollout.temperature,
        seed=derive(config.seed, "evaluation"),
    )
    right = [is_right(tokenizer, response, tasks[i // k].answer) for i, response in enumerate(responses)]
    means = torch.tensor(right, dtype=torch.float64).view(len(tasks), k).mean(1)
    return Accuracy(means.mean().item(), means.std(correction=0).item() / len(tasks) ** 0.5)
