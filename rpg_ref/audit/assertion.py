"""One line for anybody's test suite: this loss has the gradient of that objective."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import torch

from rpg_ref.audit.curves import Region, region_differences, weight_curves
from rpg_ref.audit.identify import Finding, Report, has_form, identify
from rpg_ref.audit.population import Loss, as_loss
from rpg_ref.audit.probes import Subject, uneven_rows
from rpg_ref.audit.update import UpdateReport
from rpg_ref.checks import Table, check_number
from rpg_ref.objective import GAINS, TERMS, Objective

_REGIMES = Table("regime", {"on_policy": "on-policy", "off_policy": "off-policy"})
_GROUPS = range(2, 65)
_OTHER_DIRECTION = {
    "reverse_kl": "forward_kl",
    "forward_kl": "reverse_kl",
    "reverse_kl_old": "forward_kl_old",
    "forward_kl_old": "reverse_kl_old",
}


def assert_gradient(
    loss_fn: Loss | Report | UpdateReport,
    *,
    level: str = "token",
    tolerance: float = 1e-6,
    regimes: Sequence[str] = ("on_policy", "off_policy"),
    seed: int = 0,
    normaliser: str | int | float | None = None,
    form: str | None = None,
    region: Region | None = None,
    **terms: float,
) -> None:
    """Fail unless a loss has the gradient of an objective, up to the loss's own normaliser.

    Args:
        loss_fn: as for ``identify``; or a Report, such as that of ``identify_model(step)``; or the UpdateReport of
            ``identify_update(update)``, whose gradient must then be the same under every split.
        level: of the objective, "token" or "sequence".
        tolerance: largest difference of a coefficient, relative to the largest one asked for beside the reward; and
            of a bound, relative to it.
        regimes: where it must hold: "on_policy", "off_policy" or both.
        seed: of the policies.
        normaliser: what the loss must divide by: "tokens" or "sequences" of the batch, or a number; None for anything.
            The check reads it from the gradient of the loss or of the step.
        form: a form that a part must have in both regimes, such as "A times the response's ratio" or "unweighted k3".
            Use it where two options of a trainer have the same objective.
        region: what must bound the importance weights: a name such as "PPO clip" or "no clip", or the bounds by name,
            {"PPO clip": {"low": 0.8, "high": 1.28}}; None: anything. ``weight_curves`` prints the names.
        terms: coefficients of J by name, as of Objective: ``reward=1.0, reverse_kl=0.1``; those not named are 0. Only
            their ratios count, since a loss may be divided by anything: ``reward=2.0, reverse_kl=0.2`` is the same.

    Raises:
        AssertionError: the gradient is another one, or has another size, form or region, or the report names a fault,
            such as a mask ignored; the message is the verdict and the mistakes that it looks like.
        ValueError: as ``identify``; a term, regime, normaliser or form is unknown, no term and no form is given, or a
            region is asked of a Report.

    Source: ours.
    """
    wanted = Objective(terms, level)
    for name, c in terms.items():
        check_number(name, c, -math.inf, math.inf, "()")
    if not any(terms.values()) and form is None:
        raise ValueError("no term is asked for; name at least one, such as reward=1.0")
    check_number("tolerance", tolerance, 0.0, math.inf, "()")
    if isinstance(normaliser, str):
        _NORMALISERS.check(normaliser)
    elif normaliser is not None:
        check_number("normaliser", normaliser, 0.0, math.inf, "()")
    if not regimes or isinstance(regimes, str):
        raise ValueError(f"regimes is {regimes!r}; pass a list of 'on_policy' and 'off_policy'")
    for name in regimes:
        _REGIMES.check(name)
    others: list[str] = []
    if isinstance(loss_fn, UpdateReport):
        others, loss_fn, normaliser = loss_fn.mistakes(normaliser), loss_fn.report, None
    if isinstance(loss_fn, Report) and loss_fn.on_policy.level != level:
        raise ValueError(f"the report is of {loss_fn.on_policy.level} level, the objective of {level}; pass level=")
    if isinstance(loss_fn, Report) and region is not None:
        raise ValueError("a report does not hold the loss's region; pass the loss itself, or leave region out")
    if not isinstance(loss_fn, Report) and region is not None:
        wrong = region_differences(weight_curves(loss_fn), region, tolerance)
        if wrong:
            raise AssertionError("\n- ".join(["the loss bounds its importance weights in another way", *wrong]))
    report = loss_fn if isinstance(loss_fn, Report) else identify(loss_fn, level=level, seed=seed)
    found = {name: getattr(report, name) for name in regimes}
    asked = bool(any(terms.values()))
    differences = {name: list(_differences(finding, wanted, tolerance)) for name, finding in found.items() if asked}
    others += [] if normaliser is None else list(_of_size(report, normaliser, tolerance))
    if form is not None and not has_form(report, form):
        others.append(f"no part has the gradient of {form}")
    if not any(differences.values()) and not report.faults and not others:
        return
    beside = "another size or form" if others and not report.faults else "a fault beside it"
    has = "has another gradient than that" if any(differences.values()) else f"has the gradient, and {beside},"
    lines = [f"the loss {has} of {wanted}; {str(report).splitlines()[0]}"]
    lines += [f"{_REGIMES[name]}: {line}" for name in differences for line in differences[name]]
    lines += others
    forms = report.forms.values() if any(differences.values()) or others else ()
    raise AssertionError("\n- ".join([*lines, *report.faults, *forms, *report.hazards, *report.notes]))


_NORMALISERS = Table("normaliser", {"tokens": ("tokens",), "sequences": ("sequences", "token sums")})


def _of_size(report: Report, wanted: str | float, tolerance: float) -> Iterator[str]:
    """Say by what the loss divides, if that is another number than wanted."""
    found = report.normaliser
    if found is None:
        yield "it cannot be told what the loss divides by"
        return
    kinds, factor = (_NORMALISERS[wanted], 1.0) if isinstance(wanted, str) else (("constant",), float(wanted))
    if found.kind not in kinds or abs(found.factor / factor - 1) > tolerance:
        size = (
            f"{found.factor:.6g}" if found.kind == "constant" else f"{found.factor:.6g} times the batch's {found.kind}"
        )
        yield f"the loss divides by {size}, not by {wanted}"


def same_gradient(losses: Mapping[str, Loss]) -> tuple[str, ...]:
    """Say which of several losses have one gradient, such as those of two options of which one is ignored.

    Args:
        losses: at least two, by name; each as for ``identify``.

    Returns:
        A sentence for each pair with the same gradient on three batches: responses of different lengths, far from π_old
        and π_ref, and with holes in the mask.

    Raises:
        ValueError: as ``identify``; or there are fewer than two losses.

    Source: ours.
    """
    if len(losses) < 2:
        raise ValueError(f"{len(losses)} losses cannot be compared; pass at least two")
    subjects = {name: Subject(as_loss(loss_fn)) for name, loss_fn in losses.items()}
    rows = uneven_rows()
    rng = torch.Generator().manual_seed(4)
    q, r = (rows.p + 0.5 * torch.randn(rows.p.shape, generator=rng, dtype=rows.p.dtype) for _ in range(2))
    far = rows._replace(q=q, r=r)
    holes = far._replace(mask=rows.mask & (torch.arange(rows.mask.shape[1]) != 1))
    pulls = {name: [subject.pull(batch) for batch in (rows, far, holes)] for name, subject in subjects.items()}
    return tuple(
        f"{one} and {other} have the same gradient"
        for one, other in combinations(losses, 2)
        if not any(subjects[one].differ(*pair) for pair in zip(pulls[one], pulls[other], strict=True))
    )


def _differences(finding: Finding, wanted: Objective, tolerance: float) -> Iterator[str]:
    """Say which coefficients are others than wanted, and what each mistake looks like."""
    if finding.objective is None:
        yield "no known objective"
        return
    asked = {name: wanted.terms.get(name, 0.0) for name in finding.coefficients}
    got = finding.coefficients
    # Only ratios count: both are measured by the reward, or by the largest term of an objective without one.
    yardstick = "reward" if asked["reward"] else max(asked, key=lambda name: abs(asked[name]))
    if not got[yardstick]:
        yield f"{TERMS[yardstick]} has no effect"
        return
    if (got[yardstick] > 0) != (asked[yardstick] > 0):
        yield "the whole loss has the wrong sign" if yardstick == "reward" else f"{TERMS[yardstick]} has the wrong sign"
        return
    unit = asked[yardstick] / got[yardstick]
    others = [abs(c) for name, c in asked.items() if name != yardstick and c]
    largest = max(others, default=abs(asked[yardstick]))
    # In single precision a coefficient is known no better than this.
    tolerance = max(tolerance, 10 * finding.residual * finding.condition)
    for name, c in asked.items():
        difference = abs(unit * got[name] - c)
        if difference > tolerance * largest:
            known = _looks_like(name, asked, got, unit)
            yield f"the objective has {_term(name, unit * got[name])}, not {_term(name, c)}{known}"


def _term(name: str, c: float) -> str:
    """One term as it stands in the objective: a gain is added, a penalty subtracted."""
    sign = "+" if (c > 0) == (name in GAINS) else "−"
    return f"{sign} {abs(c):.6g}·{TERMS[name]}" if c else f"no {TERMS[name]}"


def _looks_like(name: str, asked: dict[str, float], got: dict[str, float], unit: float) -> str:
    c, found = asked[name], unit * got[name]
    other = _OTHER_DIRECTION.get(name, name)
    if c == 0:
        return ""
    if found == 0:
        instead = other != name and abs(unit * got.get(other, 0.0) / c - 1) < 1e-4
        return f": it is the other direction, {TERMS[other]}" if instead else ": it has no effect"
    known = {-1.0: "the wrong sign", 2.0: "counted twice", 0.5: "halved", 3.0: "summed over tokens, not averaged"}
    known |= {1 / 3: "averaged over tokens, not summed"}
    known |= {(G - 1) / G: f"(G − 1)/G with G = {G}, a baseline that contains its own sample" for G in _GROUPS[1:]}
    known |= {G / (G - 1): f"G/(G − 1) with G = {G}, rewards less a baseline that contains them" for G in _GROUPS[1:]}
    nearest = min(known, key=lambda factor: abs(found / c - factor))
    return f": {known[nearest]}" if abs(found / c - nearest) < 1e-4 else ""
