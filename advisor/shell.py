"""What the commands share: options from the profile's fields, output, and errors in one line."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import click

from . import files, page
from .knowledge import Knowledge
from .packs import installed
from .profile import Profile, ProfileError, Question, questions

GROUPS = {
    "Get an answer": ("ask", "recommend", "generate", "diff", "demo"),
    "Look at a script and its runs": ("preview", "dry-run", "report", "regenerate"),
    "Look things up": ("explain", "evidence", "methods", "modalities"),
    "For programs and contributors": ("schema", "rules"),
}
PATH = click.Path(path_type=Path)
TRAINING = ("torch", "monai", "numpy", "einops", "nibabel", "pydicom", "matplotlib", "tqdm")


class Medssl(click.Group):
    """Commands by purpose, and every foreseeable error as one line without a traceback."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands under what they are for."""
        named = {name for names in GROUPS.values() for name in names}
        other = tuple(name for name in self.commands if name not in named)
        for title, names in {**GROUPS, "Other": other}.items():
            rows = [
                (n, self.commands[n].get_short_help_str(90)) for n in names if n in self.commands
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run, and turn errors into one line and an exit code."""
        run: Callable[..., Any] = super().main
        if not extra.pop("standalone_mode", True):
            return run(*args, standalone_mode=False, **extra)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a console that lacks a sign shows "?"
                stream.reconfigure(errors="replace")
        try:
            sys.exit(run(*args, standalone_mode=False, **extra) or 0)
        except click.exceptions.Abort as error:
            if isinstance(error.__cause__, EOFError):
                fail("the input ended before the last question; nothing was written")
            fail("stopped; nothing was written", 130)
        except click.ClickException as error:
            hint = "; see --help" if isinstance(error, click.UsageError) else ""
            fail(error.format_message().rstrip(".") + hint)
        except ModuleNotFoundError as error:
            if error.name not in TRAINING:
                raise
            fail(f'{error.name} is not installed; pip install "medssl-advisor[train]"')
        except ValueError as error:
            # our own classes carry one line for the user; anything else is a bug and shows itself
            if not type(error).__module__.startswith("advisor."):
                raise
            fail(str(error))
        except OSError as error:
            fail(f"{error.filename or 'output'}: {error.strerror or error}")


def help_alone(context: click.Context) -> None:
    """A group without a command shows what there is."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def fail(message: str, code: int = 2) -> NoReturn:
    """One line on standard error, and out."""
    click.echo(f"error: {page.plain(message)}", err=True)
    sys.exit(code)


def profile_options(command: Any) -> Any:
    """One option for every field of the profile, and `--profile` for a file of them."""
    for each in reversed(questions()):
        name = "--" + each.name.replace("_", "-")
        unit = f" [{each.unit}]" if each.unit else ""
        add = partial(click.option, help=each.question + unit, shell_complete=_begun(each))
        command = add(name, each.name, metavar=_metavar(each))(command)
    help = "Answers as JSON or YAML, - for standard input; options win over the file."
    return click.option("--profile", "file", metavar="FILE", help=help)(command)


def _begun(asked: Question) -> Callable[..., list[str]]:
    """Completes an option's value in the shell."""

    def complete(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
        known = knowledge_of().modalities if asked.name == "modality" else asked.choices
        return [name for name in known if name.startswith(begun)]

    return complete


def complete_name(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    """Completes what can be explained."""
    knowledge = knowledge_of()
    known = (*knowledge.methods, *knowledge.modalities, *knowledge.rule, *knowledge.studies)
    return [name for name in known if name.startswith(begun)]


def complete_study(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    """Completes the id of a study."""
    return [name for name in knowledge_of().studies if name.startswith(begun)]


def _metavar(asked: Question) -> str:
    names = {"text": "NAME", "yes-no": "yes|no", "whole": "N", "number": "X"}
    return "|".join(asked.choices) or names[asked.kind]


def format_option(*choices: str, default: str | None = "text") -> Callable[[Any], Any]:
    """`--format`; json means exactly one document on standard output."""
    return click.option("--format", "form", type=click.Choice(choices), default=default)


def output_option(help: str, default: str | None = None) -> Callable[[Any], Any]:
    """`-o`: a path, or None for standard output."""

    def none_for_dash(_: click.Context, __: click.Parameter, value: Path | None) -> Path | None:
        return None if value is None or str(value) == "-" else value

    shown = default is not None
    return click.option(
        "-o",
        "--output",
        type=PATH,
        callback=none_for_dash,
        default=default,
        show_default=shown,
        help=help,
    )


force_option = click.option("--force", is_flag=True, help="Replace a file that is there already.")
engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", "durable", "reference"]),
    default="auto",
    help="What evaluates the rules; all give the same answer.",
)


rules_option = click.option(
    "--rules",
    "folders",
    metavar="DIR",
    multiple=True,
    type=PATH,
    help="A rule pack to add; may be given again, the last one wins.",
)


def knowledge_of(folders: Iterable[Path] = ()) -> Knowledge:
    """The shipped rule base with the packs that are installed and those given."""
    return Knowledge.load(packs=(*installed(), *folders))


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if not asked or context.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("medssl-advisor")
    except PackageNotFoundError:
        own = "from a checkout"
    click.echo(f"medssl {own}, knowledge {Knowledge.load().version}")
    context.exit()


version_option = click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the versions of program and knowledge.",
)


def profile_of(given: dict[str, str | None], file: str | None, knowledge: Knowledge) -> Profile:
    """The profile of a file and options; an option wins."""
    told = {n: v.strip().lower() for n, v in given.items() if v is not None}
    if not told and file is None:
        raise click.UsageError("say at least --modality and --task, or let `medssl ask` ask you")
    stored = files.read_data(file) if file else {}
    if not isinstance(stored, dict):
        raise files.FileError(f"{file}: a mapping of field names to answers is expected")
    if {"schema_version", "strategies"} <= stored.keys():
        raise files.FileError(
            f"{file}: is a saved answer and no profile; `medssl diff` asks it again, "
            "`medssl generate --from` writes its script"
        )
    try:
        profile = Profile.parse({**stored, **told})
        knowledge.check(profile)
    except ProfileError as error:
        inside = file and str(error).split(":")[0] in stored.keys() - told.keys()
        raise ProfileError(f"{file}: {error}" if inside else str(error)) from None
    return profile


def put(text: str, output: Path | None = None, force: bool = False) -> None:
    """A text to a file, or to standard output."""
    if output is None:
        click.echo(text.rstrip("\n"))
    else:
        files.write(output, text.rstrip("\n") + "\n", force=force)
        click.echo(f"wrote {output}", err=True)


def put_json(data: Any, output: Path | None = None, force: bool = False) -> None:
    """One JSON document; ASCII, so that every console can print it."""
    put(json.dumps(data, indent=2), output, force)


def put_page(
    made: page.Page, form: str = "text", output: Path | None = None, force: bool = False
) -> None:
    """A page to a file, or to standard output, in colour where that is a terminal."""
    if form == "markdown":
        put(page.markdown(made), output, force)
    elif output:
        put(page.text(made), output, force)
    else:
        page.terminal(made, sys.stdout)


def form_of(output: Path | None, told: str | None) -> str:
    """The format that was told, or that a file's name asks for; both must agree."""
    ending = output.suffix.lower() if output else ""
    named = {".json": "json", ".md": "markdown"}.get(ending)
    if told and named not in (None, told):
        raise click.UsageError(f"-o {output}: {ending} means {named}; leave --format {told} out")
    return told or named or "text"


def say(line: str, strong: bool = False) -> None:
    """One line to the user; standard output is kept for the answer."""
    colour = False if os.environ.get("NO_COLOR") else None  # None: where it is a terminal
    click.secho(line, bold=strong, err=True, color=colour)


def say_next(
    script: Path, stages: Iterable[str], batch: Path | None = None, weights: str = ""
) -> None:
    """What to type once a script is written, and perhaps a batch file beside it."""
    without = "" if find_spec("torch") else ', after pip install "medssl-advisor[train]"'
    say(f"next{without}:")
    name, run = shlex.quote(str(script)), "--data manifest.csv --out runs/a"
    commands = [f"python {name} {stage} {run}{weights}" for stage in stages]
    for command in (f"medssl preview {name} {run}", *commands, f"medssl report {name} {run}"):
        say(f"  {command}")
    if batch:
        there = "" if batch.parent == Path() else f"cd {shlex.quote(str(batch.parent))} && "
        say("or, on a Slurm cluster, all stages (set DATA and OUT for other paths):")
        say(f"  {there}{'WEIGHTS=FILE ' * bool(weights)}sbatch {shlex.quote(batch.name)}")


def reader() -> Callable[[str], str]:
    """How a line is read: with line editing in a terminal, echoed in a pipe."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        try:
            import readline  # noqa: F401  importing it gives `input` its editing
        except ImportError:
            pass  # not on Windows
        return input

    def read(prompt: str) -> str:
        click.echo(prompt, nl=False, err=True)
        line = sys.stdin.readline()
        click.echo(line.rstrip("\n"), err=True)
        if not line:
            raise EOFError
        return line.rstrip("\n")

    return read
