"""A script beside what would be emitted now, as a page: the user's changes, and ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from . import origin
from .page import Block, Item, Page, Table, page
from .words import value

if TYPE_CHECKING:
    from .answer import Recommendation


class Report(NamedTuple):
    """The page, and whether the script is other than what would be emitted, whoever changed it."""

    page: Page
    differs: bool


def compared(shown: str, text: str, fresh: str, found: Recommendation) -> Report:
    """What its user has changed in a script, and what emitting it again would change.

    Args:
        shown: The script's name.
        text: The script as it is.
        fresh: What would be emitted now from the same words.
        found: The answer now.

    Raises:
        OriginError: If the script is no valid Python.
    """
    then, now = origin.read(text, shown), origin.read(fresh, "the new script")
    kept = origin.unchanged(text, then, shown)
    edited = [name for name, same in kept.items() if not same]
    ours = list(_changes(then, now))
    settings, lines = _settings(text, fresh), _lines(text, fresh)
    rank = next(s.rank for s in found.strategies if s.method == then.method)
    sections: list[tuple[str, Sequence[Block]]] = [
        ("Changed in the file since it was emitted", [Item(name, mark="!") for name in edited]),
        ("As it was emitted", [_listed([name for name in kept if kept[name]])]),
        ("What this version would emit differently", ours),
        ("Settings", [settings] if settings.rows else []),
        ("In the text", lines),
    ]
    about = f"{shown}: {then.method}, rank {rank} of {len(found.strategies)} for its problem now."
    title = _title(edited, bool(ours), bool(lines))
    return Report(page(title, about, sections), bool(edited or ours or lines))


def _title(edited: Sequence[str], ours: bool, text: bool) -> str:
    """What the user changed comes first."""
    yours = f"You have changed {', '.join(edited)}; this version would emit"
    if ours:
        return f"{yours if edited else 'This version would emit'} other parts: see below."
    if edited:
        return f"{yours} the rest as it is."
    if text:
        return "Every part is as this version would emit it; what stands between them is not."
    return "This version would emit the same script."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "nothing"


def _changes(then: origin.Origin, now: origin.Origin) -> Iterator[Block]:
    for name in dict.fromkeys([*then.parts, *now.parts]):
        old, new = then.parts.get(name), now.parts.get(name)
        if old is None:
            yield Item(f"{name}: new", mark="+")
        elif new is None:
            yield Item(f"{name}: no longer there", mark="-")
        elif old != new:
            yield Item(f"{name}: differs", mark="!")


def _settings(text: str, fresh: str) -> Table:
    """Defaults that are not what would be emitted now, whoever changed them."""
    yours, new = origin.values(text), origin.values(fresh)
    rows = [
        (name, _said(yours, name), _said(new, name))
        for name in dict.fromkeys([*yours, *new])
        if yours.get(name) != new.get(name)
    ]
    return Table(("setting", "in the file", "emitted now"), tuple(rows))


def _said(settings: dict[str, object], name: str) -> str:
    return value(settings[name]) if name in settings else "-"


def _lines(text: str, fresh: str, most: int = 40) -> list[Block]:
    """The first lines that differ, as `diff` shows them."""
    old, new = (t.rpartition(origin.MARK)[0].splitlines() for t in (text, fresh))
    found = [
        line
        for line in difflib.unified_diff(old, new, n=0, lineterm="")
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
        if line[1:].strip() and not line[1:].startswith("#")
    ]
    rest = [f"and {len(found) - most} lines more"] if len(found) > most else []
    return [*(Item(line[1:], mark=line[0]) for line in found[:most]), *rest]
