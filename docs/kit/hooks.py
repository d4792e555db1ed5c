"""Hooks of mkdocs: formulas become SVG while the site is built, and files of the repository pages of their own.

A reader needs neither a network nor a script for either. A file, or a file and a name in it, that a page sets in
code, such as ``tests/test_errata.py::test_k1``, becomes a link to its line; one that is not there stops the build.
"""

import ast
import html
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from ziamath import Latex
from ziamath import config as glyphs

ROOT = Path(__file__).parents[2]

glyphs.math.color = "currentColor"
glyphs.svg2 = False  # each stands by itself
_LINE = re.compile(r'id="(__codelineno-[^"]*)"')
_SIZE = 20
_FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
_BOX = re.compile(r'width="([\d.]+)(?:px)?" height="([\d.]+)(?:px)?"')

_FILE = r"(?:rpg_ref|proofs|tests|train|docs/kit)/[\w/.-]+\.(?:py|toml|txt|yaml|sh)"
_FENCE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2`*\s*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(rf"\]\((?:\.\./)+({_FILE})(?:#L(\d+))?\)")
_NAMED = re.compile(rf"(?<!\[)`({_FILE})(?:::(\w+))?(?:\[[^`]*\])?`(?!\])")
_SECONDS = 0.5
"""What a page takes on two cores, in the mean."""
_building = ExitStack()
_begin: Callable[[str], None] = print
_LANGUAGE = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".sh": "bash", ".txt": "text"}


def on_startup(**_: Any) -> None:
    """Let what pages execute import docs.kit, rpg_ref, train and tests."""
    sys.path.insert(0, str(ROOT))


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file of the repository that some page shows or names."""
    named = set()
    for page in files.documentation_pages():
        for pattern in (_LINK, _NAMED):
            named |= {found[1] for found in pattern.finditer(page.content_string)}
    # What functions are shown from while pages are executed is known only then.
    named |= {str(path.relative_to(ROOT)) for path in ROOT.glob("rpg_ref/**/*.py")}
    if missing := sorted(path for path in named if not (ROOT / path).is_file()):
        raise PluginError(f"a page names {missing[0]}, which is not there")
    for path in sorted(named):
        code = (ROOT / path).read_text()
        fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", code)), default=0))
        listing = f'# {path}\n\n{fence} {{.{_LANGUAGE[Path(path).suffix]} #line linenums="1"}}\n{code}\n{fence}\n'
        files.append(File.generated(config, f"source/{path}.md", content=listing))
    return files


def on_nav(_nav: Any, files: Files, **_: Any) -> None:
    """Begin to announce each page; the last step is to write them all."""
    from rpg_ref.progress import progress  # once on_startup has made it importable

    global _begin
    _building.close()
    _begin = _building.enter_context(progress("docs", len(files.documentation_pages()) + 1, _SECONDS))


def on_page_read_source(page: Any, **_: Any) -> None:
    """Announce a page; mkdocs reads it."""
    _begin(page.file.src_uri)


def on_env(_env: Any, **_: Any) -> None:
    """Announce the last step."""
    _begin("writing the pages")


def on_post_build(**_: Any) -> None:
    """End the announcements."""
    _building.close()


def on_build_error(**_: Any) -> None:
    """End the announcements where the build ends early."""
    _building.close()


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links into the repository, and names of what is in it, into links to those pages."""
    if page.file.src_uri.startswith("source/"):
        return markdown
    up = "../" * page.file.src_uri.count("/")

    def linked(text: str) -> str:
        text = _LINK.sub(lambda found: f"]({up}source/{found[1]}.md{_anchor(found[2])})", text)
        return _NAMED.sub(
            lambda found: f"[{found[0]}]({up}source/{found[1]}.md{_anchor(_line(*found.groups()))})", text
        )

    parts, at = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [linked(markdown[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*parts, linked(markdown[at:])])


def _line(path: str, name: str | None) -> str | None:
    if name is None:
        return None
    from docs.kit.sources import names_of  # once on_startup has made it importable

    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.stmt) and name in names_of(node):
            return str(node.lineno)
    raise PluginError(f"a page names {path}::{name}, which is not there")


def _anchor(line: str | None) -> str:
    return f"#__codelineno-line-{line}" if line else ""


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Draw every formula; stop where something that the page executes has raised; count lines of code as anchors."""
    page.present_anchor_ids |= set(_LINE.findall(content))
    if "Traceback (most recent call last)" in content and not page.file.src_uri.startswith("source/"):
        raise PluginError(f"what {page.file.src_uri} executes raised: {re.sub('<[^>]+>', '', content[-2000:])}")
    return _FORMULA.sub(lambda found: _drawn(found[2], block=found[1] == "div"), content)


def _drawn(delimited: str, *, block: bool) -> str:
    tex = html.unescape(delimited.strip()[2:-2].strip())
    formula = Latex(tex, size=_SIZE, inline=not block)
    svg = formula.svg()
    box = _BOX.search(svg)
    assert box, tex
    width, height, below = (f"{float(x) / _SIZE:.3f}em" for x in (box[1], box[2], formula.getyofst()))
    label = html.escape(tex, quote=True)
    drawn = f'role="img" aria-label="{label}" style="width:{width};height:{height};vertical-align:{below}"'
    tag = "div" if block else "span"
    return f'<{tag} class="formula">{svg[: box.start()]}{drawn}{svg[box.end() :]}</{tag}>'
