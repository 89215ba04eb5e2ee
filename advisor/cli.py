"""The command `medssl`: parse, call, print; no decision is taken here."""

from __future__ import annotations

from pathlib import Path

import click

from . import files
from .explain import answer
from .lookup import evidence, explain, methods, modalities, rules, schema
from .running import dry_run, preview, report
from .scripts import SAVED, generate, regenerate, write_script
from .shell import (
    PATH,
    Medssl,
    engine_option,
    force_option,
    form_of,
    format_option,
    help_alone,
    knowledge_of,
    output_option,
    profile_of,
    profile_options,
    put_json,
    put_page,
    reader,
    rules_option,
    say,
    version_option,
)

HELP = """Which self-supervised pre-training suits your medical images, why, and a script for it.

\b
  medssl ask                                     a few questions, then the answer
  medssl recommend --modality ct --task segmentation --labeled 40
  medssl generate  --modality ct --task segmentation --labeled 40 -o train.py

Exit codes: 0 done; 1 `rules check` found problems, `diff` or `regenerate --check` a change, or a
bug; 2 something in the input is wrong, one line says what; 130 stopped by Ctrl-C.
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
    help_alone(context)


@main.command()
@engine_option
@rules_option
def ask(engine: str, folders: tuple[Path, ...]) -> None:
    """Answer questions, read the advice, get the script.

    "I don't know" is a full answer to most questions. Nothing is written before the end, and
    nothing is replaced without your word.
    """
    from . import questionnaire
    from .ranking import recommend as rank

    read = reader()
    knowledge = knowledge_of(folders)
    found = rank(questionnaire.converse(knowledge, say, read), knowledge, engine)
    say("")
    put_page(answer(found))
    if not any(s.emits for s in found.strategies):
        return
    say("")
    if chosen := questionnaire.file_name(say, read):
        write_script(found, None, {}, *chosen)


@main.command()
@profile_options
@engine_option
@rules_option
@click.option(
    "--why",
    metavar="[ID]",
    is_flag=False,
    flag_value="",
    help="The whole case for and against one method; the first, if none is named.",
)
@click.option("--all", "everything", is_flag=True, help="Every strategy and reason, not a few.")
@format_option("text", "json", "markdown", default=None)
@output_option(help="A file to write it to; .json means JSON.")
@force_option
def recommend(
    file: str | None,
    engine: str,
    folders: tuple[Path, ...],
    why: str | None,
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
    form = form_of(output, form)
    if why is not None and form == "json":
        raise click.UsageError("--why is a page: leave it out, or use --format text or markdown")
    knowledge = knowledge_of(folders)
    found = rank(profile_of(given, file, knowledge), knowledge, engine)
    if form == "json":
        put_json(found.model_dump(mode="json"), output, force)
    elif why is None:
        put_page(answer(found, everything=everything), form, output, force)
    else:
        from .defence import defence

        method = why.lower() or found.strategies[0].method
        case = defence(found, knowledge, method, everything=everything)
        put_page(case, form, output, force)


@main.command()
@click.argument("old", metavar="OLD.json")
@click.argument("new", metavar="[NEW.json]", required=False)
@engine_option
@rules_option
@click.option("--all", "everything", is_flag=True, help="Every entry, not the first few.")
@format_option("text", "json")
def diff(
    old: str, new: str | None, engine: str, folders: tuple[Path, ...], everything: bool, form: str
) -> None:
    """Show what changed since an answer was saved, and why.

    OLD.json is asked again on the present rules, or compared with NEW.json. Exit code 0: nothing
    changed; 1: something did.
    """
    from .answer import Recommendation
    from .compare import compare, gone_packs
    from .difference import show
    from .ranking import recommend as rank

    before = files.validated(old, Recommendation, SAVED)
    if new is not None:
        if folders:
            raise click.UsageError("two saved answers are compared as they are; leave --rules out")
        found = compare(before, files.validated(new, Recommendation, SAVED))
    else:
        knowledge = knowledge_of(folders)
        found = compare(before, rank(before.profile, knowledge, engine), knowledge.rule)
        for name in gone_packs(before, found.new):
            say(f"note: {old} was made with the rule pack {name}, which is not loaded; see --rules")
    if form == "json":
        put_json(found.model_dump(mode="json"))
    else:
        put_page(show(found, None if everything else 12))
    raise SystemExit(int(found.changed))


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
    if data and decathlon:
        raise click.UsageError("--data and --decathlon exclude each other: give one of them")
    if out.exists() and not force and (not out.is_dir() or any(out.iterdir())):
        raise files.FileError(f"{out}: holds something already; give another --out or add --force")
    from .demo import run

    run(data, out, minutes, modality, decathlon)


for each in (generate, preview, dry_run, report, regenerate):
    main.add_command(each)
for each in (explain, evidence, methods, modalities, rules, schema):
    main.add_command(each)

if __name__ == "__main__":
    main(prog_name="medssl")
