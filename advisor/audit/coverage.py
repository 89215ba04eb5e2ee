"""What is advised in every situation, and on how much: modality x task x number of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from ..cards import Study
from ..facts import derive
from ..knowledge import Knowledge
from ..profile import CERTAINTIES, TASKS, Certainty, Profile
from ..scoring import APART, Standing, standings
from ..words import reads
from .baselines import BASELINES
from .grid import counts
from .lint import PLACE
from .tables import table

PICTURE = "coverage.svg"


class Cell(NamedTuple):
    """One situation of which nothing is known but modality, dimensionality, task and labels.

    Attributes:
        winner: The strategy in front; `tied` counts those that share its place.
        objective: The first that is no baseline; None where all are ruled out.
        rules: How many rules that read modality or task move the ranking here.
        studies: How many studies were made on this modality and task, and on no other
            dimensionality or label regime.
    """

    modality: str
    dimensionality: str
    task: str
    regime: str
    winner: str
    certainty: Certainty
    tied: int
    objective: str | None
    rules: int
    studies: int


def coverage(knowledge: Knowledge) -> tuple[Cell, ...]:
    """All cells: by modality and dimensionality, then by task, then by labels; made once and kept.

    Args:
        knowledge: The rule base.
    """
    return knowledge.once("coverage", lambda: tuple(_cells(knowledge)))


def _cells(knowledge: Knowledge) -> Iterator[Cell]:
    for card in knowledge.modalities.values():
        for dimensionality, task, (regime, labeled) in product(
            card.dimensionality, TASKS, counts(knowledge).items()
        ):
            profile = Profile.parse(
                {
                    "modality": card.id,
                    "dimensionality": dimensionality,
                    "task": task,
                    "labeled": labeled,
                }
            )
            yield _cell(knowledge, profile, regime)


def _cell(knowledge: Knowledge, asked: Profile, regime: str) -> Cell:
    facts = derive(asked, knowledge).values
    fired = frozenset(knowledge.evaluator("reference").fired(facts))
    ranked = standings(facts, fired, knowledge)
    best, moving = ranked[0], {v.rule for s in ranked for v in s.votes}
    level = [s for s in ranked if round(s.score - best.score, APART) == 0]
    return Cell(
        modality=asked.modality,
        dimensionality=str(asked.dimensionality),
        task=asked.task,
        regime=regime,
        winner=best.method,
        certainty=_certainty(knowledge, best),
        tied=len(level) - 1,
        objective=next((s.method for s in ranked if s.method not in BASELINES), None),
        rules=sum(reads(knowledge.rule[r].when, PLACE) for r in moving),
        studies=sum(_comparable(s, asked, regime) for s in knowledge.studies.values()),
    )


def _certainty(knowledge: Knowledge, best: Standing) -> Certainty:
    """That of its weightiest reason, as in an answer; answers take longer, for their what-ifs."""
    pro = ((v.weight, knowledge.rule[v.rule].certainty) for v in best.votes if v.verb == "prefer")
    known = ((weight, CERTAINTIES.index(c), c) for weight, c in pro if c)
    return max(known, default=(0.0, 0, "very-low"))[2]


def _comparable(study: Study, asked: Profile, regime: str) -> bool:
    """Whether a study was made in a situation; what it does not tell is taken to fit."""
    setting = study.setting
    return (
        asked.modality in setting.modality
        and asked.task in setting.task
        and setting.dimensionality in (None, asked.dimensionality)
        and setting.label_regime in (None, regime)
    )


def leaders(knowledge: Knowledge, task: str) -> Counter[str]:
    """The paradigms of the best objective over the cells of a task, baselines left aside.

    Args:
        knowledge: The rule base.
        task: One of the tasks.
    """
    cells = (c for c in coverage(knowledge) if c.task == task and c.objective)
    return Counter(knowledge.methods[str(c.objective)].paradigm for c in cells)


def markdown(knowledge: Knowledge) -> str:
    """The map as a page of tables, one for each modality.

    Args:
        knowledge: The rule base.
    """
    cells, regimes = coverage(knowledge), tuple(counts(knowledge))
    lines = [_HEAD.format(version=knowledge.version, picture=PICTURE, summary=_summary(knowledge))]
    for card in knowledge.modalities.values():
        rows = []
        for dimensionality, task in product(card.dimensionality, TASKS):
            here = {
                c.regime: _text(c)
                for c in cells
                if (c.modality, c.dimensionality, c.task) == (card.id, dimensionality, task)
            }
            rows.append([dimensionality, task, *(here[r] for r in regimes)])
        lines += [f"## {card.name}", "", *table(("images", "task", *regimes), rows)]
    return "\n".join(lines).rstrip() + "\n"


_HEAD = """\
# Coverage: what is advised where, and on how much

Rule base {version}; written by `make docs` from the files in `rules/`.

Every cell is one question of which only modality, dimensionality, task and the number of labelled
cases are known. It shows the strategy that ranks first (+n: so many others are tied with it), the
certainty of its weightiest reason, and in brackets two numbers: the rules on modality or task that
move the ranking there, and the studies of this modality and task that were made on no other
dimensionality or label regime. A paper can give several studies. Budget, network and the use of the
features change many of these answers: this is a map of the evidence, not a table to choose from.

![The strategies that rank first, coloured by certainty]({picture})

{summary}
"""


def _summary(knowledge: Knowledge) -> str:
    cells = coverage(knowledge)
    total = len(cells)
    certain = Counter(c.certainty for c in cells)
    shares = ", ".join(f"{name} {100 * n / total:.0f} %" for name, n in certain.most_common())
    none = sum(c.studies == 0 for c in cells)
    first = ", ".join(f"{m} {n}" for m, n in Counter(c.winner for c in cells).most_common())
    return (
        f"Of {total} cells {none} have no comparable study. Certainty: {shares}. First in so many "
        f"cells: {first}."
    )


def _text(cell: Cell) -> str:
    tied = f" +{cell.tied}" if cell.tied else ""
    return f"{cell.winner}{tied}, {cell.certainty} ({cell.rules}; {cell.studies})"
