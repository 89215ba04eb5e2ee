"""The reference's rules as bit masks: for the many questions that differ in a fact or two.

Each branch of each rule is a bit. A field with a value rules out the branches whose tests on it
fail; what all fields leave has fired. The mask of a value is worked out once, by the reference's
own closures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import EngineRule, Scalar, check
from .reference import CLOSURES, Holds

MOST = 4096  # values of a field that are remembered; a server is asked about any number of labels


class MaskEvaluator:
    """Evaluates all rules at once; facts are of the kinds that the rules test them as.

    Args:
        rules: The rule base; RuleError if one is malformed.
    """

    def __init__(self, rules: Sequence[EngineRule]) -> None:
        branches = [(rule.id, branch) for rule in rules for branch in rule.branches]
        self._ids = [id for id, _ in branches]
        self._tests: dict[str, list[tuple[int, Holds]]] = {field: [] for field in check(rules)}
        for bit, (_, branch) in enumerate(branches):
            for test in branch:
                holds = CLOSURES[test.op](test.field, test.value)
                self._tests[test.field].append((1 << bit, holds))
        self._all = (1 << len(branches)) - 1
        self._known: dict[str, dict[Scalar | None, int]] = {field: {} for field in self._tests}

    def fired(self, facts: Mapping[str, Scalar | None]) -> frozenset[str]:
        """Return the ids of the rules that fire."""
        left = self._all
        for field, known in self._known.items():
            value = facts.get(field)
            mask = known.get(value)
            left &= self._mask(field, value) if mask is None else mask
        found = set()
        while left:
            bit = left & -left
            found.add(self._ids[bit.bit_length() - 1])
            left ^= bit
        return frozenset(found)

    def _mask(self, field: str, value: Scalar | None) -> int:
        """The branches that this value does not rule out."""
        failed = 0
        for bit, holds in self._tests[field]:
            if not holds({field: value}):
                failed |= bit
        if len(self._known[field]) < MOST:
            self._known[field][value] = self._all & ~failed
        return self._all & ~failed
