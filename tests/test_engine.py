"""Both evaluators say the same, and what durable-rules does when used plainly does not happen."""

import math
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from advisor import engine
from advisor.engine import EngineRule, RuleError, check, evaluator
from advisor.engine.masks import MaskEvaluator
from advisor.engine.reference import ReferenceEvaluator

try:
    from advisor.engine.durable import DurableEvaluator
except ImportError:
    DurableEvaluator = None

needs_durable = pytest.mark.skipif(
    DurableEvaluator is None,
    reason="durable-rules is not installed (it works on Python below 3.13 only)",
)
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory is read from /proc, which is Linux's"
)
either = pytest.mark.parametrize(
    "build",
    [
        pytest.param(ReferenceEvaluator, id="reference"),
        pytest.param(DurableEvaluator, id="durable", marks=needs_durable),
    ],
)

NUMBERS = {
    "labeled": [0, 1, 50, 1000, 10**6],
    "classes": [2, 2.0, 3, 10],
    "rate": [1e-7, 1e-05, 0.1, 1e16, 1e300],
    "exact": [2**53, 2**53 + 1, float(2**53), 10**30, 10**400, -(10**400), -1],
}
CATEGORIES = {
    "modality": ["ct", "mri", "größe", "gro\u0308ße", "日本"],
    "task": ['q"uote', "back\\slash", "{brace}", "line\nbreak", "nul\0", "\ud800", "", "1", "True"],
    "multilabel": [True, False],
    "id": ["a.b", "$s", "sid"],  # names and values that the library gives a meaning of its own
    "$and": [True, "0"],
}
STRANGERS = [0, -1, 7, 2**53 - 1, 0.1 + 0.2, 1e-300, 10**30 + 1, math.inf, -math.inf]


def one(*tests, id="r"):
    return (EngineRule(id, tuple((test,) for test in tests)),)


def t(op, value=None, field="x"):
    return engine.Test(field, op, value)


def random_test(rng):
    field = rng.choice([*NUMBERS, *CATEGORIES])
    values = NUMBERS.get(field) or CATEGORIES[field]
    ops = ["eq", "in", "not_in", "known", "unknown"]
    op = rng.choice(ops + ["gt", "gte", "lt", "lte"] * 2 if field in NUMBERS else ops)
    if op in ("known", "unknown"):
        return t(op, field=field)
    if op in ("in", "not_in"):
        return t(op, tuple(rng.choices(values, k=rng.randint(1, 4))), field)
    return t(op, rng.choice(values), field)


def random_rules(count, seed=0):
    rng = random.Random(seed)

    def branch():
        return tuple(random_test(rng) for _ in range(rng.randint(1, 4)))

    return tuple(
        EngineRule(f"regel-ü {i}", tuple(branch() for _ in range(rng.choice([1, 1, 1, 2, 3]))))
        for i in range(count)
    )


def random_facts(rng, fields):
    """Values that the rules name, their neighbours, strangers, unknowns; a tenth is absent."""
    facts = {"not a field": object()}
    for name, used in fields.items():
        values = [*used.values, None]
        if used.kind == "a number":
            values += [value + side for value in used.values for side in (-1, 1)] + STRANGERS
            values += [
                math.nextafter(v, side)
                for v in used.values
                if abs(v) < 1e300
                for side in (0, v * 2)
            ]
        else:
            values += ["stranger", "CT", "größe ", True, False, "x" * 10_000]
        if rng.random() > 0.1:
            facts[name] = rng.choice(values)
    return facts


def facts_for(rules, count, seed=1):
    rng, fields = random.Random(seed), check(rules)
    return [*engine.samples(fields), *(random_facts(rng, fields) for _ in range(count))]


def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


# What a rule means ------------------------------------------------------------------------------


@either
@pytest.mark.parametrize(
    ("test", "holds", "fails"),
    [
        (t("eq", "ct"), ["ct"], ["CT", "", "mri", True, None]),
        (t("eq", True), [True], [False, "True", "1", None]),
        (t("eq", 2), [2, 2.0], [1, 3, 2.0000000000000004, None]),
        (t("eq", 2**53 + 1), [2**53 + 1], [2**53, float(2**53), None]),
        (t("in", ("ct", "mri")), ["ct", "mri"], ["us", None]),
        (t("in", (2, 5.5)), [2, 5.5], [3, 5, None]),
        (t("not_in", ("ct", "mri")), ["us", True], ["ct", "mri", None]),
        (t("not_in", (2,)), [1, 3, 1e-7], [2, 2.0, None]),
        (t("gt", 1e-7), [1.1e-7, 1, math.inf, 10**400], [1e-7, 0, -math.inf, None]),
        (t("gte", 50), [50, 50.0, 51], [49, 49.99999999999999, None]),
        (t("lt", 0), [-1, -1e-300, -(10**400)], [0, 0.0, -0.0, 1e-300, None]),
        (t("lte", 0.1), [0.1, -5], [0.1 + 2e-17, 0.2, None]),
        (t("known"), [0, "", False, "ct", 1.5], [None]),
        (t("unknown"), [None], [0, "", False, "ct", 1.5]),
    ],
    ids=lambda value: f"{value.op} {value.value}" if isinstance(value, engine.Test) else "",
)
def test_a_condition_means_what_it_says(build, test, holds, fails):
    rules = build(one(test))
    for value in holds:
        assert rules.fired({"x": value}) == ["r"], value
    for value in fails:
        assert rules.fired({"x": value}) == [], value
    assert rules.fired({}) == (["r"] if None in holds else [])


@either
def test_a_rule_whose_branches_all_hold_fires_once(build):
    a, b = t("eq", "ct", "a"), t("gte", 2, "b")
    rules = (EngineRule("or", ((a,), (b,), (a, b))), EngineRule("and", ((b, a),)))
    assert build(rules).fired({"a": "ct", "b": 2}) == ["or", "and"]
    assert build(rules).fired({"a": "ct", "b": 1}) == ["or"]
    assert build(rules[::-1]).fired({"a": "ct", "b": 2}) == ["and", "or"]


@either
def test_no_rules_fire_when_there_are_none(build):
    assert build(()).fired({"a": 1}) == []


@either
@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"n": "12"}, "fact 'n': '12' is a category, but rule 'few' tests it as a number"),
        ({"n": True}, "fact 'n': True is a category, but rule 'few' tests it as a number"),
        ({"m": 3}, "fact 'm': 3 is a number, but rule 'few' tests it as a category"),
        ({"n": math.nan}, "fact 'n': nan is not text, true, false or a number"),
        ({"k": ["ct"]}, "fact 'k': ['ct'] is not text, true, false or a number"),
    ],
)
def test_a_fact_of_the_wrong_kind_is_refused_and_the_next_is_answered(build, facts, message):
    few = EngineRule("few", ((t("known", field="k"),), (t("lt", 9, "n"), t("eq", "ct", "m"))))
    rules = build((few,))
    with pytest.raises(RuleError) as refused:
        rules.fired(facts)
    assert str(refused.value) == message
    assert rules.fired({"n": 1, "m": "ct"}) == ["few"]


# What is refused --------------------------------------------------------------------------------


@either
@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (one(t("known"), id=""), "rule '': an id is a text that is not empty"),
        (one(t("known")) * 2, "rule 'r': there are two rules with this id"),
        ((EngineRule("r", ()),), "rule 'r': each branch of a rule needs at least one condition"),
        ((EngineRule("r", ((),)),), "rule 'r': each branch of a rule needs at least one condition"),
        (one(t("eq", 1, "")), "rule 'r': field '': a field is a text that is not empty"),
        (
            one(t("near", 1)),
            "rule 'r': field 'x': 'near' is not one of"
            " eq, in, not_in, gt, gte, lt, lte, known, unknown",
        ),
        (one(t("known", 1)), "rule 'r': field 'x': known takes no value, but has 1"),
        (one(t("in", "ct")), "rule 'r': field 'x': in needs a tuple of values, not 'ct'"),
        (one(t("not_in", ())), "rule 'r': field 'x': not_in needs a tuple of values, not ()"),
        (one(t("gte", "many")), "rule 'r': field 'x': gte needs a number, not 'many'"),
        (one(t("lt", True)), "rule 'r': field 'x': lt needs a number, not True"),
        *(
            (one(t(op, value)), f"rule 'r': field 'x': {shown} is not text, true, false"
             " or a finite number")
            for op, value, shown in [
                ("eq", None, "None"),
                ("eq", ("ct",), "('ct',)"),
                ("in", ("ct", None), "None"),
                ("gt", math.nan, "nan"),
                ("lt", math.inf, "inf"),
            ]
        ),
        (
            one(t("eq", "two", "classes"), id="a") + one(t("eq", 2, "classes"), id="b"),
            "rule 'b': field 'classes': tested as a number here and as a category in rule 'a';"
            " make them the same",
        ),
        (
            one(t("in", (1, "1"))),
            "rule 'r': field 'x': tested as a category here and as a number in rule 'r';"
            " make them the same",
        ),
        (
            one(t("eq", 1), t("eq", True)),
            "rule 'r': field 'x': tested as a category here and as a number in rule 'r';"
            " make them the same",
        ),
    ],
)  # fmt: skip
def test_a_malformed_rule_is_refused_in_one_line(build, rules, message):
    with pytest.raises(RuleError) as refused:
        build(rules)
    assert str(refused.value) == message


# Parity -----------------------------------------------------------------------------------------


def shipped_rules():
    from advisor.knowledge import Knowledge

    return Knowledge.load().engine_rules()


@pytest.mark.parametrize("size", [0, 50, 1000])
def test_masks_agree_with_the_reference(size):
    rules = random_rules(size, size) if size else shipped_rules()
    reference, masks = ReferenceEvaluator(rules), MaskEvaluator(rules)
    fired = set()
    for facts in facts_for(rules, 320):
        expected = set(reference.fired(facts))
        assert masks.fired(facts) == expected == masks.fired(facts), facts
        fired |= expected
    assert len(fired) > len(rules) / 2  # the facts are not beside the point


@needs_durable
@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(shipped_rules, id="shipped"),
        *(pytest.param(lambda n=n: random_rules(n, n), id=f"random-{n}") for n in (50, 200, 1000)),
    ],
)
def test_durable_agrees_with_the_reference_in_both_orders(rules):
    rules = rules()
    reference, durable, reverse = (
        ReferenceEvaluator(rules), DurableEvaluator(rules), DurableEvaluator(rules[::-1])
    )  # fmt: skip
    fired = set()
    for turn, facts in enumerate(facts_for(rules, 320)):
        expected = reference.fired(facts)
        assert durable.fired(facts) == expected, facts
        if turn % 4 == 0:
            assert reverse.fired(facts) == expected[::-1], facts
        fired.update(expected)
    assert len(fired) > 0.5 * len(rules)  # or the agreement says little


CROWDS = {
    "distinct values, 512 siblings hang": [one(t("eq", i), id=f"{i}") for i in range(600)],
    "true at once, 64 overflow": [one(t("lte", 100 + i), id=f"{i}") for i in range(300)],
    "identical conditions, 256 crash": [one(t("eq", 1), id=f"{i}") for i in range(600)],
    "lists that share a member, 128 are too many": [
        one(t("in", (1, i + 2)), id=f"{i}") for i in range(300)
    ],
    "long lists": [one(t("in", tuple(range(i, i + 300))), id=f"{i}") for i in range(20)],
    "long exclusions": [one(t("not_in", tuple(range(i, i + 300))), id=f"{i}") for i in range(20)],
    "many lists in one branch": [
        (EngineRule(f"{i}", (tuple(t("in", (1, i + 2), f"y{k}") for k in range(12)),)),)
        for i in range(60)
    ],
    "many branches, all true": [one(*(t("lt", i + 2) for i in range(200)), id="a")],
    "many fields": [one(t("gte", 1, f"y{i}"), id=f"{i}") for i in range(240)],
}


@needs_durable
@pytest.mark.parametrize("rules", CROWDS.values(), ids=CROWDS)
def test_crowded_rules_are_answered(rules):
    rules = tuple(rule for (rule,) in rules)
    reference, durable = ReferenceEvaluator(rules), DurableEvaluator(rules)
    for value in (1, 2, 250, None):
        facts = {name: value for name in check(rules)}
        assert durable.fired(facts) == reference.fired(facts)


@needs_durable
@pytest.mark.parametrize(
    "rules",
    [
        one(t("in", tuple(range(500)))),
        (EngineRule("r", (tuple(t("in", (1, 2), f"y{i}") for i in range(20)),)),),
        tuple(rule for i in range(300) for rule in one(t("known", field=f"y{i}"), id=f"{i}")),
    ],
    ids=["values", "lists", "fields"],
)
def test_what_is_too_large_for_durable_is_refused_or_left_to_the_reference(rules):
    with pytest.raises(RuleError, match=r"engine 'durable' takes at most .*; use engine 'ref"):
        evaluator(rules, "durable")
    assert evaluator(rules).name == "reference"


# Which engine -----------------------------------------------------------------------------------


@needs_durable
def test_auto_takes_durable_where_it_is():
    assert [evaluator(random_rules(9), name).name for name in engine.ENGINES] == [
        "durable", "durable", "reference"
    ]  # fmt: skip


def test_without_durable_auto_takes_the_reference_and_durable_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "advisor.engine.durable", raising=False)
    monkeypatch.setitem(sys.modules, "durable", None)
    assert evaluator(random_rules(9)).name == "reference"
    with pytest.raises(RuleError, match=r"^engine 'durable' is not available.*install") as refused:
        evaluator(random_rules(9), "durable")
    assert "durable-rules==2.0.28, Python below 3.13" in str(refused.value)
    assert "\n" not in str(refused.value)


@needs_durable
def test_an_engine_that_disagrees_is_not_used(monkeypatch):
    monkeypatch.setattr(DurableEvaluator, "fired", lambda self, facts: [])
    assert evaluator(random_rules(9)).name == "reference"
    with pytest.raises(RuleError, match=r"^engine 'durable' disagrees with the reference; use"):
        evaluator(random_rules(9), "durable")


def test_an_unknown_engine_is_refused_with_the_nearest():
    with pytest.raises(RuleError) as refused:
        evaluator((), "durabel")
    assert str(refused.value) == (
        "engine 'durabel' is not one of auto, durable, reference; did you mean 'durable'?"
    )


def test_importing_the_boundary_imports_no_engine():
    code = "import advisor.engine, sys; print([m for m in sys.modules if 'durable' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Hazards that do not happen ---------------------------------------------------------------------


@needs_durable
def test_eight_threads_get_their_own_answers():
    rules = random_rules(100)
    durable, facts = DurableEvaluator(rules), facts_for(rules, 200)
    expected = [ReferenceEvaluator(rules).fired(each) for each in facts]
    wrong = []

    def ask(start):
        for i in range(start, len(facts), 8):
            try:
                answer = durable.fired(facts[i])
            except RuleError as error:
                answer = error
            if answer != expected[i]:
                wrong.append((facts[i], answer))

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_durable
def test_no_thread_is_started():
    before = threading.active_count()
    durable = DurableEvaluator(random_rules(50))
    durable.fired({})
    assert threading.active_count() == before


@needs_durable
@pytest.mark.parametrize("raised", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_what_an_action_raises_is_not_swallowed(raised):
    class Failing(list):
        def append(self, item):
            raise raised

    durable = DurableEvaluator(one(t("known")))
    sound, durable._host.hits = durable._host.hits, Failing()
    with pytest.raises(RuleError, match=r"^engine 'durable' failed inside a rule; use engine"):
        durable.fired({"x": 1})
    durable._host.hits = sound
    assert durable.fired({"x": 1}) == ["r"]


@needs_durable
def test_a_message_that_the_library_refuses_is_an_error_and_the_next_is_answered(monkeypatch):
    durable = DurableEvaluator(one(t("lt", 1)))
    monkeypatch.setitem(durable._coders, "x", lambda value: value)
    for junk in (1e-7, math.inf, "\ud800"):
        with (
            monkeypatch.context() as patch,
            pytest.raises(RuleError, match=r"^engine .durable. fa"),
        ):
            patch.setattr("advisor.engine.durable.read", lambda facts, fields, x=junk: {"x": x})
            durable.fired({})
    assert durable.fired({"x": 1}) == ["r"]


@needs_durable
def test_a_session_in_which_nothing_fired_is_cleared_without_a_crash():
    durable = DurableEvaluator(one(t("known")))
    with pytest.raises(RuleError, match=r"^engine 'durable' failed \("):
        durable._match("shard0", {"f0": 0})  # without the sentinel's own field
    assert durable.fired({"x": 1}) == ["r"]


@needs_durable
def test_a_match_that_did_not_run_everywhere_is_an_error(monkeypatch):
    durable = DurableEvaluator(random_rules(100))
    whole = durable._match
    last = durable._shards[-1]
    monkeypatch.setattr(durable, "_match", lambda s, m: None if s == last else whole(s, m))
    with pytest.raises(RuleError, match=r"^engine 'durable' did not finish its match; use"):
        durable.fired({})


@needs_durable
@needs_proc
def test_memory_stays_flat_over_ten_thousand_answers():
    rules = random_rules(50)
    durable, facts = DurableEvaluator(rules), facts_for(rules, 50)
    for i in range(10_000):
        if i == 4_000:
            before = resident_mb()
        durable.fired(facts[i % len(facts)])
    assert resident_mb() - before < 3


@needs_durable
@needs_proc
def test_a_dropped_evaluator_gives_its_memory_back():
    rules = random_rules(100)  # 0.7 MB for each of its shards
    for i in range(60):
        if i == 20:
            before = resident_mb()
        DurableEvaluator(rules).fired({})
    assert resident_mb() - before < 10
