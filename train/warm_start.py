"""A short supervised start on the answers of a careless teacher: it teaches the task, and to slip as often."""

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rpg_ref import aggregate, count
from train import ranks
from train.answering.rules import right_response
from train.batch import pack, parts, response_logprobs
from train.config import Config
from train.optim import build_optimizer, step
from train.policy import Policy
from train.problems.tasks import Task, deal
from train.seeds import derive
from train.tokenizer import answer_ids


def warm_start(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task], config: Config
) -> Iterator[dict[str, Any]]:
    """Maximise the likelihood of demonstrated answers, and yield metrics after each optimiser step.

    An answer is shown in the form that the run's rule judges right: a policy that has learnt it can earn its reward.
    """
    settings = config.warm_start
    optimizer = build_optimizer(policy, settings)
    for number in range(settings.steps):
        start = time.perf_counter()
        rng = random.Random(derive(config.seed, "slips", number))
        shown = deal(tasks, settings.batch, number, derive(config.seed, "demonstrations"))
        said = [demonstrate(task.answer, settings.slip, rng) for task in shown]
        answers = [answer_ids(tokenizer, right_response(config.data.rule, answer)) for answer in said]
        batch = pack([task.prompt for task in shown], answers, tokenizer.pad_token_id)
        denominator, loss = count(batch.mask, "token-mean"), torch.zeros(())
        for part in parts(batch, config.optimizer.micro_tokens, policy.device):
            logp = response_logprobs(policy, part.batch)
            surprise = aggregate(-logp, part.batch.mask, "token-mean", denominator=denominator.to(logp.device))
            surprise.backward()
            loss += surprise.item()
        norm = step(optimizer, number)
        yield {"loss": ranks.total(loss).item(), "grad_norm": norm, "seconds": time.perf_counter() - start}


def demonstrate(answer: str, slip: float, rng: random.Random) -> str:
    """Return the answer, or with probability ``slip`` the answer with one of its digits replaced by another."""
    places = [place for place, character in enumerate(answer) if character in "0123456789"]
    if not places or rng.random() >= slip:
        return answer
    place = rng.choice(places)
    wrong = rng.choice([digit for digit in "0123456789" if digit != answer[place]])
    return answer[:place] + wrong + answer[place + 1 :]
