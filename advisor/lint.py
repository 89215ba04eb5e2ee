"""Everything that can be wrong in `rules/`, read in full: one line for each problem.

What an answer needs is checked on every load, by `advisor.references`; this file adds the rest, and
runs each rule's examples on the reference evaluator.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import RootModel

from . import reading
from .cards import Bands, MethodCard, ModalityCard, Rule, Setting, Study, Views
from .conditions import compile_when
from .engine import EngineRule, evaluator
from .facts import derive
from .folder import Folder
from .profile import CERTAINTIES, STRENGTHS, TASKS, Profile, ProfileError, nearest
from .ranges import Range
from .reading import KnowledgeError
from .references import Problem, advice, located, missing, of_packs

if TYPE_CHECKING:  # for annotations only: knowledge imports this file
    from .knowledge import Knowledge

FLIPS = ("left-right", "up-down", "front-back")
_STUDY_ID = re.compile(r"[a-z0-9-]+-(19|20)\d\d-[a-z0-9-]+")


class Network(RootModel[dict[str, Setting]]):
    """One item of `rules/networks.yaml`: the numbers of a network that scripts are made of."""


class _Report:
    """Collects lines; what cannot be read is one of them and stops only its own check."""

    def __init__(self, knowledge: Knowledge) -> None:
        self.knowledge = knowledge
        self.lines: list[str] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        try:
            yield
        except KnowledgeError as error:
            self.lines += error.lines

    def add(self, file: str | Path, name: str, found: Iterable[Problem]) -> None:
        path = self.knowledge.root / file
        self.lines += located(self.knowledge, path, ((loc, name, what) for loc, what in found))


def problems(knowledge: Knowledge) -> list[str]:
    """Everything that is wrong in any file of a rule base.

    Args:
        knowledge: The rule base.

    Returns:
        Lines `file:line: item: field: what`.
    """
    report = _Report(knowledge)
    for name in ("methods", "modalities", "studies", "advice"):
        for root in knowledge.roots:
            if root == knowledge.root or (root / name).exists():  # all are optional in a pack
                report.lines += _listing(knowledge, root / name)
    _single_files(report)
    _folder(report, "methods", knowledge.methods, _method)
    _folder(report, "modalities", knowledge.modalities, _modality)
    _folder(report, "studies", knowledge.studies, _study)
    _advice(report)
    with report.step():
        report.lines += of_packs(knowledge)
    return list(dict.fromkeys(report.lines))  # a broken card is met again by each of its rules


def _listing(knowledge: Knowledge, folder: Path) -> list[str]:
    """A folder that is missing, and files in it that nothing would ever read."""
    shown = knowledge.shown(folder)
    if not folder.is_dir():
        return [f"{shown}: the folder is missing"]
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    stray = (name for name in names if not name.endswith(".yaml"))
    return [f"{shown}/{name}: not read; a file here is named <id>.yaml" for name in stray]


def _single_files(report: _Report) -> None:
    knowledge = report.knowledge
    with report.step():
        _ = knowledge.version
    with report.step():
        report.add("findings.yaml", "", _twice(f.id for f in knowledge.list_findings()))
    with report.step():
        _ = knowledge.protocol
    with report.step():
        _ = knowledge.checkpoints
    with report.step():
        path = knowledge.root / "networks.yaml"
        reading.parse_mapping(path, knowledge.shown(path), Network)
    with report.step():
        path = knowledge.root / "ranges.yaml"
        reading.parse_list(path, knowledge.shown(path), Range)
    with report.step():
        report.add("scale.yaml", "", _weights(knowledge))
    with report.step():
        report.add("facts.yaml", "", _twice(b.fact for b in knowledge.bands))
        for i, bands in enumerate(knowledge.bands):
            found = (((i, *loc), what) for loc, what in _bands(bands, knowledge.kinds))
            report.add("facts.yaml", bands.fact, found)


def _twice(ids: Iterable[str]) -> Iterator[Problem]:
    seen = set[str]()
    for i, id in enumerate(ids):
        if id in seen:
            yield (i,), f"{id}: given twice"
        seen.add(id)


def _bands(bands: Bands, kinds: Mapping[str, Any]) -> Iterator[Problem]:
    if kinds.get(bands.source_fact) != "number":
        numbers = [k for k, kind in kinds.items() if kind == "number"]
        yield ("from",), f"from: {missing('number', bands.source_fact, numbers)}"
    edges = [b.below for b in bands.bands]
    closed = [e for e in edges[:-1] if e is not None]
    if edges[-1] is not None or len(closed) < len(edges) - 1 or closed != sorted(set(closed)):
        yield ("bands",), "bands: 'below' must rise from band to band and be left out of the last"


def _weights(knowledge: Knowledge) -> Iterator[Problem]:
    for field, names in (("strength", STRENGTHS), ("certainty", CERTAINTIES)):
        given: Mapping[str, float] = getattr(knowledge.scale, field)
        weights = [given.get(name, 0.0) for name in names]
        if min(weights) <= 0 or weights != sorted(weights, reverse=True):
            yield (field,), f"{field}: numbers above 0, none rising, for {', '.join(names)}"


def _folder(
    report: _Report,
    name: str,
    cards: Folder[Any],
    check: Callable[[Knowledge, Any], Iterator[Problem]],
) -> None:
    for id in cards:
        with report.step():
            report.add(cards.path(id), id, check(report.knowledge, cards[id]))


def _method(knowledge: Knowledge, card: MethodCard) -> Iterator[Problem]:
    for i, each in enumerate((card.source, *card.more)):
        if (each.arxiv is None) == (each.doi is None):
            yield ("more", i - 1) if i else ("source",), "source: one of arxiv and doi is needed"
    for i, mode in enumerate(card.failure_modes):
        if _STUDY_ID.fullmatch(mode.source) and mode.source not in knowledge.studies:
            what = missing("study", mode.source, knowledge.studies)
            yield ("failure_modes", i, "source"), f"failure_modes.{i}.source: {what}"
    if card.script is None:
        return
    for field, has, may in (
        ("dimensionality", card.script.dimensionality, card.needs.dimensionality),
        ("backbone", card.script.backbone, card.needs.backbone),
        ("task", card.script.task, card.needs.tasks or TASKS),
    ):
        for name in (n for n in has if n not in may):
            yield ("script", field), f"script.{field}: {name!r} is not among the method's needs"


def _modality(_: Knowledge, card: ModalityCard) -> Iterator[Problem]:
    low, high = card.intensity.low, card.intensity.high
    if card.intensity.mode != "unit":
        if low is None or high is None or low >= high:
            yield ("intensity",), "intensity: low and high are needed, low below high"
        elif card.intensity.mode == "percentile" and not 0 <= low < high <= 100:
            yield ("intensity",), "intensity: percentiles lie within 0 and 100"
    flips = card.views.flips.value
    for flip in flips if isinstance(flips, tuple) else (flips,):
        if flip not in FLIPS:
            what = f"{flip!r} is not one of {', '.join(FLIPS)}{nearest(flip, FLIPS)}"
            yield ("views", "flips"), f"views.flips: {what}"
    numbers = [n for n in Views.model_fields if n != "flips"]
    values = [(("views", n), getattr(card.views, n).value) for n in numbers]
    values += [(("physics", n), s.value) for n, s in card.physics.items()]
    for loc, value in [*values, (("spacing_mm",), card.spacing_mm.value)]:
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            yield loc, f"{'.'.join(loc)}: {value!r} is not a number of 0 or more"


def _study(knowledge: Knowledge, study: Study) -> Iterator[Problem]:
    if not (study.paper.arxiv or study.paper.doi or study.paper.url):
        yield ("paper",), "paper: one of arxiv, doi and url is needed"
    for i, result in enumerate(study.results):
        if result.method is not None and result.method not in knowledge.methods:
            what = missing("method", result.method, knowledge.methods)
            yield ("results", i, "method"), f"results.{i}.method: {what}"
    regimes = knowledge.kinds.get("label_regime", ())
    named = study.setting
    for field, names, known in (
        ("modality", named.modality, knowledge.modalities),
        ("task", named.task, TASKS),
        ("label_regime", () if named.label_regime is None else (named.label_regime,), regimes),
    ):
        for name in (n for n in names if n not in known):
            yield ("setting", field), f"setting.{field}: {missing(field, name, known)}"


def _advice(report: _Report) -> None:
    knowledge = report.knowledge
    for path in knowledge.listed():
        with report.step():
            wrong = advice(knowledge, path)
            report.lines += wrong
            for i, rule in enumerate(() if wrong else knowledge.parsed(path)):
                found = (((i, *loc), what) for loc, what in _examples(knowledge, rule))
                report.add(path, rule.id, found)


def _examples(knowledge: Knowledge, rule: Rule) -> Iterator[Problem]:
    """Each example fires, or does not, on the reference evaluator."""
    compiled = EngineRule(rule.id, compile_when(rule.when, knowledge.kinds).branches)
    fired = evaluator([compiled], "reference").fired
    for key, given in (("fires", rule.examples.fires), ("not", rule.examples.misses)):
        for i, example in enumerate(given):
            what = ""
            try:
                profile = Profile.parse(example)
                knowledge.check(profile)
            except ProfileError as error:
                what = str(error)
            else:
                if bool(fired(derive(profile, knowledge).values)) != (key == "fires"):
                    what = "the rule does not fire" if key == "fires" else "the rule fires here"
            if what:
                yield ("examples", key, i), f"examples.{key}.{i}: {what}"
