"""What every test gets: a clean environment, both databases, and guards against leaks."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from featd.catalog import connect, migrate

CI = os.environ.get("CI", "").lower() == "true"
PG_BIN = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))


def missing(what: str) -> None:
    """What cannot be had is a skip on a laptop and a failure where CI runs."""
    if CI:
        pytest.fail(f"{what}: needed where CI=true")
    pytest.skip(what)


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


def _children() -> set[int]:
    path = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return {int(pid) for pid in path.read_text().split()} if path.exists() else set()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A throw-away PostgreSQL on a unix socket; yields the folder of the socket."""
    if not PG_BIN:
        missing("PostgreSQL's server programs are not installed (Debian: postgresql)")
    home = Path(tempfile.mkdtemp(prefix="featd-pg-"))
    home.chmod(0o755)  # a featd without root's powers must reach the socket
    as_owner: list[str] = []
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(home, owner.pw_uid, owner.pw_gid)
        as_owner = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
    data = home / "data"
    bin_folder = PG_BIN[-1]
    initdb = [
        *as_owner,
        bin_folder / "initdb",
        "-D",
        data,
        "-A",
        "trust",
        "-U",
        "featd",
        "-E",
        "UTF8",
        "--no-sync",
    ]
    subprocess.run(initdb, check=True, capture_output=True, cwd="/")
    options = f"-c listen_addresses= -c unix_socket_directories={home} -c fsync=off -c max_connections=60"
    control = [*as_owner, bin_folder / "pg_ctl", "-D", data, "-l", home / "log", "-w"]
    # Not captured: the server inherits the pipes and would hold them open for its whole life.
    subprocess.run([*control, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL, cwd="/")
    try:
        yield str(home)
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL, cwd="/")
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database, on each of the two."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'featd.db'}"
        return
    socket = request.getfixturevalue("postgres_server")
    name = f"test_{uuid.uuid4().hex}"
    admin = sa.create_engine(
        f"postgresql+psycopg://featd@/postgres?host={socket}",
        isolation_level="AUTOCOMMIT",
        poolclass=sa.NullPool,
    )
    with admin.connect() as conn:
        conn.execute(sa.text(f"CREATE DATABASE {name}"))
    try:
        yield f"postgresql+psycopg://featd@/{name}?host={socket}"
    finally:
        with admin.connect() as conn:
            conn.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def catalog(database_url: str) -> Iterator[sa.Engine]:
    """A catalog with its tables, on each of the two databases."""
    engine = connect.open_catalog(database_url)
    try:
        migrate.upgrade(engine)
        yield engine
    finally:
        engine.dispose()
