"""Mean@k and Pass@k: how often the policy is right on held-out problems, with standard errors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rpg_ref import token_entropy
from train import ranks
from train.answering.checker import Checker
from train.batch import Batch, pack, parts, through
from train.engines.engine import Engine
from train.policy import Policy
from train.problems.tasks import Task
from train.rollout import answers, has_ended
from train.watching.clock import Clock

CHUNK = 256
"""Tokens whose logits exist at a time."""
SHARES = ("accuracy", "stderr", "pass", "pass_stderr")
"""What an evaluation's row calls Mean@k and Pass@k, each with its standard error."""


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
        of_sets: both of each test set, as ``by_set`` returns them.
        cut_off: share of the responses that did not end by themselves within max_tokens.
        unjudged: how many of them count as wrong because the rule did not judge them.
    """

    mean_at_k: Accuracy
    pass_at_k: Accuracy
    batch: Batch
    of_sets: dict[str, float]
    cut_off: float
    unjudged: int

    @property
    def mean_length(self) -> float:
        """Mean number of tokens of a response, its end included."""
        return int(self.batch.mask.sum()) / len(self.batch.mask)


def evaluate(
    engine: Engine,
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
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
        engine: draws.
        policy: the policy.
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
    how: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    with engine.holding(policy):
        responses, right, unjudged = answers(engine, tokenizer, checker, repeated, **how, clock=Clock())
    batch = pack([task.prompt for task in repeated], [ids for ids, _ in responses], tokenizer.pad_token_id)
    right = right.view(len(tasks), k)
    cut_off = sum(not has_ended(tokenizer, ids) for ids, _ in responses) / len(responses)
    return Evaluation(*summarise(right), batch, by_set(right, [task.test_set for task in tasks]), cut_off, unjudged)


def summarise(right: Float[Tensor, "N k"]) -> tuple[Accuracy, Accuracy]:
    """Return Mean@k and Pass@k of N problems from which of their k responses are right."""
    right = right.double()
    return _accuracy(right.mean(1)), _accuracy(right.amax(1))


def by_set(right: Float[Tensor, "N k"], names: Sequence[str]) -> dict[str, float]:
    """Return the shares of each test set, where there are several.

    Args:
        right: which of the k responses to each of N problems are right.
        names: of the test sets that the problems are of.

    Returns:
        ``accuracy.NAME``, ``stderr.NAME``, ``pass.NAME`` and ``pass_stderr.NAME`` for each; of a single set nothing.
    """
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    found: dict[str, float] = {}
    for name, of in rows.items() if len(rows) > 1 else ():
        values = (value for accuracy in summarise(right[of]) for value in accuracy)
        found |= {f"{key}.{name}": value for key, value in zip(SHARES, values, strict=True)}
    return found


@torch.no_grad()
def spread(policy: Policy, start: Policy | None, batch: Batch, *, budget: int, temperature: float) -> dict[str, float]:
    """Return the policy's entropy and its distance from where it started, along its own responses.

    At each token both are sums over the whole vocabulary, so that only the responses are random, not the tokens' terms.

    Args:
        policy: π_θ.
        start: π_start, or None.
        batch: responses drawn from π_θ.
        budget: the most tokens through the models at a time; 0: all.
        temperature: divides the logits.

    Returns:
        ``length`` and ``entropy``, and with a start ``reverse_kl_start``: KL(π_θ‖π_start) of a response, the sum of its
        tokens' by the chain rule.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    for part in parts(batch, budget, policy.device):
        sums += _sums(policy, start, part.batch, temperature).cpu()
    entropy, divergence = ranks.total(sums).tolist()
    tokens, responses = int(batch.mask.sum()), len(batch.mask)
    found = {"length": tokens / responses, "entropy": entropy / tokens}
    return found if start is None else found | {"reverse_kl_start": divergence / responses}


def _sums(policy: Policy, start: Policy | None, batch: Batch, temperature: float) -> Float[Tensor, "2"]:
    """Return Σ entropy and Σ KL(π_θ‖π_start) over the tokens of responses, a chunk of logits at a time."""
    keep = batch.mask != 0

    def over_tokens(*states_and_head: tuple[Tensor, Tensor]) -> Float[Tensor, "2"]:
        sums = torch.zeros(2, dtype=torch.float64, device=batch.mask.device)
        for chunk in zip(*(states[keep].split(CHUNK) for states, _ in states_and_head), strict=True):
            heads = (head for _, head in states_and_head)
            logits = [(x @ head.T).float() for x, head in zip(chunk, heads, strict=True)]
            sums[0] += token_entropy(logits[0], temperature=temperature).double().sum()
            logp, *logp_start = ((x / temperature).double().log_softmax(-1) for x in logits)
            for other in logp_start:
                sums[1] += (logp.exp() * (logp - other)).sum()
        return sums

    if start is None:
        return through(policy, batch, lambda *now: over_tokens(now))
    # Heads are whole only inside their models' forward passes: so one pass stands inside the other.
    return through(policy, batch, lambda *now: through(start, batch, lambda *then: over_tokens(now, then)))


def _accuracy(of_problem: Float[Tensor, "N"]) -> Accuracy:
    error = of_problem.std().item() / len(of_problem) ** 0.5 if len(of_problem) > 1 else float("nan")
    return Accuracy(of_problem.mean().item(), error)
