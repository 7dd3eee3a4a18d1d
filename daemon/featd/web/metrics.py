"""/metrics: the measures in the text format of Prometheus. docs/monitoring.md has a line for each metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from featd import __version__
from featd.report.measures import Measures, OfCatalog
from featd.report.status import rate_of, shares_of, state_of
from featd.states import Kind, State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

WORKER_STATES = ("working", "idle", "starting", "stopping")
PROCESS_STATES = (
    "ready",
    "starting",
    "waiting",
    "backing_off",
    "hung",
    "down",
    "restarting",
    "stopping",
    "finished",
)

Labels = tuple[str, ...]
Value = tuple[str, float, Labels]
"""The name of a metric, without `featd_`; the value; the values of its labels."""


@dataclass(frozen=True, slots=True)
class Described:
    """What is said of a metric."""

    help: str
    labels: Labels = ()


DEVICE = ("host", "device")
METRICS = {
    "build_info": Described("The version of featd that answers; always 1.", ("version",)),
    "catalog_up": Described(
        "1 where the catalog answered; 0 where not, and everything it tells is left out."
    ),
    # Of this host
    "start_time_seconds": Described("When featd started on this host, as Unix time."),
    "processes": Described("Processes of this host's featd, by kind and state.", ("kind", "state")),
    "process_deaths_total": Described("Processes that died without being asked to.", ("kind",)),
    "config_last_reload_successful": Described(
        "0 where the last reload was refused, or could not be finished."
    ),
    "store_free_bytes": Described("Free bytes on the disk of the store."),
    "store_min_free_bytes": Described("store.min_free: with less free, workers claim nothing."),
    "root_up": Described("1 where this host can read the root; 0 where it is offline.", ("root",)),
    # Of the catalog: the same on every host
    "images": Described("Images in the catalog, by state.", ("state",)),
    "failed_images": Described("Images that are failed now, by kind of failure.", ("kind",)),
    "worker_done_images_total": Described("Images that workers recorded as done.", DEVICE),
    "worker_failed_images_total": Described("Images that workers recorded as failed.", DEVICE),
    "overdue_seconds": Described("How long the pending image that is due longest has been due.", ("root",)),
    "workers": Described("Workers with a live lease, by state.", ("host", "state")),
    "paused": Described("1 where featd is paused: the workers of the host claim nothing.", ("host",)),
    "worker_images_per_second": Described("Images per second over the last 30 seconds.", DEVICE),
    "worker_time_ratio": Described(
        "The part of the last 30 seconds that went into: wait (nothing to claim), decode, forward, write.",
        (*DEVICE, "kind"),
    ),
    "worker_batch_images": Described("Images that go through the net at once.", DEVICE),
    "worker_lease_seconds": Described("Time until the lease ends, unless it is renewed.", DEVICE),
    "shards": Described("Shards in the store."),
    "shard_rows": Described("Vectors in the shards."),
    "shard_live_rows": Described("Vectors in the shards that images name."),
    "shard_bytes": Described("Bytes of the shards."),
    "retired_shards": Described("Shards that were merged into others, and are removed soon."),
    "retired_shard_bytes": Described("Bytes of the shards that were merged into others."),
    "unknown_shards": Described("Shards in the store that the catalog does not know."),
    "unknown_shard_bytes": Described("Bytes of the shards that the catalog does not know."),
    "faulty_shards": Described("Shards that images name and that are missing, damaged or unreadable."),
    "store_needed_bytes": Described("About how many bytes the images to do will take in the store."),
    "root_doubted": Described("1 where workers find no file of the root that can be read.", ("root",)),
    "root_held": Described(
        "1 where so many images vanished that featd waits before they are gone.", ("root",)
    ),
    "watched_roots": Described("Roots that this host watches for new files.", ("host",)),
    "watch_overflows_total": Described("Times that the kernel lost events of files.", ("host",)),
    "ignored_files": Described("Files that the last scans passed over.", ("root",)),
    "last_scan_timestamp_seconds": Described("When the scan of a whole root last finished, as Unix time."),
    "verify_round_start_timestamp_seconds": Described(
        "When the janitor began its round through all shards, as Unix time."
    ),
    "verify_round_done_ratio": Described("The part of this round that is done."),
    "feed_changes_total": Described("Changes in the feed so far."),
    "feed_lag_seconds": Described("Age of the oldest change that readers of the feed cannot see yet."),
    "forget_unfinished": Described("1 while a `featd forget` is not finished."),
}
"""In the order of the page. A counter ends in `_total`, all others are gauges."""


def exposition(measures: Measures | None) -> bytes:
    """What a scrape gets. None: nothing could be measured in time."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Measured(measures))
    return generate_latest(registry)


class Measured(Collector):
    """One look, to register with prometheus-client."""

    def __init__(self, measures: Measures | None) -> None:
        self._measures = measures

    def collect(self) -> Iterator[Metric]:
        """Every metric of METRICS that has a value now."""
        found: dict[str, dict[Labels, float]] = {}
        for name, value, labels in _all(self._measures):
            found.setdefault(name, {})[tuple(_printable(label) for label in labels)] = value
        for name, described in METRICS.items():
            if name not in found:
                continue
            counter = name.endswith("_total")
            family = f"featd_{name.removesuffix('_total')}"
            metric = Metric(family, described.help, "counter" if counter else "gauge")
            metric.samples = [
                Sample(f"featd_{name}", dict(zip(described.labels, labels, strict=True)), value)
                for labels, value in found[name].items()
            ]
            yield metric


def _printable(label: str) -> str:
    """Names of roots and hosts may have bytes that are not UTF-8."""
    return label.encode("utf-8", "backslashreplace").decode()


def _all(measures: Measures | None) -> Iterator[Value]:
    yield "build_info", 1, (__version__,)
    of_catalog = None if measures is None else measures.catalog
    yield "catalog_up", int(of_catalog is not None), ()
    if measures is not None:
        yield from _of_host(measures)
    if of_catalog is not None:
        yield from _of_images(of_catalog)
        yield from _of_workers(of_catalog)
        yield from _of_store(of_catalog)
        yield from _of_ingest(of_catalog)
        yield from _of_roots(of_catalog, measures.roots if measures is not None else ())


def _of_host(measures: Measures) -> Iterator[Value]:
    says = measures.daemon.says
    if "started_at" in says:
        yield "start_time_seconds", datetime.fromisoformat(says["started_at"]).timestamp(), ()
        yield "config_last_reload_successful", int(not says["reload"]), ()
    children = says.get("children", [])
    kinds = [child["name"].partition("-")[0] for child in children]
    states = Counter(zip(kinds, (child["state"] for child in children), strict=True))
    for kind in dict.fromkeys(kinds):
        for state in PROCESS_STATES:
            yield "processes", states[kind, state], (kind, state)
        of_kind = (child for child, its in zip(children, kinds, strict=True) if its == kind)
        yield "process_deaths_total", sum(child.get("deaths_ever", 0) for child in of_kind), (kind,)
    if measures.free is not None:
        yield "store_free_bytes", measures.free, ()
    yield "store_min_free_bytes", measures.min_free, ()
    for root, online in measures.roots.items():
        yield "root_up", int(online), (root,)


def _of_images(found: OfCatalog) -> Iterator[Value]:
    for state in State:
        yield "images", found.counts[state], (state.value,)
    failed = {line.kind: line.count for line in found.failures}
    for kind in Kind:
        yield "failed_images", failed.get(kind, 0), (kind.value,)
    for total in found.totals:
        yield "worker_done_images_total", total.done, (total.host, total.device)
        yield "worker_failed_images_total", total.failed, (total.host, total.device)
    yield "feed_changes_total", found.changes, ()
    yield "feed_lag_seconds", found.feed_lag_seconds, ()
    yield "forget_unfinished", int(found.forgetting), ()


def _of_workers(found: OfCatalog) -> Iterator[Value]:
    hosts = {report_host for report_host, report in found.reports.items() if report.live}
    states = Counter((worker.host, state_of(worker)) for worker in found.workers)
    for host in sorted(hosts | {worker.host for worker in found.workers}):
        for state in WORKER_STATES:
            yield "workers", states[host, state], (host, state)
        yield "paused", int(any(pause.host in (None, host) for pause in found.pauses)), (host,)
    # Where a dead worker's lease has not ended yet, the newer one of the same device counts: it comes last.
    for worker in found.workers:
        at = (worker.host, worker.device)
        yield "worker_images_per_second", rate_of(worker), at
        yield "worker_lease_seconds", worker.expires_in_seconds, at
        for kind, share in shares_of(worker).items():
            yield "worker_time_ratio", share, (*at, kind)
        if "batch" in worker.shares:
            yield "worker_batch_images", worker.shares["batch"], at


def _of_store(found: OfCatalog) -> Iterator[Value]:
    made = found.shards
    yield "shards", made.count, ()
    yield "shard_rows", made.rows, ()
    yield "shard_live_rows", made.live_rows, ()
    yield "shard_bytes", made.bytes, ()
    yield "retired_shards", made.retired, ()
    yield "retired_shard_bytes", made.retired_bytes, ()
    yield "unknown_shards", found.unknown["files"], ()
    yield "unknown_shard_bytes", found.unknown["bytes"], ()
    yield "faulty_shards", found.faulty, ()
    if found.needed_bytes is not None:
        yield "store_needed_bytes", found.needed_bytes, ()
    if found.round is not None:
        begun = datetime.fromisoformat(found.round["begun_at"]).timestamp()
        yield "verify_round_start_timestamp_seconds", begun, ()
        newest = found.round["newest"]
        yield "verify_round_done_ratio", found.round["after"] / newest if newest else 1.0, ()


def _of_ingest(found: OfCatalog) -> Iterator[Value]:
    if found.last_scan is not None:
        yield "last_scan_timestamp_seconds", found.last_scan.timestamp(), ()
    for host, told in sorted(found.reports.items()):
        yield "watch_overflows_total", told.report["overflows"], (host,)
        yield "watched_roots", told.report["watching"] if told.live else 0, (host,)


def _of_roots(found: OfCatalog, configured: Iterable[str]) -> Iterator[Value]:
    reports = [told.report for told in found.reports.values()]
    live = [told.report for told in found.reports.values() if told.live]
    doubted = {root for worker in found.workers for root in worker.shares.get("doubted", {})}
    held = {root for report in live for root in report.get("held", ())}
    ignored: dict[str, Any] = {}
    for report in reports:
        ignored |= report.get("ignored", {})
    for root in sorted({*configured, *found.overdue_seconds, *doubted, *held, *ignored}):
        yield "overdue_seconds", found.overdue_seconds.get(root, 0.0), (root,)
        yield "root_doubted", int(root in doubted), (root,)
        yield "root_held", int(root in held), (root,)
        yield "ignored_files", sum(ignored.get(root, {}).values()), (root,)
