"""The boundary of the rule engine: facts in, ids of the rules that fired out, nothing else.

A rule is an OR of ANDs of tests on single facts. Two evaluators understand it: `reference` is
plain Python and the definition of truth; `durable` runs the same rules on durable-rules. Scores,
reasons and wording are computed above this boundary, on ids, so neither the order nor the number
of firings matters.

One rule about the unknown, the same in both: a fact that is absent or None makes every test false,
except `unknown`, which is then true.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from reprlib import repr as show  # one line, and short
from typing import Any, Literal, NamedTuple, Protocol

Scalar = str | int | float | bool
Op = Literal["eq", "in", "not_in", "gt", "gte", "lt", "lte", "known", "unknown"]
Kind = Literal["a number", "a category"]

ENGINES = ("auto", "durable", "reference")
ORDERS = ("gt", "gte", "lt", "lte")
LISTS = ("in", "not_in")
STATES = ("known", "unknown")
OPS = ("eq", *LISTS, *ORDERS, *STATES)


class RuleError(ValueError):
    """A rule, a fact or an engine that cannot be used; its text is one line for the user."""


class Test(NamedTuple):
    """One condition on one fact.

    Attributes:
        field: Name of the fact.
        op: What is asked of it.
        value: A scalar; for `in` and `not_in` a tuple of them; for `known` and `unknown` None.
    """

    field: str
    op: Op
    value: Scalar | tuple[Scalar, ...] | None = None


class EngineRule(NamedTuple):
    """A rule fires when every test of at least one of its branches holds."""

    id: str
    branches: tuple[tuple[Test, ...], ...]


class Evaluator(Protocol):
    """All that the rest of the program sees of an engine. Threads may share one."""

    name: str

    def fired(self, facts: Mapping[str, Scalar | None]) -> list[str]:
        """Return the ids of the rules that fire, each once, in file order.

        Raises:
            RuleError: A fact is not of the kind that the rules test it as.
        """
        ...


@dataclasses.dataclass
class Field:
    """How a rule base uses one fact: as what, since which rule, and with which values."""

    rule: str
    kind: Kind | None = None
    values: list[Scalar] = dataclasses.field(default_factory=list)


def check(rules: Sequence[EngineRule]) -> dict[str, Field]:
    """Refuse every rule that an evaluator could misread.

    Returns:
        The facts that the rules read, by name, in order of first use.

    Raises:
        RuleError: The first problem, with the rule and the field it is in.
    """
    fields: dict[str, Field] = {}
    seen: set[str] = set()
    for rule in rules:
        _check_shape(rule, seen)
        for branch in rule.branches:
            for test in branch:
                _check_test(test, rule.id, fields)
    return fields


def read(
    facts: Mapping[str, Scalar | None], fields: Mapping[str, Field]
) -> dict[str, Scalar | None]:
    """Pick out of `facts` what the rules read; absent becomes None.

    Raises:
        RuleError: A fact is not of the kind that the rules test it as.
    """
    values: dict[str, Scalar | None] = {}
    for name, used in fields.items():
        value = values[name] = facts.get(name)
        if value is None:
            continue
        kind = _kind(value)
        if kind is None:
            raise RuleError(f"fact {name!r}: {show(value)} is not text, true, false or a number")
        if kind != used.kind and used.kind is not None:
            wrong = f"{show(value)} is {kind}, but rule {used.rule!r} tests it as {used.kind}"
            raise RuleError(f"fact {name!r}: {wrong}")
    return values


def evaluator(rules: Sequence[EngineRule], engine: str = "auto") -> Evaluator:
    """Build an evaluator for `rules`.

    Args:
        rules: The rule base, in file order.
        engine: "reference", "durable", or "auto": durable where it can be loaded and agrees with
            the reference on a handful of facts, otherwise the reference.

    Raises:
        RuleError: A rule is malformed, there is no such engine, or durable was asked for by name
            and cannot be used.
    """
    from .reference import ReferenceEvaluator

    if engine not in ENGINES:
        near = difflib.get_close_matches(engine, ENGINES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RuleError(f"engine {engine!r} is not one of {', '.join(ENGINES)}{hint}")
    reference = ReferenceEvaluator(rules)
    if engine == "reference":
        return reference
    try:
        return _durable(rules, reference)
    except RuleError:
        if engine == "durable":
            raise
        return reference


def samples(fields: Mapping[str, Field]) -> Iterator[dict[str, Scalar | None]]:
    """Yield a handful of facts made of the rules' own values: unknown, on a value, next to one."""
    yield {}
    for turn in range(5):
        yield {name: _sample(used, turn + i) for i, (name, used) in enumerate(fields.items())}


def _sample(used: Field, turn: int) -> Scalar:
    if not used.values:
        return True
    value = used.values[turn % len(used.values)]
    return value if isinstance(value, (str, bool)) else value + turn % 2


def _durable(rules: Sequence[EngineRule], reference: Evaluator) -> Evaluator:
    """Build the durable evaluator and hold it against the reference."""
    try:
        from .durable import DurableEvaluator
    except ImportError as error:
        raise RuleError(
            "engine 'durable' is not available: it needs durable-rules==2.0.28, Python below 3.13"
            " and, to install, a C compiler; install it or use engine 'reference'"
        ) from error
    durable = DurableEvaluator(rules)
    if any(durable.fired(facts) != reference.fired(facts) for facts in samples(check(rules))):
        raise RuleError("engine 'durable' disagrees with the reference; use engine 'reference'")
    return durable


def _kind(value: object) -> Kind | None:
    """Tell numbers from categories. True is a category, so it never equals 1; NaN is neither."""
    if isinstance(value, (str, bool)):
        return "a category"
    if isinstance(value, (int, float)) and value == value:
        return "a number"
    return None


def _check_shape(rule: EngineRule, seen: set[str]) -> None:
    if not isinstance(rule.id, str) or not rule.id:
        raise RuleError(f"rule {rule.id!r}: an id is a text that is not empty")
    if rule.id in seen:
        raise RuleError(f"rule {rule.id!r}: there are two rules with this id")
    seen.add(rule.id)
    if not rule.branches or not all(rule.branches):
        raise RuleError(f"rule {rule.id!r}: each branch of a rule needs at least one condition")


def _check_test(test: Test, rule: str, fields: dict[str, Field]) -> None:
    """Check one test and add its values to what is known of its field."""
    where = f"rule {rule!r}: field {test.field!r}"
    if not isinstance(test.field, str) or not test.field:
        raise RuleError(f"{where}: a field is a text that is not empty")
    used = fields.setdefault(test.field, Field(rule))
    for operand in _operands(test, where):
        kind = _kind(operand)
        if kind is None or operand in (math.inf, -math.inf):
            raise RuleError(f"{where}: {show(operand)} is not text, true, false or a finite number")
        if test.op in ORDERS and kind != "a number":
            raise RuleError(f"{where}: {test.op} needs a number, not {show(operand)}")
        if used.kind is None:
            used.rule, used.kind = rule, kind
        if kind != used.kind:
            clash = f"tested as {kind} here and as {used.kind} in rule {used.rule!r}"
            raise RuleError(f"{where}: {clash}; make them the same")
        used.values.append(operand)


def _operands(test: Test, where: str) -> tuple[Any, ...]:
    """Return the values that a test compares with, of any type yet."""
    op, value = test.op, test.value
    if op not in OPS:
        raise RuleError(f"{where}: {op!r} is not one of {', '.join(OPS)}")
    if op in STATES and value is not None:
        raise RuleError(f"{where}: {op} takes no value, but has {show(value)}")
    if op in LISTS and (not isinstance(value, tuple) or not value):
        raise RuleError(f"{where}: {op} needs a tuple of values, not {show(value)}")
    if op in STATES:
        return ()
    return value if op in LISTS and isinstance(value, tuple) else (value,)
