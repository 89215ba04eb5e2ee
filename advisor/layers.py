"""Where the files of a rule base are: its own folder, and those of the packs on top of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .packs import Pack, file_hash, packs
from .reading import KnowledgeError

_CARDS = {"method": "methods", "modality": "modalities", "study": "studies"}


class Layers:
    """A folder of rules with packs over it.

    Args:
        root: The folder that holds `methods/`, `modalities/`, `advice/` and the rest.
        over: Folders of rule packs, later ones over earlier ones.

    Attributes:
        root: The folder, absolute: "." has no name to show in messages.
        packs: The packs on top of it.
        roots: All folders, lowest first.

    Raises:
        KnowledgeError: If a folder is missing or is no pack.
    """

    def __init__(self, root: Path, over: Iterable[Path | str | Pack] = ()) -> None:
        if not root.is_dir():
            raise KnowledgeError(f"{root}: there is no such folder of rules")
        self.root = Path(os.path.abspath(root))
        self.packs = packs(over)
        self.roots = (self.root, *(p.root for p in self.packs))

    def shown(self, path: Path) -> str:
        """How messages call a file: `rules/advice/labels.yaml`, `our-pack/methods/mae.yaml`.

        Args:
            path: A file of the rule base or of a pack.
        """
        name, root = self._layer(path)
        return f"{name}/{path.relative_to(root).as_posix()}"

    def listed(self) -> tuple[Path, ...]:
        """The advice files, in the order in which their rules count."""
        return tuple(path for root in self.roots for path in advice_files(root))

    def beside(self, path: Path) -> tuple[Path, ...]:
        """The advice files of the same rule base or pack as one of them.

        Args:
            path: One of `listed()`.
        """
        return advice_files(self._layer(path)[1])

    def below(self, pack: Pack) -> tuple[Path, ...]:
        """The folders that a pack stands over.

        Args:
            pack: One of `packs`.
        """
        return self.roots[: self.roots.index(pack.root)]

    def replaced(self, pack: Pack) -> tuple[str, ...]:
        """The cards that a pack has in the place of others, as `method mae`.

        Args:
            pack: One of `packs`.
        """
        return tuple(
            f"{word} {path.stem}"
            for word, folder in _CARDS.items()
            for path in sorted((pack.root / folder).glob("*.yaml"))
            if any((root / folder / path.name).is_file() for root in self.below(pack))
        )

    def hashed(self) -> str:
        """Hash of every file of the rule base, names and bytes; packs have their own."""
        return file_hash(self.root, self._files())

    def _files(self) -> Iterator[str]:
        for folder, _, names in os.walk(self.root):
            yield from (os.path.join(folder, n) for n in names if not n.startswith("."))

    def _layer(self, path: Path) -> tuple[str, Path]:
        """Name and folder of the pack that holds a file, or of the rule base."""
        for each in self.packs:
            if path.is_relative_to(each.root):
                return each.name, each.root
        return self.root.name, self.root


def advice_files(root: Path) -> tuple[Path, ...]:
    """The advice files of a rule base or pack, in the order in which their rules count.

    Args:
        root: Its folder.
    """
    return tuple(sorted((root / "advice").glob("*.yaml")))
