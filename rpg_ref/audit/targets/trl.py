"""TRL: the ``_compute_loss`` of a real GRPOTrainer and RLOOTrainer, under TRL's own LM head.

The tiny GPT-2 is only there to build the trainer from: its backbone is replaced by the exact policy and its head by the
identity, so that everything between the policy's logits and the loss is TRL's.
"""

import logging
import tempfile
import warnings
from functools import cache, partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from rpg_ref.audit.targets import Case
from rpg_ref.objective import Objective

DISTRIBUTION = "trl"
KNOWN = "1.16.0"
ENVIRONMENT = "trl"

Settings = dict[str, Any]

_KL: Settings = {"beta": 0.04}
_PLAIN: Settings = {**_KL, "use_bias_correction_kl": False}
_CORRECTED: Settings = {**_KL, "use_bias_correction_kl": True}
_GSPO: Settings = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
# Driven from the rewards on, so that the sampler's weight is TRL's as well; "none" keeps A's scale.
_VLLM: Settings = {"scale_rewards": "none", "use_vllm": True, "vllm_importance_sampling_mode": "token_truncate"}
# fmt: off
# One process, float32 or better, the batch in one piece.
_FIXED: Settings = {
    "use_cpu": True, "bf16": False, "report_to": [], "num_generations": 2, "per_device_train_batch_size": 2**12,
}

_GRPO: tuple[Settings, ...] = (
    *({"loss_type": name} for name in ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")),
    {"loss_type": "cispo", "epsilon_high": 5.0},
    {"delta": 4.0},
    _GSPO,
    {**_GSPO, "loss_type": "luspo"},
    {"entropy_coef": 0.01},
    _KL,
    _PLAIN,
    _CORRECTED,
    *({"loss_type": name, **_KL} for name in ("grpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")),
    {"loss_type": "cispo", "epsilon_high": 5.0, **_KL},
    {**_GSPO, **_PLAIN},
    {**_GSPO, **_CORRECTED},
    _VLLM,
    {**_VLLM, "vllm_importance_sampling_mode": "sequence_mask"},
    {**_VLLM, **_PLAIN},
    {**_VLLM, **_CORRECTED},
)
# fmt: on
# The module, the trainer and its config by the name on an option.
_TRAINERS = {
    "GRPO": ("trl", "GRPOTrainer", "GRPOConfig"),
    "RLOO": ("trl", "RLOOTrainer", "RLOOConfig"),
    "RPG": ("rpg_ref.integrations.trl", "RPGTrainer", "GRPOConfig"),
}
# Settings that are no option of the config: arguments of the trainer, and a flag that alone turns a correction on.
_OF_TRAINER, _FLAG = ("recipe", "reference"), "use_vllm"
# Off-policy these follow a gradient of their own, and their papers say so.
_OWN_SURROGATE = {"sapo", "vespo", "sequence"}
_RLOO: tuple[Settings, ...] = ({"beta": 0.0}, {"beta": 0.05})


def cases() -> list[Case]:
    """Return every setting of the two trainers that is audited.

    Returns:
        Cases whose subjects are steps for ``identify_model``.

    Raises:
        ModuleNotFoundError: trl, or a package that it needs, is not installed.

    Source: ours; TRL's pages on GRPO, whose penalty is β·KL(π_θ‖π_ref), and RLOO, whose response is one action.
    """
    import_module("trl")
    return [_case("GRPO", row) for row in _GRPO] + [_case("RLOO", row) for row in _RLOO]


def _case(name: str, settings: Settings) -> Case:
    terms = {"reward": 1.0, "entropy": settings.get("entropy_coef", 0.0), "reverse_kl": settings.get("beta", 0.0)}
    option = " ".join([name, *(f"{key}={value}" for key, value in settings.items())])
    whole = name == "RLOO" or "sequence" in option
    level = "sequence" if whole else "token"
    objective = Objective({term: c for term, c in terms.items() if c}, level)
    own_surrogate = _OWN_SURROGATE & set(settings.values())
    documented = (objective, None) if own_surrogate else (objective, objective)
    return Case(option, documented, partial(step, name, settings), level, whole_model=True)


def step(name: str, settings: Settings, model: Any, batch: Any) -> Tensor:
    """Return the loss that a trainer computes of a batch, under the model's own logits.

    Args:
        name: "GRPO", "RLOO" or "RPG".
        settings: of its config; "recipe" and "reference" are RPG's own arguments. With "use_vllm" the batch's sampler
            is an engine, and the trainer goes on from the rewards.
        model: a PrefixTreeLM.
        batch: a ModelBatch.

    Returns:
        The scalar.

    Source: TRL 1.16.0, ``_compute_loss``.
    """
    trainer = _trainer(name, tuple(settings.items()), batch.temperature)
    policy, size = trainer.policy, model.config.vocab_size
    policy.transformer.forward = lambda input_ids, attention_mask, **_: SimpleNamespace(
        last_hidden_state=model(input_ids, attention_mask=attention_mask).logits
    )
    policy.lm_head = nn.Linear(size, size, bias=False, device=model.device, dtype=model.dtype).requires_grad_(False)
    nn.init.eye_(policy.lm_head.weight)
    # TRL's head returns 0 behind a response's end.
    old, ref = (torch.where(batch.completion_mask.bool(), logp, 0.0) for logp in (batch.logp_old, batch.logp_ref))
    if name == "RLOO" or _FLAG in settings:
        # The trainer scores what it sampled itself with π_old, and what vLLM sampled with the policy at hand.
        trainer.model = (
            policy if _FLAG in settings else _Scores(logp=old, training=True, is_gradient_checkpointing=False)
        )
        trainer.ref_model = _Scores(logp=ref)
        inputs = _scored(trainer, batch)
    else:
        fields = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")
        inputs = {field: getattr(batch, field) for field in fields}
        inputs |= {"old_per_token_logps": old}
        if trainer.beta:
            inputs["ref_per_token_logps"] = ref
        inputs["num_items_in_batch"] = batch.completion_mask.sum()
    trainer.model = policy
    loss: Tensor = trainer._compute_loss(policy, inputs)
    trainer._metrics["train"].clear()
    return loss


def _scored(trainer: Any, batch: Any) -> dict[str, Any]:
    """Let the trainer score the batch as one group; the responses and what the sampler says of them are given."""
    columns = (
        (batch.prompt_ids, batch.prompt_mask),
        (batch.completion_ids, batch.completion_mask),
        (batch.logp_old, batch.completion_mask),
    )
    prompts, responses, logps = (
        [row[kept].tolist() for row, kept in zip(rows, mask.bool(), strict=True)] for rows, mask in columns
    )
    texts = [""] * len(prompts)
    rloo = isinstance(trainer, import_module("trl").RLOOTrainer)
    given: tuple[Any, ...] = (
        (prompts, responses, texts) if rloo else (prompts, responses, None, texts, logps, {}, None, None)
    )
    trainer._generate = lambda _: given
    trainer.num_generations = len(prompts)
    trainer.reward_funcs = [lambda **_: batch.advantages.tolist()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        inputs: dict[str, Any] = trainer._generate_and_score_completions([{"prompt": ""} for _ in prompts])
    return inputs


class _Scores(SimpleNamespace):
    """A model whose log-probabilities of the batch's tokens are given: the sampler, or the reference."""

    def __call__(self, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(log_probs=self.logp)


@cache
def _trainer(name: str, settings: tuple[tuple[str, Any], ...], temperature: float) -> Any:
    """Build the trainer from a model and a tokenizer made here; nothing is downloaded."""
    trl, transformers, tokenizers, datasets = map(import_module, ("trl", "transformers", "tokenizers", "datasets"))
    logging.getLogger("trl").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    module, trainer_class, config_class = _TRAINERS[name]
    chosen = {key: value for key, value in settings if key in _OF_TRAINER}
    options = {key: value for key, value in settings if key != _FLAG and key not in chosen}
    words = tokenizers.models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<eos>")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), pad_token="<pad>", eos_token="<eos>"
    )
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    config = transformers.GPT2Config(vocab_size=2, n_positions=8, n_embd=2, n_layer=1, n_head=1, **ids)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
        arguments = getattr(trl, config_class)(output_dir=f"{folder}/out", temperature=temperature, **_FIXED, **options)
        prompts = datasets.Dataset.from_dict({"prompt": [""]})
        trainer = getattr(import_module(module), trainer_class)(
            folder, lambda **_: [], arguments, prompts, processing_class=tokenizer, **chosen
        )
    trainer.policy = trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    # Its constructor would start an engine; the flag alone turns the correction on.
    trainer.use_vllm = (_FLAG, True) in settings
    return trainer
