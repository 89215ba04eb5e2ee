"""Fired rules x method cards -> scores: who may compete, what speaks for whom, who leads.

Scores are sums over the set of fired rules, taken outside the engine, so that neither the order nor
the number of firings can matter.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Literal, NamedTuple

from .cards import MethodCard
from .facts import Fact
from .knowledge import Knowledge

APART = 9  # decimals; scores that agree so far are tied
CARD_FACTS = ("dimensionality", "backbone", "task", "multi_view")  # what cards ask of a problem


class Vote(NamedTuple):
    """What one rule does to one method."""

    rule: str
    verb: Literal["prefer", "avoid", "exclude"]
    weight: float  # strength x certainty, below 0 for avoid; 0 for exclude


class Out(NamedTuple):
    """Why a method may not compete."""

    method: str
    rule: str  # id of the rule, or "needs:..." for what the card asks for
    because: str


class Standing(NamedTuple):
    """One competing method."""

    method: str
    score: float
    emits: bool  # there is a script template for this problem
    votes: tuple[Vote, ...]  # in rule order


def standings(
    facts: Mapping[str, Fact], fired: Collection[str], knowledge: Knowledge
) -> list[Standing]:
    """All competing methods, best first; ties stand by script first, then by id.

    Args:
        facts: Facts of the profile.
        fired: Ids of the fired rules.
        knowledge: The rule base.
    """
    found, cards = [], competitors(knowledge)
    for id in _eligible(facts, knowledge):
        votes = _fired(knowledge, id, fired)
        if not any(v.verb == "exclude" for v in votes):
            score = math.fsum(v.weight for v in votes)
            found.append(Standing(id, score, emits(cards[id], facts), votes))
    return sorted(found, key=lambda s: (-round(s.score, APART), not s.emits, s.method))


def leader(facts: Mapping[str, Fact], fired: Collection[str], knowledge: Knowledge) -> str | None:
    """The method that `standings` puts first, found without what speaks for whom.

    Args:
        facts: Facts of the profile.
        fired: Ids of the fired rules.
        knowledge: The rule base.
    """
    weights = {id: list[float]() for id in _eligible(facts, knowledge)}
    by_rule = _by_rule(knowledge)
    for rule in fired:
        for method, vote in by_rule.get(rule, ()):
            if vote.verb == "exclude":
                weights.pop(method, None)
            elif method in weights:
                weights[method].append(vote.weight)
    scores = {id: round(math.fsum(each), APART) for id, each in weights.items()}
    most, cards = max(scores.values(), default=0.0), competitors(knowledge)
    first = (id for id, score in scores.items() if score == most)
    return min(first, key=lambda id: (not emits(cards[id], facts), id), default=None)


def ruled_out(facts: Mapping[str, Fact], fired: Collection[str], knowledge: Knowledge) -> list[Out]:
    """Every reason for which a method may not compete.

    Args:
        facts: Facts of the profile.
        fired: Ids of the fired rules.
        knowledge: The rule base.
    """
    found = []
    for id, card in competitors(knowledge).items():
        found += [Out(id, rule, because) for rule, because in unmet(card, facts)]
        votes = (v for v in _fired(knowledge, id, fired) if v.verb == "exclude")
        found += [Out(id, v.rule, knowledge.rule[v.rule].because) for v in votes]
    return found


def voting(knowledge: Knowledge) -> frozenset[str]:
    """Ids of the rules that speak for or against a method; the others set values or warn.

    Args:
        knowledge: The rule base.
    """
    return knowledge.once("voting", lambda: frozenset(_by_rule(knowledge)))


def _eligible(facts: Mapping[str, Fact], knowledge: Knowledge) -> tuple[str, ...]:
    """The methods whose cards ask for nothing that the problem does not give."""
    cards = competitors(knowledge).items()
    return knowledge.once(
        ("eligible", *(facts[name] for name in CARD_FACTS)),
        lambda: tuple(id for id, card in cards if next(unmet(card, facts), None) is None),
    )


def competitors(knowledge: Knowledge) -> Mapping[str, MethodCard]:
    """The cards that are ranked: all but those that need reports beside the images.

    Args:
        knowledge: The rule base.
    """
    cards = knowledge.methods.items()
    return knowledge.once(
        "competitors", lambda: {id: card for id, card in cards if card.family != "image-text"}
    )


def emits(card: MethodCard, facts: Mapping[str, Fact]) -> bool:
    """Whether a script can be written with this method; unknown answers do not stand against it.

    Args:
        card: The method.
        facts: Facts of the profile.
    """
    frames = "2d" if facts["dimensionality"] == "video" else facts["dimensionality"]
    return card.script is not None and (
        frames in (None, *card.script.dimensionality)
        and facts["task"] in card.script.task
        and facts["backbone"] in (None, "any", *card.script.backbone)
    )


def unmet(card: MethodCard, facts: Mapping[str, Fact]) -> Iterator[tuple[str, str]]:
    """What the card needs and the problem does not give: rule name and reason.

    Args:
        card: The method.
        facts: Facts of the profile; unknown ones rule nothing out.
    """
    needs = card.needs
    for name, given, may in (
        ("dimensionality", facts["dimensionality"], (None, *needs.dimensionality)),
        ("backbone", facts["backbone"], (None, "any", *needs.backbone)),
        ("tasks", facts["task"], needs.tasks or (facts["task"],)),
    ):
        if given not in may:
            allowed = " or ".join(m for m in may if isinstance(m, str) and m != "any")
            yield f"needs:{name}", f"Defined for {allowed}, not for {given}. {needs.because}"
    if needs.multi_view and facts["multi_view"] is False:
        yield "needs:multi_view", f"Needs several images of one patient. {needs.because}"


def votes(knowledge: Knowledge) -> Mapping[str, tuple[Vote, ...]]:
    """What every rule would do to each method, image-text methods included, in file order.

    Args:
        knowledge: The rule base.
    """
    return knowledge.once("votes", lambda: _votes(knowledge))


def _fired(knowledge: Knowledge, method: str, fired: Collection[str]) -> tuple[Vote, ...]:
    return tuple(v for v in votes(knowledge).get(method, ()) if v.rule in fired)


def _votes(knowledge: Knowledge) -> dict[str, tuple[Vote, ...]]:
    scale, found = knowledge.scale, dict[str, list[Vote]]()
    for rule in knowledge.rules:
        weight = 0.0
        if rule.strength and rule.certainty:
            weight = scale.strength[rule.strength] * scale.certainty[rule.certainty]
        for id in knowledge.expand(rule.prefer):
            found.setdefault(id, []).append(Vote(rule.id, "prefer", weight))
        for id in knowledge.expand(rule.avoid):
            found.setdefault(id, []).append(Vote(rule.id, "avoid", -weight))
        for id in knowledge.expand(rule.exclude):
            found.setdefault(id, []).append(Vote(rule.id, "exclude", 0.0))
    return {id: tuple(each) for id, each in found.items()}


def _by_rule(knowledge: Knowledge) -> Mapping[str, tuple[tuple[str, Vote], ...]]:
    return knowledge.once("votes by rule", lambda: _turned(votes(knowledge)))


def _turned(by_method: Mapping[str, tuple[Vote, ...]]) -> dict[str, tuple[tuple[str, Vote], ...]]:
    found: dict[str, list[tuple[str, Vote]]] = {}
    for method, each in by_method.items():
        for vote in each:
            found.setdefault(vote.rule, []).append((method, vote))
    return {rule: tuple(each) for rule, each in found.items()}
