"""Mean@k and Pass@k: how often the policy is right on held-out problems, with standard errors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rpg_ref import token_entropy
from train.answering.checker import Checker
from train.batch import Batch, pack, response_logits
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
    """Of k responses to each problem: the share that is right, and the share of problems with a right one.

    Attributes:
        mean_at_k: the former.
        pass_at_k: the latter.
        batch: the responses.
    """

    mean_at_k: Accuracy
    pass_at_k: Accuracy
    batch: Batch


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    checker: Checker,
    tasks: Sequence[Task],
    *,
    k: int,
    max_tokens: int,
    temperature: float,
    seed: int,
    at_once: int = 0,
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
        at_once: the most responses drawn at a time; 0: all.

    Returns:
        Evaluation. The errors are those of the problems' own means: responses to one problem are not independent.
    """
    repeated = [task for task in tasks for _ in range(k)]
    prompts = [task.prompt for task in repeated]
    responses = sample(
        model, tokenizer, prompts, max_tokens=max_tokens, temperature=temperature, seed=seed, at_once=at_once
    )
    right = judge(tokenizer, checker, responses, repeated).view(len(tasks), k)
    return Evaluation(*summarise(right), pack(prompts, responses, tokenizer.pad_token_id))


def summarise(right: Float[Tensor, "N k"]) -> tuple[Accuracy, Accuracy]:
    """Return Mean@k and Pass@k of N problems from which of their k responses are right."""
    right = right.double()
    return _accuracy(right.mean(1)), _accuracy(right.amax(1))


@torch.no_grad()
def spread(
    model: PreTrainedModel, start: PreTrainedModel | None, batch: Batch, *, budget: int, temperature: float
) -> dict[str, float]:
    """Return the policy's entropy and its distance from where it started, along its own responses.

    At each token both are sums over the whole vocabulary, so that only the responses are random, not the tokens' terms.

    Args:
        model: the policy π_θ.
        start: π_start, or None.
        batch: responses drawn from π_θ.
        budget: the most tokens through the models at a time; 0: all.
        temperature: divides the logits.

    Returns:
        ``length`` and ``entropy``, and with a start ``reverse_kl_start``: KL(π_θ‖π_start) of a response, the sum of its
        tokens' by the chain rule.
    """
    entropy, divergence = 0.0, 0.0
    for part in batch.micro(budget):
        keep = part.mask != 0
        logits = response_logits(model, part)[keep]
        entropy += token_entropy(logits, temperature=temperature).double().sum().item()
        if start is not None:
            logp, logp_start = (
                (x / temperature).double().log_softmax(-1) for x in (logits, response_logits(start, part)[keep])
            )
            divergence += (logp.exp() * (logp - logp_start)).sum().item()
    tokens, responses = int(batch.mask.sum()), len(batch.mask)
    found = {"length": tokens / responses, "entropy": entropy / tokens}
    return found if start is None else found | {"reverse_kl_start": divergence / responses}


def _accuracy(of_problem: Float[Tensor, "N"]) -> Accuracy:
    error = of_problem.std().item() / len(of_problem) ** 0.5 if len(of_problem) > 1 else float("nan")
    return Accuracy(of_problem.mean().item(), error)
