"""`featd pause` and `featd resume`: workers claim nothing for a while, and go on."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from featd.errors import NothingMatchedError
from featd.processes.seats import seats_here
from featd_cli.console import note, say, shown
from featd_cli.instance import ConfigOption, open_instance

if TYPE_CHECKING:
    from featd_cli.instance import Instance

MOST_LETTERS = 500

HostOption = Annotated[
    str | None,
    typer.Option(
        "--host",
        "--seat",
        metavar="NAME",
        help="The host, or the seat, as `featd status` names it. Default: all seats of this host.",
    ),
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
    why = " ".join(reason.split())
    with open_instance(ctx, config) as instance:
        here = _here(instance)
        made = [
            connect.transact(instance.catalog, pauses.pause, whom, _by(), why)
            for whom in _whom(instance, host, all_hosts)
        ]
    for one in made:
        say(shown(f"{_named(one.host, here)}: {one}; {one.ended_by(here)} goes on"))


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

    with open_instance(ctx, config) as instance:
        here = _here(instance)
        chosen = _whom(instance, host, all_hosts)
        ended = [one for whom in chosen for one in connect.transact(instance.catalog, pauses.resume, whom)]
        with instance.read() as conn:
            still = [(whom, pauses.of_host(conn, whom)) for whom in chosen if whom is not None]
    for one in ended:
        say(shown(f"{_named(one.host, here)}: resumed; was {one}"))
    for whom, left in still:
        if left is not None:
            raise NothingMatchedError(f"{_named(whom, here)}: still {left}; {left.ended_by(here)} goes on")
    if not ended:
        note(shown(f"{_named(chosen[0], here)}: not paused"))


def _here(instance: Instance) -> str:
    """The one seat of this host, or the host, where it has several."""
    names = seats_here(instance.settings.state_folder)
    return names[0] if len(names) == 1 else socket.gethostname()


def _whom(instance: Instance, host: str | None, all_hosts: bool) -> Sequence[str | None]:
    """The seats that are meant; None for all. NothingMatchedError where no featd of that name has worked here, so that
    a name that is mistyped pauses nothing in silence."""
    from featd.catalog import pause as pauses

    if all_hosts and host is not None:
        raise typer.BadParameter("cannot be combined with --all", param_hint="--host")
    if all_hosts:
        return [None]
    here = seats_here(instance.settings.state_folder)
    if host is None:
        return here
    with instance.read() as conn:
        known = {*pauses.known_hosts(conn), *(one.host for one in pauses.pauses(conn))}
    if host not in {*known, *here, socket.gethostname()}:
        names = ", ".join(sorted(name for name in known if name)) or "none"
        raise NothingMatchedError(
            f"no featd has worked for this catalog on host {host}; known hosts: {names}"
        )
    return [host]


def _named(whom: str | None, here: str) -> str:
    return "all hosts" if whom is None else "this host" if whom == here else f"host {whom}"


def _by() -> str:
    """Who asks: `operator@gpu1`."""
    name = os.environ.get("SUDO_USER")
    if not name:
        try:
            name = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"
