"""Checkpoints: what is left after a failure or a kill at any call to the system.

Run as a program, this file is the process whose children are killed, and the one with a small disk.
"""

import errno
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import checkpoints
import pytest
import torch
from checkpoints import assert_same, content, flip, names, refuse, two

from train.saving import checkpoint, durable
from train.saving.checkpoint import CheckpointError, Snapshot, load, save
from train.saving.manifest import list_folders

tmp_path = checkpoints.tmp_path


# Failures and interruptions, at each call


@contextmanager
def disturbed(turn, act, lasting=False, calls=("mkdir", "rename", "fsync", "unlink", "rmdir")):
    """Act instead of the call numbered ``turn`` that changes the disk, and of later ones too if it lasts.

    A write that is disturbed has been half done by then. Yields the list of calls so far.
    """
    made = []

    def due(name):
        made.append(name)
        return len(made) >= turn if lasting else len(made) == turn

    def watched(name, call):
        def instead(*args, **kwargs):
            return act() if due(name) else call(*args, **kwargs)

        return instead

    class File:
        def __init__(self, *args):
            self.file = open(*args)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if due("write"):
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                act()
            return self.file.write(data)

    with pytest.MonkeyPatch.context() as patch:
        for name in calls:
            patch.setattr(os, name, watched(name, getattr(os, name)))
        patch.setattr(durable, "open", File, raising=False)
        yield made


def prepared(folder):
    """A folder with two checkpoints, in which the next save removes, replaces and cleans up."""
    (two(folder) / ".step-00000009.1.tmp").mkdir()
    return folder


def one_save(folder, replacing):
    """Save step 3, or step 2 in other words."""
    save(folder, Snapshot(2, {}, {"new": True}) if replacing else content(3))


def check(folder, replacing, whole=True):
    """Load what is there after a save that was interrupted; return whether it is the new one."""
    found = load(folder, warn=refuse)
    new = found.step == 3 or "new" in found.state
    if new:
        assert_same(found, Snapshot(2, {}, {"new": True}) if replacing else content(3))
    else:
        assert_same(found, content(2))
    return new


def calls_of_a_save(folder, replacing):
    prepared(folder)
    with disturbed(math.inf, None) as made:
        one_save(folder, replacing)
    return len(made)


@pytest.mark.parametrize("replacing", [False, True])
def test_everything_is_on_the_disk_before_it_is_renamed_and_read_back_before_any_goes(tmp_path, replacing, monkeypatch):
    events = []

    def watch(name, call, key):
        def instead(*args, **kwargs):
            events.append((name, key(args)))
            return call(*args, **kwargs)

        return instead

    prepared(tmp_path)
    monkeypatch.setattr(os, "fsync", watch("fsync", os.fsync, lambda args: os.fstat(args[0]).st_ino))
    monkeypatch.setattr(os, "rename", watch("rename", os.rename, lambda args: Path(args[1]).name))
    monkeypatch.setattr(Path, "read_bytes", watch("read", Path.read_bytes, lambda args: args[0].parent.name))
    one_save(tmp_path, replacing)
    final = tmp_path / ("step-00000002" if replacing else "step-00000003")
    at = events.index(("rename", final.name))
    synced = {what for name, what in events[:at] if name == "fsync"}
    assert {path.stat().st_ino for path in final.iterdir()} | {final.stat().st_ino} <= synced
    assert events[at + 1] == ("fsync", tmp_path.stat().st_ino)
    removed = [i for i, (name, what) in enumerate(events) if name == "rename" and str(what).endswith(".tmp")]
    read = [i for i, event in enumerate(events) if event == ("read", final.name) and i > at]
    assert len(read) == len(names(final)) and max(read) < min(removed)
    assert events[-1] == ("fsync", tmp_path.stat().st_ino)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("replacing", [False, True])
def test_a_disk_that_fails_at_any_call(tmp_path, number, lasting, replacing):
    def fail():
        raise OSError(number, os.strerror(number))

    kinds = ("mkdir", "rename", "fsync")  # a full disk can remove
    outcomes = Counter()
    turn = 0
    while True:
        turn += 1
        folder = prepared(tmp_path / str(turn))
        said = ""
        with disturbed(turn, fail, lasting, kinds) as made:
            try:
                one_save(folder, replacing)
            except CheckpointError as error:
                said = str(error)
        if len(made) < turn:
            break
        assert os.strerror(number) in said and "\n" not in said
        new = check(folder, replacing)
        if said.startswith(f"cannot save {folder}/step-0000000{2 if replacing else 3}: "):
            assert f"; at least {0 if replacing else 100} bytes are needed; the last checkpoint, step-0000000" in said
            assert said.endswith(", is intact; make room or choose another folder")
            # Where no rename works any more, the new one cannot be taken back; it is whole then.
            assert f"the last checkpoint, step-0000000{load(folder, warn=refuse).step}" in said
            if not lasting:
                assert not new and names(folder) == ["step-00000001", "step-00000002"]
        else:
            assert re.fullmatch(f"{folder}/step-0000000[23] is saved, but older ones cannot be removed: .*", said)
            assert new
        assert not list(folder.glob(".step-*.tmp")) or new
        outcomes[new] += 1
        one_save(folder, replacing)
        assert names(folder) == (
            ["step-00000001", "step-00000002"] if replacing else ["step-00000002", "step-00000003"]
        )
        assert check(folder, replacing)
    assert outcomes[False] > 7 and outcomes[True] >= 2


@pytest.mark.parametrize("replacing", [False, True])
def test_an_interrupt_at_any_call(tmp_path, replacing):
    def interrupt():
        raise KeyboardInterrupt

    outcomes = Counter()
    for turn in range(1, calls_of_a_save(tmp_path / "0", replacing) + 1):
        folder = prepared(tmp_path / str(turn))
        with disturbed(turn, interrupt), pytest.raises(KeyboardInterrupt):
            one_save(folder, replacing)
        outcomes[check(folder, replacing)] += 1
        one_save(folder, replacing)
        assert check(folder, replacing) and len(names(folder)) == 2
    assert outcomes[False] > 7 and outcomes[True] >= 2


@pytest.mark.parametrize("replacing", [False, True])
def test_a_disk_that_does_not_keep_what_it_was_given(tmp_path, replacing):
    prepared(tmp_path)
    rename = os.rename

    def lossy(old, new):
        rename(old, new)
        if Path(old).suffix == ".tmp":
            flip(Path(new) / "state.json")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", lossy)
        with pytest.raises(CheckpointError, match="state.json is not what was written.* step-00000002, is intact"):
            one_save(tmp_path, replacing)
    assert not check(tmp_path, replacing) and names(tmp_path) == ["step-00000001", "step-00000002"]


@pytest.mark.full
def test_a_reader_beside_a_saver_sees_only_whole_ones(tmp_path):
    save(tmp_path, content(0))
    stop = threading.Event()

    def saver():
        step = 0
        while not stop.is_set():
            save(tmp_path, content(step), keep=1)
            save(tmp_path, content(step), keep=1)
            step += 1

    thread = threading.Thread(target=saver)
    thread.start()
    try:
        seen, until = [], time.monotonic() + 1.5
        while time.monotonic() < until:
            found = load(tmp_path, warn=refuse)
            assert_same(found, content(found.step))
            seen.append(found.step)
    finally:
        stop.set()
        thread.join()
    assert seen == sorted(seen) and len(set(seen)) > 3


def test_a_name_that_moves_while_it_is_listed_is_looked_for_again(tmp_path, monkeypatch):
    """A listing may miss a folder that is renamed meanwhile, under both its names."""
    save(tmp_path, content(1))
    listings = iter([[], list_folders(tmp_path)])
    monkeypatch.setattr(checkpoint, "list_folders", lambda _: next(listings))
    assert_same(load(tmp_path, warn=refuse), content(1))


# Kills and a small disk, in a process of their own


def run(mode, folder, *before):
    command = [*before, sys.executable, "-W", "error::ResourceWarning", __file__, mode, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.full
def test_kills_at_any_moment(tmp_path):
    told = run("kills", tmp_path)
    assert told["random"] == 40 and told["inside a save"] > 10, told
    for kind in ("new", "replacing"):
        before, after = told[kind]
        assert before > 8 and after > 2, told


@pytest.mark.full
@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
    reason="may not mount a small disk",
)
def test_a_disk_that_is_really_full(tmp_path):
    told = run("full", tmp_path, "unshare", "-rm")
    assert told["failures"] > 10 and told["successes"] > 2


def killed(work):
    """Run work in a child until it kills itself or is killed here by what the caller does with its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def end(pid):
    os.kill(os.getpid() if pid is None else pid, signal.SIGKILL)


def kills(folder):
    told = {"random": 0, "inside a save": 0}
    moments, at_random, last = random.Random(0), folder / "random", -1
    for _ in range(40):
        reader, writer = os.pipe()

        def work(first=last + 1, writer=writer):
            step = first
            while True:
                for _ in range(2):  # the second replaces the first
                    save(at_random, content(step))
                    os.write(writer, step.to_bytes(4, "big"))
                step += 1

        pid = killed(work)
        os.close(writer)
        time.sleep(moments.uniform(0, 0.04))
        end(pid)
        os.waitpid(pid, 0)
        with os.fdopen(reader, "rb") as pipe:
            finished = pipe.read()
        if finished:
            last = int.from_bytes(finished[-4:], "big")
        told["inside a save"] += any(".tmp" in name for name in names(at_random)) if at_random.exists() else 0
        found = load(at_random, warn=refuse)
        if found is None:
            assert last == -1
        else:
            assert_same(found, content(found.step))
            assert found.step in (last, last + 1)
            last = found.step
        told["random"] += 1
    for replacing in (False, True):
        outcomes = [0, 0]
        for turn in range(1, calls_of_a_save(folder / f"{replacing}0", replacing) + 1):
            place = prepared(folder / f"{replacing}{turn}")

            def work(place=place, turn=turn, replacing=replacing):
                with disturbed(turn, lambda: end(None)):
                    one_save(place, replacing)

            _, status = os.waitpid(killed(work), 0)
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            outcomes[check(place, replacing)] += 1
            one_save(place, replacing)
            assert check(place, replacing) and len(names(place)) == 2
        told["replacing" if replacing else "new"] = outcomes
    return told


def full(folder):
    """On a disk of 64 pages, save beside ever more that is there already."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
    told = {"failures": 0, "successes": 0}
    place, ballast = folder / "checkpoints", folder / "ballast"
    for pages in range(64):
        shutil.rmtree(place, ignore_errors=True)
        ballast.unlink(missing_ok=True)
        save(place, content(1, size=8000))
        try:
            ballast.write_bytes(bytes(4096 * pages))
        except OSError:
            ballast.unlink()
            break
        try:
            save(place, content(2, size=8000))
        except CheckpointError as error:
            assert "No space left on device; at least 48,004 bytes are needed; the last checkpoint, step-" in str(error)
            assert names(place) == ["step-00000001"]
            assert_same(load(place, warn=refuse), content(1, size=8000))
            told["failures"] += 1
            ballast.unlink()
            save(place, content(2, size=8000))
        else:
            told["successes"] += 1
        assert_same(load(place, warn=refuse), content(2, size=8000))
    return told


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"kills": kills, "full": full}[sys.argv[1]](Path(sys.argv[2]))))
