"""A throw-away PostgreSQL on a unix socket, under its own user (it refuses root)."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from needs import missing

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))


class PostgreSQL:
    """A server of its own, and databases in it."""

    def __init__(
        self, network: str = "", *, durable: bool = False, port: int = 5432, of: PostgreSQL | None = None
    ) -> None:
        """`network`: from which it may be reached over TCP, on `port`; none: only over its socket. `durable`: as
        real servers are; tests need not wait for the disk. `of`: a streaming replica of this one."""
        if not PROGRAMS:
            missing("PostgreSQL's server programs are not installed (Debian: postgresql)")
        self.home = Path(tempfile.mkdtemp(prefix="featd-pg-"))
        self.home.chmod(0o755)  # a featd without root's powers must reach the socket
        self.port = port
        as_owner: list[str] = []
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(self.home, owner.pw_uid, owner.pw_gid)
            as_owner = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
        data = str(self.home / "data")
        make = [*as_owner, str(PROGRAMS[-1] / "initdb"), "-D", data]
        make += ["-A", "trust", "-U", "featd", "-E", "UTF8", "--no-sync"]
        if of is not None:
            make = [
                *as_owner,
                str(PROGRAMS[-1] / "pg_basebackup"),
                "-D",
                data,
                "-R",
                "-c",
                "fast",
                "--no-sync",
            ]
            make += ["-h", str(of.home), "-p", str(of.port), "-U", "featd"]
        subprocess.run(make, check=True, capture_output=True, cwd="/")
        with (self.home / "data" / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {network} trust\n" if network else "")
        self._control = [
            *as_owner,
            str(PROGRAMS[-1] / "pg_ctl"),
            "-D",
            data,
            "-l",
            str(self.home / "log"),
            "-w",
        ]
        options = f"-c listen_addresses={'*' if network else ''} -c unix_socket_directories={self.home}"
        options += f" -c fsync={'on' if durable else 'off'} -c max_connections=100 -c port={port}"
        self._run("-o", options, "start")
        self._admin = sa.create_engine(
            self.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
        )

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://featd@:{self.port}/{database}?host={self.home}"

    def url_from(self, address: str, database: str) -> str:
        """The address of a database for a host that knows the server by `address`."""
        return f"postgresql+psycopg://featd@{address}/{database}"

    def create(self) -> str:
        """A new, empty database; returns its name."""
        name = f"test_{uuid.uuid4().hex}"
        with self._admin.connect() as conn:
            conn.execute(sa.text(f"CREATE DATABASE {name}"))
        return name

    def copy(self, template: str, name: str) -> None:
        """Make the database `name` anew, as a copy of `template`."""
        self.drop(name)
        with self._admin.connect() as conn:
            conn.execute(sa.text(f"CREATE DATABASE {name} TEMPLATE {template}"))

    def drop(self, name: str) -> None:
        with self._admin.connect() as conn:
            conn.execute(sa.text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))

    def execute(self, statement: str) -> list[sa.Row[Any]]:
        """Run a statement as its administrator; the rows, if there are any."""
        with self._admin.connect() as conn:
            result = conn.exec_driver_sql(statement)
            return list(result) if result.returns_rows else []

    def hear_no_more(self) -> None:
        """A replica that is cut off from its primary."""
        self.execute("ALTER SYSTEM SET primary_conninfo = ''")
        self.execute("SELECT pg_reload_conf()")

    def promote(self) -> None:
        """Make a replica a primary."""
        self._run("promote")

    def kill(self) -> None:
        """SIGKILL all of it, and leave it down."""
        pid = int((self.home / "data" / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)

    def log(self) -> str:
        """What the server has told so far."""
        return (self.home / "log").read_text()

    def restart_at_once(self) -> None:
        """As after a crash of the server: every connection breaks, transactions under way are lost."""
        self._run("-m", "immediate", "restart")

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):  # it was killed
            self._run("-m", "immediate", "stop")
        shutil.rmtree(self.home, ignore_errors=True)

    def _run(self, *arguments: str) -> None:
        # Not captured: the server inherits the pipes and would hold them open for its whole life.
        subprocess.run([*self._control, *arguments], check=True, stdout=subprocess.DEVNULL, cwd="/")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
