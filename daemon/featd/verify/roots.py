"""The files of images against their rows. A scan brings the rows up to what is found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from featd.catalog import connect, stats
from featd.catalog import verify as catalog_verify
from featd.catalog.verify import DoneFile
from featd.config import RootConfig, places
from featd.errors import reason
from featd.paths import from_catalog, mtime_of
from featd.progress import Advance
from featd.roots import RootState, root_state
from featd.verify.report import FileFault, Report

PAGE_IMAGES = 5000


def check(catalog: sa.Engine, roots: Sequence[RootConfig], report: Report, advance: Advance) -> None:
    """Add to `report` the done images whose files are missing or have changed. Roots that are not in the configuration
    are left out."""
    states = {root.key: root_state(root.path) for root in roots}
    report.offline |= {root: str(state) for root, state in states.items() if state is not RootState.ONLINE}
    follow = {root.key: root.follow_symlinks for root in roots if states[root.key] is RootState.ONLINE}
    folders = places(roots)
    with connect.reading(catalog) as conn:
        last = stats.last_image(conn)
    for page in connect.walk(catalog, catalog_verify.done_after, lambda file: file.id, 0, PAGE_IMAGES):
        for file in page:
            if file.root in follow:
                report.files += 1
                if (why := _wrong(file, folders[file.root], follow[file.root])) is not None:
                    report.file_faults.append(FileFault(f"{file.root}/{file.path}", why))
        advance("looking at images", page[-1].id, last)


def _wrong(file: DoneFile, root: str, follow: bool) -> str | None:
    try:
        found = (Path(root) / os.fsdecode(from_catalog(file.path))).stat(follow_symlinks=follow)
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError as error:
        return f"cannot be looked at: {reason(error)}"
    return None if (found.st_size, mtime_of(found)) == (file.size, file.mtime_ns) else "changed"
