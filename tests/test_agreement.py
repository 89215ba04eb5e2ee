"""Agreement with published comparisons: what a pair is, who must be beaten, what is shown."""

from pathlib import Path

import pytest
from tiny import method, rule, tiny

from advisor import Knowledge
from advisor.audit.agreement import Agreement, agreement, macro, render
from advisor.audit.baselines import abstract_as_rule, constant_order, held, wins
from advisor.audit.judging import judge
from advisor.audit.published import Pair, pairs

BANDS = """\
- fact: label_regime
  from: labeled
  bands: [{name: none, below: 1}, {name: low, below: 500}, {name: abundant}]
  why: w
  source: s
"""
DINO = method("dino", "predictive", "self-distillation")


def study(
    id: str, results: str, arxiv: str = "2001.00001", setting: str = "", up: bool = True
) -> str:
    return f"""\
id: {id}
paper: {{title: t, first_author: Roe, year: 2020, arxiv: "{arxiv}"}}
setting: {{modality: [ct], task: [segmentation], {setting}}}
dataset: d
metric: {{name: m, higher_is_better: {str(up).lower()}}}
results: [{results}]
finding: One thing was seen.
source: {{url: "https://example.org", kind: abstract}}
trust: high
independence: independent
"""


def result(method: str, score: float | str) -> str:
    return f"{{method: {method}, reported_as: x, score: {score}}}"


def base(folder: Path, *studies: str) -> Knowledge:
    """The tiny rule base, where a rule prefers masking for segmentation, with other studies."""
    files = {f"studies/{text.split()[1]}.yaml": text for text in studies}
    files.setdefault("studies/roe-2020-one.yaml", "")
    advice = rule(
        "volumes",
        "when: {task: segmentation}\nprefer: [spark]\nstrength: strong\ncertainty: high",
    )
    more = {"facts.yaml": BANDS, "methods/dino.yaml": DINO, "advice/a.yaml": advice}
    return Knowledge(tiny(folder, {**files, **more}))


def found(knowledge: Knowledge) -> list[tuple[str, str, float | None]]:
    return [(p.better, p.worse, p.gap) for p in pairs(knowledge).pairs]


def test_numbers_order_pairs_and_equal_scores_are_no_pair(tmp_path: Path) -> None:
    rows = ", ".join([result("spark", 0.5), result("simclr", 0.75), result("scratch", 0.5)])
    assert found(base(tmp_path / "up", study("roe-2020-one", rows))) == [
        ("simclr", "spark", 0.25),
        ("simclr", "scratch", 0.25),
    ]
    down = study("roe-2020-one", rows, up=False)
    assert found(base(tmp_path / "down", down))[0] == ("spark", "simclr", 0.25)


def test_a_method_in_several_variants_is_represented_by_its_best(tmp_path: Path) -> None:
    rows = [result("spark", 1), result("simclr", 2), result("spark", 3), result("scratch", 2.5)]
    text = study("roe-2020-one", ", ".join(rows))
    assert found(base(tmp_path / "up", text)) == [
        ("spark", "simclr", 1.0),
        ("spark", "scratch", 0.5),
        ("scratch", "simclr", 0.5),
    ]
    down = study("roe-2020-one", ", ".join(rows), up=False)
    assert ("spark", "simclr", 1.0) in found(base(tmp_path / "down", down))


def test_words_are_listed_best_first_and_equal_words_are_a_tie(tmp_path: Path) -> None:
    rows = ", ".join([result("spark", "best"), result("simclr", "best"), result("scratch", "last")])
    assert found(base(tmp_path, study("roe-2020-one", rows))) == [
        ("spark", "scratch", None),
        ("simclr", "scratch", None),
    ]


def test_what_is_not_ranked_or_the_same_method_is_no_pair(tmp_path: Path) -> None:
    rows = [result("null", 3), result("convirt", 2), result("spark", 1), result("spark", 2)]
    knowledge = base(tmp_path, study("roe-2020-one", ", ".join(rows)))
    assert pairs(knowledge).pairs == ()
    assert list(pairs(knowledge).left_out) == ["roe-2020-one"]


def test_a_setting_becomes_a_profile_and_nothing_is_guessed(tmp_path: Path) -> None:
    rows = ", ".join([result("spark", 2), result("scratch", 1)])
    text = study("roe-2020-one", rows, setting="label_regime: low, backbone: cnn")
    text = text.replace("[segmentation]", "[segmentation, classification]")
    one, two = pairs(base(tmp_path, text)).pairs
    assert (one.profile.task, two.profile.task, one.weight) == (
        "segmentation",
        "classification",
        0.5,
    )
    assert one.profile.backbone == "cnn" and one.profile.labeled is not None
    assert 1 <= one.profile.labeled < 500 and one.regime == "low"
    assert one.profile.unlabeled is None and one.profile.public_weights is None


@pytest.fixture
def knowledge(tmp_path: Path) -> Knowledge:
    """One paper with two pairs, one with a single pair; only spark is preferred."""
    rows = ", ".join([result("spark", 3), result("simclr", 2), result("scratch", 1)])
    other = ", ".join([result("scratch", 2), result("spark", 1)])
    return base(
        tmp_path,
        study("roe-2020-one", rows),
        study("roe-2021-two", other, arxiv="2101.00001"),
    )


def test_ties_count_half_and_papers_count_alike(knowledge: Knowledge) -> None:
    compared = pairs(knowledge).pairs
    agrees = [j.agrees for j in judge(compared, knowledge)]
    assert agrees == [1.0, 1.0, 0.5, 0.0]  # simclr and scratch are tied; the second paper differs
    assert macro(compared, agrees) == pytest.approx((2.5 / 3 + 0) / 2)


def test_a_method_that_is_ruled_out_stands_last(tmp_path: Path) -> None:
    rows = ", ".join([result("mae", 2), result("simclr", 1)])  # mae needs a transformer here
    knowledge = base(tmp_path, study("roe-2020-one", rows, setting="backbone: cnn"))
    (judged,) = judge(pairs(knowledge).pairs, knowledge)
    assert (judged.agrees, judged.margin) == (0.0, None)


def test_papers_that_a_deciding_rule_cites_are_told_apart(tmp_path: Path) -> None:
    first = ", ".join([result("spark", 3), result("simclr", 2), result("scratch", 1)])
    other = ", ".join([result("scratch", 2), result("spark", 1)])
    third = ", ".join([result("spark", 2), result("scratch", 1)])
    advice = rule(
        "volumes",
        "when: {task: segmentation}\nprefer: [spark]\nstrength: strong\ncertainty: high",
    )
    texts = (
        study("roe-2020-one", first),
        study("roe-2021-two", other, arxiv="2101.00001"),
        study("roe-2022-three", third, arxiv="2201.00001"),
    )
    files = {f"studies/{t.split()[1]}.yaml": t for t in texts}
    cited = advice.replace("against: []", "against: [roe-2021-two]")
    more = {"facts.yaml": BANDS, "advice/a.yaml": cited}
    knowledge = Knowledge(tiny(tmp_path, {**files, **more}))
    judged = judge(pairs(knowledge).pairs, knowledge)
    told = {(j.pair.study, j.pair.better, j.pair.worse): j.cited for j in judged}
    assert told == {
        ("roe-2020-one", "spark", "simclr"): True,
        ("roe-2020-one", "spark", "scratch"): True,
        ("roe-2020-one", "simclr", "scratch"): False,  # no rule decides it
        ("roe-2021-two", "scratch", "spark"): True,
        ("roe-2022-three", "spark", "scratch"): False,
    }
    aside = judge(pairs(knowledge).pairs, knowledge, set_aside=True)
    assert [j.agrees for j in aside] == [0.5, 0.5, 0.5, 0.0, 1.0]  # the rule rests on one paper


def test_the_constant_order_is_the_best_one(knowledge: Knowledge) -> None:
    compared = pairs(knowledge).pairs
    order = constant_order(wins(compared))
    assert order.index("simclr") < order.index("scratch") < order.index("spark")  # papers weigh 1
    assert [held(order, p) for p in compared] == [0.0, 0.0, 1.0, 1.0]
    assert held(("spark",), compared[0]) == 0.5


@pytest.mark.parametrize(
    ("better", "worse", "task", "agrees"),
    [
        ("spark", "simclr", "segmentation", 1.0),
        ("spark", "simclr", "classification", 0.0),
        ("spark", "mae", "segmentation", 0.5),
        ("simclr", "scratch", "detection", 1.0),
    ],
)
def test_the_abstract_orders_by_task(
    knowledge: Knowledge, better: str, worse: str, task: str, agrees: float
) -> None:
    pair = pairs(knowledge).pairs[0]
    profile = pair.profile.changed(task=task)
    asked: Pair = pair.model_copy(update={"better": better, "worse": worse, "profile": profile})
    assert abstract_as_rule(asked, knowledge.methods) == agrees


@pytest.fixture(scope="module")
def shipped() -> Agreement:
    return agreement(Knowledge.load())


def test_the_shipped_rules_beat_simpler_orders(shipped: Agreement) -> None:
    ours = shipped.overall.agreement
    chance, _, unseen, abstract = (t.agreement for t in shipped.baselines)
    assert chance == 0.5
    assert ours >= 0.92 and ours > abstract + 0.1 and ours > unseen + 0.1
    assert shipped.uncited.agreement > abstract and shipped.uncited.papers >= 20
    assert shipped.set_aside.agreement > 0.9
    objectives = next(g for g in shipped.groups["compared"] if g.name == "two objectives")
    assert objectives.ours > objectives.abstract + 0.2
    assert shipped.low < ours < shipped.high


def test_the_report_shows_each_disagreement_once(shipped: Agreement) -> None:
    text, table = render(shipped, markdown=False), render(shipped)
    assert "chance" in text and "| chance | 50.0 |" in table
    lines = [line for line in text.splitlines() if "order only" in line]
    assert lines and len(lines) == len(set(lines))
    assert all(j.agrees < 1 for j in shipped.disagreements)


def test_each_study_that_differs_is_listed_with_a_sentence(shipped: Agreement) -> None:
    assert shipped.reasons.keys() == {j.pair.study for j in shipped.disagreements}
    text, table = render(shipped, markdown=False), render(shipped)
    for id, why in shipped.reasons.items():
        assert why is not None and why.because.endswith(".")
        assert why.because in text and f"| {id} | {why.kind} | {why.because} |" in table
    assert {why.kind for why in shipped.reasons.values() if why} == {
        "noise",
        "special-setting",
        "our-error",
    }
