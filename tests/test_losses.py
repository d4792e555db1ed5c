"""What every loss function has in common: dtypes, one number for all samples, checked arguments, one live input."""

import inspect

import jaxtyping
import pytest
import torch

import rpg_ref
from rpg_ref import RECIPES, DualClip, WeightBound, ppo_loss
from rpg_ref.gates import ClippedGeometricMean

SAMPLES = ("logp", "logp_old", "advantage", "divergence", "beta", "logp_ref", "log_mass_old")
NAMES = (*SAMPLES, "clip", "bound", "entropy", "gate", "alive")
PUBLIC = [getattr(rpg_ref, name) for name in rpg_ref.__all__ if inspect.isfunction(getattr(rpg_ref, name))]
LOSSES = [loss for loss in PUBLIC if list(inspect.signature(loss).parameters)[:3] == list(NAMES[:3])]
LOGP = torch.tensor([[-1.0, -0.5, -2.0], [-0.25, -3.0, -1.5]])
OLD, REF = LOGP - torch.tensor([0.1, -0.2, 0.05]), LOGP + torch.tensor([0.3, -0.1, 0.2])


GIVEN = {
    "logp": LOGP,
    "logp_old": OLD,
    "advantage": 0.75,
    "divergence": "urkl",
    "beta": 0.3,
    "logp_ref": REF,
    "clip": DualClip(low=0.1, high=0.2, dual=3.0),
    "bound": WeightBound("clamp", 0.9, 1.3),
    "log_mass_old": 0.5,
    "entropy": 0.2,
    "gate": ClippedGeometricMean(0.15, 0.15),
    "alive": torch.tensor([[True, True, True], [True, True, False]]),
}


def taken(loss):
    return inspect.signature(loss).parameters.keys()


def of(loss, **changed):
    """The loss of ordinary arguments, or of others in their place; those that it does not take are left out."""
    chosen = GIVEN | changed
    return loss(**{name: chosen[name] for name in taken(loss)})


def test_every_loss_of_a_recipe_is_public():
    assert {recipe.loss for recipe in RECIPES.values()} | {rpg_ref.weight, ppo_loss} <= set(LOSSES)


@pytest.mark.parametrize("loss", LOSSES)
def test_signature(loss):
    """The same names in the same order, so that a recipe can hold any of them."""
    assert list(taken(loss)) == [name for name in NAMES if name in taken(loss)]


OTHER = {
    "logp": LOGP - 0.02,
    "logp_old": OLD - 0.02,
    "advantage": -0.75,
    "divergence": "js",
    "beta": 0.6,
    "logp_ref": REF - 0.02,
    "clip": DualClip(low=0.01, high=0.01, dual=1.01),
    "bound": WeightBound("mask", 0.95, 1.2),
    "log_mass_old": -0.5,
    "entropy": 0.1,
    "gate": ClippedGeometricMean(0.01, 0.01),
    "alive": torch.tensor([[True, False, True], [True, True, True]]),
}


@pytest.mark.parametrize(("loss", "name"), [(loss, name) for loss in LOSSES for name in taken(loss)])
def test_no_loss_takes_an_argument_that_it_ignores(loss, name):
    """Another divergence, reference, strength, … changes the value or the gradient of some sample."""

    def answer(**changed):
        leaf = (changed.pop("logp", LOGP)).clone().requires_grad_()
        if "divergence" in changed and loss is rpg_ref.per_decision_loss:
            changed["divergence"] = "chi2"  # js has no chain rule
        value = of(loss, logp=leaf, **changed)
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

    assert not all(map(torch.equal, answer(), answer(**{name: OTHER[name]})))


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
    for others in (given, torch.float64):
        found = of(loss, logp=LOGP.to(given), logp_old=OLD.to(others), logp_ref=REF.to(others))
        assert found.dtype == returned


@pytest.mark.parametrize("loss", LOSSES)
def test_one_number_stands_for_all_samples(loss):
    each = of(loss, advantage=torch.full_like(LOGP, 0.75).double())
    assert each.shape == LOGP.shape
    assert torch.equal(of(loss, advantage=0.75), each)
    assert torch.equal(of(loss, advantage=torch.tensor(0.75, dtype=torch.float64)), each)


@pytest.mark.parametrize("loss", LOSSES)
def test_only_logp_is_live(loss):
    """Whatever requires a gradient."""
    inputs = [x.clone().requires_grad_() for x in (LOGP, OLD, torch.rand_like(LOGP), REF)]
    out = of(loss, **dict(zip(("logp", "logp_old", "advantage", "logp_ref"), inputs, strict=True)))
    gradients = torch.autograd.grad(out.sum(), inputs, allow_unused=True)
    assert gradients[0] is not None and gradients[1:] == (None, None, None)


BAD = {
    "old": dict(logp_old=OLD[0]),
    "ref": dict(logp_ref=REF[0]),
    "integer ref": dict(logp_ref=REF.long()),
    "beta": dict(beta=-1.0),
    "advantage": dict(advantage=torch.ones(3)),
    "divergence": dict(divergence="kl"),
    "entropy": dict(entropy=-1.0),
}
BAD_CASES = [
    pytest.param(loss, bad, id=f"{loss.__name__}-{case}")
    for loss in LOSSES
    for case, bad in BAD.items()
    if bad.keys() <= taken(loss)
]


@pytest.mark.parametrize(("loss", "bad"), BAD_CASES)
def test_every_argument_is_checked(loss, bad):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=rf"(?<!\w){next(iter(bad))}(?!\w)"):
            of(loss, **bad)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
