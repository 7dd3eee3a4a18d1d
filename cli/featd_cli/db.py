"""`featd db`: the catalog's schema."""

from __future__ import annotations

import typer

from featd_cli.console import document, note, say
from featd_cli.instance import ConfigOption, JsonOption, open_instance

app = typer.Typer(help="Show and upgrade the catalog's schema.", no_args_is_help=True)


@app.command()
def upgrade(ctx: typer.Context, config: ConfigOption = None) -> None:
    """Bring the catalog to this featd's schema.

    In one transaction and under a lock; safe to repeat.
    """
    from featd.catalog import migrate

    with open_instance(ctx, config, check=False) as instance:
        before, after = migrate.upgrade(instance.catalog, create=False)
    note(f"the catalog has this featd's schema already: {after}" if before == after else "upgraded")
    say(f"{before or 'empty'} -> {after}")


@app.command()
def current(ctx: typer.Context, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Print the schema that the catalog has."""
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
        note(f"this is newer than this featd knows ({head}): install a newer featd")
    elif revision != head:
        note(f"this featd needs {head}: run `featd db upgrade`")
