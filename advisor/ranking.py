"""From a profile to the answer: rules fire, methods are ranked, and one sentence sums it up."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from . import scoring
from .answer import (
    AlsoConsider,
    Caution,
    Chosen,
    PackUsed,
    Provenance,
    Reason,
    Recommendation,
    RuledOut,
    Strategy,
)
from .cards import MethodCard, ModalityCard, Part, Rule, Setting
from .facts import Facts, derive
from .knowledge import Knowledge
from .profile import CERTAINTIES, Certainty, Profile
from .scoring import APART, Standing, Vote
from .whatif import what_if

__all__ = ["Reason", "Recommendation", "Strategy", "provenance", "recommend", "verdict"]

_BASELINES = {
    "public-checkpoint": "Start from a public in-domain checkpoint",
    "imagenet": "Start from ImageNet weights",
    "scratch": "Train from scratch, without pre-training",
}
_PAYS_NOT = {
    "imagenet": "start from ImageNet weights",
    "scratch": "train from scratch",
}


def recommend(
    profile: Profile | Mapping[str, Any],
    knowledge: Knowledge | None = None,
    engine: str = "auto",
) -> Recommendation:
    """Rank every method for a problem, with reasons.

    Args:
        profile: The answers, as a profile or as names and values.
        knowledge: Another rule base than the shipped one.
        engine: `auto`, `durable` or `reference`; all give the same answer.

    Raises:
        ProfileError: If an answer is not allowed.
        KnowledgeError: If the rule base is broken.
        RuleError: If the engine cannot be used.
    """
    profile = profile if isinstance(profile, Profile) else Profile.parse(profile)
    knowledge = knowledge or Knowledge.load()
    knowledge.check(profile)
    facts, evaluator = derive(profile, knowledge), knowledge.evaluator(engine)
    ids = frozenset(evaluator.fired(facts.values))
    fired = [rule for rule in knowledge.rules if rule.id in ids]
    standings = scoring.standings(facts.values, ids, knowledge)
    strategies = _strategies(standings, fired, knowledge)
    return Recommendation(
        profile=profile,
        facts=facts,
        knowledge=provenance(knowledge),
        engine=evaluator.name,
        verdict=verdict(strategies, _on_many_labels(facts, fired)),
        strategies=strategies,
        ruled_out=tuple(
            RuledOut(**out._asdict()) for out in scoring.ruled_out(facts.values, ids, knowledge)
        ),
        cautions=_cautions(fired),
        common=_common(knowledge, knowledge.modalities[profile.modality], fired),
        also_consider=_also_consider(knowledge, facts, ids),
        what_if=what_if(profile, knowledge, strategies[0].method if strategies else None),
    )


def provenance(knowledge: Knowledge) -> Provenance:
    """Which rule base and packs these are: answers of equal ones are equal.

    Args:
        knowledge: The rule base.
    """
    used = (
        PackUsed(name=p.name, version=p.version, sha256=p.sha256, overrides=knowledge.overrides(p))
        for p in knowledge.packs
    )
    return Provenance(version=knowledge.version, sha256=knowledge.sha256, packs=tuple(used))


def _strategies(
    standings: Sequence[Standing], fired: Iterable[Rule], knowledge: Knowledge
) -> tuple[Strategy, ...]:
    rounded = [round(s.score, APART) for s in standings]
    found = []
    for rank, (each, score) in enumerate(zip(standings, rounded, strict=True), start=1):
        card = knowledge.methods[each.method]
        others = (s.method for s, r in zip(standings, rounded, strict=True) if r == score)
        reasons = tuple(_reason(knowledge, v) for v in each.votes)
        found.append(
            Strategy(
                rank=rank,
                method=each.method,
                name=card.name,
                paradigm=card.paradigm,
                family=card.family,
                score=score,
                certainty=certainty(reasons),
                tied_with=tuple(id for id in others if id != each.method),
                emits=each.emits,
                reasons=reasons,
                settings=_settings(knowledge, card, fired),
            )
        )
    return tuple(found)


def certainty(reasons: Iterable[Reason]) -> Certainty:
    """The certainty of the heaviest reason for a strategy; the lower one where two weigh the same.

    Args:
        reasons: Its reasons; without any that speaks for it the certainty is very low.
    """
    best = max(
        (r for r in reasons if r.verb == "prefer"),
        key=lambda r: (r.weight, CERTAINTIES.index(r.certainty)),
        default=None,
    )
    return best.certainty if best else "very-low"


def _reason(knowledge: Knowledge, vote: Vote) -> Reason:
    """The same object for every method that a rule speaks for; it cannot change."""
    known: dict[Vote, Reason] = knowledge.once("reasons", dict)
    if vote not in known:
        known[vote] = _reason_of(knowledge.rule[vote.rule], vote)
    return known[vote]


def _reason_of(rule: Rule, vote: Vote) -> Reason:
    assert rule.strength and rule.certainty and vote.verb != "exclude"  # held by the loader
    return Reason(
        rule=rule.id,
        verb=vote.verb,
        strength=rule.strength,
        certainty=rule.certainty,
        weight=vote.weight,
        because=rule.because,
        finding=rule.finding,
        studies=rule.studies,
        against=rule.against,
        source=rule.source,
    )


def _settings(knowledge: Knowledge, card: MethodCard, fired: Iterable[Rule]) -> dict[str, Chosen]:
    """The card's own numbers; a later rule overrides an earlier one."""
    found = dict(knowledge.once(("settings", card.id), lambda: _chosen(card.settings)))
    for rule in fired:
        if not rule.sets or (rule.only_for and card.id not in knowledge.expand(rule.only_for)):
            continue
        for name, value in rule.sets.items():
            if rule.only_for or name in found:
                found[name] = _set(rule, value)
    return found


def _common(knowledge: Knowledge, card: ModalityCard, fired: Iterable[Rule]) -> dict[str, Chosen]:
    """What the modality and the protocol say, whatever the method."""
    found: dict[str, Chosen] = {}
    for name in ("mode", "low", "high"):
        value = getattr(card.intensity, name)
        if value is not None:
            why, source = card.intensity.why, card.intensity.source
            found[f"intensity_{name}"] = Chosen(value=value, why=why, source=source, rule=None)
    views = {name: getattr(card.views, name) for name in type(card.views).model_fields}
    own = {"channels": card.channels, "spacing_mm": card.spacing_mm, **views, **card.physics}
    found |= _chosen({**own, **_steps(card), **knowledge.protocol})
    for rule in fired:
        for name, value in rule.sets.items():
            if name in found and not rule.only_for:
                found[name] = _set(rule, value)
    return found


def _steps(card: ModalityCard) -> dict[str, Setting]:
    """Which templates read and distort; those of any image unless the card names others."""
    kind = "colour" if card.channels.value == 3 else "grey"
    why = "What any image of this kind may vary by."
    whole = Part(value="whole", why="The card names no margins to cut off.", source="choice")
    folder = Part(value="folder", why="A file is one picture, a folder many.", source="choice")
    return {
        "distort": card.distort or Part(value=kind, why=why, source="choice"),
        "frame": card.frame or whole,
        "pictures": card.pictures or folder,
    }


def _chosen(settings: Mapping[str, Any]) -> dict[str, Chosen]:
    return {
        n: Chosen(value=s.value, why=s.why, source=s.source, rule=None) for n, s in settings.items()
    }


def _set(rule: Rule, value: Any) -> Chosen:
    source = "; ".join((*rule.studies, *rule.source))
    return Chosen(value=value, why=rule.because, source=source, rule=rule.id)


def _cautions(fired: Iterable[Rule]) -> tuple[Caution, ...]:
    return tuple(
        Caution(
            rule=rule.id,
            text=rule.because if rule.caution is True else rule.caution,
            studies=rule.studies,
        )
        for rule in fired
        if rule.caution
    )


def _also_consider(
    knowledge: Knowledge, facts: Facts, fired: frozenset[str]
) -> tuple[AlsoConsider, ...]:
    """Image-text methods that a fired rule prefers and nothing rules out, with the best reason."""
    found = []
    for id, card in knowledge.methods.items():
        if id in scoring.competitors(knowledge) or next(scoring.unmet(card, facts.values), None):
            continue
        votes = [v for v in scoring.votes(knowledge).get(id, ()) if v.rule in fired]
        best = max((v for v in votes if v.verb == "prefer"), key=lambda v: v.weight, default=None)
        if best and not any(v.verb == "exclude" for v in votes):
            found.append(AlsoConsider(method=id, because=knowledge.rule[best.rule].because))
    return tuple(found)


def _on_many_labels(facts: Facts, fired: Iterable[Rule]) -> frozenset[str]:
    """The fired rules that speak of labels, when these abound."""
    if facts.values.get("label_regime") != "abundant":
        return frozenset()
    names = {"label_regime", "labeled", "label_fraction"}
    return frozenset(r.id for r in fired if names & {*r.when, *chain(*r.when.get("any", ()))})


def verdict(strategies: Sequence[Strategy], on_many_labels: Collection[str] = ()) -> str:
    """The answer in one sentence: what to do, why, and how sure that is.

    Args:
        strategies: Best first.
        on_many_labels: Rules that fired because labels abound.
    """
    if not strategies:
        return "No method fits this problem: each is ruled out by what it needs or by a rule."
    top = strategies[0]
    speaking = [r for r in top.reasons if r.verb == "prefer"]
    abundant = [r for r in speaking if r.rule in on_many_labels and top.method in _PAYS_NOT]
    reason = max(abundant or speaking, key=lambda r: r.weight, default=None)
    if reason is None or top.score <= 0:
        return (
            f"No strategy is supported by evidence here: {top.name} comes first by default only, "
            f"so compare it with training from scratch (certainty very-low)."
        )
    because = f"{reason.because.rstrip('.')} (certainty {top.certainty})."
    if top.tied_with:
        names = [s.name for s in strategies if s.method in (top.method, *top.tied_with)]
        return f"A tie between {_joined(names)}, which the evidence does not tell apart: {because}"
    advice = _BASELINES.get(top.method, f"Use {top.name}")
    if abundant:
        advice = (
            f"With this many labels pre-training is unlikely to pay, so {_PAYS_NOT[top.method]}"
        )
    return f"{advice}: {because}"


def _joined(names: Sequence[str]) -> str:
    if len(names) > 4:
        names = [*names[:3], f"{len(names) - 3} more"]
    return f"{', '.join(names[:-1])} and {names[-1]}"
