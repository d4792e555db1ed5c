"""Checkpoints: what comes back, which checkpoints stay, what is refused, and what a damaged one does."""

import copy
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import time

import checkpoints
import pytest
import torch
from checkpoints import assert_same, content, flip, names, refuse, same_bits, two
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from train.saving import exact
from train.saving.checkpoint import CheckpointError, Snapshot, load, optimizer_tensors, restore_optimizer, save

tmp_path = checkpoints.tmp_path
DTYPES = sorted(exact.DTYPES, key=str)


# What comes back


def test_nothing_is_none(tmp_path):
    assert load(tmp_path / "missing", warn=refuse) is None
    assert load(tmp_path, warn=refuse) is None


def test_a_checkpoint_is_files_that_a_manifest_lists(tmp_path):
    path = save(tmp_path / "a/b", content(10))
    assert path == tmp_path / "a/b/step-00000010"
    assert names(path) == ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"]) == (1, 10)
    assert {name: file["size"] for name, file in manifest["files"].items()} == {
        name: (path / name).stat().st_size for name in names(path) if name != "manifest.json"
    }
    assert_same(load(tmp_path / "a/b", warn=refuse), content(10))


def test_every_tensor_comes_back_bit_for_bit(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tied = torch.randn(3)
    odd = torch.tensor([0x7FC01234, 0x7F812345, -1, 1, 1 << 31 - 1], dtype=torch.int32).view(torch.float32)
    tensors = {
        "not a number, in many ways": odd,
        "scalar": torch.tensor(-0.0),
        "empty": torch.zeros(0, 3),
        "transposed": base.T,
        "strided": base[::2, 1::2],
        "expanded": torch.tensor(2.0).expand(5),
        "whole": base,
        "part": base[1],
        "tied": tied,
        "tied again": tied,
        "parameter": nn.Parameter(torch.randn(2, 2)),
        "conjugate": torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj(),
        "negative": torch.tensor([1 + 2j], dtype=torch.complex64).conj().imag,
        "名前.weight": torch.ones(1),
        "": torch.ones(2),
    }
    for dtype in DTYPES:
        tensors[f"{dtype}"] = torch.randint(0, 2, (3, 16), dtype=torch.uint8).view(dtype)
        tensors[f"{dtype} scalar"] = tensors[f"{dtype}"][0, 0]
    snapshot = Snapshot(0, {"model": tensors, "nothing": {}}, {})
    save(tmp_path, snapshot)
    found = load(tmp_path, warn=refuse)
    assert_same(found, snapshot)
    found.tensors["model"]["tied"].zero_()
    assert same_bits(found.tensors["model"]["tied again"], tied), "what comes back shares no memory"
    assert not found.tensors["model"]["parameter"].requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_gpu_come_back_on_the_cpu(tmp_path):
    snapshot = Snapshot(1, {"model": {"weight": torch.randn(3, 4, device="cuda").T}}, {})
    save(tmp_path, snapshot)
    assert_same(load(tmp_path, warn=refuse), snapshot)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text().filter(lambda key: not key.startswith("$")), inner)
    ),
)


@given(values)
def test_every_plain_value_comes_back_exactly(value):
    # repr tells -0.0 from 0.0, a tuple from a list, True from 1, and a float by its last bit.
    assert repr(exact.loads(exact.dumps(value))) == repr(value)


def test_the_states_of_generators_come_back(tmp_path):
    python, torches = random.Random(3), torch.Generator().manual_seed(5)
    save(tmp_path, Snapshot(1, {"rng": {"torch": torches.get_state()}}, {"python": python.getstate()}))
    found, then = load(tmp_path, warn=refuse), random.Random()
    then.setstate(found.state["python"])
    again = torch.Generator()
    again.set_state(found.tensors["rng"]["torch"])
    assert then.random() == python.random()
    assert torch.equal(torch.rand(9, generator=again), torch.rand(9, generator=torches))


@pytest.mark.parametrize(
    ("snapshot", "says"),
    [
        (Snapshot(1, {}, {"when": {1, 2}}), "snapshot.state.when is a set"),
        (Snapshot(1, {}, {"a": [0, torch.ones(1)]}), r"snapshot.state.a\[1\] is a Tensor"),
        (Snapshot(1, {}, {1: 2}), "the key 1"),
        (Snapshot(1, {}, {"$float": "nan"}), r"the key '\$float'"),
        (Snapshot(1, {"../model": {}}, {}), "'../model' cannot be the name"),
        (Snapshot(1, {"m": {"x": torch.eye(2).to_sparse()}}, {}), "x is torch.float32, sparse_coo cpu"),
        (Snapshot(1, {"m": {"x": torch.empty(2, device="meta")}}, {}), "strided meta"),
        (Snapshot(1, {"m": {"x": torch.ones(2, dtype=torch.complex128)}}, {}), "x is torch.complex128"),
        (Snapshot(1, {"m": {"__metadata__": torch.ones(2)}}, {}), "__metadata__"),
        (Snapshot(-1, {}, {}), "count steps from 0"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_leaves_nothing(tmp_path, snapshot, says):
    with pytest.raises(ValueError, match=says):
        save(tmp_path, snapshot)
    assert names(tmp_path) == []


def test_keep_is_at_least_one(tmp_path):
    with pytest.raises(ValueError, match="keep is 0"):
        save(tmp_path, content(1), keep=0)


# Optimisers


def adamw(groups):
    return torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95), amsgrad=True)


def adamw_with_a_tensor_for_a_rate(groups):
    return torch.optim.AdamW(groups, lr=torch.tensor(0.01), foreach=False)


def schedule_free(groups):
    rule = pytest.importorskip("schedulefree").AdamWScheduleFree(groups, lr=0.01, warmup_steps=4, r=0.5)
    rule.train()
    return rule


def begin(build, seed=0, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2), nn.Linear(1, 1)).to(dtype)
    # The last layer never has a gradient, hence no state.
    decayed = [weight for weight in net.parameters() if weight.dim() > 1]
    others = [weight for weight in net.parameters() if weight.dim() == 1]
    return net, build([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}])


def descend(net, rule, numbers):
    for number in numbers:
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(number)).to(next(net.parameters()).dtype)
        rule.zero_grad()
        net[:3](x).float().square().mean().backward()
        rule.step()


def everything(net, rule):
    tensors, rest = optimizer_tensors(rule)
    return {f"net.{name}": weight for name, weight in net.state_dict().items()} | tensors, rest


def through_the_disk(folder, net, rule):
    tensors, rest = optimizer_tensors(rule)
    save(folder, Snapshot(3, {"model": net.state_dict(), "optimizer": tensors}, {"optimizer": rest}))
    return load(folder, warn=refuse)


@pytest.mark.parametrize("build", [adamw, adamw_with_a_tensor_for_a_rate, schedule_free])
@pytest.mark.parametrize("done", [0, 3])
def test_an_optimiser_resumes_bit_for_bit(tmp_path, build, done):
    net, rule = begin(build)
    schedule = torch.optim.lr_scheduler.LambdaLR(rule, lambda step: 1 / (step + 1))
    descend(net, rule, range(done))
    if done:
        schedule.step()
    found = through_the_disk(tmp_path, net, rule)
    again, restored = begin(build, seed=1)
    again.load_state_dict(found.tensors["model"])
    restore_optimizer(restored, found.tensors["optimizer"], found.state["optimizer"])
    found_then = copy.deepcopy(found.tensors)
    for a in (net, rule), (again, restored):
        descend(*a, range(done, done + 5))
    (tensors, rest), (tensors_again, rest_again) = everything(net, rule), everything(again, restored)
    assert repr(rest) == repr(rest_again)
    assert tensors.keys() == tensors_again.keys()
    assert all(same_bits(tensors[name], tensors_again[name]) for name in tensors)
    for file, saved in found_then.items():
        assert all(same_bits(saved[name], found.tensors[file][name]) for name in saved), "a snapshot was trained on"


def test_schedule_free_keeps_which_weights_it_shows(tmp_path):
    net, rule = begin(schedule_free)
    descend(net, rule, range(3))
    rule.eval()
    found = through_the_disk(tmp_path, net, rule)
    again, restored = begin(schedule_free, seed=1)
    again.load_state_dict(found.tensors["model"])
    restore_optimizer(restored, found.tensors["optimizer"], found.state["optimizer"])
    for a in (net, rule), (again, restored):
        a[1].train()
        descend(*a, range(3, 8))
    tensors, tensors_again = everything(net, rule)[0], everything(again, restored)[0]
    assert all(same_bits(tensors[name], tensors_again[name]) for name in tensors)
    assert {"state.0.z", "state.0.exp_avg_sq"} <= tensors.keys()


def test_moments_finer_than_their_parameter_stay_so(tmp_path):
    """load_state_dict alone would round them to bfloat16."""
    net, rule = begin(adamw, dtype=torch.bfloat16)
    descend(net, rule, range(2))
    weight = net[0].weight
    rule.state[weight]["exp_avg"] = torch.full_like(weight, 0.1, dtype=torch.float32)
    found = through_the_disk(tmp_path, net, rule)
    again, restored = begin(adamw, dtype=torch.bfloat16)
    restore_optimizer(restored, found.tensors["optimizer"], found.state["optimizer"])
    assert same_bits(restored.state[again[0].weight]["exp_avg"], rule.state[weight]["exp_avg"])


def test_another_optimiser_is_refused():
    net, rule = begin(adamw)
    tensors, rest = optimizer_tensors(rule)
    for other in (begin(torch.optim.SGD)[1], torch.optim.AdamW(net[0].parameters())):
        with pytest.raises(ValueError, match=r"holds AdamW over \[3, 3\] parameters.*resume with the configuration"):
            restore_optimizer(other, tensors, rest)


# Which stay


def test_the_newest_stay(tmp_path):
    for step in (1, 2, 5, 100_000_000, 100_000_001):
        save(tmp_path, content(step))
    assert names(tmp_path) == ["step-100000000", "step-100000001"]
    save(tmp_path, content(100_000_002), keep=1)
    assert names(tmp_path) == ["step-100000002"]


def test_a_damaged_one_does_not_count(tmp_path):
    two(tmp_path)
    flip(tmp_path / "step-00000002/model.safetensors")
    save(tmp_path, content(3))
    assert names(tmp_path) == ["step-00000001", "step-00000003"]


def test_a_later_one_is_not_saved_past(tmp_path):
    save(tmp_path, content(5))
    with pytest.raises(CheckpointError, match="step-00000005 is later than step 4; resume from it or remove it"):
        save(tmp_path, content(4))
    flip(tmp_path / "step-00000005/state.json")
    save(tmp_path, content(4), keep=1)
    assert names(tmp_path) == ["step-00000004", "step-00000005"], "a damaged one can be looked at until it is replaced"
    sentences = []
    assert_same(load(tmp_path, warn=sentences.append), content(4))
    assert len(sentences) == 1
    save(tmp_path, content(5), keep=1)
    assert names(tmp_path) == ["step-00000005"]
    assert_same(load(tmp_path, warn=refuse), content(5))


def test_leftovers_go_and_other_files_stay(tmp_path):
    for name in (".step-00000007.1.tmp", ".step-00000001.old.99999.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".step-00000008.2.tmp").symlink_to(tmp_path.parent)
    for name in ("notes.txt", ".hidden", "step-10", "step-0000000010", "step-00000003.bak"):
        (tmp_path / name).write_text("mine")
    save(tmp_path, content(1))
    assert names(tmp_path) == sorted(
        ["notes.txt", ".hidden", "step-10", "step-0000000010", "step-00000003.bak", "step-00000001"]
    )
    assert_same(load(tmp_path, warn=refuse), content(1))


# Damage


def edit(change):
    def damage(path):
        manifest = json.loads((path / "manifest.json").read_text())
        change(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest))

    return damage


def overwrite(name, data):
    """Forge one file, its size and its hash in the manifest included."""

    def damage(path):
        (path / name).write_bytes(data)
        entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        edit(lambda manifest: manifest["files"].update({name: entry}))(path)

    return damage


def by_link(name, to):
    def damage(path):
        target = path.parent / to
        shutil.move(path / name, target)
        (path / name).symlink_to(target)

    return damage


def lose_a_file(path):
    """Also from the manifest: then the state tells."""
    (path / "optimizer.safetensors").unlink()
    edit(lambda manifest: manifest["files"].pop("optimizer.safetensors"))(path)


def rename_file(old, new):
    def change(manifest):
        manifest["files"][new] = manifest["files"].pop(old)

    return edit(change)


def replace_by_file(path):
    shutil.rmtree(path)
    path.write_text("no folder")


def replace_by_link(path):
    moved = path.with_name("elsewhere")
    path.rename(moved)
    path.symlink_to(moved)


def swap(path):
    a, b, c = path / "model.safetensors", path / "optimizer.safetensors", path.parent / "c"
    a.rename(c), b.rename(a), c.rename(b)


def older_under_its_name(path):
    shutil.rmtree(path)
    shutil.copytree(path.with_name("step-00000001"), path)


def and_renumbered(path):
    older_under_its_name(path)
    edit(lambda manifest: manifest.update(step=2))(path)


DAMAGES = {
    "flip model": (lambda p: flip(p / "model.safetensors"), "model.safetensors is not what was written"),
    "flip header": (lambda p: flip(p / "optimizer.safetensors", 0), "optimizer.safetensors is not what was written"),
    "flip state": (lambda p: flip(p / "state.json", 3), "state.json is not what was written"),
    "flip manifest": (lambda p: flip(p / "manifest.json", 0), "manifest.json is not a manifest"),
    "swap": (swap, "model.safetensors has 112 bytes, and 196 bytes"),
    "empty file": (lambda p: os.truncate(p / "model.safetensors", 0), "model.safetensors has 0 bytes, and"),
    "truncate": (lambda p: os.truncate(p / "state.json", 9), "state.json has 9 bytes, and"),
    "truncate manifest": (lambda p: os.truncate(p / "manifest.json", 60), "manifest.json is not a manifest"),
    "empty manifest": (lambda p: os.truncate(p / "manifest.json", 0), "manifest.json is not a manifest"),
    "delete": (lambda p: (p / "optimizer.safetensors").unlink(), "optimizer.safetensors is missing"),
    "delete state": (lambda p: (p / "state.json").unlink(), "state.json is missing"),
    "delete manifest": (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
    "delete all": (lambda p: [f.unlink() for f in p.iterdir()], "manifest.json is missing"),
    "delete and unlist": (lose_a_file, "state.json is of another checkpoint"),
    "add": (lambda p: (p / "note.txt").write_text("x"), "'note.txt' is there without being in manifest.json"),
    "add tensors": (lambda p: shutil.copy(p / "model.safetensors", p / "x.safetensors"), "'x.safetensors' is there"),
    "add pickle": (
        lambda p: (p / "model.pt").write_bytes(b"x"),
        "'model.pt' .* may be a pickle, which is never",
    ),
    "add folder": (lambda p: (p / "more").mkdir(), "'more' is a link or a folder, not a file"),
    "link": (by_link("model.safetensors", "moved"), "'model.safetensors' is a link or a folder"),
    "link manifest": (by_link("manifest.json", "moved"), "'manifest.json' is a link or a folder"),
    "pipe": (lambda p: ((p / "state.json").unlink(), os.mkfifo(p / "state.json")), "'state.json' is a link or a"),
    "strange name": (lambda p: (p / "a\nb").write_text(""), r"'a\\nb' is there"),
    "a file": (replace_by_file, "it is not a folder"),
    "a link": (replace_by_link, "it is not a folder"),
    "format": (edit(lambda m: m.update(format=2)), "of format 2, and this version reads 1; use the one that wrote it"),
    "format true": (edit(lambda m: m.update(format=True)), "manifest.json is not a manifest: .*format"),
    "no format": (edit(lambda m: m.pop("format")), "manifest.json is not a manifest: .*format"),
    "step": (edit(lambda m: m.update(step=3)), "manifest.json is of step 3"),
    "older one": (older_under_its_name, "manifest.json is of step 1"),
    "older one, renumbered": (and_renumbered, "state.json is of another checkpoint"),
    "more keys": (edit(lambda m: m.update(more=3)), "manifest.json is not a manifest: .*more"),
    "size": (edit(lambda m: m["files"]["state.json"].update(size=3)), "state.json has .* and 3 bytes were written"),
    "hash": (edit(lambda m: m["files"]["state.json"].update(sha256="0" * 64)), "state.json is not what was written"),
    "no state": (edit(lambda m: m["files"].pop("state.json")), "manifest.json does not list state.json"),
    "not an object": (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json is not a manifest"),
    "deep": (lambda p: (p / "manifest.json").write_text('{"a":' + "[" * 10**5), "manifest.json is not a manifest"),
    "not UTF-8": (lambda p: (p / "manifest.json").write_bytes(b'{"format":1,"\xff":0}'), "is not a manifest"),
    "absolute": (rename_file("model.safetensors", "/etc/hosts"), "lists '/etc/hosts', which is not the name of a file"),
    "above": (
        rename_file("model.safetensors", "../x.safetensors"),
        r"lists '\.\./x.safetensors', which is not the",
    ),
    "listed pickle": (overwrite("model.pt", pickle.dumps({})), "lists 'model.pt', which is not the name"),
    "forged NaN": (overwrite("state.json", b'{"step":2,"tensors":[],"state":{"a":NaN}}'), "NaN is not JSON"),
    "forged float": (overwrite("state.json", b'{"a":{"$float":"x"}}'), "state.json is as it was written, but cannot"),
    "forged depth": (overwrite("state.json", b"[" * 10**5), "state.json is as it was written, but cannot"),
    "forged tensors": (overwrite("model.safetensors", pickle.dumps({})), "model.safetensors is as it was written, but"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_one_is_passed_over_with_a_sentence(tmp_path, kind):
    damage, says = DAMAGES[kind]
    two(tmp_path)
    damage(tmp_path / "step-00000002")
    sentences = []
    assert_same(load(tmp_path, warn=sentences.append), content(1))
    (sentence,) = sentences
    start = f"{tmp_path}/step-00000002 is damaged: "
    assert sentence.startswith(start) and sentence.endswith("; it is passed over") and "\n" not in sentence
    assert re.search(says, sentence.removeprefix(start)), sentence

    shutil.rmtree(tmp_path / "step-00000001")
    with pytest.raises(ValueError, match=f"no checkpoint in {tmp_path} is intact: .* is damaged: .*; start anew in"):
        load(tmp_path, warn=sentences.append)
    save(tmp_path, content(2))
    assert_same(load(tmp_path, warn=refuse), content(2))


def test_no_bit_of_any_file_can_change(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    two(tmp_path, size=2)
    for path in sorted((tmp_path / "step-00000002").iterdir()):
        whole = path.read_bytes()
        for at in range(len(whole)):
            flip(path, at, bit=at % 8)
            sentences = []
            assert load(tmp_path, warn=sentences.append).step == 1 and len(sentences) == 1, (path, at)
            path.write_bytes(whole)
    assert_same(load(tmp_path, warn=refuse), content(2, size=2))


class Payload:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickles_are_not_loaded(tmp_path):
    payload = Payload()
    payload.path = str(tmp_path / "ran")
    for name in ("model.pt", "pytorch_model.bin", "state.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(payload))
    sentences = []
    assert load(tmp_path, warn=sentences.append) is None
    assert [s.partition(" is not read: it may be a pickle")[0] for s in sentences] == [
        str(tmp_path / name) for name in ("model.pt", "pytorch_model.bin", "state.pkl")
    ]
    path = save(tmp_path, content(1))
    (path / "model.safetensors").write_bytes(pickle.dumps(payload))
    with pytest.raises(ValueError, match="no checkpoint .* is intact"):
        load(tmp_path, warn=sentences.append)
    assert not (tmp_path / "ran").exists()


def test_a_file_is_no_folder(tmp_path):
    place = tmp_path / "file"
    place.write_text("x")
    with pytest.raises(CheckpointError, match=f"cannot list checkpoints: Not a directory .{place}.; name a folder"):
        load(place, warn=refuse)
    with pytest.raises(CheckpointError, match=f"cannot save {place}/step-00000001: .* no intact checkpoint is there"):
        save(place, content(1))
    assert place.read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    save(tmp_path, content(1))
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="Permission denied.*the last checkpoint, step-00000001, is intact"):
            save(tmp_path, content(2))
        assert_same(load(tmp_path, warn=refuse), content(1))
    finally:
        tmp_path.chmod(0o700)
