"""Every claim changed mechanically: a sample, each change refuted or true for a reason; `make tamper` has all."""

import random
from dataclasses import replace

import pytest
import sympy as sp
from tiers import quick

from proofs import CLAIMS
from proofs.certificate import DIFFERENT, EQUAL, LESS, Claim, equal, related
from proofs.language import FROM, KL, LAST, PAST, SG, THROUGH, WITHIN, E, Grad, Slope, at, over
from proofs.symbols import G, K, R, beta, k, p, q, r, t, u, v, w
from proofs.tamper import (
    ENUMERATED,
    NO_MEANING,
    NO_VALUE,
    REASONS,
    REFUTED,
    SURVIVED,
    TRUE,
    changes,
    main,
    reason,
    tampered,
    verdict,
)
from proofs.worlds import Numbers

SLOW = {"group_std", "group_mean", "leave_one_out", "dropped_groups", "monte_carlo_rate", "length_normalisation"}


def kinds_of(e):
    found = {}
    for kind, changed in changes(e):
        found.setdefault(kind, set()).add(changed)
    return found


def test_each_kind_is_made_at_every_place_where_it_applies():
    assert kinds_of((G - 1) / G)["constant"] == {sp.Integer(1)}
    assert kinds_of((G - 1) / G)["sign"] == {(G + 1) / G, (-G - 1) / G}
    assert kinds_of(w**2)["exponent"] == {w**3} and kinds_of(1 / w)["exponent"] == {w**-2}
    assert kinds_of(KL(p, r))["direction"] == {KL(r, p), KL(q, r), KL(r, r), KL(p, p), KL(p, q)}
    assert kinds_of(u * v)["direction"] == {w * v, v**2, u * w, u**2}
    assert kinds_of(beta * u)["weight"] == {u, beta, beta**2 * u, beta * u**2}
    scopes = {at(u, t, scope) for scope in (WITHIN, THROUGH, LAST)}
    assert kinds_of(over(t, at(u, t, PAST)))["prefix"] == {over(t, x) for x in scopes}
    assert kinds_of(over(t, at(u, t, PAST)))["direction"] == {over(t, at(x, t, PAST)) for x in (w, v)}
    others = over(t, over(k, at(w, t) * at(v, k), FROM, t))
    assert over(t, over(k, at(w, k) * at(v, k), FROM, t)) in kinds_of(others)["index"]
    assert kinds_of(SG(w) * R)["detach"] == {w * R} and kinds_of(Grad(E(q, w * R)))["detach"] == {Grad(E(q, SG(w) * R))}
    assert "detach" not in kinds_of(E(q, w * R))  # of which no gradient is taken


def test_relations_are_turned_and_definitions_changed_with_both_sides():
    statement = equal(Grad(sp.Symbol("J")), Grad(E(p, R)), J=E(p, R))
    found = [x.after for x in tampered(Claim("one", "nowhere", (statement,), {}))]
    assert replace(statement, relation=DIFFERENT) in found
    assert any(list(x.definitions.values()) == [E(q, R)] for x in found)
    least = related(v, LESS, w)
    assert [x.after.relation for x in tampered(Claim("two", "nowhere", (least,), {}))] == [">"]


def test_what_survives_must_be_true():
    """A baseline's factor is free, a weight is not; and a false claim has no true changes."""
    found = {str(x.after): verdict(x) for x in tampered(CLAIMS["baseline"])}
    assert found[r"E_{p}\left[\nabla \log p\right] = 0"] == TRUE
    assert found[r"E_{q}\left[b\,\nabla \log p\right] = 0"] == REFUTED
    assert set(found.values()) == {TRUE, REFUTED}
    squares = next(
        x for x in tampered(CLAIMS["baseline"]) if str(x.after) == r"E_{p}\left[b^{2}\,\nabla \log p\right] = 0"
    )
    assert reason(squares) == "what was zero stays zero"
    logs = Claim("logs", "nowhere", (equal(sp.log(1 + v), sp.log(v + 1)),), {})
    assert {verdict(x) for x in tampered(logs)} <= {REFUTED, NO_VALUE, SURVIVED}


def test_what_the_language_refuses_has_no_meaning():
    """∂(v²)/∂log v with w for one v; a statement that has none itself proves nothing of its changes."""
    claim = Claim("slope", "nowhere", (equal(Slope(v**2 + v, v), 2 * v**2 + v, Numbers()),), {})
    found = {x.after.left: verdict(x) for x in tampered(claim)}
    assert found[Slope(w**2 + v, v)] == found[Slope(v**2 + w, v)] == NO_MEANING
    refused = Claim("refused", "nowhere", (equal(Slope(w, v), Slope(w, v) * beta, Numbers()),), {})
    for change in tampered(refused):
        with pytest.raises(ValueError, match="does not move"):
            verdict(change)


def test_an_indicator_is_its_own_square():
    claim = Claim("kept", "nowhere", (equal(Grad(E(p, K * R)), E(p, K * R * Grad(sp.log(p)))),), {})
    twice = [x for x in tampered(claim) if "^{2}" in str(x.after) and "R^{2}" not in str(x.after)]
    reasons = {reason(x) for x in twice if verdict(x) == TRUE}
    assert reasons == {"what is 0 or 1 is its own square"}


def test_a_checker_that_believes_everything_is_found(monkeypatch, capsys):
    monkeypatch.setattr("proofs.tamper.is_refuted", lambda statement: False)
    assert main(["prop_2_1"]) == 1
    assert "survived: prop_2_1" in capsys.readouterr().out


def test_the_command_counts_by_kind(capsys):
    assert main(["baseline", "prefix_forward_kl"]) == 0
    out = capsys.readouterr().out
    assert "true: baseline, weight:" in out and REASONS["weight"] in out
    kinds = {
        line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()[0] in (*REASONS, "all", "kind")
    }
    assert int(kinds["prefix"][0]) > 10 and int(kinds["all"][0]) > 100 and kinds["all"][-1] == "0"


SAMPLED = [x for x in CLAIMS if x not in SLOW]


@pytest.mark.parametrize("name", quick(SAMPLED, set(SAMPLED[::2]) - {"ppo_clip_two_arms"}))
def test_a_sample_of_every_claims_changes(name):
    found = list(tampered(CLAIMS[name]))
    chosen = random.Random(name).sample(found, min(4, len(found)))
    assert found and all(verdict(x) != SURVIVED for x in chosen)


@pytest.mark.parametrize("name", sorted(SLOW))
def test_of_groups_the_factor_is_changed(name):
    """G − 1 for G + 1, and the like."""
    found = [x for x in tampered(CLAIMS[name]) if x.kind == "sign" and x.after.relation == EQUAL]
    assert verdict(found[0]) in (REFUTED, TRUE, ENUMERATED)
