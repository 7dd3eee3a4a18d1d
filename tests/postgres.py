"""A throw-away PostgreSQL on a unix socket, under its own user (it refuses root)."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import sqlalchemy as sa

from needs import missing

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))


class PostgreSQL:
    """A server of its own, and databases in it."""

    def __init__(self, network: str = "", *, durable: bool = False) -> None:
        """`network`: from which it may be reached over TCP, on port 5432; none: only over its socket. `durable`: as
        real servers are; tests need not wait for the disk."""
        if not PROGRAMS:
            missing("PostgreSQL's server programs are not installed (Debian: postgresql)")
        self.home = Path(tempfile.mkdtemp(prefix="featd-pg-"))
        self.home.chmod(0o755)  # a featd without root's powers must reach the socket
        as_owner: list[str] = []
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(self.home, owner.pw_uid, owner.pw_gid)
            as_owner = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
        data = str(self.home / "data")
        initdb = [*as_owner, str(PROGRAMS[-1] / "initdb"), "-D", data]
        initdb += ["-A", "trust", "-U", "featd", "-E", "UTF8", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd="/")
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
        options += f" -c fsync={'on' if durable else 'off'} -c max_connections=60"
        self._run("-o", options, "start")
        self._admin = sa.create_engine(
            self.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
        )

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://featd@/{database}?host={self.home}"

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

    def restart_at_once(self) -> None:
        """As after a crash of the server: every connection breaks, transactions under way are lost."""
        self._run("-m", "immediate", "restart")

    def close(self) -> None:
        self._run("-m", "immediate", "stop")
        shutil.rmtree(self.home, ignore_errors=True)

    def _run(self, *arguments: str) -> None:
        # Not captured: the server inherits the pipes and would hold them open for its whole life.
        subprocess.run([*self._control, *arguments], check=True, stdout=subprocess.DEVNULL, cwd="/")
