"""The coverage map as an SVG: one row for each kind of image, one column for each task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby, product

from ..knowledge import Knowledge
from ..profile import CERTAINTIES, TASKS
from .coverage import Cell, coverage
from .grid import counts

LEFT, TOP = 168, 128  # pixels before the first column and above the first row
WIDE, HIGH = 152, 46  # of a cell
STEP = 28  # of one label regime within a cell
LONG = 19  # letters that a cell has room for
_INK, _DIM = "#1f2933", "#52606d"
# Dark to light, readable without colour too: each box carries the first letter of its certainty.
_COLOURS: Mapping[str, tuple[str, str]] = {
    "high": ("#0b3d6b", "#ffffff"),
    "moderate": ("#2f75b5", "#ffffff"),
    "low": ("#f6d58b", _INK),
    "very-low": ("#e4e7eb", _INK),
}


def svg(knowledge: Knowledge) -> str:
    """The whole picture.

    Args:
        knowledge: The rule base.
    """
    cells: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in coverage(knowledge):
        cells.setdefault((cell.modality, cell.dimensionality, cell.task), []).append(cell)
    rows = [(card.id, d) for card in knowledge.modalities.values() for d in card.dimensionality]
    width, height = LEFT + WIDE * len(TASKS) + 16, TOP + HIGH * len(rows) + 16
    lines = [*_head(width, height), *_legend(tuple(counts(knowledge)))]
    for i, task in enumerate(TASKS):
        x = LEFT + WIDE * i + STEP * 5 // 2
        lines.append(_text(x, TOP - 14, task, size=14, bold=True, anchor="middle"))
    for (row, (modality, images)), (i, task) in product(enumerate(rows), enumerate(TASKS)):
        y = TOP + HIGH * row
        if i == 0:
            lines += _label(y, modality, images, width)
        lines += _cell(LEFT + WIDE * i, y, cells[modality, images, task])
    return "\n".join([*lines, "</svg>"]) + "\n"


def _head(width: int, height: int) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="Helvetica, Arial, sans-serif">'
    )
    yield "<title>Strategies that rank first, by kind of image, task and number of labels</title>"
    yield f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    yield _text(12, 28, "What ranks first, and how certain that is", size=18, bold=True)


def _legend(regimes: Sequence[str]) -> Iterator[str]:
    said = f"Boxes, left to right: number of labels {', '.join(regimes)}; names in the same order."
    yield _text(12, 50, f"{said} Small number: comparable studies, at most.", colour=_DIM)
    for i, certainty in enumerate(CERTAINTIES):
        yield _box(12 + 118 * i, 63, certainty)
        yield _text(16 + 118 * i + STEP, 76, certainty)
    yield _text(490, 76, "certainty of the weightiest reason; + is a tie", colour=_DIM)


def _label(y: int, modality: str, images: str, width: int) -> Iterator[str]:
    yield f'<line x1="8" y1="{y - 4}" x2="{width - 8}" y2="{y - 4}" stroke="#cbd2d9"/>'
    yield _text(12, y + 17, modality, size=14, bold=True)
    yield _text(12, y + 34, images, colour=_DIM)


def _cell(x: int, y: int, cells: Sequence[Cell]) -> Iterator[str]:
    """The winners without repetition, the number of studies, and a box for each label regime."""
    winners = [name for name, _ in groupby(c.winner for c in cells)]
    said = " > ".join(winners)
    yield _text(x, y + 13, said if len(said) <= LONG else f"{winners[0]} > ...", size=12)
    studies = str(max(c.studies for c in cells))
    yield _text(x + 5 * STEP - 2, y + 13, studies, size=11, colour=_DIM, anchor="end")
    for i, cell in enumerate(cells):
        yield _box(x + STEP * i, y + 19, cell.certainty, "+" * (cell.tied > 0))


def _box(x: int, y: int, certainty: str, mark: str = "") -> str:
    fill, ink = _COLOURS[certainty]
    said = certainty[0].upper() + mark
    letter = _text(x + STEP // 2 - 1, y + 13, said, size=11, colour=ink, anchor="middle")
    return f'<rect x="{x}" y="{y}" width="{STEP - 2}" height="17" rx="2" fill="{fill}"/>{letter}'


def _text(
    x: int,
    y: int,
    said: str,
    *,
    size: int = 13,
    colour: str = _INK,
    bold: bool = False,
    anchor: str = "start",
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}"{weight}{place}>'
        f"{escape(said)}</text>"
    )
