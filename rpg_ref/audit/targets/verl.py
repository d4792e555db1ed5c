"""verl: its actor's ``ppo_loss`` over policy losses, KL options and aggregations, and its KL penalty in the reward."""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from rpg_ref.audit.targets import Case
from rpg_ref.objective import Objective

DISTRIBUTION = "verl"
KNOWN = "0.9.1"
ENVIRONMENT = "verl"

_COEFFICIENT = 0.001  # kl_loss_coef and kl_ctrl.kl_coef in verl's actor.yaml and ppo_trainer.yaml
_TOKENS = 3.0  # per response; any constant, as subject says
CORRECTION = "algorithm.rollout_correction."

Settings = dict[str, Any]

# fmt: off
_KL_LOSSES = ("low_var_kl", "mse", "kl", "abs", "low_var_kl+", "kl+", "abs+")
_AGGREGATIONS = ("token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
_SEQUENCE_LEVEL = {"gspo", "geo_mean"}
# Off-policy these follow a gradient of their own, and their papers say so.
_OWN_SURROGATE = _SEQUENCE_LEVEL | {"sapo", "gpg", "dro", "kl_cov"}
# This one leaves tokens out, on-policy as well.
_SELECTIVE = {"clip_cov"}

# Policy losses with settings of their own.
_DEMANDS: dict[str, Settings] = {"dro": {"policy_loss.dro_beta": 0.1}}

# Three policies: the sampler is the rollout's, the trainer's π_old is where π_θ stands. Bypassed, π_old is the sampler.
_CORRECTIONS: list[Settings] = [
    {"rollout_is": "token"},
    {"rollout_is": "sequence"},
    {"bypass_mode": True, "rollout_is": None, "loss_type": "ppo_clip"},
    {"bypass_mode": True, "rollout_is": None, "loss_type": "reinforce"},
    {"bypass_mode": True, "rollout_is": "token", "loss_type": "reinforce"},
    {"bypass_mode": True, "rollout_is": "sequence", "loss_type": "reinforce"},
]
# fmt: on


def cases() -> list[Case]:
    """Vary verl's settings one at a time: the KL loss, its aggregation, the policy loss, corrections, KL in the reward.

    Returns:
        The cases; the entropy bonus, which needs logits, is left out.

    Raises:
        ModuleNotFoundError: verl, or something that it imports, is not installed.

    Source: verl 0.9.1, ``workers/utils/losses.py`` and ``trainer/ppo/ray_trainer.py``.
    """
    kl, penalty = {"use_kl_loss": True}, {"reverse_kl": _COEFFICIENT}
    in_reward = {"algorithm.use_kl_in_reward": True, "algorithm.adv_estimator": "remax"}
    found = [_case({})]
    found += [_case(kl | {"kl_loss_type": name}, penalty) for name in _KL_LOSSES]
    found += [_case(kl | {"loss_agg_mode": mode}, penalty) for mode in _AGGREGATIONS]
    for name in import_module("verl.trainer.ppo.core_algos").POLICY_LOSS_REGISTRY:
        if name not in ("vanilla", "bypass_mode"):  # the default; a correction
            settings = {"policy_loss.loss_mode": name, **_DEMANDS.get(name, {})}
            level = _level(name in _SEQUENCE_LEVEL)
            stated = (name not in _SELECTIVE, name not in _SELECTIVE | _OWN_SURROGATE)
            found.append(_case(settings, level=level, stated=stated))
    for row in _CORRECTIONS:
        settings = {CORRECTION + key: value for key, value in row.items()}
        unweighted = row["rollout_is"] is None and row["loss_type"] == "reinforce"
        found.append(_case(settings, level=_level(row["rollout_is"] == "sequence"), stated=(True, not unweighted)))
    found.append(_case({CORRECTION + "rollout_is": "token", **kl, "kl_loss_type": "low_var_kl+"}, penalty))
    for name in ("kl", "mse", "abs", "low_var_kl"):
        found.append(_case(in_reward | {"algorithm.kl_penalty": name}, penalty, "sequence"))
    return [*found, _case(in_reward | settings, penalty, "sequence")]


def _level(sequence: bool) -> str:
    return "sequence" if sequence else "token"


def _case(
    settings: Settings,
    penalty: dict[str, float] | None = None,
    level: str = "token",
    *,
    stated: tuple[bool, bool] = (True, True),
) -> Case:
    option = " ".join(f"{key}={value}" for key, value in settings.items()) or "defaults"
    objective = Objective({"reward": 1.0, **(penalty or {})}, level)
    on, off = (objective if says else None for says in stated)
    return Case(option, (on, off), subject(settings), level)


def _under(settings: Settings, prefix: str) -> Settings:
    return {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}


def subject(settings: Settings) -> Any:
    """Return the loss that verl's actor computes under these settings."""
    config = import_module("verl.workers.config")
    losses = import_module("verl.workers.utils.losses")
    get_tensordict = import_module("verl.utils.tensordict_utils").get_tensordict

    algorithm, policy_loss = _under(settings, "algorithm."), _under(settings, "policy_loss.")
    correction = import_module("verl.trainer.config").RolloutCorrectionConfig(**_under(settings, CORRECTION))
    three_policies = bool(_under(settings, CORRECTION)) and not correction.bypass_mode
    if correction.bypass_mode:
        policy_loss |= {"loss_mode": "bypass_mode", "rollout_correction": correction}
    actor = config.ActorConfig(
        strategy="fsdp",
        rollout_n=8,
        ppo_micro_batch_size_per_gpu=1,
        policy_loss=config.PolicyLossConfig(**policy_loss),
        **{key: value for key, value in settings.items() if "." not in key},
    )

    def loss_fn(logp: Tensor, logp_old: Tensor, logp_ref: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        mask = mask.bool()
        last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
        fields = {
            "old_log_probs": logp.detach() if three_policies else logp_old,
            "rollout_log_probs": logp_old,
            "ref_log_prob": logp_ref,
            "advantages": advantages[:, None].expand(mask.shape),
            "token_level_scores": last * advantages[:, None],
        }
        # verl pads what its policies computed with zeros.
        fields = {name: torch.where(mask, x, 0.0) for name, x in fields.items()} | {"response_mask": mask}
        if algorithm.get("use_kl_in_reward"):
            fields |= _advantages_of_rewards(fields, algorithm)
        if three_policies:
            fields |= _weights(fields, correction)
        # The rows as the engine holds them: no padding, a prompt of one token, an output for every token.
        ends = mask.sum(1).cumsum(0)
        offsets = torch.cat([torch.zeros_like(ends[:1]), ends])
        rows = {name: _jagged(x[mask], offsets) for name, x in (fields | {"responses": mask.long()}).items()}
        prompts = _jagged(torch.zeros(len(mask), dtype=torch.long), torch.arange(len(mask) + 1))
        # verl's engine passes the mini-batch's totals, which do not depend on what one micro-batch has in it.
        whole = {"dp_size": 1, "batch_num_tokens": _TOKENS * len(mask), "global_batch_size": len(mask)}
        data = get_tensordict(rows | {"prompts": prompts}, whole)
        outputs = torch.cat([logp, torch.zeros_like(logp[:, :1])], 1)
        taken = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        loss: Tensor = losses.ppo_loss(actor, {"log_probs": outputs[taken]}, data)[0]
        return loss

    return _reproducible(loss_fn)


def _jagged(values: Tensor, offsets: Tensor) -> Tensor:
    # Without the longest row's length, padding goes up to the sum of all lengths.
    return torch.nested.nested_tensor_from_jagged(values, offsets, max_seqlen=int(offsets.diff().max()))


def _reproducible(loss_fn: Any) -> Any:
    """clip_cov drops tokens at random."""

    def seeded(*tensors: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            value: Tensor = loss_fn(*tensors)
        return value

    return seeded


def _advantages_of_rewards(fields: dict[str, Tensor], algorithm: Settings) -> dict[str, Tensor]:
    """The trainer's steps before the actor's: scores minus the penalty, then the advantages, with no baseline."""
    trainer = import_module("verl.trainer.ppo.ray_trainer")
    controller = import_module("verl.trainer.ppo.core_algos").FixedKLController(kl_coef=_COEFFICIENT)
    batch = _protocol(fields | {"reward_baselines": torch.zeros_like(fields["advantages"][:, 0])})
    batch, _ = trainer.apply_kl_penalty(batch, controller, algorithm.get("kl_penalty", "kl"))
    return {"advantages": trainer.compute_advantage(batch, algorithm["adv_estimator"]).batch["advantages"]}


def _weights(fields: dict[str, Tensor], correction: Any) -> dict[str, Tensor]:
    helper = import_module("verl.trainer.ppo.rollout_corr_helper")
    batch, _ = helper.compute_rollout_correction_and_add_to_batch(_protocol(fields), correction)
    return {name: batch.batch[name] for name in ("response_mask", "rollout_is_weights")}


def _protocol(fields: dict[str, Tensor]) -> Any:
    return import_module("verl.protocol").DataProto.from_dict(fields)
