"""Rule packs: they add, they override, they are named, and a broken one is told in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tiny import FILES, method, rule, tiny, weights

from advisor import Knowledge, KnowledgeError, Recommendation, generate, recommend
from advisor.cli import main
from advisor.engine import RuleError
from advisor.knowledge import home
from advisor.packs import installed, pack

ROOT = Path(__file__).resolve().parent.parent
CT = ["--modality", "ct", "--task", "segmentation", "--labeled", "40"]
PROBLEM = {"modality": "ct", "task": "segmentation", "labeled": 40}
MEDSSL = [sys.executable, "-m", "advisor"]

OURS = """\
- id: our-scanner
  when: {modality: ct, task: segmentation}
  prefer: [our-method]
  strength: strong
  certainty: high
  because: We compared both on our scanner.
  studies: [us-2026-scanner]
  against: []
  examples:
    fires: [{modality: ct, task: segmentation}]
    not: [{modality: mri, task: segmentation}]
"""
STUDY = FILES["studies/roe-2020-one.yaml"].replace("roe-2020-one", "us-2026-scanner")
METHOD = method("our-method", "generative", "restoration")


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A pack that brings a method, a rule for it and a study behind the rule."""
    return write(
        tmp_path / "our-lab",
        {
            "VERSION": "3\n",
            "advice/ours.yaml": OURS,
            "methods/our-method.yaml": METHOD,
            "studies/us-2026-scanner.yaml": STUDY,
        },
    )


def run(*args: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in args], env={"COLUMNS": "80"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def shell(*args: str | Path, cwd: Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A call in a process of its own."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(path))), "COLUMNS": "80"}
    command = [*MEDSSL, *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


# --- what a pack does


def test_a_pack_adds_methods_rules_and_studies(ours: Path) -> None:
    found = recommend(PROBLEM, Knowledge.load(packs=[ours]))
    chosen = next(s for s in found.strategies if s.method == "our-method")
    assert "our-scanner" in {r.rule for r in chosen.reasons} and not chosen.emits
    assert [(p.name, p.version, p.overrides) for p in found.knowledge.packs] == [
        ("our-lab", "3", ())
    ]
    plain = recommend(PROBLEM, Knowledge.load(home("rules")))
    assert found.knowledge.sha256 == plain.knowledge.sha256
    assert "our-method" not in {s.method for s in plain.strategies}
    assert plain.knowledge.packs == ()


def test_a_pack_adds_public_weights(tmp_path: Path) -> None:
    ours = weights("our-weights", "MIT", True, "angiography")
    lab = write(tmp_path / "lab", {"checkpoints.yaml": ours})
    problem = {"modality": "angiography", "task": "classification"}
    facts = {
        packed: recommend(problem, Knowledge.load(packs=[lab] * packed)).facts for packed in (0, 1)
    }
    assert facts[0].values["has_checkpoint"] == "none"
    assert facts[1].values["has_checkpoint"] == "permissive"
    assert facts[1].reasons["has_checkpoint"] == "known: Our-Weights"
    assert "Our-Weights: c" in run("explain", "angiography", "--rules", lab).stdout
    told = json.loads(run("explain", "angiography", "--format", "json", "--rules", lab).stdout)
    assert [c["id"] for c in told["checkpoints"]] == ["our-weights"]
    before = pack(lab).sha256
    write(lab, {"checkpoints.yaml": ours.replace("MIT", "BSD")})
    assert pack(lab).sha256 != before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("our-weights", "ct-fm"), "lab/checkpoints.yaml:1: ct-fm: id: given twice"),
        (
            ("[angiography]", "[angiografy]"),
            "lab/checkpoints.yaml:3: our-weights: modality: no modality 'angiografy'; "
            "did you mean 'angiography'?",
        ),
        (("file_format: monai", "file_format: moani"), "'huggingface' or 'other'; did you mean"),
        (("file: null", "file: a drive"), "does not have the form"),
        (("permissive", "permisive"), "permisive: there is no such key here; did you mean"),
    ],
)
def test_weights_that_are_wrong_are_refused(
    change: tuple[str, str], said: str, tmp_path: Path
) -> None:
    text = weights("our-weights", "MIT", True, "angiography").replace(*change)
    lab = write(tmp_path / "lab", {"checkpoints.yaml": text})
    for args in (["recommend", *CT], ["generate", *CT, "-o", "-"], ["explain", "ct"]):
        result = run(*args, "--rules", lab)
        assert result.exit_code == 2 and result.stdout == ""
        assert said in result.stderr and len(result.stderr.splitlines()) == 1
    assert any(said in line for line in Knowledge.load(packs=[lab]).problems())


def test_the_shipped_rules_and_a_pack_are_sound_together(ours: Path) -> None:
    assert Knowledge.load(packs=[ours]).problems() == []


def test_old_selectors_meet_the_methods_of_a_pack(tmp_path: Path) -> None:
    new = method("simmim", "generative", "masked-modelling")
    over = write(tmp_path / "p", {"methods/simmim.yaml": new})
    knowledge = Knowledge.load(tiny(tmp_path), [over])
    assert "simmim" in knowledge.expand(knowledge.rules[0].prefer)


def test_an_item_of_the_same_id_overrides_and_the_answer_says_so(tmp_path: Path) -> None:
    weaker = FILES["advice/a.yaml"].replace("strength: strong", "strength: conditional")
    card = FILES["methods/spark.yaml"].replace("name: SPARK", "name: Our SparK")
    over = write(tmp_path / "p", {"advice/x.yaml": weaker, "methods/spark.yaml": card})
    root = tiny(tmp_path)
    before = recommend(PROBLEM, Knowledge.load(root))
    after = recommend(PROBLEM, Knowledge.load(root, [over]))
    assert before.strategies[0].score == 2 * after.strategies[0].score
    assert {s.name for s in after.strategies} - {s.name for s in before.strategies} == {"Our SparK"}
    (used,) = after.knowledge.packs
    assert used.overrides == ("rule volumes", "method spark")


def test_a_later_pack_wins_over_an_earlier_one(tmp_path: Path) -> None:
    weaker = FILES["advice/a.yaml"].replace("strength: strong", "strength: conditional")
    first = write(tmp_path / "first", {"advice/x.yaml": weaker})
    last = write(tmp_path / "last", {"advice/x.yaml": FILES["advice/a.yaml"]})
    root = tiny(tmp_path)
    scores = {
        order: recommend(PROBLEM, Knowledge.load(root, packs)).strategies[0].score
        for order, packs in {"first last": [first, last], "last first": [last, first]}.items()
    }
    assert scores["first last"] == 2 * scores["last first"]


def test_a_changed_setting_of_a_pack_reaches_the_plan(tmp_path: Path) -> None:
    body = "when: {task: segmentation}\nset: {mask_ratio: 0.6}\nfor: [mae]"
    text = rule("our-mask", body).replace("roe-2020-one", "us-2026-scanner")
    over = write(tmp_path / "p", {"advice/x.yaml": text, "studies/us-2026-scanner.yaml": STUDY})
    found = recommend(PROBLEM, Knowledge.load(packs=[over]))
    mae = next(s for s in found.strategies if s.method == "mae")
    assert (mae.settings["mask_ratio"].value, mae.settings["mask_ratio"].rule) == (0.6, "our-mask")
    assert "Rule pack: p, sha256 " in generate(found, "mae")


def test_the_hash_of_a_pack_knows_its_rules_and_nothing_else(ours: Path) -> None:
    before = pack(ours).sha256
    write(ours, {"README.md": "hello", "__init__.py": ""})
    assert pack(ours).sha256 == before
    write(ours, {"advice/ours.yaml": OURS.replace("both", "all")})
    assert pack(ours).sha256 != before


def test_packs_are_evaluated_by_the_reference_only(ours: Path) -> None:
    knowledge = Knowledge.load(packs=[ours])
    assert recommend(PROBLEM, knowledge).engine == "reference"
    with pytest.raises(RuleError, match="takes no rule packs"):
        recommend(PROBLEM, knowledge, "durable")


def test_a_pack_may_stand_in_a_folder_called_rules(ours: Path, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    ours.rename(tmp_path / "project" / "rules")
    for folder in (tmp_path / "project", tmp_path / "project" / "rules"):
        assert pack(folder).name == "project"


# --- what is refused

BROKEN: dict[str, tuple[dict[str, str], str]] = {
    "a method that is not there": (
        {"advice/a.yaml": OURS, "studies/us-2026-scanner.yaml": STUDY},
        "lab/advice/a.yaml:3: our-scanner: prefer: no method 'our-method'",
    ),
    "a card that is not whole": (
        {"methods/our-method.yaml": METHOD.replace("title: A paper\n", "")},
        "lab/methods/our-method.yaml:1: our-method: title: missing",
    ),
    "a script": (
        {
            "methods/our-method.yaml": METHOD.replace(
                "script: null", 'script: {dimensionality: ["2d"], task: [], backbone: [cnn]}'
            )
        },
        "lab/methods/our-method.yaml:9: our-method: script: a pack brings no template",
    ),
    "no YAML": ({"advice/a.yaml": "- [1"}, "lab/advice/a.yaml:"),
    "thresholds": (
        {"advice/a.yaml": "[]", "scale.yaml": "{}"},
        "lab/scale.yaml: a pack cannot change this",
    ),
    "one id twice": (
        {
            "advice/a.yaml": OURS.replace("our-method", "mae"),
            "advice/b.yaml": OURS.replace("our-method", "mae"),
            "studies/us-2026-scanner.yaml": STUDY,
        },
        "lab/advice/b.yaml:1: our-scanner: id: taken by a rule in lab/advice/a.yaml",
    ),
    "nothing": ({"README.md": "hello"}, "no rule pack; it needs one of advice"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_pack_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    files, words = BROKEN[name]
    folder = write(tmp_path / "lab", files)
    for args in (["recommend", *CT], ["generate", *CT, "-o", "-"], ["explain", "split-by-patient"]):
        result = run(*args, "--rules", folder)
        assert result.exit_code == 2 and result.stdout == ""
        assert words in result.stderr and len(result.stderr.splitlines()) == 1


def test_check_tells_every_problem_of_a_pack(tmp_path: Path, ours: Path) -> None:
    write(ours, {"advice/ours.yaml": OURS.replace("not: [{modality: mri", "not: [{modality: ct")})
    write(ours, {"advice/note.txt": "hello"})
    result = run("rules", "check", "--rules", ours)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "our-lab/advice/note.txt: not read; a file here is named <id>.yaml",
        "our-lab/advice/ours.yaml:11: our-scanner: examples.not.0: the rule fires here",
    ]
    assert "2 problems in rules, our-lab" in result.stderr


def test_two_packs_of_one_name_are_refused(tmp_path: Path) -> None:
    folders = [write(tmp_path / n / "lab", {"advice/a.yaml": "[]"}) for n in "ab"]
    with pytest.raises(KnowledgeError, match="two rule packs are called 'lab'"):
        Knowledge.load(packs=folders)
    assert len(Knowledge.load(packs=[folders[0], folders[0]]).packs) == 1


# --- the command line


def test_every_command_that_answers_takes_packs(ours: Path, tmp_path: Path) -> None:
    rules = ("--rules", ours)
    shown = shell("recommend", *CT, *rules, "--all", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "our-method" in shown.stdout and "our-lab 3, sha256 " in shown.stdout
    answer = json.loads(run("recommend", *CT, *rules, "--format", "json").stdout)
    assert answer["knowledge"]["packs"][0]["name"] == "our-lab"
    assert "# Rule pack: our-lab 3" in run("generate", *CT, *rules, "-o", "-").stdout
    assert "We compared both" in run("explain", "our-scanner", *rules).stdout
    assert "our-method" in run("methods", *rules).stdout
    assert run("modalities", *rules).exit_code == 0
    assert "rule pack our-lab 3" in run("rules", "check", *rules).stdout
    assert "us-2026-scanner" in run("evidence", "list", "--paper", "us-2026", *rules).stdout
    typed = "ct\nseg\ndone\n\nn\n"
    asked = CliRunner().invoke(main, ["ask", *map(str, rules)], input=typed)
    assert asked.exit_code == 0 and "our-lab 3" in asked.stdout


def test_a_saved_answer_of_a_pack_is_told_from_one_without(ours: Path, tmp_path: Path) -> None:
    saved = tmp_path / "a.json"
    assert run("recommend", *CT, "--rules", ours, "-o", saved).exit_code == 0
    Recommendation.model_validate_json(saved.read_text())
    assert "other knowledge" in run("generate", "--from", saved, "-o", "-").stderr
    assert run("generate", "--from", saved, "-o", "-", "--rules", ours).stderr == ""


# --- installed packs


@pytest.fixture
def site(ours: Path, tmp_path: Path) -> Path:
    """A folder of installed packages, of which one brings the pack."""
    site = tmp_path / "site"
    (site / "our_rules").mkdir(parents=True)
    ours.rename(site / "our_rules" / "rules")
    entry = "[medssl_advisor.rules]\nour-lab = our_rules\n"
    return write(
        site,
        {
            "our_rules/__init__.py": "raise SystemExit('code of a pack ran')\n",
            "our_rules-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: our\nVersion: 1\n",
            "our_rules-1.dist-info/entry_points.txt": entry,
        },
    )


def test_an_installed_pack_is_used_and_its_code_is_not_run(site: Path, tmp_path: Path) -> None:
    shown = shell("recommend", *CT, "--all", cwd=tmp_path, path=site)
    assert shown.returncode == 0, shown.stderr
    assert "our-lab 3, sha256 " in shown.stdout


def test_python_calls_are_the_same_in_every_environment(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(site))
    assert [p.name for p in installed()] == ["our-lab"]
    assert recommend(PROBLEM).knowledge.packs == ()
    found = recommend(PROBLEM, Knowledge.load(packs=installed()))
    assert found.knowledge.packs[0].name == "our-lab"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"our_rules-1.dist-info/entry_points.txt": "[medssl_advisor.rules]\nx = nowhere\n"},
         "rule pack 'x': the package 'nowhere' cannot be found"),
        ({"our_rules/rules/scale.yaml": "{}"}, "'our_rules' is broken: our-lab/scale.yaml"),
    ],
)  # fmt: skip
def test_a_broken_installed_pack_is_told(
    site: Path, tmp_path: Path, files: dict[str, Any], words: str
) -> None:
    write(site, files)
    shown = shell("recommend", *CT, cwd=tmp_path, path=site)
    assert shown.returncode == 2 and shown.stdout == ""
    assert words in shown.stderr and len(shown.stderr.splitlines()) == 1


def test_looking_for_installed_packs_costs_next_to_nothing() -> None:
    def cost() -> float:
        start = time.process_time()
        assert installed() == ()
        return time.process_time() - start

    assert min(cost() for _ in range(20)) < 0.02  # about 1 ms; importing the reader takes 80
