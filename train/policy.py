"""A causal language model as hidden states and a head, in one process or sharded over several."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from train import ranks

Found = TypeVar("Found")
LOGIT_KEYS = ("final_logit_softcapping", "logits_soft_cap", "logits_scaling", "logit_scale", "lm_head_multiplier")
"""Keys of transformers' configs that cap logits or multiply them."""
Then = Callable[[Float[Tensor, "B L d"], Float[Tensor, "V d"]], Found]


class Policy(nn.Module):
    """A model whose caller says, at each call, what becomes of its hidden states and its head.

    That happens inside the forward pass, where the head is whole: a sharded model has it nowhere else, and a head that
    is the embedding too is one weight with one gradient.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def wide(self) -> torch.dtype:
        """Of its log-probabilities: float32 at least."""
        return torch.promote_types(next(self.parameters()).dtype, torch.float32)

    def forward(self, then: Then[Found], **inputs: Any) -> Found:
        """Return then(hidden states [B, L, d], head [V, d]) of a model's usual inputs."""
        head = self.model.get_output_embeddings().weight
        hidden = self.model.base_model(**inputs).last_hidden_state
        return then(hidden.to(head.dtype), head)


def check_head(model: PreTrainedModel, path: str) -> None:
    """Refuse a model whose logits are not its head's rows times its hidden states: one with a bias, a cap, a scale.

    Raises:
        ValueError: they are not, a token sees those behind it, or the model makes no such pass at all.
    """
    try:
        causal, product = _passes(model)
    except Exception as error:  # of any model of transformers, in its own code
        kind, why = model.config.model_type, " ".join(str(error).split())
        raise ValueError(
            f"{path}: a model of the kind {kind} makes no forward pass here: {why}; take another model"
        ) from error
    if not causal:
        raise ValueError(
            f"{path} is no causal language model: its tokens see those behind them; take a model that is one"
        )
    if not product:
        raise ValueError(
            f"{path} caps, scales or shifts its logits{_by(model)}, which no loss here does; take another model"
        )


@torch.no_grad()
def _passes(model: PreTrainedModel) -> tuple[bool, bool]:
    """Say whether tokens see none behind them, and whether logits are the head times the hidden states."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(4)[None] % vocabulary
    weight = model.get_output_embeddings().weight
    shorter = model(input_ids=ids[:, :-1], use_cache=False).logits
    causal, product = _close(shorter, model(input_ids=ids, use_cache=False).logits[:, :-1]), True
    # A cap does not show on small logits; a power of two comes off again without a trace.
    for factor in (1.0, 2.0**10, 2.0**-10):
        weight *= factor
        ours = Policy(model)(lambda hidden, head: hidden @ head.T, input_ids=ids, use_cache=False)
        product = product and _close(ours, model(input_ids=ids, use_cache=False).logits)
    return causal, product


def _close(ours: Float[Tensor, "B L V"], theirs: Float[Tensor, "B L V"]) -> bool:
    same = ours.shape == theirs.shape
    return same and torch.allclose(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def _by(model: PreTrainedModel) -> str:
    """Say what in the model's config caps or scales its logits, or that its head has a bias."""
    config = model.config.get_text_config()
    found = {key: getattr(config, key, None) for key in LOGIT_KEYS}
    keys = ", ".join(f"{key} = {value!r}" for key, value in found.items() if value not in (None, 1, 1.0))
    if keys:
        return f" by {keys} in its config.json"
    return " by a bias of its head" if getattr(model.get_output_embeddings(), "bias", None) is not None else ""


def blocks(policy: Policy) -> list[nn.Module]:
    """Return the layers of a transformer."""
    return [layer for layer in policy.modules() if isinstance(layer, GradientCheckpointingLayer)]


def shard(policy: Policy, precision: str) -> None:
    """Divide the weights over ranks, block by block; gradients are summed over ranks, not averaged.

    Args:
        policy: float32 weights, which stay float32 where they are kept and moved.
        precision: float32, or bfloat16 for a rounded copy that passes are made with; gradients are summed in float32.
    """
    if ranks.size() == 1 and precision == "float32":
        return
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    rounding = half if precision == "bfloat16" else MixedPrecisionPolicy()
    mesh = init_device_mesh(policy.device.type, (ranks.size(),))
    for module in (*blocks(policy), policy):
        fully_shard(module, mesh=mesh, mp_policy=rounding)
    for part in _shards(policy):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def recompute(policy: Policy) -> None:
    """Keep of each block only what goes in, and compute it again on the way back."""
    for block in blocks(policy):
        block.forward = _twice(block.forward)


def _twice(forward: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **named)
        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **named)

    return wrapped


@contextmanager
def gathered(policy: nn.Module) -> Iterator[None]:
    """Keep all weights whole on every rank, so that each may make passes at its own pace."""
    parts = _shards(policy)
    with torch.no_grad():
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
    yield
    for part in parts:
        part.set_reshard_after_forward(part is not parts[0], recurse=False)
        part.reshard()


def _shards(policy: nn.Module) -> list[FSDPModule]:
    return [module for module in policy.modules() if isinstance(module, FSDPModule)]


def parameters(policy: Policy, *, tied: bool = False) -> dict[str, nn.Parameter]:
    """Return the model's own parameters by name: each rank's shard of them, where they are sharded.

    Args:
        policy: the policy.
        tied: whether those that are one weight come under each of its names; else under the first.
    """
    for part in _shards(policy):
        part.reshard()  # the last pass may have left some whole, which do not outlive the next
    return dict(policy.model.named_parameters(remove_duplicate=not tied))


def whole(x: Tensor) -> Tensor:
    """Return a tensor as it would be in one process; every rank must ask. One that is not sharded comes as it is."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def placed(x: Tensor, like: Tensor) -> Tensor:
    """Return the first rank's tensor, divided as ``like`` is; every rank must ask, with one of that shape and dtype."""
    if not ranks.is_first():
        x = torch.empty(x.shape, dtype=x.dtype)
    if isinstance(like, DTensor):
        return distribute_tensor(x.to(like.device), like.device_mesh, like.placements)
    return ranks.first(x)
