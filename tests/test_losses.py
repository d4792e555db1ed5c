"""What every loss function has in common: dtypes, one number for all samples, checked arguments, one live input."""

import inspect

import jaxtyping
import pytest
import torch

import rpg_ref
from rpg_ref import RECIPES, DualClip, WeightBound, ppo_loss

LOSSES = sorted({recipe.loss for recipe in RECIPES.values()} | {rpg_ref.weight}, key=lambda loss: loss.__name__)
BOUNDS = {"clip": DualClip(low=0.1, high=0.2, dual=3.0), "bound": WeightBound("clamp", 0.9, 1.3)}
LOGP = torch.tensor([[-1.0, -0.5, -2.0], [-0.25, -3.0, -1.5]])
OLD, REF = LOGP - torch.tensor([0.1, -0.2, 0.05]), LOGP + torch.tensor([0.3, -0.1, 0.2])


def of(loss, logp=LOGP, old=OLD, advantage=0.75, beta=0.3, ref=REF):
    names = inspect.signature(loss).parameters
    bounds = {name: bound for name, bound in BOUNDS.items() if name in names}
    return loss(logp, old, advantage, "urkl", beta, logp_ref=ref, **bounds)


@pytest.mark.parametrize("loss", LOSSES)
def test_signature(loss):
    """One shape for all, so that a recipe can hold any of them."""
    names = list(inspect.signature(loss).parameters)
    assert names[:6] == ["logp", "logp_old", "advantage", "divergence", "beta", "logp_ref"]
    assert set(names[6:]) <= {"clip", "bound", "log_mass_old"}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("given", "returned"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_a_loss_has_the_dtype_of_logp_or_float32(loss, given, returned):
    assert of(loss, LOGP.to(given), OLD.to(given), ref=REF.to(given)).dtype == returned
    assert of(loss, LOGP.to(given), OLD.double(), ref=REF.double()).dtype == returned


@pytest.mark.parametrize("loss", LOSSES)
def test_one_number_stands_for_all_samples(loss):
    each = of(loss, advantage=torch.full_like(LOGP, 0.75).double())
    assert each.shape == LOGP.shape
    assert torch.equal(of(loss, advantage=0.75), each)
    assert torch.equal(of(loss, advantage=torch.tensor(0.75, dtype=torch.float64)), each)


def test_ppo_alone_takes_one_number_too():
    assert torch.equal(ppo_loss(LOGP, OLD, 0.75), ppo_loss(LOGP, OLD, torch.full_like(LOGP, 0.75).double()))


@pytest.mark.parametrize("loss", LOSSES)
def test_only_logp_is_live(loss):
    """Whatever requires a gradient."""
    inputs = [x.clone().requires_grad_() for x in (LOGP, OLD, torch.rand_like(LOGP), REF)]
    out = of(loss, inputs[0], inputs[1], inputs[2], ref=inputs[3])
    gradients = torch.autograd.grad(out.sum(), inputs, allow_unused=True)
    assert gradients[0] is not None and gradients[1:] == (None, None, None)


BAD = {
    "old": (dict(old=OLD[0]), "logp_old"),
    "ref": (dict(ref=REF[0]), "logp_ref"),
    "integer ref": (dict(ref=REF.long()), "logp_ref"),
    "beta": (dict(beta=-1.0), "beta"),
    "advantage": (dict(advantage=torch.ones(3)), "advantage"),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", BAD)
def test_every_argument_is_checked_also_where_it_plays_no_part(loss, case):
    choices, name = BAD[case]
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=rf"(?<!\w){name}(?!\w)"):
            of(loss, **choices)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
