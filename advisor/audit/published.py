"""Published comparisons as pairs: of two methods, which one did better, and in what situation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, product
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from ..cards import Bands, MethodCard, Result, Study
from ..knowledge import Knowledge
from ..profile import Profile
from ..scoring import competitors

CHECKPOINT = "public-checkpoint"  # stands for no objective but for weights that must be to be had


class Pair(BaseModel):
    """Two methods that a study compared, in one of the situations that it covers.

    Attributes:
        weight: 1 / number of situations, so that each published pair counts once.
        gap: How far apart the published scores are, in the study's unit; None for a mere order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    paper: str
    study: str
    trust: str
    profile: Profile
    regime: str | None
    better: str
    worse: str
    gap: float | None
    weight: float


class Pairs(NamedTuple):
    """All pairs, and the studies that give none, with the reason."""

    pairs: tuple[Pair, ...]
    left_out: dict[str, str]


def pairs(knowledge: Knowledge) -> Pairs:
    """Every pair of mapped results of every study, in the order of the files.

    Args:
        knowledge: The rule base with its studies.
    """
    found: list[Pair] = []
    left_out: dict[str, str] = {}
    cards = competitors(knowledge)
    for id in knowledge.study_ids:
        study = knowledge.study(id)
        compared = tuple(ordered(study, cards))
        profiles = tuple(situations(study, knowledge))
        if not compared:
            left_out[id] = "no two results of methods that are ranked here"
        elif not profiles:
            left_out[id] = "the study names no single modality and task"
        for (good, bad, gap), profile in product(compared, profiles):
            found.append(
                Pair(
                    paper=paper(study),
                    study=id,
                    trust=study.trust,
                    profile=profile,
                    regime=study.setting.label_regime,
                    better=good,
                    worse=bad,
                    gap=gap,
                    weight=1 / len(profiles),
                )
            )
    return Pairs(tuple(found), left_out)


def paper(study: Study) -> str:
    """The publication behind a study, one text for all its studies.

    Args:
        study: One published comparison.
    """
    return study.paper.arxiv or study.paper.doi or study.paper.url or study.id


def ordered(
    study: Study, cards: Mapping[str, MethodCard]
) -> Iterator[tuple[str, str, float | None]]:
    """Better method, worse method and the gap, for each two results that differ.

    Results in words are listed best first; equal words are a tie and give no pair. A method that
    was tried in several variants is represented by its best: variants stand on both sides of
    other methods, so that as they are they would contradict each other.

    Args:
        study: One published comparison.
        cards: The methods that are ranked.
    """
    for first, second in combinations(_best(study, cards), 2):
        if first.score == second.score:
            continue
        gap = _gap(first, second, study.metric.higher_is_better)
        if gap is not None and gap < 0:
            first, second, gap = second, first, -gap
        yield str(first.method), str(second.method), gap


def _best(study: Study, cards: Mapping[str, MethodCard]) -> list[Result]:
    """The best result of each method that is ranked, in the order of the study."""
    found: dict[str, Result] = {}
    for result in study.results:
        if result.method in cards:
            known = found.setdefault(str(result.method), result)
            if (_gap(result, known, study.metric.higher_is_better) or 0) > 0:
                found[str(result.method)] = result
    return list(found.values())


def _gap(first: Result, second: Result, higher_is_better: bool) -> float | None:
    if isinstance(first.score, str) or isinstance(second.score, str):
        return None
    gap = float(first.score) - float(second.score)
    return gap if higher_is_better else -gap


def situations(study: Study, knowledge: Knowledge) -> Iterator[Profile]:
    """The profiles that a study's setting describes: one for each of its modalities and tasks.

    Nothing is guessed: what the setting leaves open is unknown in the profile. Public weights are
    allowed where the study used some, and there were several views where a method needed them.

    Args:
        study: One published comparison.
        knowledge: The bands, which tell a label count for a regime.
    """
    setting = study.setting
    used = {r.method for r in study.results}
    views = any(card.needs.multi_view for id, card in competitors(knowledge).items() if id in used)
    for modality, task in product(setting.modality, setting.task):
        yield Profile.parse(
            {
                "modality": modality,
                "task": task,
                "dimensionality": setting.dimensionality,
                "backbone": setting.backbone,
                "adaptation": setting.adaptation,
                "target_scale": setting.target_scale,
                "labeled": _count(setting.label_regime, knowledge.bands),
                "public_weights": "any" if CHECKPOINT in used else None,
                "multi_view": views or None,
            }
        )


def _count(regime: str | None, bands: Iterable[Bands]) -> int | None:
    """A number of labels in the middle of a regime, on a logarithmic scale."""
    low = 0.0
    for band in next(b.bands for b in bands if b.fact == "label_regime"):
        high = band.below or 4 * low
        if band.name == regime:
            return int(math.sqrt(low * high))
        low = high
    return None
