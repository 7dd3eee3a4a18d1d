"""Checks of the roots and the store, and of who looks at them."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.filesize import decimal

from featd import clock
from featd.config import RootConfig, StoreConfig
from featd.doctor.finding import About, Finding, error, ok, warning
from featd.ingest.scan_report import told_ignored, told_unreadable
from featd.ingest.walk import Walk
from featd.ingest.watch import REMOTE_FILE_SYSTEMS, file_system
from featd.paths import from_catalog
from featd.roots import Globs, RootState, check_apart, root_state
from featd.shards.store import check_writable, free_bytes, is_store

SOME_IMAGES = 20
"""So many images of a root are looked at."""
LOOK_SECONDS = 3.0
"""They are looked for so long."""
_OFFLINE = {
    RootState.MISSING: "mount its disk, or correct its path in [[roots]]",
    RootState.UNREADABLE: "give featd's user the right to read it: `chmod` or `setfacl`, or add the user to its group",
    RootState.SILENT: "look at the server or disk it is on: `mount`, `dmesg`",
    RootState.EMPTY: "mount its disk; an empty root is taken for a mount point without its disk",
}
_RIGHTS = "give featd's user the right to read: `chmod` or `setfacl`, or add the user to their group"


def _look_at_user(store: Path) -> Iterator[Finding]:
    """Whether this user is the one that featd works as: another may read and write other things."""
    try:
        owner = store.stat().st_uid
    except OSError:
        return  # the check of the store tells
    me = os.geteuid()
    if owner != me:
        yield warning(
            About.USER,
            f"the store belongs to {_name(owner)}, and {_name(me)} looks at it: the two may read and write different"
            " files",
            f"`sudo -u {_name(owner)} featd doctor`",
        )


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"#{user}"


def look_at_root(root: RootConfig) -> Iterator[Finding]:
    """Whether a root is there, and whether its folders and images can be read."""
    state = root_state(root.path)
    if state is not RootState.ONLINE:
        yield error(About.ROOT, f"{root.path} is {state}: its images keep their state", _OFFLINE[state])
        return
    walk = Walk(os.fsencode(root.path), Globs(root.include, root.exclude), root.follow_symlinks)
    deadline = clock.monotonic() + LOOK_SECONDS
    images: list[Path] = []
    for portion in walk.portions():
        images += [root.path / os.fsdecode(from_catalog(path)) for path, *_ in portion]
        if len(images) >= SOME_IMAGES or clock.monotonic() > deadline:
            break
    else:
        if not images:
            ignored = f": {told_ignored(walk.ignored)}" if walk.ignored else ""
            yield warning(
                About.ROOT,
                f"{root.path} has no image that `include` wants{ignored}",
                "correct include and exclude of this root, if that is not meant",
            )
    some = images[:SOME_IMAGES]
    closed = [path for path in some if not os.access(path, os.R_OK)]
    if closed:
        finding = error if len(closed) == len(some) else warning
        yield finding(
            About.ROOT,
            f"{len(closed)} of the {len(some)} images that were looked at cannot be read, such as {closed[0]}",
            _RIGHTS,
        )
    if walk.unreadable:
        yield warning(
            About.ROOT,
            f"{root.path}: {told_unreadable(walk.unreadable)}; images there keep their state",
            _RIGHTS,
        )
    if some and not closed and not walk.unreadable:
        kind = file_system(os.path.realpath(root.path)) or "unknown file system"
        remote = (
            ", only scanned: it does not report what other hosts write" if kind in REMOTE_FILE_SYSTEMS else ""
        )
        yield ok(About.ROOT, f"{root.path} is there ({kind}{remote}), and images can be read")


def look_at_roots(roots: Sequence[RootConfig]) -> Iterator[Finding]:
    """What concerns all of them together."""
    if not roots:
        yield error(
            About.ROOTS,
            "the configuration names no folder of images",
            "add a [[roots]] section with its path",
        )
    check_apart([root.path for root in roots])


def look_at_store(store: StoreConfig) -> Iterator[Finding]:
    """Whether the store is there and can be written. `pairing` tells whose it is, and `room` whether it has room."""
    yield from _look_at_user(store.path)
    if not is_store(store.path):
        missing = "there is no store" if store.path.is_dir() else "no such folder"
        yield error(
            About.STORE,
            f"{store.path}: {missing}",
            "mount its disk; correct store.path; or, for a new instance, run `featd init`",
        )
        return
    check_writable(store.path)
    kind = file_system(os.path.realpath(store.path)) or "unknown file system"
    free = free_bytes(store.path)
    yield ok(About.STORE, f"{store.path} can be written ({kind}, {decimal(free)} free)")
    if free < store.min_free:
        yield error(
            About.ROOM,
            f"{store.path} has {decimal(free)} free, less than store.min_free ({decimal(store.min_free)}): workers"
            " claim nothing",
            "make room, move the store to a larger disk, or lower store.min_free",
        )
