"""The studies, found and shown, and the long case for a method that rests on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tiny import rule, tiny

from advisor import Knowledge, KnowledgeError, recommend
from advisor.audit.agreement import Agreement
from advisor.cards import Study
from advisor.cli import main
from advisor.defence import defence
from advisor.evidence import mark, matching, near, numbers, ranked
from advisor.page import markdown, text

KNOWLEDGE = Knowledge.load()
CT = ["--modality", "ct", "--task", "segmentation", "--labeled", "40"]
PROBLEMS: list[dict[str, Any]] = [
    {"modality": "ct", "task": "segmentation", "labeled": 40, "unlabeled": 3000},
    {"modality": "xray", "task": "classification", "labeled": 90_000},
    {"modality": "ultrasound", "task": "regression", "dimensionality": "video"},
    {"modality": "mri", "task": "registration", "public_weights": "none"},
]


def run(*args: str) -> Result:
    result = CliRunner().invoke(main, list(args), env={"COLUMNS": "80"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# --- evidence list

FILTERS: list[tuple[str, str, Callable[[Study], bool]]] = [
    ("modality", "ct", lambda s: "ct" in s.setting.modality),
    ("task", "segmentation", lambda s: "segmentation" in s.setting.task),
    ("method", "mae", lambda s: any(r.method == "mae" for r in s.results)),
    ("dimensionality", "3d", lambda s: s.setting.dimensionality == "3d"),
    ("label-regime", "few-shot", lambda s: s.setting.label_regime == "few-shot"),
    ("adaptation", "frozen", lambda s: s.setting.adaptation == "frozen"),
    ("trust", "high", lambda s: s.trust == "high"),
    ("independence", "independent", lambda s: s.independence == "independent"),
    ("paper", "HAGHIGHI", lambda s: s.paper.first_author == "Haghighi"),
    ("paper", "2102.10680", lambda s: s.paper.arxiv == "2102.10680"),
]


@pytest.mark.parametrize(("name", "value", "fits"), FILTERS)
def test_a_filter_keeps_what_fits_and_nothing_else(
    name: str, value: str, fits: Callable[[Study], bool]
) -> None:
    shown = json.loads(run("evidence", "list", f"--{name}", value, "--format", "json").stdout)
    wanted = [id for id in KNOWLEDGE.study_ids if fits(KNOWLEDGE.study(id))]
    found = [each["id"] for each in shown]
    assert set(wanted) <= set(found) if name == "paper" else wanted == found
    assert 0 < len(found) < len(KNOWLEDGE.study_ids)


def test_filters_add_up_and_the_table_fits_the_terminal() -> None:
    args = ("evidence", "list", "--modality", "ct", "--method", "mae", "--trust", "moderate")
    shown = run(*args).stdout
    both = matching(KNOWLEDGE, {"modality": "ct", "method": "mae", "trust": "moderate"})
    assert both and all(study.id in "".join(shown.split()) for study in both)
    assert max(map(len, shown.splitlines())) <= 80
    assert run(*args, "--format", "markdown").stdout.startswith("# ")


def test_a_long_list_is_cut_and_counts_what_it_leaves_out() -> None:
    short = run("evidence", "list").stdout
    assert f"... and {len(KNOWLEDGE.study_ids) - 40} more: --all" in short
    assert len(run("evidence", "list", "--all").stdout) > len(short)


def test_nothing_found_is_said() -> None:
    assert "none fits" in run("evidence", "list", "--paper", "no such author").stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("list", "--method", "maee"), "no method 'maee'; did you mean 'mae'?"),
        (("list", "--modality", "mri2"), "no modality 'mri2'; did you mean 'mri'?"),
        (("list", "--label-regime", "few"), "no label regime 'few'"),
        (("list", "--trust", "full"), "full"),
        (("show", "wald-2025"), "there is no study 'wald-2025'"),
        (("show",), "ID"),
    ],
)
def test_a_mistake_is_told_in_one_line(args: tuple[str, ...], words: str) -> None:
    result = run("evidence", *args)
    assert result.exit_code == 2 and result.stdout == ""
    assert words in result.stderr and len(result.stderr.splitlines()) == 1


# --- evidence show, evidence agree


def test_a_study_is_shown_with_every_number() -> None:
    for id in KNOWLEDGE.study_ids[::25]:
        study = KNOWLEDGE.study(id)
        shown = run("evidence", "show", id).stdout
        assert study.paper.first_author in shown and study.source.url.split("/")[2] in shown
        for result in study.results:
            assert f"{result.score:g}" in shown if isinstance(result.score, float) else True
        data = json.loads(run("evidence", "show", id, "--format", "json").stdout)
        assert data["kind"] == "study" and data["id"] == id


def test_agreement_is_shown_in_both_forms() -> None:
    Agreement.model_validate_json(run("evidence", "agree", "--format", "json").stdout)
    assert "this rule base" in run("evidence", "agree").stdout


def test_a_group_without_a_command_shows_what_there_is() -> None:
    result = run("evidence")
    assert result.exit_code == 0 and "agree" in result.stdout and result.stderr == ""


# --- numbers in words


def test_numbers_are_those_published() -> None:
    study = KNOWLEDGE.study("haghighi-2021-transvw-lcs")
    said = numbers(study, "models-genesis", KNOWLEDGE)
    assert said == (
        "IoU %: Models Genesis 85.1 (3rd of 11); best other TransVW 86.53; random 79.76"
    )
    assert mark(study, "models-genesis") == "•" and mark(study, "transvw") == "+"
    assert mark(study, "scratch") == "-" and mark(study, "mae") == "•"


def test_lower_may_be_better() -> None:
    lower = [s for s in KNOWLEDGE.studies.values() if not s.metric.higher_is_better]
    for study in lower:
        scores = [r.score for r in ranked(study)]
        if not any(isinstance(score, str) for score in scores):
            assert scores == sorted(scores)
            assert "lower is better" in numbers(study, ranked(study)[0].method or "", KNOWLEDGE)


def test_the_most_comparable_studies_come_first() -> None:
    facts = recommend(PROBLEMS[0], KNOWLEDGE, "reference").facts.values
    order = [nearness for nearness, _ in near(KNOWLEDGE, "mae", facts)]
    assert order == sorted(order, reverse=True) and order[0].task and order[0].place == 2


# --- the case for a method


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p["modality"])
def test_the_case_for_every_method_can_be_made(problem: dict[str, Any]) -> None:
    found = recommend(problem, KNOWLEDGE, "reference")
    for method in KNOWLEDGE.methods:
        case = defence(found, KNOWLEDGE, method, everything=True)
        assert markdown(case).startswith("# ")
        shown = text(case, 4000)
        for study in matching(KNOWLEDGE, {"method": method}):
            assert study.id in shown
    assert max(map(len, text(defence(found, KNOWLEDGE, "mae"), 80).splitlines())) <= 80


def test_the_case_tells_all_that_is_to_be_defended() -> None:
    found = recommend(PROBLEMS[0], KNOWLEDGE, "reference")
    top = found.strategies[0]
    shown = text(defence(found, KNOWLEDGE, top.method), 4000)
    for heading in (
        "Why this method",
        "What speaks against it",
        "How good the evidence is",
        "Published numbers: segmentation, CT",
        "Why none of the others",
        "What was ruled out",
        "What would change the answer",
        "What to report",
    ):
        assert heading in shown
    for reason in top.reasons:
        assert reason.because in shown
        assert reason.verb == "avoid" or all(id in shown for id in reason.against)
    for name in ("seeds", "label_fractions", "bootstrap_samples", "test_share"):
        assert found.common[name].why in shown
    baselines = [s.name for s in found.strategies if s.family == "baseline"]
    assert baselines and all(f"Baseline {name}" in shown for name in baselines)
    for caution in found.cautions:
        assert caution.text in shown
    assert found.knowledge.sha256[:12] in shown


def test_a_rule_without_which_the_answer_turns_is_named(tmp_path: Any) -> None:
    advice = rule(
        "one", "when: {task: segmentation}\nprefer: [mae]\nstrength: strong\ncertainty: high"
    ) + rule("two", "when: {task: segmentation}\nprefer: [spark]\nstrength: strong\ncertainty: low")
    knowledge = Knowledge(tiny(tmp_path, {"advice/a.yaml": advice}))
    found = recommend({"modality": "ct", "task": "segmentation"}, knowledge, "reference")
    shown = text(defence(found, knowledge, "mae"), 200)
    assert "Without the rule one, spark would come first." in shown
    assert "Without the rule two" not in shown
    assert "It is 1.00 ahead of SPARK" in shown


def test_a_method_that_is_ruled_out_is_told_so_with_its_numbers() -> None:
    found = recommend(PROBLEMS[0], KNOWLEDGE, "reference")
    out = found.ruled_out[0]
    case = defence(found, KNOWLEDGE, out.method)
    assert "is ruled out here" in case.title and out.because in case.title
    reports = next(id for id, c in KNOWLEDGE.methods.items() if c.family == "image-text")
    assert "needs reports" in defence(found, KNOWLEDGE, reports).title
    with pytest.raises(KnowledgeError, match="no method 'maee'; did you mean 'mae'"):
        defence(found, KNOWLEDGE, "maee")


def test_why_is_an_option_of_recommend(tmp_path: Any) -> None:
    first = recommend({"modality": "ct", "task": "segmentation", "labeled": 40}).strategies[0]
    assert run("recommend", "--why", *CT).stdout.startswith(
        f"{first.name} ({first.method}): rank 1"
    )
    assert run("recommend", *CT, "--why", "simclr").stdout.startswith("SimCLR (simclr): rank ")
    assert run("recommend", *CT, "--why", "simclr", "--format", "markdown").stdout.startswith("# S")
    assert len(run("recommend", *CT).stdout) < len(run("recommend", *CT, "--why").stdout)
    path = tmp_path / "why.md"
    assert run("recommend", *CT, "--why", "-o", str(path)).exit_code == 0
    assert path.read_text().startswith("# ") and "## What to report" in path.read_text()
    for args, words in (
        (("maee",), "did you mean 'mae'?"),
        (("--format", "json"), "--why is a page"),
    ):
        result = run("recommend", *CT, "--why", *args)
        assert result.exit_code == 2 and words in result.stderr and result.stdout == ""
