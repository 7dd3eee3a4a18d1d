"""Checks of the catalog: its database, its schema, whether it goes with the store and the model. Reads only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from rich.filesize import decimal

from featd import clock
from featd.catalog import connect, dialects, migrate, pairing, stats
from featd.config import Settings
from featd.doctor.finding import About, Finding, error, ok, told, warning
from featd.errors import CatalogUnavailableError, ConfigError, FeatdError, SchemaError, StoreUnavailableError
from featd.ingest.scan import known_mounts
from featd.ingest.watch import REMOTE_FILE_SYSTEMS, file_system
from featd.roots import RootState, mounts_beneath, root_state
from featd.shards.store import OtherStoreError, free_bytes, is_store
from featd.sizing import sizes

ANSWER_SECONDS = 5.0
"""A database that takes longer to answer is taken to be out of reach."""
CLOCK_SECONDS = 2.0
"""A difference of two clocks that is worth a word."""
SMALL_FILE_ROOM = 100_000_000
CONNECTIONS = (4, 3)
"""The connections that featd holds on a host at most: this many, and this many for each worker."""
OLDEST_POSTGRESQL = 12
_UNSOUND = {
    "fsync": ("error", "a power cut can destroy the catalog"),
    "full_page_writes": ("error", "a power cut can destroy pages of the catalog"),
    "synchronous_commit": (
        "warning",
        "a power cut can take back what featd has recorded; it then extracts it again",
    ),
    "autovacuum": ("warning", "tables grow without end, and queries become slow"),
}
"""Settings of PostgreSQL that must not be off: how bad it is, and what happens."""


@contextmanager
def opened(settings: Settings) -> Iterator[sa.Engine]:
    """The catalog, for looking only: it is not made, not changed, and SQLite gets no files beside it."""
    catalog = connect.open_catalog(settings.catalog.url, 3 * ANSWER_SECONDS, only_looks=True)
    try:
        yield catalog
    finally:
        catalog.dispose()


def look_at_catalog(settings: Settings) -> Iterator[Finding]:
    """Whether the database answers, how it is set up, its clock, and the schema of the catalog in it."""
    with opened(settings) as catalog:
        try:
            with connect.reading(catalog) as conn:
                before = clock.utcnow()
                theirs = conn.execute(sa.select(dialects.now(conn))).scalar_one()
                after = clock.utcnow()
                server = dialects.look_at_server(conn)
        except CatalogUnavailableError as problem:
            yield told(About.CATALOG, problem, _how_to_reach(catalog, str(problem)))
            return
        is_sqlite = dialects.is_sqlite(catalog)
        kind = f"{'SQLite' if is_sqlite else 'PostgreSQL'} {server.version}"
        yield ok(About.CATALOG, f"{connect.shown_url(catalog)} answers ({kind})")
        try:
            migrate.check_schema(catalog)
            yield ok(About.SCHEMA, f"the catalog has the schema of this featd ({migrate.head()})")
        except (SchemaError, ConfigError) as problem:
            yield told(About.SCHEMA, problem)
        unsound = [*(_of_sqlite if is_sqlite else _of_postgresql)(settings, server)]
        if not server.may_write:
            unsound.append(
                error(
                    About.DATABASE,
                    "this user may not write into the catalog",
                    "give featd's user the right to write the file and its folder"
                    if is_sqlite
                    else "use a primary server, and a user who owns featd's tables",
                )
            )
        yield from unsound or [ok(About.DATABASE, f"its settings are sound: {_shown(server.settings)}")]
        if not is_sqlite:  # SQLite has the clock of this host
            yield _clock((theirs - (before + (after - before) / 2)).total_seconds())


def _shown(settings: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _how_to_reach(catalog: sa.Engine, said: str) -> str:
    """What to do about a database that does not answer."""
    if dialects.is_sqlite(catalog):
        folder = Path(str(catalog.url.database)).parent
        if not folder.is_dir():
            return f"mount the disk of {folder}, or correct catalog.url"
        if "no such file" in said:
            return (
                "correct catalog.url; or `featd init` makes a new catalog, `featd restore` that of a backup"
            )
        return "check its owner and mode; a damaged one comes back with `featd restore`"
    if "password" in said or "authentication" in said:
        return "correct the password: ~/.pgpass, or /etc/featd/featd.password under systemd"
    if "does not exist" in said:
        return "make it with `createdb` and `createuser`, or correct catalog.url"
    return "start PostgreSQL, or correct host and port in catalog.url; `psql` must connect from this machine"


def _of_sqlite(settings: Settings, server: dialects.Server) -> Iterator[Finding]:
    file = Path(settings.catalog.url.partition(":///")[2])
    folder = file.parent
    if (kind := file_system(os.path.realpath(folder))) in REMOTE_FILE_SYSTEMS:
        yield error(
            About.DATABASE,
            f"{file} is on {kind}: SQLite's locks and its WAL are not safe on a network file system",
            "move the catalog to a local disk and correct catalog.url, or use PostgreSQL",
        )
    if server.settings["journal_mode"] != "wal":
        yield warning(
            About.DATABASE,
            "the catalog is not in WAL mode, so that readers and writers wait for each other",
            "run featd once, which turns it on; if this stays, move the catalog to another file system",
        )
    found = os.statvfs(folder)
    if (free := found.f_bavail * found.f_frsize) < SMALL_FILE_ROOM:
        yield warning(
            About.DATABASE, f"{folder} has {decimal(free)} free: the catalog cannot grow", "make room there"
        )


def _of_postgresql(settings: Settings, server: dialects.Server) -> Iterator[Finding]:
    for name, (level, harm) in _UNSOUND.items():
        if server.settings[name] == "off":
            finding = error if level == "error" else warning
            yield finding(
                About.DATABASE,
                f"PostgreSQL runs with {name} = off: {harm}",
                f"`ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();`",
            )
    if int(server.version.split(".")[0]) < OLDEST_POSTGRESQL:
        yield error(
            About.DATABASE,
            f"PostgreSQL {server.version} is too old",
            f"upgrade it to {OLDEST_POSTGRESQL} or newer; featd is tested with 15",
        )
    workers = len(sizes(settings).devices)
    needed = CONNECTIONS[0] + CONNECTIONS[1] * workers
    if server.free_connections is not None and server.free_connections < needed:
        yield error(
            About.DATABASE,
            f"PostgreSQL has room for {max(0, server.free_connections)} connections of featd, which needs up"
            f" to {needed} on this host",
            "raise max_connections and restart PostgreSQL, or end other clients",
        )


def _clock(ahead: float) -> Finding:
    """`ahead`: by how many seconds the clock of the database's host is ahead of this one's."""
    if abs(ahead) <= CLOCK_SECONDS:
        return ok(About.CLOCK, "the clock of the database's host agrees with this one")
    return warning(
        About.CLOCK,
        f"the clock of the database's host is {abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} this one:"
        " times in `featd status` and `featd failures` are wrong by as much",
        "set both by NTP: `timedatectl set-ntp true`",
    )


def look_at_pairing(settings: Settings) -> Iterator[Finding]:
    """Whether store, roots and model are those of the catalog. Nothing where the catalog or the store is away, which
    other checks tell."""
    if not is_store(settings.store.path):
        return
    with opened(settings) as catalog:
        try:
            migrate.check_schema(catalog)
        except FeatdError:
            return
        try:
            pairing.check(catalog, settings.store.path, writable=False)
            yield ok(About.PAIRING, "the store is the one of this catalog")
        except (OtherStoreError, StoreUnavailableError) as problem:
            yield told(About.PAIRING, problem)
            return
        yield from _room(settings, catalog)
        yield from _mounts(settings, catalog)


def _room(settings: Settings, catalog: sa.Engine) -> Iterator[Finding]:
    """Whether the store has room for the images that are to do, by the size of the shards so far."""
    with connect.reading(catalog) as conn:
        needed = stats.bytes_to_do(conn)
    free, least = free_bytes(settings.store.path), settings.store.min_free
    if free < least:
        return  # the check of the store tells
    if needed is not None and free - least < needed:
        yield warning(
            About.ROOM,
            f"the images that are to do need about {decimal(needed)}, and the store has {decimal(free - least)} above"
            " store.min_free",
            "make room, or move the store to a larger disk; workers pause before it is full",
        )
    else:
        told_of = (
            "none to do yet" if needed is None else f"the images that are to do need about {decimal(needed)}"
        )
        yield ok(About.ROOM, f"{decimal(free)} free, {told_of}")


def _mounts(settings: Settings, catalog: sa.Engine) -> Iterator[Finding]:
    """Disks at and beneath the roots that earlier scans saw and that are not mounted."""
    for root in settings.roots:
        if root_state(root.path) is not RootState.ONLINE:
            continue
        with connect.reading(catalog) as conn:
            known = known_mounts(conn, root.key)
        for away in sorted(known - mounts_beneath(root.path)):
            yield error(
                About.ROOT,
                f"{root.path / away} was a mount point and is not mounted: images there keep their state",
                f"mount its disk; if it is one no more, `featd scan --confirm-gone {root.path}`",
            )
