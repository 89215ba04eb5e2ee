"""Fired rules become scores, reasons, one sentence, and changes that would turn the answer."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny import FILES, method, rule, tiny

from advisor import Knowledge, Profile, ProfileError, Recommendation, recommend

ADVICE = "advice/a.yaml"
SEGMENT = "when: {task: segmentation}\n"


def base(folder: Path, *rules: tuple[str, str], **files: str) -> Knowledge:
    """The tiny rule base with other advice; files by name, `methods__mae` for a folder's."""
    text = "".join(rule(id, body) for id, body in rules)
    more = {name.replace("__", "/") + ".yaml": content for name, content in files.items()}
    return Knowledge(tiny(folder, {ADVICE: text, **more}))


def ask(knowledge: Knowledge, **answers: Any) -> Recommendation:
    return recommend({"modality": "ct", "task": "segmentation", **answers}, knowledge, "reference")


def scores(found: Recommendation) -> dict[str, float]:
    return {s.method: s.score for s in found.strategies}


def votes(verb: str, names: str, strength: str = "strong", certainty: str = "high") -> str:
    return f"{SEGMENT}{verb}: [{names}]\nstrength: {strength}\ncertainty: {certainty}"


def test_scores_are_strength_times_certainty_summed_over_fired_rules(tmp_path: Path) -> None:
    knowledge = base(
        tmp_path,
        ("one", votes("prefer", "mae, spark", "strong", "moderate")),  # +1.5
        ("two", votes("prefer", "mae", "conditional", "low")),  # +0.5
        ("three", votes("avoid", "spark, simclr", "conditional", "high")),  # -1
        ("silent", votes("prefer", "simclr").replace("segmentation", "detection")),
    )
    found = ask(knowledge)
    assert scores(found) == {"mae": 2.0, "spark": 0.5, "scratch": 0.0, "simclr": -1.0}
    assert [s.rank for s in found.strategies] == [1, 2, 3, 4]
    first = found.strategies[0]
    assert [(r.rule, r.verb, r.weight) for r in first.reasons] == [
        ("one", "prefer", 1.5),
        ("two", "prefer", 0.5),
    ]
    assert found.strategies[3].reasons[0].weight == -1.0
    assert first.reasons[0].because == "Reason of one." and first.reasons[0].studies == (
        "roe-2020-one",
    )


def test_a_method_named_twice_by_a_rule_counts_once(tmp_path: Path) -> None:
    knowledge = base(tmp_path, ("one", votes("prefer", "mae, mae, {paradigm: generative}")))
    assert scores(ask(knowledge))["mae"] == 2.0


def test_certainty_is_that_of_the_heaviest_reason(tmp_path: Path) -> None:
    knowledge = base(
        tmp_path,
        ("heavy", votes("prefer", "mae", "strong", "low")),  # 1.0
        ("light", votes("prefer", "mae", "conditional", "moderate")),  # 0.75
        ("equal", votes("prefer", "spark", "conditional", "high")),  # 1.0
        ("weaker", votes("prefer", "spark", "strong", "low")),  # 1.0, the less certain of the two
    )
    certainties = {s.method: s.certainty for s in ask(knowledge).strategies}
    assert certainties == {
        "mae": "low",
        "spark": "low",
        "scratch": "very-low",
        "simclr": "very-low",
    }


def test_ties_are_said_and_listed_by_script_then_id(tmp_path: Path) -> None:
    knowledge = base(tmp_path, ("one", votes("prefer", "mae, spark, simclr")))
    found = ask(knowledge)
    assert [s.method for s in found.strategies] == ["mae", "simclr", "spark", "scratch"]
    assert found.strategies[0].emits and not found.strategies[1].emits
    assert found.strategies[0].tied_with == ("simclr", "spark")
    assert found.strategies[3].tied_with == ()
    assert found.verdict == (
        "A tie between MAE, SIMCLR and SPARK, which the evidence does not tell apart: "
        "Reason of one (certainty high)."
    )


def test_a_tie_is_not_broken_by_rounding(tmp_path: Path) -> None:
    parts = [(f"part{i}", votes("prefer", "mae", "conditional", "low")) for i in range(3)]
    scale = FILES["scale.yaml"].replace("low: 0.5", "low: 0.1").replace("very-0.1", "very-low: 0.1")
    scale = scale.replace("moderate: 0.75", "moderate: 0.3").replace(
        "very-low: 0.25", "very-low: 0.1"
    )
    whole = ("whole", votes("prefer", "spark", "conditional", "moderate"))  # 0.1 + 0.1 + 0.1 = 0.3
    found = ask(base(tmp_path, *parts, whole, scale=scale))
    assert found.strategies[0].tied_with == ("spark",)


def test_exclusion_beats_preference_and_keeps_its_reason(tmp_path: Path) -> None:
    knowledge = base(
        tmp_path,
        ("good", votes("prefer", "spark")),
        ("never", f"{SEGMENT}exclude: [{{family: masked-modelling}}]"),
    )
    found = ask(knowledge, backbone="vit")
    assert set(scores(found)) == {"simclr", "scratch"}
    assert [(r.method, r.rule, r.because) for r in found.ruled_out] == [
        ("mae", "never", "Reason of never."),
        ("spark", "never", "Reason of never."),
    ]


@pytest.mark.parametrize(
    ("answers", "needs"),
    [
        ({"dimensionality": "video"}, "needs:dimensionality"),
        ({"backbone": "cnn"}, "needs:backbone"),
        ({"backbone": "vit"}, None),
        ({"backbone": "any"}, None),
        ({}, None),
    ],
)
def test_cards_rule_out_what_they_are_not_defined_for(
    tmp_path: Path, answers: dict[str, Any], needs: str | None
) -> None:
    found = ask(Knowledge(tiny(tmp_path)), **answers)
    out = {r.method: r for r in found.ruled_out}
    assert out.get("mae") is None if needs is None else out["mae"].rule == needs
    if needs:
        assert out["mae"].because.endswith("Tokens are needed.")
        assert "mae" not in scores(found)


@pytest.mark.parametrize(
    ("needs", "answers", "rule_name"),
    [
        ("multi_view: true", {"multi_view": False}, "needs:multi_view"),
        ("multi_view: true", {"multi_view": True}, None),
        ("multi_view: true", {}, None),
        ("tasks: [classification]", {}, "needs:tasks"),
        ("tasks: [segmentation]", {}, None),
    ],
)
def test_views_and_tasks_may_be_needed(
    tmp_path: Path, needs: str, answers: dict[str, Any], rule_name: str | None
) -> None:
    fits = f'dimensionality: ["3d"], backbone: [cnn], because: So it is., {needs}'
    card = method("simclr", "contrastive", "instance-discrimination", needs=fits)
    found = ask(Knowledge(tiny(tmp_path, {"methods/simclr.yaml": card})), **answers)
    assert [r.rule for r in found.ruled_out if r.method == "simclr"] == [rule_name] * bool(
        rule_name
    )


@pytest.mark.parametrize(
    ("answers", "emits"),
    [
        ({}, True),
        ({"backbone": "any"}, True),
        ({"backbone": "vit", "dimensionality": "2d"}, True),
        ({"task": "classification"}, False),
    ],
)
def test_emits_tells_whether_there_is_a_script(
    tmp_path: Path, answers: dict[str, Any], emits: bool
) -> None:
    found = ask(Knowledge(tiny(tmp_path)), **answers)
    assert {s.method: s.emits for s in found.strategies}["mae"] is emits


def test_image_text_methods_are_named_beside_the_ranking(tmp_path: Path) -> None:
    knowledge = base(
        tmp_path,
        ("weak", votes("prefer", "{paradigm: contrastive}", "conditional", "low")),
        ("firm", votes("prefer", "convirt")),
    )
    found = ask(knowledge)
    assert "convirt" not in scores(found)
    assert [(a.method, a.because) for a in found.also_consider] == [("convirt", "Reason of firm.")]
    assert ask(knowledge, task="detection").also_consider == ()
    without = base(
        tmp_path / "b", ("firm", votes("prefer", "convirt")), ("no", f"{SEGMENT}exclude: [convirt]")
    )
    assert ask(without).also_consider == ()


def test_set_changes_settings_and_the_later_rule_wins(tmp_path: Path) -> None:
    knowledge = base(
        tmp_path,
        ("first", f"{SEGMENT}set: {{mask_ratio: 0.5, crop_size: 96}}"),
        ("second", f"{SEGMENT}set: {{mask_ratio: 0.6, flips: []}}"),
        ("silent", "when: {task: detection}\nset: {mask_ratio: 0.9}"),
        ("apart", f"{SEGMENT}for: [spark]\nset: {{mask_ratio: 0.3, crop_size: 32}}"),
    )
    found = ask(knowledge)
    by_id = {s.method: s for s in found.strategies}
    ratio = by_id["mae"].settings["mask_ratio"]
    assert (ratio.value, ratio.rule, ratio.why, ratio.source) == (
        0.6, "second", "Reason of second.", "roe-2020-one",
    )  # fmt: skip
    assert {n: (s.value, s.rule) for n, s in by_id["spark"].settings.items()} == {
        "mask_ratio": (0.3, "apart"),
        "crop_size": (32, "apart"),
    }
    assert by_id["simclr"].settings == {}
    assert (found.common["crop_size"].value, found.common["crop_size"].rule) == (96, "first")
    assert found.common["flips"].value == () and found.common["flips"].rule == "second"


def test_common_holds_card_and_protocol(tmp_path: Path) -> None:
    common = ask(Knowledge(tiny(tmp_path))).common
    values = {name: setting.value for name, setting in common.items()}
    assert values["intensity_mode"] == "window"
    assert (values["intensity_low"], values["intensity_high"]) == (-1000.0, 1000.0)
    assert (values["channels"], values["spacing_mm"], values["flips"]) == (1, 1.5, ("left-right",))
    assert values["crop_size"] == 64
    assert all(s.rule is None and s.why and s.source for s in common.values())


def test_cautions_say_their_text_or_the_reason(tmp_path: Path) -> None:
    knowledge = base(
        tmp_path, ("own", f"{SEGMENT}caution: Look twice."), ("same", f"{SEGMENT}caution: true")
    )
    assert [(c.rule, c.text) for c in ask(knowledge).cautions] == [
        ("own", "Look twice."),
        ("same", "Reason of same."),
    ]


# The sentence


def test_the_verdict_names_the_winner_why_and_how_sure(tmp_path: Path) -> None:
    knowledge = base(tmp_path, ("one", votes("prefer", "mae", "strong", "moderate")))
    assert ask(knowledge).verdict == "Use MAE: Reason of one (certainty moderate)."


@pytest.mark.parametrize(
    ("id", "labeled", "start"),
    [
        ("public-checkpoint", 10, "Start from a public in-domain checkpoint: Reason"),
        ("public-checkpoint", 99, "Start from a public in-domain checkpoint: Reason"),
        ("imagenet", 10, "Start from ImageNet weights: Reason"),
        (
            "imagenet",
            99,
            "With this many labels pre-training is unlikely to pay, so start from",
        ),
        ("scratch", 10, "Train from scratch, without pre-training: Reason"),
        (
            "scratch",
            99,
            "With this many labels pre-training is unlikely to pay, so train from",
        ),
    ],
)
def test_honest_answers_are_said_as_such(tmp_path: Path, id: str, labeled: int, start: str) -> None:
    card = method(id, "none", "baseline")
    any_labels = votes("prefer", id).replace("task: segmentation", "labeled: known")
    knowledge = base(tmp_path, ("one", any_labels), **{f"methods__{id}": card})
    assert ask(knowledge, labeled=labeled).verdict.startswith(start)


def test_many_labels_are_blamed_only_where_a_rule_speaks_of_them(tmp_path: Path) -> None:
    knowledge = base(tmp_path, ("one", votes("prefer", "scratch")))
    assert ask(knowledge, labeled=99).verdict.startswith("Train from scratch, without pre-training")


def test_no_evidence_is_said(tmp_path: Path) -> None:
    knowledge = base(tmp_path, ("one", votes("avoid", "{paradigm: contrastive}")))
    assert ask(knowledge).verdict.startswith("No strategy is supported by evidence here: MAE comes")


def test_nothing_left_is_said(tmp_path: Path) -> None:
    every = "{paradigm: generative}, {paradigm: contrastive}, scratch"
    found = ask(base(tmp_path, ("all", f"{SEGMENT}exclude: [{every}]")))
    assert found.strategies == ()
    assert found.verdict.startswith("No method fits this problem")
    assert Recommendation.model_validate_json(found.model_dump_json()) == found


# The object


def test_the_answer_is_frozen_and_survives_json(tmp_path: Path) -> None:
    found = ask(Knowledge(tiny(tmp_path)), labeled=4, unlabeled=3, hours=1.5, gpus=1)
    with pytest.raises(ValidationError):
        found.verdict = "Something else."  # type: ignore[misc]
    again = Recommendation.model_validate_json(found.model_dump_json())
    assert again == found
    assert again.model_dump_json() == found.model_dump_json()
    data = json.loads(found.model_dump_json())
    assert data["schema_version"] == 1
    assert list(data) == [
        "schema_version", "profile", "facts", "knowledge", "engine", "verdict", "strategies",
        "ruled_out", "cautions", "common", "also_consider", "what_if",
    ]  # fmt: skip
    assert data["knowledge"]["packs"] == []


def test_the_schema_of_the_answer_can_be_written() -> None:
    assert Recommendation.model_json_schema()["properties"]["strategies"]


def test_wrong_answers_are_refused_before_any_rule_fires(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"^modality: 'cta' is not one of ct"):
        ask(Knowledge(tiny(tmp_path)), modality="cta")
    with pytest.raises(ProfileError, match=r"^labeled: -1"):
        ask(Knowledge(tiny(tmp_path)), labeled=-1)


# The shipped rules


PROFILES = [
    {"modality": m, "task": t, "labeled": n, "unlabeled": u}
    for m, t, (n, u) in product(
        ("ct", "xray", "histopathology"),
        ("segmentation", "classification", "retrieval"),
        ((None, None), (40, 3000), (20000, 100000)),
    )
]


@pytest.mark.parametrize("answers", PROFILES, ids=lambda a: "-".join(map(str, a.values())))
def test_every_answer_of_the_shipped_rules_holds_together(answers: dict[str, Any]) -> None:
    knowledge, found = Knowledge.load(), recommend(answers)
    assert Recommendation.model_validate_json(found.model_dump_json()) == found
    assert found == recommend(answers)
    listed = [s.method for s in found.strategies]
    out = {r.method for r in found.ruled_out}
    ranked = {id for id, card in knowledge.methods.items() if card.family != "image-text"}
    assert set(listed) | out == ranked and not set(listed) & out
    assert [s.score for s in found.strategies] == sorted(
        (s.score for s in found.strategies), reverse=True
    )
    assert found.verdict.endswith(".") and "\n" not in found.verdict
    for strategy in found.strategies:
        assert sum(r.weight for r in strategy.reasons) == pytest.approx(strategy.score)


@pytest.mark.parametrize("answers", PROFILES[::2], ids=lambda a: "-".join(map(str, a.values())))
def test_every_what_if_is_true(answers: dict[str, Any]) -> None:
    profile = Profile.parse(answers)
    found = recommend(profile)
    assert len(found.what_if) <= 6
    for each in found.what_if:
        assert len(each.change) == 1
        changed = recommend(profile.changed(**each.change))
        assert changed.strategies[0].method == each.winner != found.strategies[0].method


def test_all_engines_give_the_same_answer() -> None:
    pytest.importorskip("durable")
    for answers in PROFILES[::4]:
        durable, reference = (recommend(answers, engine=e) for e in ("durable", "reference"))
        assert (durable.engine, reference.engine) == ("durable", "reference")
        assert durable.model_copy(update={"engine": "reference"}) == reference


# What if


def test_what_if_finds_the_edge_of_a_band(tmp_path: Path) -> None:
    few = votes("prefer", "mae").replace("task: segmentation", "label_regime: few-shot")
    knowledge = base(tmp_path, ("few", few), ("else", votes("prefer", "spark", "conditional")))
    found = ask(knowledge, labeled=60)
    assert found.strategies[0].method == "spark"
    assert (found.what_if[0].change, found.what_if[0].winner) == ({"labeled": 49}, "mae")
    assert ask(knowledge, labeled=49).strategies[0].method == "mae"
    assert ask(knowledge, labeled=50).strategies[0].method == "spark"


def test_what_if_finds_the_edge_of_a_rule_and_of_a_product(tmp_path: Path) -> None:
    knowledge = base(
        tmp_path,
        (
            "large",
            votes("prefer", "simclr").replace("task: segmentation", "batch_size: {gte: 256}"),
        ),
        (
            "short",
            votes("prefer", "scratch", "strong").replace("task: segmentation", "compute: short"),
        ),
        ("else", votes("prefer", "spark", "conditional")),
    )
    changes = {
        next(iter(w.change)): (next(iter(w.change.values())), w.winner)
        for w in ask(knowledge, batch_size=200, gpus=2, hours=10).what_if
    }
    assert changes["batch_size"] == (256, "simclr")
    assert changes["hours"] == (5.0, "scratch")  # 2 GPUs x 5 h is below 12 GPU-hours
    assert changes["gpus"] == (1, "scratch")


def test_what_if_puts_unknown_answers_before_other_choices(tmp_path: Path) -> None:
    knowledge = base(
        tmp_path,
        ("views", votes("prefer", "simclr").replace("task: segmentation", "multi_view: true")),
        ("frozen", votes("prefer", "scratch").replace("task: segmentation", "adaptation: frozen")),
        ("else", votes("prefer", "spark", "conditional")),
    )
    found = ask(knowledge, adaptation="finetune")
    assert [w.change for w in found.what_if[:2]] == [{"multi_view": True}, {"adaptation": "frozen"}]


def test_importing_and_asking_once_is_quick() -> None:
    code = """
import resource, advisor
advisor.recommend({"modality": "ct", "task": "segmentation", "labeled": 40})
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
"""
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    assert min(float(r.stdout) for r in runs) < 0.5  # about 0.2 s; the rest is for slow machines
