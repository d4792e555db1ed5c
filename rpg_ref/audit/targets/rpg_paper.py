"""The paper's own code, from a user's checkout: its PPO loss with each KL loss, and its REINFORCE-style losses."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rpg_ref.audit.targets import Case
from rpg_ref.audit.targets.stand_ins import stand_ins
from rpg_ref.objective import Objective

DISTRIBUTION = None
KNOWN = "ec8e30b"

_FILE = "verl/trainer/ppo/core_algos.py"
_COEFFICIENT = 1e-4  # of the scripts in recipe/rpg, as are the clip's bounds
_LOW, _HIGH, _C = 0.2, 0.28, 10.0

# fmt: off
_FORWARD, _REVERSE, _JS = ({name: _COEFFICIENT} for name in ("forward_kl_old", "reverse_kl_old", "js"))
_DIVERGENCES = {"fkl": _FORWARD, "rkl": _REVERSE, "ufkl": _FORWARD, "urkl": _REVERSE}
# The paper's divergences are against π_old: use_iterative_ref_model=True makes it the reference.
_AGAINST_SAMPLER = (
    {f"rpg_{name}": penalty for name, penalty in _DIVERGENCES.items()}
    | {"rpg_js": _JS, "rpg_ujs": _JS}
    | {f"rpg_rf_{name}_clip_ppo": penalty for name, penalty in _DIVERGENCES.items()}
)
# fmt: on


def cases(checkout: Path) -> list[Case]:
    """Audit the actor's loss under each KL loss, as the recipes run it, and the REINFORCE losses, which no recipe runs.

    Args:
        checkout: the repository's root, with ``verl/trainer/ppo/core_algos.py`` in it.

    Returns:
        The cases.

    Raises:
        FileNotFoundError: that file is not there.

    Source: arXiv 2505.17508, the authors' repository at ec8e30b; ``verl/workers/actor/dp_actor.py`` for the actor.
    """
    algos = _core_algos(checkout)
    found = []
    for name, penalty in _DIVERGENCES.items():
        kl_type = f"rpg_rf_{name}_clip_ppo"
        found.append(_case(f"use_kl_loss=False kl_loss_type={kl_type}", penalty, _actor(algos, None)))
    for kl_type, penalty in _AGAINST_SAMPLER.items():
        option = f"use_kl_loss=True use_iterative_ref_model=True kl_loss_type={kl_type}"
        found.append(_case(option, penalty, _actor(algos, kl_type, ref_is_old=True)))
    for kl_type in ("low_var_kl", "mse", "kl"):
        subject = _actor(algos, kl_type)
        found.append(_case(f"use_kl_loss=True kl_loss_type={kl_type}", {"reverse_kl": _COEFFICIENT}, subject))
    for suffix in ("", "_clip_ppo", "_clip_ppo_v3"):
        for name, penalty in _DIVERGENCES.items():
            kl_type = f"rpg_rf_{name}{suffix}"
            found.append(_case(f"compute_policy_loss_reinforce kl_type={kl_type}", penalty, _reinforce(algos, kl_type)))
    return found


def _case(option: str, penalty: dict[str, float], subject: Callable[..., Tensor]) -> Case:
    objective = Objective({"reward": 1.0, **penalty})
    return Case(option, (objective, objective), subject)


def _actor(algos: Any, kl_type: str | None, *, ref_is_old: bool = False) -> Callable[..., Tensor]:
    """The loss of the actor's update: PPO's and, with a type, the KL loss."""

    def loss_fn(logp: Tensor, logp_old: Tensor, logp_ref: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        p, q, r, A, mask = _as_in_training(logp, logp_old, logp_old if ref_is_old else logp_ref, advantages, mask)
        loss: Tensor = algos.compute_policy_loss(
            q, p, A, mask, cliprange_low=_LOW, cliprange_high=_HIGH, clip_ratio_c=_C, loss_agg_mode="token-mean"
        )[0]
        if kl_type is None:
            return loss
        penalty: Tensor = algos.agg_loss(algos.kl_penalty(p, r, kl_type), mask, "token-mean")
        return loss + _COEFFICIENT * penalty

    return loss_fn


def _reinforce(algos: Any, kl_type: str) -> Callable[..., Tensor]:
    def loss_fn(logp: Tensor, logp_old: Tensor, logp_ref: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        p, q, _, A, mask = _as_in_training(logp, logp_old, logp_ref, advantages, mask)
        bounds = {"clip_ratio_low": _LOW, "clip_ratio_high": _HIGH, "clip_ratio_c": _C}
        loss: Tensor = algos.compute_policy_loss_reinforce(
            q, p, A, mask, kl_type=kl_type, kl_loss_coef=_COEFFICIENT, **bounds
        )[0]
        return loss

    return loss_fn


def _as_in_training(p: Tensor, q: Tensor, r: Tensor, A: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Zeros behind the mask, which is the attention mask, and an advantage for every token."""
    p, q, r, A = (torch.where(mask.bool(), x, 0.0) for x in (p, q, r, A[:, None]))
    return p, q, r, A, mask.long()


def _core_algos(checkout: Path) -> Any:
    if not (checkout / _FILE).is_file():
        raise FileNotFoundError(f"no {_FILE} in {checkout}; give the root of a checkout of the paper's repository")
    with _packages(checkout), stand_ins(["tensordict", "transformers"]):
        return import_module("verl.trainer.ppo.core_algos")


@contextmanager
def _packages(checkout: Path) -> Iterator[None]:
    """Import ``verl`` from the checkout without its ``__init__`` files, which demand ray, and forget it afterwards."""
    installed = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "verl"}
    for name in ("verl", "verl.utils", "verl.trainer", "verl.trainer.ppo"):
        sys.modules[name] = package = ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "verl"]:
            del sys.modules[name]
        sys.modules.update(installed)
