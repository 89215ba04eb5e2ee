"""The commands that look things up: methods, modalities, studies and rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .evidence import TRUST, listing, matching
from .explain import pack_line
from .knowledge import Knowledge
from .profile import DIMENSIONALITIES, TASKS, Profile
from .shell import (
    PATH,
    complete_name,
    complete_study,
    fail,
    format_option,
    help_alone,
    knowledge_of,
    put,
    put_json,
    put_page,
    rules_option,
)

if TYPE_CHECKING:
    from .handbook import Entry


@click.command()
@click.argument("name", shell_complete=complete_name)
@format_option("text", "json", "markdown")
@click.option("--all", "everything", is_flag=True, help="Every entry, not the first few.")
@rules_option
def explain(name: str, form: str, everything: bool, folders: tuple[Path, ...]) -> None:
    """All that is known of a method, modality or rule.

    NAME is the id of one of these, or of a study or a finding of the review.
    """
    from .handbook import find

    knowledge = knowledge_of(folders)
    _entry(knowledge, find(knowledge, name), form, everything)


def _entry(knowledge: Knowledge, entry: Entry, form: str, everything: bool) -> None:
    from . import handbook

    if form == "json":
        found = {"kind": entry.kind, **entry.item.model_dump(mode="json", by_alias=True)}
        if entry.kind == "modality":
            found |= _weights(knowledge, found["id"])
        put_json(found)
    else:
        whole = everything or form == "markdown"
        put_page(handbook.show(knowledge, entry, everything=whole), form)


def _weights(knowledge: Knowledge, modality: str) -> dict[str, Any]:
    known = (c for c in knowledge.checkpoints if modality in c.modality)
    return {"checkpoints": [c.model_dump(mode="json") for c in known]}


@click.command()
@rules_option
@format_option("text", "json")
def methods(form: str, folders: tuple[Path, ...]) -> None:
    """List the methods, and which have a script."""
    _list("methods", form, folders)


@click.command()
@rules_option
@format_option("text", "json")
def modalities(form: str, folders: tuple[Path, ...]) -> None:
    """List the kinds of images."""
    _list("modalities", form, folders)


def _list(kind: str, form: str, folders: tuple[Path, ...]) -> None:
    from . import handbook

    knowledge = knowledge_of(folders)
    if form == "json":
        more = _weights if kind == "modalities" else lambda *_: {}
        cards = getattr(knowledge, kind).values()
        put_json([{**c.model_dump(mode="json"), **more(knowledge, c.id)} for c in cards])
    else:
        put_page(handbook.listing(knowledge, kind))


@click.group(invoke_without_command=True)
@click.pass_context
def evidence(context: click.Context) -> None:
    """Look through the published comparisons."""
    help_alone(context)


def _study_option(name: str, help: str, *choices: str) -> Callable[[Any], Any]:
    kind = click.Choice(choices) if choices else None
    return click.option(f"--{name}", type=kind, metavar=None if choices else "NAME", help=help)


@evidence.command("list")
@_study_option("modality", "Of these images.")
@_study_option("task", "Of this task.", *TASKS)
@_study_option("method", "In which this method was measured.")
@_study_option("paper", "Part of an author, title, year, arXiv id or DOI.")
@_study_option("dimensionality", "Of images of these dimensions.", *DIMENSIONALITIES)
@_study_option("label-regime", "With so many labels: few-shot, low, ...")
@_study_option("adaptation", "With the network fine-tuned or frozen.", "finetune", "frozen")
@_study_option("trust", "How far the numbers can be trusted.", *TRUST)
@_study_option("independence", "Who compared.", "independent", "method-paper")
@click.option("--all", "everything", is_flag=True, help="All of a long list.")
@rules_option
@format_option("text", "json", "markdown")
def list_(folders: tuple[Path, ...], everything: bool, form: str, **wanted: str | None) -> None:
    """List the studies that fit all filters."""
    found = matching(knowledge_of(folders), wanted)
    if form == "json":
        put_json([study.model_dump(mode="json") for study in found])
    else:
        put_page(listing(found, everything=everything or form == "markdown"), form)


@evidence.command("show")
@click.argument("id", shell_complete=complete_study)
@rules_option
@format_option("text", "json", "markdown")
def show(id: str, folders: tuple[Path, ...], form: str) -> None:
    """Show one study with its numbers as published."""
    from .handbook import Entry

    knowledge = knowledge_of(folders)
    _entry(knowledge, Entry("study", knowledge.study(id.lower())), form, everything=True)


@evidence.command()
@rules_option
@format_option("text", "json", "markdown")
def agree(folders: tuple[Path, ...], form: str) -> None:
    """Compare the ranking with every published order.

    It measures consistency: the rules were written with these papers in view.
    """
    from .audit.agreement import agreement, render

    report = agreement(knowledge_of(folders))
    if form == "json":
        put_json(report.model_dump(mode="json"))
    else:
        put(render(report, markdown=form == "markdown"))


@click.group(invoke_without_command=True)
@click.pass_context
def rules(context: click.Context) -> None:
    """Check the rule base."""
    help_alone(context)


@rules.command()
@click.argument("folder", required=False, type=PATH)
@rules_option
def check(folder: Path | None, folders: tuple[Path, ...]) -> None:
    """Read every file, follow every reference, run every rule's examples; exit 1 on problems.

    FOLDER is another rule base of the same make. Without problems, what is odd is listed as
    warnings: rules that are dead, shadowed, doubled or cancelled, methods never advised. With rule
    packs, those that the packs bring.
    """
    from .ranking import provenance

    knowledge = Knowledge.load(folder, folders) if folder else knowledge_of(folders)
    problems = knowledge.problems()
    for line in problems:
        click.echo(line)
    if problems:
        names = ", ".join((knowledge.root.name, *(p.name for p in knowledge.packs)))
        fail(f"{len(problems)} problem{'s' * (len(problems) > 1)} in {names}", 1)
    from .audit.lint import warnings

    for line in warnings(knowledge):
        click.echo(f"warning: {line}")
    parts = ("methods", "modalities", "rules", "studies", "findings")
    counts = ", ".join(f"{len(getattr(knowledge, part))} {part}" for part in parts)
    click.echo(f"{counts}; no problems (knowledge {knowledge.version})")
    for used in provenance(knowledge).packs:
        click.echo(f"rule pack {pack_line(used)}")


@click.command()
@click.argument("what", type=click.Choice(["profile", "recommendation", "difference", "rules"]))
def schema(what: str) -> None:
    """Print the JSON Schema of profile, answer or rules."""
    from pydantic import TypeAdapter

    from .answer import Recommendation
    from .cards import Rule
    from .compare import Difference

    shapes: dict[str, Any] = {
        "profile": Profile,
        "recommendation": Recommendation,
        "difference": Difference,
        "rules": list[Rule],
    }
    put_json(TypeAdapter(shapes[what]).json_schema())
