"""Reading what the user hands in and writing what they asked for, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from . import reading

Model = TypeVar("Model", bound=BaseModel)


class FileError(ValueError):
    """A file cannot be read or written; the text is one line that names it and the cure."""


def read_text(name: str) -> str:
    """The text of a file, or of standard input for `-`.

    Args:
        name: Path of a UTF-8 file, or `-`.

    Raises:
        FileError: If it is missing, unreadable or not text.
    """
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise FileError(f"{name}: cannot be read: {_reason(error)}") from None
    try:
        return data.decode("utf-8-sig")  # editors on Windows put a byte-order mark first
    except UnicodeDecodeError as error:
        raise FileError(f"{name}: not UTF-8 text (byte {error.start})") from None


def read_data(name: str) -> Any:
    """The content of a JSON or YAML file, or of standard input for `-`.

    Args:
        name: Path of the file, or `-`; what starts with a brace or bracket is read as JSON.

    Raises:
        FileError: With line and column of what is wrong.
    """
    text, shown = read_text(name), "standard input" if name == "-" else name
    if not text.strip():
        raise FileError(f"{shown}: the file is empty")
    if text.lstrip()[0] not in "{[":
        try:
            return reading.parse_text(text, shown)
        except ValueError as error:
            raise FileError(str(error)) from None
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        where = f"{shown}:{error.lineno}:{error.colno}"
        raise FileError(f"{where}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{shown}: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key given twice the last would silently win."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is given twice")
        found[key] = value
    return found


def write(path: Path, text: str, *, force: bool = False) -> None:
    """Put a text into a file at once: readers see the old file or the new one, never a part.

    Args:
        path: The file; its folder must exist.
        text: The whole content.
        force: Replace a file that is there already.

    Raises:
        FileError: If the file exists and `force` is not given, or the folder refuses.
    """
    refuse(path, force=force)
    target = Path(os.path.realpath(path))  # through a link, so that the link stays one
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {_reason(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)


def refuse(path: Path, *, force: bool = False) -> None:
    """Stop before any work is done when the file could not be written anyway.

    Args:
        path: The file to be.
        force: A file that is there already may be replaced.

    Raises:
        FileError: If it is a folder, exists without `force`, or has no folder to be in.
    """
    if path.is_dir():
        raise FileError(f"{path}: is a folder; give a file name")
    if os.path.lexists(path) and not force:
        raise FileError(f"{path}: exists already; choose another name or add --force")
    if not path.absolute().parent.is_dir():
        raise FileError(f"{path}: there is no folder {path.parent}; make it first")


def write_folder(folder: Path, texts: Mapping[str, str]) -> None:
    """Make a folder with files in it at once: it appears when all are written.

    Args:
        folder: Does not exist, or is empty.
        texts: Content by file name.

    Raises:
        FileError: If the folder holds something, or its parent refuses.
    """
    refuse_folder(folder)
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        for name, text in texts.items():
            write(temporary / name, text)
        os.replace(temporary, folder)
    except OSError as error:
        raise FileError(f"{folder}: cannot be written: {_reason(error)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_folder(folder: Path) -> None:
    """Stop before any work is done when the folder could not be made anyway.

    Args:
        folder: The folder to be.

    Raises:
        FileError: If it holds something already, or has no folder to be in.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if os.path.lexists(folder):
        raise FileError(f"{folder}: exists already; choose another name")
    if not folder.absolute().parent.is_dir():
        raise FileError(f"{folder}: there is no folder {folder.parent}; make it first")


def _reason(error: OSError) -> str:
    """What the system said, without number and path."""
    reason = error.strerror or type(error).__name__
    return reason[:1].lower() + reason[1:]


def validated(name: str, model: type[Model], what: str) -> Model:
    """The object saved in a JSON file.

    Args:
        name: Path of the file, or `-`.
        model: The class of the object.
        what: How to call what is expected, for the error.

    Raises:
        FileError: If it holds something else, with the first field that differs.
    """
    data = read_data(name)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise FileError(f"{name}: not {what}: {where}: {first['msg'].lower()}") from None
