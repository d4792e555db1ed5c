"""``python -m train eval``: Mean@k and Pass@k of any Hugging Face folder on a file of problems."""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from train.answering.checker import Checker
from train.config import EvalConfig
from train.evaluate import Evaluation, evaluate
from train.problems.files import read
from train.problems.tasks import Task
from train.seeds import derive
from train.tokenizer import prompt_ids


def score(config: EvalConfig) -> Evaluation:
    """Load the model, draw k responses to each problem, and judge them.

    Args:
        config: what to evaluate.

    Returns:
        Evaluation.

    Raises:
        ValueError: the problems cannot be read, or the folder holds no causal language model with a chat template.
    """
    problems = read(config.problems)
    if not (Path(config.model) / "config.json").is_file():
        raise ValueError(f"{config.model} has no config.json; pass a Hugging Face folder, such as a run's model/")
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(config.model, local_files_only=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(config.model, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load a model from {config.model}: {str(error).splitlines()[0]}") from error
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer in {config.model} has no chat template; add one to its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tasks = [
        Task(prompt_ids(tokenizer, problem.prompt, config.max_prompt_tokens), problem.answer) for problem in problems
    ]
    with Checker(config.rule) as checker:
        return evaluate(
            model,
            tokenizer,
            checker,
            tasks,
            k=config.k,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            seed=derive(config.seed, "evaluation"),
        )
