"""The command `medssl`: parse, call, print; no decision is taken here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import files, page
from .explain import answer
from .knowledge import Knowledge
from .profile import Profile
from .shell import (
    PATH,
    Medssl,
    complete_name,
    engine_option,
    fail,
    force_option,
    format_option,
    output_option,
    pair,
    profile_of,
    profile_options,
    put,
    put_json,
    put_page,
    reader,
    say,
    say_next,
    version_option,
)

if TYPE_CHECKING:
    from .answer import Recommendation


HELP = """Which self-supervised pre-training suits your medical images, why, and a script for it.

\b
  medssl ask                                     a few questions, then the answer
  medssl recommend --modality ct --task segmentation --labeled 40
  medssl generate  --modality ct --task segmentation --labeled 40 -o train.py

Exit codes: 0 done; 1 `rules check` found problems, or a bug; 2 something in the input is wrong,
one line says what; 130 stopped by Ctrl-C.
"""


@click.group(
    cls=Medssl,
    help=HELP,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@version_option
@click.pass_context
def main(context: click.Context) -> None:
    """Advise on self-supervised pre-training for medical images."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@main.command()
@engine_option
def ask(engine: str) -> None:
    """Answer questions, read the advice, get the script.

    "I don't know" is a full answer to most questions. Nothing is written before the end, and
    nothing is replaced without your word.
    """
    from . import questionnaire
    from .ranking import recommend as rank

    read = reader()
    knowledge = Knowledge.load()
    found = rank(questionnaire.converse(knowledge, say, read), knowledge, engine)
    say("")
    put_page(answer(found))
    if not any(s.emits for s in found.strategies):
        return
    say("")
    if chosen := questionnaire.file_name(say, read):
        _generate(found, None, {}, *chosen)


@main.command()
@profile_options
@engine_option
@click.option("--all", "everything", is_flag=True, help="Every strategy and reason, not a few.")
@format_option("text", "json", default=None)
@output_option(help="A file to write it to; .json means JSON.")
@force_option
def recommend(
    file: str | None,
    engine: str,
    everything: bool,
    form: str | None,
    output: Path | None,
    force: bool,
    **given: str | None,
) -> None:
    """Rank the strategies for a problem, with reasons.

    The problem is given as options, or as a file.
    """
    from .ranking import recommend as rank

    if output:
        files.refuse(output, force=force)
    knowledge = Knowledge.load()
    found = rank(profile_of(given, file, knowledge), knowledge, engine)
    if form == "json" or (form is None and output and output.suffix == ".json"):
        put_json(found.model_dump(mode="json"), output, force)
    elif output:
        put(page.text(answer(found, everything=everything)), output, force)
    else:
        put_page(answer(found, everything=everything))


@main.command()
@profile_options
@engine_option
@click.option("--from", "saved", metavar="REC.json", help="An answer saved by `recommend -o`.")
@click.option("--method", metavar="ID", help="Another method than the best one that has a script.")
@click.option("--set", "changes", metavar="NAME=VALUE", multiple=True, help="Change a setting.")
@output_option(help="The script; - for standard output.", default="train.py")
@force_option
def generate(
    file: str | None,
    engine: str,
    saved: str | None,
    method: str | None,
    changes: tuple[str, ...],
    output: Path | None,
    force: bool,
    **given: str | None,
) -> None:
    """Write the training script, one readable file.

    The problem is given as options, as a file, or as a saved answer.
    """
    if output:
        files.refuse(output, force=force)
    overrides = dict(pair(change) for change in changes)
    _generate(_recommendation(given, file, saved, engine), method, overrides, output, force)


def _recommendation(
    given: dict[str, str | None], file: str | None, saved: str | None, engine: str
) -> Recommendation:
    """The answer that a script is for: a saved one, or a new one."""
    from .answer import Recommendation
    from .ranking import recommend as rank

    knowledge = Knowledge.load()
    if saved is None:
        return rank(profile_of(given, file, knowledge), knowledge, engine)
    if file or any(v is not None for v in given.values()):
        raise click.UsageError("--from holds a profile already; leave --profile and its fields out")
    found = files.validated(saved, Recommendation, "an answer saved by `medssl recommend -o`")
    if found.knowledge.sha256 != knowledge.sha256:
        say(f"note: {saved} rests on other knowledge ({found.knowledge.version}) than is installed")
    return found


def _generate(
    found: Recommendation,
    method: str | None,
    overrides: dict[str, str],
    output: Path | None,
    force: bool,
) -> None:
    """Plan, render, write, and say what to type next."""
    from .plan import make_plan
    from .render import render

    plan = make_plan(found, method, overrides)
    top = found.strategies[0].method
    if method is None and plan.method != top:
        say(f"note: {top} ranks first but has no script here; {plan.method} is the next that has")
    put(render(plan), output, force)
    if output:
        say_next(output)


@main.command()
@click.argument("name", shell_complete=complete_name)
@format_option("text", "json", "markdown")
@click.option("--all", "everything", is_flag=True, help="Every entry, not the first few.")
def explain(name: str, form: str, everything: bool) -> None:
    """All that is known of a method, modality or rule.

    NAME is the id of one of these, or of a study or a finding of the review.
    """
    from . import handbook

    knowledge = Knowledge.load()
    entry = handbook.find(knowledge, name)
    if form == "json":
        put_json({"kind": entry.kind, **entry.item.model_dump(mode="json", by_alias=True)})
    elif form == "markdown":
        put(page.markdown(handbook.show(knowledge, entry)))
    else:
        put_page(handbook.show(knowledge, entry, everything=everything))


@main.command()
@format_option("text", "json")
def methods(form: str) -> None:
    """List the methods, and which have a script."""
    _list("methods", form)


@main.command()
@format_option("text", "json")
def modalities(form: str) -> None:
    """List the kinds of images."""
    _list("modalities", form)


def _list(kind: str, form: str) -> None:
    from . import handbook

    knowledge = Knowledge.load()
    if form == "json":
        put_json([c.model_dump(mode="json") for c in getattr(knowledge, kind).values()])
    else:
        put_page(handbook.listing(knowledge, kind))


@main.group()
def rules() -> None:
    """Check the rule base."""


@rules.command()
@click.argument("folder", required=False, type=PATH)
def check(folder: Path | None) -> None:
    """Read every file, follow every reference, run every rule's examples; exit 1 on problems.

    FOLDER is another rule base of the same make.
    """
    knowledge = Knowledge.load(folder)
    problems = knowledge.problems()
    for line in problems:
        click.echo(line)
    if problems:
        fail(f"{len(problems)} problem{'s' * (len(problems) > 1)} in {knowledge.root.name}", 1)
    parts = ("methods", "modalities", "rules", "studies", "findings")
    counts = ", ".join(f"{len(getattr(knowledge, part))} {part}" for part in parts)
    click.echo(f"{counts}; no problems (knowledge {knowledge.version})")


@main.command()
@click.argument("what", type=click.Choice(["profile", "recommendation", "rules"]))
def schema(what: str) -> None:
    """Print the JSON Schema of profile, answer or rules."""
    from pydantic import TypeAdapter

    from .answer import Recommendation
    from .cards import Rule

    shapes: dict[str, Any] = {
        "profile": Profile,
        "recommendation": Recommendation,
        "rules": list[Rule],
    }
    put_json(TypeAdapter(shapes[what]).json_schema())


@main.command()
@click.option("--data", type=PATH, help="A folder of images to use.")
@click.option("--modality", default="mri", show_default=True, help="What these images are.")
@click.option("--decathlon", metavar="TASK", help="Download this task, as Task04_Hippocampus.")
@click.option("--out", type=PATH, default=Path("medssl-demo"), show_default=True)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="How long it may take.")
@click.option("--force", is_flag=True, help="Use the folder although it holds something.")
def demo(
    data: Path | None,
    modality: str,
    decathlon: str | None,
    out: Path,
    minutes: float | None,
    force: bool,
) -> None:
    """See it all work on a small data set, on a CPU.

    It uses your images, a task of the Medical Segmentation Decathlon, or a brain that is at hand.
    """
    if out.exists() and not force and (not out.is_dir() or any(out.iterdir())):
        raise files.FileError(f"{out}: holds something already; give another --out or add --force")
    from .demo import run

    run(data, out, minutes, modality, decathlon)


if __name__ == "__main__":
    main(prog_name="medssl")
