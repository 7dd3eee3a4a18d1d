"""Opening the catalog and running transactions in it. Nothing that is opened here may be used after a fork."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from featd import clock
from featd.catalog import dialects
from featd.errors import CatalogUnavailableError, ConfigError, RefusedError, SchemaError, first_line, reason

K = TypeVar("K")
P = ParamSpec("P")
T = TypeVar("T")

RETRY_SECONDS = 20.0
"""How long a transaction is retried while other transactions hold its locks."""


class CommitUnknownError(CatalogUnavailableError):
    """The reply to a COMMIT was lost, so nobody knows whether it succeeded. Check before trying again."""


def open_catalog(url: str, lease_seconds: float = 60.0, *, only_looks: bool = False) -> sa.Engine:
    """A new engine for `url`. Connects lazily; nothing is read yet. With `only_looks`, SQLite leaves no trace: it
    cannot write, and makes no file beside its own."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise ConfigError(
            "catalog.url: not a database address: write sqlite:///FILE or postgresql+psycopg://user@host/db"
        ) from None
    if parsed.drivername not in dialects.DRIVERS:
        raise ConfigError(
            f"catalog.url: {parsed.drivername!r} is not a database featd knows: write sqlite:///FILE or"
            " postgresql+psycopg://user@host/db"
        )
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigError("catalog.url: a catalog in memory would be lost: write sqlite:///FILE")
    parsed = parsed.set(drivername=dialects.DRIVERS[parsed.drivername])
    if parsed.get_backend_name() == "postgresql" and parsed.password is None:
        parsed = parsed.set(password=credential())
    engine = sa.create_engine(
        parsed,
        connect_args=dialects.connect_args(parsed, lease_seconds),
        pool_pre_ping=True,
        hide_parameters=True,
    )
    dialects.prepare_engine(engine, lease_seconds, only_looks)
    return engine


def credential() -> str | None:
    """The database password that systemd provides (LoadCredential=database-password:...), or None."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return None
    try:
        return (Path(folder) / "database-password").read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the credential database-password cannot be read: {reason(error)}") from None


def shown_url(engine: sa.Engine) -> str:
    """The catalog's address without its password."""
    return without_password(engine.url)


def without_password(url: sa.URL) -> str:
    """The address as text, with *** in place of its password."""
    secrets = {name: "***" for name in url.query if "password" in name}
    return url.update_query_dict(secrets).render_as_string(hide_password=True)


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that only reads, in one snapshot on SQLite."""
    try:
        with engine.connect() as conn, conn.begin():
            yield conn
    except sa.exc.DBAPIError as error:
        raise unavailable(engine, error) from error


def walk(
    engine: sa.Engine,
    page: Callable[Concatenate[sa.Connection, K, P], Sequence[T]],
    key: Callable[[T], K],
    after: K,
    *arguments: P.args,
    **options: P.kwargs,
) -> Iterator[Sequence[T]]:
    """All rows in order of their `key`, page by page, each page in a transaction of its own.

    `page(connection, after, *arguments, **options)` gives the next rows behind the key `after`; an empty one ends
    the walk. Rows that change meanwhile are seen as their page finds them.
    """
    while True:
        with reading(engine) as conn:
            rows = page(conn, after, *arguments, **options)
        if not rows:
            return
        yield rows
        after = key(rows[-1])


def transact(
    engine: sa.Engine,
    work: Callable[Concatenate[sa.Connection, P], T],
    /,
    *arguments: P.args,
    **options: P.kwargs,
) -> T:
    """Run `work(connection, *arguments, **options)` in one write transaction and commit it.

    The whole transaction is retried while other transactions hold its locks. CommitUnknownError where the
    connection broke during COMMIT; CatalogUnavailableError for any other problem with the database.
    """
    deadline = clock.monotonic() + RETRY_SECONDS
    while True:
        try:
            with engine.connect().execution_options(write=True) as conn:
                transaction = conn.begin()
                try:
                    result = work(conn, *arguments, **options)
                except BaseException:
                    transaction.rollback()
                    raise
                try:
                    transaction.commit()
                except sa.exc.DBAPIError as error:
                    conn.invalidate(error)  # a COMMIT that fails may leave SQLite's transaction open
                    if dialects.is_transient(error):
                        raise
                    raise CommitUnknownError(
                        f"the connection to the catalog was lost during COMMIT: {error.orig}"
                    ) from error
                return result
        except OverflowError as error:  # a number beyond SQLite's 64 bits
            raise RefusedError(f"the catalog refuses a value: {error}") from error
        except sa.exc.DBAPIError as error:
            if not dialects.is_transient(error) or clock.monotonic() > deadline:
                raise unavailable(engine, error) from error
            clock.sleep(random.uniform(0.001, 0.02))


def unavailable(engine: sa.Engine, error: sa.exc.DBAPIError) -> Exception:
    """What to raise for a database error: SchemaError, CatalogUnavailableError, or the error itself (a bug)."""
    if dialects.is_refused(error):
        return RefusedError(f"the catalog refuses a value: {first_line(error.orig)}")
    if dialects.is_foreign_schema(error):
        return SchemaError(
            f"catalog {shown_url(engine)} lacks tables or columns of its schema revision: {first_line(error.orig)}:"
            " restore it from a backup"
        )
    if dialects.is_unreachable(error):
        return CatalogUnavailableError(
            f"catalog {shown_url(engine)} is out of reach: {first_line(error.orig)}{dialects.full_disk(engine)}"
        )
    return error
