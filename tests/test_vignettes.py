"""Twenty realistic problems: who may lead, who may not, and which warnings must be given.

A vignette is one file of `tests/vignettes`: `name`, `story`, `profile`, and what a reviewer of the
field expects of the answer: the paradigms of which the leading strategy may be (`top_paradigm`),
methods that must not be among the first three (`never`), and rules that must warn (`cautions`).
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from advisor import Profile, recommend

FILES = sorted((Path(__file__).parent / "vignettes").glob("*.yaml"))
KEYS = {"name", "story", "profile", "top_paradigm", "never", "cautions"}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def vignette(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One problem and what is expected of its answer."""
    content: dict[str, Any] = yaml.safe_load(request.param.read_text(encoding="utf-8"))
    assert set(content) == KEYS
    return content


def test_there_are_twenty() -> None:
    assert len(FILES) == 20


def test_answer_is_what_a_reviewer_expects(vignette: dict[str, Any]) -> None:
    answer = recommend(Profile.parse(vignette["profile"]))
    first = answer.strategies[0]
    assert first.paradigm in vignette["top_paradigm"], f"{first.method} leads"
    leading = {strategy.method for strategy in answer.strategies[:3]}
    assert not leading & set(vignette["never"])
    missing = set(vignette["cautions"]) - {caution.rule for caution in answer.cautions}
    assert not missing, "these rules should warn"


def test_leading_reasons_name_their_evidence(vignette: dict[str, Any]) -> None:
    answer = recommend(Profile.parse(vignette["profile"]))
    for reason in answer.strategies[0].reasons:
        assert reason.studies or reason.source, reason.rule
