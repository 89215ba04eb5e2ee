"""Our answer to each published pair, and whether a rule that gave it cites the pair's own paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from ..cards import Rule
from ..facts import derive
from ..knowledge import Knowledge
from ..scoring import APART, Standing, Vote, standings, votes
from .published import Pair, paper

Ranked = Mapping[str, Standing]


class Judged(BaseModel):
    """One published pair with our answer.

    Attributes:
        margin: Our score of the better method minus that of the worse; None where one is ruled out.
        agrees: 1, 0, or half for a tie.
        cited: Whether a rule that treats the two differently cites the paper, for or against.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    pair: Pair
    margin: float | None
    agrees: float
    cited: bool


def judge(
    compared: Sequence[Pair], knowledge: Knowledge, *, set_aside: bool = False
) -> list[Judged]:
    """Our order of each pair; each situation is ranked once.

    Args:
        compared: Published pairs.
        knowledge: The rule base; its reference evaluator is asked.
        set_aside: Judge each pair without the rules that rest on its paper alone.
    """
    fired = knowledge.evaluator("reference").fired
    cites, alone = _citing(knowledge), _alone(knowledge) if set_aside else {}
    known: dict[tuple[str, str], tuple[frozenset[str], Ranked]] = {}
    found = []
    for pair in compared:
        key = pair.profile.model_dump_json(), pair.paper if pair.paper in alone else ""
        if key not in known:
            facts = derive(pair.profile, knowledge).values
            rules = frozenset(fired(facts)) - alone.get(pair.paper, frozenset())
            known[key] = rules, {s.method: s for s in standings(facts, rules, knowledge)}
        rules, ranked = known[key]
        deciding = _deciding(pair, rules, knowledge)
        found.append(_judged(pair, ranked, any(pair.paper in cites[r] for r in deciding)))
    return found


def _judged(pair: Pair, ranked: Ranked, cited: bool) -> Judged:
    better, worse = ranked.get(pair.better), ranked.get(pair.worse)
    if better is None or worse is None:
        agrees = 0.5 if better is worse else float(better is not None)
        return Judged(pair=pair, margin=None, agrees=agrees, cited=cited)
    margin = round(better.score - worse.score, APART)
    agrees = 0.5 if margin == 0 else float(margin > 0)
    return Judged(pair=pair, margin=margin, agrees=agrees, cited=cited)


def _deciding(pair: Pair, fired: frozenset[str], knowledge: Knowledge) -> set[str]:
    """The fired rules that do not do the same to both methods."""
    table = votes(knowledge)

    def effects(method: str) -> set[Vote]:
        return {v for v in table.get(method, ()) if v.rule in fired}

    return {v.rule for v in effects(pair.better) ^ effects(pair.worse)}


def _citing(knowledge: Knowledge) -> dict[str, frozenset[str]]:
    """The papers that each rule cites, whichever way they point."""
    return {r.id: _papers((*r.studies, *r.against), knowledge) for r in knowledge.rules}


def _alone(knowledge: Knowledge) -> dict[str, frozenset[str]]:
    """For each paper the rules that no other paper and no finding of the review supports."""
    found: dict[str, set[str]] = {}
    for rule in knowledge.rules:
        papers = _papers(rule.studies, knowledge)
        if len(papers) == 1 and not _elsewhere(rule):
            found.setdefault(next(iter(papers)), set()).add(rule.id)
    return {name: frozenset(rules) for name, rules in found.items()}


def _elsewhere(rule: Rule) -> bool:
    return bool(rule.finding or rule.source)


def _papers(ids: Iterable[str], knowledge: Knowledge) -> frozenset[str]:
    return frozenset(paper(knowledge.study(id)) for id in ids)
