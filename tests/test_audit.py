"""The rule base as a whole: what is doubtful in it, what it covers, the pages written from it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from itertools import islice
from pathlib import Path

import pytest
from tiny import method, rule, tiny

from advisor import Knowledge, recommend
from advisor.audit import coverage, docs, picture
from advisor.audit.findings import exceptions
from advisor.audit.grid import answers, counts, grid, profiles
from advisor.audit.lint import TOP, warnings
from advisor.profile import Profile

DOCS = Path(__file__).resolve().parent.parent / "docs"
WEIGHT = "strength: strong\ncertainty: moderate"
DENSE = "when: {task: segmentation}"


@pytest.fixture(scope="module")
def shipped() -> Knowledge:
    return Knowledge.load()


def doubts(folder: Path, advice: str, **files: str) -> list[str]:
    """The warnings on the tiny rule base with other advice; those on its cards are left out."""
    named = {f"{name.replace('__', '/')}.yaml": text for name, text in files.items()}
    knowledge = Knowledge(tiny(folder, {"advice/a.yaml": advice, **named}))
    assert knowledge.problems() == []
    return [line for line in warnings(knowledge) if line.startswith("rules/advice")]


# The grid


def test_the_grid_stands_on_both_sides_of_every_edge(shipped: Knowledge) -> None:
    every = answers(shipped)
    assert {0, 1, 49, 50, 4999, 5000} <= set(every["labeled"])
    assert None in every["labeled"] and None not in every["task"]
    assert every["modality"] == tuple(shipped.modalities)


def test_every_profile_of_the_grid_could_be_typed(shipped: Knowledge) -> None:
    for case in grid(shipped).cases[::97]:
        assert Profile.parse(case.profile.model_dump()) == case.profile


def test_the_grid_is_the_same_on_every_run() -> None:
    knowledge = Knowledge.load()
    first, second = (profiles(knowledge) for _ in range(2))
    assert all(a == b for a, b in zip(islice(first, 2000), islice(second, 2000), strict=True))


def test_counts_lie_in_their_regimes(shipped: Knowledge) -> None:
    for regime, labeled in counts(shipped).items():
        asked = {"modality": "ct", "task": "segmentation", "labeled": labeled}
        assert recommend(asked, shipped, "reference").facts.values["label_regime"] == regime


# What is doubtful


def test_two_rules_that_do_the_same_everywhere_are_told(tmp_path: Path) -> None:
    body = f"{DENSE}\nprefer: [mae]\n{WEIGHT}"
    found = doubts(tmp_path, rule("one", body) + rule("two", body))
    assert [line.split(": ")[1:3] for line in found] == [["two", "duplicate"]]
    assert re.match(r"rules/advice/a.yaml:\d+: two: duplicate: does what one does", found[0])


def test_a_rule_inside_another_of_the_same_effect_is_told(tmp_path: Path) -> None:
    wide = rule("wide", f"{DENSE}\nprefer: [mae]\n{WEIGHT}")
    inner = rule(
        "narrow", f"when: {{task: segmentation, labeled: unknown}}\nprefer: [mae]\n{WEIGHT}"
    )
    (found,) = doubts(tmp_path, wide + inner)
    assert "narrow: shadowed: wide has the same effect" in found


def test_overlap_alone_is_no_shadow(tmp_path: Path) -> None:
    wide = rule("one", f"{DENSE}\nprefer: [mae]\n{WEIGHT}")
    other = rule(
        "two",
        f"when: {{modality: ct, dimensionality: 3d, task: segmentation}}\n"
        f"prefer: [mae, spark]\n{WEIGHT}",
    )
    assert doubts(tmp_path, wide + other) == []


def test_rules_that_cancel_each_other_must_know_of_each_other(tmp_path: Path) -> None:
    pro = rule("pro", f"{DENSE}\nprefer: [mae, spark]\n{WEIGHT}")
    con = rule("con", f"{DENSE}\navoid: [mae]\n{WEIGHT}")
    (found,) = doubts(tmp_path / "a", pro + con)
    assert "conflict: cancelled" in found and "(in 100 %: mae)" in found
    aware = con.replace("against: []", "against: [roe-2020-one]")
    assert doubts(tmp_path / "b", pro + aware) == []


def test_a_target_that_can_never_compete_is_dead(tmp_path: Path) -> None:
    body = f"when: {{task: segmentation, backbone: cnn}}\nprefer: [mae, spark]\n{WEIGHT}"
    text = rule("cnns", body).replace("segmentation}]", "segmentation, backbone: cnn}]", 1)
    (found,) = doubts(tmp_path, text)
    assert found.endswith("cnns: dead: prefer mae: ruled out wherever this rule fires")


def test_an_exclusion_that_the_card_makes_anyway_is_dead(tmp_path: Path) -> None:
    text = rule("cnns", "when: {task: segmentation, backbone: cnn}\nexclude: [mae]")
    text = text.replace("segmentation}]", "segmentation, backbone: cnn}]", 1)
    (found,) = doubts(tmp_path, text)
    assert "dead: exclude mae" in found


def test_numbers_that_two_rules_set_differently_are_told(tmp_path: Path) -> None:
    one = rule("one", f"{DENSE}\nset: {{mask_ratio: 0.5}}\nfor: [mae]")
    two = rule("two", f"{DENSE}\nset: {{mask_ratio: 0.6}}")
    (found,) = doubts(tmp_path, one + two)
    assert "two: conflict: sets mask_ratio over one where both fire" in found


def test_certainty_without_a_fitting_study_is_told(tmp_path: Path) -> None:
    bare = rule("bare", f"{DENSE}\nprefer: [mae]\nsource: [choice]\n{WEIGHT}").replace(
        "studies: [roe-2020-one]", "studies: []"
    )
    other = rule("other", f"{DENSE}\nprefer: [simclr]\n{WEIGHT}")
    first, second = doubts(tmp_path, bare + other)
    assert "bare: uncited: moderate certainty rests on our choice alone" in first
    assert "other: uncited: moderate certainty, but no cited study measured simclr" in second


def test_methods_and_modalities_that_nothing_favours_are_told(tmp_path: Path) -> None:
    extra = {
        f"methods/a{i}.yaml": method(f"a{i}", "predictive", "self-distillation") for i in range(TOP)
    }
    advice = rule(
        "no-scratch", f"when: {{dense: true, labeled: unknown}}\navoid: [scratch]\n{WEIGHT}"
    )
    found = warnings(Knowledge(tiny(tmp_path, {"advice/a.yaml": advice, **extra})))
    assert "rules/methods/scratch.yaml:1: scratch: idle: among the first 5 for no" in str(found)
    assert "rules/modalities/ct.yaml:1: ct: undecided: no rule on modality or task" in str(found)
    assert "rules/modalities/ct.yaml:1: ct: undecided: no rule that ranks" in str(found)


def test_a_study_says_why_the_ranking_differs_from_it_and_only_then(tmp_path: Path) -> None:
    advice = rule("dense", f"{DENSE}\nprefer: [spark]\n{WEIGHT}")
    rows = "{method: spark, reported_as: x, score: %s}, {method: scratch, reported_as: x, score: 2}"
    why = "disagreement: {kind: noise, because: They are close.}\n"

    def found(name: str, score: int, told: str) -> list[str]:
        study = f"""\
id: roe-2020-one
paper: {{title: t, first_author: Roe, year: 2020, arxiv: "2001.00001"}}
setting: {{modality: [ct], task: [segmentation]}}
dataset: d
metric: {{name: m, higher_is_better: true}}
results: [{rows % score}]
finding: f
source: {{url: "https://example.org", kind: abstract}}
trust: high
independence: independent
{told}"""
        files = {"advice/a.yaml": advice, "studies/roe-2020-one.yaml": study}
        lines = warnings(Knowledge(tiny(tmp_path / name, files)))
        return [line for line in lines if line.startswith("rules/studies")]

    (silent,) = found("silent", 1, "")
    assert silent.startswith("rules/studies/roe-2020-one.yaml:1: roe-2020-one: unexplained:")
    (stale,) = found("stale", 3, why)
    assert stale.startswith("rules/studies/roe-2020-one.yaml:11: roe-2020-one: stale:")
    assert found("told", 1, why) == found("agreed", 3, "") == []


def test_nothing_is_doubtful_in_the_shipped_rules(shipped: Knowledge) -> None:
    assert warnings(shipped) == []


def beside_a_pack(folder: Path, advice: str, ours: str) -> list[str]:
    """The warnings on the tiny rule base with other advice and a pack of one file beside it."""
    (folder / "lab" / "advice").mkdir(parents=True)
    (folder / "lab" / "advice" / "ours.yaml").write_text(ours, encoding="utf-8")
    knowledge = Knowledge.load(tiny(folder / "base", {"advice/a.yaml": advice}), [folder / "lab"])
    assert knowledge.problems() == []
    return warnings(knowledge)


def test_a_pack_is_doubted_for_its_own_rules_only(tmp_path: Path) -> None:
    body = f"{DENSE}\nprefer: [mae]\n{WEIGHT}"
    twins = rule("one", body) + rule("two", body)
    bare = rule("ours", f"{DENSE}\nprefer: [simclr]\n{WEIGHT}")
    (found,) = beside_a_pack(tmp_path, twins, bare)
    assert found.startswith("lab/advice/ours.yaml:1: ours: uncited: ")


def test_a_shipped_rule_that_a_pack_meets_is_told(tmp_path: Path) -> None:
    narrow = rule("narrow", f"{DENSE[:-1]}, labeled: unknown}}\nprefer: [mae, spark]\n{WEIGHT}")
    ours = rule("our-rule", f"{DENSE}\nprefer: [mae, spark]\n{WEIGHT}")
    (found,) = beside_a_pack(tmp_path / "met", narrow, ours)
    assert "rules/advice/a.yaml:1: narrow: shadowed: our-rule has the same effect" in found
    away = rule("our-rule", f"{DENSE}\nexclude: [mae, spark]")
    found, *_ = beside_a_pack(tmp_path / "killed", narrow, away)
    assert "narrow: dead: prefer mae, spark: ruled out wherever this rule fires" in found


# Pages


def test_the_map_says_what_the_advisor_says(shipped: Knowledge) -> None:
    for cell in coverage.coverage(shipped)[::41]:
        labeled = counts(shipped)[cell.regime]
        asked = dict(modality=cell.modality, dimensionality=cell.dimensionality, task=cell.task)
        best = recommend({**asked, "labeled": labeled}, shipped).strategies[0]
        assert (best.method, best.certainty, len(best.tied_with)) == (
            cell.winner,
            cell.certainty,
            cell.tied,
        )


def test_the_picture_is_drawn_within_its_frame(shipped: Knowledge) -> None:
    root = ElementTree.fromstring(picture.svg(shipped))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for part in root:
        assert 0 <= float(part.attrib.get("x", 0)) <= width
        assert 0 <= float(part.attrib.get("y", 0)) <= height
    boxes = sum(part.attrib.get("rx") == "2" for part in root)
    assert boxes == len(coverage.coverage(shipped)) + 4  # the legend


def test_exceptions_speak_the_other_way_about_the_same_methods(tmp_path: Path) -> None:
    story = rule("story", f"{DENSE}\nprefer: [mae]\n{WEIGHT}")
    turn = rule(
        "turn", f"when: {{task: segmentation, labeled: unknown}}\navoid: [mae, spark]\n{WEIGHT}"
    )
    same = rule("same", f"{DENSE}\nprefer: [mae, spark]\n{WEIGHT}")
    knowledge = Knowledge(tiny(tmp_path, {"advice/a.yaml": story + turn + same}))
    (found,) = exceptions(knowledge, [knowledge.rule["story"]])
    assert (found.rule.id, found.methods) == ("turn", ("mae",))
    assert 0 < found.share < 1


def test_the_pages_on_the_rules_are_up_to_date(shipped: Knowledge) -> None:
    assert docs.stale(DOCS, docs.pages(shipped)) == [], "make docs writes them anew"


def test_a_page_that_is_out_of_date_is_named_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(docs, "home", lambda _: tmp_path / "rules")
    monkeypatch.setattr(docs, "pages", lambda _: {"a.md": "new\n", "b.md": "same\n"})
    (tmp_path / "docs" / "b.md").write_bytes(b"same\n")
    assert docs.main(["--check"]) == 1
    assert capsys.readouterr().out == "docs/a.md: out of date with rules/; run `make docs`\n"
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0
    assert docs.main(["--chek"]) == 2
