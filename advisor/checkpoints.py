"""Public weights of `rules/checkpoints.yaml` and of packs, which may add to it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from .base import Card, Id, Text
from .packs import CHECKPOINTS
from .profile import Dimensionality, nearest
from .reading import KnowledgeError, parse_list, places

_PLACE = r"^(https://\S+|[\w.-]+/[\w.-]+)$"


class Checkpoint(Card):
    """Public weights learned on medical images, licence as seen.

    Attributes:
        file_format: the layout in which a script reads them; `other` if it cannot, None if unseen.
        file: an address, or `owner/name` on a model hub; None if unseen.
    """

    id: Id
    name: Text
    modality: Annotated[tuple[Id, ...], Field(min_length=1)]
    covers: Text
    architecture: Text | None
    dimensionality: Dimensionality
    file_format: Literal["torchvision", "timm", "monai", "huggingface", "other"] | None
    file: Annotated[str, StringConstraints(pattern=_PLACE)] | None
    licence: Text
    permissive: bool
    source: Text

    def told(self) -> str:
        """What the weights are, whether a script reads them, and where they are."""
        if self.file_format == "other":
            read = "no script reads them"
        else:
            read = f"read as {self.file_format}" if self.file_format else "layout not seen"
        parts = (self.covers, self.architecture, f"{self.dimensionality}, {read}", self.file)
        return f"{self.name}: " + "; ".join(filter(None, parts))


def weights_of(
    roots: Iterable[Path], shown: Callable[[Path], str], modalities: Iterable[str]
) -> tuple[Checkpoint, ...]:
    """The weights of all layers, in file order.

    Args:
        roots: The rule base, then its packs; only the first must have the file.
        shown: How messages call a file.
        modalities: Ids of the modality cards.

    Raises:
        KnowledgeError: If a file is wrong, an id is given twice or a modality has no card.
    """
    found: dict[str, Checkpoint] = {}
    wrong: list[str] = []
    files = [root / CHECKPOINTS for root in roots]
    known = tuple(modalities)
    for path in (p for i, p in enumerate(files) if i == 0 or p.is_file()):
        items = parse_list(path, shown(path), Checkpoint)
        where = None
        for i, item in enumerate(items):
            for field, what in _problems(item, found, known):
                where = where or places(path, shown(path))
                wrong.append(f"{where((i, field))}: {item.id}: {field}: {what}")
            found.setdefault(item.id, item)
    if wrong:
        raise KnowledgeError(*wrong)
    return tuple(found.values())


def _problems(
    item: Checkpoint, found: Container[str], modalities: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    if item.id in found:
        yield "id", "given twice"
    for name in (n for n in item.modality if n not in modalities):
        yield "modality", f"no modality {name!r}{nearest(name, modalities)}"
