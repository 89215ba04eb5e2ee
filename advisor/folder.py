"""Folders of `rules/` as a mapping: ids from the listing, files read when asked for and kept."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from pydantic import BaseModel

from . import reading
from .reading import KnowledgeError

Item = TypeVar("Item", bound=BaseModel)
T = TypeVar("T")


class Folder(Mapping[str, Item], Generic[Item]):
    """The files of some folders by their stem, in alphabetical order; safe for many threads.

    Args:
        paths: The folders; one that is missing is empty, and a later one overrides.
        model: The class that describes a file; its `id` must be the stem.
        shown: How messages call a file.
    """

    def __init__(
        self, paths: Iterable[Path], model: type[Item], shown: Callable[[Path], str]
    ) -> None:
        self.model, self._shown = model, shown
        found = {p.stem: p for path in paths for p in path.glob("*.yaml")}
        self._paths = {id: found[id] for id in sorted(found)}
        self._kept: dict[str, Item] = {}
        self._lock = Lock()

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, key: object) -> bool:
        return key in self._paths

    def __getitem__(self, key: str) -> Item:
        if key not in self._kept:
            path = self._paths[key]
            with self._lock:
                if key not in self._kept:
                    self._kept[key] = self._read(path)
        return self._kept[key]

    def path(self, key: str) -> Path:
        """The file that an id is read from.

        Args:
            key: The id.
        """
        return self._paths[key]

    def _read(self, path: Path) -> Item:
        shown = self._shown(path)
        item = reading.parse(path, shown, self.model)
        id = getattr(item, "id", path.stem)
        if id != path.stem:
            where = reading.places(path, shown)(("id",))
            raise KnowledgeError(
                f"{where}: {id}: id: the file is {path.name}; both must be the same"
            )
        return item


def uncollected(make: Callable[[], T]) -> T:
    """Made without looking for garbage: loading keeps what it makes, and takes a third less.

    Args:
        make: Makes the value.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return make()
    finally:
        if collecting:
            gc.enable()
