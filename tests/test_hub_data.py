"""Data sets and models of the hub, from a server on this machine that speaks as much of the hub's API as that takes."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.config import ModelConfig
from train.model import build_model
from train.tokenizer import build_tokenizer

pytest.importorskip("datasets")

ROOT = Path(__file__).parents[1]
# Reads one source after another, and prints the prompts and answers of each, or the error.
SCRIPT = """
import json, sys
from train.problems.files import read
for source, split in json.loads(sys.argv[1]):
    try:
        print(json.dumps([[problem.prompt[0].content, problem.answer] for problem in read(source, split)]))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


def rows(*pairs, extra=None):
    """Rows of questions and answers, with a column that nobody asked for."""
    return [
        {"prompt": [{"content": q, "role": "user"}], "reward_model": {"ground_truth": a, "style": None}, "extra": extra}
        for q, a in pairs
    ]


def parquet(*pairs, extra=None):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(*pairs, extra=extra)), buffer)
    return buffer.getvalue()


def jsonl(*pairs):
    return "".join(json.dumps(row) + "\n" for row in rows(*pairs)).encode()


CARD = b"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: learn/*.parquet
  - split: test
    path: held/*.parquet
---
"""
TWO_CONFIGS = (
    CARD.replace(b"default", b"all").removesuffix(b"---\n") + CARD.replace(b"default", b"en").split(b"configs:\n")[1]
)
# Of each data set, the files of each revision.
DATA_SETS = {
    "org/both": {
        # The unread columns of the two files are at odds.
        "main": {
            "data/train-00000-of-00002.parquet": parquet(("1+1", "2"), ("1+1", "2")),
            "data/train-00001-of-00002.parquet": parquet(("1+2", "3"), extra={"deep": [{"er": 1.5}]}),
            "data/test-00000-of-00001.parquet": parquet(("1+3", "4"), extra="text"),
        },
        "v1": {"data/train-00000-of-00001.parquet": parquet(("old", "1"))},
    },
    "org/only-train": {"main": {"train.parquet": parquet(("2+2", "4")), "notes.txt": b"never fetched"}},
    "org/card": {
        "main": {"README.md": CARD, "learn/x.parquet": parquet(("a", "1")), "held/x.parquet": parquet(("b", "2"))}
    },
    "org/others": {"main": {"train.jsonl": jsonl(("a", "1")), "validation.jsonl": jsonl(("b", "2"))}},
    "org/bad": {
        "main": {"train.parquet": parquet(("a", "1"), ("b", None)), "test.parquet": parquet(("a", "1"), ("a", "2"))}
    },
    "org/tables": {"main": {"train.csv": b"prompt\nx\n"}},
    "org/configs": {
        "main": {
            "README.md": TWO_CONFIGS,
            "learn/x.parquet": parquet(("a", "1")),
            "held/x.parquet": parquet(("b", "2")),
        }
    },
}


def commit(name, revision):
    return hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """Says what a data set's commit is, what files are in it, and what is in a file."""

    protocol_version = "HTTP/1.1"
    asked: list[str] = []

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/").removeprefix("api/")
        path = path.removeprefix("datasets/").removeprefix("models/")
        self.asked.append(path)
        organisation, name, verb, revision, *file = [*path.split("/"), "", "", ""]
        name = f"{organisation}/{name}"
        if name not in DATA_SETS:
            return self.say(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        commits = {commit(name, each): files for each, files in DATA_SETS[name].items()}
        sha = revision if revision in commits else commit(name, revision)
        if sha not in commits:
            return self.say(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = commits[sha]
        if verb == "revision":
            return self.say(200, json.dumps({"id": name, "sha": sha, "siblings": []}).encode())
        if verb == "tree":
            listed = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in files.items()
            ]
            return self.say(200, json.dumps(listed).encode())
        data = files["/".join(file).rstrip("/")]
        return self.say(200, data, {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    do_HEAD = do_GET

    def say(self, status, data, headers=None):
        self.send_response(status)
        for key, value in ((headers or {}) | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def read_all(sources, home, **environment):
    """Read sources in a process of its own, for the hub's address is read once; in a folder that shadows a data set."""
    (home / "org" / "both").mkdir(parents=True, exist_ok=True)
    for shadow in ("train", "test"):
        (home / "org" / "both" / f"{shadow}.jsonl").write_bytes(jsonl(("shadow", "0")))
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(sources)],
        cwd=home,
        env=kept | {"PYTHONPATH": str(ROOT), "HF_HOME": str(home / "hf")} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.full
def test_data_sets_are_read_by_split_and_revision_and_what_was_read_serves_without_the_hub(hub, home):
    found = {
        ("hub:org/both", "train"): [["1+1", "2"], ["1+2", "3"]],
        ("hub:org/both", "test"): [["1+3", "4"]],
        ("hub:org/both@main", "test"): [["1+3", "4"]],
        ("hub:org/both@v1", "train"): [["old", "1"]],
        (f"hub:org/both@{commit('org/both', 'v1')}", "train"): [["old", "1"]],
        ("hub:org/only-train", "train"): [["2+2", "4"]],
        ("hub:org/only-train", "test"): [["2+2", "4"]],
        ("hub:org/card", "train"): [["a", "1"]],
        ("hub:org/card", "test"): [["b", "2"]],
    }
    assert read_all(list(found), home, HF_ENDPOINT=hub) == list(found.values())
    assert not any("notes.txt" in path for path in Hub.asked)
    assert read_all(list(found), home, HF_ENDPOINT=hub, HF_HUB_OFFLINE="1") == list(found.values())
    late = read_all([("hub:org/both@v2", "train"), ("hub:org/others", "train")], home, HF_HUB_OFFLINE="1")
    assert all("out of reach, and the cache has not all of it; check the network" in message for message in late)


REFUSED = {
    ("hub:org/none", "train"): ["cannot fetch hub:org/none: ", "none of that name", "check the name"],
    ("hub:org/both@v9", "train"): ["cannot fetch hub:org/both@v9: ", "no such revision"],
    ("hub:org/others", "test"): ["hub:org/others has no split test but train, validation; download a file"],
    ("hub:org/bad", "train"): ["hub:org/bad (train.parquet), row 2, column reward_model.ground_truth: ", "null"],
    ("hub:org/bad", "test"): [
        "hub:org/bad (test.parquet), row 1 and hub:org/bad (test.parquet), row 2 ",
        "'1' and '2'",
    ],
    ("hub:org/tables", "train"): ["hub:org/tables holds no .parquet and no .jsonl file"],
    ("hub:org/configs", "train"): ["cannot tell the splits of hub:org/configs: ", "'all', 'en'"],
    ("hub:both", "train"): ["'hub:both' is no data set of the hub; write hub:ORG/NAME"],
    ("hub:org/both@", "train"): ["write hub:ORG/NAME or hub:ORG/NAME@REVISION"],
    ("hub:org/both/deep", "train"): ["'hub:org/both/deep' is no data set of the hub"],
    ("hub:", "train"): ["'hub:' is no data set of the hub"],
}


@pytest.mark.full
def test_what_cannot_be_read_is_refused_in_a_sentence(hub, home):
    for (source, _), message in zip(REFUSED, read_all(list(REFUSED), home, HF_ENDPOINT=hub), strict=True):
        print(message)
        assert isinstance(message, str) and "\n" not in message and source in message
        assert all(part in message for part in REFUSED[source, _]), message


@pytest.mark.full
def test_a_hub_out_of_reach_is_a_sentence(tmp_path):
    [message] = read_all([("hub:org/both", "train")], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert message.startswith("cannot fetch hub:org/both: the hub is out of reach") and "\n" not in message


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch, tmp_path):
    from train.problems import hub

    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr(hub, "_folder", lambda source: tmp_path)
    with pytest.raises(ValueError, match="^hub:a/b needs the package datasets, .*; pip install datasets$"):
        hub.fetch("hub:a/b", "train")


# Models

MODEL_SCRIPT = """
import json, sys
from pathlib import Path
from train.model import open_model, open_tokenizer
for path in json.loads(sys.argv[1]):
    try:
        model, tokenizer = open_model(path), open_tokenizer(path)
        print(json.dumps([float(model.get_input_embeddings().weight[0, 0].detach()), len(tokenizer)]))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


def model_files(folder, seed):
    tokenizer = build_tokenizer()
    model = build_model(ModelConfig(width=32, mlp_width=32, layers=1, heads=2, key_value_heads=1), seed=seed)
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    files = {file.name: file.read_bytes() for file in folder.iterdir()} | {"pytorch_model.bin": b"a pickle"}
    return files, float(model.get_input_embeddings().weight[0, 0].detach())


@pytest.mark.full
def test_a_model_of_the_hub_is_fetched_once_by_its_revision_and_without_pickles(hub, home, tmp_path, monkeypatch):
    first, second = (model_files(tmp_path / str(seed), seed) for seed in (0, 1))
    monkeypatch.setitem(DATA_SETS, "org/model", {"main": first[0], "v2": second[0]})
    monkeypatch.setattr(sys.modules[__name__], "SCRIPT", MODEL_SCRIPT)
    known = ["hub:org/model", "hub:org/model@v2"]
    *found, unknown, nothing = read_all([*known, "hub:org/none", "hub:org/model@v3"], home, HF_ENDPOINT=hub)
    assert found == [[first[1], 262], [second[1], 262]] and first[1] != second[1]
    assert not any("pytorch_model.bin" in path for path in Hub.asked)
    for sentence, name in ((unknown, "hub:org/none"), (nothing, "hub:org/model@v3")):
        assert sentence.startswith(f"cannot fetch {name} (") and "or pass a folder as model.path" in sentence
    away = read_all(known, home, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert away == found, "from the cache"
