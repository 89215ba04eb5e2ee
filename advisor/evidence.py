"""Published comparisons: found by what they compared, and their numbers in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from textwrap import shorten
from typing import NamedTuple

from .cards import Result, Study
from .facts import Fact
from .knowledge import Knowledge, KnowledgeError
from .page import Block, Page, Table, page
from .profile import TASKS
from .references import missing
from .words import value

TRUST = ("high", "moderate", "low")


class Nearness(NamedTuple):
    """How much of a study's setting is that of a problem; higher sorts first."""

    task: bool
    place: int  # 2 the same modality, 1 other images of the same dimensions, 0 neither
    matches: int  # further answers that are told on both sides and agree, less those that differ
    trust: int
    independent: bool
    year: int


def matching(knowledge: Knowledge, wanted: Mapping[str, str | None]) -> tuple[Study, ...]:
    """The studies that fit every filter that is given.

    Args:
        knowledge: The rule base.
        wanted: Values by `modality`, `task`, `method`, `paper` (part of an author, a title, an
            arXiv id or a DOI), `trust`, `dimensionality`, `label_regime`, `adaptation`,
            `independence`; None leaves a filter out.

    Raises:
        KnowledgeError: If there is no such modality, task, method or regime.
    """
    given = {name: each for name, each in wanted.items() if each is not None}
    for name, known in (
        ("modality", knowledge.modalities),
        ("task", TASKS),
        ("method", knowledge.methods),
        ("label_regime", knowledge.kinds.get("label_regime", ())),
    ):
        if name in given and given[name] not in known:
            raise KnowledgeError(missing(name.replace("_", " "), given[name], known))
    return tuple(
        study
        for study in knowledge.studies.values()
        if all(each.lower() in _words(study, name) for name, each in given.items())
    )


def _words(study: Study, name: str) -> Iterable[str] | str:
    """What a filter looks into: a text for a part of it, otherwise whole words."""
    paper = study.paper
    if name == "paper":
        named = (paper.first_author, str(paper.year), paper.title, paper.arxiv, paper.doi, study.id)
        return " ".join(filter(None, named)).lower()
    if name == "method":
        return {r.method or "" for r in study.results}
    if name in ("trust", "independence"):
        return {str(getattr(study, name))}
    told = getattr(study.setting, name)
    return told if isinstance(told, tuple) else {told or ""}


def listing(studies: Iterable[Study], everything: bool = True) -> Page:
    """A table of studies.

    Args:
        studies: From `matching`.
        everything: All of them, not only the first.
    """
    studies = tuple(studies)
    rows = tuple((s.id, _setting(s), _best(s), s.trust) for s in studies)
    shown = rows if everything else rows[:40]
    papers = len({_paper(s) for s in studies})
    counted = f"{len(rows)} comparison{'s' * (len(rows) != 1)} of {papers} paper"
    blocks: list[Block] = [Table(("id", "setting", "best", "trust"), shown, spare=("trust",))]
    if len(shown) < len(rows):
        blocks.append(f"... and {len(rows) - len(shown)} more: --all")
    return page(
        counted + "s" * (papers != 1),
        "medssl evidence show ID tells the numbers of one",
        [("Studies", blocks if rows else ["none fits; give fewer filters"])],
    )


def _setting(study: Study) -> str:
    told = study.setting
    words = (*told.modality[:2], *["..."] * (len(told.modality) > 2), *told.task)
    return " ".join(filter(None, (*words, told.dimensionality)))


def _paper(study: Study) -> str:
    return study.paper.arxiv or study.paper.doi or study.paper.url or study.id


def papers(studies: Iterable[Study]) -> int:
    """How many publications some studies are from.

    Args:
        studies: Comparisons, of which one paper may have several.
    """
    return len({_paper(s) for s in studies})


def _best(study: Study) -> str:
    first = next(iter(ranked(study)), None)
    return (first.method or shorten(first.reported_as, 24, placeholder=" ...")) if first else "-"


def ranked(study: Study) -> list[Result]:
    """The results, best first; where only an order was published, as listed.

    Args:
        study: A published comparison.
    """
    numbers = [r for r in study.results if not isinstance(r.score, str)]
    if len(numbers) < len(study.results):
        return list(study.results)
    up = study.metric.higher_is_better
    return sorted(numbers, key=lambda r: float(r.score), reverse=up)


def numbers(study: Study, method: str, knowledge: Knowledge) -> str:
    """What a study measured, as published: the method, the best other one, and the baselines.

    Args:
        study: A published comparison.
        method: Id of the method that it is about.
        knowledge: Says which methods are baselines.
    """
    order = ranked(study)
    own = [r for r in order if r.method == method]
    first = {r.score: i for i, r in reversed([*enumerate(order, 1)])}  # equal scores share a place
    told = [f"{_said(r)} ({_place(first[r.score])} of {len(order)})" for r in own[:2]]
    others = [r for r in order if r.method != method]
    told += [f"best other {_said(r)}" for r in others[:1]]
    told += [_said(r) for r in others[1:] if _baseline(r, knowledge)][:3]
    better = "" if study.metric.higher_is_better else ", lower is better"
    return f"{study.metric.name}{better}: {'; '.join(told)}"


def _said(result: Result) -> str:
    return f"{result.reported_as} {value(result.score)}"


def _place(number: int) -> str:
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 * (number % 100 not in (11, 12, 13)), "th")
    return f"{number}{suffix}"


def _baseline(result: Result, knowledge: Knowledge) -> bool:
    card = knowledge.methods.get(result.method or "")
    return card is not None and card.family == "baseline"


def mark(study: Study, method: str) -> str:
    """`+` where the method came first in a study, `-` where it stood in the lower half, else `•`.

    Args:
        study: A published comparison.
        method: Id of a method.
    """
    order = ranked(study)
    at = next((i for i, r in enumerate(order) if r.method == method), None)
    if at is None or len(order) < 2:
        return "•"
    first = order[0].score == order[at].score
    return "+" if first else "-" if 2 * at >= len(order) else "•"


def nearness(study: Study, facts: Mapping[str, Fact]) -> Nearness:
    """How comparable a study is with a problem.

    Args:
        study: A published comparison.
        facts: Facts of the profile.
    """
    told, matches = study.setting, 0
    for name in ("dimensionality", "adaptation", "label_regime", "backbone", "target_scale"):
        theirs, ours = getattr(told, name), facts.get(name)
        if theirs is not None and ours not in (None, "any"):
            matches += 1 if theirs == ours else -1
    same = told.dimensionality is not None and told.dimensionality == facts.get("dimensionality")
    return Nearness(
        task=facts["task"] in told.task,
        place=2 if facts["modality"] in told.modality else int(same),
        matches=matches,
        trust=-TRUST.index(study.trust),
        independent=study.independence == "independent",
        year=study.paper.year,
    )


def near(
    knowledge: Knowledge, method: str, facts: Mapping[str, Fact]
) -> Iterator[tuple[Nearness, Study]]:
    """Every study that measured a method, the most comparable first.

    Args:
        knowledge: The rule base.
        method: Id of the method.
        facts: Facts of the profile.
    """
    measured = matching(knowledge, {"method": method})
    pairs = [(nearness(study, facts), study) for study in measured]
    yield from sorted(pairs, key=lambda p: (p[0], p[1].id), reverse=True)
