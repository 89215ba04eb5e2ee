"""What a rule refers to must exist: checked on every load, with the nearest name at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import reading
from .cards import MethodCard, Rule, Target, Views
from .conditions import compile_when
from .profile import nearest
from .reading import KnowledgeError, Loc

if TYPE_CHECKING:  # for annotations only: knowledge imports this file
    from .knowledge import Knowledge

CARD_SETTINGS = ("channels", "spacing_mm", "intensity_mode", "intensity_low", "intensity_high")

Problem = tuple[Loc, str]  # where in the item, and "field: what"


def advice(knowledge: Knowledge, path: Path) -> list[str]:
    """What is wrong in one advice file, its references included.

    Args:
        knowledge: The rule base.
        path: The file.

    Raises:
        KnowledgeError: If the file, or a card that its rules name, cannot be read.
    """
    rules = knowledge.parsed(path)
    taken = _ids_before(knowledge, path)
    found: list[tuple[Loc, str, str]] = []
    for i, rule in enumerate(rules):
        if rule.id in taken:
            found.append(((i, "id"), rule.id, f"id: taken by a rule in {taken[rule.id]}"))
        taken[rule.id] = knowledge.shown(path)
        found += [((i, *loc), rule.id, what) for loc, what in _rule(knowledge, rule)]
    return located(knowledge, path, found)


def of_packs(knowledge: Knowledge) -> list[str]:
    """Method cards of packs that promise a script, for which only shipped methods have a template.

    Args:
        knowledge: The rule base.

    Raises:
        KnowledgeError: If such a card cannot be read.
    """
    found: list[str] = []
    for id in knowledge.methods if knowledge.packs else ():
        path, shipped = knowledge.methods.path(id), knowledge.root / "methods" / f"{id}.yaml"
        if path != shipped and knowledge.methods[id].script and not _scripted(knowledge, shipped):
            what = "script: a pack brings no template; leave it out"
            found += located(knowledge, path, [(("script",), id, what)])
    return found


def _scripted(knowledge: Knowledge, path: Path) -> bool:
    """Whether there is such a card, with a script."""
    return path.is_file() and bool(reading.parse(path, knowledge.shown(path), MethodCard).script)


def located(knowledge: Knowledge, path: Path, found: Iterable[tuple[Loc, str, str]]) -> list[str]:
    """Problems as lines `file:line: item: what`; the file is read again only if there are any.

    Args:
        knowledge: The rule base.
        path: The file.
        found: Place in the file, name of the item, what is wrong.
    """
    found = list(found)
    where = reading.places(path, knowledge.shown(path)) if found else str
    return [": ".join(p for p in (where(loc), name, what) if p) for loc, name, what in found]


def missing(sort: str, name: str, known: Iterable[str]) -> str:
    """`no method 'maee'; did you mean 'mae'?`.

    Args:
        sort: What was looked for.
        name: The name that was written.
        known: The names that there are.
    """
    return f"no {sort} {name!r}{nearest(name, known)}"


def _ids_before(knowledge: Knowledge, path: Path) -> dict[str, str]:
    """Rule ids of the files beside this one that are read before it, and which file has them."""
    taken: dict[str, str] = {}
    for other in knowledge.beside(path):
        if other == path:
            break
        try:
            taken.update({r.id: knowledge.shown(other) for r in knowledge.parsed(other)})
        except KnowledgeError:
            continue  # told when that file is checked
    return taken


def _rule(knowledge: Knowledge, rule: Rule) -> Iterator[Problem]:
    for loc, what in compile_when(rule.when, knowledge.kinds).wrong:
        yield loc, f"{'.'.join(map(str, loc))}: {what}"
    if rule.finding is not None and rule.finding not in knowledge.findings:
        yield ("finding",), f"finding: {missing('finding', rule.finding, knowledge.findings)}"
    for field in ("studies", "against"):
        for i, id in enumerate(getattr(rule, field)):
            if id not in knowledge.studies:
                yield (field, i), f"{field}: {missing('study', id, knowledge.studies)}"
    if not rule.studies and not rule.source:
        yield ("studies",), "studies: a rule without a study needs a source"
    yield from _verbs(knowledge, rule)
    yield from _targets(knowledge, rule)
    for name, value in rule.sets.items():
        what = _set(knowledge, name, value)
        if what:
            yield ("set", name), f"set: {what}"


def _verbs(knowledge: Knowledge, rule: Rule) -> Iterator[Problem]:
    if not (rule.prefer or rule.avoid or rule.exclude or rule.sets or rule.caution):
        yield (), "it does nothing; give one of prefer, avoid, exclude, set, caution"
    for field in ("strength", "certainty"):
        if (rule.prefer or rule.avoid) and getattr(rule, field) is None:
            yield (), f"{field}: missing; prefer and avoid need it"
    if rule.only_for and not rule.sets:
        yield ("for",), "for: only 'set' can be limited to some methods"
    both = set(knowledge.expand(rule.prefer)) & set(knowledge.expand(rule.avoid))
    for id in sorted(both):
        yield ("avoid",), f"avoid: {id!r} is preferred by the same rule"


def _targets(knowledge: Knowledge, rule: Rule) -> Iterator[Problem]:
    listed = {
        "prefer": rule.prefer,
        "avoid": rule.avoid,
        "exclude": rule.exclude,
        "for": rule.only_for,
    }
    for field, targets in listed.items():
        for i, target in enumerate(targets):
            what = _target(knowledge, target)
            if what:
                yield (field, i), f"{field}: {what}"


def _target(knowledge: Knowledge, target: Target) -> str:
    """Why a target names no method, or nothing when it does."""
    if isinstance(target, str):
        known = knowledge.methods
        return "" if target in known else missing("method", target, known)
    if target.paradigm is None and target.family is None:
        return "a selector needs a paradigm or a family"
    if not knowledge.expand([target]):
        words = target.model_dump(exclude_none=True).items()
        return f"no method has {' and '.join(f'{k} {v!r}' for k, v in words)}"
    return ""


def _set(knowledge: Knowledge, name: str, value: Any) -> str:
    """Why a value cannot be set: `set` changes what is there, by a value of the same sort."""
    known = knowledge.once("settings", lambda: _settings(knowledge))
    if name not in known:
        return missing("setting", name, known)
    there = known[name]
    if there is not None and _sort(value) != _sort(there):
        return f"{name}: {value!r} is of another sort than {there!r}"
    return ""


def _settings(knowledge: Knowledge) -> dict[str, Any]:
    """Every name that `set` may change, with one of its values as an example of the sort."""
    names: dict[str, Any] = dict.fromkeys((*Views.model_fields, *CARD_SETTINGS))
    for modality in knowledge.modalities.values():
        names |= {n: s.value for n, s in modality.physics.items()}
    names |= {n: s.value for n, s in knowledge.protocol.items()}
    for card in knowledge.methods.values():
        names |= {n: s.value for n, s in card.settings.items()}
    return names


def _sort(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "number" if number else type(value).__name__
