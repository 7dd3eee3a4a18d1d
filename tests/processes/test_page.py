"""The page of a real daemon in a real browser: at work, idle, failing and gone; and that its process harms nobody."""

from __future__ import annotations

import os
import re
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from needs import need_chromium
from photographs import write_photographs
from running import Instance, kill_all, make_instance, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PHOTOGRAPHS = 16
MORE = 100
HOSTILE = "<img src=x onerror=alert(1)>\u202egpj.jpg"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    need_chromium()
    from browsing import chromium

    with chromium() as found:
        yield found


def make(tmp_path: Path, port: int, **keys: Any) -> Instance:
    images = tmp_path / "images"
    write_photographs(images, PHOTOGRAPHS)
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    (images / HOSTILE).write_bytes(b"not a picture")
    (images / "film.mov").touch()
    web = {"web__enabled": True, "web__listen": f"127.0.0.1:{port}"}
    return make_instance(
        tmp_path / "instance", images, workers__devices=["cpu"], workers__decoders=1, **web, **keys
    )


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status", timeout=10) as found:
            return bool(found.status == 200)
    except OSError:
        return False


def with_keys(page: Page, image: str) -> None:
    """From the page to an image and its neighbours, by keyboard alone."""
    from playwright.sync_api import expect

    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type(image)
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text(image.rpartition("/")[2])
    expect(page.get_by_text("nothing until the file changes")).to_be_visible()
    link = page.get_by_role("link", name="Find similar images")
    for _ in range(8):
        page.keyboard.press("Tab")
        if link.evaluate("link => link === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.locator(".tile")).to_have_count(12)


def test_the_page_follows_a_daemon_from_work_to_its_death(browser: Browser, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    from browsing import free_port, open_page, violations

    port = free_port()
    instance = make(tmp_path, port)
    complaints: list[str] = []
    process = instance.start("run")
    try:
        wait_for(lambda: answers(port), 60, "the page")
        page = open_page(browser, f"http://localhost:{port}/", complaints)
        expect(page.locator("h1")).to_contain_text("Running (pid")
        expect(page.get_by_text("Every image is processed; 2 failed")).to_be_visible(timeout=60_000)
        expect(page.locator(".verdict code")).to_have_text(f"featd --config {instance.config} failures")
        # Idle
        expect(page.locator("#board")).to_have_attribute("data-tone", "good")
        expect(page.locator("#failures h3")).to_have_count(2)
        expect(page.locator("#ignored")).to_contain_text("mov")
        expect(page.locator("#throughput .chart")).to_be_visible()
        expect(page.locator("#failures")).to_contain_text("<img src=x")
        assert violations(page) == []
        pictures = page.locator("#arrivals img")
        expect(pictures).to_have_count(8)
        for at in range(8):
            pictures.nth(at).scroll_into_view_if_needed()
            expect(pictures.nth(at)).to_have_js_property("complete", True)
            assert pictures.nth(at).evaluate("image => image.naturalWidth") > 0
        # At work, without a reload
        page.evaluate("document.body.id = 'same'")
        small = np.random.default_rng(3).integers(0, 255, (40, 50, 3), np.uint8)
        _, large = cv2.imencode(".jpg", cv2.resize(small, (5000, 4000)))  # takes a while to decode
        for at in range(MORE):
            (tmp_path / "images" / f"more-{at:03}.jpg").write_bytes(large.tobytes())
        expect(page.locator("#workers .pill")).to_have_text("working", timeout=60_000)
        assert violations(page) == []
        expect(page.locator("#progress")).to_contain_text(
            f"of {PHOTOGRAPHS + 2 + MORE} images", timeout=60_000
        )
        expect(page.get_by_text("Every image is processed; 2 failed")).to_be_visible(timeout=60_000)
        expect(page.locator("body#same")).to_be_attached()
        # An image and its neighbours
        assert instance.run("index").returncode == 0
        with_keys(page, "more-007.jpg")
        assert violations(page) == []
        # Without scripts
        plain = open_page(browser, f"http://localhost:{port}/", complaints, java_script_enabled=False)
        expect(plain.locator("h1")).to_contain_text("Running (pid")
        plain.context.close()
        assert complaints == []
        # Failing: the same daemon may not fill its disk any further
        page.goto(f"http://localhost:{port}/")
        text = instance.config.read_text()
        assert "min_free = 0" in text
        instance.config.write_text(text.replace("min_free = 0", f"min_free = {10**15}"))
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reload_finished" in log(instance), 90)
        cv2.imwrite(f"{tmp_path}/images/last.png", small)
        expect(page.locator("#state .notice")).to_contain_text("less than store.min_free", timeout=60_000)
        expect(page.locator("#board")).to_have_attribute("data-tone", "bad", timeout=60_000)
        assert violations(page) == []
        # Gone
        kill_all(process)
        expect(page.get_by_role("alert")).to_contain_text("featd does not answer")
        assert violations(page) == []
        page.context.close()
    finally:
        kill_all(process)


def log(instance: Instance) -> str:
    return (instance.folder / "stderr").read_text()


def test_a_page_that_cannot_listen_or_dies_disturbs_nobody(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        instance = make(tmp_path, port)
        process = instance.start("run")
        try:
            wait_for(lambda: "another program has this port" in log(instance), 60)
            wait_for(lambda: instance.count("done") == PHOTOGRAPHS, 90)
            (warning,) = [one for one in instance.status()["warnings"] if one.startswith("web")]
            assert "choose another one in web.listen" in warning
            workers = [lease["pid"] for lease in instance.live_workers()]
            taken.close()
            wait_for(lambda: answers(port), 60, "the page, once the port is free")
            (pid,) = re.findall(r"web is ready.* pid=(\d+)", log(instance))
            os.kill(int(pid), signal.SIGKILL)
            wait_for(lambda: log(instance).count("web is ready") == 2, 60)
            assert [lease["pid"] for lease in instance.live_workers()] == workers
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            kill_all(process)
