"""The parts of an emitted script: what each template asks for, read from its own Python syntax.

A template below `script.py.j2` is a Python module without template marks. Its relative imports are
the contract between parts: `from ..slots import crop` takes a name that the plan decides on,
`from ..networks.vit import Encoder` names the part itself.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from .knowledge import home


@dataclass(frozen=True)
class Part:
    """One template file.

    Attributes:
        name: path below `templates/` without the ending, as "methods/mae".
        body: its text without imports.
        imports: absolute imports as (module, name or ""), to be written once, at the top.
        modules: first names of all modules that it imports, also where they are used.
        slots: names that it takes from whichever part the plan chose.
        parts: other parts that it names.
        settings: settings that it reads.
        defines: names of its classes, functions and constants.
    """

    name: str
    body: str
    imports: frozenset[tuple[str, str]]
    modules: frozenset[str]
    slots: frozenset[str]
    parts: tuple[str, ...]
    settings: frozenset[str]
    defines: frozenset[str]


def exists(name: str) -> bool:
    """Whether there is a template of this name."""
    return (home("templates") / f"{name}.py.j2").is_file()


@cache
def part(name: str) -> Part:
    """Reads one template; `name` is its path below `templates/` without the ending."""
    return parse(name, (home("templates") / f"{name}.py.j2").read_text(encoding="utf-8"))


def parse(name: str, source: str) -> Part:
    """Splits a template's text into its imports and its body."""
    tree = ast.parse(source)
    imports: set[tuple[str, str]] = set()
    slots: set[str] = set()
    parts: list[str] = []
    body_starts = 0
    for node in tree.body:
        if isinstance(node, ast.Import):
            imports.update((_written(alias), "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imports.update((node.module or "", _written(alias)) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "") == "slots":
            slots.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folder = name.rpartition("/")[0] if node.level == 1 else ""
            parts.append("/".join(filter(None, [folder, *(node.module or "").split(".")])))
        else:
            break
        body_starts = node.end_lineno or 0
    body = "\n".join(source.splitlines()[body_starts:]).strip("\n")
    return Part(
        name,
        body,
        frozenset(imports),
        frozenset(_modules(tree)),
        frozenset(slots),
        tuple(parts),
        frozenset(_settings(tree)),
        frozenset(_defined(tree)),
    )


def _written(alias: ast.alias) -> str:
    return f"{alias.name} as {alias.asname}" if alias.asname else alias.name


def _modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _settings(tree: ast.AST) -> set[str]:
    """Names read as `settings.name` or `self.settings.name`."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (
            (isinstance(node.value, ast.Name) and node.value.id == "settings")
            or (isinstance(node.value, ast.Attribute) and node.value.attr == "settings")
        )
    } - {"reading", "recipe"}
