"""`featd changes`: what became of the live vectors since a token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featd import clock
from featd.errors import CatalogUnavailableError
from featd_cli.console import line, warn
from featd_cli.instance import ConfigOption, Instance, open_instance

if TYPE_CHECKING:
    from featd.catalog.feed import Changes, Token
    from featd.catalog.live import LiveVector

PAGE = 100
"""Changes that are looked up at once; each is of up to some thousand images."""
VECTORS = 5000
POLL_SECONDS = 0.5
AGAIN_SECONDS = 2.0


def changes(
    ctx: typer.Context,
    since: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="Where to go on. Without: all live vectors.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Wait for more, until you end it (Ctrl-C).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines: there is no other form.")] = False,
    config: ConfigOption = None,
) -> None:
    """List what became of the live vectors since a token.

    For an index or a copy of them. One JSON object per line: op (upsert or delete), image_id, root, path, and for
    an upsert shard, row and version. The last line has the token with which to go on; with --follow, one follows each
    portion. An upsert may come more than once. The vector is in the row of the shard for at least store.grace_seconds.
    Without --since, everything that is live is listed first.
    """
    from featd.catalog import feed

    with open_instance(ctx, config) as instance:
        if since is not None:
            token = feed.Token.parse(since)
            with instance.read() as conn:
                feed.check(conn, token)
        else:
            token = _everything(instance)
        if not follow:
            while (found := _look(instance, token)).left:
                _tell(found)
                token = found.token
            _tell(found)
            return
        line({"token": str(token)})
        while True:
            found = _look_on(instance, token)
            if found.token != token:
                _tell(found)
                token = found.token
            if not found.left:
                clock.sleep(POLL_SECONDS)


def _everything(instance: Instance) -> Token:
    """All live vectors. The token is that of before: what changes meanwhile comes again."""
    from featd.catalog import feed, live

    with instance.read() as conn:
        token = feed.now(conn)
    for page in live.walk_live(instance.catalog, VECTORS):
        for vector in page:
            line(_upsert(vector))
    return token


def _look(instance: Instance, token: Token) -> Changes:
    """The next changes."""
    from featd.catalog import feed

    with instance.read() as conn:
        return feed.changes(conn, token, PAGE)


def _look_on(instance: Instance, token: Token) -> Changes:
    """The same, also where the database is away for a while."""
    while True:
        try:
            return _look(instance, token)
        except CatalogUnavailableError as error:
            warn(f"featd: {error}: trying again")
            clock.sleep(AGAIN_SECONDS)


def _tell(found: Changes) -> None:
    for vector in found.upserts:
        line(_upsert(vector))
    for gone in found.deleted:
        line({"op": "delete", "image_id": gone.image_id, "root": gone.root, "path": gone.path})
    line({"token": str(found.token)})


def _upsert(vector: LiveVector) -> dict[str, Any]:
    return {
        "op": "upsert",
        "image_id": vector.image_id,
        "root": vector.root,
        "path": vector.path,
        "shard": vector.shard_path,
        "row": vector.shard_row,
        "version": vector.version,
    }
