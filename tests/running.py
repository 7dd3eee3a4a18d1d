"""Running the real featd in tests: an instance in a folder, its commands as processes, and the checker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import sqlalchemy as sa

from featd import config, daemon
from featd.catalog import connect, counters, leases, live, schema
from featd.index.update import Keeper
from featd.shards.checksum import checksum
from featd.shards.read import ShardReader
from featd.states import State

FEATD = (sys.executable, "-m", "featd_cli.main")
WITHOUT_ROOTS_POWER = (
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
)
"""Runs a command that may read only what permissions say, also for root."""
ON_HOST = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"')
"""Runs a command, named after a host name, on a host of this name. Needs root."""


@dataclass
class Instance:
    """A featd.toml with its catalog and store, and what one does with it."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    host: str = ""
    """The name of the host that its commands run on; empty: this one."""
    network: str = ""
    """The network namespace that they run in; empty: this one."""

    @property
    def config(self) -> Path:
        return self.folder / "featd.toml"

    @property
    def settings(self) -> config.Settings:
        return config.load(self.config)

    def command(self, *arguments: str) -> list[str]:
        host = [*ON_HOST, self.host] if self.host else []
        network = ["ip", "netns", "exec", self.network] if self.network else []
        return [*network, *host, *FEATD, "--config", str(self.config), *arguments]

    def run(
        self, *arguments: str, timeout: float = 120, plain_user: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of featd to its end; where it takes too long, kill it and show what it said."""
        command = self.command(*arguments)
        if plain_user and os.geteuid() == 0:
            command = [*WITHOUT_ROOTS_POWER, *command]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **self.env},
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            kill_all(process)
            out, err = process.communicate()
            raise AssertionError(f"{arguments} took more than {timeout:g} s:\n{err}") from None
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command in a session of its own, its output in files beside the config."""
        with (self.folder / "stdout").open("a") as out, (self.folder / "stderr").open("a") as err:
            return subprocess.Popen(
                self.command(*arguments),
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
                env={**os.environ, **self.env},
            )

    def plan(self, child: str, host: str = "here", *, drain: bool = False) -> Any:
        """What the daemon tells a child of this name."""
        configuration = daemon.configured(self.settings, host, drain=drain)
        return next(spec.plan for spec in configuration.specs if spec.name == child)

    def status(self) -> dict[str, Any]:
        result = self.run("status", "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)  # type: ignore[no-any-return]

    def rows(self) -> list[sa.Row[Any]]:
        """All rows of images."""
        catalog = connect.open_catalog(self.settings.catalog.url)
        try:
            with connect.reading(catalog) as conn:
                return list(conn.execute(sa.select(schema.images)))
        finally:
            catalog.dispose()

    def live_workers(self) -> list[dict[str, Any]]:
        """The leases that have not ended."""
        catalog = connect.open_catalog(self.settings.catalog.url)
        try:
            with connect.reading(catalog) as conn:
                statement = sa.select(schema.leases).where(schema.leases.c.ended_at.is_(None))
                return [dict(row) for row in conn.execute(statement).mappings()]
        finally:
            catalog.dispose()

    def count(self, state: str) -> int:
        return sum(row.state == state for row in self.rows())


def drain(instance: Instance, timeout: float = 120) -> None:
    """Extract everything that is there; nothing may fail."""
    result = instance.run("run", "--drain", timeout=timeout)
    assert result.returncode == 0, result.stderr


def make_instance(
    folder: Path,
    images: Path | Sequence[Path],
    url: str = "sqlite:///featd.db",
    *,
    extra: str = "",
    **keys: Any,
) -> Instance:
    """An instance made by `featd init`'s own functions, its config written by hand. `keys`: section__key=value.
    It works however full the disk of the tests is."""
    folder.mkdir(parents=True, exist_ok=True)
    roots = [images] if isinstance(images, Path) else list(images)
    sections: dict[str, dict[str, Any]] = {"catalog": {"url": url}}
    for name, value in {"store__min_free": 0, **keys}.items():
        section, _, key = name.partition("__")
        sections.setdefault(section, {})[key] = value
    text = "\n".join(
        f"[{section}]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
        for section, values in sections.items()
    )
    text += "".join(f'\n[[roots]]\npath = "{root}"\nsettle_seconds = 0.0\n{extra}\n' for root in roots)
    (folder / "featd.toml").write_text(text)
    instance = Instance(folder)
    from featd.catalog import migrate, pairing
    from featd.shards.store import create_store

    catalog = connect.open_catalog(instance.settings.catalog.url)
    try:
        migrate.upgrade(catalog)
        with connect.reading(catalog) as conn:
            create_store(instance.settings.store.path, pairing.store_key(conn))
    finally:
        catalog.dispose()
    return instance


def wait_for(condition: Callable[[], Any], seconds: float = 60.0, what: str = "the condition") -> Any:
    """The condition's first true value; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
        time.sleep(0.02)


def session_of(process: subprocess.Popen[Any]) -> list[int]:
    """The pids of everything that runs in the session of `process`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == process.pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def kill_all(process: subprocess.Popen[Any]) -> None:
    """SIGKILL everything in the session of `process`, and wait until it is gone."""
    for pid in session_of(process):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait(10)
    wait_for(lambda: not session_of(process), 10, "the end of the session")


def is_stopped(pid: int) -> bool:
    """Whether every thread stands still: the signal reaches one first, which tells the others when it runs."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # this one has ended
            if (thread / "stat").read_text().rpartition(")")[2].split()[0] != "T":
                return False
    return True


def stop_outside_a_transaction(pid: int, url: str) -> bool:
    """SIGSTOP a worker; let it go on if it holds SQLite's write lock, which stops everybody (until it is found
    hanging and killed)."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(
        lambda: is_stopped(pid), 30, "a stop of every thread"
    )  # one that runs on may still take the lock
    if not url.startswith("sqlite"):
        return True
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0.5, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        os.kill(pid, signal.SIGCONT)
        return False
    finally:
        connection.close()
    return True


def live_vectors(instance: Instance, blob: str | None = None) -> dict[tuple[str, str], np.ndarray[Any, Any]]:
    """(root, path in catalog form) -> the live vector, read with plain h5py."""
    catalog = connect.open_catalog(instance.settings.catalog.url)
    try:
        with connect.reading(catalog) as conn:
            joined = schema.images.join(schema.shards, schema.images.c.shard_id == schema.shards.c.id)
            columns = (
                schema.images.c.root,
                schema.images.c.path,
                schema.images.c.shard_row,
                schema.shards.c.path,
            )
            rows = list(
                conn.execute(sa.select(*columns).select_from(joined).where(schema.images.c.state == "done"))
            )
    finally:
        catalog.dispose()
    by_shard: dict[str, list[tuple[str, str, int]]] = {}
    for root, path, shard_row, shard in rows:
        by_shard.setdefault(shard, []).append((root, path, shard_row))
    found = {}
    for shard, entries in by_shard.items():
        with h5py.File(instance.settings.store.path / shard) as file:
            values = file[f"blobs/{blob}"][:] if blob else file["feats"][:]
        for root, path, row in entries:
            found[root, path] = values[row]
    return found


def check_promise(instance: Instance) -> Counter[str]:
    """The history checker: catalog, counters, shards and disk agree. Returns the rows per state."""
    store = instance.settings.store.path
    catalog = connect.open_catalog(instance.settings.catalog.url)
    try:
        with connect.reading(catalog) as conn:
            images = list(conn.execute(sa.select(schema.images)))
            shards = {row.id: row for row in conn.execute(sa.select(schema.shards))}
            counted = counters.counts(conn)
            open_leases = list(
                conn.execute(sa.select(schema.leases).where(schema.leases.c.ended_at.is_(None)))
            )
    finally:
        catalog.dispose()
    states = Counter(row.state for row in images)
    for state in State:
        assert counted[state] == states[state], f"the counter of {state} is wrong"
    assert states["claimed"] == 0 or open_leases, "rows are claimed although no lease is open"
    named = Counter(row.shard_id for row in images if row.shard_id is not None)
    keys = {}
    for shard in shards.values():
        assert shard.live_rows == named[shard.id], f"live_rows of {shard.name}"
        path = store / shard.path
        assert checksum(path) == shard.checksum, f"checksum of {shard.name}"
        with ShardReader(path) as reader:
            ids, versions = reader.keys(np.arange(shard.rows))
            keys[shard.id] = list(zip(ids.tolist(), versions.tolist(), reader.contents(), strict=True))
            assert len(keys[shard.id]) == shard.rows
    for row in images:
        if row.state == "done":
            image_id, _, content = keys[row.shard_id][row.shard_row]
            assert image_id == row.id, f"{row.path}: the shard's row is another image's"
            assert content == row.content, f"{row.path}: the shard's row is of another content"
            assert row.shard_version == row.version, f"{row.path}: its vector is of another version"
            assert row.lease_id is None
            assert row.errors == row.crashes == 0
    on_disk = {path.name for path in (store / "shards").rglob("*") if path.is_file()}
    assert on_disk == {shard.name for shard in shards.values()}, "the store holds files that no shard names"
    return states


def check_index(instance: Instance) -> None:
    """The index in the store, with the changes since, has the vectors that are live, bit by bit."""
    catalog = connect.open_catalog(instance.settings.catalog.url)
    try:
        index = Keeper(catalog, instance.settings.store.path).open()
        assert index is not None
        ids, versions = index.images_at(index.rows())
        with connect.reading(catalog) as conn:
            found = live.live_vectors(conn, 0, 1_000_000)
        expected = live_vectors(instance)
        assert sorted(zip(ids.tolist(), versions.tolist(), strict=True)) == [
            (one.image_id, one.version) for one in found
        ]
        by_id = dict(zip(ids.tolist(), index.vectors(index.rows()), strict=True))
        for one in found:
            np.testing.assert_array_equal(by_id[one.image_id], expected[one.root, one.path])
    finally:
        catalog.dispose()


def check_no_vector_twice(instance: Instance) -> None:
    """AssertionError where workers have made two vectors of one content of one file. Not counted: copies in merged
    shards, beside those that are still there; and what a worker had sealed when it was killed, and nobody knows of."""
    catalog = connect.open_catalog(instance.settings.catalog.url)
    of_workers = sa.select(schema.leases.c.id).where(schema.leases.c.device != leases.COMPACTION)
    with connect.reading(catalog) as conn:
        paths = conn.scalars(
            sa.select(schema.shards.c.path).where(schema.shards.c.lease_id.in_(of_workers))
        ).all()
    catalog.dispose()
    seen: dict[tuple[bytes, bytes], list[str]] = {}
    for path in paths:
        shard = instance.settings.store.path / path
        if shard.exists():
            with h5py.File(shard) as file:
                for entry in zip(file["names"][:], file["content"][:], strict=True):
                    seen.setdefault(entry, []).append(path)
    twice = {entry: shards for entry, shards in seen.items() if len(shards) > 1}
    assert not twice, f"a vector was made twice: {twice}"


def forget_a_shard(instance: Instance) -> Path:
    """Make the images of one shard pending, and forget its row; its file, which nothing names from then on."""
    catalog = connect.open_catalog(instance.settings.catalog.url)
    with catalog.begin() as conn:
        shard, path = conn.execute(sa.text("SELECT id, path FROM shards ORDER BY id")).first() or (0, "")
        rows = conn.execute(
            sa.text(
                "UPDATE images SET state = 'pending', shard_id = NULL, shard_row = NULL, shard_version = NULL,"
                " content = NULL WHERE shard_id = :shard AND state = 'done'"
            ),
            {"shard": shard},
        ).rowcount
        for state, change in (("done", -rows), ("pending", rows)):
            conn.execute(
                sa.text("UPDATE settings SET number = number + :change WHERE name = :name"),
                {"change": change, "name": f"count.{state}"},
            )
        conn.execute(sa.text("DELETE FROM shards WHERE id = :shard"), {"shard": shard})
    catalog.dispose()
    return instance.settings.store.path / path
