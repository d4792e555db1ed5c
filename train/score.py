"""``python -m train eval``: Mean@k and Pass@k of any Hugging Face folder on a file of problems."""

from collections.abc import Callable

from transformers.utils import logging

from train import ranks
from train.answering.checker import Checker
from train.architecture import architecture
from train.config import EvalConfig, ModelConfig
from train.engines.engine import Demands
from train.engines.opening import check_engine, open_engine
from train.evaluate import Evaluation, evaluate
from train.model import check_length, open_model, open_tokenizer
from train.policy import Policy, shard
from train.problems.files import read
from train.problems.tasks import check_ids, tasks_of
from train.seeds import derive
from train.tokenizer import warnings_of


def score(config: EvalConfig, warn: Callable[[str], object]) -> Evaluation:
    """Load the model, draw k responses to each problem, and judge them.

    Args:
        config: what to evaluate.
        warn: is told what the reader should know before the numbers.

    Returns:
        Evaluation.

    Raises:
        ValueError: the problems cannot be read, or the folder holds no causal language model with a chat template.
    """
    check_engine(config.engine)
    problems = read(config.problems, drop_contradictions=config.contradictions == "drop")
    logging.disable_progress_bar()
    tokenizer = open_tokenizer(config.model)
    warnings = warnings_of(tokenizer)
    limit = config.max_prompt_tokens
    tasks = tasks_of(problems, tokenizer, limit, warnings.append, "prompts", "max_prompt_tokens")
    for text in warnings:
        warn(f"warning: {text}")
    vocabulary = architecture(ModelConfig(path=config.model)).get_text_config().vocab_size
    places = [problem.place for problem in problems]
    check_ids({"prompt": [task.prompt for task in tasks]}, places, tokenizer, vocabulary)
    model = open_model(config.model)
    context = max(len(task.prompt) for task in tasks) + config.max_tokens
    check_length(model, context, config.model)
    policy = Policy(model).to(ranks.device(config.device))
    shard(policy, config.precision)
    demands = Demands(
        context=context,
        precision=config.precision,
        at_once=config.at_once,
        temperature=config.temperature,
        budget=0,
        prompts=[task.prompt for task in tasks],
    )
    with open_engine(config.engine, policy, tokenizer, demands) as engine, Checker(config.rule) as checker:
        return evaluate(
            engine,
            policy,
            tokenizer,
            checker,
            tasks,
            k=config.k,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            seed=derive(config.seed, "evaluation"),
        )
