"""Markdown for the pages that are written from `rules/`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..cards import Reference
from ..page import plain


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, and an empty one; cells are Markdown already.

    Args:
        heads: The header.
        rows: One text for each column.
    """
    lines = [f"| {' | '.join(row)} |" for row in (heads, *rows)]
    lines.insert(1, "|" + " --- |" * len(heads))
    return [*lines, ""]


def safe(text: object) -> str:
    """Text in which no letter is taken for a mark.

    Args:
        text: Anything that becomes one line.
    """
    return re.sub(r"([\\*_<>|`\[\]])", r"\\\1", plain(text))


def names(ids: Iterable[str]) -> str:
    """Ids as code, with commas.

    Args:
        ids: Names of methods, rules or studies.
    """
    return ", ".join(f"`{id}`" for id in ids)


def publication(source: Reference) -> str:
    """A link to a publication.

    Args:
        source: Its arXiv id or DOI.
    """
    if source.arxiv:
        return f"[arXiv:{source.arxiv}](https://arxiv.org/abs/{source.arxiv})"
    return f"[doi:{source.doi}](https://doi.org/{source.doi})"
