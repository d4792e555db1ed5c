import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import train.warm_start
from train.answering.checker import Checker
from train.answering.rules import RULES, right_response
from train.config import DataConfig
from train.evaluate import by_set, summarise
from train.model import build_model
from train.policy import Policy
from train.preset import dump, load
from train.problems.arithmetic import generate
from train.problems.files import REQUIRED, SCHEMA, Message, Problem, name_of, read, write
from train.problems.tasks import Task, arithmetic, deal, encode, read_split
from train.tokenizer import build_tokenizer

REAL = sorted((Path(__file__).parents[2] / "shared" / "data").glob("*.parquet"))


def row(question="12+34", answer="46"):
    return {
        "data_source": "test",
        "prompt": [{"content": question, "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "exact"},
        "extra_info": {"index": 0, "raw_problem": question, "split": "train"},
    }


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def test_generated_problems_are_right_distinct_and_the_same_for_the_same_seed():
    rows = generate(3, 100)
    assert rows == generate(3, 100) != generate(4, 100)
    split = arithmetic(rows)
    assert len(split.test) == 100 and len(split.train) > 2000
    for problem in split.train + split.test:
        a, b = problem.prompt[0].content.split("+")
        assert int(a) + int(b) == int(problem.answer) and len(a) == len(b) == len(problem.answer) == 2


def test_no_generated_problem_nor_its_mirror_image_is_in_both_splits():
    train, test = (
        {frozenset(p.prompt[0].content.split("+")) for p in problems} for problems in arithmetic(generate(0, 256))
    )
    assert not train & test


def test_generated_problems_go_through_parquet_unchanged(tmp_path):
    rows = generate(0, 5)["test"]
    write(tmp_path / "x.parquet", rows)
    assert pq.read_schema(tmp_path / "x.parquet").equals(SCHEMA)
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == rows
    assert read(tmp_path / "x.parquet") == arithmetic({"train": rows, "test": rows}).test


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_the_paper_s_evaluation_files_read_as_their_distinct_problems(path):
    problems = read(path)
    assert len(problems) == {"aime-2024": 30, "aime25": 30, "amc-23": 40}[path.stem]
    assert all(p.prompt[0].role == "user" and "Answer:" in p.prompt[0].content and p.answer for p in problems)


@pytest.mark.parametrize("rule", ["released", "math-verify"])
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_every_answer_of_the_paper_s_evaluation_files_is_right_in_the_form_of_a_rule(path, rule):
    answers = [problem.answer for problem in read(path)]
    with Checker(rule, processes=1, seconds=60) as checker:
        assert all(checker.check([(right_response(rule, answer), answer) for answer in answers]))


def test_generated_files_have_the_columns_and_types_of_the_paper_s():
    if not REAL:
        pytest.skip("no evaluation files beside the checkout")
    theirs = pq.read_schema(REAL[0])
    for field in SCHEMA:
        if field.name != "extra_info":  # there, theirs types an empty column as null
            assert theirs.field(field.name).type == field.type


def test_jsonl_and_parquet_of_the_same_rows_read_alike(tmp_path):
    rows = [row(), row("10+11", "21"), row()]
    write(tmp_path / "x.parquet", rows)
    problems = read(write_jsonl(tmp_path / "x.jsonl", rows))
    assert problems == read(tmp_path / "x.parquet")
    assert problems == [Problem((Message("user", q),), a) for q, a in (("12+34", "46"), ("10+11", "21"))]


@pytest.mark.parametrize(
    ("change", "column", "what"),
    [
        ({"prompt": None}, "prompt", "got null"),
        ({"prompt": []}, "prompt", "length >= 1"),
        ({"prompt": [{"role": "user"}]}, "prompt[0]", "missing required field content"),
        (
            {"prompt": [{"role": "tool", "content": "x"}]},
            "prompt[0].role",
            "'tool'; choose system, user or assistant; ",
        ),
        ({"reward_model": {"style": "x"}}, "reward_model", "missing required field ground_truth"),
        ({"reward_model": {"ground_truth": 46}}, "reward_model.ground_truth", "got int"),
        ({"reward_model": {"ground_truth": ""}}, "reward_model.ground_truth", "length >= 1"),
        ({"reward_model": {"ground_truth": " "}}, "reward_model.ground_truth", "regex"),
    ],
)
def test_a_bad_row_is_named_with_its_file_row_and_column(tmp_path, change, column, what):
    path = write_jsonl(tmp_path / "bad.jsonl", [row(), row() | change])
    with pytest.raises(ValueError) as error:
        read(path)
    message = str(error.value)
    assert f"{path}, row 2, column {column}: " in message and what in message and "\n" not in message


def test_a_bad_parquet_row_is_named_too(tmp_path):
    write(tmp_path / "bad.parquet", [row(), row(), row() | {"reward_model": {"ground_truth": None, "style": "x"}}])
    with pytest.raises(ValueError, match=r"bad.parquet, row 3, column reward_model.ground_truth: .*null"):
        read(tmp_path / "bad.parquet")


def test_a_row_that_is_not_json_or_lacks_a_column_is_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(row()) + "\n{oops\n")
    with pytest.raises(ValueError, match="bad.jsonl, row 2: not JSON"):
        read(path)
    with pytest.raises(ValueError, match="bad.jsonl, row 1: .*missing required field reward_model"):
        read(write_jsonl(path, [{"prompt": row()["prompt"]}]))


@pytest.mark.parametrize("column", REQUIRED)
def test_a_missing_parquet_column_is_named(tmp_path, column):
    table = pa.Table.from_pylist([row()], schema=SCHEMA)
    pq.write_table(table.drop_columns([column]), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=f"x.parquet lacks the column {column}; it has data_source"):
        read(tmp_path / "x.parquet")


def test_files_that_cannot_be_read_are_refused_in_a_sentence(tmp_path):
    (tmp_path / "x.parquet").write_text("not parquet")
    (tmp_path / "empty.jsonl").write_text("")
    for name, message in {
        "x.parquet": "is not a parquet file",
        "x.csv": "x.csv is of an unknown kind",
        "none.jsonl": "cannot read .*none.jsonl",
        "none.parquet": "cannot read .*none.parquet",
        "empty.jsonl": "holds no row that counts",
    }.items():
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)


def test_a_damaged_parquet_file_is_called_damaged(tmp_path):
    write(tmp_path / "x.parquet", [row(str(i)) for i in range(50)])
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    pages = slice(4, len(data) - 8 - int.from_bytes(data[-8:-4], "little"))  # the footer stays
    data[pages] = b"\xff" * len(data[pages])
    (tmp_path / "x.parquet").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.parquet is damaged: .*; fetch or write it again") as error:
        read(tmp_path / "x.parquet")
    assert "\n" not in str(error.value)


def test_held_out_problems_come_from_the_end_and_never_overlap(tmp_path):
    path = str(write_jsonl(tmp_path / "x.jsonl", [row(str(i)) for i in range(10)] * 2))
    split = read_split(DataConfig(train=path, test_problems=3))
    assert [p.prompt[0].content for p in split.test] == ["7", "8", "9"] and len(split.train) == 7
    with pytest.raises(ValueError, match="10 distinct problems, too few to hold out 10"):
        read_split(DataConfig(train=path, test_problems=10))
    with pytest.raises(ValueError, match="10 problems of .* stand in"):
        read_split(DataConfig(train=path, test=path))


def test_a_folder_is_its_files_in_order_and_nothing_else(tmp_path):
    write(tmp_path / "b.parquet", [row("2", "2"), row("1", "1")])
    write_jsonl(tmp_path / "a.jsonl", [row("1", "1"), row("3", "3")])
    (tmp_path / "notes.txt").write_text("{oops")
    assert [problem.answer for problem in read(tmp_path)] == ["1", "3", "2"]
    write_jsonl(tmp_path / "c.jsonl", [row(), row() | {"prompt": None}])
    with pytest.raises(ValueError, match=r"c\.jsonl, row 2, column prompt: .*null"):
        read(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="the folder .*empty holds no .parquet and no .jsonl file"):
        read(tmp_path / "empty")


@pytest.mark.parametrize(
    "text",
    [b"\xef\xbb\xbf%b\n", b"%b\r\n\r\n", b"\n  \n%b", b'{"extra_info": {"index": 1' + b"0" * 400 + b"}, " + b"%b"],
    ids=["byte-order mark", "CRLF", "blank lines", "a number of another column"],
)
def test_jsonl_is_read_as_others_write_it(tmp_path, text):
    (tmp_path / "x.jsonl").write_bytes(text.replace(b", %b", b", " + encoded()[1:]).replace(b"%b", encoded()))
    assert read(tmp_path / "x.jsonl") == [Problem((Message("user", "12+34"),), "46")]


def encoded():
    return json.dumps({key: row()[key] for key in REQUIRED}).encode()


@pytest.mark.parametrize("line", [b'{"prompt": "\xff"}', b"[" * 10**5, "{}".encode("utf-16"), b"[", b'"\\ud800"'])
def test_a_line_that_is_no_text_is_named(tmp_path, line):
    (tmp_path / "x.jsonl").write_bytes(encoded() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"x\.jsonl, row 2: not JSON"):
        read(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    "extra",
    [pa.nulls(3), pa.array([[{"a": [1]}], None, []]), pa.array([b"\xff", b"", None])],
    ids=["null", "nested", "bytes"],
)
def test_other_columns_do_not_matter(tmp_path, extra):
    when = pa.array([1, 2, 3], pa.timestamp("ns"))
    model = pa.StructArray.from_arrays([pa.array(["1", "2", "3"], pa.large_string()), when], ["ground_truth", "when"])
    table = {"extra_info": extra, "reward_model": model, "prompt": [[{"content": q, "role": "user"}] for q in "abc"]}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    assert [problem.answer for problem in read(tmp_path / "x.parquet")] == ["1", "2", "3"]


@pytest.mark.full
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_row_numbers_count_the_repetitions(tmp_path, kind):
    rows = [row(str(i % 100)) for i in range(100_000)] + [row() | {"prompt": []}]
    path = tmp_path / f"x.{kind}"
    write(path, rows) if kind == "parquet" else write_jsonl(path, rows)
    with pytest.raises(ValueError, match=rf"x\.{kind}, row 100001, column prompt: "):
        read(path)


def test_one_prompt_with_two_answers_is_a_contradiction(tmp_path):
    rows = [row("a", "1"), row("b", "2"), row("a", " 1"), row("a", "7"), row("b", "3"), row("b", "4")]
    write(tmp_path / "x.parquet", rows)
    with pytest.raises(ValueError) as error:
        read(tmp_path / "x.parquet")
    file = tmp_path / "x.parquet"
    both = f"{file}, row 1 and {file}, row 4 have the same prompt but the answers '1' and '7' (such prompts: 2)"
    assert both in str(error.value) and "\n" not in str(error.value)
    assert len(read(write_jsonl(tmp_path / "x.jsonl", rows[:3]))) == 2
    write_jsonl(tmp_path / "y.jsonl", rows[3:])
    with pytest.raises(ValueError, match=r"x\.jsonl, row 1 and .*y\.jsonl, row 1 have the same prompt"):
        (tmp_path / "x.parquet").unlink()
        read(tmp_path)


def test_contradicted_prompts_are_left_out_on_request(tmp_path):
    rows = [row("a", "1"), row("b", "2"), row("a", "7"), row("a", "1"), row("c", "3")]
    write(tmp_path / "x.parquet", rows)
    kept = read(tmp_path / "x.parquet", drop_contradictions=True)
    assert [problem.answer for problem in kept] == ["2", "3"]
    train = {"train": str(tmp_path / "x.parquet"), "test_problems": 1}
    assert [x.answer for x in read_split(DataConfig(**train, contradictions="drop")).test] == ["3"]
    with pytest.raises(ValueError, match='with contradictions = "drop", which is data.contradictions in a run'):
        read_split(DataConfig(**train))
    write(tmp_path / "x.parquet", rows[:1] + rows[2:4])
    with pytest.raises(ValueError, match="holds no row that counts"):
        read(tmp_path / "x.parquet", drop_contradictions=True)


# Several test sets


def sets(tmp_path):
    """A training file, and test sets of two, one and two problems; the last shares a problem with the first."""
    (tmp_path / "folder").mkdir()
    return [
        str(write_jsonl(tmp_path / name, [row(question) for question in questions]))
        for name, questions in (
            ("train.jsonl", "abc"),
            ("one.jsonl", "de"),
            ("two.v2.jsonl", "f"),
            ("folder/x.jsonl", "dg"),
        )
    ]


def test_a_problem_knows_its_test_set(tmp_path):
    train, *test = sets(tmp_path)
    test[2] = str(tmp_path / "folder")
    split = read_split(DataConfig(train=train, test=tuple(test)))
    assert [(p.prompt[0].content, p.test_set) for p in split.test] == [
        *(("d", "one"), ("e", "one"), ("f", "two.v2"), ("d", "folder"), ("g", "folder"))
    ]
    assert {problem.test_set for problem in split.train} == {""}
    assert read_split(DataConfig(train=train, test=test[0])) == read_split(DataConfig(train=train, test=(test[0],)))
    tasks = encode(split.test, build_tokenizer(), load("cpu_tiny", {}))
    assert [task.test_set for task in tasks] == ["one", "one", "two.v2", "folder", "folder"]


def test_test_sets_are_refused_by_name(tmp_path):
    train, one, *_ = sets(tmp_path)
    for test, message in {
        (): "data.test is an empty list",
        (one, str(tmp_path / "one.parquet")): "one.jsonl and .*one.parquet of data.test are both called one; rename",
        (one, one): "both called one",
        (one, train): "3 problems of .*train.jsonl stand in .*train.jsonl too",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_split(DataConfig(train=train, test=test))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/aime-2024.parquet", "aime-2024"),
        ("a/b.c/d.jsonl", "d"),
        ("data/folder/", "folder"),
        ("a/v1.5", "v1.5"),
        ("hub:org/aime", "aime"),
        ("hub:org/aime.x@refs/pr/1", "aime.x"),
    ],
)
def test_short_names(source, name):
    assert name_of(source) == name


def test_a_config_with_a_list_of_test_sets_goes_through_toml_unchanged(tmp_path):
    config = load("cpu_tiny", {"data.train": "a.parquet", "data.test": ["b.parquet", 'hub:o/"n"@v1']})
    (tmp_path / "x.toml").write_text(dump(config))
    assert load(str(tmp_path / "x.toml"), {}) == config and config.data.test == ("b.parquet", 'hub:o/"n"@v1')


def test_shares_of_each_test_set_are_those_of_its_own_problems():
    right = (torch.rand(7, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    found = by_set(right, list("abacaba"))
    for name, own in (("a", [0, 2, 4, 6]), ("b", [1, 5]), ("c", [3])):
        accuracy, passed = summarise(right[own])
        keys = [f"{key}.{name}" for key in ("accuracy", "stderr", "pass", "pass_stderr")]
        assert [found.pop(key) for key in keys] == pytest.approx([*accuracy, *passed], nan_ok=True)
    assert found == {} == by_set(right, ["a"] * 7)


# The form of a right response


@pytest.mark.parametrize(
    "answer", ["42", "-7", "1/2", "A", r"\frac{1}{2}", r"\sqrt{2}", r"\{1,2\}", "$42$", "1,234", "x=42"]
)
@pytest.mark.parametrize("rule", ["exact", "released", "math-verify"])
def test_each_rule_judges_its_own_form_right(rule, answer):
    assert RULES[rule].judge(right_response(rule, answer), answer)
    assert not RULES[rule].judge(right_response(rule, "43"), answer)


@pytest.mark.parametrize(
    ("rule", "said"), [("exact", "46"), ("released", "Answer: 46"), ("math-verify", r"\boxed{46}")]
)
def test_a_warm_start_shows_what_the_rule_of_the_run_judges_right(monkeypatch, rule, said):
    tokenizer, shown = build_tokenizer(), []
    small = {"width": 32, "mlp_width": 32, "layers": 1, "heads": 2, "key_value_heads": 1}
    settings = {f"model.{key}": size for key, size in small.items()} | {"warm_start.steps": 1, "warm_start.slip": 0.0}
    config = load("cpu_tiny", settings | {"data.rule": rule, "rollout.max_tokens": len(said) + 1})
    pack = train.warm_start.pack
    monkeypatch.setattr(
        train.warm_start, "pack", lambda prompts, ids, pad: shown.extend(ids) or pack(prompts, ids, pad)
    )
    policy = Policy(build_model(config.model, 0))
    assert len(list(train.warm_start.warm_start(policy, tokenizer, [Task([1, 2], "46")], config))) == 1
    assert {tokenizer.decode(ids[:-1]) for ids in shown} == {said}
    problems = [Problem((Message("user", "12+34"),), "46")]
    assert encode(problems, tokenizer, config)[0].answer == "46"
    with pytest.raises(ValueError, match=r"rollout.max_tokens is \d+ but the answer .*46.* needs"):
        encode(problems, tokenizer, load("cpu_tiny", {"data.rule": rule, "rollout.max_tokens": len(said)}))


def test_dealing_visits_every_problem_once_an_epoch_in_a_new_order():
    items = list(range(10))
    dealt = [x for step in range(10) for x in deal(items, 4, step, seed=1)]
    epochs = [dealt[first : first + 10] for first in range(0, 40, 10)]
    assert all(sorted(epoch) == items for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) == 4
    assert deal(items, 4, 7, seed=1) == dealt[28:32] != deal(items, 4, 7, seed=2)
    assert len(deal(items, 25, 3, seed=1)) == 25
