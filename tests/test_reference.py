"""When the reference is replaced: by count, by drift, and by whichever comes first."""

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpg_ref import ReferenceRule, ReferenceState


def replacements(rule: ReferenceRule, kls: list[float]) -> list[int]:
    """The steps, from 1, after which the reference is replaced."""
    state, steps = ReferenceState(), []
    for step, kl in enumerate(kls, start=1):
        due, state = rule.step(state, kl)
        steps += [step] * due
    return steps


def by_definition(rule: ReferenceRule, kls: list[float]) -> list[int]:
    """The same from scratch: weights decayᵃᵍᵉ over the steps since the last replacement, divided by their sum."""
    steps, start = [], 0
    for now in range(1, len(kls) + 1):
        recent = kls[start:now]
        weights = [rule.decay ** (len(recent) - 1 - i) for i in range(len(recent))]
        average = math.fsum(w * x for w, x in zip(weights, recent, strict=True)) / math.fsum(weights)
        if len(recent) >= rule.every or average > rule.kappa:
            steps.append(now)
            start = now
    return steps


# Tenths of a quarter and powers of two: no average is within rounding of κ unless it equals κ in both forms.
@given(
    every=st.one_of(st.integers(1, 6), st.just(math.inf)),
    kappa=st.one_of(st.just(math.inf), st.sampled_from([0.1003, 0.5003, 1.0003])),
    decay=st.sampled_from([0.0, 0.5, 0.9]),
    kls=st.lists(st.integers(-2, 20).map(lambda n: n / 8), max_size=30),
)
def test_the_rule_is_its_definition(every, kappa, decay, kls):
    rule = ReferenceRule(every=every, kappa=kappa, decay=decay)
    assert replacements(rule, kls) == by_definition(rule, kls)


def test_every_k_steps():
    assert replacements(ReferenceRule(every=3), [0.0] * 10) == [3, 6, 9]


def test_by_default_it_is_never_replaced():
    assert replacements(ReferenceRule(), [1e9] * 50) == []


def test_the_average_has_no_start_up_bias_and_starts_afresh():
    """Under a constant KL the average is that constant from the first step on."""
    assert replacements(ReferenceRule(kappa=0.5, decay=0.99), [0.51] * 3) == [1, 2, 3]
    assert replacements(ReferenceRule(kappa=0.5, decay=0.99), [0.49] * 300) == []
    assert replacements(ReferenceRule(kappa=0.5, decay=0.5), [0.0, 0.9, 0.0, 0.9, 0.9]) == [2, 4, 5]


def test_a_spike_passes_where_a_drift_does_not():
    assert replacements(ReferenceRule(kappa=0.5), [0.0] * 20 + [2.0] + [0.0] * 20) == []
    assert replacements(ReferenceRule(kappa=0.5), [0.0] * 20 + [0.8] * 20)


def test_exactly_kappa_is_not_beyond_it():
    assert replacements(ReferenceRule(kappa=0.5, decay=0.0), [0.5, 0.5000001]) == [2]


def test_a_saved_state_goes_on_where_it_stopped():
    rule = ReferenceRule(every=7, kappa=0.4, decay=0.5)
    kls = [0.1 * (i % 9) for i in range(40)]
    state, steps = ReferenceState(), []
    for step, kl in enumerate(kls, start=1):
        due, state = rule.step(pickle.loads(pickle.dumps(state)), kl)
        steps += [step] * due
    assert steps == replacements(rule, kls) and len(steps) > 4


@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
def test_a_kl_that_is_not_finite_is_refused(kl):
    with pytest.raises(ValueError, match="token_kl"):
        ReferenceRule(kappa=1.0).step(ReferenceState(), kl)
