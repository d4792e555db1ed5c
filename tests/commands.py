"""Every documented command, and the table of what runs each: tests/test_commands.py holds one to the other.

A command is a line of a fenced block, of an indented block or of a code span that starts with a launcher (make, python,
rpg-ref, torchrun, …), in README, CONTRIBUTING, docs, the vectors' README or a usage text; and each target of the
Makefile. The path .venv/bin/ and comments are dropped.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from proofs import CLAIMS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    ROOT / "tests/vectors/README.md",
]
LAUNCHER = r"(?:[A-Z_]+=\S+ +)*(?:\.venv/bin/)?(?:make|python|rpg-ref|torchrun|pip|apt|srun|pytest|verl_rpg\.sh) +"
SHELLS = {"bash", "console", "sh", "shell"}


# ----------------------------------------------------------------------------------------------- what is documented
def lines_of(block: str) -> Iterator[str]:
    """Yield the commands of a block: a backslash or an open quote continues a line."""
    held = ""
    for line in block.splitlines():
        held = f"{held}{line.removeprefix('$ ')}\n"
        if held.strip().endswith("\\"):
            continue
        try:
            words = shlex.split(re.sub(r"\\\n\s*", " ", held), comments=True)
        except ValueError:
            continue
        if words:
            yield shlex.join(words)
        held = ""
    assert not held.strip(), f"a command does not end: {held}"


def commands_of(page: str) -> Iterator[str]:
    """Yield the commands of a page of Markdown."""
    fence = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
    for _, language, block in fence.findall(page):
        first = next((line for line in block.splitlines() if line.strip() and not line.startswith("#")), "")
        if language.strip() in SHELLS or not language.strip() and re.match(LAUNCHER, first):
            yield from lines_of(block)
    prose = fence.sub("", page)
    indented = re.compile(rf"^    ({LAUNCHER}(?:.*\\\n)*.*)$", re.MULTILINE)
    for block in indented.findall(prose):
        yield from lines_of(block)
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", indented.sub("", prose)):
        text = " ".join(span.split())
        if re.match(LAUNCHER, text):
            yield from lines_of(text.replace("|", " '|' "))


def alternatives(words: Sequence[str]) -> Iterator[list[str]]:
    """Yield what ``a | b`` stands for; drop what a usage text puts in brackets, and its dots."""
    text = re.sub(r"\[[^]]*\]|\.\.\.|…", " ", " ".join(words)) if "PRESET" in words or "|" in words else None
    words = list(words) if text is None else text.split()
    if "|" not in words:
        yield words
        return
    first = words.index("|") - 1
    yield from ([*words[:first], choice] for choice in words[first::2])


def usages() -> Iterator[str]:
    """Yield the lines of the usage texts: that of the driver, and the subcommands of rpg-ref."""
    from rpg_ref.cli import parser
    from train.cli import USAGE

    for line in USAGE.splitlines():
        line = line.removeprefix("usage:").strip()
        if re.match(LAUNCHER, line):
            yield re.sub(r"\[[^]]*\]|\.\.\.", "", line).replace("|", " '|' ")
    yield from commands_of("\n".join(f"`{span}`" for span in re.findall(r"`([^`]+)`", USAGE)))
    (choices,) = (action.choices for action in parser()._actions if action.dest == "command")
    yield from (f"rpg-ref {name} --help" for name in choices)


def targets() -> list[str]:
    """The targets of the Makefile that a person may ask for."""
    makefile = (ROOT / "Makefile").read_text()
    return re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()


def documented() -> dict[str, set[str]]:
    """Where each command stands."""
    found: dict[str, set[str]] = {}

    def add(line: str, place: str) -> None:
        words = [word for word in shlex.split(line)]
        words[0] = words[0].removeprefix(".venv/bin/")
        for choice in alternatives(words):
            each = choice[1:] if choice[0] == "make" and all(map(re.compile(r"[\w-]+").fullmatch, choice)) else [None]
            for target in each:
                found.setdefault(shlex.join(choice if target is None else ["make", target]), set()).add(place)

    for page in PAGES:
        for line in commands_of(page.read_text("utf-8")):
            add(line, str(page.relative_to(ROOT)))
    for line in usages():
        add(line, "--help")
    for target in targets():
        add(f"make {target}", "Makefile")
    return found


# ------------------------------------------------------------------------------------------------ what runs a command
class Here(NamedTuple):
    """tests/test_commands.py runs it, with more words behind its own, and other words for some of them."""

    more: str = ""
    instead: dict[str, str] = {}


class CI(NamedTuple):
    """.ci/run or a workflow runs a make target, by default the command's own, which contains the command's words."""

    target: str = ""


class ByTest(NamedTuple):
    """A test runs it: the words are the command's, and stand in the test's source, or in a file that it starts."""

    node: str
    words: str
    through: str = ""


class Exempt(NamedTuple):
    """Nothing runs it here, for this reason; that it parses is tested."""

    reason: str


CI_VARIABLES = (
    "TARGETS=rpg-ref trl liger verl rpg-in-verl",
    "PRESETS=qwen3_4b_2k qwen25_7b_instruct_2k",
)

# What is reduced where a command trains or draws; of two values for one key the last counts.
KEYS = """--eval-samples 2 --data.test-problems 8 --warm-start.steps 2 --warm-start.batch 4 --steps 1 --eval-every 1
--rollout.prompts 4 --rollout.samples 2 --optimizer.prompts 2 --device cpu --model.precision float32
--run-dir runs/new""".replace("\n", " ")
TINY = f"{KEYS} --model.width 32 --model.mlp-width 32 --model.layers 1 --model.heads 2 --model.key-value-heads 1"
FOUND = f"{KEYS} --model.path runs/cpu_tiny-seed0/model"
DATA = "--data.train mine.parquet --data.test held_out.parquet"
ARITHMETIC = {"PRESET": "cpu_tiny", "qwen3_4b_2k": "cpu_tiny", "RECIPE": "grpo", "FOLDER": "runs/cpu_tiny-seed0"}
PLACES = {
    "FOLDER": "runs/cpu_tiny-seed0",
    "MODEL": "runs/cpu_tiny-seed0/model",
    "FILE": "problems.parquet",
    "NEW": "runs/new",
    "NAME": "grpo",
    "PATH:FUNCTION": "loss.py:loss",
    "hellinger": "chi2",  # CONTRIBUTING adds that row
}
RANKS = ByTest(
    "tests/test_ranks.py::test_a_rank_that_dies_or_hangs_ends_the_run_within_a_minute", "--nproc-per-node train"
)
NODES = ByTest("tests/test_nodes.py::test_two_nodes_do_what_one_does_bit_for_bit", "--nnodes train run-or-resume")
VERL = ByTest(
    "tests/test_verl.py::test_two_machines_meet_and_the_command_is_verls",
    "verl_rpg",
    "rpg_ref/integrations/verl_rpg.sh",
)
GENERATE = "tests/test_vectors.py::test_a_changed_file_is_found"

TABLE: list[tuple[str, tuple[Here | CI | ByTest | Exempt, ...]]] = [
    # make
    (
        r"make (test(-full|-all)?|stages|lint|types|verify|rehearse|docs|check-(docs|vllm|trl|verl|audit))",
        (CI(),),
    ),
    (r"make train", (Here(f"'ARGS={TINY}'"),)),
    (r"make coverage", (Here("'ARGS=-n 0 --cov-fail-under=0 tests/test_logprobs.py'"),)),
    (r"make nightly", (Here("EXAMPLES=20 'ARGS=-n 0 tests/test_logprobs.py'"),)),
    (r"make mutants", (Here("'ARGS=--only possible,'"),)),
    (r"make (bench|bench-loss|bench-plan|experiments)( ARGS=--small)?", (Here("ARGS=--small"),)),
    (r"make (audit|audit-NAME)", (Here("DOCS=out TARGETS=rpg-ref", {"audit-NAME": "audit-rpg-ref"}),)),
    (r"make tamper", (Here("ARGS=k3_identity"),)),
    (r"python -m proofs.tamper NAME", (Here(instead={"NAME": "k3_identity"}),)),
    (r"make ledger", (Here("DOCS=out STATEMENTS=out/statements.toml ARGS=k3_identity"),)),
    (r"make portrait", (Here("DOCS=out"),)),
    (r"make proofs", (Here("ARGS=k3_identity"),)),
    (r"make clean", (Here("VENV=.venv"),)),
    (r"make slow", (Exempt("whole training runs take most of an hour"),)),
    (r"make smollm2", (Exempt("it fetches a model of 93 MB"),)),
    (r"make docs-serve", (Exempt("a server, which ends by Ctrl-C"),)),
    # the verified core
    (r"rpg-ref verify", (CI("verify"),)),
    (r"rpg-ref verify (NAME|grpo|gspo|ppo)( --json)?", (Here(instead=PLACES),)),
    (r"rpg-ref verify --device cuda|pytest -m gpu", (Exempt("it needs a GPU"),)),
    (r"rpg-ref (verify|explain|audit) --help", (Here(),)),
    (r"rpg-ref explain( .*)?", (Here(instead=PLACES),)),
    (r"rpg-ref audit rpg-ref", (Here(),)),
    (r"rpg-ref audit (trl|liger|verl|rpg-in-verl)", (CI("check-audit"),)),
    (r"rpg-ref audit rpg-in-trl", (Exempt("it takes five minutes; make check-trl compares the same gradients"),)),
    (r"rpg-ref audit openrlhf", (Exempt("its packages are an environment of their own"),)),
    (r"rpg-ref audit rpg-paper .*", (Exempt("it needs a checkout of the paper's code"),)),
    (r"rpg-ref audit PATH:FUNCTION( --markdown| --json| --fail-on error| --out DIR)?", (Here(instead=PLACES),)),
    (r"python -m proofs \w+", (Here(instead=dict.fromkeys(CLAIMS, "k3_identity")),)),
    (r"python -m proofs", (Here("k3_identity"),)),
    # the driver
    (r"python -m train (run|run-or-resume) (cpu_tiny|PRESET)( --help)?", (Here(TINY, ARITHMETIC),)),
    (r"python -m train run cpu_tiny --seed .*", (Here(f"--seed 3 {TINY}", {"N": "3"}),)),
    (r"python -m train run cpu_tiny --recipe .*", (Here(TINY),)),
    (r"python -m train run cpu_tiny --data.train .*", (Here(f"{TINY} --rollout.max-tokens 4"),)),
    (r"python -m train run cpu_tiny --loggers .*", (Here(TINY),)),
    (
        r"python -m train run cpu_tiny --engine.kind vllm",
        (
            ByTest(
                "tests/test_vllm.py::test_cpu_tiny_reaches_the_accuracy_of_the_transformers_engine",
                "train run cpu_tiny --engine.kind vllm",
            ),
        ),
    ),
    (r"python -m train run cpu_smollm2.*", (Here(FOUND),)),
    (r"python -m train run FOLDER/config.toml .*", (Here(KEYS, PLACES),)),
    (r"python -m train run tests/benchmarks/experiments.toml .*", (Here(f"{FOUND} {DATA}", PLACES),)),
    (r"python -m train plan .*", (Here(instead={"PRESET": "qwen3_4b_2k"}),)),
    (r"python -m train rehearse qwen3_4b_2k", (CI("rehearse"),)),
    (r"python -m train rehearse .*", (Here("--divide 4 --processes 1 --out rehearsed", ARITHMETIC),)),
    (r"python -m train resume .*", (Here("--steps 2", PLACES),)),
    (r"python -m train eval .*", (Here("--k 2 --max-tokens 4", PLACES),)),
    (r"python -m train report", (Here("runs/cpu_tiny-seed0 runs/cpu_tiny-seed1"),)),
    (r"python -m train report .*", (Here(instead=PLACES),)),
    # several processes, several machines
    (r"torchrun --nproc-per-node (2|8) -m train run (cpu_tiny|PRESET|qwen3_4b_2k).*", (Here(TINY, ARITHMETIC), RANKS)),
    (r"torchrun --nproc-per-node 8 -m train run mine.toml", (Here(KEYS), RANKS)),
    (r"torchrun --nproc-per-node N -m train (run|run-or-resume)", (Here(f"mine.toml {KEYS}", {"N": "2"}), RANKS)),
    (r"torchrun --nproc-per-node N -m train resume", (Here("runs/mine-seed0 --steps 2", {"N": "2"}), RANKS)),
    (r"torchrun --nproc-per-node 4 -m train resume runs/mine-seed0", (Here("--steps 2"), RANKS)),
    (
        r"torchrun --nproc-per-node N -m train eval",
        (Here("runs/cpu_tiny-seed0/model problems.parquet --k 2 --max-tokens 4", {"N": "2"}),),
    ),
    (r"torchrun --nnodes 2 .*", (Here(KEYS), NODES)),
    (r"srun .*", (Exempt("several nodes under SLURM"),)),
    (r"verl_rpg.sh .*|python -m verl.trainer.main_ppo .*", (VERL,)),
    # the rest
    (r"python -m docs.kit.portrait .*|python -c .*", (Here(),)),
    (r"python tests/vectors/generate.py", (ByTest(GENERATE, "generate"),)),
    (r"python tests/vectors/generate.py --check", (ByTest(GENERATE, "generate --check"),)),
    (r"python tests/vectors/generate.py \w+", (Here(),)),
    (
        r"python -m pytest -k .*",
        (ByTest("tests/test_contributing.py::test_the_steps_make_a_row_that_is_tested", "pytest -k"),),
    ),
    (r"(pip|apt) install .*", (Exempt("it fetches packages"),)),
]
