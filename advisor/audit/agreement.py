"""How often the ranking agrees with published comparisons, beside simpler ways to order methods.

For every two methods that a study compared, the study's setting is asked as a profile: does our
score put the one first that did better? Ties count half, a method that is ruled out stands below
all that are ranked. All pairs of a paper are pooled, and papers count alike, so that one large
table does not decide. The rules were written with these papers in view: over all pairs it is
consistency that is measured. Nearer to accuracy on papers to come are two more rows: the pairs that
no deciding rule cites, and all pairs judged without the rules that rest on their paper alone.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from ..base import Disagreement
from ..knowledge import Knowledge
from ..scoring import competitors
from .baselines import BASELINES, abstract_as_rule, constant_order, held, wins
from .judging import Judged, judge
from .published import Pair, pairs

_DRAWS = 2000


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Tally(_Part):
    """Agreement over some pairs: the mean over papers of each paper's mean, in 0..1."""

    name: str
    papers: int
    pairs: int
    agreement: float


class Group(_Part):
    """One way to order methods beside the others, on the same pairs."""

    name: str
    papers: int
    pairs: int
    ours: float
    constant: float  # order fitted without the paper that it is judged on
    abstract: float


class Agreement(_Part):
    """The whole report."""

    version: str
    overall: Tally
    uncited: Tally  # pairs of papers that no rule which decides the pair cites
    set_aside: Tally  # all pairs; rules that rest on the pair's paper alone do not count
    low: float  # 95 % interval of the overall agreement, papers drawn with replacement
    high: float
    baselines: tuple[Tally, ...]
    groups: dict[str, tuple[Group, ...]]
    disagreements: tuple[Judged, ...]
    reasons: dict[str, Disagreement | None]  # of each study in them
    left_out: dict[str, str]


def agreement(knowledge: Knowledge | None = None) -> Agreement:
    """Compare the ranking, and three baselines, with all published pairs.

    Args:
        knowledge: Another rule base than the shipped one.
    """
    knowledge = knowledge or Knowledge.load()
    compared, left_out = pairs(knowledge)
    judged = judge(compared, knowledge)
    ours = [j.agrees for j in judged]
    free = [j for j in judged if not j.cited]
    aside = [j.agrees for j in judge(compared, knowledge, set_aside=True)]
    cards = competitors(knowledge)
    whole = constant_order(wins(compared)) if compared else ()
    unseen = _left_out_orders(compared)
    constant = [held(unseen[p.paper], p) for p in compared]
    abstract = [abstract_as_rule(p, cards) for p in compared]
    low, high = interval(compared, ours)
    wrong = tuple(j for j in judged if j.agrees < 1)
    return Agreement(
        version=knowledge.version,
        overall=_tally("this rule base", compared, ours),
        uncited=_tally(
            "this rule base, uncited papers only", [j.pair for j in free], [j.agrees for j in free]
        ),
        set_aside=_tally("this rule base, without rules of that paper alone", compared, aside),
        low=low,
        high=high,
        baselines=(
            _tally("chance", compared, [0.5] * len(compared)),
            _tally("one order for all, fitted", compared, [held(whole, p) for p in compared]),
            _tally("one order for all, paper left out", compared, constant),
            _tally("the review's abstract as a rule", compared, abstract),
        ),
        groups={
            name: _groups(key, compared, ours, constant, abstract) for name, key in _KEYS.items()
        },
        disagreements=wrong,
        reasons={j.pair.study: knowledge.study(j.pair.study).disagreement for j in wrong},
        left_out=left_out,
    )


def macro(compared: Sequence[Pair], values: Sequence[float]) -> float:
    """Mean over papers of the weighted mean of each paper's pairs.

    Args:
        compared: Published pairs; at least one.
        values: Agreement of each, 0..1.
    """
    papers = _by_paper(compared, values)
    return sum(papers) / len(papers)


def interval(compared: Sequence[Pair], values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of `macro`: papers are drawn with replacement, always the same draws.

    Args:
        compared: Published pairs.
        values: Agreement of each, 0..1.
    """
    papers, chosen = _by_paper(compared, values), random.Random(0)
    if not papers:
        return 0.0, 1.0
    means = sorted(sum(chosen.choices(papers, k=len(papers))) / len(papers) for _ in range(_DRAWS))
    return means[int(0.025 * _DRAWS)], means[int(0.975 * _DRAWS) - 1]


def _by_paper(compared: Sequence[Pair], values: Sequence[float]) -> list[float]:
    sums: dict[str, float] = defaultdict(float)
    weights: dict[str, float] = defaultdict(float)
    for pair, value in zip(compared, values, strict=True):
        sums[pair.paper] += pair.weight * value
        weights[pair.paper] += pair.weight
    return [sums[p] / weights[p] for p in sums]


def _tally(name: str, compared: Sequence[Pair], values: Sequence[float]) -> Tally:
    return Tally(
        name=name,
        papers=len({p.paper for p in compared}),
        pairs=round(sum(p.weight for p in compared)),
        agreement=macro(compared, values) if compared else 0.5,
    )


def _left_out_orders(compared: Sequence[Pair]) -> dict[str, tuple[str, ...]]:
    """For each paper the best constant order of all the others."""
    return {
        paper: constant_order(wins(p for p in compared if p.paper != paper))
        for paper in dict.fromkeys(p.paper for p in compared)
    }


def _kind(pair: Pair) -> str:
    """Orders against baselines are easy, those between two objectives are what is asked."""
    known = sum(name in BASELINES for name in (pair.better, pair.worse))
    return ("two objectives", "objective and baseline", "two baselines")[known]


_KEYS: dict[str, Callable[[Pair], str]] = {
    "compared": _kind,
    "task": lambda p: p.profile.task,
    "modality": lambda p: p.profile.modality,
    "dimensionality": lambda p: p.profile.dimensionality or "not told",
    "labels": lambda p: p.regime or "not told",
    "adaptation": lambda p: p.profile.adaptation or "not told",
    "trust": lambda p: p.trust,
}


def _groups(
    key: Callable[[Pair], str], compared: Sequence[Pair], *columns: Sequence[float]
) -> tuple[Group, ...]:
    found = []
    for name in sorted({key(p) for p in compared}):
        here = [i for i, p in enumerate(compared) if key(p) == name]
        some = [compared[i] for i in here]
        ours, constant, abstract = (macro(some, [each[i] for i in here]) for each in columns)
        count = _tally(name, some, [0.0] * len(some))
        found.append(
            Group(
                name=name,
                papers=count.papers,
                pairs=count.pairs,
                ours=ours,
                constant=constant,
                abstract=abstract,
            )
        )
    return tuple(found)


def render(report: Agreement, *, markdown: bool = True) -> str:
    """The report as tables.

    Args:
        report: From `agreement`.
        markdown: Markdown, or columns of plain text.
    """
    low, high = f"{100 * report.low:.1f}", f"{100 * report.high:.1f}"
    lines = _table(
        ("order of methods", "agreement %", "papers", "pairs"),
        [_row(t) for t in (report.overall, report.uncited, report.set_aside, *report.baselines)],
        markdown,
    )
    lines += ["", f"95 % interval of rule base {report.version} over papers: {low} to {high} %."]
    for name, groups in report.groups.items():
        heads = (name, "ours %", "one order %", "abstract %", "papers", "pairs")
        lines += ["", *_table(heads, [_group(g) for g in groups], markdown)]
    heads = ("study", "trust", "published better", "worse", "by", "our margin")
    disagreements = dict.fromkeys(_disagreement(j) for j in report.disagreements)
    lines += ["", *_table(heads, disagreements, markdown), "", *explained(report.reasons, markdown)]
    return "\n".join(lines)


def explained(reasons: Mapping[str, Disagreement | None], markdown: bool = True) -> list[str]:
    """A line for each study from which the ranking differs: the kind of difference, and why.

    Args:
        reasons: By the id of the study.
        markdown: A table of Markdown, or columns of plain text.
    """
    rows = [(id, r.kind, r.because) if r else (id, "-", "-") for id, r in reasons.items()]
    return _table(("study", "disagreement", "because"), rows, markdown)


def _row(t: Tally) -> tuple[str, str, int, int]:
    return t.name, _percent(t.agreement), t.papers, t.pairs


def _group(g: Group) -> tuple[object, ...]:
    return g.name, *map(_percent, (g.ours, g.constant, g.abstract)), g.papers, g.pairs


def _disagreement(judged: Judged) -> tuple[str, ...]:
    pair, margin = judged.pair, judged.margin
    gap = "order only" if pair.gap is None else f"{pair.gap:.3g}"
    ours = "ruled out" if margin is None else f"{margin:g}"
    return pair.study, pair.trust, pair.better, pair.worse, gap, ours


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]], markdown: bool) -> list[str]:
    cells = [list(heads), *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    if markdown:
        lines = [f"| {' | '.join(row)} |" for row in cells]
        lines.insert(1, "|" + " --- |" * len(heads))
    return [line.rstrip() for line in lines]


if __name__ == "__main__":
    sys.stdout.write(render(agreement(), markdown=False) + "\n")
