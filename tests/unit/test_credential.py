"""The database's password as systemd hands it over."""

from __future__ import annotations

from pathlib import Path

import pytest

from featd.catalog import connect
from featd.errors import ConfigError

URL = "postgresql+psycopg://featd@db.example/featd"


@pytest.fixture
def password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    return tmp_path / "database-password"


def test_it_is_the_password_of_postgresql_and_is_not_shown(password: Path) -> None:
    password.write_text("s3cret:/@\n")
    engine = connect.open_catalog(URL)
    assert engine.url.password == "s3cret:/@"
    assert "s3cret" not in connect.shown_url(engine)
    assert "s3cret" not in repr(engine)


def test_one_in_the_address_comes_first(password: Path) -> None:
    password.write_text("s3cret")
    assert connect.open_catalog(URL.replace("featd@", "featd:other@")).url.password == "other"


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_none_is_none(password: Path, content: str | None) -> None:
    if content is not None:
        password.write_text(content)
    assert connect.open_catalog(URL).url.password is None


def test_sqlite_has_no_password(password: Path, tmp_path: Path) -> None:
    password.write_text("s3cret")
    assert connect.open_catalog(f"sqlite:///{tmp_path}/featd.db").url.password is None


def test_one_that_cannot_be_read_is_an_error_that_says_so(password: Path) -> None:
    password.mkdir()
    with pytest.raises(ConfigError, match="database-password"):
        connect.open_catalog(URL)
