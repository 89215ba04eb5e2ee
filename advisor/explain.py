"""An answer in words: the page shown in the terminal, and the plain lines that head a script.

Pages on single cards, rules and studies are built by `handbook`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from .page import Block, Command, Item, Page, Table, cut, page, plain
from .profile import Profile
from .words import options, value

if TYPE_CHECKING:  # a page is built of answers, it makes none
    from .answer import PackUsed, Reason, Recommendation, Strategy

HEADER_WIDTH = 96  # the script's lines are 100 wide and start with "# "
_FEW = 5
_NEEDS = "needs:"  # how an answer calls what a method's card asks for
_SAID = {
    "2d": "2D images",
    "3d": "3D images",
    "video": "films",
    "cnn": "a CNN",
    "vit": "a vision transformer",
}


def answer(found: Recommendation, *, everything: bool = False) -> Page:
    """The answer on one page, best strategy first.

    Args:
        found: The recommendation.
        everything: Every strategy and every reason instead of the first few.
    """
    top = found.strategies[0] if found.strategies else None
    few = None if everything else _FEW
    sections: list[tuple[str, Sequence[Block]]] = [("Strategies", _strategies(found, few))]
    if top:
        name = top.name if top.name.lower() == top.method else f"{top.name} ({top.method})"
        sections += [
            (f"Why {name}", reasons(top, "+", few)),
            ("What speaks against it", [*reasons(top, "-", few), *_contrary(top, few)]),
            ("What the rules set", _settings(found, top, few)),
        ]
    also = [Item(a.because, a.method) for a in found.also_consider]
    sections += [
        (
            "Keep in mind",
            cut([Item(c.text, _from(c.rule, c.studies), "!") for c in found.cautions], few),
        ),
        ("Ruled out", ruled_out(found, everything)),
        ("What would change the answer", what_if(found)),
        ("Also consider", also if everything else []),
        ("Rule packs", [Item(pack_line(p)) for p in found.knowledge.packs]),
        ("Next", _next(found, top)),
    ]
    return page(found.verdict, problem(found.profile), sections)


def problem(profile: Profile) -> str:
    """The answers on one line.

    Args:
        profile: The answers; of the unknown ones only their number is told.
    """
    known = profile.model_dump(exclude_none=True)
    unknown = len(type(profile).model_fields) - len(known)
    said = [value(known.pop("modality")), value(known.pop("task"))]
    said += [f"{name} {value(v)}" for name, v in known.items()]
    return " · ".join([*said, f"{unknown} unknown"] if unknown else said)


def pack_line(pack: PackUsed) -> str:
    """A rule pack on one line: name, version, hash, and what it replaced.

    Args:
        pack: From the answer's provenance.
    """
    version = f" {pack.version}" if pack.version else ""
    overrides = f"; overrides {', '.join(pack.overrides)}" if pack.overrides else ""
    return f"{pack.name}{version}, sha256 {pack.sha256[:12]}{overrides}"


def _strategies(found: Recommendation, few: int | None) -> Sequence[Block]:
    columns = ("#", "method", "paradigm", "score", "certainty", "for", "against", "script")
    shown = found.strategies[:few]
    rows = []
    for each in shown:
        verbs = [r.verb for r in each.reasons]
        counts = [str(verbs.count(v) or "") for v in ("prefer", "avoid")]
        script = "yes" if each.emits else "-"
        score = f"{each.score:.2f}"
        rows.append(
            (found.place(each), each.method, each.paradigm, score, each.certainty, *counts, script)
        )
    spare = ("paradigm", "script", "for", "against", "certainty", "score")
    blocks: list[Block] = [Table(columns, tuple(rows), ("#", "score", "for", "against"), spare)]
    if any(each.tied_with for each in shown):
        blocks.append("= tied: the evidence here does not tell these apart")
    if more := len(found.strategies) - len(shown):
        blocks.append(f"... and {more} more: --all")
    return blocks


def reasons(strategy: Strategy, sign: str, few: int | None) -> Sequence[Block]:
    """The reasons for a strategy or against it, the weightiest first.

    Args:
        strategy: One of the answer.
        sign: `+` for those in favour, `-` for the others.
        few: How many to show; None for all.
    """
    verb = "prefer" if sign == "+" else "avoid"
    kept = sorted((r for r in strategy.reasons if r.verb == verb), key=lambda r: -abs(r.weight))
    return cut([Item(r.because, _note(r), sign) for r in kept], few)


def _note(reason: Reason) -> str:
    weight = f"{reason.weight:+.2f} {reason.strength}, {reason.certainty} certainty"
    note = f"{weight} · {_from(reason.rule, [*reason.studies, *reason.source])}"
    doubted = reason.verb == "avoid" and reason.against
    return f"{note} · but see {_short(reason.against)}" if doubted else note


def _from(rule: str, sources: Iterable[str]) -> str:
    """Where a sentence is from: the rule, and what the rule rests on."""
    return " · ".join(filter(None, [rule, _short(sources)]))


def _short(sources: Iterable[str]) -> str:
    """At most three names; of more, two and how many are left."""
    named = list(sources)
    if len(named) > 3:
        named[2:] = [f"and {len(named) - 2} more"]
    return ", ".join(named)


def _contrary(strategy: Strategy, few: int | None) -> Sequence[Block]:
    """Studies that a reason for the strategy has against itself."""
    items = [
        Item(f"Against {r.rule}: {_short(r.against)}", mark="-")
        for r in strategy.reasons
        if r.verb == "prefer" and r.against
    ]
    return cut(items, few)


def _settings(found: Recommendation, top: Strategy, few: int | None) -> Sequence[Block]:
    """Only what a rule changed; the rest is in the script and in `--format json`."""
    every = {**found.common, **top.settings}
    items = [
        Item(f"{name} = {value(s.value)}: {s.why}", s.rule) for name, s in every.items() if s.rule
    ]
    return cut(items, few)


def ruled_out(found: Recommendation, everything: bool) -> Sequence[Block]:
    """What may not compete and why.

    Args:
        found: The answer.
        everything: One entry a method, not one a reason.
    """
    if everything:
        return [Item(f"{r.method}: {r.because}", _rule(r.rule)) for r in found.ruled_out]
    groups: dict[str, list[Any]] = {}
    for each in found.ruled_out:
        groups.setdefault(each.rule, []).append(each)
    blocks: list[Block] = []
    for rule, group in groups.items():
        names = ", ".join(each.method for each in group)
        reasons = {each.because for each in group}
        why = reasons.pop() if len(reasons) == 1 else _in_short(found, rule)
        blocks.append(Item(f"{names}: {why}" if why else names, _rule(rule)))
    return blocks


def _rule(rule: str) -> str:
    """The id of a rule to look up; what a method's card asks for is no rule."""
    return "" if rule.startswith(_NEEDS) else rule


def _in_short(found: Recommendation, rule: str) -> str:
    """What the cards of several methods ask for alike, each in words of its own."""
    need = rule.removeprefix(_NEEDS) if rule.startswith(_NEEDS) else ""
    if need == "multi_view":
        return "needs several images of one patient"
    given = found.facts.values.get({"tasks": "task"}.get(need, need))
    return f"not for {_SAID.get(str(given), value(given))}" if given else ""


def what_if(found: Recommendation) -> Sequence[Block]:
    """The smallest changes of the problem that put another method first.

    Args:
        found: The answer.
    """
    rows = []
    for each in found.what_if:
        change = " and ".join(f"{n} {value(v)}" for n, v in each.change.items())
        now = " and ".join(value(getattr(found.profile, n)) for n in each.change)
        rows.append((change, now, each.winner))
    columns = ("with", "instead of", "first is")
    return [Table(columns, tuple(rows), spare=("instead of",))] if rows else []


def _next(found: Recommendation, top: Strategy | None) -> Sequence[Block]:
    if top is None:
        return []
    commands: list[Block] = [
        Command(f"medssl explain {top.method}"),
        Command(f"medssl recommend {options(found.profile)} --why"),
    ]
    emitted = next((s for s in found.strategies if s.emits), None)
    if emitted is None:
        return [*commands, "There is no script template for this problem yet."]
    if emitted is not top:
        commands.append(
            f"No script for {top.method} here; the first that has one: {emitted.method}"
        )
    again = ["Rule packs that are not installed have to be named again, with --rules."]
    packs = again if found.knowledge.packs else []
    return [*commands, Command(f"medssl generate {options(found.profile)}"), *packs]


def header_lines(found: Recommendation, method: str) -> list[str]:
    """What stands at the head of a script: problem, reasons, doubts, and which knowledge said so.

    Args:
        found: The recommendation.
        method: Id of the strategy that the script is for.

    Returns:
        Plain lines of at most 96 characters, without line breaks or control characters.
    """
    lines: list[str] = []
    for title, texts in _header(found, next(s for s in found.strategies if s.method == method)):
        lines += ["", f"{title}:"] if title else []
        for text in texts:
            # ids stay whole, so that they can be searched for
            lines += wrap(
                plain(text), HEADER_WIDTH, subsequent_indent="    ", break_on_hyphens=False
            )
    return [line.rstrip() for line in lines]


def _header(found: Recommendation, chosen: Strategy) -> Iterator[tuple[str, list[str]]]:
    answers = found.profile.model_dump()
    known = [f"{n} {value(v)}" for n, v in answers.items() if v is not None]
    unknown = [n for n, v in answers.items() if v is None]
    knowledge = found.knowledge
    yield (
        "",
        [
            f"Strategy: {chosen.name} ({chosen.method}), {chosen.paradigm}; rank {chosen.rank} of "
            f"{len(found.strategies)}, score {chosen.score:.2f}, {chosen.certainty} certainty",
            *([f"Tied with: {', '.join(chosen.tied_with)}"] if chosen.tied_with else []),
            f"Problem: {'; '.join(known)}",
            *([f"Unknown: {', '.join(unknown)}"] if unknown else []),
            f"Knowledge: {knowledge.version}, sha256 {knowledge.sha256}",
            *(f"Rule pack: {pack_line(p)}" for p in knowledge.packs),
        ],
    )
    yield "Why this method", _argued(chosen, "prefer") or ["- no rule speaks for it here"]
    against = _argued(chosen, "avoid")
    for reason in chosen.reasons:
        if reason.verb == "prefer" and reason.against:
            against.append(f"- against {reason.rule}: {', '.join(reason.against)}")
    yield "What speaks against it", against or ["- no rule and no listed study"]
    if found.cautions:
        yield "Keep in mind", [f"- {c.text} [{c.rule}]" for c in found.cautions]


def _argued(chosen: Strategy, verb: str) -> list[str]:
    return [
        f"- {r.because} [{r.rule}: {r.strength}, {r.certainty} certainty]"
        + (f", but see {', '.join(r.against)}" if verb == "avoid" and r.against else "")
        for r in sorted(chosen.reasons, key=lambda r: -abs(r.weight))
        if r.verb == verb
    ]
