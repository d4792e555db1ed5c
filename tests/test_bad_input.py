"""Bad input: one ValueError, one sentence, naming the argument, the value and the remedy."""

import dataclasses
import math
import re

import jaxtyping
import pytest
import torch
from strategies import DIVERGENCE_NAMES

from rpg_ref import (
    DIVERGENCES,
    RECIPES,
    DualClip,
    Objective,
    ReferenceRule,
    ReferenceState,
    UnknownName,
    WeightBound,
    advantages,
    aggregate,
    check_batch,
    clipped_loss,
    count,
    differentiable_loss,
    fused_logprobs,
    grpo_loss,
    log_ratios,
    per_decision_loss,
    reinforce_loss,
    token_entropy,
    token_logprobs,
    weight,
    with_rest,
)
from rpg_ref.audit.verify import verify
from rpg_ref.cli import main


@pytest.fixture(autouse=True)
def no_type_checker():
    """The sentences are what users see; in tests the type checker would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


X = torch.full((2, 3), -1.0)
MASK = torch.ones(2, 3, dtype=torch.bool)
GROUPS = torch.tensor([0, 0, 1])
RECIPE = RECIPES["rpg-urkl"]


def with_nan(x):
    x = x.clone()
    x[(1,) * x.ndim] = math.nan
    return x


CASES = {
    "old has another shape": (lambda: weight(X, X[:, :2], 1.0, "urkl", 0.1), ["logp_old", "(2, 2)", "(2, 3)"]),
    "ref has another shape": (lambda: weight(X, X, 1.0, "urkl", 0.1, logp_ref=X[:1]), ["logp_ref", "(1, 3)"]),
    "advantage that would broadcast": (lambda: weight(X, X, X[0], "urkl", 0.1), ["advantage", "(3,)", "(2, 3)"]),
    "mass that would broadcast": (lambda: weight(X, X, 1.0, "urkl", 0.1, log_mass_old=X[0]), ["log_mass_old", "(3,)"]),
    "advantage is a list": (lambda: weight(X, X, [1.0, 2.0], "urkl", 0.1), ["advantage", "list"]),
    "advantage is None": (lambda: reinforce_loss(X, X, None, "urkl", 0.1), ["advantage", "NoneType"]),
    "logp is a list": (lambda: clipped_loss([0.0], X, 1.0, "urkl", 0.1), ["logp", "list"]),
    "divergence is a list": (lambda: weight(X, X, 1.0, ["urkl"], 0.1), ["divergence", "urkl"]),
    "other case": (lambda: DIVERGENCES["URKL"], ["'URKL'", "urkl"]),
    "grpo's beta": (lambda: grpo_loss(X, X, 1.0, "urkl", -1.0, clip=DualClip()), ["beta", "-1.0"]),
    "rewards are a list": (lambda: advantages([1.0, 2.0], GROUPS, "none"), ["rewards", "list"]),
    "loss is a list": (lambda: aggregate([1.0], MASK, "token-mean"), ["loss", "list"]),
    "denominators": (lambda: aggregate(X, MASK, "token-mean", denominator=torch.ones(1)), ["denominator", "(1,)"]),
    "float tokens": (lambda: token_logprobs(X, torch.zeros(2)), ["tokens", "float32"]),
    "recipe, advantages as list": (lambda: RECIPE(X, X, None, [1.0, 2.0], MASK), ["advantages", "list"]),
    "recipe, clip taken away": (
        lambda: dataclasses.replace(RECIPES["rpg-reinforce-urkl-clip"], clip=None),
        ["clip", "None"],
    ),
    "recipe, clip put on": (lambda: dataclasses.replace(RECIPE, clip=DualClip()), ["clip", "DualClip"]),
    "recipe, penalty": (
        lambda: dataclasses.replace(RECIPE, on_policy_penalty={"revers_kl": 1.0}),
        ["term", "reverse_kl"],
    ),
    "batch, advantages": (lambda: check_batch(X, X, None, torch.ones(3), MASK), ["advantages", "(3,)"]),
    "batch, far": (lambda: check_batch(X, X - 400, None, X[:, 0], MASK), ["logp_old", "400 nats"]),
    "integer logp": (lambda: weight(X.long(), X.long(), 1.0, "urkl", 0.1), ["logp", "int64", ".float()"]),
    "integer old": (lambda: log_ratios(X, X.long()), ["logp_old", "int64"]),
    "not a tensor": (lambda: log_ratios([0.0], X), ["logp", "list", "as_tensor"]),
    "negative beta": (lambda: differentiable_loss(X, X, 1.0, "urkl", -0.1), ["beta", "-0.1", "[0, inf)"]),
    "beta is NaN": (lambda: reinforce_loss(X, X, 1.0, "urkl", math.nan), ["beta", "nan"]),
    "beta is infinite": (lambda: weight(X, X, 1.0, "urkl", math.inf), ["beta", "inf"]),
    "beta is text": (lambda: clipped_loss(X, X, 1.0, "urkl", "0.1"), ["beta", "'0.1'"]),
    "unknown divergence": (lambda: weight(X, X, 1.0, "urlk", 0.1), ["divergence", "'urlk'", "urkl"]),
    "nothing near": (lambda: DIVERGENCES["zzz"], ["'zzz'", "fkl, ufkl"]),
    "unknown recipe": (lambda: RECIPES["rpg-reinforce-urlk-clip"], ["recipe", "rpg-reinforce-urkl-clip"]),
    "ε1 zero": (lambda: DualClip(0.0, 0.28, 10.0), ["low", "0.0", "less likely", "low > 0"]),
    "ε2 zero": (lambda: DualClip(0.2, 0, 10.0), ["high", "0", "more likely", "high > 0"]),
    "ε1 below rounding": (lambda: DualClip(low=1e-17), ["low", "1e-17", "w = 1"]),
    "ε2 below rounding": (lambda: DualClip(high=1e-17), ["high", "1e-17", "w = 1"]),
    "ε1 too large": (lambda: DualClip(low=1.5), ["low", "1.5", "[0, 1]"]),
    "ε1 negative": (lambda: DualClip(low=-0.1), ["low", "-0.1"]),
    "ε2 negative": (lambda: DualClip(high=-0.1), ["high", "-0.1"]),
    "dual is one": (lambda: DualClip(dual=1.0), ["dual", "1.0", "(1, inf]"]),
    "dual is NaN": (lambda: DualClip(dual=math.nan), ["dual", "nan"]),
    "rewards too long": (lambda: advantages(torch.ones(4), GROUPS, "none"), ["rewards (4,)", "groups (3,)"]),
    "rewards in two axes": (lambda: advantages(X, X.long(), "none"), ["rewards (2, 3)"]),
    "float groups": (lambda: advantages(torch.ones(3), GROUPS.float(), "none"), ["groups", "float32"]),
    "reward is NaN": (lambda: advantages(with_nan(torch.ones(3)), GROUPS, "none"), ["rewards[1]", "nan"]),
    "group of one, std": (lambda: advantages(torch.ones(3), GROUPS, "group_std"), ["group 1", "group_std", "2"]),
    "group of one, others": (lambda: advantages(torch.ones(3), GROUPS, "leave_one_out"), ["group 1", "leave_one_out"]),
    "unknown baseline": (lambda: advantages(torch.ones(3), GROUPS, "groupmean"), ["baseline", "group_mean"]),
    "unknown aggregation": (lambda: aggregate(X, MASK, "mean"), ["aggregation", "token-mean"]),
    "nothing kept": (lambda: aggregate(X, ~MASK, "token-mean"), ["mask", "denominator"]),
    "denominator zero": (lambda: aggregate(X, MASK, "token-mean", denominator=0), ["denominator", "0", "(0, inf)"]),
    "mask of another shape": (lambda: aggregate(X, MASK[:1], "token-mean"), ["mask", "(1, 3)", "(2, 3)"]),
    "mask is no tensor": (lambda: aggregate(X, None, "token-mean"), ["mask", "NoneType"]),
    "no temperature": (lambda: token_logprobs(X, torch.zeros(2).long(), temperature=math.inf), ["temperature", "inf"]),
    "entropy at zero": (lambda: token_entropy(X, temperature=0.0), ["temperature", "0.0", "(0, inf)"]),
    "entropy at infinity": (lambda: token_entropy(X, temperature=math.inf), ["temperature", "inf"]),
    "temperature zero": (lambda: token_logprobs(X, torch.zeros(2).long(), temperature=0.0), ["temperature", "0.0"]),
    "temperature negative": (lambda: token_entropy(X, temperature=-1.0), ["temperature", "-1.0"]),
    "tokens do not fit": (lambda: token_logprobs(X, torch.zeros(3).long()), ["logits", "(2, 3)", "(3,)"]),
    "recipe, one axis": (lambda: RECIPE(X[0], X[0], None, X[0], MASK[0]), ["logp", "[B, T]"]),
    "recipe, advantages": (lambda: RECIPE(X, X, None, torch.ones(3), MASK), ["advantages", "(3,)", "(2,) or (2, 3)"]),
    "recipe, tokens at sequence level": (
        lambda: dataclasses.replace(RECIPE, level="sequence")(X, X, None, X, MASK),
        ["advantages", "(2,)", "sequence"],
    ),
    "recipe, sampler": (lambda: RECIPE(X, X, None, X[:, 0], MASK, logp_sampler=X[:1]), ["logp_sampler", "(1, 3)"]),
    "recipe, level": (lambda: dataclasses.replace(RECIPE, level="tokens"), ["level", "token"]),
    "recipe, infinite beta": (lambda: dataclasses.replace(RECIPE, beta=math.inf), ["beta", "inf", "[0, inf)"]),
    "recipe, old": (lambda: RECIPE(X, X[:1], None, X[:, 0], MASK), ["logp_old", "(1, 3)", "(2, 3)"]),
    "recipe, ref": (lambda: RECIPE(X, X, X[:1], X[:, 0], MASK), ["logp_ref", "(1, 3)", "(2, 3)"]),
    "recipe, integer ref": (lambda: RECIPE(X, X, X.long(), X[:, 0], MASK), ["logp_ref", "int64"]),
    "count": (lambda: count([1.0], "token-mean"), ["mask", "list"]),
    "logits are a list": (lambda: token_logprobs([1.0], torch.zeros(1).long()), ["logits", "list"]),
    "top k is a list": (lambda: with_rest([-1.0]), ["logp", "list"]),
    "a token twice in the top k": (lambda: with_rest(torch.full((1, 2), 0.6).log()), ["1.2", "distinct tokens"]),
    "tokens are a list": (lambda: token_logprobs(X, [0, 1]), ["tokens", "list"]),
    "groups are a list": (lambda: advantages(torch.ones(3), [0, 0, 1], "none"), ["groups", "list"]),
    "recipe, beta": (lambda: dataclasses.replace(RECIPE, beta=-1.0), ["beta", "-1.0"]),
    "recipe, bound put on": (lambda: dataclasses.replace(RECIPE, bound=WeightBound()), ["bound", "WeightBound"]),
    "recipe, bound taken away": (lambda: dataclasses.replace(RECIPES["cispo"], bound=None), ["bound", "None"]),
    "recipe, entropy put on": (lambda: dataclasses.replace(RECIPE, entropy=0.1), ["entropy", "0.1"]),
    "recipe, entropy taken away": (
        lambda: dataclasses.replace(RECIPES["rpg-urkl-entropy"], entropy=None),
        ["entropy", "None"],
    ),
    "recipe, prefix": (lambda: dataclasses.replace(RECIPE, level="prefix"), ["'prefix'", "per_decision_loss"]),
    "recipe, no prefix": (lambda: dataclasses.replace(RECIPES["rpg-rkl-prefix"], level="token"), ["'token'", "prefix"]),
    "bound, rule": (lambda: WeightBound("clip"), ["bound", "'clip'", "clamp"]),
    "bound, high": (lambda: WeightBound(high=0.0), ["high", "0.0", "(0, inf]"]),
    "bound, low": (lambda: WeightBound(low=-1.0), ["low", "-1.0"]),
    "bound, infinite low": (lambda: WeightBound(low=math.inf), ["low", "inf", "[0, inf)"]),
    "bound, empty": (lambda: WeightBound(low=2.0, high=1.0), ["high", "1.0", "[2, inf]"]),
    "no chain rule": (lambda: per_decision_loss(X, X, 1.0, "js", 0.1), ["js", "chain rule", "urkl"]),
    "reference, every": (lambda: ReferenceRule(every=0), ["every", "0", "[1, inf]"]),
    "reference, part of a step": (lambda: ReferenceRule(every=2.5), ["every", "2.5", "whole"]),
    "reference, kappa": (lambda: ReferenceRule(kappa=0.0), ["kappa", "0.0"]),
    "reference, decay": (lambda: ReferenceRule(decay=1.0), ["decay", "1.0"]),
    "reference, KL": (lambda: ReferenceRule().step(ReferenceState(), math.nan), ["token_kl", "nan"]),
    "recipe, nothing kept": (lambda: RECIPE(X, X, None, X[:, 0], ~MASK), ["mask", "denominator"]),
    "objective, term": (lambda: Objective({"reverse": 1.0}), ["term", "reverse_kl"]),
    "objective, level": (lambda: Objective({}, "prefix"), ["level", "'prefix'"]),
    "batch, shapes": (lambda: check_batch(X, X, X[:1], X[:, 0], MASK), ["logp_ref", "(1, 3)", "(2, 3)"]),
    "batch, sampler's shape": (lambda: check_batch(X, X, X, X[:, 0], MASK, logp_sampler=X[0]), ["logp_sampler"]),
    "batch, advantages as list": (lambda: check_batch(X, X, X, [1.0, 2.0], MASK), ["advantages", "list"]),
    "batch, token's advantage": (lambda: check_batch(X, X, X, with_nan(X), MASK), ["advantages[1, 1]", "nan"]),
    "batch, far sampler": (
        lambda: check_batch(X, X, X, X[:, 0], MASK, logp_sampler=X - 351.0),
        ["logp_sampler", "351 nats"],
    ),
    "batch, NaN": (lambda: check_batch(with_nan(X), X, None, X[:, 0], MASK), ["logp[1, 1]", "nan"]),
    "batch, -inf": (lambda: check_batch(X, X * math.inf, None, X[:, 0], MASK), ["logp_old[0, 0]", "-inf"]),
    "batch, probability over one": (lambda: check_batch(X, X, -X, X[:, 0], MASK), ["logp_ref[0, 0]", "1.0"]),
    "batch, advantage": (lambda: check_batch(X, X, None, torch.tensor([1.0, math.nan]), MASK), ["advantages[1, 0]"]),
    "batch, mask": (lambda: check_batch(X, X, None, X[:, 0], MASK * 0.5), ["mask", "0.5"]),
    "batch, empty": (lambda: check_batch(X, X, None, X[:, 0], ~MASK), ["mask", "keeps no token"]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_sentence(case):
    call, fragments = CASES[case]
    with pytest.raises(ValueError) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message and all(is_in(message, fragment) for fragment in fragments), message


def is_in(message, fragment):
    """As whole words: a name that is spelt otherwise is another name."""
    return re.search(rf"(?<!\w){re.escape(fragment)}(?!\w)", message)


def test_nearest_names_or_all_of_them():
    def sentence(name):
        with pytest.raises(UnknownName) as raised:
            DIVERGENCES[name]
        return str(raised.value)

    assert sentence("UKL") == "unknown divergence 'UKL'; the nearest are urkl, ufkl, rkl"
    assert sentence("ur") == "unknown divergence 'ur'; the nearest are urkl"
    assert sentence("z") == "unknown divergence 'z'; choose one of " + ", ".join(DIVERGENCE_NAMES)


def test_an_unknown_name_is_also_a_key_error():
    with pytest.raises(KeyError):
        DIVERGENCES["kl"]
    assert issubclass(UnknownName, ValueError) and "kl" not in DIVERGENCES


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["verify", "rpg-ukrl"], "rpg-urkl"),
        (["verify", "--device", "cuda:99"], "'cuda:99'"),
        (["verify", "--device", "abacus"], "'abacus'"),
        (["verify", "--device", "meta"], "'meta'"),
        (["verify", "--seed", "99999999999999999999"], "--seed"),
    ],
)
def test_the_command_line_prints_one_line_and_exits_2(arguments, fragment, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("rpg-ref: ") and fragment in err


def test_a_device_without_float64(capsys, monkeypatch):
    def ones(*shape, dtype, device):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    monkeypatch.setattr(torch, "ones", ones)
    assert main(["verify", "--device", "mps"]) == 2
    assert capsys.readouterr().err.startswith("rpg-ref: device 'mps' cannot be used here (Cannot convert a MPS Tensor")


def test_verify_on_a_device_that_is_not_there():
    with pytest.raises(ValueError, match=r"device 'cuda:99' cannot be used here \(.*\); try cpu"):
        verify(RECIPES["grpo"], device="cuda:99")


@pytest.mark.parametrize("arguments", [["verfy"], ["verify", "--seed", "x"], ["verify", "--jsn"], []])
def test_words_it_does_not_know(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden": torch.zeros(4, 5)}, r"shapes (4, 5), (13, 6), (4, 5); pass [B, T, d]"),
        ({"head": torch.zeros(13, 7)}, "shapes (4, 5, 6), (13, 7), (4, 5)"),
        ({"tokens": torch.zeros(4, 6).long()}, "shapes (4, 5, 6), (13, 6), (4, 6)"),
        ({"head": torch.zeros(13, 6).bfloat16()}, "float32, torch.bfloat16, torch.int64; pass two of one"),
        ({"tokens": torch.zeros(4, 5)}, "torch.float32; pass two of one floating dtype, and integers"),
        ({"mask": torch.ones(4, 6)}, "mask has shape"),
        ({"temperature": 0.0}, "temperature must be a number in"),
        ({"chunk": 0}, "chunk must be a whole number from 1, got 0"),
        ({"chunk": 2.5}, "chunk must be a whole number from 1, got 2.5"),
        ({"head": [[1.0]]}, "head must be a real tensor, got list"),
    ],
)
def test_fused(change, sentence):
    fine = {"hidden": torch.zeros(4, 5, 6), "head": torch.zeros(13, 6), "tokens": torch.zeros(4, 5).long()}
    with pytest.raises(ValueError, match=re.escape(sentence)):
        fused_logprobs(**fine | {"mask": torch.ones(4, 5)} | change)
