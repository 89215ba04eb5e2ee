"""Profiles that stand for all others: every combination that matters, and every edge of a number.

The full product of all answers is too large. So every modality, task, dimensionality, label regime,
network and use of the features are combined with each other, with nothing else known and in every
third case also with the rest drawn; and around the examples of every rule answers are drawn anew.
Draws are the same on every run.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

from ..facts import derive
from ..knowledge import Knowledge
from ..profile import BACKBONES, TASKS, Profile, questions
from ..scoring import CARD_FACTS, Standing, standings

AROUND = 20  # drawn profiles for each example on which a rule fires
_PRODUCTS = {"gpu_hours": "hours"}  # a derived number that is cut, and the answer that moves it


class Case(NamedTuple):
    """One profile of the grid with its answer."""

    profile: Profile
    fired: frozenset[str]
    standings: tuple[Standing, ...]  # best first; methods that are ruled out are not in it
    competing: frozenset[str]


class Grid(NamedTuple):
    """All cases, and for each rule the numbers of those in which it fires."""

    cases: tuple[Case, ...]
    fires: Mapping[str, frozenset[int]]


def grid(knowledge: Knowledge) -> Grid:
    """The grid of a rule base, ranked by the reference evaluator; made once and kept.

    Args:
        knowledge: The rule base, without problems.
    """
    return knowledge.once("grid", lambda: _grid(knowledge))


def _grid(knowledge: Knowledge) -> Grid:
    fired_by = knowledge.evaluator("reference").fired
    ranked: dict[tuple[object, ...], tuple[tuple[Standing, ...], frozenset[str]]] = {}
    moving = {r.id for r in knowledge.rules if r.prefer or r.avoid or r.exclude}
    cases: list[Case] = []
    fires: dict[str, set[int]] = {rule.id: set() for rule in knowledge.rules}
    for profile in profiles(knowledge):
        facts = derive(profile, knowledge).values
        fired = frozenset(fired_by(facts))
        key = (fired & moving, *(facts[name] for name in CARD_FACTS))
        if key not in ranked:
            best = tuple(standings(facts, fired, knowledge))
            ranked[key] = best, frozenset(s.method for s in best)
        for rule in fired:
            fires[rule].add(len(cases))
        cases.append(Case(profile, fired, *ranked[key]))
    return Grid(tuple(cases), {rule: frozenset(where) for rule, where in fires.items()})


def profiles(knowledge: Knowledge) -> Iterator[Profile]:
    """The profiles of the grid; some may come twice.

    Args:
        knowledge: The rule base.
    """
    drawn, every = random.Random(0), answers(knowledge)
    for i, known in enumerate(_core(knowledge)):
        yield _profile(known)
        if i % 3 == 0:
            rest = {name: drawn.choice(values) for name, values in every.items()}
            yield _profile(rest | known)
    for rule in knowledge.rules:
        for example in rule.examples.fires:
            fixed = Profile.parse(example).model_dump()
            for _ in range(AROUND):
                yield _profile(_around(fixed, every, drawn))


def answers(knowledge: Knowledge) -> dict[str, tuple[Any, ...]]:
    """What each answer may be: unknown, every choice, and numbers on both sides of every edge.

    Args:
        knowledge: The rule base, whose bands and rules cut the numbers.
    """
    cut = _edges(knowledge)
    found: dict[str, tuple[Any, ...]] = {"modality": tuple(knowledge.modalities)}
    for asked in questions()[1:]:
        if asked.kind in ("whole", "number"):
            least = 0.0 if asked.kind == "number" or "0 or more" in asked.allowed else 1.0
            near = {n for e in cut[asked.name] for n in _beside(e, asked.kind == "whole")}
            choices: tuple[Any, ...] = tuple(sorted(n for n in near if n >= least))
        else:
            choices = asked.choices or (True, False)
        found[asked.name] = choices if asked.required else (None, *choices)
    return found | {"gpus": (None, 1)}  # one, so that hours are GPU-hours


def counts(knowledge: Knowledge) -> dict[str, int]:
    """For each label regime a number of labels in its middle, on a logarithmic scale.

    Args:
        knowledge: The rule base.
    """
    low, found = 0.0, dict[str, int]()
    for bands in (b for b in knowledge.bands if b.fact == "label_regime"):
        for band in bands.bands:
            high = band.below or 4 * low
            found[band.name] = int(math.sqrt(low * high))
            low = high
    return found


def _core(knowledge: Knowledge) -> Iterator[dict[str, Any]]:
    labels = (None, *counts(knowledge).values())
    for card in knowledge.modalities.values():
        for task, dimensionality, labeled, backbone, adaptation in product(
            TASKS, card.dimensionality, labels, (None, *BACKBONES), (None, "finetune", "frozen")
        ):
            yield {
                "modality": card.id,
                "task": task,
                "dimensionality": dimensionality,
                "labeled": labeled,
                "backbone": backbone,
                "adaptation": adaptation,
            }


def _around(
    fixed: Mapping[str, Any], every: Mapping[str, tuple[Any, ...]], drawn: random.Random
) -> dict[str, Any]:
    """An example in which about half of the answers are drawn anew."""
    return {
        name: drawn.choice(every[name]) if drawn.random() < 0.5 else value
        for name, value in fixed.items()
    }


def _profile(known: Mapping[str, Any]) -> Profile:
    """A profile of answers that are allowed, unchecked: the check would take most of the time."""
    return Profile.model_construct(**{**dict.fromkeys(Profile.model_fields), **known})


def _edges(knowledge: Knowledge) -> dict[str, set[float]]:
    """Where the bands and the rules cut numbers, by answer."""
    found: dict[str, set[float]] = defaultdict(set)
    for bands in knowledge.bands:
        name = _PRODUCTS.get(bands.source_fact, bands.source_fact)
        found[name].update(b.below for b in bands.bands if b.below is not None)
    for rule in knowledge.engine_rules():
        for test in (t for branch in rule.branches for t in branch):
            if isinstance(test.value, int | float) and not isinstance(test.value, bool):
                found[_PRODUCTS.get(test.field, test.field)].add(test.value)
    return found


def _beside(edge: float, whole: bool) -> tuple[float, ...]:
    if whole:
        return tuple(range(math.ceil(edge) - 1, math.floor(edge) + 2))
    return (0.9 * edge, edge, 1.1 * edge)
