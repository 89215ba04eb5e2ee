"""Replaying a saved answer: what changed, which rule did it, and how a program learns of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tiny import FILES, rule, tiny

from advisor import Knowledge, Recommendation, recommend
from advisor.cli import main
from advisor.compare import Difference, compare
from advisor.difference import show
from advisor.page import text

ROOT = Path(__file__).resolve().parent.parent
CT = ["--modality", "ct", "--task", "segmentation", "--labeled", "40"]
PROBLEM = {"modality": "ct", "task": "segmentation", "labeled": 40}
ADVICE = FILES["advice/a.yaml"]


def run(*args: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in args], env={"COLUMNS": "80"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def answered(folder: Path, files: dict[str, str], **answers: Any) -> Recommendation:
    return recommend({**PROBLEM, **answers}, Knowledge(tiny(folder, files)), "reference")


def differing(folder: Path, files: dict[str, str]) -> tuple[Difference, str]:
    """The answer of the tiny rules beside that of changed ones, and the page on it."""
    old = answered(folder / "a", {})
    changed = Knowledge(tiny(folder / "b", files))
    found = compare(old, recommend(PROBLEM, changed, "reference"), changed.rule)
    return found, text(show(found), 200)


def test_equal_answers_differ_in_nothing(tmp_path: Path) -> None:
    found, shown = differing(tmp_path, {})
    assert not found.changed and shown.startswith("nothing changed")
    assert found.old == found.new


def test_knowledge_that_moves_nothing_changes_nothing(tmp_path: Path) -> None:
    found, _ = differing(tmp_path, {"VERSION": "2.0\n"})
    assert not found.changed and found.old != found.new


def test_a_weaker_rule_is_the_cause(tmp_path: Path) -> None:
    weaker = ADVICE.replace("strength: strong", "strength: conditional")
    found, shown = differing(tmp_path, {"advice/a.yaml": weaker})
    (cause,) = found.causes
    assert (cause.rule, cause.how) == ("volumes", "weighs differently")
    assert cause.methods == {"mae": -0.75, "spark": -0.75}
    assert {m.method: (m.old_score, m.new_score) for m in found.strategies} == {
        "mae": (1.5, 0.75),
        "spark": (1.5, 0.75),
    }
    assert "volumes weighs differently: -0.75 for mae, spark" in shown
    assert "1.50 -> 0.75" in shown


def test_rules_that_come_and_go_are_told_apart(tmp_path: Path) -> None:
    other = rule(
        "contrast",
        "when: {labeled: {gt: 9}}\nprefer: [simclr]\nstrength: strong\ncertainty: high",
    )
    found, shown = differing(tmp_path, {"advice/a.yaml": other})
    assert {c.rule: c.how for c in found.causes} == {"volumes": "removed", "contrast": "fires now"}
    assert found.verdict and found.verdict.old != found.verdict.new
    assert "contrast fires now: +2.00 for simclr" in shown and "SIMCLR" in shown
    elsewhere = ADVICE.replace("when: {task: segmentation}", "when: {task: detection}")
    found, _ = differing(tmp_path / "2", {"advice/a.yaml": elsewhere})
    assert [(c.rule, c.how) for c in found.causes] == [("volumes", "fires no longer")]


def test_what_rules_rule_out_set_and_warn_of_is_told(tmp_path: Path) -> None:
    more = ADVICE + rule(
        "new",
        """
        when: {task: segmentation}
        exclude: [simclr]
        set: {crop_size: 96}
        caution: Look twice.
        """,
    )
    found, shown = differing(tmp_path, {"advice/a.yaml": more})
    (cause,) = found.causes
    assert cause.effects == ("cautions", "rules out simclr", "sets crop_size")
    assert [(s.name, s.old, s.new) for s in found.settings] == [("crop_size", 64, 96)]
    gone = next(m for m in found.strategies if m.method == "simclr")
    assert gone.old_rank and gone.new_rank is None
    assert found.cautions_added == ("Look twice. [new]",)
    assert "crop_size: 64 -> 96" in shown and "Look twice." in shown


def test_a_card_that_asks_for_more_is_the_cause(tmp_path: Path) -> None:
    narrow = FILES["methods/spark.yaml"].replace('["2d", "3d", video]', '["2d"]')
    found, _ = differing(tmp_path, {"methods/spark.yaml": narrow})
    assert "needs:dimensionality" in {c.rule for c in found.causes}


def test_other_words_and_other_bands_are_told(tmp_path: Path) -> None:
    reworded = ADVICE.replace("Reason of volumes", "A better reason")
    found, shown = differing(tmp_path, {"advice/a.yaml": reworded})
    assert found.reworded == ("volumes",) and not found.causes and not found.strategies
    assert "other words or evidence" in shown
    bands = FILES["facts.yaml"].replace("below: 50", "below: 30")
    found, _ = differing(tmp_path / "2", {"facts.yaml": bands})
    assert [(f.name, f.old, f.new) for f in found.facts] == [
        ("label_regime", "few-shot", "abundant")
    ]


def test_every_single_change_of_an_answer_is_seen(tmp_path: Path) -> None:
    """Whatever part of a saved answer is not as it was, `changed` is true."""
    old = recommend(PROBLEM)
    data = old.model_dump(mode="json")
    for key, value in data.items():
        if key in ("knowledge", "engine", "schema_version"):
            continue
        for change in _damaged(value):
            new = Recommendation.model_validate({**data, key: change})
            assert compare(old, new).changed, (key, str(change)[:200])


def _damaged(value: Any) -> list[Any]:
    """Copies of a value with its first leaf of each branch changed."""
    if isinstance(value, str):
        return ["ct" if value == "mri" else value + "x"]
    if isinstance(value, list):
        return [value[1:]] if value else []
    if "modality" in value:
        return [{**value, "labeled": 41}]
    if "reasons" in value:
        first = next(iter(value["reasons"]))
        return [{**value, "reasons": {**value["reasons"], first: "x"}}]
    first = next(iter(value))
    return [{**value, first: {**value[first], "why": "x"}}, {**value, "new": value[first]}]


# --- the command


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "old.json"
    assert run("recommend", *CT, "-o", path).exit_code == 0
    return path


def edited(saved: Path, name: str, edit: Any) -> Path:
    data = json.loads(saved.read_text())
    edit(data)
    path = saved.with_name(name)
    path.write_text(json.dumps(data))
    return path


def test_nothing_changed_is_exit_code_0(saved: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "advisor", "diff", str(saved)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("nothing changed")
    assert run("diff", saved, saved).exit_code == 0


def test_a_change_is_exit_code_1_in_both_forms(saved: Path) -> None:
    def drop(data: Any) -> None:
        data["strategies"][0]["reasons"].pop()
        data["strategies"][0]["score"] = 0.5

    old = edited(saved, "edited.json", drop)
    for args in ((old,), (old, saved)):
        result = run("diff", *args)
        assert result.exit_code == 1 and result.stderr == ""
        assert "the answer changed" in result.stdout and "0.50 -> " in result.stdout
        assert max(map(len, result.stdout.splitlines())) <= 80
        found = run("diff", *args, "--format", "json")
        assert found.exit_code == 1
        assert Difference.model_validate_json(found.stdout).changed
    assert json.loads(run("diff", saved, "--format", "json").stdout)["changed"] is False


def test_a_pack_is_the_cause_and_its_absence_is_told(saved: Path, tmp_path: Path) -> None:
    over = tmp_path / "lab" / "advice"
    over.mkdir(parents=True)
    body = "when: {task: segmentation}\nprefer: [simclr]\nstrength: strong\ncertainty: high"
    text = (
        rule("ours", body)
        .replace("roe-2020-one", "")
        .replace("  against:", "  source: [our report]\n  against:")
    )
    (over / "a.yaml").write_text(text)
    result = run("diff", saved, "--rules", over.parent)
    assert result.exit_code == 1 and "ours fires now: +2.00 for simclr" in result.stdout
    assert run("recommend", *CT, "--rules", over.parent, "-o", tmp_path / "b.json").exit_code == 0
    result = run("diff", tmp_path / "b.json")
    assert "ours removed: -2.00 for simclr" in result.stdout
    assert "made with the rule pack lab, which is not loaded" in result.stderr
    assert run("diff", tmp_path / "b.json", "--rules", over.parent).exit_code == 0


def test_mistakes_are_told_in_one_line(saved: Path) -> None:
    other = edited(saved, "other.json", lambda data: data["profile"].update(modality="moon"))
    for args, words in (
        (["nowhere.json"], "nowhere.json: cannot be read"),
        ([edited(saved, "less.json", lambda d: d.pop("verdict"))], "not an answer saved by"),
        ([other], "modality: 'moon' is not one of"),
        ([saved, saved, "--rules", "x"], "leave --rules out"),
        ([], "OLD.json"),
    ):
        result = run("diff", *args)
        assert result.exit_code == 2 and result.stdout == ""
        assert words in result.stderr and len(result.stderr.splitlines()) == 1
