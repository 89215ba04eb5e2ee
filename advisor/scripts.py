"""The commands that write scripts and look after them: `generate` and `regenerate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import files
from .profile import nearest
from .shell import (
    PATH,
    engine_option,
    force_option,
    knowledge_of,
    output_option,
    profile_of,
    profile_options,
    put,
    put_page,
    rules_option,
    say,
    say_next,
)

if TYPE_CHECKING:
    from .answer import Recommendation
    from .knowledge import Knowledge
    from .plan import Plan

SAVED = "an answer saved by `medssl recommend -o`"


@click.command()
@profile_options
@engine_option
@rules_option
@click.option("--from", "saved", metavar="REC.json", help="An answer saved by `recommend -o`.")
@click.option("--method", metavar="ID", help="Another method than the best one that has a script.")
@click.option("--set", "changes", metavar="NAME=VALUE", multiple=True, help="Change a setting.")
@output_option(help="The script; - for standard output.", default="train.py")
@click.option("--project", type=PATH, metavar="DIR", help="A new folder with all to start from.")
@click.option("--slurm", is_flag=True, help="A Slurm batch file beside the script, too.")
@force_option
def generate(
    file: str | None,
    engine: str,
    folders: tuple[Path, ...],
    saved: str | None,
    method: str | None,
    changes: tuple[str, ...],
    output: Path | None,
    project: Path | None,
    slurm: bool,
    force: bool,
    **given: str | None,
) -> None:
    """Write the training script, one readable file.

    The problem is given as options, as a file, or as a saved answer.
    """
    if project and (slurm or _said("output")):
        raise click.UsageError("--project holds script and batch file; leave -o and --slurm out")
    if slurm and output is None:
        raise click.UsageError("--slurm writes a file beside the script: name the script with -o")
    batch = output.with_suffix(".sbatch") if slurm and output else None
    if project:
        files.refuse_folder(project)
    for path in () if project else (output, batch):
        if path:
            files.refuse(path, force=force)
    overrides = dict(_pair(change) for change in changes)
    knowledge = knowledge_of(folders)
    found = _recommendation(given, file, saved, engine, knowledge)
    if saved:
        _still_there(found, method, saved, knowledge)
    if project:
        write_project(found, method, overrides, project)
    else:
        write_script(found, method, overrides, output, force, batch)


def _pair(change: str) -> tuple[str, str]:
    """Name and value of `--set NAME=VALUE`."""
    name, sign, value = change.partition("=")
    if not sign:
        raise click.UsageError(f"--set {change}: NAME=VALUE is expected")
    return name.strip().replace("-", "_"), value.strip()


def _said(option: str) -> bool:
    """Whether the user gave it, and not the default."""
    source = click.get_current_context().get_parameter_source(option)
    return source is click.core.ParameterSource.COMMANDLINE


def _recommendation(
    given: dict[str, str | None],
    file: str | None,
    saved: str | None,
    engine: str,
    knowledge: Knowledge,
) -> Recommendation:
    """The answer that a script is for: a saved one, or a new one."""
    from .answer import Recommendation
    from .ranking import provenance
    from .ranking import recommend as rank

    if saved is None:
        return rank(profile_of(given, file, knowledge), knowledge, engine)
    if file or any(v is not None for v in given.values()):
        raise click.UsageError("--from holds a profile already; leave --profile and its fields out")
    found = files.validated(saved, Recommendation, SAVED)
    if found.knowledge != provenance(knowledge):
        say(f"note: {saved} rests on other knowledge ({found.knowledge.version}) than is installed")
    return found


def _still_there(
    found: Recommendation, method: str | None, saved: str, knowledge: Knowledge
) -> None:
    """A saved answer may name a method that was edited in, renamed since or of a missing pack."""
    first = next((s.method for s in found.strategies if s.emits), None)
    chosen = method or first
    if any(s.method == chosen for s in found.strategies) and chosen not in knowledge.methods:
        close = nearest(chosen, knowledge.methods)
        raise files.FileError(f"{saved}: there is no method {chosen!r}{close}")


def _planned(found: Recommendation, method: str | None, overrides: dict[str, str]) -> Plan:
    from .plan import make_plan

    plan = make_plan(found, method, overrides)
    top = found.strategies[0].method
    if method is None and plan.method != top:
        say(f"note: {top} ranks first but has no script here; {plan.method} is the next that has")
    return plan


def write_script(
    found: Recommendation,
    method: str | None,
    overrides: dict[str, str],
    output: Path | None,
    force: bool,
    batch: Path | None = None,
) -> None:
    """Plan, render, write, and say what to type next.

    Args:
        found: The answer.
        method: Another method than the best one that has a script.
        overrides: Settings by name.
        output: The script; None for standard output.
        force: Files may be replaced.
        batch: A Slurm batch file to write, too.
    """
    from .render import render

    plan = _planned(found, method, overrides)
    put(render(plan), output, force)
    if batch and output:
        from .project import batch_file

        put(batch_file(plan, output.name, found.profile.hours or 24.0), batch, force)
    if output:
        from .project import WEIGHTS, needs_weights, stages

        say_next(output, stages(plan), batch, WEIGHTS * needs_weights(plan))


def write_project(
    found: Recommendation, method: str | None, overrides: dict[str, str], folder: Path
) -> None:
    """A new folder with script, manifest, requirements, batch file, README and reasons.

    Args:
        found: The answer.
        method: Another method than the best one that has a script.
        overrides: Settings by name.
        folder: Does not exist yet, or is empty.
    """
    from . import project

    texts = project.files(found, _planned(found, method, overrides))
    files.write_folder(folder, texts)
    say(f"wrote {folder}: {', '.join(texts)}")
    say(f"next: read {folder / 'README.md'}")


@click.command()
@click.argument("script", type=PATH)
@click.option("--check", is_flag=True, help="Write nothing; show what differs.")
@output_option(help="Where to write the new script.")
@engine_option
@rules_option
@force_option
def regenerate(
    script: Path,
    check: bool,
    output: Path | None,
    engine: str,
    folders: tuple[Path, ...],
    force: bool,
) -> None:
    """Emit a script again, or compare it with what would be emitted now.

    SCRIPT ends with a comment on what it was emitted from. With --check: which of its parts you
    have changed, and what the rules and templates of this version would change. Exit code 0:
    nothing differs; 1: something does, whoever changed it. Comments between parts do not count.
    """
    from . import origin
    from .plan import make_plan
    from .ranking import recommend as rank
    from .regenerated import compared
    from .render import render

    if check == (output is not None):
        raise click.UsageError("give either --check or -o NEW.py")
    text = files.read_text(str(script))
    made = origin.read(text, str(script))
    knowledge = knowledge_of(folders)
    loaded = {pack.name for pack in knowledge.packs}
    for name in made.packs:
        if name not in loaded:
            say(f"note: {script} was made with the rule pack {name}, which is not loaded; --rules")
    found = rank(made.profile, knowledge, engine)
    fresh = render(make_plan(found, made.method, made.changes))
    if output:
        put(fresh, output, force)
        return
    report = compared(str(script), text, fresh, found)
    put_page(report.page)
    raise SystemExit(int(report.differs))
