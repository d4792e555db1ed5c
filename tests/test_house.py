"""The house's own rules: imports run one way, docstrings name their source, the core stays small."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import rpg_ref
import rpg_ref.audit

ROOT = Path(__file__).parents[1]

# The pipeline, top to bottom: a file imports only what stands above it.
PIPELINE = [
    "checks",
    "numerics",
    "divergences",
    "estimators",
    "logprobs",
    "ratios",
    "advantages",
    "surrogates",
    "prefix",
    "clipping",
    "ppo",
    "cpgd_pmd",
    "aggregation",
    "reference",
    "objective",
    "recipe",
    "gates",
    "recipes",
    "fused",
    "audit.oracle",
    "audit.population",
    "audit.advised",
    "audit.remarks",
    "audit.forms",
    "audit.probes",
    "audit.curves",
    "audit.identify",
    "audit.present",
    "audit.prefix_lm",
    "audit.tokens",
    "audit.scripted",
    "audit.model",
    "audit.sampler",
    "audit.batch",
    "audit.size",
    "audit.update",
    "audit.assertion",
    "integrations",
    "integrations.trl",
    "integrations.verl",
    "ledger",
    "audit.statements",
    "audit.denominator",
    "audit.verify",
    "audit.targets",
    "audit.targets.stand_ins",
    "audit.targets.recipes",
    "audit.targets.trl",
    "audit.targets.liger",
    "audit.targets.verl",
    "audit.targets.openrlhf",
    "audit.targets.rpg_paper",
    "audit.targets.rpg_in_trl",
    "audit.targets.rpg_in_verl",
    "audit.run",
    "audit.picture",
    "audit.table",
    "progress",
    "cli",
]
# What other methods put in the weight's place has a limit of its own.
BESIDE = "gates"
CORE = [module for module in PIPELINE[: PIPELINE.index("recipes") + 1] if module != BESIDE]


def path_of(module: str) -> Path:
    path = ROOT / "rpg_ref" / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_the_pipeline_is_the_package():
    files = {
        str(p.relative_to(ROOT / "rpg_ref").with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for p in ROOT.glob("rpg_ref/**/*.py")
    }
    assert files - {"__init__", "__main__", "audit"} == set(PIPELINE)


@pytest.mark.parametrize("module", PIPELINE)
def test_imports_run_one_way(module):
    above = {f"rpg_ref.{name}" for name in PIPELINE[: PIPELINE.index(module)]}
    ours = {name for name in imports_of(path_of(module)) if name.split(".")[0] in ("rpg_ref", "proofs", "train")}
    assert ours <= above


def test_the_oracle_imports_nothing_from_the_core():
    ours = {name for name in imports_of(path_of("audit.oracle")) if name.startswith("rpg_ref")}
    assert ours == {"rpg_ref.objective"}


def test_importing_the_core_loads_no_audit_module():
    script = "import sys, rpg_ref; print([name for name in sys.modules if name.startswith('rpg_ref.audit')])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


def test_the_tests_oracle_imports_only_numpy():
    """Also through the facts about divergences, which it takes its definitions from."""
    assert imports_of(ROOT / "tests/numpy_oracle.py") == {"numpy", "collections.abc", "divergence_facts"}
    assert imports_of(ROOT / "tests/divergence_facts.py") == {"numpy", "collections.abc", "dataclasses"}


@pytest.mark.parametrize("module", sorted(ROOT.glob("train/**/*.py")), ids=lambda p: p.stem)
def test_the_driver_never_types_a_loss(module):
    """train takes the core's public names only, and what is no mathematics."""
    theirs = {"rpg_ref.audit.verify", "rpg_ref.checks", "rpg_ref.progress"}
    assert not {n for n in imports_of(module) if n.startswith("rpg_ref.")} - theirs


PUBLIC = [
    pytest.param(getattr(module, name), id=name)
    for module in (rpg_ref, rpg_ref.audit)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name)) or inspect.isclass(getattr(module, name))
]


@pytest.mark.parametrize("obj", PUBLIC)
def test_docstrings(obj):
    """Every public name says whose formula it is; a function, what it takes and gives as well."""
    doc = inspect.getdoc(obj) or ""
    assert "Source: " in doc
    if inspect.isfunction(obj):
        assert "Returns:" in doc or "Raises:" in doc
        if "Args and Raises: as ``" not in doc:
            assert all(f"{name}:" in doc for name in inspect.signature(obj).parameters)


def code_lines(path: Path) -> int:
    """Lines that hold code: no docstrings, comments or blanks."""
    tree = ast.parse(path.read_text())
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            continue
        if hasattr(node, "lineno") and not isinstance(node, ast.Module):
            is_block = isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If | ast.For | ast.With | ast.Try)
            lines |= {node.lineno} if is_block else set(range(node.lineno, node.end_lineno + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def test_the_core_is_small():
    sizes = {module: code_lines(path_of(module)) for module in CORE}
    assert sum(sizes.values()) < 1100, sizes
    assert max(sizes.values()) < 250, sizes
    assert code_lines(path_of(BESIDE)) < 250
