"""All methods by what they learn from, as a page."""

from __future__ import annotations

from collections.abc import Iterator

from ..cards import MethodCard
from ..knowledge import Knowledge
from ..profile import FAMILIES, PARADIGMS
from ..scoring import competitors
from .tables import publication, safe, table

_HEADS = ("method", "learns from", "needs", "small batches", "cost", "code licence", "script")


def markdown(knowledge: Knowledge) -> str:
    """The page.

    Args:
        knowledge: The rule base.
    """
    cards = knowledge.methods.values()
    scripts = sum(card.script is not None for card in cards)
    lines = [_HEAD.format(version=knowledge.version, methods=len(cards), scripts=scripts)]
    for paradigm in PARADIGMS:
        here = [card for card in cards if card.paradigm == paradigm]
        if here:
            lines += [f"## {'Baselines' if paradigm == 'none' else paradigm.capitalize()}", ""]
            lines += _families(knowledge, here)
    return "\n".join(lines).rstrip() + "\n"


_HEAD = """\
# Methods

Rule base {version}; written by `make docs` from `rules/methods/`. Of {methods} methods {scripts}
have a script template. `medssl explain <id>` tells settings, failure modes, rules and studies.

*Needs* is what a method is defined for: outside of it, the method is ruled out. *Small batches* is
how much it suffers from them. *Code licence* is that of the authors' code, as seen; the emitted
scripts use none of that code. *Script* is for what a script is emitted.
"""


def _families(knowledge: Knowledge, cards: list[MethodCard]) -> Iterator[str]:
    for family in FAMILIES:
        here = [card for card in cards if card.family == family]
        if not here:
            continue
        if family != "baseline":
            ranked = all(card.id in competitors(knowledge) for card in here)
            note = "" if ranked else " (need reports; not ranked, only named)"
            yield f"### {family}{note}"
            yield ""
        yield from table(_HEADS, [_row(card) for card in here])


def _row(card: MethodCard) -> tuple[str, ...]:
    sources = ", ".join(publication(s) for s in (card.source, *card.more))
    batch, licence = card.batch_sensitivity, card.licence
    return (
        f"**{safe(card.name)}** `{card.id}` {sources}",
        safe(card.pretext),
        _needs(card),
        batch.level if batch else "",
        safe(card.cost.relative) if card.cost else "",
        _licence(licence.code, licence.repository) if licence else "",
        _script(card),
    )


def _needs(card: MethodCard) -> str:
    needs = card.needs
    parts = [", ".join(needs.dimensionality), " or ".join(needs.backbone)]
    parts += [" or ".join(needs.tasks)] if needs.tasks else []
    parts += ["several views of a patient"] if needs.multi_view else []
    return "; ".join(parts)


def _licence(code: str, repository: str | None) -> str:
    return f"[{safe(code)}]({repository})" if repository else safe(code)


def _script(card: MethodCard) -> str:
    if card.script is None:
        return "no"
    covers = (card.script.dimensionality, card.script.task, card.script.backbone)
    return "; ".join(", ".join(each) for each in covers)
