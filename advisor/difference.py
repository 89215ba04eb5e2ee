"""The difference between two answers on one page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .answer import Provenance
from .base import Value
from .compare import Cause, Changed, Difference
from .page import Block, Item, Page, Table, cut, page
from .words import value


def show(found: Difference, few: int | None = 12) -> Page:
    """The difference on one page.

    Args:
        found: From `compare`.
        few: How many entries a section shows; None for all.
    """
    about = f"knowledge {_named(found.old)} -> {_named(found.new)}"
    if not found.changed:
        return page("nothing changed", about, [])
    verdict = [Item(str(v), word) for word, v in _verdicts(found)]
    rows = tuple(
        (m.method, _arrow(m.old_rank, m.new_rank), _arrow(m.old_score, m.new_score), certainty)
        for m in found.strategies
        for certainty in [_arrow(m.old_certainty, m.new_certainty)]
    )
    cautions = [Item(c, "new", "!") for c in found.cautions_added]
    cautions += [Item(c, "gone") for c in found.cautions_gone]
    sections: list[tuple[str, list[Block]]] = [
        ("Problem", _pairs(found.profile)),
        ("Verdict", [*verdict]),
        ("Which rules did it", [_cause(c) for c in found.causes]),
        ("Settings", _pairs(found.settings)),
        ("Facts", _pairs(found.facts)),
        ("Keep in mind", [*cautions]),
        ("Same weight, other words or evidence", [Item(rule) for rule in found.reworded]),
        ("Also different", [Item(name) for name in found.other]),
    ]
    shown: list[tuple[str, Sequence[Block]]] = [(n, cut(b, few)) for n, b in sections]
    if rows:
        heads = ("method", "rank", "score", "certainty")
        more = [f"... and {len(rows) - few} more: --all"] if few and len(rows) > few else []
        shown.insert(2, ("Strategies", [Table(heads, rows[:few]), *more]))
    return page("the answer changed", about, shown)


def _named(knowledge: Provenance) -> str:
    packs = "".join(f" + {p.name} {p.version}".rstrip() for p in knowledge.packs)
    return f"{knowledge.version} ({knowledge.sha256[:8]}){packs}"


def _verdicts(found: Difference) -> list[tuple[str, Value | None]]:
    return [("before", found.verdict.old), ("now", found.verdict.new)] if found.verdict else []


def _arrow(old: object, new: object) -> str:
    said = [
        "-" if v is None else f"{v:.2f}" if isinstance(v, float) else str(v) for v in (old, new)
    ]
    return said[0] if said[0] == said[1] else " -> ".join(said)


def _pairs(changes: Iterable[Changed]) -> list[Block]:
    """Names and values; methods in which a number changed alike stand together."""
    alike: dict[tuple[str, str], list[str]] = {}
    for each in changes:
        method, _, name = each.name.rpartition(": ")
        text = f"{value(each.old)} -> {value(each.new)}"
        alike.setdefault((name, text), []).extend([method] if method else [])
    return [Item(f"{name}: {text}", ", ".join(m)) for (name, text), m in alike.items()]


def _cause(cause: Cause) -> Item:
    by: dict[str, list[str]] = {}
    for method, weight in cause.methods.items():
        by.setdefault(f"{weight:+.2f}", []).append(method)
    told = [f"{weight} for {', '.join(methods)}" for weight, methods in by.items()]
    return Item(f"{cause.rule} {cause.how}: {'; '.join([*told, *cause.effects])}")
