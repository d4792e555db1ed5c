"""The rule of an importance weight, named from the gradient alone: losses written here, of rules known by hand."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rpg_ref import RECIPES, DualClip, WeightBound
from rpg_ref.audit import assert_gradient, draw_curves, identify, weight_curves
from rpg_ref.audit.curves import NO_KNOWN_RULE
from rpg_ref.cli import main

INF = math.inf


def mean(x, mask):
    return (x * mask).sum() / mask.sum()


def per_response(x, mask):
    return ((x * mask).sum(1) / mask.sum(1)).mean()


def total(x, mask):
    return (x * mask).sum() / 64


def log_mean(logp, old, mask):
    return ((logp - old) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)


def by_sign(A, up, down):
    """One number for good responses and one for bad ones, in the advantages' precision."""
    return torch.where(A > 0, A * 0 + up, A * 0 + down)


# One rule, several spellings. Each returns a loss of (logp, old, ref, advantages, mask).


def no_clip(logp, old, ref, A, mask):
    return -mean((logp - old).exp() * A[:, None], mask)


def no_clip_detached(logp, old, ref, A, mask):
    return -per_response((logp - old).exp().detach() * logp * A[:, None], mask)


def no_weight(logp, old, ref, A, mask):
    return -total(logp * A[:, None], mask)


def no_weight_with_a_baseline_inside(logp, old, ref, A, mask):
    centred = (A - A.mean()) / (A.std() + 1e-6)
    return -mean(logp * centred[:, None], mask)


def min_of_products(low, high, reduce=mean):
    def loss(logp, old, ref, A, mask):
        w = (logp - old).exp()
        return -reduce(torch.minimum(w * A[:, None], w.clamp(1 - low, 1 + high) * A[:, None]), mask)

    return loss


def max_of_losses(low, high):
    def loss(logp, old, ref, A, mask):
        r, a = torch.exp(logp - old), A.unsqueeze(1)
        return total(torch.max(-a * r, -a * torch.clip(r, 1 - low, 1 + high)), mask)

    return loss


def where_mask(low, high):
    """REINFORCE with a detached weight, zero where the token has gone where it was sent."""

    def loss(logp, old, ref, A, mask):
        a = A[:, None].expand_as(logp)
        w = (logp - old).exp().detach()
        keep = torch.where(a > 0, w < 1 + high, w > 1 - low)
        return -per_response(w * keep * a * logp, mask)

    return loss


def row_by_row(low, high):
    def loss(logp, old, ref, A, mask):
        rows = []
        for lp, lo, a, m in zip(logp, old, A, mask, strict=True):
            log_w = lp - lo
            clipped = log_w.clamp(max=math.log(1 + high)) if a > 0 else log_w.clamp(min=math.log(1 - low))
            rows.append(-(clipped.exp() * a * m).sum())
        return torch.stack(rows).sum() / mask.sum()

    return loss


def dual(low, high, c):
    def loss(logp, old, ref, A, mask):
        w, a = (logp - old).exp(), A[:, None]
        outer = torch.max(-w * a, -w.clamp(1 - low, 1 + high) * a)
        return mean(torch.where(a < 0, torch.min(outer, -c * a), outer), mask)

    return loss


def dual_by_where(low, high, c):
    def loss(logp, old, ref, A, mask):
        w, a = (logp - old).exp(), A[:, None].expand_as(logp)
        dead = ((a > 0) & (w >= 1 + high)) | ((a < 0) & ((w <= 1 - low) | (w >= c)))
        return -total(torch.where(dead, w.detach(), w) * a, mask)

    return loss


def exchanged(low, high):
    def loss(logp, old, ref, A, mask):
        w, a = (logp - old).exp(), A[:, None]
        return -mean(torch.maximum(w * a, w.clamp(1 - low, 1 + high) * a), mask)

    return loss


def capped(low, high, reduce=mean):
    """A cap with gradient: SG(clip(w))·log π."""

    def loss(logp, old, ref, A, mask):
        return -reduce((logp - old).exp().clamp(low, high).detach() * A[:, None] * logp, mask)

    return loss


def capped_in_log_space(high):
    def loss(logp, old, ref, A, mask):
        weight = torch.exp((logp - old).detach().clamp(max=math.log(high)))
        return -per_response(weight * A[:, None] * logp, mask)

    return loss


def hard_mask(low, high):
    def loss(logp, old, ref, A, mask):
        w = (logp - old).exp()
        return -mean(w * ((w >= low) & (w <= high)) * A[:, None], mask)

    return loss


def live_clamp(low, high):
    """clamp(w)·A without a minimum: no gradient beyond either bound, whatever the sign."""

    def loss(logp, old, ref, A, mask):
        return -total((logp - old).exp().clamp(low, high) * A[:, None], mask)

    return loss


def mask_by_count(low, high):
    """Masked tokens leave the denominator too."""

    def loss(logp, old, ref, A, mask):
        w = (logp - old).exp()
        keep = mask & (w.detach() >= low) & (w.detach() <= high)
        return -(w * A[:, None])[keep].sum() / keep.sum()

    return loss


def sigmoid_gate(up, down, reduce=mean):
    def loss(logp, old, ref, A, mask):
        w, a = (logp - old).exp(), A[:, None]
        tau = by_sign(a, up, down)
        return -reduce(torch.sigmoid(tau * (w - 1)) * 4 / tau * a, mask)

    return loss


def sigmoid_gate_detached(up, down):
    def loss(logp, old, ref, A, mask):
        w, a = (logp - old).exp().detach(), A[:, None]
        s = 1 / (1 + torch.exp(-by_sign(a, up, down) * (w - 1)))
        return -total(4 * s * (1 - s) * w * a * logp, mask)

    return loss


def quadratic_gate(epsilon):
    def loss(logp, old, ref, A, mask):
        w, a = (logp - old).exp(), A[:, None]
        return -mean(w * a - a.abs() / (2 * epsilon) * (w - 1) ** 2, mask)

    return loss


def total_variation(delta, cap=INF):
    def loss(logp, old, ref, A, mask):
        a, moved = A[:, None], (logp.exp() - old.exp()).detach()
        keep = torch.where(a > 0, moved <= delta, moved >= -delta)
        return -mean((logp - old).exp().clamp(max=cap).detach() * logp * a * keep, mask)

    return loss


def total_variation_live(delta):
    def loss(logp, old, ref, A, mask):
        a, gap = A[:, None], logp.exp() - old.exp()
        away = (gap.abs() > delta) & (gap.sign() == a.sign())
        return -per_response((logp - old).exp() * a * (~away), mask)

    return loss


def coin_kl(delta, forward=True):
    def loss(logp, old, ref, A, mask):
        a, p, q = A[:, None], logp.exp().detach(), old.exp()
        first, second = (q, p) if forward else (p, q)
        kl = first * (first / second).log() + (1 - first) * ((1 - first) / (1 - second)).log()
        away = (kl > delta) & torch.where(a > 0, p > q, p < q)
        return -mean((logp - old).exp() * a * (~away), mask)

    return loss


def sequence_clip(low, high, of=log_mean, reduce=per_response):
    def loss(logp, old, ref, A, mask):
        w, a = of(logp, old, mask).exp(), A[:, None]
        return -reduce(torch.minimum(w * a, w.clamp(1 - low, 1 + high) * a).expand_as(logp), mask)

    return loss


def log_sum(logp, old, mask):
    return ((logp - old) * mask).sum(1, keepdim=True)


def gspo_token(low, high):
    """The geometric mean detached, and each token's own gradient through π/SG(π)."""

    def loss(logp, old, ref, A, mask):
        s, a = log_mean(logp, old, mask).detach().exp(), A[:, None]
        w = s * (logp - logp.detach()).exp()
        return -per_response(torch.min(w * a, w.clamp(1 - low, 1 + high) * a), mask)

    return loss


def sequence_cap(high, of=log_sum):
    def loss(logp, old, ref, A, mask):
        return -mean(of(logp, old, mask).detach().exp().clamp(max=high) * A[:, None] * logp, mask)

    return loss


def response_mask(low, high, of):
    """Masked by the response's ratio, weighted by the token's."""

    def loss(logp, old, ref, A, mask):
        w = of(logp, old, mask).detach().exp()
        return -mean((logp - old).exp() * A[:, None] * ((w >= low) & (w <= high)), mask)

    return loss


def off_policy_sequence_mask(delta, low, high):
    def loss(logp, old, ref, A, mask):
        w, a = (logp - old).exp(), A[:, None]
        keep = (a >= 0) | (-log_mean(logp, old, mask).detach() <= delta)
        return -per_response(torch.min(w * a, w.clamp(1 - low, 1 + high) * a) * keep, mask)

    return loss


def clipped_geometric_mean(epsilon):
    def loss(logp, old, ref, A, mask):
        a, x = A[:, None], logp - old
        x = torch.where(
            a > 0, torch.minimum(x, x.clamp(-epsilon, epsilon)), torch.maximum(x, x.clamp(-epsilon, epsilon))
        )
        return -(((x * mask).sum(1) / mask.sum(1)).exp() * A).mean()

    return loss


def gamma(up, down, of=log_sum):
    def loss(logp, old, ref, A, mask):
        a, x = A[:, None], of(logp, old, mask).detach()
        k, rate = (by_sign(a, *pair) for pair in zip(up, down, strict=True))
        return -mean((k * x + rate * (1 - x.exp())).exp() * a * logp, mask)

    return loss


def second_moment(budget):
    def loss(logp, old, ref, A, mask):
        x = (logp - old).detach().flatten()
        keep = torch.ones_like(x)
        for i in x.square().argsort(descending=True):
            if (x.square() * keep).sum() / keep.sum() < budget:
                break
            keep[i] = 0
        return -mean((logp - old).exp() * A[:, None] * keep.view_as(logp), mask)

    return loss


def second_moment_sorted(budget):
    def loss(logp, old, ref, A, mask):
        square = (logp - old).detach()[mask] ** 2
        value, place = square.sort()
        running = value.cumsum(0) / (1 + torch.arange(len(value)))
        keep = torch.zeros_like(square)
        keep[place[: int((running < budget).sum())]] = 1
        return -((logp - old).exp() * A[:, None])[mask].mul(keep).sum() / keep.sum()

    return loss


def normalised_in_groups(logp, old, ref, A, mask):
    """GRPO's advantages made inside, and an entropy term beside."""
    groups = A.view(-1, 8)
    a = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).reshape(-1, 1)
    w = (logp - old).exp()
    return -per_response(torch.min(w * a, w.clamp(0.8, 1.28) * a), mask) + 0.01 * mean(logp.exp() * logp, mask)


def two_sided_mask_detached(low, high):
    def loss(logp, old, ref, A, mask):
        w = (logp - old).exp()
        return -mean(torch.where((w > low) & (w < high), w, 0.0).detach() * A[:, None] * logp, mask)

    return loss


def unweighted_and_masked(low, high):
    def loss(logp, old, ref, A, mask):
        x = log_mean(logp, old, mask).detach()
        return -mean(logp * A[:, None] * ((x > math.log(low)) & (x < math.log(high))), mask)

    return loss


def sigmoid_gate_of_the_mean(tau):
    def loss(logp, old, ref, A, mask):
        w = log_mean(logp, old, mask).exp()
        return -(torch.sigmoid(tau * (w - 1)) * 4 / tau * A[:, None]).mean()

    return loss


def up_to_the_token(logp, old, ref, A, mask):
    return -mean((logp - old).cumsum(1).detach().exp() * logp * A[:, None], mask)


def with_k3(loss_fn, beta=0.05):
    def loss(logp, old, ref, A, mask):
        d = ref - logp
        return loss_fn(logp, old, ref, A, mask) + beta * mean(d.exp() - d - 1, mask)

    return loss


def with_a_large_penalty(loss_fn):
    """0.3 times the reverse KL: far below ratio 1 the reward's part is 1e-7 of it."""

    def loss(logp, old, ref, A, mask):
        d = logp - ref
        return loss_fn(logp, old, ref, A, mask) + 0.3 * mean((ref - old).exp() * d.exp() * d, mask)

    return loss


def single_precision(loss):
    return lambda *batch: loss(*(x.float() if x.is_floating_point() else x for x in batch)).double()


RULES = {
    "no clip": (no_clip, "token", []),
    "no clip, detached": (no_clip_detached, "token", []),
    "no weight": (no_weight, "none", []),
    "no weight, advantages normalised inside": (no_weight_with_a_baseline_inside, "none", []),
    "PPO": (min_of_products(0.2, 0.28), "token", [("PPO clip", "token", {"low": 0.8, "high": 1.28})]),
    "PPO, summed": (max_of_losses(0.1, 0.3), "token", [("PPO clip", "token", {"low": 0.9, "high": 1.3})]),
    "PPO, a mask": (where_mask(0.25, 0.4), "token", [("PPO clip", "token", {"low": 0.75, "high": 1.4})]),
    "PPO, by rows in log space": (row_by_row(0.2, 0.2), "token", [("PPO clip", "token", {"low": 0.8, "high": 1.2})]),
    "PPO, above alone": (min_of_products(1.0, 0.28), "token", [("PPO clip", "token", {"high": 1.28})]),
    "PPO, by response": (
        min_of_products(0.003, 0.004, per_response),
        "token",
        [("PPO clip", "token", {"low": 0.997, "high": 1.004})],
    ),
    "dual": (dual(0.2, 0.28, 3.0), "token", [("dual clip", "token", {"low": 0.8, "high": 1.28, "c": 3.0})]),
    "dual, a mask": (
        dual_by_where(0.1, 0.5, 10.0),
        "token",
        [("dual clip", "token", {"low": 0.9, "high": 1.5, "c": 10.0})],
    ),
    "exchanged": (exchanged(0.2, 0.28), "token", [("exchanged min and max", "token", {"low": 0.8, "high": 1.28})]),
    "cap": (capped(0.0, 5.0), "token", [("cap", "token", {"high": 5.0})]),
    "cap on both sides": (capped(0.5, 2.0, total), "token", [("cap", "token", {"low": 0.5, "high": 2.0})]),
    "cap in log space": (capped_in_log_space(2.5), "token", [("cap", "token", {"high": 2.5})]),
    "cap at one": (capped(0.0, 1.0), "token", [("cap", "token", {"high": 1.0})]),
    "cap below one": (capped(0.0, 0.2), "token", [("cap", "token", {"high": 0.2})]),
    "mask": (hard_mask(0.5, 5.0), "token", [("mask", "token", {"low": 0.5, "high": 5.0})]),
    "mask above": (hard_mask(0.0, 2.0), "token", [("mask", "token", {"high": 2.0})]),
    "mask, clamped": (live_clamp(0.8, 1.2), "token", [("mask", "token", {"low": 0.8, "high": 1.2})]),
    "mask, counted": (mask_by_count(0.5, 2.0), "token", [("mask", "token", {"low": 0.5, "high": 2.0})]),
    "SAPO": (sigmoid_gate(1.0, 1.05), "token", [("smooth gate", "token", {"tau_pos": 1.0, "tau_neg": 1.05})]),
    "SAPO, detached": (
        sigmoid_gate_detached(2.0, 3.0),
        "token",
        [("smooth gate", "token", {"tau_pos": 2.0, "tau_neg": 3.0})],
    ),
    "quadratic": (
        quadratic_gate(0.2),
        "token",
        [("quadratic gate", "token", {"epsilon_pos": 0.2, "epsilon_neg": 0.2})],
    ),
    "TV": (
        total_variation(0.15),
        "token",
        [("trust-region mask by total variation", "probability", {"delta_low": 0.15, "delta_high": 0.15})],
    ),
    "TV, live": (
        total_variation_live(0.05),
        "token",
        [("trust-region mask by total variation", "probability", {"delta_low": 0.05, "delta_high": 0.05})],
    ),
    "TV, capped": (
        total_variation(0.2, 20.0),
        "token",
        [
            ("trust-region mask by total variation", "probability", {"delta_low": 0.2, "delta_high": 0.2}),
            ("cap", "token", {"high": 20.0}),
        ],
    ),
    "KL(old‖new)": (
        coin_kl(0.05),
        "token",
        [("trust-region mask by KL(old‖new)", "probability", {"delta_low": 0.05, "delta_high": 0.05})],
    ),
    "KL(new‖old)": (
        coin_kl(0.08, forward=False),
        "token",
        [("trust-region mask by KL(new‖old)", "probability", {"delta_low": 0.08, "delta_high": 0.08})],
    ),
    "response": (lambda *b: -mean(log_sum(b[0], b[1], b[4]).exp() * b[3][:, None] + 0 * b[0], b[4]), "response", []),
    "GSPO": (
        sequence_clip(3e-4, 4e-4),
        "geometric",
        [("PPO clip", "geometric", {"low": 1 - 3e-4, "high": 1 + 4e-4})],
    ),
    "GSPO-token": (gspo_token(0.1, 0.2), "geometric", [("PPO clip", "geometric", {"low": 0.9, "high": 1.2})]),
    "response, clipped": (
        sequence_clip(0.2, 0.28, log_sum, mean),
        "response",
        [("PPO clip", "response", {"low": 0.8, "high": 1.28})],
    ),
    "response, capped": (sequence_cap(2.0), "response", [("cap", "response", {"high": 2.0})]),
    "response, capped, beside a large penalty": (
        with_a_large_penalty(sequence_cap(22.5)),
        "response",
        [("cap", "response", {"high": 22.5})],
    ),
    "geometric, capped": (sequence_cap(1.5, log_mean), "geometric", [("cap", "geometric", {"high": 1.5})]),
    "response, masked": (
        response_mask(0.5, 2.0, log_sum),
        "token",
        [("mask", "response", {"low": 0.5, "high": 2.0})],
    ),
    "geometric, masked": (
        response_mask(0.99, 1.001, log_mean),
        "token",
        [("mask", "geometric", {"low": 0.99, "high": 1.001})],
    ),
    "OPSM": (
        off_policy_sequence_mask(0.5, 0.2, 0.28),
        "token",
        [
            ("PPO clip", "token", {"low": 0.8, "high": 1.28}),
            ("off-policy sequence mask", "geometric", {"delta": 0.5}),
        ],
    ),
    "GMPO": (
        clipped_geometric_mean(0.4),
        "geometric",
        [("clipped geometric mean", "token", {"low": math.exp(-0.4), "high": math.exp(0.4)})],
    ),
    "VESPO": (
        gamma((2.0, 3.0), (3.0, 2.0)),
        "response",
        [("gamma weight", "response", {"k_pos": 2.0, "lambda_pos": 3.0, "k_neg": 3.0, "lambda_neg": 2.0})],
    ),
    "gamma of the geometric mean": (
        gamma((1.0, 0.5), (1.0, 0.5), log_mean),
        "geometric",
        [("gamma weight", "geometric", {"k_pos": 1.0, "lambda_pos": 0.5, "k_neg": 1.0, "lambda_neg": 0.5})],
    ),
    "groups": (normalised_in_groups, "token", [("PPO clip", "token", {"low": 0.8, "high": 1.28})]),
    "IcePop": (two_sided_mask_detached(0.5, 5.0), "token", [("mask", "token", {"low": 0.5, "high": 5.0})]),
    "no weight, masked": (
        unweighted_and_masked(0.99, 1.02),
        "none",
        [("mask", "geometric", {"low": 0.99, "high": 1.02})],
    ),
    "SAPO of the mean": (
        sigmoid_gate_of_the_mean(1.5),
        "geometric",
        [("smooth gate", "geometric", {"tau_pos": 1.5, "tau_neg": 1.5})],
    ),
    "prefix": (up_to_the_token, "prefix", []),
    "KL(old‖new) and k3": (
        with_k3(coin_kl(0.02)),
        "token",
        [("trust-region mask by KL(old‖new)", "probability", {"delta_low": 0.02, "delta_high": 0.02})],
    ),
    "M2PO": (second_moment(0.04), "token", [("second-moment budget", "batch", {"tau": 0.04})]),
    "M2PO, sorted and counted": (second_moment_sorted(0.1), "token", [("second-moment budget", "batch", {"tau": 0.1})]),
}


def hold(found, weight, rules):
    assert found.known, found
    assert found.weight == weight, found
    assert [(rule.name, rule.level) for rule in found.rules] == [rule[:2] for rule in rules], found
    for rule, (*_, bounds) in zip(found.rules, rules, strict=True):
        assert rule.bounds.keys() == bounds.keys(), found
        for name, bound in bounds.items():
            assert rule.bounds[name] == pytest.approx(bound, rel=1e-6), (name, found)


@pytest.mark.parametrize("case", RULES)
def test_a_rule_is_named_and_its_bounds_are_right_to_six_digits(case):
    loss, weight, rules = RULES[case]
    hold(weight_curves(loss), weight, rules)


@pytest.mark.parametrize("case", ["PPO", "dual", "cap", "SAPO", "GSPO-token", "TV", "VESPO", "OPSM"])
def test_a_rule_is_named_in_single_precision(case):
    loss, weight, rules = RULES[case]
    found = weight_curves(single_precision(loss))
    assert (found.known, found.weight) == (True, weight), found
    for rule, (name, level, bounds) in zip(found.rules, rules, strict=True):
        assert (rule.name, rule.level) == (name, level)
        assert rule.bounds == pytest.approx(bounds, rel=1e-4), found


FAMILIES = {
    "PPO": lambda low, high: (min_of_products(low, high), "PPO clip", {"low": 1 - low, "high": 1 + high}),
    "exchanged": lambda low, high: (exchanged(low, high), "exchanged min and max", {"low": 1 - low, "high": 1 + high}),
    "dual": lambda low, high: (
        dual(low, high, 2 + high),
        "dual clip",
        {"low": 1 - low, "high": 1 + high, "c": 2 + high},
    ),
    "cap": lambda low, high: (capped(1 - low, 1 + high), "cap", {"low": 1 - low, "high": 1 + high}),
    "mask": lambda low, high: (hard_mask(1 - low, 1 + high), "mask", {"low": 1 - low, "high": 1 + high}),
    "SAPO": lambda low, high: (sigmoid_gate(low, high), "smooth gate", {"tau_pos": low, "tau_neg": high}),
    "TV": lambda low, high: (
        total_variation(low / 2),
        "trust-region mask by total variation",
        {"delta_low": low / 2, "delta_high": low / 2},
    ),
    "GSPO": lambda low, high: (sequence_clip(low, high), "PPO clip", {"low": 1 - low, "high": 1 + high}),
}


@settings(max_examples=12)
@given(
    family=st.sampled_from(list(FAMILIES)),
    low=st.floats(1e-3, 0.9),
    high=st.floats(1e-3, 8.0),
    beta=st.sampled_from([0.0, 1e-3, 0.2]),
    scale=st.sampled_from([1e-3, 1.0, 500.0]),
)
def test_any_bounds_are_found_beside_any_penalty_and_at_any_scale(family, low, high, beta, scale):
    loss, name, bounds = FAMILIES[family](low, high)
    found = weight_curves(lambda *batch: scale * with_k3(loss, beta)(*batch))
    assert found.name == name and found.rules[0].by in ("", "advantage")
    assert found.rules[0].bounds == pytest.approx(bounds, rel=1e-6)


def asymmetric(logp, old, ref, A, mask):
    """The inverse ratio for good tokens."""
    x, a = (logp - old).detach(), A[:, None]
    return -mean(torch.where(a > 0, -x, x).exp() * a * logp, mask)


def halved_beyond(logp, old, ref, A, mask):
    w = (logp - old).exp()
    return -mean(torch.where(w > 2, 0.5 * w, w) * A[:, None], mask)


def one_bound_a_sign(logp, old, ref, A, mask):
    w, a = (logp - old).exp(), A[:, None]
    return -mean(w * a * torch.where(a > 0, (w < 2) & (w > 0.5), (w < 3) & (w > 0.5)), mask)


def by_the_largest(logp, old, ref, A, mask):
    x = (logp - old).detach()
    return -mean((logp - old).exp() * A[:, None] * (x < 0.9 * x.max()), mask)


def square_root(logp, old, ref, A, mask):
    return -mean(((logp - old) / 2).exp() * A[:, None], mask)


def by_the_token_before(logp, old, ref, A, mask):
    w = (logp - old).exp()
    return -mean(w[:, 1:] * w[:, :-1].detach() * A[:, None], mask[:, 1:])


def good_ones_alone(logp, old, ref, A, mask):
    return -mean((logp - old).exp() * A.clamp(min=0)[:, None], mask)


def vetoed_by_one_token(logp, old, ref, A, mask):
    w = (logp - old).exp()
    return -mean(w * (w.max(1, keepdim=True).values < 3) * A[:, None], mask)


def kl_of_another_direction(logp, old, ref, A, mask):
    """A region by the difference of square roots of the probabilities."""
    a, gap = A[:, None], (logp / 2).exp() - (old / 2).exp()
    return -mean((logp - old).exp() * a * ~((gap.abs() > 0.1) & (gap.sign() == a.sign())), mask)


@pytest.mark.parametrize(
    "loss",
    [asymmetric, halved_beyond, one_bound_a_sign, by_the_largest, square_root, by_the_token_before,
     good_ones_alone, vetoed_by_one_token, kl_of_another_direction],
)  # fmt: skip
def test_what_is_no_known_rule_is_said_to_be_none_and_its_curve_is_there(loss):
    found = weight_curves(loss)
    assert not found.known and found.name == NO_KNOWN_RULE and NO_KNOWN_RULE in str(found)
    curve = found.curves["own"]
    assert curve.log_ratio.min().exp() == pytest.approx(1 / 50) and curve.log_ratio.max().exp() == pytest.approx(50)
    assert bool(curve.up.isfinite().all()) and curve.up.shape == curve.down.shape == curve.log_ratio.shape


def test_the_curve_of_an_unknown_rule_is_the_losss_own():
    curve = weight_curves(halved_beyond).curves["own"]
    w = curve.log_ratio.exp()
    torch.testing.assert_close(curve.up, torch.where(w > 2, w / 2, w), rtol=1e-9, atol=0)
    torch.testing.assert_close(curve.down, curve.up, rtol=1e-9, atol=0)


def rpg_clip(low, high, c, beta, penalty="urkl"):
    """Algorithm 2 by its branches, from the whole weight."""

    def loss(logp, old, ref, A, mask):
        w, v = (logp - old).exp().detach(), (logp - ref).exp().detach()
        slope = {"urkl": v * v.log(), "ufkl": v - 1}[penalty]
        weight = w * A[:, None] - beta * w / v * slope
        inside = torch.where(weight >= 0, w < 1 + high, (w > 1 - low) & (w < c))
        return -mean(weight * inside * logp, mask)

    return loss


def ppo_and_penalty(low, high, c, beta):
    """PPO's region, and a penalty that is not clipped: u·(v log v − v + 1)."""

    def loss(logp, old, ref, A, mask):
        v, u = (logp - ref).exp(), (ref - old).exp()
        return dual(low, high, c)(logp, old, ref, A, mask) + beta * mean(u * (v * (logp - ref) - v + 1), mask)

    return loss


def clips_the_penalty_by_the_advantage(low, high, beta):
    """The penalty is stopped as well, but the advantage's sign alone decides."""

    def loss(logp, old, ref, A, mask):
        w, v, a = (logp - old).exp().detach(), (logp - ref).exp().detach(), A[:, None]
        inside = torch.where(a >= 0, w < 1 + high, w > 1 - low)
        return -mean((w * a - beta * w * v.log()) * inside * logp, mask)

    return loss


@pytest.mark.parametrize(
    "loss, name, by",
    [
        (rpg_clip(0.2, 0.28, 10.0, 0.1), "RPG-Style Clip", "weight"),
        (rpg_clip(0.1, 0.3, 3.0, 1e-3, "ufkl"), "RPG-Style Clip", "weight"),
        (rpg_clip(0.1, 0.3, INF, 0.1), "RPG-Style Clip", "weight"),
        (rpg_clip(0.1, 0.3, 3.0, 0.0), "dual clip", ""),
        (ppo_and_penalty(0.2, 0.28, 10.0, 0.1), "dual clip", "advantage"),
        (ppo_and_penalty(0.2, 0.28, INF, 0.04), "PPO clip", "advantage"),
        (clips_the_penalty_by_the_advantage(0.2, 0.2, 0.1), "PPO clip", "advantage"),
    ],
)
def test_a_penalty_tells_whose_sign_decides(loss, name, by):
    found = weight_curves(loss)
    assert [(rule.name, rule.by) for rule in found.rules] == [(name, by)], found


def test_the_bounds_of_rpg_style_clip():
    found = weight_curves(rpg_clip(0.15, 0.35, 4.0, 0.2))
    hold(found, "token", [("RPG-Style Clip", "token", {"low": 0.85, "high": 1.35, "c": 4.0})])
    assert "by the sign of the whole weight" in str(found)


CLIP = {"low": 0.8, "high": 1.2}


@pytest.mark.parametrize(
    "recipe, weight, rules",
    [
        (RECIPES["rpg-urkl"], "token", []),
        (RECIPES["rpg-rkl-prefix"], "response", []),
        (RECIPES["ppo"], "token", [("PPO clip", "token", CLIP)]),
        (RECIPES["dr-grpo"], "token", [("PPO clip", "token", CLIP)]),
        (RECIPES["rloo"], "response", [("PPO clip", "response", CLIP)]),
        (RECIPES["cispo"], "token", [("cap", "token", {"high": 5.0})]),
        (RECIPES["gspo"], "geometric", [("PPO clip", "geometric", {"low": 0.9997, "high": 1.0004})]),
        (RECIPES["pmd-mean"], "none", []),
        (RECIPES["cpgd"], "none", [("PPO clip", "token", CLIP)]),
        (
            replace(RECIPES["rpg-reinforce-fkl-clip"], beta=0.1, clip=DualClip(0.1, 0.2, 3.0)),
            "token",
            [("RPG-Style Clip", "token", {"low": 0.9, "high": 1.2, "c": 3.0})],
        ),
        (
            replace(RECIPES["cispo"], bound=WeightBound("mask", 0.5, 5.0), level="sequence"),
            "response",
            [("mask", "response", {"low": 0.5, "high": 5.0})],
        ),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_a_recipe_is_named(recipe, weight, rules):
    hold(weight_curves(recipe), weight, rules)


PPO_REGION = {"PPO clip": {"low": 0.8, "high": 1.28}}


@pytest.mark.parametrize(
    "loss, region",
    [
        (min_of_products(0.2, 0.28), "PPO clip"),
        (min_of_products(0.2, 0.28), PPO_REGION),
        (min_of_products(0.2, 0.28), {"PPO clip": {"high": 1.28}}),
        (no_clip, "no clip"),
        (no_clip, {}),
        (total_variation(0.2, 20.0), {"cap": {"high": 20.0}, "trust-region mask by total variation": {}}),
    ],
)
def test_a_region_is_asserted(loss, region):
    assert_gradient(loss, reward=1.0, region=region)


@pytest.mark.parametrize(
    "loss, region, said",
    [
        (min_of_products(0.2, 0.2), PPO_REGION, "high = 1.2, not 1.28"),
        (exchanged(0.2, 0.28), PPO_REGION, "its region is exchanged min and max, not PPO clip"),
        (min_of_products(0.2, 0.28), {"dual clip": {"c": 3.0}}, "its region is PPO clip, not dual clip"),
        (min_of_products(0.2, 0.28), {"PPO clip": {"c": 3.0}}, "c = no bound of low, high, not 3"),
        (min_of_products(0.2, 0.28), "no clip", "its region is PPO clip, not no clip"),
        (halved_beyond, "no clip", "its region is no known rule"),
    ],
)
def test_another_region_fails_the_assertion(loss, region, said):
    with pytest.raises(AssertionError, match=said):
        assert_gradient(loss, reward=1.0, region=region)


def test_a_region_of_a_report_is_refused():
    with pytest.raises(ValueError, match="pass the loss itself"):
        assert_gradient(identify(no_clip), reward=1.0, region="no clip")


def test_few_calls_are_made():
    calls = []

    def counted(*batch):
        calls.append(len(batch[0]))
        return min_of_products(0.2, 0.28)(*batch)

    weight_curves(counted)
    assert len(calls) <= 25 and sum(calls) <= 20_000


def test_a_counted_denominator_is_told():
    (note,) = weight_curves(mask_by_count(0.5, 2.0)).notes
    assert "normaliser" in note and not weight_curves(hard_mask(0.5, 2.0)).notes


def test_a_report_says_where_the_gradient_dies():
    assert str(weight_curves(min_of_products(0.2, 0.28))) == (
        "weighted by the token's ratio; PPO clip of the token's ratio (low = 0.8, high = 1.28)\n"
        "- no gradient where A > 0 and w > 1.28, or A < 0 and w < 0.8"
    )


def test_a_mask_says_where_once():
    assert str(weight_curves(hard_mask(0.5, 5.0))).endswith("\n- no gradient where w > 5, or w < 0.5")


def test_what_is_odd_at_ratio_1_is_told():
    assert weight_curves(good_ones_alone).notes == ("no gradient at w = 1 where A < 0",)


def test_a_gradient_that_is_not_finite_is_told():
    def loss(logp, old, ref, A, mask):
        w = (logp - old).exp()
        return -mean(w * (20 - w).sqrt().detach() * A[:, None], mask)

    found = weight_curves(loss)
    assert not found.known and found.notes[-1].startswith("the gradient is not finite between w = 2")


def test_the_picture(tmp_path):
    draw_curves(weight_curves(halved_beyond), tmp_path / "none.png")
    assert (tmp_path / "none.png").read_bytes()[:4] == b"\x89PNG"


LOSS = """
import torch

def capped(logp, logp_old, logp_ref, advantages, mask):
    w = (logp - logp_old).exp().clamp(max=3).detach()
    return -(w * logp * advantages[:, None] * mask).sum() / mask.sum()
"""


def test_the_command_names_the_rule_and_draws_it(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(LOSS)
    assert main(["audit", f"{tmp_path}/mine.py:capped", "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out.endswith(
        "importance weights: weighted by the token's ratio; cap of the token's ratio (high = 3)\n"
        "- beyond the cap the weight is constant, and the token still moves the policy\n"
    )
    assert "mine-weights.png" in err and (tmp_path / "mine-weights.png").read_bytes()[:4] == b"\x89PNG"


def test_a_loss_that_raises_where_ratios_are_moved_is_told():
    def eights(logp, *rest):
        assert len(logp) == 8, "only eight"
        return no_clip(logp, *rest)

    with pytest.raises(ValueError, match="AssertionError, only eight, for ratios .* any number of responses"):
        weight_curves(eights)


def test_a_constant_is_refused_as_by_identify():
    with pytest.raises(ValueError, match="without a gradient"):
        weight_curves(lambda logp, *_: logp.detach().sum())
