"""Twenty realistic problems: who may lead, who may not, what must be said, what would change it.

A vignette is one file of `tests/vignettes`. `story` has two paragraphs: the situation as the
researcher tells it, and the choice as a senior colleague argues it. Beside the `profile` stand what
a reviewer of the field expects of the answer: the methods that may lead (`top`) and their paradigms
(`top_paradigm`), methods that must not be among the first three (`never`), rules that must warn
(`cautions`), and changes of the problem with the methods that then may lead (`changes`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from advisor import Knowledge, Profile, Recommendation, recommend

FILES = sorted((Path(__file__).parent / "vignettes").glob("*.yaml"))
KEYS = {"name", "story", "profile", "top", "top_paradigm", "never", "cautions", "changes"}
CALLED = {
    "public-checkpoint": "public",
    "imagenet": "ImageNet",
    "scratch": "scratch",
    "dense-contrast": "contrast between positions",
    "relative-position": "predicting position",
}


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def vignette(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One problem and what is expected of its answer."""
    content: dict[str, Any] = yaml.safe_load(request.param.read_text(encoding="utf-8"))
    assert set(content) == KEYS
    return content


@pytest.fixture(scope="module")
def answer(vignette: dict[str, Any]) -> Recommendation:
    return recommend(Profile.parse(vignette["profile"]))


def test_there_are_twenty_of_many_kinds() -> None:
    assert len(FILES) == 20
    profiles = [yaml.safe_load(path.read_text(encoding="utf-8"))["profile"] for path in FILES]
    assert len({profile["task"] for profile in profiles}) == 6
    assert len({profile["modality"] for profile in profiles}) >= 10


def test_two_paragraphs_tell_and_argue_it(vignette: dict[str, Any]) -> None:
    paragraphs = vignette["story"].strip().split("\n")
    assert len(paragraphs) == 2
    assert all(40 <= len(paragraph.split()) <= 160 for paragraph in paragraphs)
    for methods in (vignette["top"], *(change["top"] for change in vignette["changes"])):
        assert any(called(method) in paragraphs[1] for method in methods), methods


def called(method: str) -> str:
    return CALLED.get(method) or Knowledge.load().methods[method].name


def test_answer_is_what_a_reviewer_expects(
    vignette: dict[str, Any], answer: Recommendation
) -> None:
    first = answer.strategies[0]
    level = {first.method, *first.tied_with}
    assert level <= set(vignette["top"]), "others lead, or are level"
    assert first.paradigm in vignette["top_paradigm"], f"{first.method} leads"
    leading = {strategy.method for strategy in answer.strategies[:3]}
    assert not leading & set(vignette["never"])
    missing = set(vignette["cautions"]) - {caution.rule for caution in answer.cautions}
    assert not missing, "these rules should warn"


def test_what_must_not_lead_could_have_been_meant(vignette: dict[str, Any]) -> None:
    known = Knowledge.load()
    assert set(vignette["never"]) <= set(known.methods)
    assert not set(vignette["never"]) & set(vignette["top"])
    assert set(vignette["cautions"]) <= set(known.rule)


def test_changes_turn_the_answer_as_argued(vignette: dict[str, Any]) -> None:
    asked = Profile.parse(vignette["profile"])
    assert vignette["changes"]
    for change in vignette["changes"]:
        first = recommend(asked.changed(**change["with"])).strategies[0]
        assert {first.method, *first.tied_with} <= set(change["top"]), change["with"]


def test_leading_reasons_name_their_evidence(answer: Recommendation) -> None:
    speaking = [reason for reason in answer.strategies[0].reasons if reason.verb == "prefer"]
    assert speaking
    for reason in answer.strategies[0].reasons:
        assert reason.studies or reason.source, reason.rule
