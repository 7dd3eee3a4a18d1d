"""`featd logs`: what the journal has of featd's service. `journalctl` prints it; this finds the unit and the fields."""

from __future__ import annotations

import os
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from featd.errors import FeatdError
from featd_cli import service
from featd_cli.selection import moment_of

LINES = 100
FOLDERS = tuple(
    Path(folder) / "systemd/system" for folder in ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib")
)
"""Where systemd looks for units."""


class Priority(StrEnum):
    """The least severe record that is printed."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def logs(
    ctx: typer.Context,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new records as they come, until Ctrl-C.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="WHEN",
            help="Only records since then: 30m, 2h, 1d (ago), or an ISO date and time.",
        ),
    ] = None,
    priority: Annotated[
        Priority | None, typer.Option("--priority", "-p", help="Only records of this level and worse ones.")
    ] = None,
    event: Annotated[
        str | None, typer.Option("--event", metavar="NAME", help="Only records of this event: shard_sealed.")
    ] = None,
    lines: Annotated[
        int | None,
        typer.Option(
            "--lines",
            "-n",
            metavar="N",
            min=1,
            help=f"Only the last N. Without --since and --follow: {LINES}.",
        ),
    ] = None,
    instance: service.InstanceOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per line, with all fields (FEATD_...).")
    ] = False,
) -> None:
    """Show the log of the service.

    Calls journalctl, for featd.service or, with --instance or the configuration /etc/featd/NAME.toml, for
    featd@NAME.service. Who is in the group systemd-journal may read it. A featd that was started by hand logs to its
    terminal.
    """
    instance = instance or _instance_of(ctx.obj)
    unit = service.unit_of(instance)
    if lines is None and since is None and not follow:
        lines = LINES
    moment = moment_of(since, "--since")
    options = ["--unit", unit]
    options += ["--output=json"] if as_json else ["--output=short-iso", "--no-hostname"]
    options += ["--follow"] if follow else []
    options += [f"--since=@{moment.timestamp():.0f}"] if moment else []
    options += [f"--priority={'err' if priority is Priority.ERROR else priority}"] if priority else []
    options += [f"--lines={lines}"] if lines else []
    if sys.stdout.isatty() and not (follow or as_json):
        options.append("--pager-end")
    _show(unit, instance, [*options, *([f"FEATD_EVENT={event}"] if event else [])])


def _instance_of(config: Path | None) -> str | None:
    """The instance that reads this configuration; None for the only one."""
    if config is None or config.parent != service.ETC or config.stem == "featd":
        return None
    return config.stem


def _show(unit: str, instance: str | None, options: list[str]) -> NoReturn:
    """Become journalctl. FeatdError where the journal can have nothing, with what to do instead."""
    file = f"{unit.partition('@')[0]}@.service" if instance else unit
    if not any((folder / file).exists() for folder in (service.UNITS, *FOLDERS)):
        name = f" --instance {instance}" if instance else ""
        raise FeatdError(
            f"{unit} is not installed here (`featd service install{name}`), so that the journal has no log of it. A"
            " featd that was started by hand, or by a container, logs to its standard error"
        )
    journalctl = shutil.which("journalctl")
    if journalctl is None:
        raise FeatdError(
            'journalctl is not installed here: look at what the service manager keeps; [log] format = "text" or "json"'
            " makes featd log to standard error"
        )
    sys.stdout.flush()
    os.execv(journalctl, ["journalctl", *options])
