"""A page of text - headings, sentences, lists, tables, commands - and its two forms.

`explain` and `handbook` build pages, `terminal` and `markdown` show them; neither knows the other.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod, RenderableType

WIDEST = 110  # columns; longer lines are hard to read
_STYLES = {"+": "green", "-": "red", "!": "yellow"}


@dataclass(frozen=True)
class Item:
    """One entry of a list: a sentence, marked for (+), against (-), warning (!) or neutral."""

    text: str
    note: str = ""
    mark: str = "•"


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; `right` names columns of numbers, `spare` what is spared."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()  # left out, in this order, where the terminal is too narrow

    def fitting(self, width: int) -> Table:
        """The table, without as many of its spare columns as make the difference."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        gone = next((name for name in self.spare if name in self.columns), None)
        if gone is None or sum(widths) + 2 * len(widths) <= width:
            return self
        at = self.columns.index(gone)
        kept = tuple(row[:at] + row[at + 1 :] for row in (self.columns, *self.rows))
        return Table(kept[0], kept[1:], self.right, self.spare).fitting(width)


@dataclass(frozen=True)
class Command:
    """A line to type; broken only so that it can still be copied."""

    line: str


Block = str | Item | Table | Command


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A title, a line below it, and sections; empty sections are left out."""

    title: str
    about: str
    sections: tuple[Section, ...]


def page(title: str, about: str, sections: Iterable[tuple[str, Sequence[Block]]]) -> Page:
    """A page of the sections that have something to say.

    Args:
        title: The heading, or the verdict.
        about: One dim line below it.
        sections: Titles and blocks; sections without blocks are dropped.
    """
    kept = tuple(Section(name, tuple(blocks)) for name, blocks in sections if blocks)
    return Page(title, about, kept)


def shortened(page: Page, few: int) -> Page:
    """The page with only the first entries of every section, and how many are missing.

    Args:
        page: What to shorten.
        few: How many to keep.
    """
    return Page(
        page.title, page.about, tuple(Section(s.title, cut(s.blocks, few)) for s in page.sections)
    )


def cut(blocks: Sequence[Block], few: int | None) -> tuple[Block, ...]:
    """The first entries, and a line that counts the others; one other is shown instead.

    Args:
        blocks: The entries.
        few: How many to keep; None for all.
    """
    if few is None or len(blocks) <= few + 1:
        return tuple(blocks)
    return (*blocks[:few], f"... and {len(blocks) - few} more: --all")


def plain(text: object) -> str:
    """One line without line breaks and control characters, whatever the user typed.

    Args:
        text: Any text or value.
    """
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "?" for c in line)


def markdown(page: Page) -> str:
    """The page as Markdown, ending with a line break.

    Args:
        page: What to show.
    """
    lines = [f"# {_escape(page.title)}", ""]
    if page.about:
        lines += [_escape(page.about), ""]
    for section in page.sections:
        lines += [f"## {_escape(section.title)}", ""]
        for block, following in zip(section.blocks, (*section.blocks[1:], None), strict=True):
            lines += _markdown(block)
            if not (isinstance(block, Item) and isinstance(following, Item)):
                lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _markdown(block: Block) -> list[str]:
    if isinstance(block, Item):
        mark = {"+": "**for:** ", "-": "**against:** ", "!": "**caution:** "}.get(block.mark, "")
        note = f" *({_escape(block.note)})*" if block.note else ""
        return [f"- {mark}{_escape(block.text)}{note}"]
    if isinstance(block, Command):
        return ["```sh", plain(block.line), "```"]
    if isinstance(block, Table):
        rule = ["---:" if c in block.right else "---" for c in block.columns]
        cells = [[_escape(c) for c in row] for row in (block.columns, *block.rows)]
        return ["| " + " | ".join(row) + " |" for row in (cells[0], rule, *cells[1:])]
    return [_escape(block)]


def _escape(text: str) -> str:
    return re.sub(r"([\\*_<>|`\[\]])", r"\\\1", plain(text))


def terminal(page: Page, stream: TextIO, width: int | None = None) -> None:
    """Print the page; in colour only where the stream is a terminal and NO_COLOR is not set.

    Args:
        page: What to show.
        stream: Where to.
        width: Columns; by default those of the terminal, 80 in a pipe, 110 at most.
    """
    from rich.console import Console

    console = Console(file=stream, width=width, highlight=False, markup=False, emoji=False)
    if width is None:
        console.width = min(console.width, WIDEST)
    if console.is_terminal:
        _print_page(console, page)
        return
    with console.capture() as captured:
        _print_page(console, page)
    stream.write(re.sub(" +$", "", captured.get(), flags=re.MULTILINE))


def _print_page(console: Console, page: Page) -> None:
    console.print(plain(page.title), style="bold")
    if page.about:
        console.print(plain(page.about), style="dim")
    for section in page.sections:
        console.print()
        console.print(plain(section.title), style="bold cyan")
        for block in section.blocks:
            _print(console, block)


def text(page: Page, width: int = 100) -> str:
    """The page as plain text, for a file.

    Args:
        page: What to show.
        width: Columns.
    """
    stream = io.StringIO()
    terminal(page, stream, width)
    return stream.getvalue()


def _print(console: Console, block: Block) -> None:
    from rich.padding import Padding
    from rich.text import Text

    if isinstance(block, Command):
        for line in _typed(plain(block.line), console.width):
            console.print(Text(line, style="bold"), soft_wrap=True)
        return
    console.print(Padding(_part(block, console.width), (0, 0, 0, 2)))


def _typed(line: str, width: int) -> list[str]:
    r"""A command in lines that fit, broken before options and joined by `\`, ready to be copied."""
    lines = ["  "]
    for word in re.split(" (?=--?[a-z])", line):
        if lines[-1].strip() and len(lines[-1]) + len(word) + 3 > width:
            lines[-1] += " \\"
            lines.append("     ")
        lines[-1] += ("" if lines[-1] == "  " else " ") + word
    return lines


def _part(block: str | Item | Table, width: int) -> RenderableType:
    """One block as what rich can print."""
    from rich.table import Table as Grid
    from rich.text import Text

    if isinstance(block, str):
        return Text(plain(block), style="dim")
    if isinstance(block, Item):
        grid = Grid.grid(padding=(0, 1, 0, 0))
        text, note = Text(plain(block.text)), plain(block.note)
        if note:
            fits = len(text) + len(note) + 10 <= width
            text.append(f"  [{note}]" if fits else f"\n{note}", style="dim")
        grid.add_row(Text(block.mark, style=_STYLES.get(block.mark, "dim")), text)
        return grid
    grid = Grid(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    block = block.fitting(width)
    for name in block.columns:
        justify: JustifyMethod = "right" if name in block.right else "left"
        grid.add_column(name, justify=justify, overflow="fold")  # a name is never cut short
    for row in block.rows:
        grid.add_row(*(Text(plain(cell)) for cell in row))
    return grid
