"""What docs/kit/portrait.py draws is where the recipes land, and the landings are the closed forms they should be."""

import pytest
import torch

from docs.kit.portrait import (
    BETA,
    FLOWS,
    METHODS,
    OLD,
    OTHERS,
    REF,
    REWARD,
    ascent,
    landing,
    optimum,
    paths,
    plane,
    rim,
)
from rpg_ref.audit.oracle import DEFINITIONS

pytestmark = pytest.mark.full
REVERSE, FORWARD = optimum("reverse"), optimum("forward")
ON_AND_OFF = pytest.mark.parametrize("old", [None, OLD], ids=["on-policy", "off-policy"])
EVERYWHERE = rim().log()


def away(p, q):
    return (p - q).abs().max().item()


@pytest.mark.parametrize(("row", "best"), [("rkl", REVERSE), ("fkl", FORWARD)])
def test_the_closed_forms_are_where_the_objective_is_flat(row, best):
    """And nowhere on the rim is it higher."""
    logits = best.log().requires_grad_()
    logp = logits.log_softmax(-1)
    J = logp.exp() @ REWARD - BETA * DEFINITIONS[row](logp, REF.log())
    assert torch.autograd.grad(J, logits)[0].abs().max() < 1e-12
    assert bool((rim() @ REWARD - BETA * DEFINITIONS[row](rim().log(), REF.log()) < J).all())


@ON_AND_OFF
@pytest.mark.parametrize(
    ("name", "best"),
    [("rpg-rkl", REVERSE), ("rpg-urkl", REVERSE), ("rpg-fkl", FORWARD), ("rpg-ufkl", FORWARD), ("sg-k3", FORWARD)],
)
def test_a_row_lands_at_its_optimum_wherever_the_samples_come_from(name, best, old):
    assert away(landing(FLOWS[name], old), best) < 1e-6


def test_grpo_lands_at_the_forward_optimum_on_policy():
    assert away(landing(FLOWS["grpo"], None), FORWARD) < 1e-6
    assert away(FORWARD, REVERSE) > 0.2


def test_grpo_lands_elsewhere_off_policy_and_from_anywhere():
    found = landing(FLOWS["grpo"], OLD)
    assert away(found, FORWARD) > 0.4 and away(found, REVERSE) > 0.3
    for start in rim(6):
        assert away(landing(FLOWS["grpo"], OLD, start), found) < 1e-6


def test_for_another_sampler_grpo_lands_in_one_of_two_places():
    sampler = torch.tensor([0.4, 0.2, 0.4], dtype=torch.float64)
    low, high = (landing(FLOWS["grpo"], sampler, start) for start in (REF, OLD))
    assert low[0] < 0.2 and high[0] > 0.5
    for p in (low, high):
        assert min(away(p, REVERSE), away(p, FORWARD), away(p, landing(FLOWS["grpo"], OLD))) > 0.03


def test_grpos_landing_off_policy_is_no_optimum_of_any_f_divergence_from_the_reference():
    """At an optimum β·f′(π/π_ref) = R − λ, f′ rising: whatever β, the better action gains more. Here it gains less."""
    gain = landing(FLOWS["grpo"], OLD) / REF
    assert REWARD[0] > REWARD[1] and gain[0] < gain[1] / 2
    for best in (REVERSE, FORWARD):
        assert bool(((best / REF).diff() < 0).all())


@ON_AND_OFF
@pytest.mark.parametrize(("first", "second"), [("rpg-rkl", "rpg-urkl"), ("rpg-fkl", "rpg-ufkl"), ("rpg-fkl", "sg-k3")])
def test_what_shares_a_panel_shares_its_flow(first, second, old):
    g = ascent(FLOWS[first], EVERYWHERE, old)
    assert away(g, ascent(FLOWS[second], EVERYWHERE, old)) < 1e-13
    assert away(g, ascent(FLOWS[first], EVERYWHERE, None)) < 1e-13


def test_grpos_flow_is_the_forward_kls_on_policy_alone():
    for old, same in ((None, True), (OLD, False)):
        apart = away(ascent(FLOWS["grpo"], EVERYWHERE, old), ascent(FLOWS["rpg-fkl"], EVERYWHERE, old))
        assert apart < 1e-13 if same else apart > 0.1


@ON_AND_OFF
def test_k1_never_sees_the_reference(old):
    """Its flow is the reward's on-policy; off-policy it runs from the sampler as well. Neither has π_ref in it."""
    p = rim()
    reward = p * (REWARD - (p @ REWARD)[:, None])
    from_sampler = 0 if old is None else BETA * (p - old)
    assert away(ascent(FLOWS["k1"], EVERYWHERE, old), reward + from_sampler) < 1e-13
    assert landing(FLOWS["k1"], old) is None


@ON_AND_OFF
@pytest.mark.parametrize("method", [*METHODS, *OTHERS], ids=lambda method: method.recipe)
def test_every_path_drawn_ends_where_its_verdict_says(method, old):
    verdict = method.verdicts[old is not None][0]
    ends = torch.stack([line[-1] for line in paths(FLOWS[method.recipe], old, torch.cat([rim(), REF[None]]))])
    if verdict == "runs to a corner":
        corners = torch.cdist(ends, plane(torch.eye(3, dtype=torch.float64))).min(-1).values
        assert bool((corners < 1e-6).all())
    else:
        kinds = {"lands at the reverse KL’s optimum": REVERSE, "lands at the forward KL’s optimum": FORWARD}
        best = kinds[verdict] if verdict in kinds else landing(FLOWS["grpo"], OLD)
        assert away(ends, plane(best)) < 1e-6
