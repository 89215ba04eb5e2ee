"""What is doubtful in `rules/` although nothing is wrong, found by asking thousands of questions.

A line is a hint, no error: two rules may well speak for and against the same method, if each knows
of the other's evidence. What is said of "nowhere" holds for the grid of `advisor.audit.grid`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from ..cards import Rule, Target
from ..facts import derive
from ..knowledge import Knowledge
from ..references import located
from ..scoring import APART, Standing, Vote, competitors, unmet, votes
from ..words import mentions, reads
from .grid import Grid, grid
from .judging import judge
from .published import pairs

TOP = 5
MOSTLY = 0.5  # rules on labels and on tasks are meant to meet now and then; not most of the time
PLACE = ("modality", "task")  # a rule that reads neither speaks of no problem in particular
_BARE = re.compile(r"choice\s*$")
_WORD = re.compile(r"[\w-]+")


class Doubt(NamedTuple):
    """One line to be: the place in its file, whose it is and what it says."""

    loc: tuple[int | str, ...]
    name: str
    what: str


def warnings(knowledge: Knowledge) -> list[str]:
    """Everything doubtful, by file.

    With rule packs it is what they bring: doubts about an item of theirs, or one that names their
    rule, and rules of the rule base that the packs leave without effect.

    Args:
        knowledge: A rule base without problems.

    Returns:
        Lines `file:line: item: kind: what`; kinds are dead, duplicate, shadowed, conflict, uncited,
        idle, undecided, unexplained and stale.

    Raises:
        KnowledgeError: If the rule base has problems; they come first.
    """
    by_file = _doubts(knowledge)
    if knowledge.packs:
        by_file = _of_packs(knowledge, by_file)
    return [line for path, doubts in by_file.items() for line in located(knowledge, path, doubts)]


def _doubts(knowledge: Knowledge) -> dict[Path, list[Doubt]]:
    on = grid(knowledge)
    at = _places(knowledge)
    by_file: dict[Path, list[Doubt]] = {path: [] for path, _ in at.values()}
    for check in (_dead, _doubled, _conflicts, _overridden, _uncited):
        for rule, what in check(knowledge, on):
            path, index = at[rule]
            by_file[path].append(Doubt((index,), rule, what))
    for check_cards in (_idle, _undecided, _unexplained):
        for path, doubt in check_cards(knowledge, on):
            by_file.setdefault(path, []).append(doubt)
    return by_file


def _of_packs(knowledge: Knowledge, by_file: Mapping[Path, list[Doubt]]) -> dict[Path, list[Doubt]]:
    """The doubts that are there because of the packs, and no others."""
    roots = [pack.root for pack in knowledge.packs]
    theirs = {rule for rule, (path, _) in _places(knowledge).items() if _within(path, roots)}
    alone = {
        (d.name, d.what) for ds in _doubts(Knowledge.load(knowledge.root)).values() for d in ds
    }

    def caused(doubt: Doubt) -> bool:
        dead = doubt.what.startswith("dead") and (doubt.name, doubt.what) not in alone
        return dead or not theirs.isdisjoint(_WORD.findall(doubt.what))

    return {
        path: doubts if _within(path, roots) else [d for d in doubts if caused(d)]
        for path, doubts in by_file.items()
    }


def _within(path: Path, roots: Iterable[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


Found = Iterator[tuple[str, str]]  # rule id, and "kind: what"


def _places(knowledge: Knowledge) -> dict[str, tuple[Path, int]]:
    """File and number in it of every rule."""
    return {
        rule.id: (path, i)
        for path in knowledge.listed()
        for i, rule in enumerate(knowledge.parsed(path))
    }


def _dead(knowledge: Knowledge, on: Grid) -> Found:
    """Rules that never fire, and targets that never compete where they do."""
    for rule in knowledge.rules:
        cases = [on.cases[i] for i in on.fires[rule.id]]
        if not cases:
            yield rule.id, "dead: fires nowhere on the grid"
            continue
        ranked = set[str]().union(*{c.competing for c in cases})
        for verb in ("prefer", "avoid"):
            gone = [t for t in getattr(rule, verb) if ranked.isdisjoint(_ranks(knowledge, t))]
            if gone:
                names = _and(_named(target) for target in gone)
                yield rule.id, f"dead: {verb} {names}: ruled out wherever this rule fires"
        out = [m for m in knowledge.expand(rule.exclude) if not _needed(knowledge, on, rule, m)]
        if out:
            yield rule.id, f"dead: exclude {_and(out)}: ruled out by its card or another rule"


def _ranks(knowledge: Knowledge, target: Target) -> set[str]:
    """What a target names; image-text methods are never ranked, so they are taken as they are."""
    named = set(knowledge.expand([target]))
    return named & competitors(knowledge).keys() or named


def _named(target: Target) -> str:
    if isinstance(target, str):
        return target
    return " ".join(f"{k} {v}" for k, v in target.model_dump(exclude_none=True).items())


def _needed(knowledge: Knowledge, on: Grid, rule: Rule, method: str) -> bool:
    """Whether a method would compete somewhere if this rule did not exclude it."""
    card = competitors(knowledge).get(method)
    others = {v.rule for v in votes(knowledge).get(method, ()) if v.verb == "exclude"} - {rule.id}
    return card is not None and any(
        not others & on.cases[i].fired
        and next(unmet(card, derive(on.cases[i].profile, knowledge).values), None) is None
        for i in on.fires[rule.id]
    )


def _doubled(knowledge: Knowledge, on: Grid) -> Found:
    """Rules of the same effect of which one never fires without the other."""
    same: dict[tuple[object, ...], list[Rule]] = defaultdict(list)
    for rule in knowledge.rules:
        verbs = (frozenset(knowledge.expand(t)) for t in (rule.prefer, rule.avoid, rule.exclude))
        only = frozenset(knowledge.expand(rule.only_for))
        effect = (*verbs, only, tuple(sorted(map(str, rule.sets.items()))), rule.caution)
        same[effect].append(rule)
    for first, second in (pair for rules in same.values() for pair in combinations(rules, 2)):
        a, b = on.fires[first.id], on.fires[second.id]
        if a == b:
            yield second.id, f"duplicate: does what {first.id} does, wherever that fires; join them"
        elif a and b and (a < b or b < a):
            inner, outer = (first.id, second.id) if a < b else (second.id, first.id)
            yield inner, f"shadowed: {outer} has the same effect and always fires with it"


def _conflicts(knowledge: Knowledge, on: Grid) -> Found:
    """Rules that others mostly cancel out, where neither knows of the other's evidence."""
    cancelled: dict[str, list[str]] = defaultdict(list)
    for (a, b), methods in _clashes(knowledge).items():
        narrow, wide = sorted((a, b), key=lambda id: len(on.fires[id]))
        one, other = knowledge.rule[a], knowledge.rule[b]
        known = set(one.studies) & set(other.against) or set(other.studies) & set(one.against)
        both = len(on.fires[a] & on.fires[b])
        if known or not (one.studies and other.studies) or not both:
            continue
        share = both / len(on.fires[narrow])
        if share >= MOSTLY:
            cancelled[narrow].append(f"{wide} (in {100 * share:.0f} %: {_and(methods)})")
    for rule, by in cancelled.items():
        what = "conflict: cancelled where it fires, and no study is named in 'against', by "
        yield rule, what + "; ".join(by)


def _clashes(knowledge: Knowledge) -> dict[tuple[str, str], list[str]]:
    """Pairs of rules that speak for and against a method with equal weight, and these methods."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for method in competitors(knowledge):
        for first, second in combinations(votes(knowledge).get(method, ()), 2):
            if _cancel(first, second):
                found[first.rule, second.rule].append(method)
    return found


def _cancel(first: Vote, second: Vote) -> bool:
    verbs = {first.verb, second.verb}
    return verbs == {"prefer", "avoid"} and round(first.weight + second.weight, APART) == 0


def _overridden(knowledge: Knowledge, on: Grid) -> Found:
    """Numbers that two rules set differently where both fire: the later one wins without a word."""
    setting = [r for r in knowledge.rules if r.sets]
    for first, second in combinations(setting, 2):
        one, other = (
            set(knowledge.expand(r.only_for)) or {*knowledge.methods} for r in (first, second)
        )
        if not one & other or on.fires[first.id].isdisjoint(on.fires[second.id]):
            continue
        for name in sorted(first.sets.keys() & second.sets.keys()):
            if first.sets[name] != second.sets[name]:
                yield second.id, f"conflict: sets {name} over {first.id} where both fire"


def _uncited(knowledge: Knowledge, _: Grid) -> Found:
    """Weight without evidence: no study, or studies that measured none of the methods."""
    for rule in knowledge.rules:
        named = set(knowledge.expand((*rule.prefer, *rule.avoid)))
        if not named or rule.certainty == "very-low":
            continue
        if not rule.studies and all(map(_BARE.match, rule.source)):
            yield rule.id, f"uncited: {rule.certainty} certainty rests on our choice alone"
        measured = {r.method for id in rule.studies for r in knowledge.study(id).results}
        if rule.studies and not named & measured:
            what = f"{rule.certainty} certainty, but no cited study measured {_and(sorted(named))}"
            yield rule.id, f"uncited: {what}"


def _idle(knowledge: Knowledge, on: Grid) -> Iterator[tuple[Path, Doubt]]:
    """Methods that nobody is ever advised."""
    seen = {s.method for case in on.cases for s in case.standings[:TOP]}
    for id in competitors(knowledge):
        if id not in seen:
            what = f"idle: among the first {TOP} for no profile of the grid"
            yield knowledge.methods.path(id), Doubt((), id, what)


def _undecided(knowledge: Knowledge, on: Grid) -> Iterator[tuple[Path, Doubt]]:
    """Modalities and tasks in which only rules that know neither put a method first."""
    decided: dict[str, set[str]] = defaultdict(set)
    for case in on.cases:
        if leader_is_placed(knowledge, case.standings):
            decided[case.profile.modality].add(case.profile.task)
    tasks: dict[str, None] = dict.fromkeys(case.profile.task for case in on.cases)
    for modality in knowledge.modalities:
        empty = [task for task in tasks if task not in decided[modality]]
        if empty:
            what = f"undecided: no rule on modality or task favours the winner for {_and(empty)}"
            yield knowledge.modalities.path(modality), Doubt((), modality, what)
        if not any(mentions(r.when, modality) for r in knowledge.rules if r.prefer or r.avoid):
            what = "undecided: no rule that ranks methods names it; task and numbers alone decide"
            yield knowledge.modalities.path(modality), Doubt((), modality, what)


def _unexplained(knowledge: Knowledge, _: Grid) -> Iterator[tuple[Path, Doubt]]:
    """Studies that the ranking contradicts without a word, and words where it does not any more."""
    wrong = {j.pair.study for j in judge(pairs(knowledge).pairs, knowledge) if j.agrees < 1}
    for id in knowledge.study_ids:
        told = knowledge.study(id).disagreement
        if id in wrong and told is None:
            what = "unexplained: the ranking differs from it; say in 'disagreement' why"
            yield knowledge.studies.path(id), Doubt((), id, what)
        elif told is not None and id not in wrong:
            what = "stale: the ranking agrees with all of it; delete 'disagreement'"
            yield knowledge.studies.path(id), Doubt(("disagreement",), id, what)


def leader_is_placed(knowledge: Knowledge, standings: Iterable[Standing]) -> bool:
    """Whether a rule that reads modality or task speaks for the method in front.

    Args:
        knowledge: The rule base.
        standings: Best first.
    """
    leader = next(iter(standings), None)
    return leader is not None and any(
        v.verb == "prefer" and reads(knowledge.rule[v.rule].when, PLACE) for v in leader.votes
    )


def _and(names: Iterable[str]) -> str:
    return ", ".join(names)
