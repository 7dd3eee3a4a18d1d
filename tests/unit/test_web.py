"""What the page says, and what it lives through. tests/processes/test_page.py shows it in a browser."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from featd.catalog import connect, enqueue, samples
from featd.catalog.enqueue import FoundFile
from featd.index.update import Keeper
from featd.paths import to_catalog
from featd.report import status
from featd.report.looking import Look
from featd.report.running import Daemon
from featd.report.watched import Watched
from featd.states import Kind, State
from featd.web import events, front, live, pictures, process
from featd.web.front import Front
from filled import Filled
from running import wait_for
from serving import Served, serving

HOSTILE = "<script>alert('x')</script>\u202e\"gpj.png"


@pytest.fixture
def filled(tmp_path: Path, database_url: str) -> Iterator[Filled]:
    made = Filled(tmp_path / "instance", database_url, (tmp_path / "images", tmp_path / "more"))
    yield made
    made.catalog.dispose()


@pytest.fixture
def page(filled: Filled) -> Iterator[Served]:
    with serving(filled.settings) as served:
        yield served


def found(filled: Filled, *names: str | bytes) -> None:
    """Pending rows for files that are there."""
    files = []
    for name in names:
        raw = os.fsencode(name)
        there = Path(filled.roots[0], os.fsdecode(raw)).stat()
        files.append(FoundFile(to_catalog(raw), there.st_size, there.st_mtime_ns))
    connect.transact(filled.catalog, enqueue.enqueue, str(filled.roots[0]), files)


def picture(filled: Filled, name: str, *, size: tuple[int, int] = (600, 800), cut: float = 1.0) -> None:
    """A noisy picture; the first part of it."""
    pixels = np.random.default_rng(7).integers(0, 255, (*size, 3), np.uint8)
    data = cv2.imencode(Path(name).suffix, cv2.GaussianBlur(pixels, (0, 0), 9))[1].tobytes()
    (filled.roots[0] / name).write_bytes(data[: int(cut * len(data))])


def test_it_shows_what_status_shows(filled: Filled, page: Served) -> None:
    filled.done(["a.jpg", "b.jpg"])
    filled.failed("sub/c.jpg", Kind.DECODE_CORRUPT, "no picture in it")
    filled.enqueue(["d.jpg"])
    share = {"wait": 0.0, "decode": 0.25, "forward": 0.7, "write": 0.05}
    filled.renew({"state": "working", "images_per_second": 4.0, "share": share})
    connect.transact(filled.catalog, samples.take)
    answer = page.get("/api/status")
    assert answer.headers["content-type"] == "application/json"
    told = json.loads(answer.body)
    expected = status.as_json(status.look(filled.catalog, Watched.of(filled.settings)))
    for one in (told, expected):
        one["workers"][0].pop("lease_expires_in")
        one["room"].pop("free")
    assert told == json.loads(json.dumps(expected))
    text = re.sub(r"<[^>]*>", "", page.get("/").text)
    for words in (
        "Not running", "Bottleneck: the neural net (70 %); add devices to go faster.", "75.0 %", "of 4 images",
        "decode.corrupt", "no picture in it", "c.jpg", "cpu:0", "working", "4.0 images/s now",
    ):  # fmt: skip
        assert words in text, words


def test_red_is_for_what_does_not_get_on(filled: Filled) -> None:
    filled.enqueue(["a.jpg"])
    filled.renew({"state": "idle"})
    base = status.look(filled.catalog, Watched.of(filled.settings))
    runs = Daemon(pid=1)
    loads = Daemon(pid=1, says={"children": [{"name": "worker-0", "state": "starting"}]})
    working = [replace(base.workers[0], shares={"state": "working"})]

    def tone(daemon: Daemon, warnings: list[str], trouble: str | None = None, **changes: Any) -> str:
        report = replace(base, daemon=daemon, warnings=warnings, **changes)
        return front.tone(Look(Front(report, None, [], [], False), None, trouble))

    assert tone(runs, []) == "good"
    assert tone(runs, ["x"]) == "bad"
    assert tone(runs, ["x"], workers=working) == "warn"
    assert tone(loads, ["x"], workers=[]) == "warn"
    assert tone(runs, ["x"], counts=dict.fromkeys(State, 0)) == "warn"
    assert tone(Daemon(down=True), []) == tone(Daemon(), []) == tone(runs, [], "no answer") == "bad"
    assert front.tone(Look()) == "bad"


def test_hostile_names_are_only_text(filled: Filled, page: Served) -> None:
    raw = b"caf\xe9 \xff\n<b>.jpg"
    for name in (os.fsencode(HOSTILE), raw):
        Path(filled.roots[0], os.fsdecode(name.replace(b"/", b"_"))).write_bytes(b"x")
    names = [HOSTILE.replace("/", "_"), raw]
    found(filled, *names)
    for path in ("/", "/image/1", "/image/2", "/events"):
        if path == "/events":
            with socket.create_connection(("127.0.0.1", page.port)) as client:
                client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
                client.settimeout(20)
                text = b""
                while b"arrivals" not in text or not text.endswith(b"\r\n"):
                    text += client.recv(65536)
            body = text.decode()
        else:
            body = page.get(path).text
        assert "<script>alert" not in body, path
        assert "<b>" not in re.sub(r"<b>[\d.]+ %</b>", "", body), path
        assert "\u202e" not in body, path
    assert "caf\\xe9 \\xff\\x0a&lt;b&gt;.jpg" in page.get("/image/2").text
    asked = page.get("/image?path=%3Cscript%3Ealert(1)%3C/script%3E%22%3E")
    assert asked.code == 404
    assert "<script>alert" not in asked.text


def test_an_image_is_found_as_people_write_it(filled: Filled, page: Served) -> None:
    filled.enqueue(["2026/a b.jpg", "2026/b.jpg", "twice.jpg"])
    filled.enqueue(["twice.jpg"], filled.roots[1])

    def asked(path: str) -> Any:
        from urllib.parse import quote

        return page.get("/image?path=" + quote(path))

    for path in ("2026/a b.jpg", f"{filled.roots[0]}/2026/a b.jpg"):
        assert asked(path).headers["location"] == "/image/1", path
    both = asked("twice.jpg")
    assert both.code == 200
    assert both.text.count('href="/image/') == 2
    begins = asked("2026/")
    assert begins.code == 200
    assert "No image at this path" in begins.text
    assert begins.text.count('href="/image/') == 2
    for path in ("/etc/passwd", "../../etc/passwd", "2026/a b.jpg\0", "nothing", "%", "\ud7ff", "x" * 9000):
        missing = asked(path)
        assert (missing.code, missing.text.count('href="/image/')) == (404, 0), path


def test_an_image_is_explained(filled: Filled, page: Served) -> None:
    filled.failed("c.jpg", Kind.DECODE_CORRUPT, "no picture in it")
    text = re.sub(r"<[^>]*>", "", page.get("/image/1").text)
    assert "failed since" in text
    assert "decode.corrupt: no picture in it" in text
    assert "repair or replace the file" in text
    for path in ("/image/2", "/image/0", "/image/99999999999999999999999", "/image/-1", "/image/x"):
        assert page.get(path).code == 404, path


def shown(page: Served, image_id: int) -> Image.Image | None:
    """The thumbnail; None for the placeholder."""
    answer = page.get(f"/thumbnail/{image_id}")
    assert answer.code == 200
    if answer.headers["content-type"] == "image/svg+xml":
        return None
    assert answer.headers["content-type"] == "image/jpeg"
    assert len(answer.body) < 60_000
    return Image.open(BytesIO(answer.body))


def test_thumbnails_are_small_and_of_damaged_pictures_too(filled: Filled, page: Served) -> None:
    (filled.roots[0] / "nonsense.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    picture(filled, "whole.png")
    picture(filled, "cut.jpg", cut=0.6)
    Image.new("I;16", (64, 64), 40_000).save(filled.roots[0] / "deep.png")
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(filled.roots[0] / "clear.png")
    names = ["nonsense.jpg", "whole.png", "cut.jpg", "deep.png", "clear.png"]
    found(filled, *names)
    ids = {row.path: row.id for row in rows(filled)}
    whole, cut = shown(page, ids["whole.png"]), shown(page, ids["cut.jpg"])
    assert whole is not None
    assert cut is not None
    assert whole.size == cut.size == (320, 240)
    assert shown(page, ids["nonsense.jpg"]) is None
    deep, clear = shown(page, ids["deep.png"]), shown(page, ids["clear.png"])
    assert deep is not None
    assert clear is not None
    assert clear.getpixel((9, 9)) == (255, 255, 255)


def rows(filled: Filled) -> Any:
    from featd.catalog import glance

    with connect.reading(filled.catalog) as conn:
        return glance.newest(conn, 1000)


def test_a_thumbnail_is_of_the_file_that_the_catalog_knows(
    filled: Filled, page: Served, tmp_path: Path
) -> None:
    picture(filled, "a.png")
    (tmp_path / "secret").mkdir()
    picture(filled, "../secret/s.png")
    (filled.roots[0] / "link.png").symlink_to(tmp_path / "secret" / "s.png")
    (filled.roots[0] / "inside.png").symlink_to("a.png")
    found(filled, "a.png", "link.png", "inside.png")
    filled.enqueue(["../secret/s.png"])  # as nothing that featd writes
    filled.enqueue(["b.png"], tmp_path / "foreign")
    ids = {row.path: row.id for row in rows(filled)}
    assert shown(page, ids["a.png"]) is not None
    for name in ("link.png", "inside.png", "../secret/s.png", "b.png"):
        assert shown(page, ids[name]) is None, name
    picture(filled, "a.png", size=(30, 40))
    assert shown(page, ids["a.png"]) is not None, "from the cache"
    with serving(filled.settings) as another:
        assert shown(another, ids["a.png"]) is None


def test_a_picture_that_kills_or_holds_up_the_decoder_costs_its_thumbnail(
    filled: Filled, page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(filled, "a.png")
    picture(filled, "b.png")
    found(filled, "a.png", "b.png")
    real, started = pictures._start, []  # noqa: SLF001 -- the process is what hangs

    async def hangs(module: str, stdin: int) -> Any:
        started.append(module)
        if len(started) == 1:
            return await pictures.asyncio.create_subprocess_exec(
                sys.executable, "-c", "import time; time.sleep(99)", stdin=stdin, stdout=stdin
            )
        return await real(module, stdin)

    monkeypatch.setattr(pictures, "_start", hangs)
    monkeypatch.setattr(pictures, "PICTURE_SECONDS", 0.3)
    assert shown(page, 1) is None
    monkeypatch.setattr(pictures, "PICTURE_SECONDS", 30.0)
    assert shown(page, 2) is not None
    assert shown(page, 1) is None, "not tried again at once"
    assert len(started) == 2


def test_what_is_kept_of_thumbnails_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_CACHED_BYTES", 1000)
    monkeypatch.setattr(pictures, "MOST_NONE", 3)
    kept = pictures.Thumbnails()
    for at in range(100):
        kept._keep((at, 1), b"x" * 300)  # noqa: SLF001
        kept._keep((at, 2), b"")  # noqa: SLF001
    assert list(kept._cache) == [(98, 1), (99, 1)]  # noqa: SLF001
    assert len(kept._none) <= 3  # noqa: SLF001


def test_neighbours_of_an_image(filled: Filled, page: Served) -> None:
    filled.done(["a.jpg", "b.jpg", "c.jpg"])
    filled.enqueue(["d.jpg"])
    ids = {row.path: row.id for row in rows(filled)}
    assert "There is no index yet" in page.get(f"/image/{ids['b.jpg']}/similar").text
    Keeper(filled.catalog, filled.store).update()
    text = page.get(f"/image/{ids['b.jpg']}/similar").text
    assert text.count('class="tile"') == 2
    assert "distance 22.36" in text, "10 further in each of 5 numbers"
    assert "This image has no vector" in page.get(f"/image/{ids['d.jpg']}/similar").text


def test_a_catalog_that_goes_away_is_told_and_waited_for(
    filled: Filled, page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featd.errors import CatalogUnavailableError

    monkeypatch.setattr(live, "pause_after", lambda seconds: 0.0)
    filled.done(["a.jpg"])
    assert "100.0 %" in page.get("/").text
    real, away = front.gather, [True]

    def gather(*arguments: Any) -> Any:
        if away[0]:
            raise CatalogUnavailableError("catalog x is out of reach: connection refused")
        return real(*arguments)

    monkeypatch.setattr(
        page.page.live.looking, "make", lambda: gather(filled.catalog, Watched.of(filled.settings))
    )
    text = page.get("/").text
    assert "catalog x is out of reach" in text
    assert "100.0 %" in text, "the last report stays"
    assert page.get("/api/status").code == 503
    with serving(filled.settings) as fresh:
        monkeypatch.setattr(fresh.page.live.looking, "make", lambda: gather())
        assert "No answer" in fresh.get("/").text
    away[0] = False
    assert page.get("/api/status").code == 200


def test_a_catalog_that_hangs_holds_up_nobody(
    filled: Filled, page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "pause_after", lambda seconds: 0.0)
    assert page.get("/api/status").code == 200
    monkeypatch.setattr(live, "SILENT_SECONDS", 0.2)
    go_on = threading.Event()
    monkeypatch.setattr(page.page.live.looking, "make", lambda: go_on.wait(30))
    try:
        for _ in range(3):
            answer = page.get("/")
            assert "does not respond" in answer.text
            assert answer.code == 200
        assert page.get("/static/style.css").code == 200
    finally:
        go_on.set()


def listen_to_events(page: Served, *, read: bool = True) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", page.port))
    client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    if read:
        client.settimeout(20)
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    return client


def listeners(page: Served) -> int:
    return page.page.stream.listeners


def test_listeners_are_counted_and_bounded(page: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_LISTENERS", 2)
    monkeypatch.setattr(events, "EVERY_SECONDS", 0.1)
    clients = [listen_to_events(page) for _ in range(2)]
    wait_for(lambda: listeners(page) == 2, 10, "two listeners")
    assert page.get("/events").code == 503
    assert page.get("/").code == 200
    for client in clients:
        client.close()
    wait_for(lambda: listeners(page) == 0, 10, "the end of both")


def test_a_listener_that_reads_nothing_is_cut_off(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SILENT_MS", 500)
    monkeypatch.setattr(events, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(front, "sections", lambda *_: {"state": str(time.monotonic()) * 50_000})
    with serving(filled.settings) as page:
        client = listen_to_events(page, read=False)
        wait_for(lambda: listeners(page) == 1, 10, "the listener")
        wait_for(lambda: listeners(page) == 0, 20, "its end")
        assert page.get("/api/status").code == 200
        client.close()


def test_a_client_that_sends_no_request_is_cut_off(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(process, "MOST_CONNECTIONS", 8)
    asks = b"GET /static/icon.svg HTTP/1.1\r\nHost: localhost\r\n"
    with serving(filled.settings) as page, contextlib.ExitStack() as clients:

        def open_with(data: bytes) -> socket.socket:
            client = clients.enter_context(socket.create_connection(("127.0.0.1", page.port), 20))
            client.sendall(data)
            return client

        listener = open_with(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        silent, slow, again = open_with(b""), open_with(asks), open_with(asks + b"\r\n" + asks)
        assert again.recv(15) == b"HTTP/1.1 200 OK"
        for client in (silent, slow, again):
            while client.recv(65536):
                pass  # until it is closed
        assert page.get("/").code == 200
        assert listener.recv(15) == b"HTTP/1.1 200 OK"
        many = [open_with(b"") for _ in range(3 * process.MOST_CONNECTIONS)]
        with contextlib.suppress(ConnectionError):
            assert many[-1].recv(1) == b""
        assert listeners(page) == 1
