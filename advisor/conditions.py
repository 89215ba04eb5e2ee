"""The grammar of `when`: YAML tests on facts, checked and compiled to the engine's neutral form.

- `task: segmentation`: equal
- `modality: [ct, mri]`: one of
- `labeled: {gte: 10, lt: 500}`: a range
- `batch_size: known`, or `unknown`
- `backbone: {not: vit}`: another value; false where the fact is unknown, like all but `unknown`
- `any: [{hours: {lt: 24}}, {gpus: unknown}]`: at least one of these, besides the rest
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from .engine import Test
from .facts import Kind
from .profile import nearest

_RANGES: dict[str, Literal["gte", "gt", "lte", "lt"]] = {
    "gte": "gte",
    "gt": "gt",
    "lte": "lte",
    "lt": "lt",
}


class Wrong(NamedTuple):
    """A condition that cannot be meant: where in the rule, and why."""

    loc: tuple[int | str, ...]
    what: str


class Compiled(NamedTuple):
    """An OR of ANDs; empty when `wrong` is not."""

    branches: tuple[tuple[Test, ...], ...]
    wrong: tuple[Wrong, ...]


def compile_when(when: Mapping[str, Any], kinds: Mapping[str, Kind]) -> Compiled:
    """Check and compile the condition of one rule.

    Args:
        when: The mapping as written.
        kinds: Every fact that can be tested, with what it may hold.
    """
    wrong: list[Wrong] = []
    base = _all_of({k: v for k, v in when.items() if k != "any"}, kinds, ("when",), wrong)
    if "any" not in when:
        if not when:
            wrong.append(Wrong(("when",), "a rule needs at least one condition"))
        branches = [base]
    else:
        branches = [base + tests for tests in _any_of(when["any"], kinds, wrong)]
    return Compiled(() if wrong else tuple(tuple(b) for b in branches), tuple(wrong))


def _any_of(listed: Any, kinds: Mapping[str, Kind], wrong: list[Wrong]) -> Iterator[list[Test]]:
    loc = ("when", "any")
    if not isinstance(listed, list) or not listed:
        wrong.append(Wrong(loc, "a list of conditions is expected, each a mapping fact: test"))
        return
    for i, each in enumerate(listed):
        if isinstance(each, dict) and each:
            yield _all_of(each, kinds, (*loc, i), wrong)
        else:
            wrong.append(Wrong((*loc, i), "a mapping fact: test is expected"))


def _all_of(
    tests: Mapping[str, Any],
    kinds: Mapping[str, Kind],
    loc: tuple[int | str, ...],
    wrong: list[Wrong],
) -> list[Test]:
    found: list[Test] = []
    for field, test in tests.items():
        try:
            if field not in kinds:
                raise ValueError(f"there is no fact {field!r}{nearest(field, kinds)}")
            found += _tests(field, test, kinds[field])
        except ValueError as error:
            wrong.append(Wrong((*loc, field), str(error)))
    return found


def _tests(field: str, test: Any, kind: Kind) -> Iterator[Test]:
    """The tests behind `field: test`; raises ValueError with the reason where there are none."""
    if test in ("known", "unknown"):
        yield Test(field, test, None)
    elif isinstance(test, dict):
        yield from _mapped(field, test, kind)
    elif kind == "number":
        if isinstance(test, list):
            raise ValueError("a number is tested with gte, gt, lte or lt, not with a list")
        yield Test(field, "gte", _number(test))  # a range, so that numbers meet one sort of test
        yield Test(field, "lte", _number(test))
    elif isinstance(test, list):
        yield Test(field, "in", _words(test, kind))
    else:
        yield Test(field, "eq", _word(test, kind))


def _mapped(field: str, test: dict[str, Any], kind: Kind) -> Iterator[Test]:
    if not test:
        raise ValueError("an empty test; write a value, a list, known, unknown or a range")
    for op, value in test.items():
        if op == "not":
            if kind == "number":
                raise ValueError("a number is tested with gte, gt, lte or lt, not with 'not'")
            yield Test(field, "not_in", _words(value if isinstance(value, list) else [value], kind))
        elif op not in _RANGES:
            known = (*_RANGES, "not")
            raise ValueError(f"{op!r} is no test: one of {', '.join(known)}{nearest(op, known)}")
        elif kind != "number":
            raise ValueError(f"{op} is for numbers, and {field} holds words")
        else:
            yield Test(field, _RANGES[op], _number(value))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return value


def _words(values: list[Any], kind: Kind) -> tuple[str | bool, ...]:
    if not values:
        raise ValueError("an empty list never holds")
    return tuple(_word(v, kind) for v in values)


def _word(value: Any, kind: Kind) -> str | bool:
    """One value of the fact's vocabulary."""
    if kind == "truth":
        if isinstance(value, bool):
            return value
        raise ValueError(f"{value!r} is neither true nor false")
    if isinstance(value, str) and value in kind:
        return value
    known = ", ".join(map(repr, kind))
    raise ValueError(f"{value!r} is not one of {known}{nearest(value, kind)}")
