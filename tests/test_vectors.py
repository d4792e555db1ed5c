"""The test vectors: written by their generator alone, replayed by rpg_ref, each wrong answer told from the right."""

import contextlib
import io
import json
import math
import re
import sys
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from vectors import generate

from proofs import CLAIMS
from rpg_ref import (
    AGGREGATIONS,
    BASELINES,
    DIVERGENCES,
    LEVELS,
    RECIPES,
    DualClip,
    Recipe,
    WeightBound,
    advantages,
    bounded_loss,
    clipped_loss,
    clipped_loss_as_printed,
    cpgd_loss,
    differentiable_loss,
    entropy_loss,
    gated_loss,
    grpo_corrected_loss,
    grpo_loss,
    k1,
    k2,
    k2_loss,
    k3,
    kl_in_reward_loss,
    log_ratios,
    per_decision_loss,
    pmd_mean_loss,
    ppo_loss,
    reinforce_loss,
)
from rpg_ref.numerics import phi

VECTORS = Path(__file__).parent / "vectors"
README = (VECTORS / "README.md").read_text("utf-8")
FILES = {
    path.stem: json.loads(path.read_text("utf-8")) for path in sorted(VECTORS.glob("*.json")) if path.stem != "schema"
}
CASES = [case for file in FILES.values() for case in file["cases"]]


def of_kind(kind):
    return [case for file in FILES.values() if file["kind"] == kind for case in file["cases"]]


def each(cases):
    return pytest.mark.parametrize("case", [pytest.param(x, id=x["id"]) for x in cases])


# The README's code is the diagnosis.
CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PRINTED = re.search(r"```text\n(.*?)```", README, re.DOTALL).group(1)
NAMES: dict = {}
exec(compile(CODE[0], "README.md", "exec"), NAMES)
diagnose, same = NAMES["diagnose"], NAMES["same"]


# ------------------------------------------------------------------------------------------------ rpg_ref's answers
# A form of the penalty, of log π_θ, log w, log v, log u; the estimators take log y = log π_ref − log π.
FORMS = {
    "unweighted_k1": lambda p, w, v, u: k1(-v),
    "unweighted_k2": lambda p, w, v, u: k2(-v),
    "unweighted_k3": lambda p, w, v, u: k3(-v),
    "live_weight_k1": lambda p, w, v, u: w.exp() * k1(-v),
    "live_weight_k2": lambda p, w, v, u: w.exp() * k2(-v),
    "live_weight_k3": lambda p, w, v, u: w.exp() * k3(-v),
    "detached_weight_k2": lambda p, w, v, u: w.exp().detach() * k2(-v),
    "detached_weight_k3": lambda p, w, v, u: w.exp().detach() * k3(-v),
    "straight_through_k1": lambda p, w, v, u: (p - p.detach()).exp() * k1(-v),
    "straight_through_k3": lambda p, w, v, u: (p - p.detach()).exp() * k3(-v),
    "reward_k1": lambda p, w, v, u: w.exp() * k1(-v).detach(),
    "reward_k1_at_old": lambda p, w, v, u: w.exp() * k1(u),
    "reward_k3": lambda p, w, v, u: w.exp() * k3(-v).detach(),
    "reward_k3_at_old": lambda p, w, v, u: w.exp() * k3(u),
}


def with_penalty(form, logp, logp_old, advantage, divergence, beta, *, logp_ref=None):
    log_w, log_v, log_u = log_ratios(logp, logp_old, logp_ref)
    return -log_w.exp() * advantage + beta * form(logp, log_w, log_v, log_u)


def with_penalty_and_clip(form, logp, logp_old, advantage, divergence, beta, *, logp_ref=None, clip):
    penalty = form(logp, *log_ratios(logp, logp_old, logp_ref))
    return ppo_loss(logp, logp_old, advantage, clip=clip) + beta * penalty


LOSSES = {
    "differentiable": differentiable_loss,
    "reinforce": reinforce_loss,
    "entropy": entropy_loss,
    "clipped": clipped_loss,
    "clipped_as_printed": clipped_loss_as_printed,
    "bounded": bounded_loss,
    "per_decision": per_decision_loss,
    "grpo": grpo_loss,
    "grpo_corrected": grpo_corrected_loss,
    "k2": k2_loss,
    "kl_in_reward": kl_in_reward_loss,
    "pmd_mean": pmd_mean_loss,
    "cpgd": cpgd_loss,
}


def decoded(x):
    """JSON's numbers as floats, its strings for NaN and ±∞ too."""
    return [decoded(y) for y in x] if isinstance(x, list) else float(x)


def tensor(x, dtype=torch.float64):
    return None if x is None else torch.tensor(decoded(x), dtype=dtype)


def record(kind, x):
    return kind(**{name: y if name == "rule" else float(y) for name, y in x.items()})


def recipe(x):
    """The inputs' choices as a recipe of rpg_ref."""
    loss = LOSSES.get(x["loss"]) or partial(with_penalty_and_clip if x["clip"] else with_penalty, FORMS[x["loss"]])
    if x.get("log_mass_old") is not None:
        loss = partial(loss, log_mass_old=x["log_mass_old"])
    choices = {name: x[name] for name in ("divergence", "level", "aggregation")} | {"beta": float(x["beta"])}
    bounds = {"clip": (DualClip, x["clip"]), "bound": (WeightBound, x.get("bound"))}
    choices |= {name: record(kind, y) for name, (kind, y) in bounds.items() if y is not None}
    if x.get("entropy") is not None:
        choices["entropy"] = float(x["entropy"])
    if x.get("sampler_bound"):
        choices["sampler"] = record(WeightBound, x["sampler_bound"])
    return Recipe("a vector's", loss, None, None, **choices)


def replay(x, dtype=torch.float64):
    """rpg_ref's loss and ∂loss/∂logp, the micro-batches' added up."""
    return _replay(json.dumps(x), dtype)


@cache
def _replay(inputs, dtype):
    x = json.loads(inputs)
    row, mask = recipe(x), tensor(x["mask"])
    logp = tensor(x["logp"], dtype).requires_grad_()
    old, ref, A, sampler = (tensor(x.get(n), dtype) for n in ("logp_old", "logp_ref", "advantages", "logp_sampler"))
    parts = x.get("micro_batches")
    denominator = row.count(mask) if parts else x["denominator"] and float(x["denominator"])
    total = 0.0
    for rows in parts or [list(range(len(mask)))]:
        of_rows = (y if y is None else y[rows] for y in (logp, old, ref, A, mask))
        drawn = None if sampler is None else sampler[rows]
        total = total + row(*of_rows, logp_sampler=drawn, denominator=denominator).loss
    total.backward()
    return total.item(), logp.grad.tolist()


FUNCTIONS = {"phi": phi, "k1": lambda d: k1(d), "k2": lambda d: k2(d), "k3": lambda d: k3(d)}
FUNCTIONS |= {name: row.f for name, row in DIVERGENCES.items()}


def along(x, function=None):
    """rpg_ref's function and its derivative."""
    d = tensor(x["log_ratio"]).requires_grad_()
    value = FUNCTIONS[function or x["function"]](d)
    return value.tolist(), torch.autograd.grad(value.sum(), d)[0].tolist()


def advantages_of(x, baseline):
    groups = torch.tensor(x["groups"])
    return advantages(tensor(x["rewards"]), groups, baseline).tolist()


# ---------------------------------------------------------------------------------------------- 1, 2: the files
def test_the_files_are_what_the_generator_writes(capsys):
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_a_changed_file_is_found(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(generate, "HERE", tmp_path)
    monkeypatch.setattr(generate, "TOPICS", {"micro_batch": generate.TOPICS["micro_batch"]})
    assert generate.main(["--check"]) == 1
    assert generate.main([]) == generate.main(["--check"]) == 0
    path = tmp_path / "micro_batch.json"
    path.write_text(path.read_text("utf-8").replace("0.5", "0.25", 1), "utf-8")
    assert generate.main(["--check"]) == 1
    assert "micro_batch.json is not what" in capsys.readouterr().out


def test_the_generator_prints_the_cases_of_a_claim(capsys):
    assert generate.main(["micro_batch"]) == 1  # a file, no claim
    assert "no case" in capsys.readouterr().out
    assert generate.main(["sampler_correction"]) == 0
    assert json.loads(capsys.readouterr().out) == FILES["sampler"]["cases"]


def test_the_generator_imports_nothing_of_ours():
    imported = re.findall(r"^ *(?:from|import) (\w+)", (VECTORS / "generate.py").read_text("utf-8"), re.MULTILINE)
    assert set(imported) - sys.stdlib_module_names == {"mpmath", "divergence_facts"}


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in VECTORS.glob("*.json")) < 400_000


def test_schema():
    import jsonschema

    schema = json.loads((VECTORS / "schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for file in FILES.values():
        validator.validate(file)
        for field in ("claim", "wrong"):
            case = {name: x for name, x in file["cases"][-1].items() if name != field}
            assert not validator.is_valid(file | {"cases": [case]})


def test_identifiers_are_unique():
    ids = [case["id"] for case in CASES]
    assert len(set(ids)) == len(ids)
    assert all(len({x["name"] for x in case["wrong"]}) == len(case["wrong"]) for case in CASES)


# ------------------------------------------------------------------------------------------------- 3: the replay
@each(of_kind("batch"))
def test_replay(case):
    loss, gradient = replay(case["inputs"])
    assert diagnose(case, loss if case["contract"] == "loss" else gradient, rtol=1e-12) == "right"
    assert same(gradient, case["gradient"], 1e-12)
    assert case["loss"] is None or same(loss, case["loss"], 1e-12)


@each([case for case in of_kind("batch") if "far" not in case["id"]])
def test_replay_in_float32(case):
    loss, gradient = replay(case["inputs"], torch.float32)
    assert diagnose(case, loss if case["contract"] == "loss" else gradient, rtol=1e-4) == "right"


@each(of_kind("function"))
def test_replay_of_a_function(case):
    value, gradient = along(case["inputs"])
    assert diagnose(case, gradient, rtol=1e-12) == "right"
    assert same(value, case["value"], 1e-12, of_largest=False)
    name = case["inputs"]["function"]
    if name in DIVERGENCES:
        slope = DIVERGENCES[name].slope(tensor(case["inputs"]["log_ratio"]))
        assert same(slope.tolist(), case["gradient"], 1e-12, of_largest=False)


@each([case for case in of_kind("function") if "ordinary" in case["id"]])
def test_replay_of_a_function_in_float32(case):
    d = tensor(case["inputs"]["log_ratio"], torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad(FUNCTIONS[case["inputs"]["function"]](d).sum(), d)
    assert diagnose(case, gradient.tolist(), rtol=1e-4) == "right"


@each(of_kind("advantages"))
def test_replay_of_advantages(case):
    assert diagnose(case, advantages_of(case["inputs"], case["inputs"]["baseline"]), rtol=1e-12) == "right"


def test_surrogate_and_reinforce_have_one_gradient():
    """Their cases of one name have one batch: the generator derives them in two ways."""
    reinforce = {case["id"]: case for case in FILES["reinforce"]["cases"]}
    pairs = [
        (case, reinforce.get(case["id"].replace("surrogate", "reinforce"))) for case in FILES["surrogate"]["cases"]
    ]
    pairs = [(a, b) for a, b in pairs if b]
    assert len(pairs) == 2 * len(DIVERGENCES)
    for a, b in pairs:
        assert a["inputs"] | {"loss": None} == b["inputs"] | {"loss": None}
        assert same(a["gradient"], b["gradient"], 1e-15)


# --------------------------------------------------------------------------------------------- 4: wrong answers
@each(CASES)
def test_each_wrong_answer_is_far_from_the_right_one(case):
    field = case["contract"]
    by_entry = "function" in case["inputs"]
    for wrong in case["wrong"]:
        assert not same(wrong[field], case[field], 1e-3, not by_entry), wrong["name"]
        assert wrong["name"] in diagnose(case, wrong[field]), wrong["name"]


def edit(**fields):
    """Inputs with fields replaced, by values or by functions of the inputs."""
    return lambda x: x | {name: y(x) if callable(y) else y for name, y in fields.items()}


def edit_clip(**bounds):
    return lambda x: x | {"clip": x["clip"] | {name: y(x["clip"]) if callable(y) else y for name, y in bounds.items()}}


def edit_bound(**fields):
    return lambda x: x | {"bound": x["bound"] | fields}


OTHER_DIRECTION = {"fkl": "rkl", "ufkl": "urkl", "rkl": "fkl", "urkl": "ufkl"}
OTHER_MASS = {"fkl": "ufkl", "ufkl": "fkl", "rkl": "urkl", "urkl": "rkl"}


def hard_bound(x):
    low, high = float(x["clip"]["low"]), float(x["clip"]["high"])
    return {"rule": "clamp", "low": 1 - low, "high": 1 + high}


def places(x):
    return float(sum(map(len, x["mask"])))


def at_every_token(x):
    return [[A] * len(row) for A, row in zip(x["advantages"], x["mask"], strict=True)]


def drawn_by(x, version):
    return [[x["logp_versions"][k][b][t] for t, k in enumerate(row)] for b, row in enumerate(version)]


# The mistakes that choices of rpg_ref make: what its users would have to choose wrongly.
OURS = {name: edit(loss=name) for name in FORMS} | {
    "no_penalty": edit(beta=0.0),
    "other_direction": edit(divergence=lambda x: OTHER_DIRECTION[x["divergence"]]),
    "unnormalised_for_normalised": edit(divergence=lambda x: OTHER_MASS[x["divergence"]]),
    "normalised_for_unnormalised": edit(divergence=lambda x: OTHER_MASS[x["divergence"]]),
    "reference_ignored": edit(logp_ref=None),
    "mass_dropped": edit(log_mass_old=None),
    "unclipped": edit(loss="reinforce", clip=None),
    "unbounded": lambda x: {name: y for name, y in x.items() if name != "bound"} | {"loss": "reinforce"},
    "clip_bounds_swapped": edit_clip(low=lambda clip: clip["high"], high=lambda clip: clip["low"]),
    "no_dual_bound": edit_clip(dual="Infinity"),
    "ppo_unclipped": edit_clip(low=1.0, high="Infinity", dual="Infinity"),
    "reward_clipped_only": edit(loss="grpo_corrected"),
    "hard_clip": edit(loss="bounded", bound=hard_bound, clip=None),
    "live_advantage": edit(loss="clipped_as_printed"),
    "clamp_for_mask": edit_bound(rule="clamp"),
    "mask_for_clamp": edit_bound(rule="mask"),
    "token_level": edit(level="token"),
    "sequence_level": edit(level="sequence"),
    "geometric_level": edit(level="geometric"),
    "token_weights": edit(level="token", loss="differentiable"),
    "reward_everywhere": edit(advantages=at_every_token),
    "token_mean": edit(aggregation="token-mean"),
    "mean_of_sequence_means": edit(aggregation="seq-mean-token-mean"),
    "mean_of_sequence_sums": edit(aggregation="seq-mean-token-sum"),
    "sum": edit(aggregation="seq-mean-token-sum", denominator=1.0),
    "padding_counted": edit(aggregation="seq-mean-token-sum", denominator=places),
    "empty_rows_counted": edit(denominator=lambda x: float(len(x["mask"]))),
    "mask_ignored": edit(mask=lambda x: [[1] * len(row) for row in x["mask"]]),
    "constant_dropped": edit(denominator=None),
    "sampler_ignored": edit(logp_sampler=None),
    "sampler_unbounded": edit(sampler_bound=None),
    "old_replaced_by_sampler": edit(logp_old=lambda x: x["logp_sampler"], logp_sampler=None),
    "newest_version_for_all": edit(logp_old=lambda x: x["logp_versions"][-1]),
    "oldest_version_for_all": edit(logp_old=lambda x: x["logp_versions"][0]),
    "first_version_for_all": edit(logp_old=lambda x: drawn_by(x, [row[:1] * len(row) for row in x["version"]])),
    "version_one_token_late": edit(logp_old=lambda x: drawn_by(x, [[row[0], *row[:-1]] for row in x["version"]])),
}
# The same of penalties beside a clip, where rpg_ref has the loss itself.
OURS_WITH_CLIP = {"unweighted_k3": "grpo", "live_weight_k3": "grpo_corrected", "unweighted_k2": "k2"}
OUR_BASELINES = {
    "own_sample_baseline": "group_mean",
    "leave_one_out": "leave_one_out",
    "batch_for_group": "batch_mean",
    "group_for_batch": "group_mean",
    "no_baseline": "none",
    "not_divided": "group_mean",
    "batch_std_for_group": "group_mean_batch_std",
    "group_std_for_batch": "group_std",
}


def test_wrong_answers_that_rpg_ref_gives_too():
    """A mistaken choice gives in rpg_ref the very wrong answer of its name."""
    replayed = set()
    for case in of_kind("batch"):
        for wrong in case["wrong"]:
            name, x = wrong["name"], case["inputs"]
            if name not in OURS:
                continue
            mistaken = OURS[name](x)
            if x["clip"] and name in OURS_WITH_CLIP:
                mistaken = x | {"loss": OURS_WITH_CLIP[name], "divergence": "urkl"}
            loss, gradient = replay(mistaken)
            answer = loss if case["contract"] == "loss" else gradient
            said = diagnose(case, answer, rtol=1e-11)
            assert name in said, (case["id"], name, said)
            replayed.add(name)
    assert replayed == set(OURS)


def test_wrong_functions_and_baselines_that_rpg_ref_has():
    for case in of_kind("function"):
        for wrong in case["wrong"]:
            mass = OTHER_MASS.get(case["inputs"]["function"]) if "normalised" in wrong["name"] else None
            other = wrong["name"] if wrong["name"] in FUNCTIONS else mass
            if other:
                assert wrong["name"] in diagnose(case, along(case["inputs"], other)[1], rtol=1e-11)
    for case in of_kind("advantages"):
        for wrong in case["wrong"]:
            if wrong["name"] in OUR_BASELINES:
                A = advantages_of(case["inputs"], OUR_BASELINES[wrong["name"]])
                assert wrong["name"] in diagnose(case, A, rtol=1e-12)


@each(FILES["stale"]["cases"])
def test_a_stale_sampler_s_log_probabilities_are_those_of_each_token_s_version(case):
    x = case["inputs"]
    assert x.get("logp_sampler", x["logp_old"]) == drawn_by(x, x["version"])


# --------------------------------------------------------------------------------------- 5, 6: claims, coverage
def test_claims_exist():
    assert {case["claim"] for case in CASES} <= set(CLAIMS)


def inputs_named(name):
    return {case["inputs"].get(name) for case in CASES}


def test_coverage():
    """Every loss of the recipes, every row of every table, and every mistake of the generator is in some vector."""
    # Other methods' gates are held by tests/test_gates.py alone: the vectors are to stay small.
    losses = {row.loss for row in RECIPES.values()} - {gated_loss}
    assert losses <= {LOSSES.get(name) for name in inputs_named("loss")}
    assert inputs_named("loss") - {None} == set(LOSSES) | set(FORMS)
    for name, table in (("divergence", DIVERGENCES), ("level", LEVELS), ("aggregation", AGGREGATIONS)):
        assert inputs_named(name) - {None} == set(table)
    assert inputs_named("baseline") - {None} == set(BASELINES)
    assert inputs_named("function") - {None} == set(FUNCTIONS)
    named = {wrong["name"] for case in CASES for wrong in case["wrong"]}
    assert named == set(generate.MISTAKES) | set(generate.OF_FUNCTIONS) | set(generate.WRONG_RULES) | {
        "slope_without_v",
        "cancellation",
    }
    assert set(generate.TOPICS) == set(FILES)


# ------------------------------------------------------------------------------------------------- the diagnosis
def case_named(name):
    return next(case for case in CASES if case["id"] == name)


def test_the_readme_prints_what_it_says(monkeypatch):
    monkeypatch.chdir(VECTORS.parents[1])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(CODE[1], "README.md", "exec"), dict(NAMES))
    assert printed.getvalue() == PRINTED


def test_diagnose():
    case = case_named("surrogate-urkl-ref")
    right = case["gradient"]
    assert diagnose(case, right) == "right"
    assert diagnose(case, [[2 * g for g in row] for row in right]) == "you have the right gradient times 2"
    assert diagnose(case, [[0 * g for g in row] for row in right]) == "you have the right gradient times 0"
    assert "neither right nor" in diagnose(case, [[g + 0.01 for g in row] for row in right])
    assert "neither right nor" in diagnose(case, [[math.nan for _ in row] for row in right])
    grpo = next(wrong for wrong in case["wrong"] if wrong["name"] == "unweighted_k3")
    assert diagnose(case, grpo["gradient"]) == f"you have unweighted_k3: {grpo['meaning']}"


def test_diagnose_names_all_that_match():
    case = case_named("penalty-unweighted_k1")
    k2_alone = next(wrong for wrong in case["wrong"] if wrong["name"] == "unweighted_k2")
    assert re.findall(r"(\w+): ", diagnose(case, k2_alone["gradient"])) == ["unweighted_k2", "straight_through_k3"]


def test_diagnose_reads_nan_and_losses():
    case = case_named("masked-clipped-nan")
    assert "mask_after_arithmetic" in diagnose(case, decoded(case["wrong"][0]["gradient"]))
    case = case_named("clip-value")
    assert diagnose(case, case["loss"]) == "right"
    assert "neither right nor" in diagnose(case, 2 * case["loss"])
    assert "dead_value_minus_penalty" in diagnose(case, case["wrong"][0]["loss"])
