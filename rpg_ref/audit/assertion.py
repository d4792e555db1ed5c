"""One line for anybody's test suite: this loss has the gradient of that objective."""

import math
from collections.abc import Iterator, Sequence

from rpg_ref.audit.identify import Finding, Report, identify
from rpg_ref.audit.population import Loss
from rpg_ref.audit.size import size_lines
from rpg_ref.audit.update import UpdateReport
from rpg_ref.checks import Table, check_number
from rpg_ref.objective import TERMS, Objective

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
    normaliser: str | int | float | None = None,
    seed: int = 0,
    **terms: float,
) -> None:
    """Fail unless a loss has the gradient of an objective, up to the loss's own normaliser.

    Args:
        loss_fn: as for ``identify``; or a Report, such as that of ``identify_model(step)``; or the UpdateReport of
            ``identify_update(update)``, whose gradient must then be the same under every split.
        level: of the objective, "token" or "sequence".
        tolerance: largest difference of a coefficient, relative to the largest one asked for beside the reward.
        regimes: where it must hold: "on_policy", "off_policy" or both.
        normaliser: what the sum over tokens must be divided by, or None for anything: "tokens" for the batch's number
            of tokens; "sequences" for its number of responses, of their tokens' sums or means; or a number.
        seed: of the policies.
        terms: coefficients of J by name, as of Objective: ``reward=1.0, reverse_kl=0.1``; those not named are 0. Only
            their ratios count, since a loss may be divided by anything: ``reward=2.0, reverse_kl=0.2`` is the same.
            ``normaliser`` holds the size.

    Raises:
        AssertionError: the gradient is another one, or the report names a fault, such as a mask ignored; the message
            is the verdict and the mistakes that it looks like.
        ValueError: as ``identify``; a term or regime is unknown, or no term is given.

    Source: ours.
    """
    wanted = Objective(terms, level)
    for name, c in terms.items():
        check_number(name, c, -math.inf, math.inf, "()")
    if not any(terms.values()):
        raise ValueError("no term is asked for; name at least one, such as reward=1.0")
    check_number("tolerance", tolerance, 0.0, math.inf, "()")
    if not regimes or isinstance(regimes, str):
        raise ValueError(f"regimes is {regimes!r}; pass a list of 'on_policy' and 'off_policy'")
    for name in regimes:
        _REGIMES.check(name)
    sizes = _sizes(loss_fn, normaliser)
    loss_fn = loss_fn.report if isinstance(loss_fn, UpdateReport) else loss_fn
    if isinstance(loss_fn, Report) and loss_fn.on_policy.level != level:
        raise ValueError(f"the report is of {loss_fn.on_policy.level} level, the objective of {level}; pass level=")
    report = loss_fn if isinstance(loss_fn, Report) else identify(loss_fn, level=level, seed=seed)
    found = {name: getattr(report, name) for name in regimes}
    differences = {name: list(_differences(finding, wanted, tolerance)) for name, finding in found.items()}
    if not any(differences.values()) and not report.faults and not sizes:
        return
    has = "has another gradient than that" if any(differences.values()) else "has the gradient, and a fault beside it,"
    lines = [f"the loss {has} of {wanted}; {str(report).splitlines()[0]}"]
    lines += [f"{_REGIMES[name]}: {line}" for name in differences for line in differences[name]]
    forms = report.forms.values() if any(differences.values()) else ()
    raise AssertionError("\n- ".join([*lines, *sizes, *report.faults, *forms, *report.hazards]))


def _sizes(loss_fn: Loss | Report | UpdateReport, normaliser: str | int | float | None) -> list[str]:
    """Say what is wrong with the gradient's size, and with a whole step's under other splits."""
    if isinstance(loss_fn, UpdateReport):
        return loss_fn.mistakes(normaliser)
    if normaliser is None:
        return []
    if isinstance(loss_fn, Report):
        raise ValueError(
            f"normaliser is {normaliser!r}, which a Report does not know; pass the loss or an UpdateReport"
        )
    return size_lines(loss_fn, normaliser)


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
            yield f"{TERMS[name]} has coefficient {unit * got[name]:.6g}, not {c:.6g}{known}"


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
