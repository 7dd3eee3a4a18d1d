"""The metrics: right, readable for Prometheus whatever names there are, and there when the catalog is not."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from featd import clock
from featd.catalog import connect, hosts, retry, stats, values
from featd.catalog.schema import images
from featd.report.measures import Measures, Measuring
from featd.report.running import Daemon
from featd.report.watched import Watched
from featd.states import Kind
from featd.web.metrics import METRICS, exposition
from filled import Filled

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs/monitoring.md").read_text(encoding="utf-8")


class Scrape:
    """What one scrape tells. `scrape["images", {"state": "done"}]` is a value; None where there is none."""

    def __init__(self, text: str) -> None:
        self.samples = [one for family in text_string_to_metric_families(text) for one in family.samples]

    def __getitem__(self, wanted: tuple[str, dict[str, str]] | str) -> float | None:
        name, labels = (wanted, {}) if isinstance(wanted, str) else wanted
        found = [one.value for one in self.samples if one.name == f"featd_{name}" and one.labels == labels]
        assert len(found) <= 1, f"{wanted} twice"
        return found[0] if found else None

    @property
    def names(self) -> set[str]:
        return {one.name.removeprefix("featd_") for one in self.samples}


def scrape(filled: Filled, measuring: Measuring | None = None) -> Scrape:
    measuring = measuring or Measuring(filled.catalog, Watched.of(filled.settings))
    return Scrape(exposition(measuring.step().report).decode())


def test_counts_of_images_shards_and_changes(filled: Filled) -> None:
    filled.done(["a", "b", "c"])
    filled.failed("bad", Kind.DECODE_CORRUPT)
    filled.enqueue(["d"])
    filled.gone("c")
    told = scrape(filled)
    states = ("pending", "claimed", "done", "failed", "gone")
    assert [told["images", {"state": state}] for state in states] == [1, 0, 2, 1, 1]
    assert told["failed_images", {"kind": "decode.corrupt"}] == 1
    assert told["failed_images", {"kind": "read.io"}] == 0
    assert (told["shards"], told["shard_rows"], told["shard_live_rows"]) == (1, 3, 3)
    assert told["store_needed_bytes"] == pytest.approx((told["shard_bytes"] or 0) / 3, abs=1)
    assert told["root_up", {"root": str(filled.roots[0])}] == 1
    assert told["catalog_up"] == 1


def test_totals_only_grow_and_are_of_a_device(filled: Filled) -> None:
    at = {"host": "here", "device": "cpu:0"}
    filled.done(["a", "b"])
    filled.failed("bad", Kind.DECODE_CORRUPT)
    filled.end_lease()
    filled.lease = filled.open_lease()
    filled.done(["c"])
    filled.gone("a")
    connect.transact(filled.catalog, retry.retry, [3])
    told = scrape(filled)
    assert told["worker_done_images_total", at] == 3
    assert told["worker_failed_images_total", at] == 1
    assert told["images", {"state": "failed"}] == 0


def test_how_long_images_have_been_due(filled: Filled) -> None:
    root = str(filled.roots[0])
    filled.enqueue(["later"], delay_seconds=500.0)
    assert scrape(filled)["overdue_seconds", {"root": root}] == 0, "not due yet"
    filled.enqueue(["due"])
    past = clock.utcnow() - timedelta(seconds=60)
    with filled.catalog.begin() as conn:
        conn.execute(sa.update(images).where(images.c.path == "due").values(not_before=past))
    assert 55 < (scrape(filled)["overdue_seconds", {"root": root}] or 0) < 90
    filled.claim()
    assert scrape(filled)["overdue_seconds", {"root": root}] == 0, "a worker has it"


def test_workers_and_their_shares(filled: Filled) -> None:
    at = {"host": "here", "device": "cpu:0"}
    share = {"wait": 0.0, "decode": 0.25, "forward": 0.7, "write": 0.05}
    filled.renew({"state": "working", "images_per_second": 12.5, "share": share, "batch": 16})
    told = scrape(filled)
    assert told["workers", {"host": "here", "state": "working"}] == 1
    assert told["workers", {"host": "here", "state": "idle"}] == 0
    assert told["worker_images_per_second", at] == 12.5
    assert told["worker_batch_images", at] == 16
    assert 50 < (told["worker_lease_seconds", at] or 0) <= 60
    assert {kind: told["worker_time_ratio", {**at, "kind": kind}] for kind in share} == share


def test_two_leases_of_a_device_make_one_line_and_the_newer_one_counts(filled: Filled) -> None:
    """A worker that died holds its lease until the janitor ends it."""
    filled.renew({"state": "working", "images_per_second": 1.0})
    filled.lease = filled.open_lease()
    filled.renew({"state": "working", "images_per_second": 2.0})
    told = scrape(filled)
    assert told["worker_images_per_second", {"host": "here", "device": "cpu:0"}] == 2.0
    assert told["workers", {"host": "here", "state": "working"}] == 2


def test_what_the_hosts_say_of_roots_and_events(filled: Filled) -> None:
    report: dict[str, Any] = {
        "watching": 2,
        "overflows": 3,
        "ignored": {"/r": {"txt": 4, "md": 1}},
        "held": ["/r"],
    }
    connect.transact(filled.catalog, hosts.report_ingest, "here", report, 60.0)
    filled.renew({"state": "working", "doubted": {"/r": 2}})
    told = scrape(filled)
    assert told["watched_roots", {"host": "here"}] == 2
    assert told["watch_overflows_total", {"host": "here"}] == 3
    assert told["ignored_files", {"root": "/r"}] == 5
    assert (told["root_held", {"root": "/r"}], told["root_doubted", {"root": "/r"}]) == (1, 1)
    connect.transact(filled.catalog, hosts.report_ingest, "here", report, 0.0)
    told = scrape(filled)
    assert (told["watched_roots", {"host": "here"}], told["root_held", {"root": "/r"}]) == (0, 0), (
        "it has ended"
    )
    assert told["watch_overflows_total", {"host": "here"}] == 3


def test_what_the_janitor_leaves_in_the_catalog(filled: Filled) -> None:
    filled.done(["a"])
    begun = "2026-01-02T03:04:05+00:00"
    with connect.reading(filled.catalog) as conn:
        path = conn.scalar(sa.text("SELECT path FROM shards"))
    for name, value in (
        (stats.ROUND, {"begun_at": begun, "after": 1, "newest": 4}),
        (stats.UNKNOWN, {"files": 2, "bytes": 4096}),
        (stats.FAULTY, {path: "missing", "shards/long-gone.h5": "missing"}),
        (hosts.LAST_SCAN, begun),
    ):
        connect.transact(filled.catalog, values.set_value, name, value)
    told = scrape(filled)
    assert told["verify_round_start_timestamp_seconds"] == told["last_scan_timestamp_seconds"] == 1767323045
    assert told["verify_round_done_ratio"] == 0.25
    assert (told["unknown_shards"], told["unknown_shard_bytes"]) == (2, 4096)
    assert told["faulty_shards"] == 1, "no image names the other one"


def test_names_of_any_bytes_arrive(filled: Filled) -> None:
    name = 'a "b"\\\n\udcff{}é'
    report: dict[str, Any] = {"watching": 0, "overflows": 0, "held": [name]}
    connect.transact(filled.catalog, hosts.report_ingest, "here", report, 60.0)
    shown = 'a "b"\\\n\\udcff{}é'
    assert scrape(filled)["root_held", {"root": shown}] == 1


def test_without_the_catalog_the_host_is_still_told_of(tmp_path: Path) -> None:
    made = Filled(tmp_path / "instance", f"sqlite:///{tmp_path / 'featd.db'}", (tmp_path / "images",))
    made.done(["a"])
    measuring = Measuring(made.catalog, Watched.of(made.settings))
    assert scrape(made, measuring)["catalog_up"] == 1
    (tmp_path / "featd.db").rename(tmp_path / "away.db")
    told = scrape(made, measuring)
    assert told["catalog_up"] == 0
    assert told["images", {"state": "done"}] is None, "an old number would look like a true one"
    assert told["root_up", {"root": str(made.roots[0])}] == 1
    assert math.isfinite(told["store_free_bytes"] or math.nan)
    (tmp_path / "away.db").rename(tmp_path / "featd.db")
    assert scrape(made, measuring)["images", {"state": "done"}] == 1
    made.catalog.dispose()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_database_out_of_reach_is_told_of(filled: Filled) -> None:
    url = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    away = connect.open_catalog(url)
    told = scrape(filled, Measuring(away, Watched.of(filled.settings)))
    assert told["catalog_up"] == 0
    assert told["root_up", {"root": str(filled.roots[0])}] == 1


def test_where_nothing_could_be_measured_in_time_two_metrics_are_left() -> None:
    told = Scrape(exposition(None).decode())
    assert told.names == {"build_info", "catalog_up"}
    assert told["catalog_up"] == 0


def test_processes_of_the_host() -> None:
    children = [
        {"name": "janitor", "state": "ready", "deaths_ever": 0},
        {"name": "worker-0", "state": "ready", "deaths_ever": 2},
        {"name": "worker-1", "state": "down", "deaths_ever": 5},
    ]
    says = {
        "started_at": "2026-01-02T03:04:05+00:00",
        "reload": "new configuration refused: x",
        "children": children,
    }
    found = Measures(Daemon(pid=1, says=says), 0, None, {}, None)
    told = Scrape(exposition(found).decode())
    assert told["processes", {"kind": "worker", "state": "ready"}] == 1
    assert told["processes", {"kind": "worker", "state": "down"}] == 1
    assert told["processes", {"kind": "janitor", "state": "down"}] == 0
    assert told["process_deaths_total", {"kind": "worker"}] == 7
    assert told["config_last_reload_successful"] == 0
    assert told["start_time_seconds"] == 1767323045
    assert told["store_free_bytes"] is None


def test_every_metric_stands_in_the_page_and_no_other() -> None:
    rows = re.findall(r"^\| `featd_(\w+)` \| (\w+) \|(.*?)\| (.+) \|$", PAGE, re.MULTILINE)
    described = {name: (kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels, _ in rows}
    assert [row[0] for row in rows] == list(METRICS), "in the same order"
    for name, metric in METRICS.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        assert described[name] == (kind, list(metric.labels))


LABELS = {"state", "kind", "device", "host", "root", "version"}
UNITS = {"seconds", "bytes", "ratio"}


@pytest.mark.parametrize("name", METRICS)
def test_names_have_base_units_and_few_labels(name: str) -> None:
    metric = METRICS[name]
    assert set(metric.labels) <= LABELS
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
    assert not re.search(r"_(ms|minutes|hours|days|kb|mb|gb|percent|count)(_|$)", name)
    if any(unit in metric.help.lower() for unit in ("bytes of", "free bytes", "unix time")):
        assert UNITS & set(name.removesuffix("_total").rsplit("_", 1)[-1:]), "the unit comes last"
    assert metric.help.endswith(".")
