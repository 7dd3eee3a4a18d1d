"""What a scan found, and the words for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from featd.catalog.enqueue import Enqueued
from featd.roots import RootState


@dataclass(slots=True)
class ScanReport:
    """What one scan of one root found."""

    root: str
    state: RootState
    files: int = 0
    enqueued: Enqueued = field(default_factory=Enqueued)
    gone: int = 0
    held: int = 0
    """Images that vanished all at once, and keep their state for now."""
    away: list[str] = field(default_factory=list)
    """Folders that were mount points and are not mounted: what was in them keeps its state."""
    unreadable: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def describe(report: ScanReport) -> str:
    """One line for people."""
    if report.state is not RootState.ONLINE:
        return (
            f"{report.root}: offline ({report.state}): not scanned, and its images keep their state; mount or restore"
            " it, then scan again"
        )
    more = f"; {told_ignored(report.ignored)}" if report.ignored else ""
    if report.unreadable:
        more += f"; {told_unreadable(report.unreadable)}"
    if report.held:
        more += f"; {report.held:,} vanished at once and keep their state: confirm with --confirm-gone"
    if report.away:
        more += f"; not mounted, its images keep their state: {', '.join(report.away)}"
    if report.enqueued.refused:
        more += f"; {len(report.enqueued.refused):,} refused by the catalog: see `featd failures`"
    return (
        f"{report.root}: {report.files} images, {report.enqueued.new} new, {report.enqueued.changed} changed,"
        f" {report.enqueued.returned} returned, {report.gone} gone{more}"
    )


def told_ignored(ignored: Mapping[str, int]) -> str:
    """`13 ignored: heic 5, avif 5, links 3`: files that are no images by the patterns of their root."""
    kinds = sorted(ignored.items(), key=lambda item: (-item[1], item[0]))
    some = [f"{kind} {count:,}" for kind, count in kinds[:5]]
    return f"{sum(ignored.values()):,} ignored: {', '.join(some)}" + (", ..." if len(kinds) > 5 else "")


def told_unreadable(folders: Sequence[str]) -> str:
    """`3 folders cannot be read, for example 2026/a`."""
    count = "1 folder" if len(folders) == 1 else f"{len(folders):,} folders"
    return f"{count} cannot be read, for example {folders[0] or 'the root itself'}"
