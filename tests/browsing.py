"""Debian's Chromium, driven by Playwright, and what every page must pass in it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from needs import CHROMIUM

expect.set_options(timeout=30_000)
NARROW = {"width": 375, "height": 812}
WIDE = {"width": 1200, "height": 900}
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}


@contextmanager
def chromium() -> Iterator[Browser]:
    """One browser; a context of it takes milliseconds."""
    with sync_playwright() as playwright:
        # Root, as which tests run in containers, gets no sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser: Browser, url: str, complaints: list[str], **options: Any) -> Page:
    """A page whose errors, dialogs and violations of its policy are noted as complaints."""
    page = browser.new_context(viewport=WIDE, **options).new_page()
    page.set_default_timeout(30_000)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(url)
    return page


def violations(page: Page) -> list[str]:
    """The rules of accessibility that a page breaks, light on a wide screen and dark on a narrow one; and whether it is
    wider than that."""
    found = []
    for size, scheme in ((WIDE, "light"), (NARROW, "dark")):
        page.set_viewport_size(size)  # type: ignore[arg-type]
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        broken = Axe().run(page, options=RULES).response["violations"]
        found += [
            f"{scheme}, {size['width']}: {one['id']}: {json.dumps([node['html'] for node in one['nodes']])[:300]}"
            for one in broken
        ]
        if (width := page.evaluate("document.documentElement.scrollWidth")) > size["width"]:
            found.append(f"{width} pixels wide on a screen of {size['width']}")
    page.set_viewport_size(WIDE)  # type: ignore[arg-type]
    page.emulate_media(color_scheme="light")
    return found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
