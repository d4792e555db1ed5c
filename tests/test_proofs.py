"""The certificate holds, the checker itself can fail, and the shipped code is what the proofs are about."""

import dataclasses
import hashlib
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DIVERGENCE_NAMES, betas

import proofs
from proofs import CLAIMS, divergence_table, sequences
from proofs.__main__ import main
from proofs.certificate import Claim, Verdict, check, is_refuted, residual
from proofs.clip_region import clip
from proofs.expectations import expectation_old, finite, group, on_policy, pointwise
from proofs.symbols import A, R, Z, beta, f, log_v, p, q, r, theta, theta_frozen, u, v, w
from rpg_ref import DIVERGENCES, differentiable_loss, reinforce_loss, weight

ROOT = Path(__file__).parents[1]


# What `python -m proofs` printed: the README and the pages quote it.
CERTIFICATE = {
    line.split()[0]: re.search(r"proved; \d+ near misses refuted", line).group()
    for line in (ROOT / "docs/certificate.txt").read_text().splitlines()
}


def test_the_certificate_on_file_lists_every_claim():
    assert list(CERTIFICATE) == list(CLAIMS)


def verdict_of(name, cache):
    """The claim's verdict, from pytest's cache if the proofs and the algebra systems are those of the last run."""
    texts = [path.read_text() for path in sorted((ROOT / "proofs").glob("*.py"))]
    key = hashlib.sha256("\0".join([*texts, sp.__version__, mpmath.__version__, sys.version]).encode()).hexdigest()
    place = f"proofs/{key}/{name}"
    stored = None if cache is None else cache.get(place, None)
    if stored:
        proved, refuted, failures = stored
        return Verdict(proved, refuted, tuple(failures))
    verdict = check(CLAIMS[name])
    if cache is not None and not verdict.failures:
        cache.set(place, [verdict.proved, verdict.refuted, []])
    return verdict


@pytest.mark.parametrize("name", CLAIMS)
def test_claim(name, request):
    verdict = verdict_of(name, getattr(request.config, "cache", None))
    assert verdict.failures == () and verdict.refuted >= 2 and verdict.proved >= 1
    assert CERTIFICATE[name] == str(verdict) == f"proved; {verdict.refuted} near misses refuted"


STATED = [
    *("Prop. 2.1", "App. C.1", "Prop. 3.2", "Prop. 3.6", "Defs 3.1, 3.4", "Remark 3.3", "Remark 3.5, App. D"),
    *("Prop. E.1", "Remark E.2", "Prop. E.3", "Props 4.1, F.1, F.3–F.5"),
    *("App. B", "§2.1", "§2.2", "§3.3", "§4.1", "§5", "App. G", "Algorithm 1", "Algorithms 1, 2"),
    *("errata, ground-truth table", "errata, paper rows 1–3", "paper row 5", "paper row 7", "paper row 10"),
    *("released-code rows 3, 4", "other libraries"),
]


@pytest.mark.parametrize("statement", STATED)
def test_every_statement_has_a_claim(statement):
    """Whatever the paper states and the errata deny has a claim that cites it."""
    assert any(statement in claim.source for claim in CLAIMS.values())


def test_every_claim_is_registered_under_its_own_name():
    names = [m.name for m in pkgutil.iter_modules(proofs.__path__) if m.name != "__main__"]
    modules = [importlib.import_module(f"proofs.{name}") for name in names]
    claims = [c for m in modules for c in (*getattr(m, "CLAIMS", ()), getattr(m, "CLAIM", None)) if c]
    assert sorted(claim.id for claim in claims) == sorted(CLAIMS)


TRUE, FALSE = (sp.log(p / q), sp.log(p) - sp.log(q)), (p * q, p / q)


@pytest.mark.parametrize(
    ("identities", "near_misses", "failure"),
    [
        ({"x": FALSE}, {"a": FALSE, "b": FALSE}, "“x” leaves a residual"),
        ({"x": TRUE}, {"a": FALSE, "b": TRUE}, "“b” is true"),
        ({"x": TRUE}, {"a": FALSE, "b": (sp.erf(p), q)}, "“b” is undecided"),
        ({"x": TRUE}, {"a": FALSE}, "1 near misses are stated"),
        ({}, {"a": FALSE, "b": FALSE}, "no identity"),
    ],
)
def test_the_checker_can_fail(identities, near_misses, failure, monkeypatch, capsys):
    claim = Claim("broken", "nonsense", "nowhere", lambda: identities, lambda: near_misses)
    verdict = check(claim)
    assert len(verdict.failures) == 1 and failure in verdict.failures[0]
    monkeypatch.setitem(CLAIMS, "broken", claim)
    assert main(["broken"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_two_spellings_of_one_argument_refute_nothing():
    assert not is_refuted((f((p + q) * r), f(p * r + q * r)))
    assert not is_refuted((f(sp.log(p * q)), f(sp.log(p) + sp.log(q))))
    assert is_refuted((f((p + q) * r), f(p * r + q)))


def test_roots_are_enclosed_where_they_are_real():
    assert is_refuted((sp.sqrt(p), p)) and is_refuted((p ** sp.Rational(1, 3), sp.sqrt(p)))
    assert not is_refuted((sp.sqrt(-p), p))


def test_an_undecided_comparison_is_an_error():
    with pytest.raises(ValueError, match="smaller region"):
        clip(q, sp.S.Zero, r)


def test_a_group_is_independent_samples():
    """The enumeration's own sums: probabilities add up to one, and means of products are products of means."""
    assert residual((group(3, lambda drawn: sp.S.One), sp.S.One)) == 0
    assert residual((group(2, lambda drawn: drawn[0](R) * drawn[1](A)), finite(p * R) * finite(p * A))) == 0


def test_on_policy_is_the_same_numbers_held_fixed():
    frozen_loss = on_policy(expectation_old(sp.log(v)))
    assert residual((pointwise(p * sp.log(v)), frozen_loss.xreplace({theta_frozen: theta}))) == 0
    assert theta_frozen in frozen_loss.free_symbols


@pytest.mark.parametrize("leaves", [sequences.EVEN, sequences.RAGGED])
@pytest.mark.parametrize("policy", [sequences.new, sequences.old, sequences.ref, sequences.frozen])
def test_a_trees_probabilities_add_up(policy, leaves):
    assert residual((sequences.expectation(policy, leaves, lambda y: sp.S.One), sp.S.One)) == 0
    expected_length = sequences.expectation(policy, leaves, lambda y: sp.Integer(len(y)))
    assert residual((sequences.over_histories(policy, leaves, lambda h: sp.S.One), expected_length)) == 0


def test_a_wrong_sign_in_a_proposition_is_found():
    claim = CLAIMS["prop_3_6_urkl"]
    flipped = {name: (left, -right) for name, (left, right) in claim.identities().items()}
    assert len(check(dataclasses.replace(claim, identities=lambda: flipped)).failures) == len(flipped)


def test_the_command(capsys):
    assert main(["prop_3_6_urkl"]) == 0
    assert "proved; 6 near misses refuted" in capsys.readouterr().out
    assert main(["prop_3_6"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "prop_3_6_urkl" in error


def test_proofs_import_nothing_of_the_code():
    script = "import sys, proofs; print([m for m in ('rpg_ref', 'torch', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


ratios = st.floats(-8.0, 8.0)


@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
@given(log_w=ratios, log_u=ratios, advantage=st.floats(-3, 3), b=betas, log_mass=st.floats(-2, 2))
def test_code_against_the_expressions(name, log_w, log_u, advantage, b, log_mass):
    """f, slope, surrogate and weight: torch beside lambdified sympy, and the losses' autograd beside the weight."""
    values = {w: np.exp(log_w), u: np.exp(log_u), A: advantage, beta: b, Z: np.exp(log_mass)}
    logp = torch.tensor(-20.0, dtype=torch.float64, requires_grad=True)
    old = (logp - log_w).detach()
    ref = old + log_u
    arguments = (logp, old, advantage, name, b)
    choices = {"logp_ref": ref, "log_mass_old": log_mass}
    d = torch.tensor(log_w - log_u, dtype=torch.float64)
    size = values[Z] * (values[w] + b * max(values[u], values[w] * (2 + abs(d.item())) * max(1, np.exp(d.item()))))
    row = DIVERGENCES[name]

    def close(found: torch.Tensor, expression: sp.Expr, at: dict, scale: float) -> None:
        exact = float(sp.lambdify(list(at), expression, "mpmath")(*at.values()))
        assert abs(found.item() - exact) <= 1e-12 * (1 + scale)

    v_size = max(1.0, np.exp(d.item())) * (1 + abs(d.item())) * max(1.0, np.exp(d.item()))
    close(row.f(d), divergence_table.GENERATORS[name], {v: np.exp(d.item())}, v_size)
    close(row.slope(d), divergence_table.slope(name), {log_v: d.item()}, v_size)
    close(differentiable_loss(*arguments, **choices), divergence_table.surrogate(name), values, 3 * size)
    close(weight(*arguments, **choices), divergence_table.weight(name), values, 3 * size)
    for loss in (differentiable_loss, reinforce_loss):
        (g,) = torch.autograd.grad(loss(*arguments, **choices), logp)
        close(-g, divergence_table.weight(name), values, 3 * size)


class Shelf(dict):
    """What pytest's cache is to ``verdict_of``."""

    set = dict.__setitem__


def test_a_proved_claim_is_proved_once_and_a_failed_one_every_time(monkeypatch):
    shelf, checked = Shelf(), []
    monkeypatch.setattr("test_proofs.check", lambda claim: checked.append(claim.id) or Verdict(1, 2, ()))
    first, second = verdict_of("one_idea", shelf), verdict_of("one_idea", shelf)
    assert first == second == Verdict(1, 2, ()) and checked == ["one_idea"]
    monkeypatch.setattr("test_proofs.check", lambda claim: checked.append(claim.id) or Verdict(0, 2, ("broken",)))
    assert verdict_of("baseline", shelf).failures == verdict_of("baseline", shelf).failures == ("broken",)
    assert checked == ["one_idea", "baseline", "baseline"]


def test_changed_sources_are_proved_again(monkeypatch):
    shelf, checked = Shelf(), []
    monkeypatch.setattr("test_proofs.check", lambda claim: checked.append(claim.id) or Verdict(1, 2, ()))
    verdict_of("one_idea", shelf)
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, *a: read(self, *a) + "# one more line")
    verdict_of("one_idea", shelf)
    assert checked == ["one_idea", "one_idea"]
