"""What is drawn from π_old and how it is judged: groups of responses, their rewards, their advantages."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rpg_ref import Recipe, advantages
from train import ranks
from train.answering.checker import Checker
from train.batch import Batch, pack, padded
from train.config import Config, RolloutConfig
from train.engines.engine import Engine, Said
from train.problems.tasks import Task, deal_from
from train.seeds import derive
from train.tokenizer import ends
from train.watching.clock import Clock


class Rollout(NamedTuple):
    """What was drawn from π_old.

    Attributes:
        batch: the sequences.
        tasks: the problem of each.
        logp_sampler: log π_sampler of each token under the engine that drew it, 0 where masked, [B, R].
        ended: 1 for a response that ended by itself, 0 for one that was cut off.
        right: 1 for a right response, else 0.
        reward: of each response.
        advantage: of each response.
        groups: share of the drawn groups that were all right, and that were all wrong.
        draws: how often problems were drawn.
        dealt: problems dealt since the run began.
        unjudged: share of the drawn responses that count as wrong because the rule did not judge them.
    """

    batch: Batch
    tasks: list[Task]
    logp_sampler: Float[Tensor, "B R"]
    ended: Float[Tensor, "B"]
    right: Float[Tensor, "B"]
    reward: Float[Tensor, "B"]
    advantage: Float[Tensor, "B"]
    groups: tuple[float, float]
    draws: int
    dealt: int
    unjudged: float = 0.0


def overlong(lengths: Float[Tensor, "B"], settings: RolloutConfig) -> Float[Tensor, "B"]:
    """Return what a response's length adds to its reward: 0 before the buffer, falling to −penalty at max_tokens."""
    if not settings.overlong_buffer:
        return torch.zeros_like(lengths)
    into = (lengths - (settings.max_tokens - settings.overlong_buffer)) / settings.overlong_buffer
    return -settings.overlong_penalty * into.clamp(0, 1)


def has_ended(tokenizer: PreTrainedTokenizerBase, response: Sequence[int]) -> bool:
    """Say whether a response was ended by the policy."""
    return bool(response) and response[-1] in ends(tokenizer)


def judge(
    tokenizer: PreTrainedTokenizerBase, checker: Checker, responses: Sequence[list[int]], tasks: Sequence[Task]
) -> Float[Tensor, "B"]:
    """Return 1 for each response that ended and is right by the checker's rule, else 0."""
    # Ids that only the model knows are left out when decoding: what holds one is not the answer.
    ended = [has_ended(tokenizer, said) and max(said) < len(tokenizer) for said in responses]
    pairs = [(cast(str, tokenizer.decode(said[:-1])), task.answer) for said, task in zip(responses, tasks, strict=True)]
    right = iter(checker.check([pair for pair, done in zip(pairs, ended, strict=True) if done]))
    return torch.tensor([float(done and next(right)) for done in ended])


def answers(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    checker: Checker,
    tasks: Sequence[Task],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    clock: Clock,
) -> tuple[list[Said], Float[Tensor, "B"], int]:
    """Draw a response to each task and judge it, each rank its share; every rank returns all, and what is right.

    Args:
        engine: it holds π_old.
        tokenizer: the policy's.
        checker: judges the responses.
        tasks: all problems, repeated as often as they are to be answered.
        max_tokens: as ``Engine.sample``.
        temperature: as ``Engine.sample``.
        seed: as ``Engine.sample``.
        clock: is told how long drawing and judging took.

    Returns:
        The responses; 1 for each that is right, else 0; and how many the rule did not judge.
    """
    share = ranks.share(len(tasks))
    mine = tasks[share]

    def work() -> tuple[list[Said], list[float], int]:
        before, prompts = checker.unjudged, [task.prompt for task in mine]
        with clock("seconds_draw"):
            said = engine.sample(prompts, max_tokens=max_tokens, temperature=temperature, seed=seed, first=share.start)
        with clock("seconds_judge"):
            right = judge(tokenizer, checker, [ids for ids, _ in said], mine).tolist()
        return said, right, checker.unjudged - before

    found = ranks.gather(ranks.everywhere(work))
    right = torch.tensor([x for _, of_rank, _ in found for x in of_rank])
    return [one for said, _, _ in found for one in said], right, sum(unjudged for _, _, unjudged in found)


def draw(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    checker: Checker,
    tasks: Sequence[Task],
    recipe: Recipe,
    config: Config,
    number: int,
    dealt: int,
    clock: Clock,
) -> Rollout:
    """Draw a group of responses to each of a step's problems, and judge them: reward 1 if right, else −1.

    With ``rollout.filter`` groups that are all right or all wrong are dropped, and others drawn in their place.

    Args:
        engine: it holds π_old.
        tokenizer: the policy's.
        checker: judges the responses.
        tasks: the problems.
        recipe: names the baseline.
        config: the run's.
        number: of the step.
        dealt: problems dealt before.
        clock: is told how long drawing and judging took.

    Returns:
        Rollout of ``rollout.prompts`` groups.

    Raises:
        ValueError: too few groups are left after the last draw; it says how many were all right or all wrong.
    """
    settings = config.rollout
    size = settings.prompts * (settings.oversample if settings.filter else 1)
    kept_tasks: list[Task] = []
    kept: list[Said] = []
    kept_right: list[Tensor] = []
    shares, unjudged = torch.zeros(2), 0
    for draws in range(1, (settings.draws if settings.filter else 1) + 1):
        chosen = deal_from(tasks, dealt, size, derive(config.seed, "prompts"))
        dealt += size
        repeated = [task for task in chosen for _ in range(settings.samples)]
        seed = derive(config.seed, "rollout", number, *([draws] if draws > 1 else []))
        responses, judged, missed = answers(
            engine,
            tokenizer,
            checker,
            repeated,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            seed=seed,
            clock=clock,
        )
        unjudged += missed
        right = judged.view(size, settings.samples)
        same = torch.stack([right.all(1), ~right.any(1)])
        shares += same.float().mean(1)
        for group in range(size):
            if settings.filter and bool(same[:, group].any()):
                continue
            members = slice(group * settings.samples, (group + 1) * settings.samples)
            kept_tasks += repeated[members]
            kept += responses[members]
            kept_right.append(right[group])
        if len(kept_right) >= settings.prompts:
            break
    else:
        all_right, all_wrong = (shares / draws).tolist()
        raise ValueError(
            f"step {number + 1} has {len(kept_right)} of {settings.prompts} groups after {draws} draws: "
            f"{all_right:.0%} were all right and {all_wrong:.0%} all wrong; "
            "take other problems, raise rollout.samples or rollout.draws, or set rollout.filter = false"
        )
    rows = settings.prompts * settings.samples
    kept_tasks, kept = kept_tasks[:rows], kept[:rows]
    batch = pack([task.prompt for task in kept_tasks], [ids for ids, _ in kept], tokenizer.pad_token_id)
    logp_sampler = padded([logp for _, logp in kept], batch.mask.shape[1])
    ended = torch.tensor([float(has_ended(tokenizer, ids)) for ids, _ in kept])
    right = torch.cat(kept_right[: settings.prompts])
    reward = 2 * right - 1 + overlong(batch.mask.sum(1).float(), settings)
    groups = torch.arange(settings.prompts).repeat_interleave(settings.samples)
    advantage = advantages(reward, groups, recipe.baseline)
    all_right, all_wrong = (shares / draws).tolist()
    return Rollout(
        batch,
        kept_tasks,
        logp_sampler,
        ended,
        right,
        reward,
        advantage,
        (all_right, all_wrong),
        draws,
        dealt,
        unjudged / (draws * size * settings.samples),
    )


def transcripts(
    rollout: Rollout, tokenizer: PreTrainedTokenizerBase, samples: int, number: int
) -> list[dict[str, Any]]:
    """Return, of the first ``number`` groups of so many samples, the first response as text, and what it earned."""
    return [
        {
            "prompt": tokenizer.decode(rollout.tasks[row].prompt),
            "response": tokenizer.decode(rollout.batch.responses[row][rollout.batch.mask[row] != 0]),
            "answer": rollout.tasks[row].answer,
            "right": bool(rollout.right[row]),
            "reward": rollout.reward[row].item(),
        }
        for row in range(0, len(rollout.tasks), samples)[:number]
    ]
