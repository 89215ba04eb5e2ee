"""Rule packs: folders that add to the shipped rule base, or put their own item in a place of it.

A pack is found by its folder, or as an installed package that names itself in the entry-point group
`medssl_advisor.rules`. Nothing of such a package is executed: only its folder is looked up.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .reading import KnowledgeError

GROUP = "medssl_advisor.rules"
PARTS = ("advice", "methods", "modalities", "studies")
CHECKPOINTS = "checkpoints.yaml"


class Pack(NamedTuple):
    """One pack: how messages and answers call it, and where its folders are."""

    name: str
    root: Path
    version: str  # empty where it has no VERSION file

    @property
    def sha256(self) -> str:
        """Hash of all that can change an answer: names and bytes of its rule files."""
        inside = (p for part in PARTS for p in (self.root / part).glob("*.yaml"))
        single = (self.root / name for name in (CHECKPOINTS, "VERSION"))
        return file_hash(self.root, (*inside, *(p for p in single if p.is_file())))


def file_hash(root: Path, files: Iterable[Path | str]) -> str:
    """SHA-256 over names and bytes, whatever the order in which the files are given.

    Args:
        root: The folder that names are relative to.
        files: Files below it.
    """
    total, cut = hashlib.sha256(), len(os.path.join(root, ""))
    for name, path in sorted((str(f)[cut:].replace(os.sep, "/"), f) for f in files):
        with open(path, "rb") as file:
            data = file.read()
        total.update(f"{name}\0{len(data)}\0".encode() + data)
    return total.hexdigest()


def pack(folder: Path | str | Pack, name: str = "") -> Pack:
    """The pack in a folder, or in the folder `rules` inside of it.

    Args:
        folder: Holds at least one of `advice/`, `methods/`, `modalities/`, `studies/` and
            `checkpoints.yaml`.
        name: How to call it; by default as the folder is called.

    Raises:
        KnowledgeError: If it holds none of these, or files that a pack cannot change.
    """
    if isinstance(folder, Pack):
        return folder
    root = Path(os.path.abspath(folder))
    if not root.is_dir():
        raise KnowledgeError(f"{folder}: there is no such folder of rules")
    if not _parts(root) and (root / "rules").is_dir():
        root = root / "rules"
    name = name or (root.parent.name if root.name == "rules" else root.name)
    if not _parts(root):
        raise KnowledgeError(f"{folder}: no rule pack; it needs one of {_listed()}")
    for stray in sorted({p.name for p in root.glob("*.yaml")} - {CHECKPOINTS}):
        raise KnowledgeError(f"{name}/{stray}: a pack cannot change this; it may hold {_listed()}")
    version = root / "VERSION"
    try:
        told = version.read_text(encoding="utf-8").strip() if version.is_file() else ""
    except UnicodeDecodeError:
        raise KnowledgeError(f"{name}/VERSION: not UTF-8 text") from None
    return Pack(name, root, told)


def packs(folders: Iterable[Path | str | Pack]) -> tuple[Pack, ...]:
    """The packs of some folders, each once, in the order given: a later one overrides.

    Args:
        folders: Folders or packs.

    Raises:
        KnowledgeError: If one is no pack, or two are called the same.
    """
    found: dict[str, Pack] = {}
    for each in map(pack, folders):
        other = found.setdefault(each.name, each)
        if other.root != each.root:
            raise KnowledgeError(f"two rule packs are called {each.name!r}; rename a folder")
    return tuple(found.values())


def installed() -> tuple[Pack, ...]:
    """The packs that installed packages bring, by name.

    Importing the library that reads entry points takes longer than an answer, so the files are
    looked through first, in about a millisecond for a hundred packages.

    Raises:
        KnowledgeError: If one of them cannot be found or is no pack.
    """
    if not any(_named()):
        return ()
    from importlib.metadata import entry_points

    found = {(e.name, e.value) for e in entry_points(group=GROUP)}
    return tuple(_of_package(name, value) for name, value in sorted(found))


def _named() -> Iterator[bool]:
    """For each installed package with entry points, whether its file names the group."""
    for folder in dict.fromkeys(sys.path):
        try:
            names = os.listdir(folder or ".")
        except OSError:  # zip archives and folders that are gone
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                try:
                    with open(os.path.join(folder, name, "entry_points.txt"), "rb") as file:
                        yield GROUP.encode() in file.read()
                except OSError:
                    continue


def _of_package(name: str, package: str) -> Pack:
    """The pack in a package's folder; importing the package itself could run anything."""
    from importlib.util import find_spec

    where = f"rule pack {name!r}: the package {package!r}"
    try:
        spec = find_spec(package.strip())
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise KnowledgeError(f"{where} cannot be found; install it again or remove it")
    try:
        return pack(folders[0], name)
    except KnowledgeError as error:
        raise KnowledgeError(f"{where} is broken: {error}") from None


def _parts(root: Path) -> list[str]:
    found = [part for part in PARTS if (root / part).is_dir()]
    return [*found, CHECKPOINTS] if (root / CHECKPOINTS).is_file() else found


def _listed() -> str:
    return f"{', '.join(PARTS)} and {CHECKPOINTS}"
