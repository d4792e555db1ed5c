"""Functions as they stand in the repository, for a page to show."""

import ast
import importlib
import inspect
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def shown(name: str, *, docstring: bool = False) -> str:
    """Return a function, class or table as Markdown: its file, then its code.

    Args:
        name: dotted, such as "rpg_ref.surrogates.weight" or "rpg_ref.divergences.DIVERGENCES".
        docstring: whether its docstring is shown as well.

    Returns:
        Markdown.

    Raises:
        ValueError: the module has no such name at its top level.

    Source: ours.
    """
    module, _, wanted = name.rpartition(".")
    path = Path(inspect.getfile(importlib.import_module(module)))
    code = path.read_text()
    node = next((node for node in ast.parse(code).body if wanted in names_of(node)), None)
    if node is None:
        raise ValueError(f"{module} has no {wanted!r} at its top level; name one that it has")
    start = min([node.lineno, *(x.lineno for x in getattr(node, "decorator_list", []))])
    lines = code.splitlines()[start - 1 : node.end_lineno]
    if not docstring and isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
        first = node.body[0]
        assert first.end_lineno is not None
        del lines[first.lineno - start : first.end_lineno - start + 1]
    where = path.relative_to(ROOT)
    body = textwrap.dedent("\n".join(lines))
    return f"[`{where}`](../{where}#L{node.lineno})\n\n```python\n{body}\n```\n"


def names_of(node: ast.stmt) -> list[str]:
    """Return the names that a statement gives to a function, a class or a value.

    Args:
        node: the statement.

    Returns:
        None, one, or several.

    Source: ours.
    """
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
    return [target.id for target in targets if isinstance(target, ast.Name)]
