"""Rules are read lazily and tied together; wrong ones are refused in one line with the cure."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tiny import FILES, method, rule, tiny, weights

from advisor.conditions import compile_when
from advisor.engine import evaluator
from advisor.facts import band, derive, kinds
from advisor.knowledge import Knowledge, KnowledgeError, home
from advisor.profile import Profile, ProfileError
from advisor.reading import parse_text


def facts_of(knowledge: Knowledge, **answers: Any) -> dict[str, Any]:
    profile = Profile.parse({"modality": "ct", "task": "segmentation", **answers})
    return derive(profile, knowledge).values


# The shipped rules


def test_the_shipped_rules_are_sound() -> None:
    assert Knowledge.load().problems() == []


def test_the_shipped_rules_are_loaded_once_even_by_many_threads() -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: id(Knowledge.load()), range(32)))
    assert len(found) == 1


def test_first_use_by_many_threads_at_once_is_safe() -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from advisor import recommend
barrier = Barrier(8)
def ask(i):
    barrier.wait()
    found = recommend({"modality": ["ct", "mri"][i % 2], "task": "segmentation"})
    return found.strategies[0].method
with ThreadPoolExecutor(8) as pool:
    print(len({(i % 2, m) for i, m in enumerate(pool.map(ask, range(8)))}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("2", "")


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("true", True),
        ("null", None),
        ("12:30", "12:30"),
        ("1e-3", 0.001),
        ("-1000", -1000),
        (".5", 0.5),
        ("2.", 2.0),
        ("2d", "2d"),
        ("010", 10),
        ("1_000", "1_000"),
        ("2026-11-01", "2026-11-01"),
        ("'7'", "7"),
        ("-", "-"),
    ],
)
def test_words_mean_what_they_look_like(text: str, value: object) -> None:
    found = parse_text(f"a: {text}" if text != "-" else "a: '-'", "x")["a"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "x:3: 'a' is given twice"),
        ("", "x: the file is empty"),
        ("# only a comment\n", "x: the file is empty"),
        ("a: [1, 2\nb: 3\n", "x:2: not valid YAML: did not find expected ',' or ']'"),
        ("a: 1\n---\nb: 2\n", "x: more than one document in the file"),
        ("a: &b 1\nc: *b\n", "x:2: anchors and aliases (& and *) are not used here"),
        ("? [1]\n: 2\n", "x:1: a key must be a plain name"),
    ],
)
def test_unclear_yaml_is_refused(text: str, line: str) -> None:
    with pytest.raises(KnowledgeError) as error:
        parse_text(text, "x")
    assert str(error.value) == line


# A broken file gives one line


def test_the_tiny_rules_are_sound(tmp_path: Path) -> None:
    assert Knowledge(tiny(tmp_path)).problems() == []


MAE, CT, STUDY = "methods/mae.yaml", "modalities/ct.yaml", "studies/roe-2020-one.yaml"
ADVICE, FAMILY = "advice/a.yaml", "[{family: masked-modelling}]"

# file: what is replaced, by what, and the line that follows (after the name of the file)
BROKEN: dict[str, list[tuple[str, str, str]]] = {
    MAE: [
        ("id: mae", "id: mea", "1: mea: id: the file is mae.yaml; both must be the same"),
        ("name: MAE\n", "", "1: mae: name: missing"),
        ("name: MAE", "nane: MAE", "2: mae: nane: there is no such key here; did you mean 'name'?"),
        (
            '"2005.10240"',
            "2005.10240",
            "6: mae: source.arxiv: 2005.10240 is read as a number or as yes/no; write it"
            ' in quotes: "2005.10240"',
        ),
        (
            "paradigm: generative",
            "paradigm: generativ",
            "4: mae: paradigm: 'generativ' is not 'contrastive', 'predictive', "
            "'generative', 'hybrid', 'supervised' or 'none'; did you mean 'generative'?",
        ),
        (
            "0.75, why",
            "{}, why",
            "10: mae: settings.mask_ratio.value: a finite number, a text, true, false or"
            " a list of these is expected",
        ),
        (
            "0.75, why: w",
            "0.75, way: w",
            "10: mae: settings.mask_ratio.way: there is no such key here; did you mean 'why'?",
        ),
        (
            "task: [segmentation], backbone: [vit]",
            "task: [segmentation], backbone: [cnn]",
            "9: mae: script.backbone: 'cnn' is not among the method's needs",
        ),
        ('{arxiv: "2005.10240"}', "{}", "6: mae: source: one of arxiv and doi is needed"),
    ],
    CT: [
        (
            "left-right",
            "left-rigt",
            "9: ct: views.flips: 'left-rigt' is not one of left-right, up-down, "
            "front-back; did you mean 'left-right'?",
        ),
        ("low: -1000", "low: 2000", "5: ct: intensity: low and high are needed, low below high"),
        ("value: 1.5", "value: wide", "6: ct: spacing_mm: 'wide' is not a number of 0 or more"),
    ],
    STUDY: [
        (
            "method: mae",
            "method: maee",
            "6: roe-2020-one: results.0.method: no method 'maee'; did you mean 'mae'?",
        ),
        (
            "modality: [ct]",
            "modality: [cat]",
            "3: roe-2020-one: setting.modality: no modality 'cat'; did you mean 'ct'?",
        ),
        (
            "kind: abstract",
            "kind: rumour",
            "8: roe-2020-one: source.kind: 'rumour' does not have the form",
        ),
    ],
    "scale.yaml": [
        (
            "low: 0.5",
            "low: 0.8",
            "2: certainty: numbers above 0, none rising, for high, moderate, low, very-low",
        ),
    ],
    "facts.yaml": [
        (
            "below: 50",
            "below: 0",
            "3: label_regime: bands: 'below' must rise from band to band and be left out"
            " of the last",
        ),
        (
            "from: labeled",
            "from: labelled",
            "2: label_regime: from: no number 'labelled'; did you mean 'labeled'?",
        ),
    ],
    "protocol.yaml": [
        ("why: w, ", "", "1: crop_size: why: missing"),
    ],
    "networks.yaml": [
        ("value: 12, ", "", "1: vit: depth.value: missing"),
    ],
    "ranges.yaml": [
        ("least", "leest", "1: leest: there is no such key here; did you mean 'least'?"),
        (", least: 1", "", "1: one of `among`, `multiple` and bounds is expected"),
        ("least: 1", "least: 1, above: 1", "1: least and above: one of them is enough"),
    ],
    ADVICE: [
        ("id: volumes", "id: Volumes", "1: Volumes: id: 'Volumes' does not have the form"),
        ("finding: P1", "finding: P2", "2: volumes: finding: no finding 'P2'"),
        (FAMILY, "[maee]", "4: volumes: prefer: no method 'maee'; did you mean 'mae'?"),
        (
            FAMILY,
            "[{family: restoration}]",
            "4: volumes: prefer: no method has family 'restoration'",
        ),
        (
            FAMILY,
            "[{famly: restoration}]",
            "4: volumes: prefer.0.famly: there is no such key here; did you mean 'family'?",
        ),
        (FAMILY, "[{}]", "4: volumes: prefer: a selector needs a paradigm or a family"),
        ("prefer: [{family: masked-modelling}]", "finding: P1", "4: 'finding' is given twice"),
        (
            "  prefer: [{family: masked-modelling}]\n",
            "",
            "1: volumes: it does nothing; give one of prefer, avoid, exclude, set, caution",
        ),
        ("  strength: strong\n", "", "1: volumes: strength: missing; prefer and avoid need it"),
        (
            "strength: strong",
            "avoid: [mae]\n  strength: strong",
            "5: volumes: avoid: 'mae' is preferred by the same rule",
        ),
        (
            "strength: strong",
            "for: [mae]\n  strength: strong",
            "5: volumes: for: only 'set' can be limited to some methods",
        ),
        (
            "strength: strong",
            "set: {mask_rato: 0.5}\n  strength: strong",
            "5: volumes: set: no setting 'mask_rato'; did you mean 'mask_ratio'?",
        ),
        (
            "strength: strong",
            "set: {mask_ratio: high}\n  strength: strong",
            "5: volumes: set: mask_ratio: 'high' is of another sort than 0.75",
        ),
        (
            "[roe-2020-one]",
            "[roe-2020-two]",
            "8: volumes: studies: no study 'roe-2020-two'; did you mean 'roe-2020-one'?",
        ),
        ("[roe-2020-one]", "[]", "8: volumes: studies: a rule without a study needs a source"),
        ("  against: []\n", "", "1: volumes: against: missing"),
        (
            "    not: [{modality: ct, task: classification}]\n",
            "",
            "10: volumes: examples.not: missing",
        ),
        (
            "fires: [{modality: ct, task: segmentation}]",
            "fires: [{modality: ct, task: regression}]",
            "11: volumes: examples.fires.0: the rule does not fire",
        ),
        (
            "not: [{modality: ct, task: classification}]",
            "not: [{modality: ct, task: segmentation}]",
            "12: volumes: examples.not.0: the rule fires here",
        ),
        (
            "fires: [{modality: ct, task: segmentation}]",
            "fires: [{modality: mr, task: segmentation}]",
            "11: volumes: examples.fires.0: modality: 'mr' is not one of ct",
        ),
    ],
}


@pytest.mark.parametrize(
    ("file", "old", "new", "line"),
    [(file, *case) for file, cases in BROKEN.items() for case in cases],
)
def test_a_broken_file_gives_one_line(
    tmp_path: Path, file: str, old: str, new: str, line: str
) -> None:
    assert old in FILES[file]
    problems = Knowledge(tiny(tmp_path, {file: FILES[file].replace(old, new)})).problems()
    assert problems and problems[0].startswith(f"rules/{file}:{line}"), problems
    assert not any("\n" in p for p in problems)


def test_all_problems_of_all_files_are_told(tmp_path: Path) -> None:
    files = {
        MAE: FILES[MAE].replace("name: MAE\n", "").replace("title: A paper\n", ""),
        STUDY: FILES[STUDY].replace("trust: high", "trust: full"),
    }
    problems = Knowledge(tiny(tmp_path, files)).problems()
    assert len(problems) == 3


def test_an_id_belongs_to_one_rule_over_all_files(tmp_path: Path) -> None:
    root = tiny(tmp_path, {"advice/b.yaml": FILES[ADVICE]})
    assert Knowledge(root).problems() == [
        "rules/advice/b.yaml:1: volumes: id: taken by a rule in rules/advice/a.yaml"
    ]


@pytest.mark.parametrize(
    "name", ["VERSION", "scale.yaml", "facts.yaml", "protocol.yaml", "findings.yaml"]
)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    assert f"rules/{name}: the file is missing" in Knowledge(tiny(tmp_path, {name: ""})).problems()


def test_what_would_not_be_read_is_told(tmp_path: Path) -> None:
    root = tiny(tmp_path, {"advice/b.yml": "[]"})
    assert Knowledge(root).problems() == [
        "rules/advice/b.yml: not read; a file here is named <id>.yaml"
    ]


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(KnowledgeError, match="there is no such folder of rules"):
        Knowledge.load(tmp_path / "nowhere")
    with pytest.raises(KnowledgeError, match="the folder is missing"):
        home("nowhere")
    assert "rules/studies: the folder is missing" in Knowledge(_empty(tmp_path)).problems()


def _empty(folder: Path) -> Path:
    (folder / "rules").mkdir()
    return folder / "rules"


def test_loading_broken_rules_raises_the_first_line_and_keeps_all(tmp_path: Path) -> None:
    broken = FILES[ADVICE].replace("[{family: masked-modelling}]", "[maee, simcrl]")
    knowledge = Knowledge(tiny(tmp_path, {ADVICE: broken}))
    with pytest.raises(KnowledgeError) as error:
        _ = knowledge.rules
    assert str(error.value) == error.value.lines[0]
    assert str(error.value).startswith("rules/advice/a.yaml:4: volumes: prefer: no method 'maee'")
    assert len(error.value.lines) == 2


# Reading


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    root = tiny(tmp_path, {STUDY: "not: [valid", "modalities/mri.yaml": "not: [valid"})
    knowledge = Knowledge(root)
    assert knowledge.study_ids == ("roe-2020-one",)
    assert [r.id for r in knowledge.rules] == ["volumes"]
    assert knowledge.modalities["ct"].id == "ct"
    with pytest.raises(KnowledgeError, match="not valid YAML"):
        knowledge.study("roe-2020-one")
    with pytest.raises(KnowledgeError, match="no study 'roe-2020-on'; did you mean 'roe-2020-one'"):
        knowledge.study("roe-2020-on")


def test_rules_stand_in_file_order(tmp_path: Path) -> None:
    body = "when: {task: segmentation}\ncaution: true"
    files = {
        "advice/b.yaml": rule("beta", body) + rule("alpha", body),
        ADVICE: rule("zeta", body),
    }
    knowledge = Knowledge(tiny(tmp_path, files))
    assert [r.id for r in knowledge.engine_rules()] == ["zeta", "beta", "alpha"]
    assert list(knowledge.rule) == ["zeta", "beta", "alpha"]


def test_the_hash_knows_names_and_bytes(tmp_path: Path) -> None:
    same = {Knowledge(tiny(tmp_path / n)).sha256 for n in "ab"}
    other = Knowledge(tiny(tmp_path / "c", {"VERSION": "1.1\n"})).sha256
    assert len(same) == 1 and other not in same
    assert len(other) == hashlib.sha256().digest_size * 2
    (tmp_path / "b/rules/studies/roe-2020-one.yaml").rename(tmp_path / "b/rules/studies/x.yaml")
    assert Knowledge(tmp_path / "b/rules").sha256 not in same


def test_selectors_name_every_method_once_image_text_included(tmp_path: Path) -> None:
    knowledge = Knowledge(
        tiny(
            tmp_path,
            {ADVICE: FILES[ADVICE].replace("{family:", "mae, {paradigm: generative, family:")},
        )
    )
    assert knowledge.expand(knowledge.rules[0].prefer) == ("mae", "spark")
    both = FILES[ADVICE].replace("{family: masked-modelling}", "{paradigm: contrastive}")
    knowledge = Knowledge(tiny(tmp_path, {ADVICE: both}))
    assert knowledge.expand(knowledge.rules[0].prefer) == ("convirt", "simclr")


def test_a_new_method_is_met_by_the_old_rules(tmp_path: Path) -> None:
    new = method("simmim", "generative", "masked-modelling")
    knowledge = Knowledge(tiny(tmp_path, {"methods/simmim.yaml": new}))
    assert "simmim" in knowledge.expand(knowledge.rules[0].prefer)


def test_a_modality_without_a_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"^modality: 'cat' is not one of ct; did you mean 'ct'"):
        Knowledge(tiny(tmp_path)).check(Profile(modality="cat", task="segmentation"))


# Conditions


@pytest.mark.parametrize(
    ("when", "fires", "misses"),
    [
        ({"task": "segmentation"}, {}, {"task": "detection"}),
        ({"labeled": {"gte": 10, "lt": 50}}, {"labeled": 10}, {"labeled": 50}),
        ({"labeled": {"gt": 10}}, {"labeled": 11}, {"labeled": 10}),
        ({"labeled": {"lte": 10}}, {"labeled": 10}, {"labeled": 11}),
        ({"labeled": {"lte": 10}}, {"labeled": 0}, {}),
        ({"labeled": 10}, {"labeled": 10}, {"labeled": 11}),
        ({"labeled": "unknown"}, {}, {"labeled": 0}),
        ({"labeled": "known"}, {"labeled": 0}, {}),
        ({"backbone": ["cnn", "any"]}, {"backbone": "any"}, {"backbone": "vit"}),
        ({"backbone": {"not": "vit"}}, {"backbone": "cnn"}, {"backbone": "vit"}),
        ({"backbone": {"not": ["vit", "any"]}}, {"backbone": "cnn"}, {}),
        ({"multi_view": True}, {"multi_view": True}, {"multi_view": False}),
        ({"multi_view": {"not": True}}, {"multi_view": False}, {}),
        ({"label_regime": "few-shot"}, {"labeled": 49}, {"labeled": 50}),
        ({"any": [{"gpus": 0}, {"hours": {"lt": 2}}]}, {"hours": 1}, {"gpus": 1, "hours": 2}),
        ({"any": [{"gpus": 0}], "labeled": "known"}, {"gpus": 0, "labeled": 1}, {"gpus": 0}),
    ],
)
def test_conditions_mean_what_they_say(
    tmp_path: Path, when: dict[str, Any], fires: dict[str, Any], misses: dict[str, Any]
) -> None:
    from advisor.engine import EngineRule

    knowledge = Knowledge(tiny(tmp_path))
    compiled = compile_when(when, knowledge.kinds)
    assert not compiled.wrong
    fired = evaluator([EngineRule("r", compiled.branches)], "reference").fired
    assert fired(facts_of(knowledge, **fires)) == ["r"]
    assert fired(facts_of(knowledge, **misses)) == []


@pytest.mark.parametrize(
    ("when", "loc", "what"),
    [
        ({}, ("when",), "at least one condition"),
        ({"labels": 1}, ("when", "labels"), "no fact 'labels'; did you mean 'labeled'?"),
        ({"task": "segment"}, ("when", "task"), "did you mean 'segmentation'?"),
        ({"task": True}, ("when", "task"), "True is not one of"),
        ({"task": []}, ("when", "task"), "an empty list never holds"),
        ({"task": {}}, ("when", "task"), "an empty test"),
        ({"task": {"gte": 1}}, ("when", "task"), "gte is for numbers, and task holds words"),
        ({"labeled": "many"}, ("when", "labeled"), "'many' is not a number"),
        ({"labeled": {"gt": True}}, ("when", "labeled"), "True is not a number"),
        ({"labeled": [1, 2]}, ("when", "labeled"), "not with a list"),
        ({"labeled": {"not": 1}}, ("when", "labeled"), "not with 'not'"),
        ({"labeled": {"lest": 1}}, ("when", "labeled"), "'lest' is no test"),
        ({"multi_view": "yes"}, ("when", "multi_view"), "'yes' is neither true nor false"),
        ({"any": []}, ("when", "any"), "a list of conditions"),
        ({"any": [{}]}, ("when", "any", 0), "a mapping"),
        ({"any": [{"any": [{"gpus": 1}]}]}, ("when", "any", 0, "any"), "no fact 'any'"),
    ],
)
def test_a_wrong_condition_says_where_and_why(
    tmp_path: Path, when: dict[str, Any], loc: tuple[Any, ...], what: str
) -> None:
    compiled = compile_when(when, Knowledge(tiny(tmp_path)).kinds)
    assert compiled.branches == ()
    assert compiled.wrong[0].loc == loc
    assert what in compiled.wrong[0].what


# Facts


@pytest.mark.parametrize(
    ("labeled", "regime"),
    [(0, "none"), (1, "few-shot"), (49, "few-shot"), (50, "abundant"), (None, None)],
)
def test_the_upper_edge_of_a_band_belongs_to_the_next(
    tmp_path: Path, labeled: int | None, regime: str | None
) -> None:
    knowledge = Knowledge(tiny(tmp_path))
    assert facts_of(knowledge, labeled=labeled)["label_regime"] == regime
    found, why = band(knowledge.bands[0], labeled)
    assert found == regime and why


def test_bands_may_stand_on_derived_facts(tmp_path: Path) -> None:
    knowledge = Knowledge(tiny(tmp_path))
    assert facts_of(knowledge, gpus=2, hours=5.9)["compute"] == "short"
    assert facts_of(knowledge, gpus=2, hours=6)["compute"] == "ample"
    assert facts_of(knowledge, gpus=2)["compute"] is None


def test_every_fact_has_a_value_and_a_reason(tmp_path: Path) -> None:
    knowledge = Knowledge(tiny(tmp_path))
    facts = derive(Profile(modality="ct", task="detection"), knowledge)
    assert set(facts.values) == set(facts.reasons) == set(knowledge.kinds)
    assert set(kinds(knowledge.modalities, knowledge.bands)) == set(knowledge.kinds)
    assert all(facts.reasons.values())


def test_counts_are_combined_only_when_both_are_known(tmp_path: Path) -> None:
    knowledge = Knowledge(tiny(tmp_path))
    both = facts_of(knowledge, labeled=25, unlabeled=75)
    assert (both["cases"], both["label_fraction"], both["pool_ratio"]) == (100, 0.25, 3.0)
    one = facts_of(knowledge, labeled=25)
    assert (one["cases"], one["label_fraction"], one["pool_ratio"]) == (None, None, None)
    zero = facts_of(knowledge, labeled=0, unlabeled=0)
    assert (zero["cases"], zero["label_fraction"], zero["pool_ratio"]) == (0, None, None)


def test_the_card_fills_in_what_it_knows(tmp_path: Path) -> None:
    knowledge = Knowledge(tiny(tmp_path))
    facts = facts_of(knowledge)
    assert facts["dimensionality"] == "3d" and facts["channels"] == 1 and facts["colour"] is False
    assert facts["dense"] is True and facts_of(knowledge, task="regression")["dense"] is False
    assert facts_of(knowledge, dimensionality="2d")["dimensionality"] == "2d"


@pytest.mark.parametrize(
    ("cards", "allowed", "found"),
    [
        ("both", "any", "permissive"),
        ("both", "permissive", "permissive"),
        ("both", "none", "none"),
        ("both", None, "permissive"),
        ("closed", "any", "restricted"),
        ("closed", "permissive", "none"),
        ("closed", None, "restricted"),
        ("neither", "any", "none"),
    ],
)
def test_checkpoints_count_by_licence(
    tmp_path: Path, cards: str, allowed: str | None, found: str
) -> None:
    opened, closed = weights("open", "MIT", True), weights("closed", "CC-BY-NC-4.0", False)
    text = {"both": opened + closed, "closed": closed, "neither": "[]"}[cards]
    knowledge = Knowledge(tiny(tmp_path, {"checkpoints.yaml": text}))
    assert facts_of(knowledge, public_weights=allowed)["has_checkpoint"] == found
