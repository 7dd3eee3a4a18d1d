"""`featd ray`: seats on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featd.errors import EXIT_ERROR, ConfigError, NothingMatchedError, StoreUnavailableError
from featd_cli.console import counted, document, note, say, shown, warn
from featd_cli.instance import ConfigOption, JsonOption, load_settings, open_instance, sqlite_file

if TYPE_CHECKING:
    from featd.config import Settings

app = typer.Typer(help="Run seats on a Ray cluster.", no_args_is_help=True)

PLACED_SECONDS = 30.0
"""`up` and `scale` wait this long for new seats to be placed, then say how far it is."""
MARGIN_SECONDS = 10.0


@app.command()
def up(
    ctx: typer.Context,
    seats: Annotated[int, typer.Option("--seats", min=1, max=10_000, help="How many seats are to run.")],
    gpus: Annotated[
        float, typer.Option("--gpus-per-seat", min=0, help="GPUs that Ray reserves for each; 0 for the CPU.")
    ] = 1.0,
    cpus: Annotated[
        float, typer.Option("--cpus-per-seat", min=0, help="CPUs that Ray reserves for each.")
    ] = 1.0,
    config: ConfigOption = None,
) -> None:
    """Start seats on the cluster.

    Those that an error has stopped are started again, and those that run are left alone: repeat the command after a
    repair, and on a new cluster. It checks the configuration, the catalog and the store first. Each seat is `featd run
    --seat ray-0 --roles work` on whatever node Ray chooses; the configuration file must be at the same path on every
    node. The cluster is the one of this machine, or that of RAY_ADDRESS.
    """
    from featd.catalog import pairing
    from featd.config_file import find
    from featd.placement import cluster
    from featd.placement.seat import Spec

    with open_instance(ctx, config) as instance:
        _refuse_sqlite(instance.settings)
        pairing.check(instance.catalog, instance.settings.store.path)
        settings = instance.settings
    spec = Spec(str(find(config or ctx.obj).absolute()), gpus, cpus)
    with _cluster(settings):
        if cluster.is_open():
            warn(
                "this Ray cluster is open: whoever reaches its ports can run programs on all nodes. Set"
                " RAY_AUTH_MODE=token on every node before `ray start`, and one token for all (`ray get-auth-token"
                " --generate`)"
            )
        there = cluster.names()
        before = cluster.spec_of(cluster.states(there)) if there else None
        if before is not None and before != spec:
            raise ConfigError(
                f"the seats that run have {_told(before)}, not {_told(spec)}: end them first, with `featd ray down`"
            )
        found = cluster.states(cluster.start(seats, spec), PLACED_SECONDS)
        _show(found)
        if len(there) > seats:
            note(f"{counted(len(there), 'seat')} are there: `featd ray scale {seats}` ends the others")
    if any(one["state"] == "failed" for one in found):
        raise typer.Exit(EXIT_ERROR)


@app.command()
def scale(
    ctx: typer.Context,
    seats: Annotated[int, typer.Argument(metavar="N", min=1, max=10_000, help="How many seats are to run.")],
    config: ConfigOption = None,
) -> None:
    """Start or end seats until N run.

    New seats are as those that run. Seats that are ended first seal what they have in hand.
    """
    from featd.placement import cluster

    settings = load_settings(ctx, config)
    with _cluster(settings):
        there = cluster.names()
        spec = cluster.spec_of(cluster.states(there))
        if spec is None:
            raise NothingMatchedError(f"no seat answers: use `featd ray up --seats {seats}`")
        new = cluster.start(seats, spec)[:seats]
        _end(settings, [name for name in there if name not in new])
        _show(cluster.states(new, PLACED_SECONDS))


@app.command()
def status(ctx: typer.Context, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Show where each seat runs, and why one does not.

    `featd status` shows what they have done.
    """
    from featd.placement import cluster

    with _cluster(load_settings(ctx, config, [])):
        found = cluster.states(cluster.names())
    if as_json:
        document({"seats": found})
    elif found:
        _show(found)
    else:
        note("there are no seats on this cluster: `featd ray up --seats N` starts some")


@app.command()
def down(
    ctx: typer.Context,
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait until the seats have sealed what they have in hand.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """End all seats. Each first seals what it has in hand.

    With --now the command returns at once, and the seats seal and stop by themselves.
    """
    from featd.placement import cluster

    settings = load_settings(ctx, config, [])
    with _cluster(settings):
        there = cluster.names()
        late = _end(settings, there, now=now)
    say(f"{counted(len(there), 'seat')} ended")
    if late:
        raise typer.Exit(EXIT_ERROR)


@contextmanager
def _cluster(settings: Settings) -> Iterator[None]:
    """Without the catalog, and for commands that look or end also with faults in the configuration: that may be why the
    seats have stopped."""
    from featd.placement import cluster
    from featd.shards.store import instance_of

    _refuse_sqlite(settings)
    instance = instance_of(settings.store.path)
    if instance is None:
        raise StoreUnavailableError(f"{settings.store.path}: no store there: is the disk mounted?")
    with cluster.connected(instance):
        yield


def _refuse_sqlite(settings: Settings) -> None:
    if sqlite_file(settings.catalog.url) is not None:
        raise ConfigError(
            "catalog.url: SQLite is a file of one host, and seats on a cluster need a catalog that all nodes reach: use"
            " PostgreSQL"
        )


def _end(settings: Settings, seats: list[str], *, now: bool = False) -> list[str]:
    """End seats; returns those whose featd had not stopped when their time was over."""
    from featd.placement import cluster

    late = cluster.stop(seats, 0 if now else settings.workers.stop_seconds + MARGIN_SECONDS)
    for name in late:
        warn(
            f"{name} has not stopped within workers.stop_seconds: Ray has ended its actor, and it stops by itself"
        )
    return late


def _told(spec: Any) -> str:
    return f"{Path(spec.config)} with {spec.gpus:g} GPUs and {spec.cpus:g} CPUs"


def _show(seats: list[dict[str, Any]]) -> None:
    for one in seats:
        where = f" on {one['host']}" if "host" in one else ""
        gpus = f", GPU {one['gpus']}" if one.get("gpus") else ""
        why = f": {one['reason']}" if one["reason"] else ""
        say(shown(f"{one['seat']}: {one['state']}{where}{gpus}{why}"))
    running = sum(one["state"] == "running" for one in seats)
    note(f"{running} of {counted(len(seats), 'seat')} running")
