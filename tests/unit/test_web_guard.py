"""Who gets an answer from the page, and with which headers."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from featd import config, daemon
from featd.errors import ConfigError
from filled import Filled
from serving import Served, serving

TOKEN = "correcthorsebattery"


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Filled]:
    made = Filled(tmp_path / "instance", f"sqlite:///{tmp_path / 'featd.db'}", (tmp_path / "images",))
    yield made
    made.catalog.dispose()


@pytest.fixture
def page(filled: Filled) -> Iterator[Served]:
    with serving(filled.settings) as served:
        yield served


@pytest.fixture
def locked(filled: Filled) -> Iterator[Served]:
    with serving(filled.settings, TOKEN) as served:
        yield served


def test_only_names_of_this_machine_are_answered(page: Served) -> None:
    here = socket.gethostname()
    for host in (
        "127.0.0.1:8787",
        "localhost",
        "LOCALHOST:1",
        "[::1]:8787",
        "10.1.2.3",
        here,
        f"{here}:8787",
    ):
        assert page.get("/static/icon.svg", host=host).code == 200, host
    for host in (
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "a@127.0.0.1",
        "",
        "x:y:z",
    ):
        refused = page.get("/", host=host)
        assert refused.code == 421, host
        assert b"featd on" not in refused.body


def test_every_answer_has_strict_headers(page: Served) -> None:
    for path in ("/", "/static/style.css", "/api/status", "/nowhere", "/thumbnail/1", "/image/1"):
        headers = page.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'"), path
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_it_only_reads(page: Served) -> None:
    for path in ("/", "/api/status", "/image/1", "/thumbnail/1", "/events"):
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            answer = page.get(path, method=method)
            assert answer.code == 405, (method, path)
            assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}, path
    assert page.get("/", method="HEAD").code == 200


def test_nothing_but_its_own_files_is_served(page: Served) -> None:
    for path in (
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/page.html",
        "/x/y",
    ):
        assert page.get(path).code == 404, path


def test_without_the_token_nothing_is_told(locked: Served) -> None:
    for path in ("/", "/api/status", "/image?path=a", "/image/1", "/thumbnail/1", "/events"):
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": f"Basic {TOKEN}"},
            {"cookie": f"featd={TOKEN}"},
            {"cookie": 'featd="; ='},
        ):
            refused = locked.get(path, **headers)
            assert refused.code == 401, (path, headers)
            assert refused.headers["www-authenticate"] == "Bearer"
    asked = locked.get("/", accept="text/html")
    assert asked.code == 401
    assert "A token is needed" in asked.text
    assert "featd.db" not in asked.text
    assert "This is not the token" in locked.get("/?token=wrong", accept="text/html").text
    assert locked.get("/static/style.css").code == 200


def test_a_program_shows_the_token_in_a_header(locked: Served) -> None:
    assert locked.get("/api/status", authorization=f"Bearer {TOKEN}").code == 200


def test_a_browser_shows_it_once(locked: Served) -> None:
    answer = locked.get(f"/image?path=a%26b&token={TOKEN}", accept="text/html")
    assert answer.code == 303
    assert answer.headers["location"] == "/image?path=a%26b"
    cookie = answer.headers["set-cookie"]
    assert re.search("httponly", cookie, re.I)
    assert re.search("samesite=strict", cookie, re.I)
    assert TOKEN not in cookie
    assert locked.get("/api/status", cookie=cookie.partition(";")[0]).code == 200


def test_a_token_sends_nobody_to_another_host(locked: Served) -> None:
    for path in ("//evil.example/", "/\\evil.example", "///evil.example"):
        location = locked.get(f"{path}?token={TOKEN}").headers["location"]
        assert re.match(r"/[^/\\]", location), location


def test_it_runs_where_it_is_enabled_and_installed(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    def specs(text: str) -> dict[str, Any]:
        filled.config.write_text(filled.config.read_text() + text)
        found = daemon.configured(config.load(filled.config), "here", drain=False)
        return {spec.name: spec for spec in found.specs}

    assert "web" not in specs("")
    web = specs("[web]\nenabled = true\ntoken = 'correcthorsebattery'\n")["web"]
    assert not web.essential
    assert TOKEN not in repr(web)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "featd.web.process")
    monkeypatch.delattr("featd.web.process")
    with pytest.raises(ConfigError, match=r"uvicorn, which is not installed: `pip install 'featd\[web\]'`"):
        web.target(None, web.plan)
