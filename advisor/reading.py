"""Read one YAML file into one model; every error is one line: `file:line: item: field: what`.

Plain scalars follow YAML 1.2: only true and false are booleans (`no` stays text), `1e-3` is a
number and `12:30` is not. A key given twice is refused, since the last would silently win.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from .profile import nearest

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is five times as fast
_NUMBER = re.compile(r"[-+]?(\d+|(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?)")
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_START = frozenset("+-.0123456789")

Loc = tuple[int | str, ...]
Model = TypeVar("Model", bound=BaseModel)
Key = TypeVar("Key", int, str)


class KnowledgeError(ValueError):
    """A file in `rules/` is wrong; the text names file, line, item, field and the cure.

    Attributes:
        lines: All problems found together, one line each; the text is the first.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(lines[0])
        self.lines = lines


class Spot(NamedTuple):
    """Where a value stands in its file, and how it was written."""

    line: int
    raw: str


class _File:
    """One pass over the events of a YAML text; `spots` is filled only when errors need it."""

    def __init__(self, text: str, shown: str, spots: dict[Loc, Spot] | None = None) -> None:
        self.shown, self.spots = shown, spots
        self.next: Callable[[], Any] = _LOADER(text).get_event

    def data(self) -> Any:
        try:
            self.next()  # start of the stream
            if type(self.next()) is not yaml.DocumentStartEvent:
                raise KnowledgeError(f"{self.shown}: the file is empty")
            value = self._value(self.next(), None if self.spots is None else ())
            self.next()  # end of the document
            if type(self.next()) is not yaml.StreamEndEvent:
                raise KnowledgeError(f"{self.shown}: more than one document in the file")
            return value
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            what = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise KnowledgeError(f"{self.shown}{line}: not valid YAML: {what}") from None

    def _value(self, event: Any, loc: Loc | None, line: int = 0) -> Any:
        kind = type(event)
        if self.spots is not None and loc is not None:
            raw = event.value if kind is yaml.ScalarEvent else ""
            self.spots[loc] = Spot(line or _line(event), raw)
        if kind is yaml.ScalarEvent:
            return _scalar(event.value) if event.implicit[0] else event.value
        if kind is yaml.MappingStartEvent:
            return self._mapping(loc)
        if kind is yaml.SequenceStartEvent:
            return self._sequence(loc)
        where = f"{self.shown}:{_line(event)}"
        raise KnowledgeError(f"{where}: anchors and aliases (& and *) are not used here")

    def _mapping(self, loc: Loc | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while type(event := self.next()) is not yaml.MappingEndEvent:
            key = getattr(event, "value", None)  # always text, whatever it looks like
            if key is None:
                raise KnowledgeError(f"{self.shown}:{_line(event)}: a key must be a plain name")
            if key in found:
                raise KnowledgeError(f"{self.shown}:{_line(event)}: {key!r} is given twice")
            inner = None if loc is None else (*loc, key)
            found[key] = self._value(self.next(), inner, _line(event) if inner else 0)
        return found

    def _sequence(self, loc: Loc | None) -> list[Any]:
        found: list[Any] = []
        while type(event := self.next()) is not yaml.SequenceEndEvent:
            found.append(self._value(event, None if loc is None else (*loc, len(found))))
        return found


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _scalar(text: str) -> Any:
    """What an unquoted word means."""
    if text[:1] in _START and _NUMBER.fullmatch(text):
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    return _WORDS.get(text, text)


def read(path: Path, shown: str) -> Any:
    """The content of one YAML file as plain dicts, lists and scalars.

    Args:
        path: The file.
        shown: How messages call it, such as `rules/scale.yaml`.

    Raises:
        KnowledgeError: If it is missing, empty, not YAML, or gives a key twice.
    """
    return parse_text(_text(path, shown), shown)


def parse_text(text: str, shown: str) -> Any:
    """The content of a YAML text as plain dicts, lists and scalars.

    Args:
        text: The YAML.
        shown: How messages call it.

    Raises:
        KnowledgeError: If it is empty, not YAML, or gives a key twice.
    """
    return _File(text, shown).data()


def parse(path: Path, shown: str, model: type[Model]) -> Model:
    """One file that holds one item.

    Args:
        path: The file.
        shown: How messages call it.
        model: The class that describes it.

    Raises:
        KnowledgeError: With every problem of the file.
    """
    data = read(path, shown)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise KnowledgeError(*_lines(error, path, shown, model, (), data)) from None


def parse_list(path: Path, shown: str, model: type[Model]) -> tuple[Model, ...]:
    """One file that holds a list of items.

    Args:
        path: The file.
        shown: How messages call it.
        model: The class that describes an item.

    Raises:
        KnowledgeError: With every problem of the file.
    """
    data = read(path, shown)
    if not isinstance(data, list):
        raise KnowledgeError(f"{shown}:1: a list of items is expected, each starting with '- '")
    return tuple(_each(enumerate(data), path, shown, model).values())


def parse_mapping(path: Path, shown: str, model: type[Model]) -> dict[str, Model]:
    """One file that holds items by name.

    Args:
        path: The file.
        shown: How messages call it.
        model: The class that describes an item.

    Raises:
        KnowledgeError: With every problem of the file.
    """
    data = read(path, shown)
    if not isinstance(data, dict):
        raise KnowledgeError(f"{shown}:1: items by name are expected, 'name: ...'")
    return _each(data.items(), path, shown, model)


def places(path: Path, shown: str) -> Callable[[Loc], str]:
    """A function that tells `file:line` of a value, or of the nearest item around it.

    Args:
        path: The file, which can be read.
        shown: How messages call it.
    """
    spots = _spots(path, shown)
    return lambda loc: f"{shown}:{spots[_known(spots, loc)].line}"


def _each(
    items: Iterable[tuple[Key, Any]], path: Path, shown: str, model: type[Model]
) -> dict[Key, Model]:
    found: dict[Key, Model] = {}
    lines: list[str] = []
    for key, item in items:
        try:
            found[key] = model.model_validate(item)
        except ValidationError as error:
            lines += _lines(error, path, shown, model, (key,), item)
    if lines:
        raise KnowledgeError(*lines)
    return found


def _text(path: Path, shown: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise KnowledgeError(f"{shown}: the file is missing") from None
    except UnicodeDecodeError as error:
        raise KnowledgeError(f"{shown}: not UTF-8 text (byte {error.start})") from None


def _spots(path: Path, shown: str) -> dict[Loc, Spot]:
    spots: dict[Loc, Spot] = {}
    _File(_text(path, shown), shown, spots).data()
    return spots


def _known(spots: dict[Loc, Spot], loc: Loc) -> Loc:
    """The part of a path that the file has; pydantic adds the names of union branches to it."""
    found: Loc = ()
    for part in loc:
        if (*found, part) in spots:
            found = (*found, part)
    return found


def _lines(
    error: ValidationError, path: Path, shown: str, model: type[BaseModel], base: Loc, item: Any
) -> Iterator[str]:
    spots = _spots(path, shown)
    name = item.get("id", item.get("fact")) if isinstance(item, dict) else None
    name = name or next((key for key in base if isinstance(key, str)), None)
    told: dict[Loc, Any] = {}
    # a mistyped key is also a missing one; the former says more
    for each in sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden"):
        here = _known(spots, (*base, *each["loc"]))
        missing = (each["loc"][-1],) if each["type"] == "missing" else ()
        told.setdefault((*here[len(base) :], *missing), each)
    for loc, each in told.items():
        if any(other[: len(loc)] == loc != other for other in told):
            continue  # of the branches of a union only the one that fits best complains
        spot = spots[_known(spots, (*base, *loc))]
        field, what = ".".join(map(str, loc)), _what(each, spot.raw, model, loc)
        yield ": ".join(str(p) for p in (f"{shown}:{spot.line}", name, field, what) if p)


def _what(error: Any, raw: str, model: type[BaseModel], loc: Loc) -> str:
    """One pydantic error in words."""
    kind, given = error["type"], error["input"]
    if kind == "missing":
        return "missing"
    if kind == "extra_forbidden":
        return f"there is no such key here{nearest(loc[-1], _keys(model, loc[:-1]))}"
    if kind == "string_type" and isinstance(given, int | float):
        return f'{raw} is read as a number or as yes/no; write it in quotes: "{raw}"'
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"{given!r} is not {error['ctx']['expected']}{nearest(given, known)}"
    if kind == "string_pattern_mismatch":
        return f"{given!r} does not have the form {error['ctx']['pattern']}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    return f"{given!r}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def _keys(model: type[BaseModel], loc: Loc) -> list[str]:
    """The keys allowed at a place inside a model."""
    for part in loc:
        fields = {f.alias or n: f for n, f in model.model_fields.items()}
        inner = _inner(fields[str(part)].annotation) if part in fields else None
        model = inner or model
    return [f.alias or n for n, f in model.model_fields.items()]


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The model inside `tuple[X, ...]`, `dict[str, X]` or `X | None`."""
    if parts := get_args(annotation):
        return next((m for a in parts if (m := _inner(a))), None)
    return annotation if isinstance(annotation, type(BaseModel)) else None
