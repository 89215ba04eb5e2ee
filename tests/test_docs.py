"""The commands in the documentation exist, and print what it shows of them.

`make docs` writes the shown output anew: as many lines of it as there were.
"""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from advisor.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
FENCE = re.compile(r"(?<=^```)(console|pycon)\n(.*?)(?=^```$)", re.MULTILINE | re.DOTALL)
SESSION = re.compile(r"^\$ .*?(?=^\$ |\Z)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
CUT = "...\n"


def documented() -> set[str]:
    """Every command line in the console blocks."""
    blocks = [b for page in PAGES for kind, b in FENCE.findall(page.read_text("utf-8"))]
    return {line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")}


def commands(group: click.Group, name: str) -> dict[str, click.Command]:
    """Every command below a group, by its full name."""
    found: dict[str, click.Command] = {}
    for word, command in group.commands.items():
        found[f"{name} {word}"] = command
        if isinstance(command, click.Group):
            found |= commands(command, f"{name} {word}")
    return found


COMMANDS = commands(main, "medssl")


def anew(block: re.Match[str]) -> str:
    """A block with its output as it is today."""
    kind, text = block.groups()
    return f"{kind}\n" + (SESSION.sub(shell, text) if kind == "console" else python(text))


def shell(session: re.Match[str]) -> str:
    """A command and its output; lines that begin with `> ` are what is typed."""
    text = session.group()
    command, _, shown = text.partition("\n")
    words = shlex.split(command[2:], comments=True)
    if not shown.strip() or words[0] != "medssl":
        return text
    typed = "".join(line[2:] + "\n" for line in shown.splitlines() if line.startswith("> "))
    output = CliRunner().invoke(main, words[1:], input=typed, prog_name="medssl").output
    lines = output.splitlines(keepends=True)
    if shown.endswith(CUT):
        lines = [*lines[: shown.count("\n") - 1], CUT]
    return "\n".join([command, "".join(lines)])


def python(text: str) -> str:
    """A Python session, each statement followed by what it prints."""
    test = doctest.DocTestParser().get_doctest(text, {}, "", None, 0)
    printed: list[str] = []

    class Runner(doctest.DocTestRunner):
        def report_success(self, out, test, example, got):
            lines = example.source.splitlines(keepends=True)
            printed.append(">>> " + "... ".join(lines) + got)

        report_failure = report_success

    Runner().run(test)
    return "".join(printed)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_shown_output_is_the_real_one(
    page: Path, update_golden: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text("utf-8")
    today = FENCE.sub(anew, text)
    if update_golden:
        page.write_text(today, encoding="utf-8")
    else:
        assert text == today, "make docs writes the page anew"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_and_a_place_in_the_docs(name: str) -> None:
    assert COMMANDS[name].help
    assert any(name in page.read_text("utf-8") for page in PAGES)


@pytest.mark.parametrize("line", sorted(documented()))
def test_every_documented_command_exists(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert words[1] in TARGETS
    elif words[0] == "medssl":
        name = max((n for n in COMMANDS if line.startswith(n)), key=len, default=line)
        assert name in COMMANDS
        known = {flag for p in COMMANDS[name].params for flag in (*p.opts, *p.secondary_opts)}
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known
    else:
        assert words[0] in ("python", "torchrun"), "a program that readers may not have"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = LINK.findall(page.read_text("utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]
