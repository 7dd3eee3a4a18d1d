"""One image in words: what is known about it, and what happens to it next."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from featd.errors import reason
from featd.paths import from_catalog, full_path, is_stand_in
from featd.states import MAX_KILLS, OF_THE_FILE, Kind, RetryPolicy, State

if TYPE_CHECKING:
    from featd.catalog.explain import Explained
    from featd.shards.verify import Fault

NEXT = {
    State.CLAIMED: "the worker records it as done or failed; if the worker dies, the image is pending again",
    State.DONE: "nothing until the file changes or vanishes",
    State.FAILED: "nothing until the file changes, or until `featd retry-failed`",
    State.GONE: "nothing until the file returns",
}
"""What happens to an image of each state; a pending one depends on its row."""


def on_disk(found: Explained, root: Path) -> str | None:
    """How the file, beneath the folder `root`, differs from what the catalog knows of it; None where it does not."""
    if found.state == State.GONE or is_stand_in(found.path):
        return None
    try:
        now = (root / os.fsdecode(from_catalog(found.path))).stat()
    except FileNotFoundError:
        return "not there now: the next scan marks the image as gone, unless its root is offline"
    except OSError as error:
        return f"cannot be looked at by this user: {reason(error)}"
    if (now.st_size, now.st_mtime_ns) != (found.size, found.mtime_ns):
        return f"changed since ({now.st_size:,} bytes): the next scan makes it pending"
    return None


def lines(
    found: Explained, following: str, fault: Fault | None = None, differs: str | None = None
) -> list[tuple[str, str]]:
    """What is known, line by line: (name, value). `differs`: how the file differs from what the catalog knows."""
    why = f": {found.error_kind}" if found.state == State.FAILED and found.error_kind else ""
    shown_lines = [
        ("path", full_path(found.root, found.path)),
        ("root", found.root),
        ("state", f"{found.state} since {moment(found.updated_at)}{why}"),
        (
            "file",
            f"{found.size:,} bytes, version {found.version} (a change of the file makes the next version)",
        ),
    ]
    if differs is not None:
        shown_lines.append(("on disk", differs))
    if found.content is not None:
        shown_lines.append(("content", f"hash {found.content}"))
    if found.shard is not None:
        stale = "" if found.shard_version == found.version and found.state == State.DONE else ", not live"
        wrong = f"; this file is {fault}" if fault else ""
        shown_lines.append(
            (
                "vector",
                f"{found.shard}, row {found.shard_row}, of version {found.shard_version}{stale}{wrong}",
            )
        )
        shown_lines.append(("made by", found.made_by or "unknown"))
    if found.worker is not None:
        shown_lines.append(("worker", found.worker))
    if found.error and not found.attempts:
        shown_lines.append(("error", f"{found.error_kind or ''} {found.error}".strip()))
    shown_lines += [
        (
            "attempt",
            f"{moment(one.at)}, version {one.version}: {one.kind}: {one.message}"
            + (f" ({one.worker})" if one.worker else ""),
        )
        for one in found.attempts
    ]
    shown_lines.append(("next", following))
    return shown_lines


def moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def next_of(found: Explained, retry: RetryPolicy, fault: Fault | None = None) -> str:
    """One sentence: what happens to the image next, and how many attempts it has left."""
    if fault is not None and fault.lost and found.state == State.DONE:
        return "nothing until the file changes; `featd verify --repair` has the vector made again"
    if found.state == State.FAILED and found.error_kind in OF_THE_FILE:
        return "repair or replace the file, and a running featd tries it again; as it is, it would fail again"
    if found.error_kind == Kind.CATALOG_REFUSED:
        return "nothing: where the file is moved to a shorter path, it is another image"
    if found.state == State.GONE and found.shard is not None and fault is None:
        return f"{NEXT[State.GONE]}; another file that has its content gets this vector"
    if found.state != State.PENDING:
        return NEXT[State(found.state)]
    alone = " alone in the net, because a process died while it was in it" if found.suspect else ""
    soon = found.due_in_seconds < 1
    when = "as soon as a worker is free" if soon else f"in {found.due_in_seconds:.0f} s"
    return (
        f"the image is processed{alone} {when}; it fails for good after {retry.max_errors - found.errors} more"
        f" errors, {retry.max_crashes - found.crashes} crashes or {MAX_KILLS - found.kills} kills"
    )
