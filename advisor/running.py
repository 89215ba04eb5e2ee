"""The commands that look at a script and its runs: `preview`, `dry-run` and `report`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .shell import PATH, say

_SETTINGS: dict[str, Any] = {"ignore_unknown_options": True}


def _of_script(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments of the script's own stages."""
    out = click.option("--out", type=PATH, required=True, help="The folder of the run.")
    data = click.option("--data", type=PATH, required=True, help="The manifest.")
    return click.argument("script", type=PATH)(data(out(command)))


_options = click.argument("options", nargs=-1, type=click.UNPROCESSED)


@click.command(context_settings=_SETTINGS)
@_of_script
@_options
def preview(script: Path, data: Path, out: Path, options: tuple[str, ...]) -> None:
    """Draw what the network will be given: images, views, masks, and what it rebuilds.

    Writes preview.png; decoded images stay in OUT/cache, for the run. Settings of the script may
    follow, as for its stages.
    """
    from .beside.pictures import preview as draw
    from .beside.script import opened

    say(draw(opened(script), data, out, options))


@click.command("dry-run", context_settings=_SETTINGS)
@_of_script
@_options
def dry_run(script: Path, data: Path, out: Path, options: tuple[str, ...]) -> None:
    """Say what a run will take: parameters, memory, hours and disk, on this machine.

    A few real steps are made and nothing is kept of them; the few images that were decoded for
    them stay in OUT/cache, where the run finds them. Settings of the script may follow.
    """
    from .beside.dry_run import estimate
    from .beside.script import opened

    for line in estimate(opened(script), data, out, options):
        click.echo(line)


@click.command()
@_of_script
def report(script: Path, data: Path, out: Path) -> None:
    """Write report.md on a finished run, with curves, calibration and examples.

    It holds the verdict, every interval, the settings that were changed, and how the encoder is
    loaded elsewhere.
    """
    from .beside.report import report as write
    from .beside.script import opened

    say(f"wrote {write(opened(script), data, out)}")
