"""`featd status`: the document that scripts rely on, and a screen that says what holds featd back."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import socket
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from featd import clock
from featd.catalog import connect, hosts
from featd.catalog.stats import FailureLine, ShardTotals, WorkerLine
from featd.report import status as report_status
from featd.report import words
from featd.report.running import Daemon
from featd.report.status import Report, as_json, holds_back
from featd.states import Kind, State
from featd.worker.shares import Shares
from featd_cli import status_screen
from featd_cli.instance import Instance
from featd_cli.main import main
from featd_cli.status_watch import SILENT_SECONDS, Looker
from filled import FINGERPRINT, Filled


def status(filled: Filled, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["--config", str(filled.config), "status", "--json"]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_a_lease_is_judged_by_the_configuration_of_its_worker(
    filled: Filled, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lease of 60 s on another host; this host has leases of 600 s."""
    filled.config.write_text(filled.config.read_text() + "[workers]\nlease_seconds = 600\n")

    def warnings(shares: dict[str, Any]) -> list[str]:
        filled.renew({"state": "working", **shares})
        return [told for told in status(filled, capsys)["warnings"] if "has not renewed its lease" in told]

    assert warnings({"lease_seconds": 60.0}) == []
    assert len(warnings({"lease_seconds": 600.0})) == 1
    assert warnings({}) == [], "a worker of an earlier featd does not say"


def test_the_document(filled: Filled, capsys: pytest.CaptureFixture[str]) -> None:
    filled.done(["a.jpg", "b.jpg"])
    filled.failed("c.jpg", Kind.DECODE_CORRUPT)
    filled.enqueue(["d.jpg", "e.jpg"])
    filled.claim(1)
    share = {"wait": 0.0, "decode": 0.25, "forward": 0.7, "write": 0.05}
    filled.renew({"state": "working", "images_per_second": 4.0, "share": share})
    document = status(filled, capsys)
    assert document["instance"] == filled.instance
    assert document["fingerprint"] == FINGERPRINT
    assert document["images"] == {
        "total": 5, "pending": 1, "claimed": 1, "done": 2, "failed": 1, "gone": 0,
    }  # fmt: skip
    assert document["shards"]["count"] == 1
    assert document["shards"]["rows"] == 2
    assert document["shards"]["bytes"] > 0
    assert document["rate"] == {"images_per_second": 4.0, "eta_seconds": 0.5}
    (worker,) = document["workers"]
    assert worker["device"] == "cpu:0"
    assert worker["host"] == "here"
    assert worker["pid"] == os.getpid()
    assert worker["state"] == "working"
    assert (worker["done"], worker["failed"], worker["images_per_second"]) == (2, 1, 4.0)
    assert 50 < worker["lease_expires_in"] <= 60
    assert worker["share"] == share
    assert document["failures"] == [
        {"kind": "decode.corrupt", "count": 1, "example": f"{filled.roots[0]}/c.jpg"}
    ]
    ingest = document["ingest"]
    assert (ingest["watching"], ingest["last_scan_at"], ingest["overflows"]) == (0, None, 0)
    assert document["daemon"]["failed_start"] is None
    assert document["warnings"] == []


def test_an_empty_instance(filled: Filled, capsys: pytest.CaptureFixture[str]) -> None:
    filled.end_lease()
    document = status(filled, capsys)
    assert document["fingerprint"] is None
    assert document["workers"] == []
    assert document["rate"] == {"images_per_second": 0.0, "eta_seconds": None}
    assert document["holds_back"].startswith("not scanned yet: `featd run` looks")


def test_a_dead_worker_is_not_shown(filled: Filled, capsys: pytest.CaptureFixture[str]) -> None:
    filled.enqueue(["a.jpg"])
    filled.end_lease()
    document = status(filled, capsys)
    assert document["workers"] == []
    assert document["holds_back"] == "no worker is running: start `featd run`"


def test_a_running_featd_without_workers_is_not_called_down(
    filled: Filled, capsys: pytest.CaptureFixture[str]
) -> None:
    filled.enqueue(["a.jpg"])
    filled.end_lease()
    lock = filled.store / "run" / f"{socket.gethostname()}.lock"
    lock.parent.mkdir()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711")
        file.flush()
        assert "pid 4711" in status(filled, capsys)["holds_back"]
    assert "start `featd run`" in status(filled, capsys)["holds_back"]


def says(filled: Filled, host: str, **said: Any) -> None:
    report = {"watching": 1, "notes": {}, "overflows": 0, "rewatched": 0, "handler_errors": 0, **said}
    connect.transact(filled.catalog, lambda conn: hosts.report_ingest(conn, host, report, 60.0))


def test_after_a_kill_of_everything_nothing_is_said_to_run(
    filled: Filled, capsys: pytest.CaptureFixture[str]
) -> None:
    here = socket.gethostname()
    filled.enqueue(["a.jpg"])
    filled.end_lease()
    filled.lease = filled.open_lease(host=here)
    filled.renew({"state": "working", "images_per_second": 4.0, "share": {}})
    says(filled, here, notes={"/r": "offline"})
    duty = hosts.scan_of("/r")
    connect.transact(filled.catalog, lambda conn: hosts.take_duties(conn, [duty], here, 60.0))
    lock = filled.store / "run" / f"{here}.lock"
    lock.parent.mkdir()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711")
        file.flush()
        document = status(filled, capsys)
        assert document["daemon"]["pid"] == 4711
        assert document["workers"][0]["state"] == "working"
        assert (document["ingest"]["watching"], document["ingest"]["scanned_by"]) == (1, {"/r": here})
        assert document["warnings"] == ["root /r: offline"]
    document = status(filled, capsys)
    assert document["workers"][0]["state"] == "dead"
    assert document["rate"]["images_per_second"] == 0.0
    assert (document["ingest"]["watching"], document["ingest"]["scanned_by"]) == (0, {})
    assert "featd was killed" in document["holds_back"]
    assert document["warnings"] == []
    # Without the store it cannot be told who runs: the lease is believed.
    filled.store.rename(filled.folder / "elsewhere")
    assert status(filled, capsys)["workers"][0]["state"] == "working"


def test_another_hosts_worker_is_believed(filled: Filled, capsys: pytest.CaptureFixture[str]) -> None:
    says(filled, "here")
    assert status(filled, capsys)["workers"][0]["state"] == "starting"
    filled.done(["a.jpg"])
    document = status(filled, capsys)
    assert document["workers"][0]["state"] == "working"  # though it has not told yet
    assert document["ingest"]["watching"] == 1


def test_a_start_that_failed_is_a_warning_until_featd_runs(
    filled: Filled, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = filled.store / "run" / socket.gethostname()
    folder.mkdir(parents=True)
    (folder / "failed_start.json").write_text('{"at": "x", "exit_code": 78, "message": "no such blob"}')
    document = status(filled, capsys)
    assert document["daemon"]["failed_start"]["message"] == "no such blob"
    assert document["warnings"] == ["featd stopped with an error: no such blob"]


@pytest.mark.parametrize(
    "content",
    [b"[" * 200_000, b"\xff\xfe", b"5", b'{"children": {"a": 1}, "reload": 7}', b'{"children": [1, {}]}'],
)
def test_what_others_left_in_the_run_folder_breaks_nothing(
    filled: Filled, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    folder = filled.store / "run" / socket.gethostname()
    folder.mkdir(parents=True)
    for name in ("failed_start.json", "supervisor.json"):
        (folder / name).write_bytes(content)
    status(filled, capsys)
    with folder.with_name(f"{folder.name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(content)
        lock.flush()
        status(filled, capsys)


def test_a_fifo_in_the_run_folder_is_not_waited_for(
    filled: Filled, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = filled.store / "run" / socket.gethostname()
    folder.mkdir(parents=True)
    os.mkfifo(folder / "failed_start.json")
    assert status(filled, capsys)["daemon"]["failed_start"] is None


def test_watch_and_json_are_not_for_the_same(filled: Filled, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(filled.config), "status", "--watch", "--json"]) == 2
    assert "--json" in capsys.readouterr().err


def test_back_off_and_offline_roots_are_named(filled: Filled, capsys: pytest.CaptureFixture[str]) -> None:
    filled.renew({"state": "idle"})
    filled.enqueue(["a.jpg"], delay_seconds=25.0)
    assert re.search(r"retried in 2[345] s", status(filled, capsys)["holds_back"])
    (filled.roots[0] / "notes.txt").unlink()
    document = status(filled, capsys)
    assert f"{filled.roots[0]} (empty)" in document["holds_back"]
    assert any("offline" in warning for warning in document["warnings"])


def test_a_store_that_is_not_mounted_is_a_warning(filled: Filled, capsys: pytest.CaptureFixture[str]) -> None:
    filled.store.rename(filled.folder / "elsewhere")
    (warning,) = status(filled, capsys)["warnings"]
    assert "is the disk mounted?" in warning


# The screen


def report(**changes: Any) -> Report:
    shares = {
        "state": "working",
        "images_per_second": 1234.5,
        "share": {"wait": 0.0, "decode": 0.9, "forward": 0.1, "write": 0.0},
    }
    worker = WorkerLine(
        "cuda:0", "a-rather-long-host-name.example.org", 4194304, "onnxruntime", 123_456_789, 98_765, datetime.now(UTC),
        59.6, shares,
    )  # fmt: skip
    values: dict[str, Any] = {
        "instance": "0b2d6c3e-0000-4000-8000-000000000000",
        "catalog": "postgresql+psycopg://featd@a-rather-long-host-name.example.org/with-a-long-name-of-a-database",
        "fingerprint": "f" * 64,
        "counts": {
            State.PENDING: 876_543_210,
            State.CLAIMED: 96,
            State.DONE: 123_456_789,
            State.FAILED: 98_765,
            State.GONE: 12,
        },
        "shards": ShardTotals(30_141, 123_500_000, 123_456_789, 2_023_424_000_000),
        "workers": [worker, worker],
        "failures": [
            FailureLine("decode.unsupported", 98_765, "/data/" + "long/" * 40 + "漢字の\x1b[31m.jpg")
        ],
        "ingest": {
            "watching": 0,
            "last_scan_at": datetime.now(UTC).isoformat(),
            "scanned_by": {"/data": "h" * 60},
        },
        "decoders": 2,
        "warnings": ["root /data/" + "long/" * 20 + " is offline (empty): its images keep their state"],
    }
    return Report(**{**values, **changes})


def screen(shown: Report) -> list[str]:
    return [line.plain for line in status_screen.lines(shown, blocks=False)]


def test_the_screen_fits_80_columns_whatever_it_shows() -> None:
    from rich.cells import cell_len

    lines = screen(report())
    assert not [line for line in lines if "\x1b" in line]
    unbroken = [line for line in lines if cell_len(line) > 80 and "long/long/" not in line]
    assert unbroken == []
    text = "\n".join(lines)
    assert "123,456,789" in text
    assert "about 4 d 2 h left" in text
    assert "123,500,000 vectors, 2.0 TB; 43,211 superseded" in text
    assert "raise workers.decoders" in text


@pytest.mark.parametrize("workers", [0, 1, 2, 8, 64])
@pytest.mark.parametrize("height", [6, 10, 14, 18, 24, 50])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_fits_any_terminal_and_keeps_what_matters_most(workers: int, height: int, width: int) -> None:
    from rich.cells import cell_len

    one = report().workers[0]
    failures = [FailureLine(kind.value, 7, "/data/x.jpg") for kind in Kind]
    shown = report(workers=[one] * workers, failures=failures)
    lines = [line.plain for line in status_screen.fitted(shown, blocks=True, width=width, height=height)]
    assert len(lines) <= height
    if width >= 80:
        assert not [line for line in lines if cell_len(line) > width and "long/" not in line]
    text = "\n".join(lines)
    assert "of 1,000,098,860 processed" in text
    assert ("no worker is running" if not workers else "bottleneck: decoding") in text.lower()
    if height >= 10:
        assert "warning" in text
    if height >= 24 and workers == 64:
        shown_workers = sum(line.startswith("cuda:0") for line in lines)
        assert f"... and {64 - shown_workers} more" in text
        assert len(lines) >= height - 1  # no room is wasted


def test_the_screen_begins_with_whether_featd_runs() -> None:
    says = {"started_at": "2026-11-26T10:00:30+00:00"}
    daemons = {
        "* running (pid 4242, since 2026-11-26 10:00 UTC)": Daemon(pid=4242, says=says),
        "- not running": Daemon(down=True),
        "? unknown whether featd runs: the store cannot be read": Daemon(),
    }
    for first, daemon in daemons.items():
        assert screen(report(daemon=daemon))[0] == first
        assert as_json(report(daemon=daemon))["running"] is (daemon.pid is not None)


def test_where_the_time_goes_is_drawn_to_scale() -> None:
    (line,) = [line for line in screen(report(workers=report().workers[:1])) if line.startswith("cuda:0")]
    assert (line.count("d"), line.count("f")) == (26 + len("cuda"[2:3]), 3)
    nothing = WorkerLine("cuda:0", "h", 1, "caffe", 0, 0, datetime.now(UTC), 59.0, {})
    (line,) = [line for line in screen(report(workers=[nothing])) if line.startswith("cuda:0")]
    assert "f" not in line


def test_the_bar_is_full_only_when_all_is_done() -> None:
    counts = dict.fromkeys(State, 0) | {State.DONE: 99_999, State.PENDING: 1}
    (bar,) = [line for line in screen(report(counts=counts)) if "of 100,000 processed" in line]
    assert "99.9 %" in bar
    assert "-" in bar.split()[0]
    counts = dict.fromkeys(State, 0) | {State.DONE: 9_999, State.FAILED: 1, State.GONE: 7}
    (bar,) = [line for line in screen(report(counts=counts)) if "of 10,000 processed" in line]
    assert "100.0 %" in bar
    assert bar.split()[0].strip("#") == "x"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("decode", "raise workers.decoders"),
        ("forward", "bottleneck: the neural net"),
        ("write", "disk"),
        ("wait", "waited for images"),
    ],
)
def test_the_largest_share_is_the_limit(kind: str, words: str) -> None:
    shown = report()
    shares = {
        "state": "working",
        "share": dict.fromkeys(("wait", "decode", "forward", "write"), 0.1) | {kind: 0.7},
    }
    worker = shown.workers[0]
    busy = WorkerLine("cpu:0", "h", 1, "caffe", 0, 0, worker.started_at, 50.0, shares)
    assert words in holds_back(report(workers=[busy]))


def test_all_done_and_some_failed() -> None:
    counts = dict.fromkeys(State, 0) | {State.DONE: 5, State.FAILED: 2}
    corrupt, denied = FailureLine("decode.corrupt", 2, "/a.jpg"), FailureLine("read.denied", 1, "/b.jpg")
    told = holds_back(report(counts=counts, failures=[corrupt]))
    assert "repair or replace the files" in told
    assert "retry-failed" not in told  # as they are, the files would fail again
    assert holds_back(report(counts=counts, failures=[denied])).endswith("again with `featd retry-failed`")
    told = holds_back(report(counts=counts | {State.FAILED: 3}, failures=[corrupt, denied]))
    assert "`featd retry-failed`; of these, 2 need other files: repair or replace" in told
    assert holds_back(report(counts=dict.fromkeys(State, 0) | {State.DONE: 5})) == "every image is processed"


def idle(**changes: Any) -> Report:
    """Nothing is running and one image is pending."""
    counts = dict.fromkeys(State, 0) | {State.PENDING: 1}
    ingest = {"watching": 0, "last_scan_at": "2026-01-01T00:00:00+00:00", "scanned_by": {}}
    return report(
        **{"ingest": ingest, "workers": [], "counts": counts, "failures": [], "warnings": [], **changes}
    )


def worker(state: str | None, seconds: float = 400.0) -> WorkerLine:
    started = clock.utcnow() - timedelta(seconds=seconds)
    return WorkerLine("cpu:0", "h", 1, "caffe", 0, 0, started, 50.0, {"state": state} if state else {})


def test_an_old_worker_is_not_called_new() -> None:
    for state in ("working", None):
        assert holds_back(idle(workers=[worker(state, 5.0)])).startswith("workers have just started")
        assert "no finished step for 400 s" in holds_back(idle(workers=[worker(state)]))
    assert "workers are stopping" in holds_back(idle(workers=[worker("stopping")]))
    assert "about to take 1 image;" in holds_back(idle(workers=[worker("idle")]))
    claimed = dict.fromkeys(State, 0) | {State.CLAIMED: 3}
    assert "the last 3 images are claimed" in holds_back(idle(workers=[worker("idle")], counts=claimed))


def test_a_step_that_lasts_is_measured_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    shares = Shares()
    with shares.spend("forward"):
        now[0] += 360.0
        assert shares.report("working")["share"]["forward"] == 1.0


def test_why_no_worker_is_there() -> None:
    running = Daemon(pid=7)
    assert "pid 7) is loading the net" in holds_back(idle(daemon=running))
    assert holds_back(idle(daemon=running, store_fault="store /s: the disk is full")) == (
        "no worker can start: store /s: the disk is full"
    )
    child = {"name": "worker-0", "state": "backing_off", "why": "exit code 75", "last_words": "/s: read-only"}
    says = {"children": [{"name": "janitor", "why": "x"}, child]}
    assert holds_back(idle(daemon=Daemon(pid=7, says=says))) == (
        "no worker can start: worker-0 is backing off: exit code 75: /s: read-only"
    )
    assert "see the warning" in holds_back(idle(daemon=Daemon(down=True, failed_start={"message": "x"})))
    assert "whether featd runs is unknown" in holds_back(idle(store_unreadable=True))
    ingest = {"watching": 1, "last_scan_at": None, "scanned_by": {"/a": "elsewhere"}}
    assert "featd runs on elsewhere" in holds_back(idle(daemon=Daemon(down=True), ingest=ingest))


@pytest.mark.parametrize(
    ("ingest", "changes", "words"),
    [
        ({"ignored": {"/a": {"links": 2}}}, {}, "2 symbolic links were passed over: see `follow_symlinks`"),
        ({"ignored": {"/a": {"heic": 2}}}, {}, "none of 2 files matches the `include` patterns"),
        ({"ignored": {"/a": {"heic": 2, "links": 1}}}, {}, "and 1 symbolic link was passed over"),
        ({}, {}, "the roots have no files"),
        ({}, {"offline": {"/a": "empty"}}, "not every root can be read: /a (empty)"),
        ({}, {"roots": 0}, "no [[roots]]"),
        ({"notes": {"/a": "x"}}, {}, "see the warnings"),
        ({"last_scan_at": None}, {"daemon": Daemon(pid=7)}, "its first scan is not finished"),
        ({"last_scan_at": None}, {"daemon": Daemon(down=True)}, "`featd run` looks for images"),
    ],
)
def test_why_there_are_no_images(ingest: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    told = {"watching": 0, "last_scan_at": "2026-01-01T00:00:00+00:00", "scanned_by": {}, **ingest}
    assert words in holds_back(idle(counts=dict.fromkeys(State, 0), ingest=told, **changes))


def test_a_reader_is_not_told_that_featd_cannot_write(
    filled: Filled, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and real(path, mode))
    (warning,) = status(filled, capsys)["warnings"]
    assert "featd cannot write there" in warning
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert status(filled, capsys)["warnings"] == []


def test_the_line_of_shards_fits_80_columns() -> None:
    for line in screen(report(unknown={"files": 1234, "bytes": 5})):
        assert len(line) <= 80 or "long/long/" in line, line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min"), (200, "3 min 20 s"), (18_120, "5 h 2 min"), (86_400, "1 d")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_who_scans_is_shown_where_it_is_not_this_host_alone() -> None:
    def head(scanned_by: dict[str, str]) -> str:
        ingest = {"watching": 1, "last_scan_at": None, "scanned_by": scanned_by}
        (line,) = [line for line in screen(report(ingest=ingest)) if line.startswith("roots")]
        return line

    here = socket.gethostname()
    assert head({}).endswith("last scan: never")
    assert head({"/a": here, "/b": here}).endswith("last scan: never")
    assert head({"/a": "x", "/b": "y", "/c": "x"}).endswith("last scan: never by x, y")


def test_a_pause_behind_a_slow_look_is_no_silence(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    now, real_look = [1000.0], report_status.look
    looks, go_on = threading.Semaphore(0), threading.Event()

    def slow_look(*arguments: Any) -> Report:
        looks.release()
        go_on.wait(20)
        return real_look(*arguments)

    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    monkeypatch.setattr(report_status, "look", slow_look)
    looker = Looker(Instance(filled.settings, filled.catalog))
    looker.start()
    try:
        assert looks.acquire(timeout=20)
        assert looker.take().trouble is None
        now[0] += SILENT_SECONDS + 0.5
        assert "no answer for 4 s" in str(looker.take().trouble)
        go_on.set()
        assert select.select([looker], [], [], 20)[0]  # it answered, and pauses for 14 s
        now[0] += 12.0
        assert looker.take().trouble is None
        assert looker.take().report is not None
    finally:
        go_on.set()
        looker.stop()


def test_what_scans_passed_over_is_shown_by_extension() -> None:
    ignored = {"/a": {"heic": 5, "links": 1}, "/b": {"heic": 2, "txt": 1}}
    ingest = {"watching": 1, "last_scan_at": None, "scanned_by": {}, "ignored": ignored}
    assert "files    9 ignored: heic 7, links 1, txt 1" in screen(report(ingest=ingest))
