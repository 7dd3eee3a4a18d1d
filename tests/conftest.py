"""What every test gets: a clean environment, both databases, and guards against leaks."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from featd.catalog import connect, migrate
from featd.processes.link import Channel, ChildLink, Heartbeat
from filled import Filled
from postgres import PostgreSQL
from running import kill_all


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What hostile names leave in captured output must not end a process that sends it as UTF-8."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


ON_BOTH = ("test_kills.py", "test_nemesis.py", "test_drain.py", "test_pause.py", "test_hosts.py")
"""Of the tests with real processes, those that every run tries on both databases."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The catalog is tested on both databases in every run. Of other tests with real processes that are the same on
    both, a run tries SQLite, and `script/test --long` PostgreSQL, too."""
    nodes = {item.nodeid for item in items}
    for item in items:
        twin = item.nodeid.replace("postgresql", "sqlite")
        slow = item.path.parent.name in ("processes", "crash") or item.path.name == "test_verify.py"
        if slow and item.path.name not in ON_BOTH and twin != item.nodeid and twin in nodes:
            item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("FEATD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """Fail a test that leaves a thread or a child process behind."""
    threads = set(threading.enumerate())
    children = _children()
    yield
    left = [t.name for t in threading.enumerate() if t not in threads and t.is_alive() and not t.daemon]
    assert not left, f"threads left behind: {left}"
    orphans = _children() - children
    assert not orphans, f"child processes left behind: {orphans}"


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A command that runs in this process sends featd's records elsewhere: the next test sees its own again."""
    yield
    root = logging.getLogger("featd")
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.NOTSET)
    root.propagate = True


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to be gone at the end, whatever happens."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        kill_all(process)


def _children() -> set[int]:
    path = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return {int(pid) for pid in path.read_text().split()} if path.exists() else set()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    """One throw-away server for the whole run."""
    server = PostgreSQL()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database, on each of the two."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'featd.db'}"
        return
    server: PostgreSQL = request.getfixturevalue("postgres")
    name = server.create()
    try:
        yield server.url(name)
    finally:
        server.drop(name)


@pytest.fixture
def another_url(
    request: pytest.FixtureRequest, database_url: str, tmp_path: Path
) -> Iterator[Callable[[], str]]:
    """Addresses of more empty databases of the same kind."""
    made: list[str] = []

    def make() -> str:
        if database_url.startswith("sqlite"):
            return f"sqlite:///{tmp_path / f'another-{uuid.uuid4().hex}.db'}"
        server: PostgreSQL = request.getfixturevalue("postgres")
        made.append(server.create())
        return server.url(made[-1])

    yield make
    for name in made:
        request.getfixturevalue("postgres").drop(name)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite catalog to copy: a copy takes a millisecond, a migration a hundred."""
    path = tmp_path_factory.mktemp("template") / "featd.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres: PostgreSQL) -> str:
    """The name of a migrated database to copy."""
    name = postgres.create()
    _migrate(postgres.url(name))
    return name


def _migrate(url: str) -> None:
    engine = connect.open_catalog(url)
    try:
        migrate.upgrade(engine)
    finally:
        engine.dispose()


@pytest.fixture
def catalog(request: pytest.FixtureRequest, database_url: str) -> Iterator[sa.Engine]:
    """A catalog with its tables, on each of the two databases."""
    url = sa.make_url(database_url)
    if url.get_backend_name() == "sqlite":
        shutil.copyfile(request.getfixturevalue("sqlite_template"), str(url.database))
    else:
        server: PostgreSQL = request.getfixturevalue("postgres")
        server.copy(request.getfixturevalue("postgres_template"), str(url.database))
    engine = connect.open_catalog(database_url)
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture
def filled(tmp_path: Path, database_url: str) -> Iterator[Filled]:
    """An instance with one root, `images`, to fill with rows and shards, on each of the two databases."""
    made = Filled(tmp_path / "instance", database_url, (tmp_path / "images",))
    yield made
    made.catalog.dispose()


@pytest.fixture
def link() -> Iterator[ChildLink]:
    """The link of a child without a supervisor."""
    reports, inbox, heartbeat, wake = Channel(), Channel(), Heartbeat(), os.eventfd(0, os.EFD_NONBLOCK)
    yield ChildLink("w", reports=reports, inbox=inbox, heartbeat=heartbeat, wake_fd=wake, wake_fds={})
    reports.close()
    inbox.close()
    heartbeat.close()
    os.close(wake)
