"""Purging: rows of images that have been gone for purge_gone_days are deleted, so that a catalog whose images come and
go does not grow for ever."""

from __future__ import annotations

from collections.abc import Generator

import sqlalchemy as sa

from featd import logs
from featd.catalog import connect, counters, purge, stats

log = logs.get("janitor")

MANY_ROWS = 10_000_000
"""Catalogs with fewer rows are not purged unless the configuration says so."""
DEFAULT_DAYS = 365.0
IDS = 50_000
"""Ids that are looked at in one step, in order of id: no index tells since when an image is gone."""
PAGE = 1000
"""Rows that one transaction deletes."""


def purging(catalog: sa.Engine, days: float | None) -> Generator[None]:
    """Look through all images once, in steps of well under a second. `days`: None for the default; 0 for never.
    CatalogUnavailableError."""
    with connect.reading(catalog) as conn:
        many = sum(counters.counts(conn).values()) >= MANY_ROWS
        newest = stats.last_image(conn)
    days = (DEFAULT_DAYS if many else 0.0) if days is None else days
    if not days:
        return
    after = purged = 0
    while after < newest:
        to = min(after + IDS, newest)
        with connect.reading(catalog) as conn:
            ids = purge.gone_before(conn, after, to, days, PAGE)
        if ids:
            purged += connect.transact(catalog, purge.purge, ids, days)
        after = ids[-1] if len(ids) == PAGE else to
        yield
    if purged:
        log.info(
            "gone_purged", "deleted the rows of images that have been gone for long", images=purged, days=days
        )
