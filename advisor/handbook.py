"""One page on any one thing in `rules/`: a method, a modality, a rule, a study or a finding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel

from .cards import Finding, MethodCard, ModalityCard, Reference, Rule, Selector, Setting, Study
from .knowledge import Knowledge, KnowledgeError
from .page import Block, Item, Page, Table, page, shortened
from .profile import PARADIGMS, nearest
from .words import condition, mentions, value

_FEW = 8  # entries of a section, where a page is to be short


class Entry(NamedTuple):
    """One thing that has a page."""

    kind: str  # method, modality, rule, study or finding
    item: BaseModel


def find(knowledge: Knowledge, name: str) -> Entry:
    """What an id names.

    Args:
        knowledge: The rule base.
        name: Id of a method, modality, rule, study or finding; upper and lower case are equal.

    Raises:
        KnowledgeError: If nothing has this id, with the nearest one that exists.
    """
    known: dict[str, Mapping[str, BaseModel]] = {
        "method": knowledge.methods,
        "modality": knowledge.modalities,
        "finding": knowledge.findings,
        "rule": knowledge.rule,
        "study": knowledge.studies,
    }
    for kind, items in known.items():
        for id in (name, name.lower(), name.upper()):
            if id in items:
                return Entry(kind, items[id])
    if name.startswith("needs:"):  # how an answer calls what a card asks for
        raise KnowledgeError(f"{name} stands on a method's card; `medssl explain METHOD` shows it")
    near = nearest(name, (id for items in known.values() for id in items))
    hint = near or "; `medssl methods` and `medssl modalities` list what there is"
    raise KnowledgeError(f"nothing is called {name!r}{hint}")


def show(knowledge: Knowledge, entry: Entry, *, everything: bool = True) -> Page:
    """The page of one thing.

    Args:
        knowledge: The rule base.
        entry: What `find` found.
        everything: Every study, not only the first few.
    """
    makers: dict[str, Any] = dict(
        method=_method, modality=_modality, finding=_finding, rule=_rule, study=_study
    )
    made: Page = makers[entry.kind](knowledge, entry.item)
    return made if everything else shortened(made, _FEW)


def listing(knowledge: Knowledge, kind: str) -> Page:
    """A table of all methods or all modalities.

    Args:
        knowledge: The rule base.
        kind: `methods` or `modalities`.
    """
    if kind == "modalities":
        columns: tuple[str, ...] = ("id", "name", "images", "channels", "public weights")
        named = [m for weights in knowledge.checkpoints for m in weights.modality]
        rows = tuple(
            (
                c.id,
                c.name,
                " ".join(c.dimensionality),
                value(c.channels.value),
                str(named.count(c.id)),
            )
            for c in knowledge.modalities.values()
        )
        table = Table(columns, rows, columns[3:])
        return page(f"{len(rows)} kinds of images", "", [("Modalities", [table])])
    cards = sorted(knowledge.methods.values(), key=lambda c: PARADIGMS.index(c.paradigm))
    columns = ("id", "name", "family", "images", "network", "script")
    sections: dict[str, list[tuple[str, ...]]] = {}
    for c in cards:
        images, networks = " ".join(c.needs.dimensionality), " ".join(c.needs.backbone)
        row = (c.id, c.name, c.family, images, networks, "yes" if c.script else "-")
        sections.setdefault(c.paradigm, []).append(row)
    tables = [
        (name, [Table(columns, tuple(rows), spare=("name",))]) for name, rows in sections.items()
    ]
    return page(f"{len(cards)} methods", "by what they learn from", tables)


def _reference(source: Reference) -> str:
    return f"arXiv:{source.arxiv}" if source.arxiv else f"doi:{source.doi}"


def _setting(name: str, setting: Setting) -> Item:
    return Item(f"{name} = {value(setting.value)}: {setting.why}", setting.source)


def _citing(knowledge: Knowledge, ids: Iterable[str], mark: str = "•") -> list[Block]:
    """What studies found; those of one paper that found the same stand together."""
    found: dict[str, list[str]] = {}
    for id in ids:
        found.setdefault(knowledge.study(id).finding, []).append(id)
    return [Item(finding, ", ".join(same), mark) for finding, same in found.items()]


def _method(knowledge: Knowledge, card: MethodCard) -> Page:
    sources = ", ".join(_reference(s) for s in (card.source, *card.more))
    studies = [s.id for s in knowledge.studies.values() if card.id in {r.method for r in s.results}]
    settings = [_setting(name, s) for name, s in card.settings.items()]
    seen = [
        Item(f"{p.domain}: " + ", ".join(f"{n} {value(v)}" for n, v in p.values.items()), p.source)
        for p in card.published
    ]
    cost = [Item(card.cost.relative, card.cost.source)] if card.cost else []
    licence = [Item(card.licence.code, card.licence.repository or "")] if card.licence else []
    failures = [Item(f.text, f.source, "!") for f in card.failure_modes]
    return page(
        f"{card.name} ({card.id}): {card.title}",
        f"{card.paradigm} · {card.family} · {sources}",
        [
            ("What it learns from", [card.pretext]),
            ("What it needs", _needs(card)),
            ("Rules that favour it", _naming(knowledge, card.id, "prefer", "+")),
            ("Rules that speak against it", _naming(knowledge, card.id, "avoid", "-")),
            ("Rules that rule it out", _naming(knowledge, card.id, "exclude", "-")),
            ("How it fails", failures),
            ("What it costs", cost),
            ("Settings", settings),
            ("Settings seen elsewhere", seen),
            ("Licence of the authors' code", licence),
            (f"Studies that measured it ({len(studies)})", _citing(knowledge, studies)),
        ],
    )


def _needs(card: MethodCard) -> list[Block]:
    needs, script = card.needs, card.script
    said = f"{' or '.join(needs.dimensionality)}; {' or '.join(needs.backbone)}"
    said += f"; for {' or '.join(needs.tasks)}" if needs.tasks else ""
    said += "; several views of each patient" if needs.multi_view else ""
    blocks: list[Block] = [Item(f"{said}. {needs.because}")]
    if card.batch_sensitivity:
        batch = card.batch_sensitivity
        blocks.append(Item(f"Sensitivity to small batches: {batch.level}. {batch.because}"))
    if script:
        covers = (script.dimensionality, script.task, script.backbone)
        blocks.append(Item("A script is emitted for " + "; ".join(" or ".join(c) for c in covers)))
    else:
        blocks.append(Item("No script is emitted for it."))
    return blocks


def _naming(knowledge: Knowledge, method: str, verb: str, mark: str) -> list[Block]:
    """Rules that name a method under a verb."""
    return [
        Item(f"{rule.because} When {condition(rule.when)}.", _weight(rule), mark)
        for rule in knowledge.rules
        if method in knowledge.expand(getattr(rule, verb))
    ]


def _weight(rule: Rule) -> str:
    said = [str(rule.strength or ""), f"{rule.certainty} certainty" if rule.certainty else ""]
    return " · ".join(part for part in (rule.id, ", ".join(filter(None, said))) if part)


def _rule(knowledge: Knowledge, rule: Rule) -> Page:
    finding = knowledge.findings.get(rule.finding or "")
    return page(
        rule.because,
        f"rule {_weight(rule)}",
        [
            ("When", [condition(rule.when)]),
            ("Then", _verbs(knowledge, rule)),
            ("Review", [Item(finding.statement, finding.id)] if finding else []),
            ("Studies", _citing(knowledge, rule.studies, "+")),
            ("Sources", [Item(source) for source in rule.source]),
            ("Studies that point the other way", _citing(knowledge, rule.against, "-")),
            ("Fires for", [Item(_partial(p)) for p in rule.examples.fires]),
            ("Does not fire for", [Item(_partial(p)) for p in rule.examples.misses]),
        ],
    )


def _partial(answers: Mapping[str, Any]) -> str:
    return " · ".join(f"{name} {value(v)}" for name, v in answers.items())


def _verbs(knowledge: Knowledge, rule: Rule) -> list[Block]:
    """What a rule advises, selectors spelled out."""
    blocks: list[Block] = []
    for verb, targets in (
        ("prefer", rule.prefer),
        ("avoid", rule.avoid),
        ("exclude", rule.exclude),
    ):
        if targets:
            note = ", ".join(" ".join(_selector(t)) for t in targets if isinstance(t, Selector))
            blocks.append(Item(f"{verb} {', '.join(knowledge.expand(targets))}", note))
    only = f"for {', '.join(knowledge.expand(rule.only_for))}" if rule.only_for else ""
    blocks += [Item(f"set {name} = {value(v)}", only) for name, v in rule.sets.items()]
    if rule.caution:
        blocks.append(Item(rule.because if rule.caution is True else rule.caution, mark="!"))
    return blocks


def _selector(selector: Selector) -> list[str]:
    return [f"{n} {v}" for n, v in selector.model_dump(exclude_none=True).items()]


def _modality(knowledge: Knowledge, card: ModalityCard) -> Page:
    intensity = card.intensity
    span = "" if intensity.low is None else f" {value(intensity.low)} to {value(intensity.high)}"
    reading = [
        _setting("channels", card.channels),
        Item(f"intensity = {intensity.mode}{span}: {intensity.why}", intensity.source),
        _setting("spacing_mm", card.spacing_mm),
    ]
    steps = {"distort": card.distort, "frame": card.frame, "pictures": card.pictures}
    reading += [_setting(name, part) for name, part in steps.items() if part]
    views = [_setting(name, getattr(card.views, name)) for name in type(card.views).model_fields]
    views += [_setting(name, setting) for name, setting in card.physics.items()]
    weights: Sequence[Block] = [
        Item(c.told(), f"{c.licence} · {c.source}", "+" if c.permissive else "-")
        for c in knowledge.checkpoints
        if card.id in c.modality
    ]
    rules = [r for r in knowledge.rules if mentions(r.when, card.id)]
    studies = [s.id for s in knowledge.studies.values() if card.id in s.setting.modality]
    return page(
        f"{card.name} ({card.id})",
        " or ".join(card.dimensionality),
        [
            ("How images are read", reading),
            ("Random views", views),
            ("Safe", [Item(f"{a.what}: {a.why}", a.source, "+") for a in card.safe]),
            ("Unsafe", [Item(f"{a.what}: {a.why}", a.source, "-") for a in card.unsafe]),
            ("Public weights", weights or ["none known"]),
            ("Notes", [Item(n.text, n.source) for n in card.notes]),
            ("Rules that speak of it", [Item(r.because, _weight(r)) for r in rules]),
            (f"Studies on it ({len(studies)})", _citing(knowledge, studies)),
        ],
    )


def _finding(knowledge: Knowledge, found: Finding) -> Page:
    rules: list[Block] = [
        Item(r.because, _weight(r)) for r in knowledge.rules if r.finding == found.id
    ]
    asks: list[Block] = [found.asks]
    sections = [("What it asks for", asks), ("Rules that encode it", rules or ["none"])]
    return page(found.statement, f"finding {found.id} · {found.version}", sections)


def _study(knowledge: Knowledge, study: Study) -> Page:
    paper = study.paper
    where = f"arXiv:{paper.arxiv}" if paper.arxiv else f"doi:{paper.doi}" if paper.doi else ""
    given = study.setting.model_dump(exclude_none=True)
    setting = [Item(f"{name}: {value(v)}") for name, v in given.items()]
    better = "higher is better" if study.metric.higher_is_better else "lower is better"
    columns = ("reported as", "method", "paradigm", study.metric.name)
    rows = tuple(
        (r.reported_as, r.method or "-", r.paradigm or "-", value(r.score)) for r in study.results
    )
    seen = study.source.kind.replace("_", " ")
    results: list[Block] = [Table(columns, rows, (study.metric.name,)), better]
    using = [
        (r, m)
        for r in knowledge.rules
        for m in "+-"
        if study.id in (r.studies, r.against)[m == "-"]
    ]
    return page(
        paper.title,
        " · ".join(filter(None, [f"{paper.first_author} {paper.year}", paper.venue or "", where])),
        [
            ("Found", [study.finding]),
            ("But", [study.caveat] if study.caveat else []),
            ("The ranking differs", [str(study.disagreement)] if study.disagreement else []),
            ("Setting", [*setting, Item(f"data: {study.dataset}")]),
            ("Results", results if rows else []),
            ("Trust", [f"{study.trust}; {study.independence}; {seen}"]),
            ("Source", [study.source.url]),
            ("Rules that cite it", [Item(r.because, _weight(r), mark) for r, mark in using]),
        ],
    )
