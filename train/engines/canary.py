"""The canary: proof, after every push, that an engine computes with the weights it was given, all of them.

A policy moves so little in a step that stale weights look like fresh ones. So zeros are pushed first: of a model whose
head is zero every token has the log-probability −log V, to the last digit. Then the weights are pushed; none of the
engine's may still be zero, and it must say what the trainer says. A push that does nothing fails the first look, or the
second; so does one that leaves out a tensor, or one that goes to a copy that the engine does not compute with, since
the engine starts with weights of its own making. Only a tensor that took an earlier push and neither of these two would
pass as long as it has moved little; on a GPU there is none, for weights are freed while the engine sleeps.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from train import ranks
from train.batch import Ids, logprobs, pack, padded
from train.engines.engine import Said, StaleWeights
from train.policy import Policy, parameters, whole

ROOM = 1e-3
"""How far from −log V an engine's log-probabilities may be while its weights are zero: they are float32."""
FAR = 5.0
"""An engine is refused this many times beyond the gap that a step warns of: in bfloat16 0.15 nats.

SmolLM2-135M in bfloat16 is 0.055 off when all is right, and 0.2 or more with any one tensor of it zero.
"""


def pushed(policy: Policy, *, blank: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield a policy's weights, or zeros in their shapes; every rank must take them all.

    Args:
        policy: sharded or not.
        blank: whether zeros are meant.

    Yields:
        Each name of the model's with its tensor, whole; a tied weight under each of its names.
    """
    for name, weight in parameters(policy, tied=True).items():
        yield name, torch.zeros(weight.shape, device=weight.device) if blank else whole(weight.detach())


def check_blank(said: Sequence[Said], policy: Policy) -> None:
    """Hold what an engine said after zeros were pushed to −log V.

    Raises:
        StaleWeights: it did not compute with zeros.
    """
    uniform = -math.log(policy.model.get_output_embeddings().weight.shape[0])
    far = [abs(logp - uniform) for _, logps in said for logp in logps if not abs(logp - uniform) <= ROOM]
    if far:
        raise StaleWeights(
            f"a push did not reach the sampler: zeros were pushed, but a log-probability is {far[0]:.3g} nats from "
            "that of a zero model; mend the engine's push, or take engine.kind = transformers"
        )


def check_pushed(
    said: Sequence[Said],
    prompts: Sequence[Ids],
    policy: Policy,
    *,
    max_gap: float,
    budget: int,
    temperature: float,
    pad: int,
) -> None:
    """Hold what each rank's engine said after the weights were pushed to what the trainer says; every rank must ask.

    Args:
        said: this rank's engine's responses.
        prompts: what to.
        policy: what was pushed.
        max_gap: as EngineConfig.max_gap.
        budget: as ``logprobs``.
        temperature: of the sampler.
        pad: id of padding.

    Raises:
        StaleWeights: an engine is further off than FAR × max_gap.
    """
    of_all = [one for of_rank in ranks.gather(list(said)) for one in of_rank]
    batch = pack([*prompts] * ranks.size(), [ids for ids, _ in of_all], pad)
    trainer = logprobs(policy, batch, budget, temperature)
    sampler = padded([logp for _, logp in of_all], batch.mask.shape[1])
    gaps = ((trainer - sampler).abs() * batch.mask).reshape(ranks.size(), -1).sum(1)
    worst = float((gaps / batch.mask.reshape(ranks.size(), -1).sum(1)).max())
    if not worst <= FAR * max_gap:
        raise StaleWeights(
            f"the sampler does not have the weights it was given: its log-probabilities are {worst:.3g} nats a token "
            f"from the trainer's, more than {FAR:g} x engine.max_gap = {FAR * max_gap:g}; mend the engine's push, or "
            "raise engine.max_gap if they are far apart by rounding"
        )


def still_zero(model: nn.Module) -> list[str]:
    """Name an engine's weights that are all zero; biases may be, and what a kernel has packed away is not there."""
    weights = ((name, x) for name, x in model.named_parameters() if name.endswith("weight") and x.numel())
    return [name for name, x in weights if not bool(x.any())]
