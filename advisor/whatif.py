"""The smallest changes of the answers that would put another method first.

Only single answers are changed: to every other choice, and for numbers to both sides of each edge
that a band or a rule has. The size of a change is 1 for an answer that was unknown, 2 for another
choice, 4 for other dimensions, 8 for another task (nearly another problem), and for a number its
doublings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from pydantic import BaseModel, ConfigDict

from .engine.masks import MaskEvaluator
from .facts import derive
from .knowledge import Knowledge
from .profile import Profile, ProfileError, questions
from .scoring import CARD_FACTS, leader, voting

MOST = 6
_SIZES = {"dimensionality": 4.0, "task": 8.0}


class WhatIf(BaseModel):
    """With these answers instead, another method would rank first."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    change: dict[str, bool | int | float | str]
    winner: str


def what_if(profile: Profile, knowledge: Knowledge, winner: str | None) -> tuple[WhatIf, ...]:
    """The smallest changes that make another method rank first, smallest first.

    Args:
        profile: The answers.
        knowledge: The rule base; its reference evaluator is asked.
        winner: The method that ranks first now.

    Returns:
        At most six, and for each answer one change a new winner.
    """
    lead = _Leader(knowledge)
    found: dict[tuple[str, str], WhatIf] = {}
    changes = sorted(_changes(profile, knowledge), key=lambda c: (c[0], c[1], str(c[2])))
    for _, field, value in changes:
        change = {field: value}
        new = lead(profile.model_copy(update=change))  # checked below, for the few that matter
        if new in (None, winner) or (field, new) in found:
            continue
        if _allowed(profile, change):
            found[field, new] = WhatIf(change=change, winner=new)
            if len(found) == MOST:
                break
    return tuple(found.values())


def _allowed(profile: Profile, change: dict[str, bool | int | float | str]) -> bool:
    try:
        profile.changed(**change)
    except ProfileError:  # an edge outside of what the field allows
        return False
    return True


class _Leader:
    """Who ranks first; most changes move no rule, and what was ranked once is not ranked again."""

    def __init__(self, knowledge: Knowledge) -> None:
        rules = knowledge.engine_rules
        self.knowledge, self.voting = knowledge, voting(knowledge)
        self.fired = knowledge.once("masks", lambda: MaskEvaluator(rules())).fired
        self.known: dict[tuple[object, ...], str | None] = {}

    def __call__(self, profile: Profile) -> str | None:
        facts = derive(profile, self.knowledge).values
        fired = self.fired(facts) & self.voting
        key = (fired, *(facts[name] for name in CARD_FACTS))
        if key not in self.known:
            self.known[key] = leader(facts, fired, self.knowledge)
        return self.known[key]


Change = tuple[float, str, bool | int | float | str]  # size, field, value


def _changes(profile: Profile, knowledge: Knowledge) -> Iterator[Change]:
    edges = knowledge.once("edges", lambda: _edges(knowledge))
    for asked in questions()[1:]:  # another modality would be another problem
        now = getattr(profile, asked.name)
        if asked.kind in ("whole", "number"):
            whole = asked.kind == "whole"
            for edge in _on_field(asked.name, profile, edges):
                for value in _beside(edge, whole):
                    if value != now:
                        yield _doublings(now, value), asked.name, value
            continue
        for choice in asked.choices or (True, False):
            if choice != now:
                size = 1.0 if now is None else _SIZES.get(asked.name, 2.0)
                yield size, asked.name, choice


def _doublings(now: float | None, value: float) -> float:
    return 1.0 if now is None else abs(math.log2((value + 1) / (now + 1)))


def _beside(edge: float, whole: bool) -> tuple[int | float, ...]:
    """The edge and the next values on both sides of it, in numbers that a person would say."""
    if whole:
        return tuple(n for n in range(math.ceil(edge) - 1, math.floor(edge) + 2) if n >= 0)
    step = 1.0 if edge > 2 else edge / 2
    near = (n for n in (edge - step, edge, edge + step) if n > 0)
    return tuple(n if n.is_integer() else float(f"{n:.3g}") for n in map(float, near))


def _edges(knowledge: Knowledge) -> dict[str, tuple[float, ...]]:
    """Where numbers are cut, by fact: by the bands, and by the rules themselves."""
    found: dict[str, set[float]] = {}
    for bands in knowledge.bands:
        found.setdefault(bands.source_fact, set()).update(
            b.below for b in bands.bands if b.below is not None
        )
    for rule in knowledge.engine_rules():
        for test in (t for branch in rule.branches for t in branch):
            if isinstance(test.value, int | float) and not isinstance(test.value, bool):
                found.setdefault(test.field, set()).add(test.value)
    return {fact: tuple(sorted(each)) for fact, each in found.items()}


def _on_field(field: str, profile: Profile, edges: dict[str, tuple[float, ...]]) -> Iterable[float]:
    """The edges of a field, and those of derived facts carried over to it, the rest unchanged."""
    yield from edges.get(field, ())
    other = {"hours": profile.gpus, "gpus": profile.hours}.get(field)
    if other:
        yield from (e / other for e in edges.get("gpu_hours", ()))
    if field in ("labeled", "unlabeled"):
        yield from _on_count(field, profile, edges)


def _on_count(field: str, profile: Profile, edges: dict[str, tuple[float, ...]]) -> Iterable[float]:
    other = profile.unlabeled if field == "labeled" else profile.labeled
    if not other:
        return
    yield from (e - other for e in edges.get("cases", ()))
    for e in edges.get("label_fraction", ()):  # labeled / (labeled + unlabeled)
        if 0 < e < 1:
            yield other * e / (1 - e) if field == "labeled" else other * (1 - e) / e
    for e in edges.get("pool_ratio", ()):  # unlabeled / labeled
        if e > 0:
            yield other / e if field == "labeled" else other * e
