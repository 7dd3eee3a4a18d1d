"""`featd db`: the catalog's schema."""

from __future__ import annotations

import socket

import typer

from featd_cli.console import document, note, say
from featd_cli.instance import ConfigOption, JsonOption, open_instance

app = typer.Typer(help="Show and upgrade the catalog's schema.", no_args_is_help=True)


@app.command()
def upgrade(ctx: typer.Context, config: ConfigOption = None) -> None:
    """Upgrade the catalog to this featd's schema.

    Runs in one transaction, under a lock. Running it again does no harm.
    """
    from featd.catalog import migrate

    with open_instance(ctx, config, check=False) as instance:
        before, after = migrate.upgrade(instance.catalog, create=False)
    note(f"the catalog already has this featd's schema: {after}" if before == after else "upgraded")
    say(f"{before or 'empty'} -> {after}")


@app.command()
def restored(ctx: typer.Context, config: ConfigOption = None) -> None:
    """Go on with a catalog, or a store, that came from a backup.

    Says that this catalog and this store belong together from now on. Ends the leases that the backup shows as open and
    moves no file. Stop featd on every host first.
    """
    from featd.catalog import pairing
    from featd.daemon import hold_locks

    with open_instance(ctx, config) as instance, hold_locks(instance.settings.store.path):
        ended, lost = pairing.declare_restored(
            instance.catalog,
            instance.settings.store.path,
            socket.gethostname(),
            instance.settings.retry.policy,
        )
    say("catalog and store belong together from now on")
    note(
        f"ended {ended:,} leases; `featd run` scans the roots and does again what the backup does not know. Shards that"
        " the catalog does not know move to `unknown` in the store"
    )
    if lost:
        note(
            f"the store lacks {lost:,} shards that the catalog names: bring them back, or make their vectors again with"
            " `featd enqueue --force ROOT`"
        )


@app.command()
def current(ctx: typer.Context, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Print the catalog's schema revision."""
    from featd.catalog import migrate

    with open_instance(ctx, config, check=False) as instance:
        with instance.read() as conn:
            revision = migrate.current(conn)
        head = migrate.head()
    if as_json:
        document({"current": revision, "head": head, "up_to_date": revision == head})
        return
    say(revision or "empty")
    if revision is not None and not migrate.is_known(revision):
        note(f"this schema is newer than this featd ({head}): install a newer featd")
    elif revision != head:
        note(f"this featd needs {head}: run `featd db upgrade`")
