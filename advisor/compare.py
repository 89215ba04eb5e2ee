"""What differs between two answers, and which rules made the difference."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from .answer import Chosen, Provenance, Recommendation, Strategy
from .base import Value
from .facts import Fact

How = Literal["fires now", "fires no longer", "removed", "weighs differently"]
Kept = tuple[str, str]  # rule, and what it does


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Changed(_Part):
    """A value before and after; None where there was none, or the answer did not hold it."""

    name: str
    old: Value | None
    new: Value | None


class Cause(_Part):
    """One rule that fires in one answer only, or counts differently in the two.

    Attributes:
        methods: By how much the rule moved the score of each method.
        effects: What else it does: `rules out mae`, `cautions`, `sets mask_ratio`.
    """

    rule: str
    how: How
    methods: dict[str, float]
    effects: tuple[str, ...]


class Moved(_Part):
    """A method whose rank, score, certainty or ties differ; rank None where it is ruled out."""

    method: str
    old_rank: int | None
    new_rank: int | None
    old_score: float | None
    new_score: float | None
    old_certainty: str | None
    new_certainty: str | None


class Difference(_Part):
    """All that differs. `changed` is false when two answers say the same.

    Attributes:
        settings: Numbers of the run, as `mask_ratio` or, for one method only, `mae: mask_ratio`.
        reworded: Rules whose reason, finding, studies or sources differ, but not their weight.
        other: Further parts of the answer that differ.
    """

    schema_version: Literal[1] = 1
    changed: bool
    old: Provenance
    new: Provenance
    profile: tuple[Changed, ...]
    facts: tuple[Changed, ...]
    verdict: Changed | None
    strategies: tuple[Moved, ...]
    settings: tuple[Changed, ...]
    cautions_added: tuple[str, ...]
    cautions_gone: tuple[str, ...]
    causes: tuple[Cause, ...]
    reworded: tuple[str, ...]
    other: tuple[str, ...]


def compare(
    old: Recommendation, new: Recommendation, known: Collection[str] | None = None
) -> Difference:
    """What differs between two answers.

    Args:
        old: The earlier answer.
        new: The later one.
        known: Ids of all rules of the later knowledge, where it is at hand: they tell a rule that
            was removed from one that fires no longer.
    """
    causes = tuple(_causes(old, new, known))
    cautions = [{f"{c.text} [{c.rule}]": None for c in each.cautions} for each in (old, new)]
    told = dict(
        profile=tuple(_changes(old.profile.model_dump(), new.profile.model_dump())),
        facts=tuple(_changes(_derived(old), _derived(new))),
        verdict=next(_changes({"verdict": old.verdict}, {"verdict": new.verdict}), None),
        strategies=tuple(_moved(old, new)),
        settings=tuple(_changes(_settings(old), _settings(new))),
        cautions_added=tuple(c for c in cautions[1] if c not in cautions[0]),
        cautions_gone=tuple(c for c in cautions[0] if c not in cautions[1]),
        causes=causes,
        reworded=tuple(_reworded(old, new)),
        other=tuple(_other(old, new)),
    )
    return Difference(changed=any(told.values()), old=old.knowledge, new=new.knowledge, **told)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Changed]:
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name):
            yield Changed(name=name, old=old.get(name), new=new.get(name))


def _derived(found: Recommendation) -> dict[str, Fact]:
    """Facts that are no answers: these differ when bands or cards do."""
    answers = found.profile.model_dump()
    values = found.facts.values
    return {n: v for n, v in values.items() if n not in answers or answers[n] is None}


def _moved(old: Recommendation, new: Recommendation) -> Iterator[Moved]:
    before = {s.method: s for s in old.strategies}
    after = {s.method: s for s in new.strategies}
    for id in dict.fromkeys((*after, *before)):
        was, now = before.get(id), after.get(id)
        if _standing(was) != _standing(now):
            yield Moved(
                method=id,
                old_rank=was and was.rank,
                new_rank=now and now.rank,
                old_score=was and was.score,
                new_score=now and now.score,
                old_certainty=was and was.certainty,
                new_certainty=now and now.certainty,
            )


def _standing(strategy: Strategy | None) -> Any:
    return strategy and (
        strategy.rank,
        strategy.score,
        strategy.certainty,
        set(strategy.tied_with),
        strategy.emits,
    )


def _settings(found: Recommendation) -> dict[str, Value]:
    named: dict[str, Chosen] = dict(found.common)
    for each in found.strategies:
        named |= {f"{each.method}: {name}": chosen for name, chosen in each.settings.items()}
    return {name: chosen.value for name, chosen in named.items()}


def _causes(
    old: Recommendation, new: Recommendation, known: Collection[str] | None
) -> Iterator[Cause]:
    before, after = _weights(old), _weights(new)
    did, does = _effects(old), _effects(new)
    for rule in dict.fromkeys((*before, *did, *after, *does)):
        was, now = before.get(rule, {}), after.get(rule, {})
        moved = {id: now.get(id, 0.0) - was.get(id, 0.0) for id in dict.fromkeys((*now, *was))}
        moved = {id: weight for id, weight in moved.items() if weight}
        effects = did.get(rule, {}).keys() ^ does.get(rule, {}).keys()
        if moved or effects:
            fired, fires = rule in before or rule in did, rule in after or rule in does
            how: How = "weighs differently" if fired and fires else "fires now"
            if fired and not fires:
                gone = known is not None and rule not in known and not rule.startswith("needs:")
                how = "removed" if gone else "fires no longer"
            yield Cause(rule=rule, how=how, methods=moved, effects=tuple(sorted(effects)))


def _weights(found: Recommendation) -> dict[str, dict[str, float]]:
    """What each rule adds to each method's score."""
    weights: dict[str, dict[str, float]] = {}
    for each in found.strategies:
        for reason in each.reasons:
            here = weights.setdefault(reason.rule, {})
            here[each.method] = here.get(each.method, 0.0) + reason.weight
    return weights


def _effects(found: Recommendation) -> dict[str, dict[str, None]]:
    """What each rule does besides: it rules out, warns, or sets a number."""
    effects: dict[str, dict[str, None]] = {}
    for out in found.ruled_out:
        effects.setdefault(out.rule, {})[f"rules out {out.method}"] = None
    for caution in found.cautions:
        effects.setdefault(caution.rule, {})["cautions"] = None
    for chosen in (found.common, *(s.settings for s in found.strategies)):
        for name, each in chosen.items():
            if each.rule:
                effects.setdefault(each.rule, {})[f"sets {name}"] = None
    return effects


def _reworded(old: Recommendation, new: Recommendation) -> Iterator[str]:
    """Rules of both answers of which only the words or the evidence differ."""
    before, after = _words(old), _words(new)
    both = (
        rule
        for rule, kind in before
        if after.get((rule, kind), before[rule, kind]) != before[rule, kind]
    )
    yield from dict.fromkeys(both)


def _words(found: Recommendation) -> dict[tuple[str, str], Any]:
    """What is said under the name of each rule, and what it rests on."""
    said: dict[tuple[str, str], Any] = {(c.rule, "caution"): c.studies for c in found.cautions}
    for reason in (r for s in found.strategies for r in s.reasons):
        weight = {"weight", "verb", "strength", "certainty"}
        said[reason.rule, "reason"] = reason.model_dump(exclude=weight)
    return said


def _other(old: Recommendation, new: Recommendation) -> Iterator[str]:
    """Parts whose reasons differ although what they say is the same."""
    parts: dict[str, Callable[[Recommendation], dict[Any, Any]]] = {
        "what would change the answer": lambda r: {"": r.what_if},
        "what to consider besides": lambda r: {"": r.also_consider},
        "why methods are ruled out": lambda r: {(o.method, o.rule): o.because for o in r.ruled_out},
        "why settings are as they are": _why,
        "why facts are as they are": lambda r: {
            (n, str(r.facts.values.get(n))): why for n, why in r.facts.reasons.items()
        },
        "names of methods": lambda r: {s.method: (s.name, s.paradigm) for s in r.strategies},
    }
    for name, part in parts.items():
        before, after = part(old), part(new)
        if any(before[key] != after[key] for key in before.keys() & after.keys()):
            yield name


def _why(found: Recommendation) -> dict[Any, Any]:
    """The reason for each number, by the number: where that differs, it is told as such."""
    every = [("", found.common), *((s.method, s.settings) for s in found.strategies)]
    return {
        (method, name, str(c.value)): (c.why, c.source, c.rule)
        for method, settings in every
        for name, c in settings.items()
    }


def gone_packs(old: Recommendation, new: Provenance) -> list[str]:
    """Names of the packs that an answer was made with and the later knowledge lacks.

    Args:
        old: The earlier answer.
        new: The later knowledge.
    """
    here = {p.name for p in new.packs}
    return [p.name for p in old.knowledge.packs if p.name not in here]
