"""Answers in, a frozen profile or one clear line out."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from advisor.profile import REQUIRED, TASKS, Profile, ProfileError, question, questions

LEAST: dict[str, Any] = {"modality": "ct", "task": "segmentation"}
OPTIONAL = [name for name in Profile.model_fields if name not in REQUIRED]


@pytest.mark.parametrize("name", OPTIONAL)
@pytest.mark.parametrize("unknown", ["unknown", None])
def test_everything_but_modality_and_task_may_be_unknown(name: str, unknown: str | None) -> None:
    assert Profile.parse({**LEAST, name: unknown}) == Profile.parse(LEAST)
    assert getattr(Profile.parse(LEAST), name) is None


@pytest.mark.parametrize(
    ("answers", "line"),
    [
        ({"labeled": -3}, "labeled: -3 is not allowed: a whole number, 0 or more"),
        ({"labeled": 2.5}, "labeled: 2.5 is not allowed: a whole number, 0 or more"),
        ({"labeled": True}, "labeled: True is not allowed: a whole number, 0 or more"),
        ({"labeled": "many"}, "labeled: 'many' is not allowed: a whole number, 0 or more"),
        ({"classes": 1}, "classes: 1 is not allowed: a whole number, 2 or more"),
        ({"image_size": 7}, "image_size: 7 is not allowed: a whole number, 8 or more"),
        ({"hours": 0}, "hours: 0 is not allowed: a number above 0"),
        ({"hours": float("inf")}, "hours: inf is not allowed: a number above 0"),
        ({"gpu_memory_gb": "nan"}, "gpu_memory_gb: 'nan' is not allowed: a number above 0"),
        ({"multilabel": "maybe"}, "multilabel: 'maybe' is not allowed: yes or no"),
        ({"labels": 3}, "labels: there is no such field; did you mean 'labeled'?"),
        ({"backbone": "cn"}, "backbone: 'cn' is not one of cnn, vit, any; did you mean 'cnn'?"),
        (
            {"task": "segmentaton"},
            f"task: 'segmentaton' is not one of {', '.join(TASKS)}; did you mean 'segmentation'?",
        ),
        ({"task": "unknown"}, f"task: 'unknown' is not one of {', '.join(TASKS)}"),
        (
            {"labeled": 10**30},
            f"labeled: {10**30} is not allowed: a whole number, 0 or more, at most 1000000000",
        ),
    ],
)
def test_a_wrong_answer_gives_one_line(answers: dict[str, Any], line: str) -> None:
    with pytest.raises(ProfileError) as error:
        Profile.parse({**LEAST, **answers})
    assert str(error.value) == line


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("answers", [{}, {"modality": None, "task": None}])
def test_modality_and_task_must_be_known(name: str, answers: dict[str, Any]) -> None:
    known = {k: v for k, v in LEAST.items() if k != name}
    with pytest.raises(ProfileError, match=f"^{name}: missing; it cannot be unknown: ") as error:
        Profile.parse({**answers, **known})
    assert "\n" not in str(error.value)


def test_a_profile_is_a_mapping() -> None:
    with pytest.raises(ProfileError, match="named answers"):
        Profile.parse([1])  # type: ignore[arg-type]
    with pytest.raises(ProfileError, match="1: there is no such field"):
        Profile.parse({**LEAST, 1: 2})  # type: ignore[dict-item]


def test_numbers_and_switches_may_come_as_text() -> None:
    profile = Profile.parse({**LEAST, "labeled": "40", "hours": "1.5", "multilabel": "yes"})
    assert (profile.labeled, profile.hours, profile.multilabel) == (40, 1.5, True)


def test_a_profile_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Profile.parse(LEAST).labeled = 3  # type: ignore[misc]


def test_a_profile_survives_json() -> None:
    profile = Profile.parse({**LEAST, "labeled": 40, "hours": 1.5, "domain_shift": False})
    assert Profile.model_validate_json(profile.model_dump_json()) == profile
    assert Profile.parse(json.loads(profile.model_dump_json())) == profile


def test_changed_checks_like_parse_and_leaves_the_first_alone() -> None:
    profile = Profile.parse(LEAST)
    assert profile.changed(labeled=4).labeled == 4
    assert profile.labeled is None
    with pytest.raises(ProfileError, match=r"^labeled: -1 is not allowed"):
        profile.changed(labeled=-1)


def test_every_field_is_asked_in_full_and_in_order() -> None:
    asked = questions()
    assert [q.name for q in asked] == list(Profile.model_fields)
    for each in asked:
        assert each.question.endswith("?"), each.name
        assert each.help.endswith("."), each.name
        assert bool(each.unit) == (each.kind in ("whole", "number")), each.name
    assert [q.name for q in asked if q.required] == list(REQUIRED)


def test_questions_know_choices_and_kinds() -> None:
    assert question("task").choices == TASKS
    assert question("backbone").choices == ("cnn", "vit", "any")
    assert question("labeled").kind == "whole"
    assert question("hours").kind == "number"
    assert question("multi_view").kind == "yes-no"
    assert question("modality").kind == "text"


def test_the_schema_carries_the_questions() -> None:
    schema = Profile.model_json_schema()
    assert set(schema["properties"]) == set(Profile.model_fields)
    assert schema["properties"]["labeled"]["question"] == question("labeled").question
    assert schema["required"] == list(REQUIRED)
    assert schema["additionalProperties"] is False
