"""Two processes against one: on_ranks.py does the same in both, and here it is compared; and ranks that die."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_run import rows, small

from train import ranks
from train.batch import split

ROOT = Path(__file__).parents[1]
# Two processes want two GPUs where there is one: they compute on the processor, wherever this runs.
ON_CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
QUIET = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"} | ON_CPU
ALONE = [sys.executable, "-P"]
TWO = [*ALONE, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process found, and each of two; one saves checkpoints that the two resume from, and the other way."""
    folder = tmp_path_factory.mktemp("ranks")
    for launcher in (ALONE, TWO, ALONE):
        done = subprocess.run(
            [*launcher, str(ROOT / "tests/on_ranks.py"), str(folder)], env=QUIET, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "UserWarning" not in done.stderr, done.stderr
    return {name: torch.load(folder / f"{name}.pt") for name in ("1-0", "2-0", "2-1")}


def error_of(found, case):
    """The worst difference of two processes from one, relative to the largest number of its kind; ranks agree."""
    worst = 0.0
    for title, kinds in found["1-0"][case].items():
        for kind, expected in kinds.items():
            first, second = (found[name][case][title][kind] for name in ("2-0", "2-1"))
            assert torch.equal(first, second), f"the ranks differ: {title}, {kind}"
            scale = max(1e-30, float(expected.double().abs().max()))
            worst = max(worst, float((first.double() - expected.double()).abs().max()) / scale)
    return worst


@pytest.mark.full
def test_loss_gradient_and_weights_are_those_of_one_process(found):
    """In float64; with recomputation, any split, one sequence for two ranks, a recipe of whole responses."""
    assert len(found["1-0"]["gradients"]) == 24
    assert error_of(found, "gradients") < 1e-13


@pytest.mark.full
def test_a_split_changes_nothing_but_rounding(found):
    for rank in found.values():
        for title, whole in rank["gradients"].items():
            if title.endswith("budget 0"):
                cut = rank["gradients"][title.replace("budget 0", "budget 25")]
                for kind in ("gradient", "metrics"):
                    assert (cut[kind] - whole[kind]).abs().max() <= 1e-12 * whole[kind].abs().max()
        assert sum(bool(case["gradient"].any()) for case in rank["gradients"].values()) > 20, "few are clipped away"


@pytest.mark.full
def test_whole_steps_are_those_of_one_process(found):
    """In float32: references that are kept or follow, schedule-free, the distance from the start."""
    assert error_of(found, "loops") < 3e-6


@pytest.mark.full
def test_bfloat16_passes_give_the_gradient_to_two_digits(found):
    for rank in found.values():
        exact, rounded = (rank["half"][precision]["gradient"] for precision in ("float32", "bfloat16"))
        assert 1e-4 * exact.norm() < (rounded - exact).norm() < 0.03 * exact.norm()


@pytest.mark.full
def test_every_rank_draws_judges_and_filters_alike(found):
    assert error_of(found, "draws") == 0


@pytest.mark.full
def test_a_gradient_that_is_broken_on_one_rank_is_skipped_by_both(found):
    for rank in found.values():
        assert rank["broken"]["skipped"][""].tolist() == [1, 0, 1, True], "skipped, none taken, one in a row, unmoved"


@pytest.mark.full
def test_what_fails_on_one_rank_is_heard_on_the_other(found):
    assert found["2-0"]["failing"] == {"heard": {"": "rank 1 failed: RuntimeError: the engine is out of memory"}}
    assert found["2-1"]["failing"] == found["1-0"]["failing"] == {"own": {"": "the engine is out of memory"}}


@pytest.mark.full
@pytest.mark.parametrize("kind", ["adamw", "schedule-free"])
@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize("after", ["1-0", "2-0", "2-1"])
def test_a_checkpoint_is_resumed_by_any_number_of_processes(found, kind, before, after):
    saved = found[after]["saved"]
    resumed, straight = saved[f"resumed from {kind}-{before}"]["weights"], saved[kind]["weights"]
    if after.startswith(str(before)):
        assert torch.equal(resumed, straight), "bit for bit"
    assert (resumed - straight).abs().max() < 1e-6


sizes = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=40)


@given(sizes, st.integers(0, 300), st.integers(1, 5))
def test_a_split_is_a_partition_within_its_budget(lengths, budget, number):
    dealt = split(lengths, budget, number)
    assert len(dealt) == number and len({len(parts) for parts in dealt}) == 1
    assert sorted(row for parts in dealt for rows in parts for row in rows) == list(range(len(lengths)))
    counts = [sum(map(len, parts)) for parts in dealt]
    assert max(counts) - min(counts) <= 1
    assert any(parts[-1] for parts in dealt), "no pass is made that no rank needs"
    for part in (part for parts in dealt for part in parts if len(part) > 1 and budget):
        assert len(part) * sum(max(lengths[row][of] for row in part) for of in (0, 1)) <= budget


SMALL = small("--steps 5 --warm-start.steps 2 --checkpoint-every 1 --reference.replace never")


def command(folder, launcher=TWO):
    return [*launcher, "-m", "train", "run", "cpu_tiny", *SMALL, "--run-dir", str(folder)]


def start(words):
    return subprocess.Popen(words, env=QUIET, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def ranks_of(launcher):
    """The processes that torchrun started, in the order of their ranks."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    number = {}
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        number[int(next(x[5:] for x in variables if x.startswith(b"RANK=")))] = int(child)
    return [number[rank] for rank in sorted(number)]


def wait_for(path, process):
    until = time.monotonic() + 120
    while not path.exists() and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.full
@pytest.mark.parametrize(
    "victim, blow",
    [(1, signal.SIGKILL), (0, signal.SIGTERM), pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow)],
)
def test_a_rank_that_dies_or_hangs_ends_the_run_within_a_minute(tmp_path, victim, blow):
    run = start([*command(tmp_path / "run"), "--steps", "1000", "--timeout", "10"])
    wait_for(tmp_path / "run/checkpoints/step-00000001", run)
    members = ranks_of(run)
    began = time.monotonic()
    os.kill(members[victim], blow)
    run.communicate(timeout=60)
    assert run.returncode != 0 and time.monotonic() - began < 60
    assert not any(Path(f"/proc/{member}").exists() for member in members)


@pytest.mark.full
def test_bad_input_is_said_once(tmp_path):
    run = start([*command(tmp_path / "run"), "--rollout.max-tokens", "1"])
    _, errors = run.communicate(timeout=120)
    assert run.returncode != 0 and errors.count("rollout.max_tokens is 1 but the answer") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_on_two_ranks_that_was_killed_ends_bit_for_bit(tmp_path, seed):
    """Against an undisturbed run on two; and one process goes on from what two have left."""
    rng = random.Random(seed)
    calm = start(command(tmp_path / "calm"))
    finish(calm)
    killed = start(command(tmp_path / "run"))
    wait_for(tmp_path / f"run/checkpoints/step-0000000{rng.randrange(1, 4)}", killed)
    time.sleep(rng.random() / 2)
    os.kill(rng.choice(ranks_of(killed)), signal.SIGKILL)
    killed.communicate(timeout=60)
    assert killed.returncode != 0
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    for folder, launcher in ((tmp_path / "run", TWO), (tmp_path / "alone", ALONE)):
        finish(start([*launcher, "-m", "train", "resume", str(folder)]))
    assert rows(tmp_path / "run") == rows(tmp_path / "calm")
    for file in ("model/model.safetensors", "transcripts.jsonl"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "calm" / file).read_bytes()
    for ours, theirs in zip(rows(tmp_path / "alone"), rows(tmp_path / "calm"), strict=True):
        assert ours.pop("phase") == theirs.pop("phase")
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


def test_on_a_gpu_attention_is_not_planned_anew_for_each_shape(monkeypatch):
    """cuDNN's is, in some 50 ms, and shapes are new at every token of a response."""
    gpu = {"is_available": lambda: True, "device_count": lambda: 1, "set_device": lambda number: None}
    for name, stand_in in gpu.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        assert ranks.device("auto") == torch.device("cuda", 0)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
