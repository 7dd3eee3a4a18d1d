"""The whole check. It only reads, and featd may run meanwhile: each comparison of rows is of one moment."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from featd.catalog import connect, pairing
from featd.catalog import verify as catalog_verify
from featd.config import RootConfig
from featd.progress import Advance
from featd.verify import files, roots, vectors
from featd.verify.report import Report


def verify(
    catalog: sa.Engine, store: Path, advance: Advance, against_roots: tuple[RootConfig, ...] = ()
) -> Report:
    """Compare everything. StoreUnavailableError or OtherStoreError where `store` is not the store of `catalog`."""
    pairing.check(catalog, store, writable=False)
    report = Report()
    advance("counting rows", 0, 0)
    with connect.reading(catalog_verify.snapshot(catalog)) as conn:
        report.recount = catalog_verify.recount(conn)
    vectors.check(catalog, store, report, advance)
    files.check(catalog, store, report, advance)
    if against_roots:
        roots.check(catalog, against_roots, report, advance)
    if report.lost:
        pairing.check(catalog, store, writable=False)  # else it may only have been unmounted meanwhile
    return report
