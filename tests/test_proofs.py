"""The certificate holds, the checker itself can fail, and the shipped code is what the proofs are about."""

import dataclasses
import hashlib
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from fractions import Fraction
from math import prod
from pathlib import Path

import mpmath
import numpy as np
import numpy_oracle
import pytest
import sympy as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DIVERGENCE_NAMES, betas, share
from tiers import quick

import proofs
from proofs import CLAIMS, divergence_table
from proofs.__main__ import ledger, main
from proofs.best_response import GAME
from proofs.certificate import (
    ANY,
    ANY_MASS,
    DIFFERENT,
    DIVERGENCE,
    EQUAL,
    GROUPS,
    LESS,
    NO_COMBINATION,
    NORMALISED,
    POSITIVE,
    TREES,
    Claim,
    Statement,
    Verdict,
    agrees,
    check,
    equal,
    is_proved,
    is_refuted,
    quantifiers,
    related,
)
from proofs.enclosed import Real
from proofs.exact import NoValueError, Poly, intern, is_zero
from proofs.group_advantages import GROUP_MEAN_ADVANTAGE, group_gradient
from proofs.language import (
    BEFORE,
    FROM,
    KL,
    LAST,
    NOT,
    PAST,
    SG,
    THROUGH,
    Along,
    By,
    E,
    Given,
    Grad,
    InReward,
    Larger,
    Limit,
    Next,
    OfGroup,
    OfOthers,
    Partial,
    Ratio,
    Slope,
    Total,
    Versus,
    at,
    f,
    f_prime,
    f_second,
    latex,
    over,
    score,
)
from proofs.machine import Machine
from proofs.stale_sampler import VERSIONS
from proofs.symbols import (
    MOVING,
    A,
    G,
    J,
    K,
    R,
    S,
    T,
    Z,
    a,
    b,
    beta,
    falling,
    g,
    h,
    i,
    j,
    k,
    lagrange,
    log_v,
    loss,
    p,
    payoff,
    q,
    q_tilde,
    r,
    s,
    t,
    to_lagrange,
    transposed,
    u,
    v,
    w,
    z,
)
from proofs.worlds import TREE, Listed, Numbers, Space, Tree
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


@pytest.mark.parametrize("name", quick(CLAIMS, set(list(CLAIMS)[::3]) - {"group_std", "token_mean"}))
def test_every_equation_that_is_proved_is_enumerated_too(name):
    """The proof by unknowns and the sum at three random points agree: a mistake in one of them would show."""
    for statement in CLAIMS[name].statements:
        assert statement.relation != EQUAL or agrees(statement), str(statement)


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
    claims = {id(c): c for m in modules for c in (*getattr(m, "CLAIMS", ()), getattr(m, "CLAIM", None)) if c}
    claims = [c for c in claims.values() if isinstance(c, Claim)]
    assert sorted(claim.id for claim in claims) == sorted(CLAIMS)


# The checker itself

L = sp.Symbol("L")
TRUE, FALSE = equal(sp.log(p / q), sp.log(p) - sp.log(q)), equal(p * q, p / q)
REFUSED = equal(E(p, 1 / K), 1)  # which has no value
OPEN = equal(Total(sp.log(p + q)), Total(sp.log(p + q) * (p + r) / (p + r)))


@pytest.mark.parametrize(
    ("statements", "near_misses", "failure"),
    [
        ((FALSE,), {"a": FALSE, "b": FALSE}, "“p\\,q = \\frac{p}{q}” is not proved"),
        ((TRUE,), {"a": FALSE, "b": TRUE}, "“b” is true"),
        ((TRUE,), {"a": FALSE}, "1 near misses are stated"),
        ((), {"a": FALSE, "b": FALSE}, "nothing is stated"),
        ((REFUSED,), {"a": FALSE, "b": FALSE}, "is not proved"),
        ((TRUE,), {"a": FALSE, "b": REFUSED}, "“b” is undecided"),
    ],
)
def test_the_checker_can_fail(statements, near_misses, failure, monkeypatch, capsys):
    claim = Claim("broken", "nowhere", statements, near_misses)
    verdict = check(claim)
    assert len(verdict.failures) == 1 and failure in verdict.failures[0]
    monkeypatch.setitem(CLAIMS, "broken", claim)
    assert main(["broken"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_divergence_of_a_policy_from_itself_is_refuted_by_nobody():
    """D_f(r, r) = 0 is true of every f with f(1) = 0, and the checker knows that of f."""
    for zero in (E(r, f(r / r)), E(p, f(SG(p) / p)), f(1), E(r, f((p / q) * (q / p)))):
        assert is_proved(equal(zero, 0)) and not is_refuted(equal(zero, 0)) and agrees(equal(zero, 0))
    assert not is_proved(equal(f_prime(1), 0)) and is_refuted(equal(f_prime(1), 0))
    assert not is_proved(equal(f_second(1), 1)) and is_refuted(equal(f_second(1), 1))


@pytest.mark.parametrize("factor", [(G + 1) / 6, G / (G + 1), 1 / G, 2 / G**2 - sp.Rational(1, 18) * G + 1])
def test_a_factor_that_is_right_at_two_group_sizes_is_not_proved_of_all(factor):
    """(G + 1)/6 is (G − 1)/G at G = 2 and 3: only the advantage itself, at any G, tells them apart."""
    wrong = equal(OfGroup(q, group_gradient(GROUP_MEAN_ADVANTAGE)), factor * Grad(E(p, R)), GROUPS)
    assert not is_proved(wrong) and is_refuted(wrong)
    assert is_proved(dataclasses.replace(wrong, right=(G - 1) / G * Grad(E(p, R))))


@pytest.mark.parametrize(
    "value",
    [
        over(i, at(R, i)) ** 2,
        1 / over(i, at(T, i)),
        over(i, at(R, i)) * over(j, at(A, j)),
        over(i, (at(R, i) - over(j, at(R, j)) / G) ** 2),
        sp.log(over(i, at(T, i))),
    ],
)
def test_at_any_group_size_sums_beside_each_other_are_not_taken_for_one(value):
    """E[(Σ R_i)²] is not G²·E[R²]. A sum within a sum has two samples; two sums beside each other would have one."""
    with pytest.raises(ValueError, match="may stand in another, but not beside it"):
        is_proved(equal(OfGroup(q, value), G**2 * E(q, R**2), GROUPS))
    nested = over(i, at(R, i) * over(j, at(R, j)))
    assert is_proved(equal(OfGroup(q, nested), G * E(q, R**2) + G * (G - 1) * E(q, R) ** 2, GROUPS))


def _of_pairs(value, relation=NOT):
    return OfGroup(q, over(i, over(j, value, relation, i)))


def _of_samples(value):
    return OfGroup(q, over(i, value))


OF_THREE = Listed(old_is_normalised=True, group=3)


@pytest.mark.parametrize(
    ("left", "right", "world"),
    [
        (_of_pairs(at(R, i) * at(R, j), BEFORE), G * (G - 1) * E(q, R) ** 2, GROUPS),
        (
            _of_pairs(at(R, i) * at(R, j) / (at(T, i) + at(T, j))),
            E(q, R) * _of_pairs(at(R, i) / (at(T, i) + at(T, j))),
            GROUPS,
        ),
        (_of_samples(at(R, i) * OfGroup(q, at(R, i))), G * E(q, R) ** 2, GROUPS),
        (over(i, at(R, i)) * over(j, at(A, j)), G * over(i, at(R, i) * at(A, i)), GROUPS),
        (_of_samples(at(R, i, PAST)), _of_samples(at(R, i)), GROUPS),
        (OfGroup(q, sp.Integer(1)), Z**4, Space(group=G)),
        (OfGroup(p, sp.Integer(1)), E(p, sp.Integer(1)) ** 4, Space(any_mass=(p,), group=G)),
        (
            OfOthers(q, over(i, at(R, i) * OfOthers(q, at(R, i)))),
            OfOthers(q, over(i, at(R, i))) * E(q, R),
            OF_THREE,
        ),
        (_of_samples(at(R, i, LAST)), _of_samples(at(R, i)), OF_THREE),
        (OfGroup(q, over(i, at(R, i), BEFORE, j)), sp.Integer(0), OF_THREE),
        (E(p, OfGroup(q, over(i, at(R, i)))), OfGroup(q, over(i, R)), Tree(old_is_normalised=True, group=3)),
        (OfGroup(q, over(i, at(R, i))), G * R, Numbers(group=3)),
    ],
)
def test_what_a_group_does_not_say_is_refused(left, right, world):
    """An order of samples, a group in a group, a sum outside of one, a function of two samples, a mass of any size."""
    with pytest.raises(ValueError, match="group|index"):
        is_proved(equal(left, right, world))


def test_five_sums_over_a_group_of_any_size_are_too_many():
    indices = [*map(sp.Symbol, "abcde")]
    value = at(R, indices[-1])
    for n in reversed(range(5)):
        value = over(indices[n], value)
    with pytest.raises(ValueError, match="4 sums"):
        is_proved(equal(OfGroup(q, value), G**5 * E(q, R), GROUPS))
    assert is_proved(equal(OfGroup(q, value.args[0].subs(indices[0], indices[1])), G**4 * E(q, R), GROUPS))


def test_a_group_keeps_the_outcome_at_which_it_is_drawn():
    for world in (GROUPS, OF_THREE):
        drawn = E(q, R * OfGroup(q, over(i, at(R, i))))
        assert is_proved(equal(drawn, G * E(q, R) ** 2, world)) and not is_refuted(
            equal(drawn, G * E(q, R) ** 2, world)
        )
        assert is_proved(equal(E(q, OfGroup(q, R)), E(q, R), world))
        assert not is_refuted(equal(E(q, OfGroup(q, R)), E(q, R), world))


def test_a_history_of_two_tokens_tells_the_last_ones_weight_from_the_products():
    """u_{t−1}·u_t for u_{<t}·u_t is right on responses of two tokens: the tree has longer ones, of uneven lengths."""
    fkl = -at(u, t) * sp.log(at(v, t))
    right = equal(Grad(E(q, over(t, at(u, t, PAST) * fkl))), Grad(KL(r, p)), TREES)
    wrong = dataclasses.replace(right, left=Grad(E(q, over(t, at(u, t, LAST) * fkl))))
    assert is_proved(right) and not is_proved(wrong) and is_refuted(wrong)
    two = Tree(leaves=((0, 0), (0, 1), (1, 0), (1, 1)), old_is_normalised=True)
    assert is_proved(dataclasses.replace(wrong, world=two))  # as a tree of two tokens would have said
    lengths = {len(y) for y in TREE}
    assert min(lengths) == 1 and max(lengths) >= 3 and len({y[0] for y in TREE}) >= 3


def test_two_spellings_of_one_argument_refute_nothing():
    assert not is_refuted(equal(f((p + q) * r), f(p * r + q * r)))
    assert not is_refuted(equal(f(sp.log(p * q)), f(sp.log(p) + sp.log(q))))
    assert is_refuted(equal(f((p + q) * r), f(p * r + q)))


def test_roots_are_enclosed_where_they_are_real():
    assert is_refuted(equal(sp.sqrt(p), p)) and is_refuted(equal(p ** sp.Rational(1, 3), sp.sqrt(p)))


def test_what_cannot_be_decided_is_neither_proved_nor_refuted():
    assert not is_refuted(OPEN)


def test_an_undecided_comparison_is_an_error():
    for open_ in (A, p - q, 1 / (p - q), sp.log(p)):
        with pytest.raises(ValueError, match="smaller region"):
            is_proved(equal(Larger(open_, 0), open_, Numbers()))
    assert is_proved(equal(Larger(1 / (p + q), 0), 1 / (p + q), Numbers()))


def test_a_condition_that_is_not_met_proves_nothing():
    assert is_proved(equal(Larger(A, 0), A, Numbers(region=((A, "A>0", p),))))
    assert is_proved(equal(Larger(A, 0), 0, Numbers(region=((A, "A<0", -p),))))


def test_each_relation_has_two_sides():
    below, above = related(v, LESS, v + p, Numbers()), related(v + p, POSITIVE, v, Numbers())
    assert is_proved(below) and is_proved(above)
    for false in (
        related(v + p, LESS, v, Numbers()),
        related(v, POSITIVE, v + p, Numbers()),
        related(v, LESS, p, Numbers()),
    ):
        assert not is_proved(false) and is_refuted(false)
    for generator in (v - 1, -sp.log(v), (v - 1) ** 3, (v - 1) ** 2 - (v - 1) ** 4, (v - 1) ** 2 + 1):
        assert not is_proved(related(generator, DIVERGENCE, 0, Numbers()))
        assert is_refuted(related(generator, DIVERGENCE, 0, Numbers()))
    pair, world = (Grad(KL(p, r)), Grad(KL(r, p))), Listed(outcomes=4)
    inside, outside = Grad(KL(p, r) - KL(r, p)), Grad(E(p, R))
    assert is_proved(related(outside, NO_COMBINATION, pair, world))
    false = related(inside, NO_COMBINATION, pair, world)
    assert not is_proved(false) and is_refuted(false)


def test_a_number_moves_alone():
    """In By a policy stands still unless its definition holds the number; two kinds of derivative do not mix."""
    for left, right, worlds in (
        (By(beta**2 * E(p, R), beta), 2 * beta * E(p, R), (ANY, TREES)),
        (By(By(E(p, R) / beta, beta), beta), 2 * E(p, R) / beta**3, (ANY, TREES)),
        (By(KL(p, r), beta), sp.Integer(0), (ANY, TREES)),
        (By(E(q, over(t, at(w, t))), beta), sp.Integer(0), (TREES,)),
        (By(sp.exp(z / beta), beta), -z * sp.exp(z / beta) / beta**2, (ANY,)),
        (By(sp.log(p) / beta, beta), -sp.log(p) / beta**2, (Numbers(),)),
    ):
        for world in worlds:
            assert is_proved(equal(left, right, world)) and not is_refuted(equal(left, right, world))
            assert is_refuted(equal(left, right + 1, world))
    for mixed in (Grad(By(beta * p, beta)), By(Grad(beta * p), beta), By(By(beta * b, b), beta)):
        with pytest.raises(ValueError, match="take one of them"):
            is_proved(equal(mixed, 0))
    assert latex(By(KL(p, r), beta)) == r"\frac{\partial}{\partial \beta}KL(p\|r)"


@pytest.mark.parametrize(
    ("left", "right", "world", "names"),
    [
        (By(J, J), 0, ANY, {"J": 2 * beta}),
        (By(p, p), 0, ANY, {}),
        (By(E(p, R), R), 0, ANY, {}),
        (By(beta**2, beta**2), 0, Numbers(), {}),
        (By(log_v, log_v), 0, Numbers(), {}),
        (By(G, G), 0, OF_THREE, {}),
        (By(SG(beta), beta), 0, Numbers(), {}),
        (By(K, K), 0, Numbers(), {}),
        (By(R, R), 0, Numbers(right=True), {}),
        (InReward(p), Grad(p), ANY, {}),
        (Along(g), Grad(g), ANY, {}),
        (Along(p), Grad(p), TREES, {}),
        (Along(p), Grad(p), Numbers(), {}),
        (Grad(E(p, R), a), Grad(E(p, R), h), ANY, {}),
        (Grad(Grad(z**2, a), h), Grad(Grad(z**2, a), a), ANY, {}),
        (Grad(Larger(p, SG(p))), Grad(p), Numbers(), {}),
        (Partial(p * g), g + p * Grad(g) / Grad(p), ANY, {}),
        (Partial(E(p, R)), Grad(E(p, R)) / Grad(p), ANY, {}),
        (Slope(v * g, v), v * g + v**2 * Grad(g) / Grad(v), ANY, {}),
        (Slope(v * w, v), v * w + v**2 * Grad(w) / Grad(v), Numbers(), {}),
        (Grad(E(p, R)), E(p, R), Listed(at={p: (sp.Rational(1, 3),) * 3}), {}),
    ],
)
def test_what_moves_otherwise_is_refused(left, right, world, names):
    """A derivative in a name, an expression, a policy; in two directions at once; in one that is not given."""
    statement = equal(left, right, world, **names)
    with pytest.raises(ValueError, match="move|constant in|another direction|no derivative|own value"):
        is_proved(statement)
    assert not is_refuted(statement)


def test_what_moves_is_not_said_to_stand_still():
    for left, right, world in (
        (By(falling, R), 0, Numbers()),
        (InReward(R), 0, Numbers()),
        (By(to_lagrange, lagrange), 0, Numbers()),
        (Grad(loss), 0, Numbers()),
        (Grad(z), z, Space(ray=True)),
        (Grad(z), a, ANY),
        (Grad(Grad(z)), 0, ANY),
    ):
        assert not is_proved(equal(left, right, world)) and is_refuted(equal(left, right, world))
    for left, right, world in (
        (Grad(falling), 0, Numbers()),
        (InReward(R * to_lagrange), to_lagrange - R, Numbers()),
        (Along(z), z, Space(ray=True)),
        (Grad(z, a), a, ANY),
        (Slope(SG(v) * v, v), v**2, Numbers()),
    ):
        assert is_proved(equal(left, right, world)) and not is_refuted(equal(left, right, world))


def test_points_without_a_value_are_passed_over():
    """√E[R] has none where E[R] < 0: three others must agree, and where there are none nothing does."""
    root = sp.sqrt(E(p, R))
    assert agrees(equal(root * E(p, A), E(p, root * A))) and not agrees(equal(root, E(p, A)))
    assert not agrees(equal(sp.sqrt(-E(p, R**2)), sp.sqrt(-E(p, R**2) + b - b * E(p, sp.Integer(1)))))


def test_an_arcsine_is_enclosed():
    for x in (Fraction(-2, 3), Fraction(0), Fraction(1, 2), Fraction(99, 100)):
        found = Real(x).asin().interval
        assert abs(float(found.mid) - float(mpmath.asin(float(x)))) < 1e-15 and found.delta < 1e-40
    with pytest.raises(NoValueError):
        Real(2).asin()
    assert is_refuted(equal(Grad(sp.asin(J) ** 2), Grad(sp.asin(J)), Numbers(), J=p / (p + q)))
    assert is_refuted(equal(sp.asin(J), 3, J=p / 2)) and not is_refuted(equal(sp.asin(J), sp.asin(2 * J / 2), J=p))


@pytest.mark.parametrize(
    ("left", "right", "names"),
    [
        (E(q, over(t, Next(t, sp.Integer(1), at(A, t)))), E(q, T), {}),
        (E(q, over(t, Next(t, sp.Integer(1), at(SG(w), t)))), E(q, T), {}),
        (E(q, over(t, Next(t, sp.Integer(1), at(T, t)))), E(q, T), {}),
        (E(q, over(t, at(R, t, PAST))), E(q, over(t, at(R, t))), {}),
        (E(q, over(t, at(w, t))), E(q, T), {"w": 2 * beta}),
        (E(q, over(t, at(p, t) / at(q, t))), E(q, T), {"p": 2 * beta}),
        (E(q, over(t, Given(t, p, sp.Integer(1)))), E(q, T), {"p": 2 * beta}),
        (E(q, over(t, KL(at(p, t, THROUGH), at(p, t, THROUGH)))), 0, {}),
        (E(q, over(t, KL(at(p, t), r))), E(q, over(t, KL(at(p, t), SG(r)))), {}),
        (E(q, over(t, Next(t, p, sp.Integer(1)))), E(q, over(t, at(p, t, PAST))), {}),
        (E(q, over(t, Next(t, J, sp.Integer(1)))), E(q, over(t, at(p, t, PAST))), {"J": p}),
        (E(q, over(t, E(p, at(w, t, THROUGH)))), E(q, over(t, E(p, at(w, t, THROUGH)) + 0 * R)), {}),
        (E(q, over(t, over(k, KL(at(p, t), at(r, k))))), E(q, over(t, over(k, KL(at(p, k), at(r, t))))), {}),
    ],
)
def test_what_a_token_does_not_have_is_refused(left, right, names):
    """Only policies have a value at one token, and R one of what was written so far; a definition has none."""
    statement = equal(left, right, TREES, **names)
    with pytest.raises(ValueError, match="not known|one token|draws no token|has no token"):
        is_proved(statement)
    assert not is_refuted(statement)


def test_in_a_tree_and_in_algebra_symbols_are_what_they_are_elsewhere():
    """g and the losses move in θ, K and a reward of 0 or 1 are their own squares, q̃ is q of mass one, T a length."""
    for value in (g, S, loss, z):
        assert is_refuted(equal(Grad(E(p, value)), E(p, value * score()), TREES))
        right = equal(Grad(E(p, value)), E(p, value * score() + Grad(value)), TREES)
        assert is_proved(right) and not is_refuted(right)
    two = Tree(leaves=((0, 0), (0, 1)), equal_lengths=True)
    for true in (
        equal(E(p, K**2), E(p, K), TREES),
        equal(K**2, K, Numbers()),
        equal(R**2, R, Tree(right=True)),
        equal(R**2, R, Numbers(right=True)),
        equal(E(p, R**2), E(p, R), Space(right=True)),
        equal(E(q_tilde, R), E(q, R), TREES),
        equal(E(q, over(t, at(q_tilde, t))), E(q, over(t, at(q, t))), TREES),
        equal(T, 2, two),
    ):
        assert is_proved(true) and not is_refuted(true)
    assert is_refuted(equal(R**2, R, TREES)) and is_refuted(equal(K, 1, TREES)) and is_refuted(equal(K, 0, TREES))


epsilon = sp.Symbol("epsilon", positive=True)


@pytest.mark.parametrize(
    ("left", "right", "world"),
    [
        (Limit(epsilon / (sp.sqrt(1 + epsilon) - 1), epsilon), 0, Numbers()),
        (Limit(epsilon * sp.exp(1 / epsilon), epsilon), 0, Numbers()),
        (Limit(epsilon * sp.log(sp.sqrt(1 + epsilon) - 1), epsilon), 0, Numbers()),
        (Limit(f(p + epsilon), epsilon), f(p + epsilon), Numbers()),
        (Limit(v, v), v, Numbers()),
        (Limit(b, b), b, Numbers()),
        (Grad(Limit(p + epsilon, epsilon)), 0, Numbers()),
        (By(Limit(beta + epsilon, epsilon), beta), 0, Numbers()),
        (Limit(E(p, sp.log(T + epsilon)), epsilon), E(p, sp.log(T + epsilon)), ANY),
        (Limit(E(p, T) + epsilon, epsilon), E(p, T), OF_THREE),
        (Total(sp.Integer(1)), 3, Numbers()),
        (KL(p, q), p * sp.log(p / q), Numbers()),
        (Versus(s, R), R, ANY),
        (Ratio(A, A), 1, ANY),
        (E(p, Ratio(K, K)), 1, ANY),
    ],
)
def test_what_has_no_value_that_is_known_is_refused(left, right, world):
    """A limit of 0/0, of ∞·0, of any function, or with a derivative; sums in algebra; 0/0 at some values."""
    with pytest.raises(
        (ArithmeticError, ValueError), match="power below|bound|known|fall|limit in|algebra|listed|is 0"
    ):
        is_proved(equal(left, right, world))


def test_limits_and_ratios_that_are_known():
    for left, right in (
        (Limit(sp.exp(epsilon + b), epsilon), sp.exp(b)),
        (Limit(sp.log(p + epsilon), epsilon), sp.log(p)),
        (Limit(f(p) + epsilon, epsilon), f(p)),
        (Limit(epsilon * f(b) / (1 + epsilon), epsilon), 0),
        (Ratio(p, p + q), p / (p + q)),
        (Ratio(b, sp.sqrt(2) - 1), b / (sp.sqrt(2) - 1)),
        (Ratio(b, J), 0),
    ):
        statement = equal(left, right, Numbers(), J=sp.log(4) - 2 * sp.log(2))
        assert is_proved(statement) and not is_refuted(statement)
    assert is_refuted(equal(Limit(sp.exp(epsilon), epsilon), 2, Numbers())) and is_refuted(
        equal(Limit(b + epsilon, epsilon), 2 * b, Numbers())
    )
    assert is_refuted(equal(E(p, Ratio(K, K)), 1))


def test_an_example_proves_nothing_of_what_it_does_not_give():
    """Of one drawn β it was true that β < 100."""
    example = Listed(at={p: (sp.Rational(1, 3),) * 3})
    assert not is_proved(related(beta, LESS, 100, example))
    assert is_proved(related(beta, POSITIVE, 0, example))
    assert is_proved(related(E(p, sp.log(p)), LESS, -1, example)) and is_refuted(related(beta, LESS, 0, example))
    assert not is_refuted(related(sp.log(b), LESS, 0, Numbers(at={b: -1})))


def test_rewards_of_0_or_1_are_any_of_them():
    """Of one right outcome among three it was true that one outcome is right."""
    assert not is_proved(equal(Total(R), 1, Listed(right=True)))
    squares = E(p, R**2)
    for true in (
        equal(squares, E(p, R), Listed(right=True)),
        equal(squares / E(p, R), 1, Listed(right=True, outcomes=4)),
    ):
        assert is_proved(true) and not is_refuted(true)


def test_definitions_and_logs_are_read_in_every_relation():
    for divergence in (
        related(J, DIVERGENCE, 0, Numbers(), J=v - 1 - sp.log(v)),
        related(v - 1 - log_v, DIVERGENCE, 0, Numbers()),
    ):
        assert is_proved(divergence) and not is_refuted(divergence)
    for left, right, world in (
        (Grad(J), (Grad(KL(p, r)),), Listed(outcomes=4)),
        (Grad(J), (Grad(KL(p, r)), -Grad(KL(r, p))), Listed(outcomes=4)),
        (Grad(E(p, sp.Integer(1))), (Grad(E(p, R)),), ANY_MASS),
    ):
        outside = related(left, NO_COMBINATION, right, world, J=E(p, R))
        assert is_proved(outside) and not is_refuted(outside)
    of_group = OfGroup(q, over(i, at(R, i) * score(at(p, i))))
    assert not is_proved(related(G * of_group, NO_COMBINATION, (of_group,), GROUPS))
    of_w = equal(E(q, w), 2 * beta * E(q, 1 / q), p=2 * beta)
    assert is_proved(of_w) and of_w.known == (r"p := 2\,\beta",)


def test_what_the_language_cannot_say_is_refused():
    for value in ((v - 1) ** 2 - 2 * (SG(v) - 1) ** 2, (v - 1) ** 2 + (v - 1) * (MOVING - v)):
        with pytest.raises(ValueError, match="hides how a function of v curves"):
            is_proved(related(value, DIVERGENCE, 0, Numbers()))
        assert is_refuted(related(value, DIVERGENCE, 0, Numbers()))
    with pytest.raises(ValueError, match="no word of the language"):
        is_proved(equal(sp.sqrt(R**2), R))
    with pytest.raises(ValueError, match="an objective that the statement does not define"):
        is_proved(equal(Grad(J), 0))
    with pytest.raises(ValueError, match="against an opponent"):
        is_proved(equal(E(p, payoff), 0, GAME))
    with pytest.raises(ValueError, match="no derivative beyond"):
        is_proved(equal(Grad(Grad(Grad(E(p, R)))), 0))


def test_a_region_may_not_fix_one_symbol_by_another():
    """With b and A made of one x the region 0 < b < 1, 0 < A < 1 proved b = A."""
    x, y = sp.symbols("x y", positive=True)
    of_x, of_y = x / (1 + x), y / (1 + y)
    for region in (((b, "0<b<1", of_x), (A, "0<A<1", of_x)), ((b, "", A),), ((b, "b>0", A**2 / (1 + A**2)),)):
        with pytest.raises(ValueError, match="fixed by other symbols"):
            equal(b, A, Numbers(region=region))
    apart = Numbers(region=((b, "0<b<1", of_x), (A, "0<A<1", of_y)))
    assert is_refuted(equal(b, A, apart))
    falls = related(InReward(falling), NO_COMBINATION, (falling,), Numbers())
    assert not is_proved(falls)


def test_a_normalised_policy_has_mass_one():
    for world in (NORMALISED, GROUPS, TREES, Tree()):
        assert is_proved(equal(E(q, sp.Integer(1)), Z, world)) and not is_refuted(equal(E(q, sp.Integer(1)), Z, world))
        with pytest.raises(ValueError, match="move alone"):
            is_proved(equal(By(Z * beta, Z), beta, world))
    assert is_proved(equal(E(q, sp.Integer(1)), Z)) and is_refuted(equal(Z, 1))


def test_given_probabilities_have_their_own_mass():
    half = sp.Rational(1, 2)
    for mass, values in ((1, (half, half)), (2, (half, 3 * half))):
        given = Listed(outcomes=2, at={q: values})
        for true in (equal(q, Z * q_tilde, given), equal(Z, mass, given), equal(E(q_tilde, sp.Integer(1)), 1, given)):
            assert is_proved(true) and not is_refuted(true)


def test_two_symbols_that_are_printed_alike_are_refused():
    for other in (sp.Symbol("b", positive=True), sp.Symbol("c_")):
        with pytest.raises(ValueError, match="two symbols are printed"):
            equal(b * beta * sp.Symbol("c"), other)


def test_a_root_of_a_square_is_not_its_base():
    """√(x²) is |x|; √x·√y is √(xy) only where x and y are known not to be negative."""
    first, second, third = E(p, R), E(p, A), E(p, R * A)
    for left, right, names in (
        (sp.sqrt(first**2), first, {}),
        (sp.exp(sp.log(first**2) / 2), first, {}),
        (sp.log(first**2), 2 * sp.log(first), {}),
        (sp.sqrt(1 / J**2), 1 / (p - q), {"J": p - q}),
        (sp.sqrt(first**2 * E(p, T) + first**2), first * sp.sqrt(E(p, T) + 1), {}),
        (sp.sqrt(first * second) * sp.sqrt(second * third) * sp.sqrt(first * third), first * second * third, {}),
    ):
        assert not is_proved(equal(left, right, **names))
    for left, right in (
        (sp.sqrt(first**2) ** 2, first**2),
        (sp.sqrt(E(p, T) ** 2), E(p, T)),
        (sp.sqrt(E(p, K) ** 2 * (1 - E(p, K))), E(p, K) * sp.sqrt(1 - E(p, K))),
        (sp.sqrt(first * E(p, T)), sp.sqrt(first) * sp.sqrt(E(p, T))),
    ):
        assert is_proved(equal(left, right)) and not is_refuted(equal(left, right))


def test_what_divides_by_zero_is_not_proved():
    """0/0 is not 5, 1/K has no value for the outcomes outside of K, and both sides must have a value."""
    nothing, three = E(p, sp.Integer(1)) - 1, Listed(old_is_normalised=True)
    for statement in (
        equal(J / L, 5, three, J=nothing, L=nothing),
        equal(E(p, J / K), 1, J=K),
        equal(E(K, R / K), Total(R)),
        equal(E(p, sp.log(K)), E(p, sp.log(K))),
        equal(E(p, J / (1 - K)), 1, J=1 - K),
        equal(E(p, sp.log(p - p * K)), E(p, sp.log(p - p * K))),
    ):
        with pytest.raises(NoValueError):
            is_proved(statement)
        assert not is_refuted(statement)
    assert not is_proved(equal(Total(sp.sqrt(p)), 1, three)) and is_refuted(equal(Total(sp.sqrt(p)), 1, three))


# Exact numbers


NAMES = [intern(("positive", name)) for name in "abc"]
powers = st.dictionaries(st.sampled_from(NAMES), st.integers(-2, 2).filter(bool), max_size=2)
polys = st.lists(st.tuples(powers, st.integers(-3, 3)), max_size=3).map(
    lambda terms: sum((Poly({tuple(sorted(x.items())): c}) if c else Poly() for x, c in terms), Poly())
)


@given(polys, polys, polys)
def test_sums_and_products_obey_the_laws_of_arithmetic(a, b, c):
    assert is_zero((a + b) * c - (a * c + b * c)) and is_zero(a * b - b * a) and is_zero((a * b) * c - a * (b * c))
    if a.terms:
        assert is_zero(a * a.power(Fraction(-1)) - Poly(1))


@given(polys, polys)
def test_what_is_not_zero_is_not_said_to_be(a, b):
    """Two normal forms are equal where their values at three large primes are."""
    values = dict(zip(NAMES, (10007, 10009, 10037), strict=True))

    def number(poly):
        return sum(
            (c * prod(Fraction(values[x]) ** int(e) for x, e in powers) for powers, c in poly.terms.items()), Fraction()
        )

    assert is_zero(a - b) == (number(a) == number(b))


def test_a_root_of_a_prime_has_one_normal_form():
    """1/√2 is √2/2, and 1/√(2(a + b)) is √2/(2√(a + b))."""
    root, total = Poly(2).power(Fraction(1, 2)), Poly({((NAMES[0], 1),): 1}) + Poly({((NAMES[1], 1),): 1})
    assert is_zero(root.power(Fraction(-1)) - Poly(Fraction(1, 2)) * root)
    doubled = (Poly(2) * total).power(Fraction(1, 2)).power(Fraction(-1))
    assert is_zero(doubled - Poly(Fraction(1, 2)) * root * total.power(Fraction(-1, 2)))


def test_an_example_may_fix_a_set_of_outcomes_and_the_rewards_of_a_tree():
    third = (sp.Rational(1, 3),) * 3
    for chosen, size in (((1, 0, 0), 1), ((1, 1, 0), 2)):
        world = Listed(at={p: third, K: chosen})
        assert is_proved(related(E(p, K), LESS, sp.Rational(size, 3) + sp.Rational(1, 99), world))
        assert is_refuted(equal(E(p, K), sp.Rational(size + 1, 3), world))
    half = {(): ((sp.Rational(1, 2),) * 2,), (1,): ((sp.Rational(1, 2),) * 2,)}
    tree = Tree(leaves=((0,), (1, 0), (1, 1)), at={p: half, R: {(0,): 8, (1, 0): 4, (1, 1): 0}})
    assert is_proved(equal(E(p, R), 5, tree)) and is_refuted(equal(E(p, R), 4, tree))


def test_the_numbers_are_those_of_the_other_oracle():
    """KL and χ² of the checker's own witness, beside NumPy's sums."""
    machine = Machine(Space(), {}, 5)
    values = {e: [float(machine.evaluate(e, 0, {"x": x})[0].value) for x in range(3)] for e in (p, r)}
    assert sum(values[p]) == pytest.approx(1, abs=1e-15) and sum(values[r]) != pytest.approx(1)
    exact = numpy_oracle.DIVERGENCE["rkl"](np.array(values[p]), np.array(values[r]))
    found = machine.value(KL(p, r)).interval
    assert float(found.mid) == pytest.approx(exact, rel=1e-13)


def test_a_trees_probabilities_add_up():
    for policy in (p, q, r):
        assert is_proved(equal(E(policy, sp.Integer(1)), 1, TREES))
    deeper = Tree(leaves=((0,), (1, 0), (1, 1, 0), (1, 1, 1, 0), (1, 1, 1, 1)), old_is_normalised=True)
    assert is_proved(equal(E(p, over(t, score(at(p, t)))), 0, deeper))


@pytest.mark.parametrize(
    "name",
    [
        "prefix_level",
        "prefix_forward_kl",
        "chain_rule",
        "sequence_kl",
        "token_level",
        "token_forward_kl",
        "stale_sampler_bias",
    ],
)
def test_what_is_proved_on_one_tree_holds_on_a_deeper_one(name):
    deeper = Tree(
        leaves=((0, 0), (0, 1, 0), (0, 1, 1, 0), (0, 1, 1, 1), (1,), (2, 0), (2, 1, 0), (2, 1, 1)),
        old_is_normalised=True,
    )
    for statement in CLAIMS[name].statements:
        assert not isinstance(statement.world, Tree) or agrees(dataclasses.replace(statement, world=deeper))


def test_only_the_sampler_sees_which_version_a_switch_chose():
    """The chance of a switch is everybody's and does not move; after it π_θ and π_old go on as if there were none."""
    machine = Machine(VERSIONS, {}, 3)

    def after(policy, version, order=0):
        history, choice = (machine._chance(policy, (1, *x), order) for x in ((version, 0), (version,)))
        return [float(history[k].value / choice[0].value) for k in range(order + 1)]

    assert VERSIONS.text((1, 0, 1, 1, 0)) == VERSIONS.text((1, 1, 1, 0)) == (1, 1, 0)
    assert after(p, 0) == after(p, 1) and after(q, 0) == after(q, 1) and after(s, 0) != after(s, 1)
    of_p, of_s = ([machine._step(policy, (1,), version, 1) for version in (0, 1)] for policy in (p, s))
    assert [x[0].value for x in of_p] == [x[0].value for x in of_s] and sum(x[0].value for x in of_p) == 1
    assert not any(x[1].value for x in of_p)


def test_what_is_proved_of_several_versions_holds_on_a_deeper_tree_with_other_switches():
    ends = ((0,), (1, 0), (1, 1, 0), (1, 1, 1))
    leaves = tuple((version, *y) for version in (0, 1) for y in ends[:2]) + tuple(
        (version, 1, 1, second, *y) for version in (0, 1) for second in (0, 1, 2) for y in ends
    )
    deeper = Tree(old_is_normalised=True, leaves=leaves, switches=((), (0, 1, 1), (1, 1, 1)))
    for statement in CLAIMS["stale_sampler"].statements:
        assert not isinstance(statement.world, Tree) or agrees(dataclasses.replace(statement, world=deeper))


def test_an_opponent_draws_from_its_own_policy():
    """Versus, beside NumPy's matrix product; the transposed payoff is the opponent's."""
    machine = Machine(GAME, {}, 5)
    mine, theirs = ([float(machine.evaluate(e, 0, {"x": x})[0].value) for x in range(3)] for e in (p, s))
    matrix = [[float(machine.unknown((payoff.name, (x, y)), positive=False).value) for y in range(3)] for x in range(3)]
    exact = np.array(mine) @ np.array(matrix) @ np.array(theirs)
    assert float(machine.value(E(p, Versus(s, payoff))).value) == pytest.approx(exact, rel=1e-14)
    assert float(machine.value(E(s, Versus(p, transposed))).value) == pytest.approx(exact, rel=1e-14)


# One source


STATEMENTS = tomllib.loads((ROOT / "rpg_ref/statements.toml").read_text("utf-8"))


def test_the_ledgers_statements_are_the_equations_that_are_proved():
    assert (ROOT / "rpg_ref/statements.toml").read_text("utf-8") == ledger() + "\n", "run `make ledger`"


def test_the_printed_statement_is_built_from_the_equations():
    for name, claim in CLAIMS.items():
        printed = STATEMENTS[name]["statement"]
        assert claim.headline and all(str(statement) in printed for statement in claim.headline)
        changed = dataclasses.replace(claim.headline[0], left=claim.headline[0].left + beta * A)
        assert str(changed) not in printed


def test_no_claim_says_a_statement_in_words():
    """A claim has no field for a text that nothing proves."""
    assert [field.name for field in dataclasses.fields(Claim)] == [
        "id",
        "source",
        "statements",
        "near_misses",
        "printed",
    ]
    assert [field.name for field in dataclasses.fields(Statement)] == [
        "left",
        "relation",
        "right",
        "world",
        "definitions",
    ]


def test_a_wrong_sign_in_a_proposition_is_found():
    claim = CLAIMS["prop_3_6_urkl"]
    flipped = tuple(dataclasses.replace(x, right=-x.right) for x in claim.statements)
    assert len(check(dataclasses.replace(claim, statements=flipped)).failures) == len(flipped)


def test_quantifiers_are_read_off_the_world():
    one = quantifiers(equal(Grad(E(p, R)), 0))
    assert "any outcomes" in one["outcomes"] and one["π_θ"].startswith("normalised") and one["regime"] == "on-policy"
    assert quantifiers(equal(Grad(E(p, R)), 0, ANY_MASS))["π_θ"] == "of any mass"
    assert (
        "mass Z" in quantifiers(equal(E(q, w), 0))["π_old"]
        and "mass" not in quantifiers(equal(E(q, w), 0, TREES))["π_old"]
    )
    assert quantifiers(equal(OfGroup(q, R), 0, GROUPS))["group size"] == "any G"
    assert quantifiers(equal(OfGroup(q, R), 0, Listed(group=4, right=True)))["group size"] == "G = 4"
    assert quantifiers(equal(KL(p, q), 0))["π_ref"].endswith("π_ref = π_old")
    assert "1 to 3 tokens" in quantifiers(equal(E(p, R), 0, TREES))["outcomes"]
    group = OfGroup(q, over(i, at(R, i)))
    assert quantifiers(related(group, DIFFERENT, 0, GROUPS))["group size"] == "some G"
    assert "group size" in quantifiers(equal(OfOthers(q, over(i, at(R, i))), 0, OF_THREE))
    some = quantifiers(related(E(p, f(w) * g * K * T), DIFFERENT, 0))
    assert all(some[kind].startswith("some") for kind in ("f", "g", "K", "T"))
    assert quantifiers(equal(E(p, R), 0, Tree(any_mass=(p, r))))["π_θ"].startswith("normalised")
    assert quantifiers(equal(E(s, R), 0, Space(any_mass=(s,))))["π_sampler"] == "any, of any mass"
    assert "π_old" not in quantifiers(equal(E(p, w * R), 0, w=2 * beta))
    assert "π_old" not in quantifiers(equal(E(q, R), 0, q=p)) and "π_ref" not in quantifiers(equal(E(r, R), 0, r=p))
    for claim in CLAIMS.values():
        assert claim.quantifiers["outcomes"] == STATEMENTS[claim.id]["quantifiers"]["outcomes"]


def test_latex_is_balanced_and_plain():
    assert latex(Z * E(q_tilde, (w * A - beta * u * v * f_prime(v)) * score())) == (
        r"Z\,E_{\tilde q}\left[\big(w\,A-\beta\,u\,v\,f^\prime(v)\big)\,\nabla \log p\right]"
    )
    assert latex(over(t, over(i, at(w, i), FROM, t))) == r"\sum_{t} (\sum_{i\ge t} w_{i})"


def test_the_command(capsys):
    assert main(["prop_3_6_urkl"]) == 0
    out = capsys.readouterr().out
    assert "proved; 6 near misses refuted" in out and r"\nabla J = Z" in out and "π_old: any" in out
    assert main(["prop_3_6"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "prop_3_6_urkl" in error
    assert main(["--ledger"]) == 0 and "[one_idea]" in capsys.readouterr().out


def test_proofs_import_nothing_of_the_code():
    script = "import sys, proofs; print([m for m in ('rpg_ref', 'torch', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


ratios = st.floats(-8.0, 8.0)


@pytest.mark.parametrize("name", DIVERGENCE_NAMES)
@share(5)
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
    for recipe in (differentiable_loss, reinforce_loss):
        (g,) = torch.autograd.grad(recipe(*arguments, **choices), logp)
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
