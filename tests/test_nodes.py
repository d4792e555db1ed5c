"""Two nodes, stood for by two torchrun agents on one machine: the numbers of one node, and the loss of one.

What test_ranks.py holds of processes is not repeated here.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from safetensors.torch import load_file, save_file
from small_run import rows, verified_elsewhere
from test_ranks import ALONE, QUIET, ROOT, SMALL, finish, ranks_of, start, wait_for

from train import job, peers, ranks
from train.cli import main
from train.peers import Peer, gone

# Some lengths are rewarded more than others, so that there is a gradient at all.
STEPS = """--warm-start.steps 20 --warm-start.batch 16 --warm-start.learning-rate 2e-2 --rollout.overlong-buffer 3
--timeout 15""".split()
RUN = ["run-or-resume", "cpu_tiny", *SMALL, *STEPS]
TORCHRUN = [*ALONE, "-m", "torch.distributed.run"]
# Without it torch 2.13 keeps the store of the first start, with the addresses of its processes.
RESTARTED = QUIET | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


STARTED = []


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Whatever fails, no agent outlives its test."""
    yield
    while STARTED:
        agent = STARTED.pop()
        if agent.poll() is None:
            agent.terminate()
            agent.communicate()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def nodes(words, *more, processes=1, where=(ROOT, ROOT), kind="static", launcher=(), env=QUIET):
    """Start both; the second one is given more words."""
    port, agents = free_port(), []
    meet = ["--rdzv-backend", "c10d", "--rdzv-id", "x", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-conf"]
    for node in (0, 1):
        static = ["--node-rank", str(node), "--master-addr", "127.0.0.1", "--master-port", str(port)]
        how = ["--nnodes", "2", "--nproc-per-node", str(processes), *launcher]
        how += static if kind == "static" else [*meet, f"is_host={node == 0}"]
        command = [*TORCHRUN, *how, "-m", "train", *words, *(more if node else ())]
        pipe = subprocess.PIPE
        agents.append(subprocess.Popen(command, env=env, cwd=where[node], stdout=pipe, stderr=pipe, text=True))
    STARTED.extend(agents)
    return agents


def alive(process):
    """Say whether a process is there and no zombie: that of a killed agent waits for init to take note."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ending(agents, seconds):
    """Return what each says on its way to an error, within that time; nothing of theirs is left."""
    until = time.monotonic() + seconds
    said = [agent.communicate(timeout=max(0.1, until - time.monotonic()))[1] for agent in agents]
    assert all(agent.returncode for agent in agents)
    return said


def assert_same(folder, calm):
    assert rows(folder) == rows(calm)
    for file in ("model/model.safetensors", "transcripts.jsonl"):
        assert (folder / file).read_bytes() == (calm / file).read_bytes()


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """An undisturbed run on one node of two processes."""
    folder = tmp_path_factory.mktemp("nodes") / "calm"
    finish(start([*TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "train", *RUN, "--run-dir", str(folder)]))
    assert sum(row.get("grad_norm", 0) > 1e-2 for row in rows(folder) if row["phase"] == "policy_gradient") == 5
    return folder


@pytest.mark.full
@pytest.mark.parametrize("kind", ["static", pytest.param("c10d", marks=pytest.mark.slow)])
def test_two_nodes_do_what_one_does_bit_for_bit(tmp_path, calm, kind):
    for agent in nodes([*RUN, "--run-dir", str(tmp_path / "run")], kind=kind):
        finish(agent)
    assert_same(tmp_path / "run", calm)


@pytest.mark.slow
def test_two_nodes_of_two_do_what_one_of_four_does_bit_for_bit(tmp_path):
    one, two = ([*RUN, "--run-dir", str(tmp_path / name)] for name in ("one", "two"))
    finish(start([*TORCHRUN, "--standalone", "--nproc-per-node", "4", "-m", "train", *one]))
    for agent in nodes(two, processes=2):
        finish(agent)
    assert_same(tmp_path / "two", tmp_path / "one")


LOST = [
    ("static", "node", 1),
    pytest.param("static", "node", 0, marks=pytest.mark.slow),
    pytest.param("static", "worker", 1, marks=pytest.mark.slow),
    pytest.param("static", "worker", 0, marks=pytest.mark.slow),
    pytest.param("c10d", "node", 1, marks=pytest.mark.slow),
    pytest.param("c10d", "worker", 1, marks=pytest.mark.slow),
]


@pytest.mark.full
@pytest.mark.parametrize("kind, what, lost", LOST)
def test_a_loss_ends_all_and_the_same_command_goes_on_bit_for_bit(tmp_path, calm, kind, what, lost):
    words = [*RUN, "--run-dir", str(tmp_path / "run")]
    agents = nodes(words, kind=kind)
    wait_for(tmp_path / "run/checkpoints/step-00000001", agents[0])
    members = [ranks_of(agent)[0] for agent in agents]
    if what == "node":
        agents[lost].kill()
    os.kill(members[lost], signal.SIGKILL)
    other = 1 - lost
    said = ending(agents, seconds=20)[other]
    assert said.count("train: ") == 1
    assert f"train: rank {other} lost rank {lost} (on {socket.gethostname()}); `resume` on all nodes" in said
    assert not any(alive(member) for member in members)
    assert not (tmp_path / "run/model").exists()
    for agent in nodes(words, kind=kind):
        finish(agent)
    assert_same(tmp_path / "run", calm)


@pytest.mark.slow
def test_a_process_that_hangs_is_waited_for_until_the_time_out(tmp_path):
    agents = nodes([*RUN, "--run-dir", str(tmp_path / "run"), "--steps", "1000"], kind="c10d")
    wait_for(tmp_path / "run/checkpoints/step-00000001", agents[0])
    members = [ranks_of(agent)[0] for agent in agents]
    os.kill(members[1], signal.SIGSTOP)
    said = ending(agents, seconds=75)[0]  # 15 of ours, and 30 that torchrun gives a process to end by itself
    assert "train: rank 0 waited in vain, but no rank is gone" in said
    assert not any(alive(member) for member in members)


@pytest.mark.full
@pytest.mark.slow
def test_torchrun_s_own_restart_goes_on_bit_for_bit(tmp_path, calm):
    agents = nodes(
        [*RUN, "--run-dir", str(tmp_path / "run")], kind="c10d", launcher=("--max-restarts", "1"), env=RESTARTED
    )
    wait_for(tmp_path / "run/checkpoints/step-00000001", agents[0])
    os.kill(ranks_of(agents[1])[0], signal.SIGKILL)
    for agent in agents:
        finish(agent)
    assert_same(tmp_path / "run", calm)


def test_a_restart_that_may_not_find_itself_is_refused(monkeypatch):
    for name, value in {"RUN_ID": "x", "RESTART_COUNT": "1", "USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    with pytest.raises(ValueError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"), ranks.joined(timeout=1.0):
        pass


def differing(tmp_path, calm, what):
    """Return the words of both nodes, those of the second alone, and where each is; they differ in one thing."""
    where = [tmp_path / name for name in "ab"]
    for folder in where:
        folder.mkdir()
    words, more = ["run", "cpu_tiny", *SMALL, *STEPS], ()
    words += ["--run-dir", "run" if what == "run folder" else str(tmp_path / "run")]
    if what == "command":
        more = ("--seed", "1")
    if what == "preset":
        words[1] = "own.toml"
        shutil.copy(ROOT / "train/presets/cpu_tiny.toml", where[0] / "own.toml")
    if what == "problems":
        words += ["--data.train", "train.parquet"]
        table = parquet.read_table(calm / "data/train.parquet")
        for folder, rows_kept in zip(where, (300, 299), strict=True):
            parquet.write_table(table.slice(0, rows_kept), folder / "train.parquet")
    if what == "weights":
        sizes = ("width =", "mlp_width =", "layers =", "heads =", "key_value_heads =")
        lines = (calm / "config.toml").read_text().splitlines()
        (tmp_path / "own.toml").write_text("\n".join(line for line in lines if not line.startswith(sizes)))
        words = ["run", str(tmp_path / "own.toml"), "--model.path", "model", "--run-dir", str(tmp_path / "run")]
        for folder in where:
            shutil.copytree(calm / "model", folder / "model")
        tensors = load_file(where[1] / "model/model.safetensors")
        tensors["model.norm.weight"][0] += 1e-3
        save_file(tensors, where[1] / "model/model.safetensors", {"format": "pt"})
    return words, more, where


@pytest.mark.full
@pytest.mark.parametrize(
    "what, sentence",
    [
        ("run folder", "the run folder run of rank 0 is not there for rank 1 (on"),
        ("command", "rank 1 has another configuration than rank 0: seed 0 → 1"),
        ("preset", "cannot read the preset own.toml"),
        pytest.param("problems", "rank 1 has other problems than rank 0", marks=pytest.mark.slow),
        pytest.param("weights", "rank 1 has other weights than rank 0", marks=pytest.mark.slow),
    ],
)
def test_nodes_that_differ_are_refused_on_both_before_any_training(tmp_path, calm, what, sentence):
    words, more, where = differing(tmp_path, calm, what)
    for said in ending(nodes(words, *more, where=where), seconds=45):
        assert said.count("train: ") == 1 and sentence in said
    assert not list(tmp_path.glob("**/metrics.jsonl")) and not list(tmp_path.glob("**/.*.tmp"))


@pytest.mark.parametrize(
    "rank, failed, aloud", [(2, 0, True), (3, 0, False), (0, 1, False), (0, 2, True), (1, 2, False), (2, 3, False)]
)
def test_the_first_of_a_node_says_what_failed_on_another(monkeypatch, rank, failed, aloud):
    """On two nodes of two."""
    monkeypatch.setattr(ranks, "gather", lambda item: ["ValueError: no" if i == failed else None for i in range(4)])
    monkeypatch.setattr(ranks, "rank", lambda: rank)
    monkeypatch.setenv("LOCAL_RANK", str(rank % 2))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ranks.Elsewhere, match=f"^rank {failed} failed: ValueError: no$") as caught:
        ranks.everywhere(lambda: None)
    assert caught.value.aloud == aloud


def test_who_is_gone_is_said_node_by_node(monkeypatch):
    monkeypatch.setattr(peers, "MOMENT", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        there, closed = server.getsockname(), ("127.0.0.1", free_port())
        assert gone([Peer("a", there), Peer("b", there)]) == ""
        found = gone([Peer("a", there), Peer("b", closed), Peer("b", closed), Peer("c", closed)])
    assert found == "rank 1, 2 (on b) and rank 3 (on c)"


def test_an_error_of_the_run_s_own_is_no_loss():
    with pytest.raises(RuntimeError, match="^out of memory$"), ranks._losses([Peer("a", ("127.0.0.1", 1))], 1.0):
        raise RuntimeError("out of memory")


@pytest.mark.full
def test_a_start_that_gloo_waits_in_for_ever_is_ended():
    code = "import time; from train.ranks import _at_most\nwith _at_most(0.1, 'found no one'): time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", code], env=QUIET, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and done.stderr == "train: found no one\n"


@pytest.mark.full
def test_run_or_resume_begins_where_a_kill_left_nothing_but_a_file_half_written(tmp_path, monkeypatch, capsys):
    """Then goes on, and refuses another command for the same folder."""
    monkeypatch.setattr(job, "verify", verified_elsewhere)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.config.toml.1.tmp").touch()
    words = [*RUN, "--warm-start.steps", "1", "--steps", "1", "--run-dir", str(tmp_path / "run")]
    assert main(words) == 0
    before = rows(tmp_path / "run")
    assert main(words) == 0 and rows(tmp_path / "run") == before
    assert "resumed after rollout batch 1" in capsys.readouterr().out
    assert main([*words, "--seed", "5"]) == 2
    assert "another configuration: seed 0 → 5" in capsys.readouterr().err
    assert main(["run", *words[1:]]) == 2
