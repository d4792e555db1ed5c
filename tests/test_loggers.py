"""The optional loggers: what reaches each of them, and that none can stop a run."""

import json
import math
import os
import socket
import sqlite3
import struct
import sys
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import pytest

from train.watching.loggers import LOGGERS, check_loggers, open_loggers

CONFIG = {"name": "tiny", "beta": None, "model": {"width": 64, "layers": [1, 2]}}


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path, monkeypatch):
    """A new home without settings, the environment without the libraries' names, and no network."""

    def refuse(host, *_):
        raise AssertionError(f"a test asked the network for {host}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith(("WANDB_", "TRACKIO_", "NETRC"))]:
            del os.environ[name]
        os.environ["HOME"] = str(tmp_path / "home")
        yield


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    return path


def never(sentence):
    raise AssertionError(sentence)


def package(monkeypatch, name, **contents):
    """Put a module of that name where an import finds it."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def fake(monkeypatch, name, fails=()):
    """A logger that keeps what it is told, and fails in the given places."""
    seen = SimpleNamespace(rows=[], closed=None)

    def fail(place):
        if place in fails:
            raise OSError(28, f"no space left\nto {place}")

    @contextmanager
    def opener(folder, name, config):
        fail("open")

        def log(phase, step, numbers):
            fail(step)
            seen.rows.append((phase, step, numbers))

        try:
            yield log
            seen.closed = "well"
        except BaseException as error:
            seen.closed = error
            raise
        finally:
            fail("close")

    package(monkeypatch, name)
    monkeypatch.setitem(LOGGERS, name, opener)
    return seen


# What is refused


def test_a_missing_package_is_named_before_any_logger_is_opened(monkeypatch, folder):
    seen = fake(monkeypatch, "first", fails=["open"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    sentence = "the logger wandb needs the package wandb, which is not installed; pip install wandb"
    with pytest.raises(ValueError) as caught, open_loggers(["first", "wandb"], folder, "tiny", CONFIG, never):
        pass
    assert str(caught.value) == sentence
    assert seen.closed is None and not list(folder.iterdir())


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["wandbb"], "unknown logger 'wandbb'; the nearest are wandb"),
        (["first", "first"], "the logger first is named 2 times; name it once"),
    ],
)
def test_bad_names(monkeypatch, names, sentence):
    package(monkeypatch, "first")
    monkeypatch.setitem(LOGGERS, "first", None)
    with pytest.raises(ValueError) as caught:
        check_loggers(names)
    assert str(caught.value) == sentence


def test_no_logger_is_none(folder):
    with open_loggers([], folder, "tiny", CONFIG, never) as log:
        log({"phase": "warm_start", "step": 1, "loss": 1.0})
    assert not list(folder.iterdir())


# What passes through


def test_only_finite_numbers_are_passed_on_under_their_full_names(monkeypatch, folder):
    seen = fake(monkeypatch, "first")
    row = {"phase": "warm_start", "step": 3, "loss": 2.0, "draws": 1, "k1": None, "k2": math.nan, "k3": math.inf}
    with open_loggers(["first"], folder, "tiny", CONFIG, never) as log:
        log(row)
    assert seen.rows == [("warm_start", 3, {"warm_start/loss": 2.0, "warm_start/draws": 1})]
    assert seen.closed == "well"


@pytest.mark.parametrize("place", ["open", 2, "close"])
def test_a_logger_that_fails_is_left_out_with_one_sentence(monkeypatch, folder, place):
    broken, sound = fake(monkeypatch, "broken", fails=[place, "close"]), fake(monkeypatch, "sound")
    warnings = []
    with open_loggers(["broken", "sound"], folder, "tiny", CONFIG, warnings.append) as log:
        for step in range(4):
            log({"phase": "warm_start", "step": step, "loss": 1.0})
    assert [step for _, step, _ in sound.rows] == [0, 1, 2, 3]
    assert [step for _, step, _ in broken.rows] == {"open": [], 2: [0, 1], "close": [0, 1, 2, 3]}[place]
    assert warnings == [
        "the logger broken failed and is left out from here on, metrics.jsonl has every row: "
        f"OSError: [Errno 28] no space left to {place}"
    ]
    assert sound.closed == "well"


@pytest.mark.parametrize("error", [RuntimeError("diverged"), KeyboardInterrupt()])
def test_a_run_that_dies_closes_every_logger_and_is_not_hidden_by_one_that_cannot_close(monkeypatch, folder, error):
    seen = [
        fake(monkeypatch, name, fails) for name, fails in (("a", []), ("b", ["close"]), ("c", [2]), ("d", ["open"]))
    ]
    warnings = []
    with (
        pytest.raises(type(error)) as caught,
        open_loggers(["a", "b", "c", "d"], folder, "", {}, warnings.append) as log,
    ):
        log({"phase": "warm_start", "step": 2})
        raise error
    assert caught.value is error
    assert [each.closed for each in seen] == [error, error, error, None]
    assert len(warnings) == 3


# Each library's own demands, on stand-ins


def fake_wandb(monkeypatch, mode="online", login=False):
    run = mock.Mock()
    asked = mock.Mock(return_value=login)
    settings = SimpleNamespace(mode=mode, project=None)
    module = package(
        monkeypatch,
        "wandb",
        setup=lambda: SimpleNamespace(settings=settings),
        login=asked,
        init=mock.Mock(return_value=run),
    )
    return module, run


@pytest.mark.parametrize(
    ("environment", "mode", "login", "wanted"),
    [
        ({}, "online", False, "offline"),
        ({}, "online", True, None),
        ({}, "disabled", False, None),
        ({"WANDB_MODE": "online"}, "online", False, None),
        ({"WANDB_MODE": "offline"}, "offline", True, None),
    ],
)
def test_wandb_is_online_only_where_the_user_said_so(monkeypatch, folder, environment, mode, login, wanted):
    module, _ = fake_wandb(monkeypatch, mode, login)
    os.environ.update(environment)
    with open_loggers(["wandb"], folder, "tiny", CONFIG, never):
        pass
    given = module.init.call_args.kwargs
    assert given["mode"] == wanted
    assert given["id"] is None and given["resume"] == "allow" and given["dir"] == folder
    assert all(call.kwargs["prompt"] is False for call in module.login.call_args_list)
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"


def test_wandb_knows_that_a_run_died(monkeypatch, folder):
    _, run = fake_wandb(monkeypatch)
    with pytest.raises(KeyboardInterrupt), open_loggers(["wandb"], folder, "tiny", CONFIG, never):
        raise KeyboardInterrupt
    assert run.finish.call_args_list == [mock.call(exit_code=1)]


def fake_trackio(monkeypatch, home=None):
    """Import a stand-in that reads TRACKIO_DIR when it is imported, as the library does."""
    hub = package(monkeypatch, "huggingface_hub", constants=SimpleNamespace(HF_HUB_OFFLINE=False))
    seen = SimpleNamespace(offline=None, run=mock.Mock())

    def init(**given):
        seen.offline, seen.given = hub.constants.HF_HUB_OFFLINE, given
        return seen.run

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            return ModuleSpec(name, Finder) if name == "trackio" else None

        @staticmethod
        def create_module(spec):
            return None

        @staticmethod
        def exec_module(module):
            seen.home = os.environ["TRACKIO_DIR"]
            module.utils = SimpleNamespace(TRACKIO_DIR=Path(home or seen.home))
            module.init, module.finish = init, mock.Mock()

    monkeypatch.setitem(sys.modules, "trackio", None)
    del sys.modules["trackio"]
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    return seen


@pytest.mark.parametrize(
    ("environment", "home", "offline"),
    [
        ({}, None, True),
        ({"TRACKIO_DIR": "/elsewhere"}, "/elsewhere", True),
        ({"TRACKIO_SPACE_ID": "me/space"}, None, False),
        ({"TRACKIO_SERVER_URL": "https://trackio.example"}, None, False),
    ],
)
def test_trackio_stays_in_the_folder_unless_the_user_said_otherwise(monkeypatch, folder, environment, home, offline):
    seen = fake_trackio(monkeypatch)
    os.environ.update(environment)
    before = dict(os.environ)
    with open_loggers(["trackio"], folder, "tiny", CONFIG, never) as log:
        log({"phase": "warm_start", "step": 7, "loss": 1.0})
    assert seen.home == (home or str(folder / "trackio"))
    assert seen.offline is offline
    assert seen.given["resume"] == "never"
    assert dict(os.environ) == before
    assert seen.run.log.call_args_list == [mock.call({"warm_start/loss": 1.0}, step=7)]
    with open_loggers(["trackio"], folder, "tiny", CONFIG, never):
        assert seen.given["resume"] == "allow"


def test_trackio_never_writes_into_another_runs_folder(monkeypatch, folder):
    fake_trackio(monkeypatch, home="/another/trackio")
    warnings = []
    with open_loggers(["trackio"], folder, "tiny", CONFIG, warnings.append):
        pass
    assert "trackio writes to /another/trackio in this process" in warnings[0]


# The libraries themselves, where they are installed: a run killed after rollout batch 4, resumed from the one after 2


def first_half():
    warm = [{"phase": "warm_start", "step": step, "loss": 1 / step, "grad_norm": None} for step in range(1, 31)]
    return [*warm, {"phase": "evaluation", "step": 0, "accuracy": 0.25}, *batches(1, 5)]


def second_half():
    return [*batches(3, 7), {"phase": "evaluation", "step": 6, "accuracy": 0.5}]


def batches(start, end):
    return [{"phase": "policy_gradient", "step": step, "reward": step / 8} for step in range(start, end)]


def log_both_halves(logger, folder):
    with pytest.raises(RuntimeError), open_loggers([logger], folder, "tiny-seed0", CONFIG, never) as log:
        for row in first_half():
            log(row)
        raise RuntimeError("killed")
    with open_loggers([logger], folder, "tiny-seed0", CONFIG, never) as log:
        for row in second_half():
            log(row)


def points(rows):
    """(key, step, value) of each number of rows."""
    kept = ((row, key) for row in rows for key in row if key not in ("phase", "step") and row[key] is not None)
    return [(f"{row['phase']}/{key}", row["step"], pytest.approx(row[key], rel=1e-6)) for row, key in kept]


def test_tensorboard_shows_every_row_once(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_both_halves("tensorboard", folder)
    found = []
    for phase in ("warm_start", "evaluation", "policy_gradient"):
        events = EventAccumulator(str(folder / "tensorboard" / phase)).Reload()
        found += [(tag, event.step, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
    first = [row for row in first_half() if row["phase"] != "policy_gradient" or row["step"] < 3]
    assert sorted(found) == sorted(points(first + second_half()), key=lambda point: point[:2])
    told = EventAccumulator(str(folder / "tensorboard")).Reload().Tensors("config/text_summary")[0]
    assert '"width": 64' in told.tensor_proto.string_val[0].decode()


def wandb_records(path):
    """The records of a .wandb file: LevelDB's log format after seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part = path.read_bytes(), 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(part)
            part = b""


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_wandb_goes_on_in_the_same_run_offline(folder):
    wandb = pytest.importorskip("wandb", minversion="0.31")
    wandb.teardown()
    log_both_halves("wandb", folder)
    wandb.teardown()
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    assert len(files) == 2 and len({file.name for file in files}) == 1
    for file, rows, died in zip(files, (first_half(), second_half()), (1, 0), strict=True):
        records = list(wandb_records(file))
        found = []
        for history in (record.history for record in records if record.HasField("history")):
            values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in history.item}
            phase = next(key.partition("/")[0] for key in values if key.endswith("/step"))
            step = values.pop(f"{phase}/step")
            found += [(key, step, value) for key, value in values.items() if not key.startswith("_")]
        assert found == points(rows)
        axes = {record.metric.glob_name: record.metric.step_metric for record in records if record.HasField("metric")}
        assert axes["policy_gradient/*"] == "policy_gradient/step"
        assert [record.exit.exit_code for record in records if record.HasField("exit")] == [died]


def test_trackio_goes_on_in_the_same_run(folder):
    pytest.importorskip("trackio")
    with mock.patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
            del sys.modules[name]
        log_both_halves("trackio", folder)
    with sqlite3.connect(folder / "trackio" / "rpg_ref.db") as database:
        logged = database.execute("SELECT run_id, step, metrics FROM metrics ORDER BY id").fetchall()
        (config,) = database.execute("SELECT config FROM configs").fetchone()
    database.close()
    assert len({run for run, _, _ in logged}) == 1
    found = [(key, step, value) for _, step, metrics in logged for key, value in json.loads(metrics).items()]
    assert found == points(first_half() + second_half())
    assert json.loads(config)["model"] == CONFIG["model"]
