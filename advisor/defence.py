"""The long form of an answer for one method: all that a thesis or a reviewer asks for.

Why this method, what speaks against it, how good the evidence is, what comparable studies measured,
why none of the others, what would turn the answer, and what to report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from . import evidence
from .explain import pack_line, problem, reasons, ruled_out, what_if
from .knowledge import Knowledge, KnowledgeError
from .page import Block, Item, Page, cut, page
from .references import missing
from .scoring import APART
from .words import value

if TYPE_CHECKING:  # a page is built of answers, it makes none
    from .answer import Recommendation, Strategy
    from .cards import Study

_FEW = 6
_RIVALS = 4
_REPORTED = {
    "test_share": "Share of patients held out",
    "seeds": "Repetitions",
    "label_fractions": "Shares of the labels",
    "bootstrap_samples": "Draws of the bootstrap interval",
    "probe_neighbours": "Neighbours of the k-NN probe on frozen features",
}


def defence(
    found: Recommendation, knowledge: Knowledge, method: str, *, everything: bool = False
) -> Page:
    """The case for and against one method.

    Args:
        found: The answer.
        knowledge: The rule base it is from: its studies are read.
        method: Id of the method.
        everything: Every study, not the first few of each sort.

    Raises:
        KnowledgeError: If there is no such method, with the nearest one.
    """
    if method not in knowledge.methods:
        raise KnowledgeError(missing("method", method, knowledge.methods))
    chosen = next((s for s in found.strategies if s.method == method), None)
    few = None if everything else _FEW
    own: list[tuple[str, Sequence[Block]]] = []
    if chosen:
        own = [
            ("Why this method", _for(knowledge, chosen)),
            ("What speaks against it", _against(knowledge, chosen)),
            ("How good the evidence is", _evidence(found, knowledge, chosen)),
        ]
    ends: list[tuple[str, Sequence[Block]]] = [
        ("Why none of the others", list(_others(found, chosen)) if chosen else []),
        ("What was ruled out", ruled_out(found, True)),
        ("What would change the answer", [*what_if(found), *_pillars(found)]),
        ("What to report", list(_report(found, knowledge))),
    ]
    studies = _comparable(found, knowledge, method, few)
    return page(_title(found, knowledge, method), problem(found.profile), [*own, *studies, *ends])


def _title(found: Recommendation, knowledge: Knowledge, method: str) -> str:
    chosen = next((s for s in found.strategies if s.method == method), None)
    name = f"{knowledge.methods[method].name} ({method})"
    if chosen is None:
        because = " ".join(r.because for r in found.ruled_out if r.method == method)
        return f"{name} is ruled out here: {because or 'it needs reports beside the images.'}"
    tied = f", tied with {', '.join(chosen.tied_with)}" if chosen.tied_with else ""
    return (
        f"{name}: rank {chosen.rank} of {len(found.strategies)}{tied}, "
        f"score {chosen.score:.2f}, certainty {chosen.certainty}"
    )


def _for(knowledge: Knowledge, chosen: Strategy) -> list[Block]:
    """The reasons, and what the review says where one of them encodes it."""
    ids = (r.finding for r in chosen.reasons if r.verb == "prefer" and r.finding)
    said = [
        Item(f"The review: {knowledge.findings[id].statement}", id)
        for id in dict.fromkeys(ids)
        if id in knowledge.findings
    ]
    return [*reasons(chosen, "+", None), *said] or ["No rule speaks for it here."]


def _against(knowledge: Knowledge, chosen: Strategy) -> list[Block]:
    blocks: list[Block] = [*reasons(chosen, "-", None)]
    contrary = _cited(chosen, "against")
    for id in contrary:
        study = knowledge.study(id)
        blocks.append(Item(f"{_called(study)}: {study.finding}", _of(study), "-"))
    failures = knowledge.methods[chosen.method].failure_modes
    blocks += [Item(f.text, f.source, "!") for f in failures]
    return blocks or ["No rule, no listed study and no known way of failing."]


def _cited(chosen: Strategy, field: str) -> list[str]:
    """The studies behind the reasons for a method, or against these reasons; each once."""
    told = (id for r in chosen.reasons if r.verb == "prefer" for id in getattr(r, field))
    return list(dict.fromkeys(told))


def _evidence(found: Recommendation, knowledge: Knowledge, chosen: Strategy) -> list[Block]:
    behind = [knowledge.study(id) for id in _cited(chosen, "studies")]
    contrary = [knowledge.study(id) for id in _cited(chosen, "against")]
    blocks: list[Block] = [
        Item(f"Certainty {chosen.certainty}: that of the weightiest reason for it.")
    ]
    if behind:
        trust = ", ".join(
            f"{sum(s.trust == t for s in behind)} of {t} trust"
            for t in evidence.TRUST
            if any(s.trust == t for s in behind)
        )
        alone = sum(s.independence == "independent" for s in behind)
        blocks.append(
            Item(
                f"The reasons for it rest on {len(behind)} comparisons of "
                f"{evidence.papers(behind)} papers: {trust}; {alone} not by the authors of a "
                f"method that they compare. {len(contrary)} comparisons point the other way."
            )
        )
    blocks.append(Item(_record(found, knowledge, chosen.method)))
    return [*blocks, Item(_margin(found, chosen))]


def _record(found: Recommendation, knowledge: Knowledge, method: str) -> str:
    """How often the method came first where the task is the same."""
    same = [s for n, s in evidence.near(knowledge, method, found.facts.values) if n.task]
    here = [s for s in same if found.profile.modality in s.setting.modality]
    told = []
    for studies, where in ((here, "this modality"), (same, "any modality")):
        first = sum(evidence.mark(s, method) == "+" for s in studies)
        told.append(f"{first} of {len(studies)} on {where}")
    return f"Published comparisons of this task in which it came first: {'; '.join(told)}."


def _margin(found: Recommendation, chosen: Strategy) -> str:
    top = found.strategies[0]
    if chosen.score < top.score:
        return f"It is {top.score - chosen.score:.2f} behind {top.name}, which ranks first."
    after = next((s for s in found.strategies if s.score < chosen.score), None)
    if after is None:
        return "No strategy has a lower score."
    return f"It is {chosen.score - after.score:.2f} ahead of {after.name}, the next that is behind."


def _comparable(
    found: Recommendation, knowledge: Knowledge, method: str, few: int | None
) -> Iterator[tuple[str, Sequence[Block]]]:
    """What studies measured, as published, the most comparable first."""
    task, modality = found.profile.task, knowledge.modalities[found.profile.modality].name
    groups: dict[str, list[Study]] = {
        f"Published numbers: {task}, {modality}": [],
        f"Published numbers: {task}, other images of the same dimensions": [],
        "Published numbers: further away": [],
    }
    names = list(groups)
    for nearness, study in evidence.near(knowledge, method, found.facts.values):
        groups[names[2 - nearness.place if nearness.task else 2]].append(study)
    if not any(groups.values()):
        yield names[0], ["No listed study measured this method."]
    legend = "+ it came first there; - it stood in the lower half"
    for name, studies in groups.items():
        far = name == names[2] and few is not None
        items = [_measured(knowledge, study, method) for study in studies]
        title = f"{name} ({len(items)})"
        yield title, [legend, *cut(items, 2 if far else few)] if items else []


def _measured(knowledge: Knowledge, study: Study, method: str) -> Item:
    told = evidence.numbers(study, method, knowledge)
    caveat = f" But: {study.caveat}" if study.caveat else ""
    labels = f" [{study.setting.labels}]" if study.setting.labels else ""
    text = f"{_called(study)}, {study.dataset}{labels}. {told}.{caveat}"
    return Item(text, _of(study), evidence.mark(study, method))


def _called(study: Study) -> str:
    author = study.paper.first_author
    named = author != "not seen"  # of some sources only the title is known
    return f"{author if named else study.paper.title} {study.paper.year}"


def _of(study: Study) -> str:
    paper = study.paper
    link = f"arXiv:{paper.arxiv}" if paper.arxiv else f"doi:{paper.doi}" if paper.doi else ""
    told = (study.id, link, f"{study.trust} trust", study.independence)
    return " · ".join(filter(None, told))


def _others(found: Recommendation, chosen: Strategy) -> Iterator[Block]:
    """For the best of the other strategies: the reasons that it and the chosen one do not share."""
    ours = [(r.rule, r.verb) for r in chosen.reasons]
    for rival in [s for s in found.strategies if s is not chosen][:_RIVALS]:
        theirs = [(r.rule, r.verb) for r in rival.reasons]
        told = [f"{rival.name}, rank {rival.rank}, score {rival.score:.2f}."]
        for verb, words in (("prefer", "favour"), ("avoid", "speak against")):
            mine = [rule for rule, said in ours if said == verb and (rule, said) not in theirs]
            its = [rule for rule, said in theirs if said == verb and (rule, said) not in ours]
            if mine:
                told.append(f"Rules that {words} {chosen.name} only: {', '.join(mine)}.")
            if its:
                told.append(f"Rules that {words} {rival.name} only: {', '.join(its)}.")
        if len(told) == 1:
            told.append("The same rules speak for and against both: nothing here tells them apart.")
        yield Item(" ".join(told), rival.method)


def _pillars(found: Recommendation) -> Iterator[Block]:
    """Rules without which another method would lead: where to look for better evidence."""
    leaders = {s.method for s in found.strategies if s.score == found.strategies[0].score}
    rules = dict.fromkeys(r.rule for s in found.strategies[:1] for r in s.reasons)
    for rule in rules:
        without = {
            s.method: round(math.fsum(r.weight for r in s.reasons if r.rule != rule), APART)
            for s in found.strategies
        }
        best = max(without.values())
        new = [id for id, score in without.items() if score == best]
        if not leaders & set(new):
            yield Item(f"Without the rule {rule}, {_few(new)} would come first.")


def _few(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 4 else f"{', '.join(names[:3])} and others"


def _report(found: Recommendation, knowledge: Knowledge) -> Iterator[Block]:
    """What makes the result believable, with the source of each demand."""
    for name, words in _REPORTED.items():
        if name in found.common:
            number = found.common[name]
            yield Item(f"{words}: {value(number.value)}. {number.why}", number.source)
    yield from _baselines(found, knowledge)
    for caution in found.cautions:
        yield Item(caution.text, " · ".join((caution.rule, *caution.studies)), "!")
    used = found.knowledge
    yield Item(f"The advice itself: knowledge {used.version}, sha256 {used.sha256[:12]}.")
    yield from (Item(f"Rule pack: {pack_line(p)}") for p in used.packs)


def _baselines(found: Recommendation, knowledge: Knowledge) -> Iterable[Item]:
    """What to compare with: every baseline that is not ruled out, whatever its rank."""
    for each in found.strategies:
        if each.family == "baseline":
            card = knowledge.methods[each.method]
            source = card.source
            link = f"arXiv:{source.arxiv}" if source.arxiv else f"doi:{source.doi}"
            text = f"Baseline {each.name} on the same split: rank {each.rank}. {card.pretext}"
            yield Item(text, link)
    weights = [c for c in knowledge.checkpoints if found.profile.modality in c.modality]
    for point in weights if found.profile.public_weights != "none" else ():
        if point.permissive or found.profile.public_weights != "permissive":
            yield Item(f"Public weights: {point.name}, {point.covers}", point.source)
