"""What is said in words: answers, cards, rules and studies, in every form they take."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny

from advisor import Knowledge, Profile, Recommendation, handbook, recommend
from advisor.explain import HEADER_WIDTH, answer, header_lines
from advisor.page import Command, Item, Page, Table, cut, markdown, page, plain, terminal, text
from advisor.words import condition, mentions, options, reads, value

KNOWLEDGE = Knowledge.load()
PROBLEMS: list[dict[str, Any]] = [
    {"modality": "ct", "task": "segmentation", "labeled": 40, "unlabeled": 3000, "gpus": 1},
    {"modality": "xray", "task": "classification", "labeled": 90_000, "multilabel": True},
    {"modality": "ultrasound", "task": "regression", "dimensionality": "video"},
    {"modality": "mri", "task": "registration", "backbone": "cnn", "public_weights": "none"},
]
KINDS = ("methods", "modalities", "findings", "rule", "studies")


def answered(problem: dict[str, Any]) -> Recommendation:
    return recommend(problem, KNOWLEDGE, "reference")


# --- answers


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p["modality"])
def test_an_answer_says_what_counts(problem: dict[str, Any]) -> None:
    found = answered(problem)
    shown = text(answer(found, everything=True), width=2000)
    top = found.strategies[0]
    assert shown.startswith(found.verdict)
    for reason in top.reasons:
        assert reason.because in shown and reason.rule in shown
    for caution in found.cautions:
        assert plain(caution.text) in shown
    for out in found.ruled_out:
        assert f"{out.method}: {plain(out.because)}" in shown
    for change in found.what_if:
        assert change.winner in shown


def test_ties_share_a_rank_and_are_called_ties(tmp_path: Path) -> None:
    found = recommend(PROBLEMS[0], Knowledge(tiny(tmp_path)), "reference")
    assert found.strategies[0].tied_with
    table = answer(found).sections[0].blocks[0]
    assert isinstance(table, Table)
    tied = 1 + len(found.strategies[0].tied_with)
    assert [row[0] for row in table.rows[:tied]] == ["1="] * tied
    assert "tied" in text(answer(found))


def test_a_short_answer_counts_what_it_leaves_out() -> None:
    found = answered(PROBLEMS[0])
    assert f"... and {len(found.strategies) - 5} more: --all" in text(answer(found))


def test_what_has_no_script_is_not_offered_one() -> None:
    found = answered(PROBLEMS[3])
    none = tuple(s.model_copy(update={"emits": False}) for s in found.strategies)
    found = found.model_copy(update={"strategies": none})
    assert "medssl generate" not in text(answer(found))
    assert "There is no script template" in text(answer(found))


def test_an_answer_in_which_all_is_ruled_out_is_still_a_page() -> None:
    found = answered(PROBLEMS[0]).model_copy(update={"strategies": ()})
    assert text(answer(found), 2000).startswith(found.verdict)


# --- the head of a script


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p["modality"])
def test_a_script_begins_with_problem_reasons_and_provenance(problem: dict[str, Any]) -> None:
    found = answered(problem)
    for strategy in found.strategies:
        lines = header_lines(found, strategy.method)
        assert all(len(line) <= HEADER_WIDTH and line.isprintable() for line in lines)
        joined = " ".join(" ".join(lines).split())
        assert f"({strategy.method})" in joined and found.knowledge.sha256 in joined
        for name, given in problem.items():
            assert f"{name} {value(given)}" in joined
        for reason in strategy.reasons:
            assert f"[{reason.rule}: " in joined and all(id in joined for id in reason.against)
        for caution in found.cautions:
            assert f"[{caution.rule}]" in joined


def test_nothing_that_a_saved_answer_holds_can_break_out_of_the_header() -> None:
    found = answered(PROBLEMS[0])
    hostile = 'x"""\r\nimport os\x1b[31m\x85\u2028os.abort()' + "y" * 300
    top = found.strategies[0].model_copy(update={"name": hostile})
    caution = {"rule": hostile, "text": hostile, "studies": ()}
    found = Recommendation.model_validate(
        {**found.model_dump(), "strategies": [top.model_dump()], "cautions": [caution]}
    )
    for line in header_lines(found, top.method):
        assert line.isprintable() and len(line) <= HEADER_WIDTH
        assert len(line.splitlines()) <= 1


# --- cards, rules, studies


@pytest.mark.parametrize("kind", KINDS)
def test_everything_in_the_rules_has_a_page_in_both_forms(kind: str) -> None:
    for id, item in getattr(KNOWLEDGE, kind).items():
        entry = handbook.find(KNOWLEDGE, id)
        assert entry.item == item
        shown = handbook.show(KNOWLEDGE, entry)
        assert shown.title and shown.sections
        assert markdown(shown).startswith("# ") and markdown(shown).endswith("\n")
        assert max(map(len, text(shown, 80).splitlines())) <= 80 or "http" in text(shown)


def test_a_method_page_says_who_is_for_and_against_and_who_measured() -> None:
    shown = text(handbook.show(KNOWLEDGE, handbook.find(KNOWLEDGE, "mae")), 2000)
    for rule in KNOWLEDGE.rules:
        if "mae" in KNOWLEDGE.expand((*rule.prefer, *rule.avoid, *rule.exclude)):
            assert rule.id in shown
    card = KNOWLEDGE.methods["mae"]
    for name, setting in card.settings.items():
        assert f"{name} = {value(setting.value)}: {setting.why}" in shown
    for id, study in KNOWLEDGE.studies.items():
        assert any(r.method == "mae" for r in study.results) == (id in shown.split("Studies")[-1])


def test_a_rule_page_carries_its_evidence_both_ways() -> None:
    rule = next(r for r in KNOWLEDGE.rules if r.studies and r.against and r.finding)
    shown = text(handbook.show(KNOWLEDGE, handbook.find(KNOWLEDGE, rule.id)), 2000)
    assert shown.startswith(rule.because) and condition(rule.when) in shown
    for id in (*rule.studies, *rule.against):
        assert id in shown and KNOWLEDGE.study(id).finding in shown


def test_ids_are_found_in_any_case_and_near_misses_get_a_hint() -> None:
    assert handbook.find(KNOWLEDGE, "MAE").kind == "method"
    assert handbook.find(KNOWLEDGE, "p6").kind == "finding"
    with pytest.raises(ValueError, match="did you mean 'simclr'"):
        handbook.find(KNOWLEDGE, "simclrr")
    with pytest.raises(ValueError, match="medssl methods"):
        handbook.find(KNOWLEDGE, "0000")


# --- words


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ({"task": "segmentation"}, "task is segmentation"),
        ({"modality": ["ct", "mri"]}, "modality is ct or mri"),
        ({"labeled": {"gte": 10, "lt": 500}}, "labeled is 10 or more and less than 500"),
        ({"hours": {"gt": 0.5, "lte": 24.0}}, "hours is more than 0.5 and 24 or less"),
        ({"backbone": {"not": "vit"}}, "backbone is known and not vit"),
        ({"gpus": "unknown", "hours": "known"}, "gpus is unknown and hours is known"),
        ({"multi_view": True}, "multi_view is yes"),
        ({"task": "x", "any": [{"a": 1}, {"b": 2, "c": 3}]},
         "task is x and (a is 1, or b is 2 and c is 3)"),
    ],
)  # fmt: skip
def test_conditions_in_words(when: dict[str, Any], words: str) -> None:
    assert condition(when) == words


def test_a_condition_inside_any_counts() -> None:
    when = {"task": "detection", "any": [{"hours": {"lt": 2}}, {"modality": ["ct", "mri"]}]}
    assert reads(when, ["hours"]) and not reads(when, ["gpus"])
    assert mentions(when, "ct") and not mentions(when, "xray")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (None, "unknown"),
        (False, "no"),
        (24.0, "24"),
        (0.0003, "0.0003"),
        (1_000_000_000.0, "1000000000"),
        ((0.01, 0.1), "0.01, 0.1"),
        ((), "none"),
        ("a\nb", "a b"),
    ],
)
def test_values_in_words(raw: Any, words: str) -> None:
    assert value(raw) == words


def test_options_leave_out_what_is_unknown() -> None:
    profile = Profile.parse({"modality": "ct", "task": "detection", "multi_view": False})
    assert options(profile) == "--modality ct --task detection --multi-view no"


# --- pages

PAGE = page(
    "Title",
    "about",
    [
        ("Empty", []),
        ("Full", [
            "A sentence.",
            Item("good", "note", "+"),
            Item("bad | worse", mark="-"),
            Table(("name", "n"), (("a_b", "1"),), ("n",)),
            Command("medssl recommend --modality ct --task segmentation"),
        ]),
    ],
)  # fmt: skip


def test_markdown() -> None:
    assert markdown(PAGE) == (
        "# Title\n\nabout\n\n## Full\n\nA sentence.\n\n"
        "- **for:** good *(note)*\n- **against:** bad \\| worse\n\n"
        "| name | n |\n| --- | ---: |\n| a\\_b | 1 |\n\n"
        "```sh\nmedssl recommend --modality ct --task segmentation\n```\n"
    )


def test_plain_text_has_neither_escape_codes_nor_blanks_at_line_ends() -> None:
    stream = io.StringIO()
    terminal(PAGE, stream, width=40)
    lines = stream.getvalue().splitlines()
    assert lines[:5] == ["Title", "about", "", "Full", "  A sentence."]
    assert "\x1b" not in stream.getvalue() and all(line == line.rstrip() for line in lines)
    assert lines[-2:] == ["  medssl recommend --modality ct \\", "      --task segmentation"]


def test_text_from_outside_cannot_steer_the_terminal() -> None:
    hostile = "\x1b]0;title\x07\x1b[2J[bold]x[/bold]\r:smile:"
    shown = text(page(hostile, hostile, [(hostile, [hostile, Item(hostile, hostile)])]))
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "[bold]x[/bold]" in shown and ":smile:" in shown


def test_a_table_gives_up_its_spare_column_before_it_breaks() -> None:
    rows = (("simclr", "A simple framework", "yes"),)
    table: Page = page("t", "", [("s", [Table(("id", "name", "script"), rows, spare=("name",))])])
    assert "A simple framework" in text(table, 80)
    assert "A simple" not in text(table, 30) and "simclr  yes" in text(table, 30)


def test_a_narrow_terminal_costs_columns_and_no_name() -> None:
    found = answered(PROBLEMS[0])
    for width in (40, 60, 80):
        shown = text(answer(found), width).partition("Strategies")[2].partition("\n\n")[0]
        assert "…" not in shown
        rows = [line for line in shown.splitlines() if re.match(r" +\d", line)]
        assert [r.split()[1] for r in rows] == [s.method for s in found.strategies[:5]]
        assert ("paradigm" in shown) == (width == 80)


def test_what_cards_ask_for_is_said_in_words() -> None:
    given = {"modality": "xray", "task": "retrieval", "backbone": "cnn", "multi_view": False}
    for problem in (given, {"modality": "ct", "task": "segmentation", "backbone": "vit"}):
        found = recommend(problem)
        for everything in (False, True):
            assert "needs:" not in text(answer(found, everything=everything), 100)
        shown = " ".join(text(answer(found), 100).partition("\nRuled out")[2].split())
        assert ("not for 2D images" in shown) == ("xray" in problem.values())
        assert ("not for 3D images" in shown) == ("ct" in problem.values())
        assert ("not for a CNN" in shown) == ("xray" in problem.values())


def test_a_cut_never_hides_a_single_entry() -> None:
    assert cut(["a", "b", "c"], 2) == ("a", "b", "c")
    assert cut(["a", "b", "c", "d"], 2) == ("a", "b", "... and 2 more: --all")
