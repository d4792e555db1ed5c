"""What the pages are made with: a name that is not there, or a block that raises, stops the build."""

import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from docs.kit import drawn, panels, shown

pytest.importorskip("mkdocs")
pytest.importorskip("ziamath")

from mkdocs.exceptions import PluginError

from docs.kit import hooks

ROOT = Path(__file__).parents[1]


def page(uri="page.md"):
    return SimpleNamespace(file=SimpleNamespace(src_uri=uri), present_anchor_ids=set())


def line_of(path, start):
    lines = (ROOT / path).read_text().splitlines()
    return 1 + next(i for i, line in enumerate(lines) if line.startswith(start))


def test_names_become_links_to_their_lines():
    line = line_of("rpg_ref/surrogates.py", "def weight(")
    found = hooks.on_page_markdown("see `rpg_ref/surrogates.py::weight`", page("audit/x.md"))
    assert found == (
        f"see [`rpg_ref/surrogates.py::weight`](../source/rpg_ref/surrogates.py.md#__codelineno-line-{line})"
    )
    table = line_of("rpg_ref/divergences.py", "DIVERGENCES")
    assert f"-line-{table})" in hooks.on_page_markdown("`rpg_ref/divergences.py::DIVERGENCES`", page())
    assert hooks.on_page_markdown("[a](../rpg_ref/ppo.py#L7)", page()) == (
        "[a](source/rpg_ref/ppo.py.md#__codelineno-line-7)"
    )


def test_what_stands_in_a_fence_is_left_alone():
    fence = "```python\n`rpg_ref/surrogates.py::nothing`\n```\n"
    assert hooks.on_page_markdown(fence, page()) == fence


def test_a_name_that_is_not_there_stops_the_build():
    with pytest.raises(PluginError, match="rpg_ref/surrogates.py::wait, which is not there"):
        hooks.on_page_markdown("`rpg_ref/surrogates.py::wait`", page())
    documents = [SimpleNamespace(content_string="`tests/test_nothing.py`")]
    with pytest.raises(PluginError, match="a page names tests/test_nothing.py, which is not there"):
        hooks.on_files(SimpleNamespace(documentation_pages=lambda: documents), None)


def test_a_block_that_raised_stops_the_build():
    with pytest.raises(PluginError, match="what page.md executes raised"):
        hooks.on_page_content("<p>Traceback (most recent call last)</p>", page())


def test_formulas_are_drawn_in_the_pages_ink():
    content = '<span class="arithmatex">\\(w &lt; 1\\)</span> <a id="__codelineno-line-3"></a>'
    here = page()
    found = hooks.on_page_content(content, here)
    assert (
        "<svg" in found and 'aria-label="w &lt; 1"' in found and "currentColor" in found and "arithmatex" not in found
    )
    assert here.present_anchor_ids == {"__codelineno-line-3"}


def test_code_is_shown_as_it_stands():
    text = shown("rpg_ref.reference.ReferenceRule")
    assert "@dataclass(frozen=True)\nclass ReferenceRule" in text
    weight = shown("rpg_ref.surrogates.weight")
    assert "Args:" not in weight and "Args:" in shown("rpg_ref.surrogates.weight", docstring=True)
    code = re.search(r"```python\n(.*)\n```", weight, re.DOTALL)[1]
    assert all(line in (ROOT / "rpg_ref/surrogates.py").read_text() for line in code.splitlines())
    with pytest.raises(ValueError, match="rpg_ref.surrogates has no 'wait' at its top level"):
        shown("rpg_ref.surrogates.wait")


def test_a_plot_takes_its_ink_from_the_page():
    figure, axes = panels()
    axes.set_xlabel("w")
    found = drawn(figure, "a < b")
    assert "currentColor" in found and "#010203" not in found and 'aria-label="a &lt; b"' in found
    assert found.count("\n") == 1  # Markdown would take a blank line for its end


def test_each_page_is_announced_on_stderr(capsys):
    class Listed(list):
        def documentation_pages(self):
            return self

    names = ["index.md", "source/a.md"]
    for _ in range(2):  # `mkdocs serve` builds again and again
        hooks.on_nav(None, files=Listed(names))
        for name in names:
            assert hooks.on_page_read_source(page=page(name)) is None  # mkdocs then reads it
        hooks.on_env(None)
        hooks.on_post_build()
        out, err = capsys.readouterr()
        assert out == "" and [line.partition(": about ")[0] for line in err.splitlines()] == [
            "docs 1/3 index.md",
            "docs 2/3 source/a.md",
            "docs 3/3 writing the pages",
        ]
    hooks.on_nav(None, files=Listed(names))
    hooks.on_build_error(error=ValueError("a page is broken"))
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"], "its watcher has ended"
