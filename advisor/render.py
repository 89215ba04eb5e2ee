"""Plan -> script text. The only file that imports jinja2, and it never opens `rules/`."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from .origin import SETTINGS, footer
from .parts import Part, parse, part

if TYPE_CHECKING:
    import jinja2

    from .plan import Plan, Planned
    from .ranges import Limit

WIDTH = 100
# settings that the decoded copies of the images depend on, and those that checkpoints do not
READING = (
    "size read_scale channels intensity_low intensity_high spacing_mm lit_level lit_share "
    "slide_mpp slide_stored_mpp"
)
FREE = (
    "workers shard_optimizer split seeds label_fractions bootstrap_samples probe_neighbours "
    "checkpoint_every"
)


class Verbatim(str):
    """Text that goes into the script as it stands; everything else becomes a Python literal."""

    __slots__ = ()


def render(plan: Plan) -> str:
    """The script as text; the same plan gives the same bytes.

    Args:
        plan: From `make_plan`.
    """
    chosen = [part(name) for name in plan.parts]
    own = parse("script", "from dataclasses import asdict, dataclass\n")
    text = _page().render(
        header=Verbatim("\n".join(f"# {line}".rstrip() for line in plan.header)),
        docstring=Verbatim(_docstring(plan)),
        imports=Verbatim(imports([own, *chosen])),
        dims=plan.dims,
        fields=Verbatim("\n    ".join(_fields(plan.settings))),
        reading=Verbatim(_existing("READING", READING, plan)),
        free=Verbatim(_existing("FREE", FREE, plan)),
        ranges=Verbatim("\n    ".join(line for each in plan.limits for line in _range(each))),
        parts=[Verbatim(p.body) for p in chosen[:-1]],
        protocol=Verbatim(chosen[-1].body),
    )
    start = text.index("@dataclass(frozen=True)\nclass Settings:")
    bodies = {SETTINGS: text[start : text.index("\n\n\n", start)]}
    bodies |= {p.name: p.body for p in chosen}
    return f"{text.rstrip()}\n\n\n{footer(plan.origin, bodies)}\n"


def _docstring(plan: Plan) -> str:
    return f'''"""{plan.title}

    python train.py all --data manifest.csv --out runs/a

The manifest is a CSV file with the columns path, {plan.target}, patient and split; rows without a
{plan.target} are the unlabelled pool. Read on: settings, method, network, views, task, data; then
what makes it run: several processes, the training loop, the stages, the protocol of evaluation.
"""'''


@cache
def _page() -> jinja2.Template:
    """The page of every script, compiled."""
    import jinja2

    from .knowledge import home

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(home("templates")),
        block_start_string="# {%",  # a mark is a Python comment, so that templates are valid Python
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        finalize=literal,  # nothing that a user typed can become code
        autoescape=False,
    )
    source = (home("templates") / "script.py.j2").read_text(encoding="utf-8")
    return environment.from_string(source[source.index("# {% block page %}") :])


def literal(value: Any) -> str:
    """A Python literal as the formatter would write it."""
    if isinstance(value, Verbatim):
        return str(value)
    if isinstance(value, str):
        return repr(value) if '"' in value else json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        inner = ", ".join(literal(v) for v in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)


def _fields(settings: Iterable[Planned]) -> list[str]:
    """Dataclass fields, each below its reason."""
    lines, before = [], ""
    for setting in settings:
        reason = " ".join(f"{setting.why} [{setting.source}]".split())
        if reason != before:
            wrapped = textwrap.wrap(reason, WIDTH - 6, break_on_hyphens=False)
            lines += [f"# {line}" for line in wrapped]
        before = reason
        value = setting.value
        kind = type(value).__name__
        if isinstance(value, tuple):
            kind = f"tuple[{type(value[0]).__name__ if value else 'int'}, ...]"
        lines.append(f"{setting.name}: {kind} = {literal(value)}")
    return lines


def _existing(constant: str, names: str, plan: Plan) -> str:
    """A set of those of these settings that the script has, as the formatter would write it."""
    own = {setting.name for setting in plan.settings}
    lines = textwrap.wrap(" ".join(n for n in names.split() if n in own), WIDTH - 15)
    if len(lines) == 1 and len(line := f"{constant} = set({literal(lines[0])}.split())") <= WIDTH:
        return line
    *more, last = lines
    inner = [*(literal(f"{line} ") for line in more), f"{literal(last)}.split()"]
    return "\n    ".join([f"{constant} = set(", *inner]) + "\n)"


def _range(limit: Limit) -> list[str]:
    """An entry of the script's RANGES, as the formatter would write it."""
    key, test = literal(limit.words), f"lambda v, s: {limit.test}"
    names = textwrap.wrap(" ".join(limit.names), WIDTH - 11, break_on_hyphens=False)
    if len(names) == 1 and len(line := f"    {key}: ({test}, {literal(names[0])}),") <= WIDTH:
        return [line.strip()]
    *more, last = names
    lines = [test + ",", *(literal(f"{line} ") for line in more), literal(last) + ","]
    return [f"{key}: (", *(f"    {line}" for line in lines), "),"]


def imports(chosen: Iterable[Part]) -> str:
    """One block of imports for all parts, in the formatter's order."""
    pairs = {pair for part in chosen for pair in part.imports}
    blocks = ["from __future__ import annotations"]  # parts may stand before what they speak of
    for standard in (True, False):
        own = {(m, n) for m, n in pairs if (m.split(".")[0] in sys.stdlib_module_names) == standard}
        lines = [f"import {module}" for module in sorted(m for m, n in own if not n)]
        for module in sorted({m for m, n in own if n}, key=str.lower):
            lines.append(_from(module, {n for m, n in own if m == module and n}))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _from(module: str, names: set[str]) -> str:
    """`from module import ...`: constants, classes, then functions, as the formatter sorts them."""
    ordered = sorted(names, key=lambda n: (0 if n.isupper() else 1 if n[0].isupper() else 2, n))
    line = f"from {module} import {', '.join(ordered)}"
    if len(line) <= WIDTH:
        return line
    return f"from {module} import (\n    " + ",\n    ".join(ordered) + ",\n)"
