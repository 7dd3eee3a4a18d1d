"""`featd verify`: catalog, shards and files against each other; and repair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featd import logs
from featd.errors import EXIT_FAILED_ROWS
from featd_cli.backup import in_bytes
from featd_cli.console import counted, document, note, progress, say, shown, warn
from featd_cli.instance import ConfigOption, Instance, JsonOption, open_instance

if TYPE_CHECKING:
    from featd.verify.repair import Repaired
    from featd.verify.report import Report

SHOWN = 20
"""Faults of one kind that are listed; --json lists all."""


def verify(
    ctx: typer.Context,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Make images pending whose vectors are lost, take over unknown shards, recount. Deletes nothing.",
        ),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --repair: even if more than 10 % of the shards are lost.")
    ] = False,
    against_roots: Annotated[
        bool,
        typer.Option(
            "--against-roots", help="Also look at the file of each done image: missing, or changed?"
        ),
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Compare shards, catalog and files with each other.

    Reads every shard and compares its checksum; compares the rows of images with the shards that they name, and the
    counters with a recount; looks for files that the catalog does not know. featd may keep running. Exits 0 if all is
    sound, 4 if there are faults, and says what to do next.
    """
    from featd.shards.store import refuse_root
    from featd.verify import repair as repairing
    from featd.verify.verify import verify as check

    if yes and not repair:
        raise typer.BadParameter("goes with --repair", param_hint="--yes")
    logs.setup("ERROR")
    with open_instance(ctx, config) as instance:
        settings = instance.settings
        store = settings.store.path
        if repair:
            refuse_root(store)
        with progress() as advance:
            report = check(instance.catalog, store, advance, settings.roots if against_roots else ())
        if not as_json:
            _show(report)
        done = None
        if repair and _mendable(instance, report):
            many = repairing.wants_yes(instance.catalog, report)
            for line in _plan(report):
                note(shown(line))
            if many and not yes:
                warn(
                    "nothing was changed: more than 10 % of the shards are lost. If no disk is away and no backup has"
                    " them, say `featd verify --repair --yes`"
                )
            else:
                with progress() as advance:
                    done = repairing.repair(instance.catalog, store, report, settings.roots, advance)
    if as_json:
        document(as_document(report, done))
    elif done is not None:
        _show_repaired(done)
    left = _left(report, done)
    if not as_json or left:
        for line in _next(report, done, left):
            note(shown(line))
    if left:
        raise typer.Exit(EXIT_FAILED_ROWS)


def _mendable(instance: Instance, report: Report) -> bool:
    """Whether a repair has anything to do; shards that are kept aside may be wanted by an image."""
    from featd.catalog import counters
    from featd.states import State

    with instance.read() as conn:
        pending = counters.counts(conn)[State.PENDING]
    return bool(
        report.shard_faults
        or report.row_faults
        or report.recount
        or report.unknown
        or (report.kept_aside and pending)
    )


def _plan(report: Report) -> Iterator[str]:
    """What a repair is about to do."""
    if report.lost:
        yield (
            f"repair: makes {_images(sum(fault.images for fault in report.lost))} of"
            f" {counted(len(report.lost), 'lost shard')} pending, so that their vectors are made again"
        )
    if aside := [fault for fault in report.shard_faults if fault.aside]:
        yield f"repair: moves {counted(len(aside), 'shard')} back from `unknown` in the store"
    if report.row_faults:
        yield f"repair: makes {_images(len(report.row_faults))} pending whose rows name no vector of theirs"
    if report.recount:
        yield "repair: sets the counters to what is there"
    if unknown := len(report.unknown) + report.kept_aside:
        yield (
            f"repair: looks through {counted(unknown, 'unknown shard')} for vectors of pending images, and reads the"
            " files of these images"
        )


def _show(report: Report) -> None:
    """The report, for people."""
    said = f"{counted(report.shards, 'shard')} ({in_bytes(report.bytes)}) compared, {_images(report.images)} in them"
    say(said + (f"; {_images(report.files)} looked at under the roots" if report.files else ""))
    _list(
        "shards",
        [
            f"{one.path}: {one.fault}{', but in `unknown`' if one.aside else ''}; {_images(one.images)}"
            + (f": {one.why}" if one.why else "")
            for one in report.shard_faults
        ],
    )
    _list("images", [f"{one.path}: {one.why}" for one in report.row_faults])
    _list(
        "counters",
        [
            f"{state}: {report.recount.counted[state] - lacks:,} recorded, {report.recount.counted[state]:,} counted"
            for state, lacks in report.recount.states.items()
        ]
        + [
            f"live rows of shard {shard}: off by {-lacks:+,}"
            for shard, lacks in report.recount.live_rows.items()
        ],
    )
    _list("unknown shards", report.unknown)
    _list("unfinished files", report.parts)
    _list("folders that cannot be read", [f"{folder}: {why}" for folder, why in report.unreadable])
    _list("files of images", [f"{one.path}: {one.why}" for one in report.file_faults])
    _list("roots that cannot be compared", [f"{root}: {state}" for root, state in report.offline.items()])
    if report.foreign:
        note(
            shown(
                f"{counted(len(report.foreign), 'file')} among the shards not of featd, such as {report.foreign[0]}"
            )
        )
    if report.needless:
        note(f"{counted(report.needless, 'shard')} missing or damaged that no image needs")
    if report.kept_aside:
        note(f"{counted(report.kept_aside, 'shard')} in `unknown` that the catalog does not know")


def _list(what: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    say(f"{what}: {len(lines):,}")
    for line in lines[:SHOWN]:
        say(f"  {shown(line)}")
    if len(lines) > SHOWN:
        say(f"  and {len(lines) - SHOWN:,} more: --json lists all")


def _show_repaired(done: Repaired) -> None:
    say(
        f"repaired: {_images(done.images)} pending, {_images(done.adopted)} with vectors of"
        f" {counted(done.adopted_shards, 'unknown shard')}, {counted(done.returned, 'shard')} brought back,"
        f" {counted(done.counters, 'counter')} set"
    )
    for place, why in list(done.not_adopted.items())[:SHOWN]:
        say(f"  {shown(f'{place}: not taken over: {why}')}")
    if len(done.not_adopted) > SHOWN:
        say(f"  and {len(done.not_adopted) - SHOWN:,} more: --json lists all")


def _left(report: Report, done: Repaired | None) -> int:
    """How many faults are left."""
    if done is None:
        return report.faults
    unknown = sum(place in done.not_adopted for place in report.unknown)
    unreadable = sum(not fault.fault.lost for fault in report.shard_faults)
    files = len(report.parts) + len(report.unreadable) + len(report.file_faults) + len(report.offline)
    return unknown + unreadable + files


def _next(report: Report, done: Repaired | None, left: int) -> list[str]:
    """What to do now, line by line."""
    if not report.faults:
        return ["sound"]
    ways = []
    if done is None and (report.lost or report.row_faults):
        ways.append(
            "bring lost shards back from a backup, or have their vectors made again: `featd verify --repair`, then"
            " `featd run`"
        )
    elif done is None and (
        report.recount or (report.shard_faults and any(one.aside for one in report.shard_faults))
    ):
        ways.append("`featd verify --repair` puts it right")
    if done is not None and done.images:
        ways.append("`featd run` makes the vectors of the pending images")
    if report.unreadable or any(not one.fault.lost for one in report.shard_faults):
        ways.append(
            "what cannot be read may be whole: check the disk, its mount, and owner and mode of the folders"
        )
    if report.unknown and done is None:
        ways.append(
            "`featd verify --repair` takes over unknown shards that images wait for; featd moves the others to"
            " `unknown` in the store"
        )
    elif done is not None and any(place in done.not_adopted for place in report.unknown):
        ways.append("featd moves the other unknown shards to `unknown` in the store when it runs")
    if report.parts:
        ways.append("featd removes unfinished files when it runs")
    if report.file_faults:
        ways.append("a running featd, or `featd scan`, takes up files that are missing or have changed")
    if report.offline:
        ways.append("check the roots that are offline")
    head = f"{counted(left, 'fault')}{' left' if done is not None else ''}" if left else "repaired"
    return [head, *(f"next: {way}" for way in ways)]


def as_document(report: Report, done: Repaired | None) -> dict[str, Any]:
    """The document of --json."""
    recount = report.recount
    return {
        "sound": not report.faults,
        "shards": {"compared": report.shards, "bytes": report.bytes, "needless": report.needless},
        "images": {"compared": report.images, "files": report.files},
        "faults": {
            "shards": [
                {"id": one.id, "path": one.path, "fault": one.fault, "images": one.images, "why": one.why}
                | {"aside": one.aside}
                for one in report.shard_faults
            ],
            "images": [
                {"id": one.image_id, "path": one.path, "shard_id": one.shard_id, "why": one.why}
                for one in report.row_faults
            ],
            "counters": [
                {
                    "state": state,
                    "recorded": recount.counted[state] - lacks,
                    "counted": recount.counted[state],
                }
                for state, lacks in recount.states.items()
            ],
            "live_rows": [
                {"shard_id": shard, "lacking": lacks} for shard, lacks in recount.live_rows.items()
            ],
            "unknown": report.unknown,
            "unfinished": report.parts,
            "unreadable": [{"folder": folder, "why": why} for folder, why in report.unreadable],
            "files": [asdict(one) for one in report.file_faults],
            "offline": report.offline,
        },
        "kept_aside": report.kept_aside,
        "foreign": report.foreign,
        "repaired": None if done is None else asdict(done),
    }


def _images(number: int) -> str:
    return counted(number, "image")
