"""OpenRLHF: the PPO actor's ``training_step`` over policy losses and KL options, and its KL penalty in the reward."""

from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor

from rpg_ref.audit.targets import Case
from rpg_ref.audit.targets.stand_ins import stand_ins
from rpg_ref.objective import Objective

DISTRIBUTION = "openrlhf"
KNOWN = "0.11.2"
ENVIRONMENT = "openrlhf"

_COEFFICIENT = 0.01  # algo.kl.init_coef in cli/train_ppo_ray.py
_TOKENS = 3.0  # per response; any constant, as _subject says
# The trainer's modules import these, its loss does not use them.
_UNUSED = "PIL aiohttp deepspeed flash_attn peft pylatexenc ray torchdata tqdm transformers vllm".split()

Settings = dict[str, Any]

# fmt: off
_DEFAULTS: Settings = {  # those of cli/train_ppo_ray.py
    "actor.aux_loss_coef": 0, "actor.dual_clip": None, "actor.entropy_coef": None, "actor.eps_clip": 0.2,
    "actor.loss_agg_mode": "token-mean", "actor.policy_loss_type": "ppo",
    "algo.advantage.estimator": "gae", "algo.advantage.gamma": 1, "algo.advantage.is_correction_gating": "ratio",
    "algo.advantage.is_correction_level": "off", "algo.advantage.is_correction_mode": "mask",
    "algo.advantage.is_correction_threshold": (0.5, 5.0), "algo.advantage.lambd": 1,
    "algo.advantage.no_std_norm": False,
    "algo.kl.estimator": "k1", "algo.kl.init_coef": _COEFFICIENT, "algo.kl.unbiased_gradient": False,
    "algo.kl.use_loss": False,
    "reward.clip_range": (-10, 10), "rollout.n_samples_per_prompt": 1, "train.dynamic_batch_enable": False,
}
_POLICY_LOSSES: list[Settings] = [
    {},
    {"actor.loss_agg_mode": "seq-mean-token-mean"},
    {"actor.dual_clip": 3.0},
    {"actor.policy_loss_type": "gspo"},
]
# The trainer's π_old is where π_θ stands; the sampler is the rollout's policy.
_CORRECTIONS: list[Settings] = [
    {"is_correction_level": "token", "is_correction_mode": "mask"},
    {"is_correction_level": "token", "is_correction_mode": "clip"},
    {"is_correction_level": "seq", "is_correction_mode": "mask"},
]
_KL_LOSSES: list[Settings] = [
    *({"estimator": name} for name in ("k1", "k2", "k3")),
    *({"estimator": name, "unbiased_gradient": True} for name in ("k1", "k2", "k3")),
]
# fmt: on


def cases() -> list[Case]:
    """Vary OpenRLHF's settings one at a time: the policy loss, corrections, the KL loss, KL in the reward.

    Returns:
        The cases; the entropy bonus, which needs logits, is left out.

    Raises:
        ModuleNotFoundError: openrlhf is not installed.

    Source: openrlhf 0.11.2, ``trainer/ray/ppo_actor.py`` and ``trainer/ppo_utils/experience_maker.py``.
    """
    penalty = {"reverse_kl": _COEFFICIENT}
    corrections = [{f"algo.advantage.{key}": value for key, value in row.items()} for row in _CORRECTIONS]
    kl_losses = [{"algo.kl.use_loss": True, **{f"algo.kl.{k}": v for k, v in row.items()}} for row in _KL_LOSSES]
    found = [_case({"algo.kl.init_coef": 0} | row) for row in [*_POLICY_LOSSES, *corrections]]
    found += [_case(row, penalty) for row in [*kl_losses, kl_losses[-1] | corrections[-1]]]
    for name in ("k1", "k2", "k3"):
        in_reward = {"algo.kl.estimator": name, "algo.advantage.no_std_norm": True}
        found.append(_case(in_reward, penalty, "sequence"))
    return found


def _case(settings: Settings, penalty: dict[str, float] | None = None, level: str = "token") -> Case:
    # GSPO's paper states its own gradient off-policy.
    gspo = settings.get("actor.policy_loss_type") == "gspo"
    level = "sequence" if gspo else level
    option = " ".join(f"{key}={value}" for key, value in settings.items())
    objective = Objective({"reward": 1.0, **(penalty or {})}, level)
    return Case(option, (objective, None if gspo else objective), _subject(settings), level)


def _subject(settings: Settings) -> Any:
    """Return the loss that OpenRLHF's actor hands to its optimiser under these settings."""
    import_module("openrlhf")
    with stand_ins(_UNUSED):
        actor_module = import_module("openrlhf.trainer.ray.ppo_actor")
        maker = import_module("openrlhf.trainer.ppo_utils.experience_maker").RemoteExperienceMaker
        controllers = import_module("openrlhf.trainer.ppo_utils.kl_controller")
        experience_type = import_module("openrlhf.trainer.ppo_utils.experience").Experience
        compute_approx_kl = import_module("openrlhf.models.utils").compute_approx_kl
    args = _namespace(_DEFAULTS | settings)
    advantage, kl = args.algo.advantage, args.algo.kl
    policy_loss = actor_module.PolicyLoss(
        clip_eps_low=args.actor.eps_clip,
        clip_eps_high=args.actor.eps_clip,
        dual_clip=args.actor.dual_clip,
        token_level_loss=args.actor.loss_agg_mode == "token-mean",
        policy_loss_type=args.actor.policy_loss_type,
        **{key: value for key, value in vars(advantage).items() if key.startswith("is_correction_")},
    )
    experience_maker = SimpleNamespace(
        strategy=SimpleNamespace(args=args),
        advantage_estimator=advantage.estimator,
        kl_ctl=controllers.FixedKLController(kl.init_coef),
        get_advantages_and_returns=partial(maker.get_advantages_and_returns, None),
    )

    def loss_fn(logp: Tensor, logp_old: Tensor, logp_ref: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        mask = mask.bool()
        # The actor's log-probs are zero behind the mask.
        logp, logp_old, logp_ref = (torch.where(mask, x, 0.0) for x in (logp, logp_old, logp_ref))
        experience = experience_type(
            sequences=torch.zeros_like(mask, dtype=torch.long),
            attention_mask=mask.long(),
            action_mask=mask,
            action_log_probs=logp_old if advantage.is_correction_level == "off" else logp.detach(),
            base_action_log_probs=logp_ref,
            rollout_log_probs=logp_old,
            advantages=advantages[:, None] * mask,
        )
        if kl.init_coef > 0 and not kl.use_loss:
            experience.index, experience.rewards = list(range(len(mask))), advantages
            experience.values = torch.zeros_like(logp_old)
            experience.kl = compute_approx_kl(logp_old, logp_ref, kl_estimator=kl.estimator)
            maker.compute_advantages_and_returns(experience_maker, [experience])
        trainer = SimpleNamespace(
            args=args,
            actor=MagicMock(return_value=(logp, None), is_vlm=False),
            actor_loss_fn=policy_loss,
            actor_optim=None,
            actor_scheduler=MagicMock(),
            aux_loss=False,
            ema_model=None,
            replay_buffer=None,
            strategy=MagicMock(ring_attn_group=None),
        )
        # ppo_train passes the optimizer step's totals, which do not depend on what one micro-batch has in it.
        whole = {"dp_size": 1, "batch_num_tokens": _TOKENS * len(mask), "global_batch_size": float(len(mask))}
        actor_module.ActorPPOTrainer.training_step(trainer, experience, kl.init_coef, 0, whole)
        loss: Tensor = trainer.strategy.backward.call_args.args[0]
        return loss

    return loss_fn


def _namespace(settings: Settings) -> SimpleNamespace:
    """``{"a.b": 1}`` as an object whose ``.a.b`` is 1."""
    root = SimpleNamespace()
    for key, value in settings.items():
        *path, name = key.split(".")
        inner = root
        for part in path:
            vars(inner).setdefault(part, SimpleNamespace())
            inner = getattr(inner, part)
        setattr(inner, name, value)
    return root
