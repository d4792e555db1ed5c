import json
import math
import os
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from train.evaluate import Accuracy
from train.preset import dump, load
from train.watching import report as module
from train.watching.curves import draw_curves
from train.watching.groups import Estimate, Group, curve, differing, estimate, group_runs, results, show
from train.watching.metrics import METRICS, Metric
from train.watching.page import COLUMNS, Sample, cell, numeral, transcripts, visible
from train.watching.report import PANELS, draw, drawn, note, report, svg
from train.watching.runs import Run, read_runs

SCRIPT = "<script>alert('x')</script>"
VOID = {"meta", "br", "img", "input", "link", "hr"}


def evaluation(step, accuracy, **more):
    return {"phase": "evaluation", "step": step, "accuracy": accuracy, **more}


def batch(step, **numbers):
    return {"phase": "policy_gradient", "step": step, **numbers}


def write(folder, rows, samples=(), tail="", **overrides):
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(dump(load("cpu_tiny", overrides)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    if samples:
        (folder / "transcripts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return folder


def a_run(rows=(), **overrides):
    """A run in memory."""
    table = {phase: {} for phase in METRICS}
    for row in rows:
        table[row["phase"]][row["step"]] = {key: float(value) for key, value in row.items() if key != "phase"}
    config = load("cpu_tiny", overrides)
    return Run(config.folder, config, table, {})


def labels(*overrides):
    return [group.label for group in group_runs([a_run(**each) for each in overrides])]


class Page(HTMLParser):
    """Reads a page: what is in it, whether every element is closed, and its tables as rows of text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.tables, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((tuple(self.open), data))
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def inside(self, tag):
        return "".join(data for path, data in self.texts if tag in path)


# Groups and their labels


def test_what_does_not_bear_on_a_step_does_not_part_runs():
    same = a_run(seed=0), a_run(seed=1, name="other", run_dir="x", threads=2, checkpoint_every=3, steps=7)
    other = a_run(seed=0, **{"optimizer.learning_rate": 1e-5})
    groups = group_runs([same[0], other, same[1]])
    assert [list(group.runs) for group in groups] == [[same[0], same[1]], [other]]
    assert not {"name", "seed", "run_dir", "threads", "checkpoint_every", "steps"} & groups[0].settings.keys()
    assert {"recipe", "warm_start.steps", "rollout.prompts", "model.width"} <= groups[0].settings.keys()


def test_one_seed_twice_would_pass_for_two():
    runs = [a_run(seed=3, run_dir="a"), a_run(seed=3, run_dir="b", steps=60)]
    with pytest.raises(ValueError, match="^a and b are one configuration and one seed, 3, .*; leave one of them out$"):
        group_runs(runs)


def test_labels():
    assert labels({}) == ["rpg-reinforce-urkl-clip"]
    assert labels({"recipe": "grpo"}, {"recipe": "dapo"}) == ["grpo", "dapo"]
    assert labels({"beta": 0.1}, {"beta": 1e-5}, {}) == ["beta = 0.1", "beta = 1e-05", "beta left out"]
    assert labels({"recipe": "grpo"}, {"recipe": "grpo", "beta": 0.1}, {"recipe": "cispo"}) == [
        "grpo",
        "grpo, beta = 0.1",
        "cispo",
    ]
    assert labels({"rollout.filter": True}, {}) == ["rollout.filter = true", "rollout.filter = false"]


def test_of_many_keys_a_label_has_those_that_tell_the_groups_apart():
    small = {"model.width": 24, "model.mlp_width": 64, "model.layers": 1, "eval_samples": 2, "rollout.prompts": 16}
    assert labels({}, small) == ["model.width = 192, …", "model.width = 24, …"]
    assert labels({}, small, small | {"rollout.prompts": 32}) == [
        "model.width = 192, rollout.prompts = 64, …",
        "model.width = 24, rollout.prompts = 16, …",
        "model.width = 24, rollout.prompts = 32, …",
    ]


def test_a_long_value_keeps_its_end_unless_two_labels_were_one():
    long = "folder/" * 9
    first, second = labels({"data.train": long + "a.parquet"}, {"data.train": long + "b.parquet"})
    assert first.startswith("data.train = …") and first.endswith("/a.parquet") and len(first) == 13 + 32
    assert second.endswith("/b.parquet")
    alike = [{"data.train": start + long} for start in "ab"]
    assert labels(*alike) == [f"data.train = a{long}", f"data.train = b{long}"]


def test_show_is_one_line():
    assert [show(value) for value in (None, True, 3, 0.25, 1e-6, 0.1234567891, "a\nb\x1b")] == [
        "left out",
        "true",
        "3",
        "0.25",
        "1e-06",
        "0.1234567891",
        "a\\nb\\x1b",
    ]


# Statistics


def test_an_estimate_is_the_mean_and_its_standard_error():
    # Mean 3; squares of the deviations 4 + 1 + 0 + 9 = 14, over n − 1 = 3, over n = 4.
    found = estimate([1.0, 2.0, None, 3.0, 6.0])
    assert found == (3.0, pytest.approx(math.sqrt(14 / 12)), 4, "seeds")
    # A single seed has no spread: its own error is over problems, and another seed's is not taken for it.
    assert estimate([None, 0.5], [0.9, 0.02]) == (0.5, 0.02, 1, "problems")
    assert estimate([None, 0.5], [0.9, None]) == (0.5, None, 1, "")
    assert estimate([0.5]) == (0.5, None, 1, "")
    assert estimate([0.2, 0.4], [9.0, 9.0]) == (pytest.approx(0.3), pytest.approx(0.1), 2, "seeds")
    assert estimate([None, None]) is None


def test_a_curve_has_every_step_of_any_seed():
    long = a_run([batch(1, clip_high=0.1, clip_low=0.2, clip_dual=0.3), batch(2, clip_high=0.5), batch(4)])
    short = a_run([batch(1, clip_high=0.2)], seed=1)
    found = curve([long, short], "policy_gradient", ("clip_high", "clip_low", "clip_dual"))
    assert list(found) == [1, 2, 4]
    assert found[1] == (pytest.approx(0.4), pytest.approx(0.2), 2, "seeds")  # of 0.6 and 0.2
    assert found[2] == (0.5, None, 1, "") and found[4] is None


def test_results_by_hand():
    first = a_run(
        [
            {"phase": "warm_start", "step": 1, "seconds": 30},
            evaluation(0, 0.2, stderr=0.01, seconds=6),
            evaluation(5, 0.3, stderr=0.01),
            evaluation(10, 0.6, stderr=0.02, reverse_kl_start=1.5),
            batch(1, reward=-1, tokens_per_second=100, seconds=12, k3=9),
            batch(10, reward=0.5, tokens_per_second=300, seconds=12, k3=0.25),
        ]
    )
    second = a_run(
        [evaluation(0, 0.4, stderr=0.01), batch(4, reward=0.1, tokens_per_second=400, seconds=120)],
        seed=1,
    )
    found = results([first, second])
    assert found["before"] == (pytest.approx(0.3), pytest.approx(0.1), 2, "seeds")
    assert found["after"] == (0.6, 0.02, 1, "problems")  # the second has none after step 0
    assert found["reward"] == (pytest.approx(0.3), pytest.approx(0.2), 2, "seeds")
    assert found["k3"] == (0.25, None, 1, "")
    assert found["reverse_kl_start"] == (1.5, None, 1, "")
    assert found["entropy"] is None
    assert found["tokens_per_second"] == (300, 100, 2, "seeds")  # of 200 and 400
    assert found["minutes"] == (1.5, 0.5, 2, "seeds")  # of 1 and 2
    assert found.keys() == {column.key for column in COLUMNS}


@pytest.mark.parametrize(
    "value, error, text",
    [
        (0.5, 0.1, "0.50 ± 0.10"),
        (0.93641, 0.02449, "0.936 ± 0.024"),
        (-0.955, 0.0136, "−0.955 ± 0.014"),
        (0.0, 0.0, "0 ± 0"),
        (1.0, 0.0, "1.00 ± 0.00"),
        (0.5, 1e-9, "0.50000 ± 0.00000"),
        (0.0, None, "0"),
        (0.0021, None, "0.00210"),
        (5400.26, None, "5400"),
        (0.525, None, "0.525"),
        (9.67e-5, 1.04e-5, "(9.7 ± 1.0)·10⁻⁵"),
        (4.62e-4, None, "4.62·10⁻⁴"),
        (-1.5e12, None, "−1.50·10¹²"),
    ],
)
def test_a_number_is_as_fine_as_its_error(value, error, text):
    assert numeral(value, error) == text


def test_a_cell_says_what_its_error_is():
    accuracy, reward, speed = (next(c for c in COLUMNS if c.key == key) for key in ("after", "reward", "minutes"))
    assert cell(None, accuracy, 2) == ("—", "")
    assert cell(Estimate(0.5, 0.1, 3, "seeds"), accuracy, 3) == ("0.50 ± 0.10", "over seeds")
    assert cell(Estimate(0.5, 0.1, 1, "problems"), accuracy, 1) == ("0.50 ± 0.10", "over problems")
    assert cell(Estimate(0.5, 0.1, 1, "problems"), accuracy, 3) == ("0.50 ± 0.10", "over problems, 1 of 3 seeds")
    assert cell(Estimate(0.5, 0.1, 2, "seeds"), reward, 3) == ("0.50 ± 0.10", "2 of 3 seeds")
    assert cell(Estimate(1.5, 0.1, 3, "seeds"), speed, 3) == ("1.50", "")


# Reading


def test_half_lines_nulls_nan_and_repeated_steps(tmp_path):
    rows = [
        evaluation(0, 0.25, stderr=0.5),
        batch(1, reward=7.0),
        batch(1, reward=0.5, entropy=None, ess=math.nan, seconds=10**400, note="x", flag=True),
        {"phase": ["evaluation"], "step": 1},
        {"phase": "evaluation", "step": "2", "accuracy": 0.9},
        {"phase": "evaluation", "step": 1.5, "accuracy": 0.9},
        {"phase": "elsewhere", "step": 2},
        [1],
    ]
    (run,) = read_runs(
        [write(tmp_path / "a", rows, tail="\n\xff\n" + "[" * 10**5 + '\n{"phase":"policy_gradient","step":2,"rew')]
    )
    assert run.rows["evaluation"] == {0: {"step": 0.0, "accuracy": 0.25, "stderr": 0.5}}
    assert run.rows["policy_gradient"] == {1: {"step": 1.0, "reward": 0.5}}
    assert run.samples == {} and (run.done, run.complete) == (1, False)


@pytest.mark.parametrize(
    "steps, rows, done, complete",
    [
        (2, [batch(1), batch(2), evaluation(2, 0.5)], 2, True),
        (2, [batch(1), evaluation(0, 0.5)], 1, False),
        (2, [batch(1), batch(2), evaluation(0, 0.5)], 2, False),  # ended before the last evaluation
        (2, [batch(2), batch(4), evaluation(4, 0.5)], 4, True),  # resumed with more steps
        (2, [batch(2), batch(3), evaluation(2, 0.5)], 3, False),  # and ended there
        (1, [evaluation(0, 0.5)], 0, False),
    ],
)
def test_a_complete_run_is_evaluated_after_its_last_step(steps, rows, done, complete):
    run = a_run(rows, steps=steps)
    assert (run.done, run.complete) == (done, complete)


def test_samples_are_few_of_the_first_and_the_last_step(tmp_path):
    def rows(*steps):
        return [{"step": step, "response": f"{step}.{number}"} for step in steps for number in range(6)]

    (first,) = read_runs([write(tmp_path / "a", [batch(1)], rows(1, 2, 5), seed=0)])
    (second,) = read_runs([write(tmp_path / "b", [batch(1)], rows(3, 9, 7), seed=1)])
    assert {step: len(found) for step, found in first.samples.items()} == {1: 4, 5: 4}
    found = transcripts(Group("", {}, [first, second]))
    assert list(found) == [1, 9]
    assert found[9] == [Sample(second, {"step": 9.0, "response": f"9.{number}"}) for number in range(4)]
    both = transcripts(Group("", {}, [first._replace(samples={3: [{}]}), second._replace(samples={3: [{}] * 4})]))
    assert list(both) == [3] and [sample.run.config.seed for sample in both[3]] == [0, 1, 1, 1]
    assert transcripts(Group("", {}, [first._replace(samples={})])) == {}


def test_foreign_text_is_escaped_made_visible_and_cut():
    assert visible("<b>&") == "&lt;b&gt;&amp;"
    assert visible("a\tb") == 'a<span class="control">\\t</span>b'
    assert visible("a\nb") == 'a<span class="control">↵</span>\nb'
    for sign, name in (("\x1b", "\\x1b"), ("\u202e", "\\u202e"), ("\ud800", "\\ud800"), ("\x00", "\\x00")):
        assert visible(sign) == f'<span class="control">{name}</span>'
    assert visible("数 é 🙂") == "数 é 🙂" and visible(None) == "—" and visible(["<"]) == "[&#34;&lt;&#34;]"
    assert visible("x" * 1200) == "x" * 1200
    text = visible("a" * 800 + "<" * 1000 + "b" * 400)
    assert text.startswith("a" * 800 + " <") and text.endswith("> " + "b" * 400)
    assert "1,000 of 2,200 characters left out" in text and "&lt;" not in text


# The picture


def drawn_of(*runs):
    groups = group_runs(runs)
    drawings = list(drawn(groups))
    return groups, drawings, draw(groups, drawings, module.strokes_of(groups))


def test_every_panel_and_column_is_of_a_metric():
    assert {panel.phase for panel in PANELS} <= METRICS.keys()
    assert all(key in METRICS[panel.phase] for panel in PANELS for key in (*panel.keys, *filter(None, [panel.error])))
    assert all(column.metric in METRICS[column.phase] for column in COLUMNS)


def test_the_picture_shows_means_bands_and_bars():
    groups, drawings, figure = drawn_of(
        a_run([evaluation(0, 0.2, stderr=0.01), batch(1, clip_high=0.01), batch(2, clip_high=0.02), batch(3)]),
        a_run([evaluation(0, 0.4, stderr=0.01), batch(1, clip_high=0.03)], seed=1),
        a_run([evaluation(0, 0.7, stderr=0.05)], recipe="grpo"),
    )
    assert [drawing.panel.title for drawing in drawings] == ["Held-out accuracy", "Clipped: tokens without gradient"]
    accuracy, clipped = figure.axes
    bars = [bar.get_segments()[0][:, 1] for container in accuracy.containers for bar in container[2]]
    assert bars[0] == pytest.approx([0.2, 0.4]) and bars[1] == pytest.approx([0.65, 0.75])
    line, _ = clipped.lines
    assert line.get_markevery() == [0, 1, 2]
    assert line.get_ydata() == pytest.approx([2.0, 2.0, math.nan], nan_ok=True)  # per cent
    band = clipped.collections[0].get_paths()[0].vertices
    assert set(band[:, 0]) == {1.0} and (min(band[:, 1]), max(band[:, 1])) == pytest.approx((1.0, 3.0))
    assert clipped.get_ylabel().endswith("[%]") and clipped.get_xlabel() == "step [rollout batches]"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["rpg-reinforce-urkl-clip (n = 2)", "grpo (n = 1)"]
    assert "± one standard error of that mean" in note(drawings) and "over held-out problems" in note(drawings)


def test_groups_look_different():
    strokes = module.strokes_of([None] * 21)
    assert len(set(strokes)) == 21 and {stroke.dashes for stroke in strokes[:7]} == {()}


def test_a_long_run_has_markers_only_where_a_line_has_none():
    rows = [batch(step, **({} if step in (5, 7, 50) else {"reward": 0.1})) for step in range(1, 51)]
    _, _, figure = drawn_of(a_run(rows))
    (line,) = figure.axes[0].lines
    assert line.get_markevery() == [5]
    _, _, longer = drawn_of(a_run([batch(step, reward=0.1) for step in range(1, 302)]))
    assert longer.axes[0].lines[0].get_linewidth() < line.get_linewidth()


def test_hovering_over_a_panel_shows_the_meaning(monkeypatch):
    monkeypatch.setitem(METRICS["policy_gradient"], "reward", Metric("m", "a < b & c"))
    _, drawings, figure = drawn_of(a_run([batch(1, reward=1)]))
    assert figure.axes[0].get_ylabel() == "reward [m]"
    assert '<g id="panel-reward"><title>a &lt; b &amp; c</title>' in svg(figure, drawings)


def test_the_note_names_only_errors_that_are_drawn():
    assert note(list(drawn(group_runs([a_run([batch(1, reward=1)])])))) == ""
    one = note(list(drawn(group_runs([a_run([evaluation(0, 0.5, stderr=0.1)])]))))
    assert "over held-out problems" in one and "mean over" not in one


@pytest.mark.parametrize("panels, columns", [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (6, 3), (8, 2), (9, 3), (10, 2)])
def test_columns_leave_few_places_empty(panels, columns):
    assert module._columns(panels) == columns


def test_labels_may_hold_anything():
    names = ["$x_{$", "_hidden", "数", "a\x07<b>&"]
    groups, drawings, figure = drawn_of(
        *(a_run([evaluation(0, 0.5)], **{"data.train": name, "data.test": "t"}) for name in names)
    )
    picture = svg(figure, drawings)
    ElementTree.fromstring(picture)
    for text in ("$x_{$", "_hidden", "数", "a\\x07&lt;b&gt;&amp;"):
        assert f"data.train = {text} (n = 1)" in picture
    long = "x" * 500
    ((label,), across) = module._legend([Group(long, {}, [1])], 58)
    words, _ = module._legend([Group("key = value, some-recipe", {}, [1])], 27)
    assert words == ["key = value,\nsome-recipe (n = 1)"]
    words, _ = module._legend([Group("some-recipe, key = value", {}, [1])], 27)
    assert words == ["some-recipe,\nkey = value (n = 1)"]
    assert label.replace("\n", "") == f"{long}(n = 1)" and max(map(len, label.split("\n"))) == 50 and across == 1


@pytest.mark.parametrize(
    "recipe, sample",
    [("grpo", "token"), ("rloo", "response"), ("rpg-urkl-prefix", "prefix"), ("gspo", "response, geometric mean")],
)
def test_a_divergence_is_drawn_with_the_level_that_it_is_of(tmp_path, monkeypatch, recipe, sample):
    """A run's own picture names the recipe's level; the report, where recipes meet, draws k3, of a token for all."""
    drawn_figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn_figures.append(figure))
    row = {"accuracy": 0.5, "reverse_kl": 0.1, "forward_kl_old": 0.1}
    accuracy = Accuracy(0.5, 0.1)
    draw_curves([row, row], accuracy, accuracy, load("cpu_tiny", {"recipe": recipe}), tmp_path / "curves.png")
    assert [axes.get_ylabel() for axes in drawn_figures[0].axes] == ["accuracy", f"KL [nats per {sample}]"]
    of_level = {key for key, metric in METRICS["policy_gradient"].items() if "a sample" in metric.meaning}
    assert of_level == {"reverse_kl", "forward_kl_old"}
    assert not of_level & {key for panel in PANELS for key in panel.keys}
    assert not of_level & {column.metric for column in COLUMNS}


# The page


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    sample = {"prompt": SCRIPT, "answer": "46", "reward": 1.0, "right": True}
    full = {"k3": 0.001, "entropy": 0.5, "response_length": 3, "ess": 0.99, "grad_norm": 0.3, "seconds": 60}
    folders = [
        write(
            root / "a",
            [evaluation(0, 0.3, stderr=0.02), batch(1, reward=0.2, **full), evaluation(1, 0.4, stderr=0.02)],
            [{"step": step, "response": f"at {step}{SCRIPT}\x1b{'z' * 3000}", **sample} for step in (1, 2, 3)],
            steps=1,
            name=SCRIPT,
            **{"data.train": f"{SCRIPT}.parquet"},
        ),
        write(
            root / "b",
            [evaluation(0, 0.5, stderr=0.02), batch(1, reward=0.6, tokens_per_second=50, **full)],
            seed=1,
            steps=1,
            **{"data.train": f"{SCRIPT}.parquet"},
        ),
        write(root / "c", [evaluation(0, 0.25, stderr=0.03)], recipe="grpo"),
    ]
    out = root / "deep" / "out"
    assert report(folders, out) == out / "report.html"
    return out, folders


@pytest.mark.full
def test_the_page_is_well_formed_and_loads_nothing(made):
    text = (made[0] / "report.html").read_text()
    assert text.startswith("<!doctype html>\n<html") and "{{" not in text and "{%" not in text
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "image", "iframe", "object", "embed", "base", "form", "foreignobject"}
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("src", "srcset", "data", "action")
            assert "href" not in name or value.startswith("#")
    assert not re.findall(r"(?<!xmlns=\")(?<!xmlns:xlink=\")https?:", text)
    assert not re.findall(r"@import|url\((?!#)", text)
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")])


def test_the_table_of_results(made):
    page = Page((made[0] / "report.html").read_text())
    table = page.tables[0]
    assert [head.strip() for head in table[0]] == [
        "Group",
        "Seeds",
        "Steps",
        "Held-out accuracy before",
        "→ after",
        "Reward",
        "Reverse KL to the reference (k3)",
        "Entropy",
        "Tokens/s",
        "Minutes",
    ]
    assert [" ".join(text.split()) for text in table[1][1:]] == [
        "2",
        "1 1 incomplete",
        "0.40 ± 0.10 over seeds",
        "0.400 ± 0.020 over problems, 1 of 2 seeds",
        "0.40 ± 0.20",
        "0.00100 ± 0.00000",
        "0.500 ± 0.000",
        "50.0 1 of 2 seeds",
        "1.00",
    ]
    last = [" ".join(text.split()) for text in table[2]]
    assert last == ["grpo", "1", "0 1 incomplete", "0.250 ± 0.030 over problems", *["—"] * 6]
    assert table[1][0].strip().startswith("rpg-reinforce-urkl-clip, data.train = …")


def test_the_tables_of_settings_and_runs(made):
    out, folders = made
    _, settings, runs = Page((out / "report.html").read_text()).tables
    assert [row[0] for row in settings[1:]] == ["recipe", "data.train"]
    assert settings[1][1:] == ["rpg-reinforce-urkl-clip", "grpo"]
    assert settings[2][1:] == [f"{SCRIPT}.parquet", "left out"]
    assert [(row[0], row[2], row[3], row[4].strip()) for row in runs[1:]] == [
        (str(folders[0]), "0", "1 of 1", "complete"),
        (str(folders[1]), "1", "1 of 1", "incomplete: the last evaluation is missing"),
        (str(folders[2]), "0", "0 of 30", "incomplete"),
    ]


def test_transcripts_configs_and_definitions_are_quoted(made):
    out, folders = made
    text = (out / "report.html").read_text()
    page = Page(text)
    quoted = page.inside("pre")
    assert quoted.count(f"at 1{SCRIPT}\\x1bzzz") == 1 and quoted.count(f"at 3{SCRIPT}\\x1bzzz") == 1
    assert "at 2" not in quoted and "characters left out" in quoted
    for folder in folders:
        assert dump(load(str(folder / "config.toml"), {})) in quoted
    defined = page.inside("dl")
    for key, phase in (("reward", "policy_gradient"), ("stderr", "evaluation"), ("ess", "policy_gradient")):
        assert METRICS[phase][key].meaning in defined
    assert METRICS["policy_gradient"]["clip_high"].meaning not in defined  # none of these runs clips
    assert page.inside("title").count(METRICS["policy_gradient"]["ess"].meaning) == 1


def test_the_pictures(made):
    out, _ = made
    text = (out / "report.html").read_text()
    assert "grpo (n = 1)</text>" in text and "…" in text and "Held-out accuracy</text>" in text
    assert "Clipped" not in text and "Reverse KL to the start" not in text
    pixels = matplotlib.image.imread(out / "report.png")
    height, width, _ = pixels.shape
    assert 1000 < width < 2500 and 1000 < height < 3000
    assert 0.01 < (pixels[:, :, :3].min(axis=2) < 0.9).mean() < 0.3
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.png"]


def test_the_same_runs_make_the_same_files(tmp_path):
    folder = write(tmp_path / "a", [batch(1, reward=0.5)])
    report([folder], tmp_path / "one")
    report([folder], tmp_path / "two")
    for name in ("report.png", "report.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    text = (tmp_path / "one" / "report.html").read_text()
    assert "None: there is one group." in text and "Sample responses" not in text


def test_undecodable_names_and_lone_surrogates_are_written(tmp_path):
    name = os.fsdecode(b"a\xff")
    folder = write(tmp_path / name, [batch(1, reward=0.5)], [{"step": 1, "prompt": "\ud800"}])
    quoted = Page(report([folder], tmp_path / "out").read_text()).inside("pre")
    assert quoted.startswith("\\ud800")


# Errors


def refusal(folders, out):
    with pytest.raises(ValueError) as caught:
        report(folders, out)
    return str(caught.value)


def test_what_is_no_run_is_refused(tmp_path):
    out = tmp_path / "out"
    good = write(tmp_path / "good", [batch(1, reward=0.5)])
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refusal([], out) == "no run's folder is given; name at least one, such as runs/cpu_tiny-seed0"
    again = tmp_path / "empty" / ".." / "good"
    assert refusal([good, again], out) == f"{again} is given twice; name each run's folder once"
    for folder in (empty, tmp_path / "nowhere"):
        assert refusal([good, folder], out) == (
            f"{folder} is no run's folder, it has no config.toml; pass the folder that `run` wrote"
        )
    (empty / "config.toml").write_text(dump(load("cpu_tiny", {})))
    assert refusal([empty], out) == f"{empty} has no metrics.jsonl, no step is done yet; leave it out until one is"
    (empty / "metrics.jsonl").write_text('{"phase":"warm_start","step":1,"loss":2.0}\n{"phase":"evaluation","st')
    assert refusal([empty], out) == (
        f"{empty}/metrics.jsonl has no row of the phase policy_gradient or evaluation; "
        f"leave {empty} out until it has one"
    )
    (empty / "metrics.jsonl").write_text('{"phase":"evaluation","step":0,"accuracy":null}\n')
    assert refusal([empty], out) == f"there is no finite number to draw in {empty}; add a run that has one"
    (empty / "config.toml").write_text("colour = 1\n")
    message = refusal([good, empty], out)
    assert message.startswith(f"the configuration of {empty} no longer loads, leave it out or correct it: unknown key")
    (empty / "config.toml").write_text("steps = [\n")
    assert f"{empty} no longer loads" in refusal([empty], out)
    assert not out.exists()


def test_where_nothing_can_be_written(tmp_path):
    good = write(tmp_path / "good", [batch(1, reward=0.5)])
    file = tmp_path / "file"
    file.write_text("mine")
    assert refusal([good], file) == f"{file} is a file; choose a folder with --out"
    assert refusal([good], file / "out") == (
        f"cannot write the report to {file / 'out'}: Not a directory; choose another folder with --out"
    )
    assert file.read_text() == "mine"
    taken = tmp_path / "taken"
    (taken / "report.html").mkdir(parents=True)
    assert refusal([good], taken) == (
        f"cannot write the report to {taken}: Is a directory; choose another folder with --out"
    )
    assert not list(taken.glob("*.tmp"))


@pytest.mark.full
def test_a_reader_never_sees_half_a_report(tmp_path, monkeypatch):
    good = write(tmp_path / "good", [batch(1, reward=0.5)])
    page = report([good], tmp_path / "out")
    before = page.read_bytes()
    (good / "metrics.jsonl").write_text('{"phase":"policy_gradient","step":1,"reward":0.7}\n')

    def full(source, target):
        assert source.read_bytes() and target.exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert "No space left on device" in refusal([good], tmp_path / "out")
    assert page.read_bytes() == before and not list(page.parent.glob("*.tmp"))


def test_differing_keys_begin_with_the_recipe():
    assert differing([{"a": 1, "recipe": "x", "b": 1}, {"a": 2, "recipe": "y", "b": 1}]) == ["recipe", "a"]
    assert differing([{"a": 1}]) == []
