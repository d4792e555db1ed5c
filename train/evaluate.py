"""Mean@k and Pass@k: how often the policy is right on held-out problems, with standard errors."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from train.answering.checker import Checker
from train.problems.tasks import Task
from train.rollout import judge
from train.sampling import sample


class Accuracy(NamedTuple):
    """A mean over problems and the standard error of that mean."""

    mean: float
    stderr: float

    def __str__(self) -> str:
        """The mean ± one standard error."""
        return f"{self.mean:.3f} ± {self.stderr:.3f}"


class Evaluation(NamedTuple):
    """Of k responses to each problem: the share that is right, and the share of problems with a right one."""

    mean_at_k: Accuracy
    pass_at_k: Accuracy


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    checker: Checker,
    tasks: Sequence[Task],
    *,
    k: int,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> Evaluation:
    """Draw k responses to each problem, with the same random numbers at every call.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        checker: judges the responses.
        tasks: the problems.
        k: responses to each.
        max_tokens: the longest response.
        temperature: divides the logits.
        seed: of the sampling.

    Returns:
        Evaluation. The errors are those of the problems' own means: responses to one problem are not independent.
    """
    repeated = [task for task in tasks for _ in range(k)]
    prompts = [task.prompt for task in repeated]
    responses = sample(model, tokenizer, prompts, max_tokens=max_tokens, temperature=temperature, seed=seed)
    return summarise(judge(tokenizer, checker, responses, repeated).view(len(tasks), k))


def summarise(right: Float[Tensor, "N k"]) -> Evaluation:
    """Return Mean@k and Pass@k of N problems from which of their k responses are right."""
    right = right.double()
    return Evaluation(*(_accuracy(of_problem) for of_problem in (right.mean(1), right.amax(1))))


def _accuracy(of_problem: Float[Tensor, "N"]) -> Accuracy:
    return Accuracy(of_problem.mean().item(), of_problem.std(correction=0).item() / len(of_problem) ** 0.5)
