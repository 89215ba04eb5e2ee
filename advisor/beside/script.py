"""An emitted script as a module, and a few of its images."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from ..files import FileError, read_text

ROWS = 4  # images that are looked at


def opened(file: Path) -> ModuleType:
    """The script, imported; nothing of it runs but its definitions.

    Args:
        file: A script of `medssl generate`, perhaps changed since.

    Raises:
        FileError: If it is no such script or cannot be imported.
    """
    read_text(str(file))  # says in a line what keeps it from being read
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise FileError(f"{file}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    # loader processes that are not forked import it again, by name
    sys.modules[file.stem] = module
    sys.path.insert(0, str(file.absolute().parent))
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise FileError(f"{file}:{error.lineno}: {error.msg}") from None
    except ModuleNotFoundError as error:
        hint = 'pip install "medssl-advisor[train]"'
        raise FileError(f"{file}: {error.name} is not installed; {hint}") from None
    except Exception as error:  # what people write into their script may raise anything
        reason = " ".join(str(error).split())
        raise FileError(f"{file}: {type(error).__name__}: {reason}") from None
    if missing := [n for n in ("Settings", "read_manifest", "Samples") if not hasattr(module, n)]:
        raise FileError(f"{file}: is no script of `medssl generate`: it has no {missing[0]}")
    return module


def settings_of(
    module: ModuleType, data: Path, out: Path, options: Sequence[str], command: str
) -> Any:
    """The script's own settings with what is given as options.

    Args:
        module: The script.
        data: The manifest.
        out: The folder of the run.
        options: As on the script's command line.
        command: The one that was given, for the line on how it is used.

    Raises:
        FileError: If the script does not know an option or take its value, with its own words.
    """
    words = ["evaluate", "--data", str(data), "--out", str(out), *options]
    said = StringIO()
    try:
        with redirect_stderr(said):
            return module.parse_arguments(words)[1]
    except SystemExit as stopped:
        usage, _, reason = said.getvalue().partition("error: ")
        if not stopped.code or not reason:
            raise
        how = f"; usage: medssl {command} SCRIPT --data CSV --out FOLDER [--SETTING VALUE ...]"
        raise FileError(reason.strip() + how * ("usage: " in usage)) from None


def readable(module: ModuleType, cases: list[Any], cache: Path, settings: Any) -> list[Any]:
    """A few of these cases, decoded.

    Args:
        module: The script.
        cases: From its `read_manifest`.
        cache: Where decoded copies go.
        settings: The script's settings.
    """
    cache.mkdir(parents=True, exist_ok=True)
    read: list[Any] = []
    problem = "there is no training image"
    for case in cases[:: max(1, len(cases) // ROWS)] + cases:
        if len(read) == ROWS:
            break
        try:
            found = module.decode(case, cache, settings)
        except ValueError as error:
            module.fail(str(error))
        if isinstance(found, str):
            problem = f"{case.path}: {found}"
        elif found not in read:
            read.append(found)
    if not read:
        module.fail(f"nothing to show: {problem}")
    return read


def without_target(cases: list[Any]) -> list[Any]:
    """The training cases as pre-training sees them."""
    return [replace(c, target="") for c in cases if c.split == "train"]
