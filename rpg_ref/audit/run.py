"""Load a target's cases, or a function from a file, and identify each."""

import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rpg_ref.audit.identify import Finding, Report, identify
from rpg_ref.audit.model import identify_model
from rpg_ref.audit.population import sentence_of
from rpg_ref.audit.targets import TARGETS, Case
from rpg_ref.objective import Objective

# Single precision leaves 1e-6 of a coefficient.
_SAME = 1e-4


class Unavailable(RuntimeError):
    """A library is missing, or is not the one that its adapter knows. Source: ours."""


@dataclass(frozen=True)
class Row:
    """One case and what it was found to be.

    Attributes:
        case: the case.
        report: the report, or None where the library refused the case.
        error: its sentence then.

    Source: ours.
    """

    case: Case
    report: Report | None
    error: str = ""

    @property
    def findings(self) -> tuple[Finding, Finding] | None:
        """On-policy and off-policy."""
        return None if self.report is None else (self.report.on_policy, self.report.off_policy)

    @property
    def documented(self) -> tuple[Objective | None, Objective | None]:
        """What is documented, without the terms that have no gradient in a regime."""
        if self.findings is None:
            return self.case.documented
        on, off = (
            _without(documented, finding.unidentified)
            for finding, documented in zip(self.findings, self.case.documented, strict=True)
        )
        return on, off

    @property
    def as_documented(self) -> tuple[bool, bool]:
        """Whether it is what is documented, on-policy and off-policy; with a fault it is neither."""
        if self.report is None or self.findings is None or self.report.faults:
            return False, False
        on, off = (
            same_objective(finding.objective, documented)
            for finding, documented in zip(self.findings, self.documented, strict=True)
        )
        return on, off

    @property
    def notes(self) -> tuple[str, ...]:
        """Errors, the known forms of what is not as documented, warnings and notes."""
        if self.report is None:
            return (self.error,)
        forms = () if all(self.as_documented) else self.report.suspects
        notes = (note for note in self.report.notes if note.kind != "unchecked")
        return (*self.report.faults, *forms, *self.report.hazards, *notes)


def _without(objective: Objective | None, names: tuple[str, ...]) -> Objective | None:
    """An objective without the terms that have no gradient in a regime."""
    return objective and replace(objective, terms={name: c for name, c in objective.terms.items() if name not in names})


def same_objective(a: Objective | None, b: Objective | None) -> bool:
    """Return whether two objectives are one: the same level, and coefficients equal to single precision.

    Args:
        a: an objective, or None.
        b: the other.

    Returns:
        True where both are None, or the levels and all coefficients agree.

    Source: ours.
    """
    if a is None or b is None:
        return a is b
    if a.level != b.level:
        return False
    pairs = [(a.terms.get(name, 0.0), b.terms.get(name, 0.0)) for name in a.terms.keys() | b.terms.keys()]
    return all(math.isclose(x, y, rel_tol=_SAME, abs_tol=_SAME**2) for x, y in pairs)


def cases_of(target: str, checkout: Path | None = None) -> tuple[str, list[Case]]:
    """Load a target's adapter, and the library under it.

    Args:
        target: a name in TARGETS.
        checkout: where the code lies, for a target that is no installed library.

    Returns:
        The library with its version, and the cases.

    Raises:
        ValueError: the name is unknown; a checkout is missing, or given where none is wanted.
        Unavailable: the library is not installed, or its adapter does not fit this version.

    Source: ours.
    """
    adapter = importlib.import_module(f"rpg_ref.audit.targets.{TARGETS[target]}")
    wants_checkout = "checkout" in inspect.signature(adapter.cases).parameters
    if wants_checkout != (checkout is not None):
        remedy = "pass --checkout DIR" if wants_checkout else "drop --checkout"
        raise ValueError(f"target {target!r} {'needs a' if wants_checkout else 'takes no'} checkout; {remedy}")
    if wants_checkout:
        assert checkout is not None
        if not checkout.is_dir():
            raise ValueError(f"the checkout {str(checkout)!r} is not a directory; clone the code and pass its path")
        return f"{target} at {_commit(checkout) or checkout.name}", _guarded(
            lambda: adapter.cases(checkout), target, "", adapter.KNOWN
        )
    try:
        version = importlib.metadata.version(adapter.DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        where = f"rpg_ref/audit/targets/{adapter.ENVIRONMENT}.txt and {adapter.ENVIRONMENT}-no-deps.txt"
        raise Unavailable(
            f"{adapter.DISTRIBUTION} is not installed; this adapter knows {adapter.KNOWN}, with the packages in {where}"
        ) from None
    return f"{adapter.DISTRIBUTION} {version}", _guarded(adapter.cases, adapter.DISTRIBUTION, version, adapter.KNOWN)


def _commit(checkout: Path) -> str:
    """The short name of the commit that is checked out; empty where git does not say."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short=7", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _guarded(cases: Callable[[], list[Case]], name: str, version: str, known: str) -> list[Case]:
    try:
        return cases()
    except ModuleNotFoundError as error:
        raise Unavailable(f"{name} {version} needs the module {error.name!r}, which is not installed") from error
    except (ImportError, AttributeError, TypeError, KeyError, OSError) as error:
        raise Unavailable(
            f"{name} {version} has another shape than {known}, which this adapter knows: {sentence_of(error)}"
        ) from error


def function_at(place: str) -> Callable[..., Any]:
    """Load ``PATH:FUNCTION``.

    Args:
        place: a Python file and a name in it.

    Returns:
        The function.

    Raises:
        ValueError: there is no such file, it cannot be imported, or it has no such function.

    Source: ours.
    """
    file, _, name = place.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"no file {file!r}; pass PATH:FUNCTION, such as losses.py:my_loss")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file!r} is not a Python file; pass PATH:FUNCTION, such as losses.py:my_loss")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"{file} needs the module {error.name!r}, which is not installed here") from error
    except Exception as error:
        raise ValueError(f"{file} cannot be imported: {sentence_of(error)}") from error
    function: Callable[..., Any] | None = getattr(module, name, None)
    if function is None or not callable(function):
        raise ValueError(f"{file} has no function {name!r}; it has {', '.join(_functions(module)) or 'none'}")
    return function


def _functions(module: Any) -> list[str]:
    return [name for name, x in vars(module).items() if inspect.isfunction(x) and not name.startswith("_")]


def is_step(function: Callable[..., Any]) -> bool:
    """Return whether a function takes (model, batch), and not a loss's five tensors.

    Args:
        function: the black box.

    Returns:
        True for two required arguments.

    Source: ours.
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(p.kind in kinds and p.default is p.empty for p in parameters) == 2


def audit(case: Case, *, seed: int = 0) -> Row:
    """Identify one case.

    Args:
        case: the case.
        seed: of the policies.

    Returns:
        Row; what the library raises is its error.

    Source: ours.
    """
    run = identify_model if case.whole_model else identify
    try:
        return Row(case, run(case.subject, level=case.level, seed=seed))
    except Exception as error:  # the library's own: whatever it raises belongs in its row
        return Row(case, None, str(error) if isinstance(error, ValueError) else sentence_of(error))
