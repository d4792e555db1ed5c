import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.config import DataConfig
from train.problems.arithmetic import generate
from train.problems.files import REQUIRED, SCHEMA, Message, Problem, read, write
from train.problems.tasks import arithmetic, deal, read_split

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
        ({"prompt": [{"role": "tool", "content": "x"}]}, "prompt[0].role", "tool"),
        ({"reward_model": {"style": "x"}}, "reward_model", "missing required field ground_truth"),
        ({"reward_model": {"ground_truth": 46}}, "reward_model.ground_truth", "got int"),
        ({"reward_model": {"ground_truth": ""}}, "reward_model.ground_truth", "length >= 1"),
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
        "x.csv": "unknown kind",
        "none.jsonl": "cannot read .*none.jsonl",
        "none.parquet": "cannot read .*none.parquet",
        "empty.jsonl": "holds no row",
    }.items():
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)


def test_held_out_problems_come_from_the_end_and_never_overlap(tmp_path):
    path = str(write_jsonl(tmp_path / "x.jsonl", [row(str(i)) for i in range(10)] * 2))
    split = read_split(DataConfig(train=path, test_problems=3))
    assert [p.prompt[0].content for p in split.test] == ["7", "8", "9"] and len(split.train) == 7
    with pytest.raises(ValueError, match="10 distinct problems, too few to hold out 10"):
        read_split(DataConfig(train=path, test_problems=10))
    with pytest.raises(ValueError, match="10 problems of .* stand in"):
        read_split(DataConfig(train=path, test=path))


def test_dealing_visits_every_problem_once_an_epoch_in_a_new_order():
    items = list(range(10))
    dealt = [x for step in range(10) for x in deal(items, 4, step, seed=1)]
    epochs = [dealt[first : first + 10] for first in range(0, 40, 10)]
    assert all(sorted(epoch) == items for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) == 4
    assert deal(items, 4, 7, seed=1) == dealt[28:32] != deal(items, 4, 7, seed=2)
    assert len(deal(items, 25, 3, seed=1)) == 25
