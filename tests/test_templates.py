"""Templates are plain Python; all valid combinations render; the text is what reviewers saw."""

from __future__ import annotations

import ast
import itertools
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from advisor import Knowledge, Recommendation, parts, recommend
from advisor.origin import MARK
from advisor.plan import Plan, PlanError, make_plan
from advisor.ranges import Range, limits
from advisor.render import literal, render

ROOT = Path(__file__).parent.parent
TEMPLATES = sorted((ROOT / "templates").rglob("*.j2"))
METHODS = Knowledge.load().methods
MODALITIES = Knowledge.load().modalities
COMBINATIONS = [
    (card.id, task, dimensionality, backbone)
    for card in METHODS.values()
    if card.script
    for task, dimensionality, backbone in itertools.product(
        card.script.task, card.script.dimensionality, card.script.backbone
    )
    # which the rule plain-masking-on-flat-images-needs-tokens excludes
    if (card.id, dimensionality, backbone) != ("mae", "2d", "cnn")
]
GOLDEN = {
    "simclr-xray-classification-2d": {"modality": "xray", "labeled": 200, "classes": 14},
    "byol-histopathology-classification-2d": {"modality": "histopathology", "classes": 9},
    "mae-ct-segmentation-3d": {"modality": "ct", "labeled": 40, "unlabeled": 3000},
    "models-genesis-mri-segmentation-3d": {"modality": "mri", "labeled": 12, "classes": 3},
    "swin-unetr-ct-segmentation-3d": {"modality": "ct", "image_size": 96, "batch_size": 2},
}


def answer(modality: str, task: str, dimensionality: str, **more: object) -> Recommendation:
    profile = {"modality": modality, "task": task, "dimensionality": dimensionality, **more}
    return recommend(profile, engine="reference")


def emitted(method: str, answered: Recommendation, **overrides: str) -> str:
    return render(make_plan(answered, method, overrides))


def modality_for(dimensionality: str) -> list[str]:
    return [m.id for m in MODALITIES.values() if dimensionality in m.dimensionality]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: str(p.relative_to(ROOT / "templates")))
def test_a_template_is_python_and_only_the_page_holds_marks(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    ast.parse(source)
    assert path.name == "script.py.j2" or not re.search(r"{[%{#]", source)


def every_problem(method: str) -> Iterator[Recommendation]:
    """All that a card says it has a script for, in every modality where no rule excludes it."""
    for id, task, dimensionality, backbone in COMBINATIONS:
        for modality in modality_for(dimensionality) if id == method else ():
            for multilabel in (False, True) if task == "classification" else (False,):
                more = {"backbone": backbone, "multilabel": multilabel}
                answered = answer(modality, task, dimensionality, **more)
                if method not in {out.method for out in answered.ruled_out}:
                    yield answered


def every_setting_has_a_range(plan: Plan) -> None:
    """All but texts that may be anything; and what is advised lies in it."""
    values = {setting.name: setting.value for setting in plan.settings}
    ranged = [name for limit in plan.limits for name in limit.names]
    assert len(ranged) == len(set(ranged)) and set(ranged) <= values.keys()
    assert values.keys() - set(ranged) <= {"weights"}
    for limit in plan.limits:
        holds = eval(f"lambda v, s: {limit.test}")
        for name in limit.names:
            several = values[name] if isinstance(values[name], tuple) else (values[name],)
            assert all(holds(value, SimpleNamespace(**values)) for value in several), name


@pytest.mark.parametrize("method", [c.id for c in METHODS.values() if c.script])
def test_every_valid_combination_is_a_clean_script(method: str, tmp_path: Path) -> None:
    """Python without undefined or unused names, formatted, and without scars of templates."""
    plans = [make_plan(answered, method) for answered in every_problem(method)]
    for plan in plans:
        every_setting_has_a_range(plan)
    texts = {render(plan) for plan in plans}
    assert texts
    for number, text in enumerate(texts):
        roots = re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)
        assert not {"advisor", "lightly"} & set(roots)
        assert not re.search(r"{[%{]|[%}]}|slots", text)
        own = set(re.findall(r"^    (\w+): [\w\[\], .]+ = ", text, re.MULTILINE))
        named = re.findall(r"^(?:READING|FREE) = (set\(.+?\.split\(\)\n?\))$", text, re.M | re.S)
        assert len(named) == 2 and all(eval(names) <= own for names in named)
        assert max(map(len, text.splitlines())) <= 100
        (tmp_path / f"{number}.py").write_text(text, encoding="utf-8")
    clean(str(tmp_path))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str, update_golden: bool) -> None:
    """What is particular to a script: all but its parts, which stand in it as in the templates."""
    method, modality, task, dimensionality = name.rsplit("-", 3)
    answered = answer(**{"task": task, "dimensionality": dimensionality, **GOLDEN[name]})
    plan = make_plan(answered, method)
    text = render(plan)
    assert text == render(plan), "rendered twice, the bytes differ"
    for part in plan.parts:
        body = f"\n\n\n{parts.part(part).body}\n"
        assert text.count(body) == 1, part
        text = text.replace(body, f"\n# templates/{part}.py.j2\n")
    # the hashes change with every word in rules/ and templates/; what follows from it is compared
    text = re.sub(r"sha256 [0-9a-f]{64}", "sha256 (of rules/)", text)
    text = text.rpartition(MARK)[0]
    file = ROOT / "tests" / "golden" / f"{name}.txt"
    if update_golden:
        file.write_text(text, encoding="utf-8")
    assert modality in text and file.read_text(encoding="utf-8") == text, (
        "the emitted script changed; read the difference, then: make golden"
    )


def clean(*paths: str) -> None:
    ruff = [sys.executable, "-m", "ruff"]
    shared = ["--isolated", "--no-cache", "--line-length", "100", "--target-version", "py310"]
    for check in (["check", "--select", "E,F,I,B,UP", "--ignore", "B905"], ["format", "--check"]):
        done = subprocess.run([*ruff, *check, *shared, *paths], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:]


def test_golden_scripts_are_all_there() -> None:
    assert {path.stem for path in (ROOT / "tests" / "golden").iterdir()} == set(GOLDEN)


@pytest.mark.parametrize(
    ("method", "task", "dimensionality", "backbone"),
    COMBINATIONS,
    ids=["-".join(combination) for combination in COMBINATIONS],
)
def test_every_setting_is_read_by_the_script(
    method: str, task: str, dimensionality: str, backbone: str
) -> None:
    modality = "mri" if dimensionality == "3d" else "xray"
    plan = make_plan(answer(modality, task, dimensionality, backbone=backbone), method)
    bodies = "\n".join(parts.part(name).body for name in plan.parts)
    for setting in plan.settings:
        assert re.search(rf"settings\.{setting.name}\b", bodies), setting.name
        assert setting.why and setting.source


@pytest.mark.parametrize("card", [c for c in METHODS.values() if c.script], ids=lambda c: c.id)
def test_a_card_lists_what_its_template_asks_for(card) -> None:
    names = [f"methods/{card.id}{variant}" for variant in ("", "_unet")]
    templates = [parts.part(name) for name in names if parts.exists(name)]
    asked = {name for template in templates for name in template.settings}
    common = set(Knowledge.load().protocol)  # of which a card may want another value
    assert asked - {"size", "channels", "patch_size"} - common <= set(card.settings)
    recipe = {"epochs", "batch_size", "learning_rate", "weight_decay", "warmup_epochs"}
    own = {name.removesuffix("_unet") for name in card.settings}
    assert own - recipe - common <= asked


def test_overrides_take_the_type_of_what_they_replace() -> None:
    answered = answer("mri", "segmentation", "3d", labeled=40)
    text = emitted("models-genesis", answered, epochs="3", label_fractions="2,0.5")
    assert "epochs: int = 3\n" in text
    assert "label_fractions: tuple[float, ...] = (2.0, 0.5)\n" in text
    with pytest.raises(PlanError, match="--set epochs=many: a value of type int is expected"):
        emitted("models-genesis", answered, epochs="many")
    with pytest.raises(PlanError, match=r"no such setting.*'epochs'"):
        emitted("models-genesis", answered, epoch="3")


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("epochs", "-1", "1 or more"),
        ("mask_ratio", "1.5", "above 0 and below 1"),
        ("mask_ratio", "nan", "above 0 and below 1"),
        ("learning_rate", "inf", "above 0 and at most 1"),
        ("adaptation", "linear", "finetune or frozen"),
        ("flip_axes", "0 3", "0, 1 or 2"),
        ("label_fractions", "-1 0", "above 0"),
        ("label_fractions", "", "above 0"),
        ("network_width", "32", "a multiple of 64"),
        ("intensity_low", "2000", "below intensity_high"),
        ("classes", "300", "2 to 256"),
    ],
)
def test_an_override_out_of_range_is_refused_in_one_line(
    name: str, text: str, allowed: str
) -> None:
    with pytest.raises(PlanError) as refused:
        emitted("mae", answer("ct", "segmentation", "3d", backbone="vit"), **{name: text})
    said = str(refused.value)
    assert said.startswith(f"--set {name}={text[:2].strip()}") and "\n" not in said
    assert said.endswith(f": must be {allowed}")


def test_what_is_in_range_is_taken() -> None:
    given = {"flip_axes": "", "intensity_low": "2e3", "intensity_high": "3e3", "mask_ratio": "0.9"}
    plan = make_plan(answer("ct", "segmentation", "3d"), "mae", given)
    values = {setting.name: setting.value for setting in plan.settings}
    assert [values[name] for name in given] == [(), 2000, 3000, 0.9]


@pytest.mark.parametrize(
    ("said", "inside", "outside"),
    [
        ({"least": 1}, [1, 2.5], [0, 0.5, math.nan, math.inf]),
        ({"above": 0, "below": 1}, [0.1, 0.9], [0, 1, -1, math.nan]),
        ({"least": 0, "most": 1}, [0, 1, 0.5], [-0.1, 1.1]),
        ({"above": 0, "most": "other"}, [1, 5], [0, 5.5]),
        ({"least": "other"}, [5], [4]),
        ({"multiple": 8}, [8, 64], [0, -8, 12]),
        ({"among": [18, 50]}, [18, 50], [34]),
        ({"among": ["val", "test"]}, ["val"], ["train", "", 1]),
    ],
)
def test_a_range_means_the_same_here_and_in_the_script(
    said: dict[str, Any], inside: list[Any], outside: list[Any]
) -> None:
    each = Range.model_validate({"settings": ["x"], **said})
    (limit,) = limits(["x", "free"], {"x": each})
    holds = eval(f"lambda v, s: {limit.test}")
    assert limit.names == ("x",) and limit.words == each.words()
    for value in [*inside, *outside]:
        assert each.holds(value, {"other": 5}) == (value in inside), value
        if value != math.inf:  # which the script refuses wherever it is
            assert holds(value, SimpleNamespace(other=5)) == (value in inside), value
    assert each.holds((*inside, *inside), {"other": 5}) and not each.holds((), {"other": 5})


def test_answers_reach_the_settings() -> None:
    answered = answer("ct", "segmentation", "3d", classes=5, batch_size=3, image_size=50)
    values = {s.name: s for s in make_plan(answered, "models-genesis").settings}
    assert values["classes"].value == 5 and values["batch_size"].value == 3
    assert values["size"].value == 48 and "multiple of 8" in values["size"].why
    large = make_plan(answer("ct", "segmentation", "3d", image_size=512), "models-genesis")
    assert {s.name: s.value for s in large.settings}["size"] == 64  # a bound, not a wish
    several = make_plan(answer("fundus", "classification", "2d", labeled=200, classes=5), "simclr")
    assert {s.name: s.value for s in several.settings}["label_fractions"] == (0.1, 1.0)
    few = make_plan(answer("ct", "segmentation", "3d", labeled=20), "models-genesis")
    assert {s.name: s.value for s in few.settings}["label_fractions"] == (0.1, 1.0)


def test_a_method_without_a_script_is_refused_in_one_line() -> None:
    answered = answer("ct", "segmentation", "3d")
    others = (
        s.model_copy(update={"emits": s.emits and s.method != "voco"}) for s in answered.strategies
    )
    answered = answered.model_copy(update={"strategies": tuple(others)})
    for method, words in (
        ("maee", "did you mean 'mae'"),
        ("voco", "there is no script template"),
        ("imagenet", "imagenet is ruled out here"),
    ):
        with pytest.raises(PlanError, match=words) as caught:
            make_plan(answered, method)
        assert "\n" not in str(caught.value)
    none = [s.model_copy(update={"emits": False}) for s in answered.strategies]
    with pytest.raises(PlanError, match="no method with a script template fits segmentation"):
        make_plan(answered.model_copy(update={"strategies": none}))


def test_what_a_user_types_cannot_become_code() -> None:
    assert literal('"; import os; os.system("x")') == repr('"; import os; os.system("x")')
    answered = answer("ct", "segmentation", "3d")
    text = emitted("public-checkpoint", answered, weights='x"\nimport os  # ')
    tree = ast.parse(text)
    settings = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Settings")
    value = next(
        n.value
        for n in settings.body
        if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "weights"
    )
    assert ast.literal_eval(value) == 'x"\nimport os  # '


def test_imports_are_written_once_in_order() -> None:
    text = emitted("mae", answer("ct", "segmentation", "3d"))
    head = text[: text.index("DIMS = ")]
    lines = [line for line in head.splitlines() if line.startswith(("import ", "from "))]
    assert len(lines) == len(set(lines))
    assert lines.index("import torch") > lines.index("import argparse")
