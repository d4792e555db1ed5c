"""Nothing documented is unrun: each command of tests/commands.py is run here in small, by a named test, or by CI.

What starts with ``python -m train``, ``rpg-ref`` and the like is run in this process, with the words that stand on the
page and more behind them. A make target is expanded by ``make -n`` and each of its commands is then run.
"""

import ast
import contextlib
import importlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from itertools import takewhile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import pytest
import yaml
from commands import (
    CI,
    CI_VARIABLES,
    PAGES,
    TABLE,
    TINY,
    ByTest,
    Exempt,
    Here,
    commands_of,
    documented,
    lines_of,
    targets,
)

import rpg_ref.cli
import train.job
from proofs import CLAIMS
from train.cli import overrides
from train.preset import dump, load
from train.watching.loggers import LOGGERS

ROOT = Path(__file__).parents[1]
DOCUMENTED = documented()
MAINS = {"train": "train.cli", "rpg_ref": "rpg_ref.cli", "proofs": "proofs.__main__", "proofs.tamper": "proofs.tamper"}
MAKE = shutil.which("make")


# --------------------------------------------------------------------------------------------------------- the table
def row_of(command):
    return next((runners for pattern, runners in TABLE if re.fullmatch(pattern, command, re.DOTALL)), None)


def test_what_counts_as_a_command():
    page = """`make a`, `make b c`, `make`, `maker a` and `rpg-ref verify |\nNAME`

```bash
.venv/bin/python -m train run X \\
  --y 1   # a comment
python -c "
print(1)"
```

```
torchrun a.py
```

```text
make nothing of this
```

    python -m proofs    # a comment
"""
    assert list(commands_of(page)) == [
        ".venv/bin/python -m train run X --y 1",
        "python -c '\nprint(1)'",
        "torchrun a.py",
        "python -m proofs",
        "make a",
        "make b c",
        "rpg-ref verify '|' NAME",
    ]
    with pytest.raises(AssertionError, match="does not end"):
        list(lines_of("python -c 'print("))
    assert len(DOCUMENTED) > 150 and "README.md" in DOCUMENTED["make train"]
    assert {"make lint", "make types"} <= DOCUMENTED.keys() and "rpg-ref audit verl" in DOCUMENTED


@pytest.mark.parametrize("command", DOCUMENTED)
def test_every_command_has_a_row(command):
    assert row_of(command), f"{command!r} ({', '.join(DOCUMENTED[command])}) is run by nothing; add it to TABLE"


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in TABLE])
def test_every_row_has_a_command(pattern):
    runners = dict(TABLE)[pattern]
    assert any(row_of(command) is runners for command in DOCUMENTED), f"no command matches {pattern!r} first; drop it"


def test_few_rows_are_exempt():
    exempt = [runner for _, runners in TABLE for runner in runners if isinstance(runner, Exempt)]
    assert len(exempt) <= 12 and all(runner.reason for runner in exempt)
    assert all(len(runners) == 1 for _, runners in TABLE if any(isinstance(runner, Exempt) for runner in runners))


def named(command):
    """The id of a command's test."""
    return " ".join(command.split())[:80]


def chosen(kind):
    """(command, runner) of every runner of that kind."""
    return [
        pytest.param(command, runner, id=named(command))
        for command in DOCUMENTED
        for runner in row_of(command) or ()
        if isinstance(runner, kind)
    ]


# ------------------------------------------------------------------------------------------------- a named test runs it
def closure(path, name):
    """The source of a function or fixture, and of all of the module's own names that it uses."""
    tree = ast.parse(path.read_text("utf-8"))
    named = {}
    for node in tree.body:
        for target in getattr(node, "targets", [node]):
            for each in target.elts if isinstance(target, ast.Tuple) else [target]:
                named[getattr(each, "name", getattr(each, "id", None))] = node
    waiting, seen = [name], {}
    while waiting:
        if (word := waiting.pop()) in named and word not in seen:
            seen[word] = named[word]
            waiting += [x.id for x in ast.walk(named[word]) if isinstance(x, ast.Name)]
            waiting += [x.arg for x in ast.walk(named[word]) if isinstance(x, ast.arg)]
    return seen


def strings(node):
    """The words in a node's strings, without its docstring."""
    doc = ast.get_docstring(node, clean=False) if isinstance(node, ast.FunctionDef) else None
    found = [x.value for x in ast.walk(node) if isinstance(x, ast.Constant) and isinstance(x.value, str)]
    return {word for text in found if text != doc for word in re.split(r"[\s/]+", text)}


def refusal(command, runner):
    """Why a test does not run a command, or nothing."""
    file, _, name = runner.node.partition("::")
    if not (ROOT / file).is_file():
        return f"there is no {file}"
    found = closure(ROOT / file, name)
    if not isinstance(found.get(name), ast.FunctionDef) or not name.startswith("test_"):
        return f"{file} has no test {name}"
    if any(re.match(r"pytest\.mark\.(slow|gpu|skip)", ast.unparse(mark)) for mark in found[name].decorator_list):
        return f"{runner.node} is not among the tests that CI runs"
    if "importorskip" in (ROOT / file).read_text("utf-8") and file not in " ".join(expanded_by_ci()):
        return f"{file} is skipped where its library is missing, and no target of CI runs it with the library"
    words = set().union(*map(strings, found.values())) | found.keys()
    names = {x.id for node in found.values() for x in ast.walk(node) if isinstance(x, ast.Name)}
    if runner.through:
        if Path(runner.through).name not in words:
            return f"{runner.node} does not start {runner.through}"
        words |= set(re.split(r"[\s/]+", (ROOT / runner.through).read_text("utf-8")))
    asked = {part for word in re.split(r"[\s/]+", command) for part in (word, *word.split("."))}
    for word in runner.words.split():
        if word not in asked:
            return f"{word!r} is no word of the command"
        if word not in words | names:
            return f"{runner.node} does not say {word!r}"
    return ""


@pytest.mark.parametrize(("command", "runner"), chosen(ByTest))
def test_the_named_test_exists_and_runs_the_command(command, runner):
    assert refusal(command, runner) == ""


def test_a_row_that_lies_is_found():
    told = "python -m train resume FOLDER"
    here = "tests/test_driver.py::"
    assert "there is no" in refusal(told, ByTest("tests/test_nothing.py::test_a", "resume"))
    assert "has no test" in refusal(told, ByTest(here + "test_nothing", "resume"))
    assert "has no test" in refusal(told, ByTest("tests/test_ranks.py::SMALL", "resume"))
    assert "is no word" in refusal(told, ByTest("tests/test_ranks.py::test_bad_input_is_said_once", "run"))
    assert "does not say 'resume'" in refusal(
        told, ByTest("tests/test_ranks.py::test_bad_input_is_said_once", "resume")
    )
    slow = ByTest("tests/test_ranks.py::test_a_run_on_two_ranks_that_was_killed_ends_bit_for_bit", "resume")
    assert "not among the tests that CI runs" in refusal(told, slow)


# ----------------------------------------------------------------------------------------------------------- CI runs it
def expanded(words, directory=ROOT):
    """The commands that make would run, one a line, as if every environment were there."""
    there = [f"-o{x}/.ready" for x in (".venv", ".vllm", *(f".audit/{name}" for name in rpg_ref.cli.TARGETS))]
    run = [MAKE, "-n", "--no-print-directory", "-o.venv/.docs", *there, *words]
    done = subprocess.run(run, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return re.sub(r"\\\n\s*", " ", done.stdout).splitlines()


def ci_lines():
    """What CI runs: the lines of .ci/run, and the steps of the workflows."""
    text = (ROOT / ".ci/run").read_text()
    assert "for stage in $(make -s stages)" in text and 'make "$stage"' in text
    (stages,) = subprocess.run([MAKE, "-s", "stages"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    (variables,) = re.findall(r'make "\$stage" (.*)', text)
    made = ["make stages", *(f"make {stage} {variables}" for stage in stages.split())]
    return [*made, *(run for _, run in steps())]


@cache
def expanded_by_ci():
    found = [re.search(r"\bmake ([^;&|#]+)", line) for line in ci_lines() if not line.lstrip().startswith("#")]
    made = [words for words in (shlex.split(line[1]) for line in found if line) if words[0] in targets()]
    return {line for words in made for line in expanded(words)}


@pytest.mark.parametrize(("command", "runner"), chosen(CI))
def test_ci_runs_the_command(command, runner):
    """Every line that make would run for it is one that it runs in CI, and contains the command's words."""
    words = shlex.split(command)
    asked = [runner.target] if runner.target else words[1:]
    lines = expanded([*asked, *CI_VARIABLES])
    assert lines and set(lines) <= expanded_by_ci()
    if runner.target:
        said = set(re.split(r"[\s/]+", " ".join(lines)))
        assert set(words) - {"python"} <= said


# -------------------------------------------------------------------------------------------------- this file runs it
@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    """A folder with all that the pages' commands name: two runs, problems, a preset, a loss."""
    folder = tmp_path_factory.mktemp("commands")
    for name in ("train", "tests", "rpg_ref", "proofs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "loss.py").write_text(
        "def loss(logp, old, ref, A, mask):\n    return -(logp * A[:, None] * mask).sum() / mask.sum()\n"
    )
    (folder / "mine.toml").write_text(
        dump(load("cpu_tiny", {**overrides(shlex.split(TINY)), "name": "mine", "run_dir": None}))
    )
    for place in ("out/assets", "out/audit"):
        (folder / place).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as monkeypatch, stood_in(monkeypatch, folder):
        for name in ("cpu_tiny-seed0", "cpu_tiny-seed1", "mine-seed0"):
            words = [*shlex.split(TINY), "--seed", name[-1], "--run-dir", f"runs/{name}"]
            code, out, err = execute(["python", "-m", "train", "run", "cpu_tiny", *words], folder)
            assert code == 0, out + err
    for name in ("problems", "mine", "held_out"):
        split = "train" if name == "mine" else "test"
        shutil.copy(folder / f"runs/cpu_tiny-seed0/data/{split}.parquet", folder / f"{name}.parquet")
    return folder


@pytest.fixture
def workplace(furnished, tmp_path, monkeypatch):
    """A copy of it, where a command may write, with the stand-ins in place."""
    place = tmp_path / "work"
    shutil.copytree(furnished, place, symlinks=True)
    with stood_in(monkeypatch, place):
        yield place


@contextmanager
def stood_in(monkeypatch, place):
    """Put stand-ins where something takes long or is not installed: verified recipes, loggers, audits, processes."""
    done = SimpleNamespace(ok=True, verdict="verified by tests/test_verify.py")
    monkeypatch.setattr(train.job, "verify", lambda recipe: done)
    known = rpg_ref.cli.cases_of
    monkeypatch.setattr(rpg_ref.cli, "cases_of", lambda *words: (known(*words)[0], known(*words)[1][:2]))
    for name in ("tensorboard", "wandb", "trackio"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(LOGGERS, name, contextmanager(lambda *_: iter([lambda *_: None])))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COVERAGE_FILE", str(place / ".coverage"))
    start = subprocess.run

    def run(words, **options):
        """Run another process of this Python here: most of what it takes is to start."""
        if words[0] != sys.executable or "pytest" in words:
            return start(words, **options)
        code, out, err = execute(["python", *words[1:]], Path(options.get("cwd") or os.getcwd()))
        return subprocess.CompletedProcess(words, code, out, err)

    monkeypatch.setattr(subprocess, "run", run)
    yield


def execute(words, place):
    """Run a command in a folder: its exit code, and what it said on standard output and standard error."""
    variables = dict(word.split("=", 1) for word in takewhile(re.compile(r"[A-Z_]+=").match, words))
    program, *rest = words[len(variables) :]
    program = Path(program).name
    out, err = io.StringIO(), io.StringIO()
    said = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with contextlib.chdir(place), patch.dict(os.environ, variables), said[0], said[1]:
        try:
            code = dispatch(program, [word for word in rest if word != "-P"])
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return code or 0, out.getvalue(), err.getvalue()


def dispatch(program, rest):
    """Run a program of ours by its function, and a process of pytest or of the shell as one."""
    if program == "torchrun":
        from torch.distributed.run import parse_args

        launch = parse_args(rest)
        assert launch.module and int(launch.nproc_per_node) > 0
        return dispatch("python", ["-m", launch.training_script, *launch.training_script_args])
    if program == "rpg-ref":
        return rpg_ref.cli.main(rest)
    assert program == "python", program
    if rest[:2] == ["-m", "pytest"]:
        done = subprocess.run(
            [sys.executable, *rest, "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True
        )
        print(done.stdout, done.stderr)
        return done.returncode
    if rest[0] == "-m" and rest[1] not in MAINS:
        return script(ROOT / f"{rest[1].replace('.', '/')}.py", rest[2:])
    if rest[0] == "-m":
        return importlib.import_module(MAINS[rest[1]]).main(rest[2:])
    if rest[0] == "-c":
        return exec(rest[1], {})
    return script(ROOT / rest[0] if not Path(rest[0]).is_absolute() else Path(rest[0]), rest[1:])


def script(path, words):
    """Run a file as Python does."""
    before = sys.argv
    sys.argv = [str(path), *words]
    try:
        return runpy.run_path(str(path), run_name="__main__") and 0
    finally:
        sys.argv = before


DONE = set()


def run_line(line, place):
    """Run one line of a make target: a command of ours, perhaps into a file, or a line of shell."""
    if line in DONE:
        return
    command, _, file = line.partition(" > ")
    words = shlex.split(command)
    if re.match(r"(?:[A-Z_]+=\S+ )*\S*\b(?:python|rpg-ref) ", line):
        code, out, err = execute(words, place)
        assert code == 0, out + err
        if file:
            (place / file).write_text(out)
    else:
        subprocess.run(["bash", "-e", "-c", line], cwd=place, check=True)
    DONE.add(line)


def smaller(command, runner):
    """The words that are run: those of the page with others for some of them, and more behind them."""
    words = [runner.instead.get(word, word) for word in shlex.split(command)]
    return [re.sub(r"^FOLDER", "runs/cpu_tiny-seed0", word) for word in words] + shlex.split(runner.more)


SMALLER = dict.fromkeys(shlex.join(smaller(*row.values)) for row in chosen(Here))
"""Each line once: the names of claims all become one."""


@pytest.mark.parametrize(("command", "runner"), chosen(Here))
def test_the_command_parses_as_it_stands(command, runner):
    parses(command)


@pytest.mark.full
@pytest.mark.parametrize("line", SMALLER, ids=named)
def test_the_command_runs(line, workplace):
    words = shlex.split(line)
    if words[0] != "make":
        code, out, err = execute(words, workplace)
        too_small = "train plan" in line and code == 1 and "It does not fit" in out  # this machine, for 4 B parameters
        assert code == 0 or too_small, out + err
        return
    for place in (".venv", ".audit/x", "site"):
        (workplace / place).mkdir(parents=True)
    lines = expanded(words[1:])
    assert lines
    for each in lines:
        run_line(each, workplace)
    left = [place for place in (".venv", ".audit", "site") if (workplace / place).exists()]
    assert len(left) == (0 if words[1] == "clean" else 3)


def parses(command):
    """Let the command's own parser read it, with the page's own values."""
    program, *rest = ["2" if word == "N" else word for word in shlex.split(command)]
    if program == "make":
        assert expanded([word.replace("NAME", "rpg-ref") for word in rest])
    elif program == "rpg-ref":
        if "--help" not in rest:
            assert rpg_ref.cli.parser().parse_args(rest).command == rest[0]
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert {
            name for word in rest for name in re.findall(r"\w+", "".join(re.findall(r"\[(.*)\]", word)))
        } <= extras.keys()
    elif rest[:2] == ["-m", "proofs"]:
        assert set(rest[2:]) <= CLAIMS.keys()
    elif rest[:3] == ["-m", "train", "run"] and "--help" not in rest and rest[3].endswith(("tiny", "smollm2")):
        load(rest[3], overrides(rest[4:]))
    assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0


@pytest.mark.parametrize(("command", "runner"), chosen(Exempt))
def test_what_is_exempt_parses(command, runner):
    parses(command)


@pytest.mark.full
def test_make_slow_finds_the_slow_tests():
    (line,) = (
        line for line in expanded(["slow", "-osmollm2", "ARGS=--collect-only tests/test_nodes.py"]) if "pytest" in line
    )
    done = subprocess.run([sys.executable, *shlex.split(line)[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "test_two_nodes_of_two" in done.stdout and "test_an_error_of" not in done.stdout


def test_every_make_target_that_is_named_anywhere_exists():
    """Also in comments, docstrings and error messages."""
    code = [
        path
        for kind in ("py", "toml")
        for name in ("rpg_ref", "train", "proofs", "docs", "tests")
        for path in (ROOT / name).rglob(f"*.{kind}")
    ]
    known = {*targets(), "test-all"}
    for path in {*PAGES, *code, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "CHANGELOG.md"} - {Path(__file__)}:
        for said in re.findall(r"`make ([a-z0-9-]+)", path.read_text("utf-8")):
            assert said in known or re.match(r"(check-)?audit-", said), f"{path} names make {said}"


# --------------------------------------------------------------------------------------------------------- workflows
def steps():
    """(workflow, command) of each step that runs something."""
    for path in sorted(ROOT.glob(".github/workflows/*.yml")):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            yield from ((path.name, line) for step in job["steps"] for line in step.get("run", "").splitlines())


def test_workflows_and_hooks_run_targets_that_exist():
    """There is no second copy of a command: a step is a make target or .ci/run, and a hook is a make target."""
    run = list(steps())
    assert {name for name, _ in run} == {"docs.yml", "full.yml", "tests.yml"}
    for name, line in run:
        target = re.fullmatch(r"make ([a-z0-9-]+)", line)
        assert line == ".ci/run" or target and target[1] in targets(), (name, line)
    assert {("tests.yml", "make test"), ("full.yml", ".ci/run"), ("docs.yml", "make check-docs")} <= set(run)
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = repository["hooks"]
    assert repository["repo"] == "local" and [hook["entry"] for hook in hooks] == ["make lint", "make types"]
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in hooks)


def test_the_quick_tier_runs_on_every_python_that_is_supported():
    quick = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["quick"]
    pythons = quick["strategy"]["matrix"]["python"]
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert oldest == f">={pythons[0]}" and pythons == ["3.11", "3.12", "3.13"]
