"""What must hold of every answer: 200 drawn problems, and all of the grid that stands for the rest.

No tie in front that is not said, no method that cannot do what is asked, no reason without a
source.
"""

from __future__ import annotations

import random
import re

import pytest

from advisor import Knowledge, Recommendation, recommend
from advisor.audit.grid import answers, grid
from advisor.profile import Profile

SOURCED = re.compile(
    r"arXiv:\d{4}\.\d{4,5}|doi:10\.\d{4,9}/\S+|github\.com/[\w.-]+/[\w.-]+|https://\S+|choice"
)


@pytest.fixture(scope="module")
def shipped() -> Knowledge:
    return Knowledge.load()


def drawn(knowledge: Knowledge, count: int) -> list[Profile]:
    """Problems of which each further answer is unknown with even chances; always the same."""
    chance, every = random.Random(1), answers(knowledge)
    found: list[Profile] = []
    while len(found) < count:
        given = {name: chance.choice(values) for name, values in every.items() if values}
        known = {
            n: v for n, v in given.items() if n in ("modality", "task") or chance.random() < 0.5
        }
        card = knowledge.modalities[known["modality"]]
        if known.get("dimensionality") in (None, *card.dimensionality):
            found.append(Profile.parse({n: v for n, v in known.items() if v is not None}))
    return found


@pytest.fixture(scope="module")
def found(shipped: Knowledge) -> list[Recommendation]:
    return [recommend(profile, shipped, "reference") for profile in drawn(shipped, 200)]


def declares_its_ties(answer: Recommendation) -> None:
    first = answer.strategies[0]
    level = {s.method for s in answer.strategies if s.score == first.score}
    assert {first.method, *first.tied_with} == level
    if first.score > 0:
        assert answer.verdict.startswith("A tie between ") == (len(level) > 1)


def contradictions(method: str, profile: Profile, knowledge: Knowledge) -> list[str]:
    """What the method asks for and the problem is not, read off the cards anew."""
    needs = knowledge.methods[method].needs
    images = profile.dimensionality or knowledge.modalities[profile.modality].dimensionality[0]
    wrong = []
    if images not in needs.dimensionality:
        wrong.append(f"{method} on {images} images")
    if profile.backbone in ("cnn", "vit") and profile.backbone not in needs.backbone:
        wrong.append(f"{method} on a {profile.backbone}")
    if needs.tasks is not None and profile.task not in needs.tasks:
        wrong.append(f"{method} for {profile.task}")
    if needs.multi_view and profile.multi_view is False:
        wrong.append(f"{method} with one image a patient")
    return wrong


def test_two_hundred_answers_say_their_ties(found: list[Recommendation]) -> None:
    assert len(found) == 200
    for answer in found:
        declares_its_ties(answer)


def test_most_answers_name_one_strategy(found: list[Recommendation]) -> None:
    tied = sum(bool(answer.strategies[0].tied_with) for answer in found)
    assert tied <= 0.1 * len(found)


def test_two_hundred_answers_do_what_is_asked(
    found: list[Recommendation], shipped: Knowledge
) -> None:
    for answer in found:
        out = {ruled.method for ruled in answer.ruled_out}
        for strategy in answer.strategies:
            assert contradictions(strategy.method, answer.profile, shipped) == []
            assert strategy.method not in out
        assert all(ruled.because for ruled in answer.ruled_out)


def test_two_hundred_answers_give_a_source_for_everything(
    found: list[Recommendation], shipped: Knowledge
) -> None:
    for answer in found:
        for strategy in answer.strategies:
            for reason in strategy.reasons:
                assert reason.because
                assert reason.studies or any(map(SOURCED.search, reason.source)), reason.rule
                assert all(id in shipped.studies for id in (*reason.studies, *reason.against))
            for name, chosen in {**strategy.settings, **answer.common}.items():
                assert chosen.why and chosen.source, f"{strategy.method}: {name}"
        for caution in answer.cautions:
            rule = shipped.rule[caution.rule]
            assert caution.text and (rule.studies or rule.source), caution.rule


def test_every_profile_of_the_grid_gets_a_strategy_that_fits(shipped: Knowledge) -> None:
    for case in grid(shipped).cases:
        assert case.standings, case.profile
        for standing in case.standings:
            assert contradictions(standing.method, case.profile, shipped) == []
            assert not any(vote.verb == "exclude" for vote in standing.votes)


def test_every_reason_of_the_grid_has_a_source(shipped: Knowledge) -> None:
    speaking = {v.rule for case in grid(shipped).cases for s in case.standings for v in s.votes}
    assert len(speaking) > 80
    for rule in map(shipped.rule.__getitem__, speaking):
        assert rule.studies or any(map(SOURCED.search, rule.source)), rule.id


def test_ties_of_the_grid_are_said(shipped: Knowledge) -> None:
    tied = [
        case
        for case in grid(shipped).cases
        if len(case.standings) > 1
        and round(case.standings[0].score, 9) == round(case.standings[1].score, 9)
    ]
    assert 0 < len(tied) < 0.08 * len(grid(shipped).cases)
    for case in tied[:: max(1, len(tied) // 40)]:
        answer = recommend(case.profile, shipped, "reference")
        assert answer.strategies[0].tied_with
        declares_its_ties(answer)
