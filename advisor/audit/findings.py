"""What the review found beside what the rules make of it, as a page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ..cards import Finding, Rule
from ..knowledge import Knowledge
from ..profile import PARADIGMS, TASKS
from ..scoring import Vote, competitors, votes
from ..words import condition
from .agreement import explained
from .coverage import coverage, leaders
from .grid import Grid, grid
from .tables import names, safe, table

OFTEN = 0.1  # share of the cases below which an exception is not worth a line


class Turn(NamedTuple):
    """A rule that turns against what the rules of a finding say."""

    rule: Rule
    share: float  # of the cases in which a rule of the finding speaks for or against these methods
    methods: tuple[str, ...]


def markdown(knowledge: Knowledge) -> str:
    """The page.

    Args:
        knowledge: The rule base.
    """
    cells = coverage(knowledge)
    different = len({c.winner for c in cells})
    lines = [_HEAD.format(version=knowledge.version, cells=len(cells), different=different)]
    lines += _classes(knowledge)
    at = _files(knowledge)
    for finding in knowledge.findings.values():
        lines += _finding(knowledge, finding, at)
    lines += _differences(knowledge)
    return "\n".join(lines).rstrip() + "\n"


_HEAD = """\
# The review's findings and the rules

Rule base {version}; written by `make docs` from `rules/findings.yaml`, `rules/advice/` and
`rules/studies/`.

The findings are those of the abstracts of [arXiv:2605.23995](https://arxiv.org/abs/2605.23995), in
our words; nothing beyond the abstracts is attributed to the review. Rules rest on studies of their
own, which do not always agree with a finding. So each finding stands here with the studies against
it and with its **exceptions**: rules that, where a rule of the finding fires, speak the other way
about the same methods. Their share counts the cases, on a grid of profiles, in which both fire. A
finding without rules is met by the whole of the rule base, or by the emitted scripts.

On the [coverage map](coverage.md), {cells} cells have {different} different strategies in front.
Baselines left aside, the best self-supervised objective of a cell is so often of each class:
"""


def _differences(knowledge: Knowledge) -> list[str]:
    told = {id: each.disagreement for id, each in knowledge.studies.items() if each.disagreement}
    head = (
        "## Where the ranking differs from a study",
        "",
        "`medssl evidence agree` asks every study's setting as a problem. Where the ranking does",
        "not order two methods as published, the study's file says whether that is noise, a",
        "special setting that a profile does not tell, or an error of ours.",
        "",
    )
    return [*head, *explained(told), ""]


def _classes(knowledge: Knowledge) -> list[str]:
    classes = PARADIGMS[:4]
    rows = []
    for task in TASKS:
        count = leaders(knowledge, task)
        total = max(1, sum(count.values()))
        rows.append([task, *(f"{100 * count[name] / total:.0f} %" for name in classes)])
    return table(("task", *classes), rows)


def _files(knowledge: Knowledge) -> Mapping[str, Path]:
    """The advice file of each rule."""
    return {r.id: path for path in knowledge.listed() for r in knowledge.parsed(path)}


def _finding(knowledge: Knowledge, finding: Finding, at: Mapping[str, Path]) -> Iterator[str]:
    rules = [r for r in knowledge.rules if r.finding == finding.id]
    yield f"## {finding.id}. {safe(finding.statement.rstrip('.'))}"
    yield ""
    stands = "in all versions" if finding.version == "all" else f"in {finding.version}"
    yield f"Stands {stands}. Asked of the advisor: {safe(finding.asks)}"
    yield ""
    if not rules:
        yield "No single rule encodes it."
        yield ""
        return
    heads = ("rule", "does", "when", "strength", "certainty")
    yield from table(heads, [_row(rule, at) for rule in rules])
    yield from _studies(knowledge, "Studies for it", (id for r in rules for id in r.studies))
    yield from _studies(knowledge, "Studies against it", (id for r in rules for id in r.against))
    yield from _exceptions(knowledge, rules, at)


def _row(rule: Rule, at: Mapping[str, Path]) -> tuple[str, ...]:
    return (
        _link(rule, at),
        safe(_does(rule)),
        safe(condition(rule.when)),
        rule.strength or "",
        rule.certainty or "",
    )


def _link(rule: Rule, at: Mapping[str, Path]) -> str:
    return f"[{rule.id}](../rules/advice/{at[rule.id].name})"


def _does(rule: Rule) -> str:
    said = []
    for verb in ("prefer", "avoid", "exclude"):
        targets = getattr(rule, verb)
        if targets:
            said.append(f"{verb} " + ", ".join(_target(t) for t in targets))
    said += [f"set {name}" for name in rule.sets]
    said += ["caution"] if rule.caution else []
    return "; ".join(said)


def _target(target: object) -> str:
    if isinstance(target, str):
        return target
    chosen = [v for v in (getattr(target, "paradigm", None), getattr(target, "family", None)) if v]
    return "all " + " ".join(chosen)


def _studies(knowledge: Knowledge, title: str, ids: Iterable[str]) -> Iterator[str]:
    """What studies found; those that found the same stand together."""
    found: dict[str, list[str]] = {}
    for id in dict.fromkeys(ids):
        found.setdefault(knowledge.study(id).finding, []).append(id)
    if not found:
        return
    yield f"**{title}** ({sum(map(len, found.values()))}):"
    yield ""
    for sentence, same in found.items():
        links = ", ".join(f"[{id}](../rules/studies/{id}.yaml)" for id in same)
        yield f"- {safe(sentence)} ({links})"
    yield ""


def _exceptions(knowledge: Knowledge, rules: list[Rule], at: Mapping[str, Path]) -> Iterator[str]:
    found = [e for e in exceptions(knowledge, rules) if e.share >= OFTEN]
    if not found:
        return
    yield f"**Exceptions** ({len(found)}):"
    yield ""
    for rule, share, methods in found:
        weight = f"{rule.strength}, {rule.certainty}" + f", {rule.finding}" * bool(rule.finding)
        yield (
            f"- {_link(rule, at)} ({weight}; {100 * share:.0f} % of the cases; {names(methods)}): "
            f"{safe(rule.because)}"
        )
    yield ""


def exceptions(knowledge: Knowledge, rules: list[Rule]) -> list[Turn]:
    """The rules that speak the other way where rules of one finding fire, the most frequent first.

    Args:
        knowledge: The rule base.
        rules: The rules of the finding.
    """
    on, own = grid(knowledge), {rule.id for rule in rules}
    against: dict[str, tuple[set[str], set[int], set[int]]] = {}
    for method in competitors(knowledge):
        named = votes(knowledge).get(method, ())
        for vote in (v for v in named if v.rule in own):
            for other in (o for o in named if o.rule not in own and _opposed(vote, o)):
                methods, both, all_of = against.setdefault(other.rule, (set(), set(), set()))
                _count(on, vote.rule, other.rule, both, all_of)
                methods.add(method)
    found = [
        Turn(knowledge.rule[id], len(both) / len(all_of), tuple(sorted(methods)))
        for id, (methods, both, all_of) in against.items()
        if all_of
    ]
    return sorted(found, key=lambda e: (-e.share, e.rule.id))


def _count(on: Grid, rule: str, other: str, both: set[int], all_of: set[int]) -> None:
    both |= on.fires[rule] & on.fires[other]
    all_of |= on.fires[rule]


def _opposed(one: Vote, other: Vote) -> bool:
    return (one.verb == "prefer") != (other.verb == "prefer")
