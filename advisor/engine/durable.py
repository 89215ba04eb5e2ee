"""Rules on durable-rules: a strict compiler, small rulesets, one session at a time.

durable-rules 2.0.28 crashes, hangs or errs silently when it is used plainly. What keeps it on safe
ground here:

- It never sees a user's value. A fact becomes a small integer: its place among the values that the
  rules compare it with. So floats (it cannot read 1e-07), huge numbers, nulls and odd text never
  reach it, and an absent fact is an explicit 0.
- Its OR fires once per true side. It is used only for `in`, whose sides exclude each other; every
  branch of a rule is an engine rule of its own, and ids are made unique afterwards.
- A node with 512 children hangs it; more than 64 true ones overflow its stack. A shard, as rulesets
  are called here, stays well below.
- Deleting a session in which nothing fired crashes it. Every shard has a sentinel rule that always
  fires and is warmed up once; the sentinel also proves that the match ran.
- Its background threads race with the caller. They are never started.
- It swallows what an action raises. An action only notes its rule, and the state is looked at.
"""

from __future__ import annotations

import threading
import time
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

from durable import engine as library

from . import EngineRule, Field, RuleError, Scalar, Test, check, read

# The library's limits: 64 true siblings, 512 siblings, 255 properties, 31 nested expressions.
MAX_RULES, MAX_CONDITIONS, MAX_FIELDS, MAX_LISTS = 60, 400, 240, 12
UNKNOWN, OTHER = 0, 1
SENTINEL = "sentinel"
INSTEAD = "use engine 'reference'"

# The original warns at each firing from Python 3.12 on, and jumps with the wall clock.
library._unix_now = time.monotonic


class Part(NamedTuple):
    """One branch of a rule in the library's terms; `size` counts its conditions."""

    rule: int
    condition: dict[str, Any]
    size: int


class QuietHost(library.Host):  # type: ignore[misc]
    """A host without threads, whose actions only note the rule that fired."""

    def __init__(self) -> None:
        self.hits: list[str] = []
        super().__init__()

    def _run(self) -> None:
        """Start no dispatcher: it steals activations and reads freed sessions."""

    def get_action(self, name: str) -> Callable[[object], None]:
        """Return the action of rule `name`."""

        def record(_context: object) -> None:  # with a second parameter it would count as async
            self.hits.append(name)

        return record


class DurableEvaluator:
    """Evaluates rules on durable-rules; threads take turns.

    Args:
        rules: The rule base; RuleError if one is malformed or too large for a shard.
    """

    name = "durable"

    def __init__(self, rules: Sequence[EngineRule]) -> None:
        self._ids = [rule.id for rule in rules]
        self._fields = check(rules)
        if len(self._fields) > MAX_FIELDS:
            raise RuleError(f"engine 'durable' takes at most {MAX_FIELDS} fields; {INSTEAD}")
        self._names = {field: f"f{i}" for i, field in enumerate(self._fields)}
        self._coders = {field: _coder(used) for field, used in self._fields.items()}
        self._host, self._lock, self._serial = QuietHost(), threading.Lock(), count()
        self._shards: list[str] = []
        # The library never frees a ruleset by itself: 0.7 MB for each shard.
        self._handles: list[int] = []
        weakref.finalize(self, _free, self._handles).atexit = False
        for definition in _shards(self._parts(rules)):
            self._load(definition)

    def fired(self, facts: Mapping[str, Scalar | None]) -> list[str]:
        """Return the ids of the rules that fire, each once, in file order.

        Raises:
            RuleError: A fact is not of the kind that the rules test it as, or the library failed.
        """
        message = {SENTINEL: 1}
        for field, value in read(facts, self._fields).items():
            message[self._names[field]] = UNKNOWN if value is None else self._coders[field](value)
        with self._lock:
            self._host.hits.clear()
            for shard in self._shards:
                self._match(shard, message)
            hits = list(self._host.hits)
        if hits.count(SENTINEL) != len(self._shards):
            raise RuleError(f"engine 'durable' did not finish its match; {INSTEAD}")
        return [self._ids[i] for i in sorted({int(hit) for hit in hits if hit != SENTINEL})]

    def _match(self, shard: str, message: Mapping[str, int]) -> None:
        """Run one fact through one shard, in a session that is gone afterwards."""
        session = f"s{next(self._serial)}"
        try:
            state = self._host.assert_fact(shard, {**message, "sid": session})
        except Exception as error:
            raise RuleError(f"engine 'durable' failed ({error}); {INSTEAD}") from error
        finally:
            self._forget(shard, session)
        if not state or "exception" in state:  # written there, never raised
            raise RuleError(f"engine 'durable' failed inside a rule; {INSTEAD}")

    def _forget(self, shard: str, session: str) -> None:
        try:
            self._host.delete_state(shard, session)
        except Exception:  # no such session: the fact never got in, and that error is on its way up
            return

    def _load(self, definition: dict[str, Any]) -> None:
        shard = f"shard{len(self._shards)}"
        try:
            self._host.set_rulesets({shard: definition})
        except Exception as error:
            raise RuleError(f"engine 'durable' refused the rules ({error}); {INSTEAD}") from error
        self._handles.append(self._host.get_ruleset(shard)._handle)
        self._shards.append(shard)
        # The C side does not initialise a new session slot; one that saw no firing crashes when
        # deleted. With one session at a time it is always this slot that is taken again.
        self._match(shard, {SENTINEL: 1})

    def _parts(self, rules: Sequence[EngineRule]) -> Iterator[Part]:
        for index, rule in enumerate(rules):
            for branch in rule.branches:
                conditions = [condition for test in branch for condition in self._translate(test)]
                lists = [len(each["$or"]) for each in conditions if "$or" in each]
                size = len(conditions) + sum(lists)
                if size > MAX_CONDITIONS or len(lists) > MAX_LISTS:
                    limit = f"at most {MAX_CONDITIONS} values and {MAX_LISTS} lists in a branch"
                    raise RuleError(f"rule {rule.id!r}: engine 'durable' takes {limit}; {INSTEAD}")
                alone = len(conditions) == 1
                yield Part(index, conditions[0] if alone else {"$and": conditions}, size)

    def _translate(self, test: Test) -> list[dict[str, Any]]:
        """Turn a test into conditions that must all hold, each with a single key."""
        name, coder = self._names[test.field], self._coders[test.field]
        known = {"$gt": {name: UNKNOWN}}
        if test.op == "unknown":
            return [{name: UNKNOWN}]
        if test.value is None:
            return [known]
        values = test.value if isinstance(test.value, tuple) else (test.value,)
        codes = list(dict.fromkeys(coder(value) for value in values))
        if test.op == "not_in":
            return [*({"$neq": {name: code}} for code in codes), known]
        if test.op in ("eq", "in"):
            equal: list[dict[str, Any]] = [{name: code} for code in codes]
            return equal if len(equal) == 1 else [{"$or": equal}]
        return [{f"${test.op}": {name: codes[0]}}, known]


def _coder(used: Field) -> Callable[[Scalar], int]:
    """Return the function from a fact to its place among the values that the rules name."""
    if used.kind == "a number":
        numbers: set[Any] = set(used.values)
        cuts = sorted(numbers)

        def place(value: Any) -> int:
            """Even on a cut point, odd between two of them: exact, whatever the number."""
            i = bisect_left(cuts, value)
            return 2 * i + 2 if i < len(cuts) and cuts[i] == value else 2 * i + 1

        return place
    codes = {value: code for code, value in enumerate(dict.fromkeys(used.values), OTHER + 1)}
    return lambda value: codes.get(value, OTHER)


def _shards(parts: Iterable[Part]) -> Iterator[dict[str, Any]]:
    """Pack branches into rulesets that stay within the limits, in order."""
    batch: list[Part] = []
    size = 0
    for part in parts:
        if len(batch) == MAX_RULES or size + part.size > MAX_CONDITIONS:
            yield _definition(batch)
            batch, size = [], 0
        batch.append(part)
        size += part.size
    if batch:
        yield _definition(batch)


def _definition(batch: Sequence[Part]) -> dict[str, Any]:
    rules = {f"r{i}": _rule(part.condition, str(part.rule)) for i, part in enumerate(batch)}
    return {SENTINEL: _rule({SENTINEL: 1}, SENTINEL), **rules}


def _rule(condition: Mapping[str, Any], action: str) -> dict[str, Any]:
    return {"all": [{"m": condition}], "run": action}


def _free(handles: Sequence[int]) -> None:
    for handle in handles:
        library.durable_rules_engine.delete_ruleset(handle)
