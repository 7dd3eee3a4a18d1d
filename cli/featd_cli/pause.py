"""`featd pause` and `featd resume`: workers claim nothing for a while, and go on."""

from __future__ import annotations

import os
import pwd
import socket
from typing import TYPE_CHECKING, Annotated

import typer

from featd.errors import NothingMatchedError
from featd_cli.console import note, say, shown
from featd_cli.instance import ConfigOption, open_instance

if TYPE_CHECKING:
    from featd_cli.instance import Instance

MOST_LETTERS = 500

HostOption = Annotated[
    str | None,
    typer.Option("--host", metavar="NAME", help="The host, as `featd status` names it. Default: this one."),
]
AllOption = Annotated[bool, typer.Option("--all", help="All hosts of this catalog.")]


def pause(
    ctx: typer.Context,
    host: HostOption = None,
    all_hosts: AllOption = False,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why; `featd status` and the log show it.")
    ] = "",
    config: ConfigOption = None,
) -> None:
    """Let workers claim nothing more until `featd resume`.

    They finish and seal what they have claimed. New files are still found, and everything else goes on. The pause
    stands in the catalog, so it survives restarts. A drain of a paused host ends with exit code 75.
    """
    from featd.catalog import connect
    from featd.catalog import pause as pauses

    if len(reason) > MOST_LETTERS:
        raise typer.BadParameter(f"is longer than {MOST_LETTERS} characters", param_hint="--reason")
    here = socket.gethostname()
    with open_instance(ctx, config) as instance:
        whom = _whom(instance, host, all_hosts)
        made = connect.transact(instance.catalog, pauses.pause, whom, _by(here), " ".join(reason.split()))
    say(shown(f"{_named(whom, here)}: {made}; {made.ended_by(here)} goes on"))


def resume(
    ctx: typer.Context,
    host: HostOption = None,
    all_hosts: AllOption = False,
    config: ConfigOption = None,
) -> None:
    """Let the workers of a paused host go on.

    With --all, every pause ends, also those of single hosts.
    """
    from featd.catalog import connect
    from featd.catalog import pause as pauses

    here = socket.gethostname()
    with open_instance(ctx, config) as instance:
        whom = _whom(instance, host, all_hosts)
        ended = connect.transact(instance.catalog, pauses.resume, whom)
        with instance.read() as conn:
            still = None if whom is None else pauses.of_host(conn, whom)
    for one in ended:
        say(shown(f"{_named(one.host, here)}: resumed; was {one}"))
    if still is not None:
        raise NothingMatchedError(f"{_named(whom, here)}: still {still}; {still.ended_by(here)} goes on")
    if not ended:
        note(shown(f"{_named(whom, here)}: not paused"))


def _whom(instance: Instance, host: str | None, all_hosts: bool) -> str | None:
    """The host that is meant; None for all. NothingMatchedError where no featd of that name has worked here, so that a
    name that is mistyped pauses nothing in silence."""
    from featd.catalog import pause as pauses

    if all_hosts and host is not None:
        raise typer.BadParameter("cannot be combined with --all", param_hint="--host")
    here = socket.gethostname()
    if all_hosts or host in (None, here):
        return None if all_hosts else here
    with instance.read() as conn:
        known = {*pauses.known_hosts(conn), *(one.host for one in pauses.pauses(conn))}
    if host not in known:
        names = ", ".join(sorted(name for name in known if name)) or "none"
        raise NothingMatchedError(
            f"no featd has worked for this catalog on host {host}; known hosts: {names}"
        )
    return host


def _named(whom: str | None, here: str) -> str:
    return "all hosts" if whom is None else "this host" if whom == here else f"host {whom}"


def _by(here: str) -> str:
    """Who asks: `operator@gpu1`."""
    name = os.environ.get("SUDO_USER")
    if not name:
        try:
            name = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            name = str(os.getuid())
    return f"{name}@{here}"
