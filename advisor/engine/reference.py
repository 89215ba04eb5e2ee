"""Rules as plain Python closures: no state, no lock, any thread. The definition of truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import EngineRule, Scalar, Test, check, read

Values = Mapping[str, Scalar | None]
Holds = Callable[[Values], bool]

# Field and value to closure. Both sides are of one kind, as `check` and `read` have seen to: hence
# Any. One closure does it all, since sweeps over changed profiles ask thousands of times.
CLOSURES: dict[str, Callable[[str, Any], Callable[[Mapping[str, Any]], bool]]] = {
    "eq": lambda field, value: lambda values: values[field] == value,  # None equals no value
    "in": lambda field, value: lambda values: values[field] in value,
    "not_in": lambda field, value: (
        lambda values: (x := values[field]) is not None and x not in value
    ),
    "gt": lambda field, value: lambda values: (x := values[field]) is not None and x > value,
    "gte": lambda field, value: lambda values: (x := values[field]) is not None and x >= value,
    "lt": lambda field, value: lambda values: (x := values[field]) is not None and x < value,
    "lte": lambda field, value: lambda values: (x := values[field]) is not None and x <= value,
    "known": lambda field, _: lambda values: values[field] is not None,
    "unknown": lambda field, _: lambda values: values[field] is None,
}


class ReferenceEvaluator:
    """Evaluates rules one by one, in file order.

    Args:
        rules: The rule base; RuleError if one is malformed.
    """

    name = "reference"

    def __init__(self, rules: Sequence[EngineRule]) -> None:
        self._fields = check(rules)
        self._rules = [(rule.id, _rule(rule)) for rule in rules]

    def fired(self, facts: Mapping[str, Scalar | None]) -> list[str]:
        """Return the ids of the rules that fire, each once, in file order.

        Raises:
            RuleError: A fact is not of the kind that the rules test it as.
        """
        values = read(facts, self._fields)
        return [rule for rule, holds in self._rules if holds(values)]


def _branch(tests: Sequence[Test]) -> Holds:
    closures = [CLOSURES[test.op](test.field, test.value) for test in tests]

    def holds(values: Values) -> bool:
        for each in closures:
            if not each(values):
                return False
        return True

    return closures[0] if len(closures) == 1 else holds


def _rule(rule: EngineRule) -> Holds:
    branches = [_branch(branch) for branch in rule.branches]
    return branches[0] if len(branches) == 1 else lambda values: any(b(values) for b in branches)
