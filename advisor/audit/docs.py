"""The pages that are written from `rules/`: coverage, findings, methods.

`python -m advisor.audit.docs` writes them; with `--check` it names those that are out of date, and
exits 1 if there are any.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..knowledge import Knowledge, KnowledgeError, home
from . import coverage, findings, methods, picture


def pages(knowledge: Knowledge) -> dict[str, str]:
    """File names below `docs/` and what belongs in them.

    Args:
        knowledge: The rule base, without problems.
    """
    return {
        "coverage.md": coverage.markdown(knowledge),
        coverage.PICTURE: picture.svg(knowledge),
        "findings.md": findings.markdown(knowledge),
        "methods.md": methods.markdown(knowledge),
    }


def write(folder: Path, made: dict[str, str]) -> None:
    """Write pages where they differ.

    Args:
        folder: An existing folder.
        made: From `pages`.
    """
    for name in stale(folder, made):
        (folder / name).write_bytes(made[name].encode())  # the same bytes on every system


def stale(folder: Path, made: dict[str, str]) -> list[str]:
    """The pages that are missing or say something else.

    Args:
        folder: Where they should be.
        made: From `pages`.
    """
    return [n for n, text in made.items() if not _same(folder / n, text)]


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def main(arguments: Sequence[str]) -> int:
    """Write or check the pages of a checkout.

    Args:
        arguments: Nothing, or `--check`.

    Returns:
        The exit code: 1 if a page is out of date, 2 without checkout or with broken rules.
    """
    folder = home("rules").parent / "docs"
    if not folder.is_dir() or set(arguments) - {"--check"}:
        print("usage, in a checkout: python -m advisor.audit.docs [--check]", file=sys.stderr)
        return 2
    try:
        made = pages(Knowledge.load())
    except KnowledgeError as error:
        print(*error.lines, sep="\n", file=sys.stderr)
        return 2
    if not arguments:
        write(folder, made)
        return 0
    old = stale(folder, made)
    for name in old:
        print(f"docs/{name}: out of date with rules/; run `make docs`")
    return bool(old)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
