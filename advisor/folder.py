"""A folder of `rules/` as a mapping: ids from the listing, files read when asked for and kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from pydantic import BaseModel

from . import reading
from .reading import KnowledgeError

Item = TypeVar("Item", bound=BaseModel)


class Folder(Mapping[str, Item], Generic[Item]):
    """The files of one folder by their stem, in alphabetical order; safe for many threads.

    Args:
        path: The folder; one that is missing is empty.
        model: The class that describes a file; its `id` must be the stem.
    """

    def __init__(self, path: Path, model: type[Item]) -> None:
        self.model, self._root = model, path.parent
        self._paths = {p.stem: p for p in sorted(path.glob("*.yaml"))}
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

    def _read(self, path: Path) -> Item:
        shown = reading.shown(self._root, path)
        item = reading.parse(path, shown, self.model)
        id = getattr(item, "id", path.stem)
        if id != path.stem:
            where = reading.places(path, shown)(("id",))
            raise KnowledgeError(
                f"{where}: {id}: id: the file is {path.name}; both must be the same"
            )
        return item
