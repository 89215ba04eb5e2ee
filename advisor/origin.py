"""What an emitted script says of its own making, and which of its parts are still as emitted."""

from __future__ import annotations

import ast
import hashlib
import json
import textwrap
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

MARK = "# Emitted by medssl from the words below; `medssl regenerate --check` compares, by part:"
SETTINGS = "settings"
_WIDTH = 98


class OriginError(ValueError):
    """A file that was not emitted, or no longer says how; the text is one line."""


class Print(BaseModel):
    """The fingerprint of one part: so many classes, functions and constants, and their digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    nodes: int
    digest: str


class Origin(BaseModel):
    """What a script was emitted from.

    Attributes:
        profile: the answers, as text and numbers.
        method: id of the method.
        changes: settings that were given with `--set`.
        packs: names of the rule packs in use.
        parts: fingerprints by name of the template; the settings block is "settings".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    profile: dict[str, Any]
    method: str
    changes: dict[str, str] = {}
    packs: tuple[str, ...] = ()
    parts: dict[str, Print] = {}


def footer(origin: Origin, bodies: Mapping[str, str]) -> str:
    """The comment that ends a script.

    Args:
        origin: What it is emitted from; its fingerprints are taken here.
        bodies: The text of each part by name, the settings block included.
    """
    parts = {name: fingerprint(_segments(body)) for name, body in bodies.items()}
    data = origin.model_copy(update={"parts": parts}).model_dump(exclude_defaults=True)
    data["parts"] = ", ".join(f"{n} {each.nodes} {each.digest}" for n, each in parts.items())
    lines = textwrap.wrap(json.dumps(data), _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join([MARK, *(f"# {line}" for line in lines)])


def read(text: str, shown: str) -> Origin:
    """What the comment at the end of a script says.

    Args:
        text: The script.
        shown: What to call it in errors.

    Raises:
        OriginError: If there is no such comment, or it was damaged.
    """
    _, mark, rest = text.rpartition(MARK)
    if not mark:
        raise OriginError(
            f"{shown}: does not end with the comment that `medssl generate` writes, so nothing is "
            "known of what it was emitted from"
        )
    lines = [line.removeprefix("#").strip() for line in rest.splitlines()]
    try:
        data = json.loads(" ".join(lines))
        parts = (words.split() for words in data["parts"].split(","))
        data["parts"] = {n: Print(nodes=int(count), digest=d) for n, count, d in parts}
        return Origin.model_validate(data)
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
        raise OriginError(
            f"{shown}: the comment at its end is damaged; restore it, or emit the script anew"
        ) from None


def unchanged(text: str, origin: Origin, shown: str) -> dict[str, bool]:
    """For each part whether the script still holds it, letter by letter, wherever it stands.

    Args:
        text: The script as it is now.
        origin: What it says of its making.
        shown: What to call it in errors.

    Raises:
        OriginError: If the script is no valid Python.
    """
    try:
        segments = _segments(text)
    except SyntaxError as error:
        raise OriginError(f"{shown}:{error.lineno}: is not valid Python: {error.msg}") from None
    found = {}
    for name, wanted in origin.parts.items():
        starts = range(len(segments) - wanted.nodes + 1)
        runs = (segments[start : start + wanted.nodes] for start in starts)
        found[name] = any(fingerprint(run) == wanted for run in runs)
    return found


def values(text: str) -> dict[str, Any]:
    """The defaults of the settings block of a script; those that are no literals are left out.

    Args:
        text: A script, valid Python.
    """
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and node.name == "Settings":
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    try:
                        found[field.target.id] = ast.literal_eval(field.value or ast.Constant(None))
                    except ValueError:
                        continue
    return found


def fingerprint(segments: Iterable[str]) -> Print:
    """Number and digest of classes, functions and constants.

    Args:
        segments: The text of each.
    """
    kept = list(segments)
    digest = hashlib.sha256("\n".join(kept).encode()).hexdigest()[:8]
    return Print(nodes=len(kept), digest=digest)


@lru_cache(maxsize=256)  # the same parts stand in most scripts
def _segments(text: str) -> tuple[str, ...]:
    """Each class, function and statement at the top level, without imports and comments between."""
    lines, found = text.splitlines(), []
    for node in ast.parse(text).body:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            decorators = [d.lineno for d in getattr(node, "decorator_list", [])]
            first = min([node.lineno, *decorators])
            found.append("\n".join(line.rstrip() for line in lines[first - 1 : node.end_lineno]))
    return tuple(found)
