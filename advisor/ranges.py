"""What the settings of a script may be, for `--set` and for the script's own options."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from operator import ge, gt, le, lt
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .base import Card, Text
from .reading import parse_list

Bound = int | float | str  # a number, or the name of another setting
_SIGNS = {"least": ">=", "above": ">", "most": "<=", "below": "<"}
_TESTS = {"least": ge, "above": gt, "most": le, "below": lt}
_WORDS = {"least": "at least", "above": "above", "most": "at most", "below": "below"}


class Range(Card):
    """One item of `rules/ranges.yaml`: what these settings may be, each value of them.

    Attributes:
        settings: their names.
        part: the template that a script must hold for it to apply.
        least: the smallest value; `above` if it is itself too small.
        most: the largest value; `below` if it is itself too large.
        multiple: a number that divides it; it is above 0 then.
        among: all values that there are.
        empty: whether a setting of several values may have none.
    """

    settings: tuple[Text, ...] = Field(min_length=1)
    part: Text | None = Field(default=None, alias="with")
    least: Bound | None = None
    above: Bound | None = None
    most: Bound | None = None
    below: Bound | None = None
    multiple: int | None = Field(default=None, gt=0)
    among: tuple[int | str, ...] | None = None
    empty: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> Range:
        if sum((bool(self._bounds()), self.multiple is not None, self.among is not None)) != 1:
            raise ValueError("one of `among`, `multiple` and bounds is expected")
        for low, high in (("least", "above"), ("most", "below")):
            if getattr(self, low) is not None and getattr(self, high) is not None:
                raise ValueError(f"{low} and {high}: one of them is enough")
        return self

    def words(self) -> str:
        """What a value must be, as "above 0 and below 1"."""
        if self.among is not None:
            *first, last = map(str, self.among)
            return f"{', '.join(first)} or {last}"
        if self.multiple:
            return f"a multiple of {self.multiple}"
        bounds = self._bounds()
        if [name for name, _ in bounds] == ["least"]:
            return f"{self.least} or more"
        if self.least is not None and self.most is not None:
            return f"{self.least} to {self.most}"
        return " and ".join(f"{_WORDS[name]} {bound}" for name, bound in bounds)

    def test(self) -> str:
        """The same in Python, of a finite value `v` and the settings `s`."""
        if self.among is not None:
            return f"v in {self.among!r}".replace("'", '"')
        if self.multiple:
            return f"v > 0 and v % {self.multiple} == 0"
        if len(bounds := self._bounds()) == 1:
            return f"v {_SIGNS[bounds[0][0]]} {_python(bounds[0][1])}"
        (low, least), (high, most) = bounds
        left = _SIGNS[low].replace(">", "<")
        return f"{_python(least)} {left} v {_SIGNS[high]} {_python(most)}"

    def holds(self, value: Any, values: Mapping[str, Any]) -> bool:
        """Whether a setting may have this value.

        Args:
            value: One, or a tuple of them.
            values: Of all settings, by name.
        """
        several = value if isinstance(value, tuple) else (value,)
        return (bool(several) or self.empty) and all(self._one(v, values) for v in several)

    def _one(self, value: Any, values: Mapping[str, Any]) -> bool:
        if self.among is not None:
            return value in self.among
        if self.multiple:
            return bool(value > 0 and value % self.multiple == 0)
        return math.isfinite(value) and all(
            _TESTS[name](value, values[bound] if isinstance(bound, str) else bound)
            for name, bound in self._bounds()
        )

    def _bounds(self) -> list[tuple[str, Bound]]:
        """Those that are given, the lower one first."""
        return [(name, bound) for name in _SIGNS if (bound := getattr(self, name)) is not None]


class Limit(BaseModel):
    """One range with those settings of a script that it is for.

    Attributes:
        words: what a value must be.
        test: the same in Python, of a value `v` and the settings `s`.
        names: of the settings.
    """

    model_config = ConfigDict(frozen=True)
    words: str
    test: str
    names: tuple[str, ...]


def _python(bound: Bound) -> str:
    return f"s.{bound}" if isinstance(bound, str) else repr(bound)


@cache
def _all(rules: Path) -> tuple[Range, ...]:
    return parse_list(rules / "ranges.yaml", "rules/ranges.yaml", Range)


def ranges_of(page: Collection[str], rules: Path) -> dict[str, Range]:
    """The range of every setting, by name, in a script of these parts.

    Args:
        page: Names of templates.
        rules: The folder that holds `ranges.yaml`.
    """
    fitting = (each for each in _all(rules) if each.part is None or each.part in page)
    return {name: each for each in fitting for name in each.settings}


def limits(names: Iterable[str], ranges: Mapping[str, Range]) -> tuple[Limit, ...]:
    """What a script says of its settings, in their order; settings of one range share a line.

    Args:
        names: Of its settings.
        ranges: From `ranges_of`.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if each := ranges.get(name):
            found.setdefault((each.words(), each.test()), []).append(name)
    return tuple(Limit(words=w, test=t, names=tuple(ns)) for (w, t), ns in found.items())
