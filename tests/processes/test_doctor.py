"""`featd doctor` on machines that are broken in one way each, and on sound ones."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from featd import clock
from featd.catalog import connect, pairing
from featd.doctor import engines, machine, model
from featd.doctor.bounded import Check, run_all
from featd.doctor.finding import About, Level
from featd.errors import CatalogUnavailableError
from featd.shards.store import StoreKey, create_store
from featd_cli.main import main
from filled import Filled
from needs import missing
from postgres import PostgreSQL
from running import WITHOUT_ROOTS_POWER, Instance, make_instance

assert model  # imported here, so that not every check has to do it
WITHOUT_CAFFE = "import sys; sys.modules['caffe'] = None; from featd_cli.main import main; sys.exit(main())"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@dataclass
class Machine:
    """An instance, and what doctor says of it."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    instance: Instance | None = None

    def make(self, url: str = "sqlite:///featd.db", *, roots: Sequence[Path] = (), **keys: Any) -> Instance:
        """A sound instance; without `roots`, with one of two images."""
        write_images(self.folder / "images", 2)
        self.instance = make_instance(self.folder / "instance", roots or self.folder / "images", url, **keys)
        self.instance.config.chmod(0o640)
        return self.instance

    def doctor(self, *before: str) -> list[dict[str, str]]:
        """What doctor finds. Everything that is wrong has a way out, and the exit code tells the worst level."""
        self.capsys.readouterr()
        config = ["--config", str(self.instance.config)] if self.instance else []
        if before:
            command = [*before, sys.executable, "-c", WITHOUT_CAFFE, *config, "doctor", "--json"]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            code, out = result.returncode, result.stdout
        else:
            code = main([*config, "doctor", "--json"])
            out = self.capsys.readouterr().out
        document = json.loads(out)
        checks: list[dict[str, str]] = document["checks"]
        levels = [Level(check["level"]) for check in checks]
        assert document["level"] == max(levels, key=list(Level).index)
        assert code == int(Level.ERROR in levels)
        for check in checks:
            assert bool(check["way_out"]) == (check["level"] != "ok"), check
        return checks

    def wrong(self, *before: str) -> list[tuple[str, str, str, str]]:
        """The findings that are not ok."""
        found = [
            tuple(check[key] for key in ("check", "level", "text", "way_out"))
            for check in self.doctor(*before)
        ]
        return [one for one in found if one[1] != "ok"]  # type: ignore[misc]

    def only(self, *before: str) -> tuple[str, str, str, str]:
        """The one finding that is not ok."""
        (found,) = self.wrong(*before)
        return found


def write_images(folder: Path, count: int) -> None:
    """Files that have the name of an image: none is decoded."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(b"\xff\xd8")


@pytest.fixture
def healthy(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return Machine(tmp_path, capsys)


@pytest.fixture
def sick(healthy: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """As most machines, without real Caffe, which takes a second to import."""
    monkeypatch.setitem(sys.modules, "caffe", None)
    return healthy


def traces(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_sound_machine_and_nothing_is_touched(healthy: Machine) -> None:
    sick, instance = healthy, healthy.make()
    before = traces(sick.folder)
    checks = sick.doctor()
    assert traces(sick.folder) == before
    assert [check for check in checks if check["level"] != "ok"] == []
    assert {check["check"] for check in checks} == {
        "configuration", "engines", "extras", "devices", "inotify", "open files", "temporary files", "model", "root",
        "store", "catalog", "schema", "database", "pairing", "room", "fingerprint", "service",
    }  # fmt: skip
    # A featd that was killed leaves its WAL: it is read, and stays as it is.
    code = (
        "import os, sqlite3, sys; catalog = sqlite3.connect(sys.argv[1]);"
        " catalog.execute('PRAGMA user_version = 1'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(instance.folder / "featd.db")], check=True)
    assert (instance.folder / "featd.db-wal").exists()
    before = traces(sick.folder)
    assert sick.wrong() == []
    assert traces(sick.folder) == before


def test_settings_of_postgresql(sick: Machine, postgres: PostgreSQL) -> None:
    """The server of the tests runs without fsync."""
    name = postgres.create()
    sick.make(postgres.url(name))
    admin = sa.create_engine(postgres.url(name), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as conn:
        for setting in ("synchronous_commit = off", "default_transaction_read_only = on"):
            conn.execute(sa.text(f"ALTER DATABASE {name} SET {setting}"))
    found = sick.wrong()
    assert found[0][2].endswith("fsync = off: a power cut can destroy the catalog")
    assert "ALTER SYSTEM SET fsync = on" in found[0][3]
    assert {(check, level, text.partition(":")[0]) for check, level, text, _ in found} == {
        ("database", "error", "PostgreSQL runs with fsync = off"),
        ("database", "warning", "PostgreSQL runs with synchronous_commit = off"),
        ("database", "error", "this user may not write into the catalog"),
    }


def test_the_clock_of_the_database_is_off(
    sick: Machine, postgres: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick.make(postgres.url(postgres.create()))
    monkeypatch.setattr(clock, "utcnow", lambda now=clock.utcnow: now() + timedelta(hours=1))
    told = [found for found in sick.wrong() if found[0] == "clock"]
    assert told[0][1:] == (
        "warning",
        "the clock of the database's host is 3,600 s behind this one: times in `featd status` and `featd failures`"
        " are wrong by as much",
        "set both by NTP: `timedatectl set-ntp true`",
    )


def test_no_configuration(sick: Machine) -> None:
    checks = sick.doctor()
    assert checks[0]["check"] == "configuration"
    assert checks[0]["level"] == "error"
    assert "no configuration found" in checks[0]["text"]
    assert "featd init" in checks[0]["way_out"]
    assert {check["check"] for check in checks[1:]} >= {"engines", "devices", "inotify", "temporary files"}
    assert {check["level"] for check in checks[1:]} == {"ok"}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[workers]\nbatsch = 8\n", "workers.batsch: unknown key; did you mean workers.batch?"),
        ("[catalog\n", "line "),
    ],
)
def test_a_mistake_in_the_configuration(sick: Machine, line: str, told: str) -> None:
    instance = sick.make()
    instance.config.write_text(instance.config.read_text() + line)
    check, level, text, _ = sick.only()
    assert (check, level) == ("configuration", "error")
    assert told in text


def test_a_database_that_is_down(sick: Machine) -> None:
    instance = sick.make()
    nowhere = f"postgresql+psycopg://featd@/featd?host={sick.folder}"
    instance.config.write_text(instance.config.read_text().replace("sqlite:///featd.db", nowhere))
    check, level, text, way_out = sick.only()
    assert (check, level) == ("catalog", "error")
    assert "is out of reach" in text
    assert "start PostgreSQL" in way_out


def test_a_wrong_password_that_everybody_can_read(sick: Machine, postgres: PostgreSQL) -> None:
    rules = postgres.home / "data/pg_hba.conf"
    before = rules.read_text()
    admin = sa.create_engine(postgres.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as conn:
        conn.execute(sa.text("CREATE ROLE careful LOGIN PASSWORD 'right'"))
        rules.write_text(f"local all careful scram-sha-256\n{before}")
        conn.execute(sa.text("SELECT pg_reload_conf()"))
        try:
            instance = sick.make()
            url = postgres.url("postgres").replace("featd@", "careful:a-secret@")
            instance.config.write_text(instance.config.read_text().replace("sqlite:///featd.db", url))
            instance.config.chmod(0o644)
            (password, catalog) = sick.wrong()
        finally:
            rules.write_text(before)
            conn.execute(sa.text("SELECT pg_reload_conf()"))
            conn.execute(sa.text("DROP ROLE careful"))
    assert password[:2] == ("password", "warning")
    assert f"chmod o-r {instance.config}" in password[3]
    assert catalog[:2] == ("catalog", "error")
    assert "password authentication failed" in catalog[2]
    assert ".pgpass" in catalog[3]
    assert "a-secret" not in catalog[2] + password[2]


def test_a_token_that_everybody_can_read(sick: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = sick.make(web__token="correcthorsebattery")
    assert sick.wrong() == []
    instance.config.chmod(0o644)
    check, level, text, way_out = sick.only()
    assert (check, level) == ("password", "warning")
    assert text == f"everybody on this machine can read the page's token in {instance.config}"
    assert f"chmod o-r {instance.config}" in way_out
    monkeypatch.setenv("FEATD_WEB__TOKEN", "fromtheenvironment")
    assert sick.wrong() == []


def test_a_catalog_that_is_not_there(sick: Machine) -> None:
    instance = sick.make()
    (instance.folder / "featd.db").unlink()
    check, level, text, way_out = sick.only()
    assert (check, level) == ("catalog", "error")
    assert "there is no such file" in text
    assert "featd init" in way_out
    assert not (instance.folder / "featd.db").exists()


@pytest.mark.parametrize(
    ("revision", "told", "way_out"),
    [
        ("0001", "has schema 0001, this featd needs", "featd db upgrade"),
        ("9999", "newer than", "a newer featd"),
    ],
)
def test_a_schema_that_is_older_or_newer(
    sick: Machine, database_url: str, revision: str, told: str, way_out: str
) -> None:
    instance = sick.make(database_url)
    catalog = connect.open_catalog(instance.settings.catalog.url)
    connect.transact(
        catalog, lambda conn: conn.execute(sa.text(f"UPDATE alembic_version SET version_num = '{revision}'"))
    )
    catalog.dispose()
    (found,) = [one for one in sick.wrong() if one[0] != "database"]
    assert found[:2] == ("schema", "error")
    assert told in found[2]
    assert way_out in found[3]


def test_a_store_that_is_not_mounted(sick: Machine) -> None:
    instance = sick.make()
    store = instance.settings.store.path
    store.rename(store.with_name("away"))
    check, level, text, way_out = sick.only()
    assert (check, level) == ("store", "error")
    assert text == f"{store}: no such folder"
    assert "mount its disk" in way_out
    store.mkdir()
    assert sick.only()[2] == f"{store}: there is no store"


@needs_root
def test_a_store_that_may_not_be_written(sick: Machine) -> None:
    instance = sick.make()
    instance.settings.store.path.chmod(0o555)
    check, level, text, way_out = sick.only(*WITHOUT_ROOTS_POWER)
    assert (check, level) == ("store", "error")
    assert "featd cannot write there" in text
    assert "check its owner" in way_out


@needs_root
def test_who_is_not_featds_user_is_told(sick: Machine) -> None:
    instance = sick.make()
    os.chown(instance.settings.store.path, 65534, 65534)
    check, level, text, way_out = sick.only()
    assert (check, level) == ("user", "warning")
    assert "belongs to nobody, and root looks at it" in text
    assert way_out == "`sudo -u nobody featd doctor`"


def test_the_store_of_another_instance(sick: Machine) -> None:
    instance = sick.make()
    store = instance.settings.store.path
    shutil.rmtree(store)
    create_store(store, StoreKey("another"))
    check, level, text, way_out = sick.only()
    assert (check, level) == ("pairing", "error")
    assert "the store belongs to instance 'another'" in text
    assert way_out.startswith("check catalog.url and store.path")


def test_a_copy_of_the_store(sick: Machine) -> None:
    instance = sick.make()
    store = instance.settings.store.path
    shutil.copytree(store, store.with_name("copy"))
    catalog = connect.open_catalog(instance.settings.catalog.url)
    pairing.pair(catalog, store, "here", 60.0)
    catalog.dispose()
    instance.config.write_text(instance.config.read_text().replace("[store]", '[store]\npath = "copy"'))
    check, level, text, way_out = sick.only()
    assert (check, level) == ("pairing", "error")
    assert "this one is a copy" in text
    assert way_out.startswith("Name the other in store.path")


@pytest.fixture
def small_disk(sick: Machine) -> Iterator[Path]:
    """A disk of 4 MB at the place of the store."""
    place = sick.folder / "instance/features"
    place.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)], check=False).returncode:
        missing("no tmpfs can be mounted")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@needs_root
def test_no_room(sick: Machine, small_disk: Path) -> None:
    filled = Filled(sick.folder / "instance", "sqlite:///featd.db", (sick.folder / "images",))
    write_images(sick.folder / "images", 1)
    filled.done(["a.jpg"])
    filled.enqueue([f"{number}.jpg" for number in range(1500)])
    filled.catalog.dispose()
    sick.instance = Instance(filled.folder)
    told = {found[0]: found[1:] for found in sick.wrong()}
    assert told["room"][0] == "error"
    assert "less than store.min_free (1.1 GB): workers claim nothing" in told["room"][1]
    filled.config.write_text(
        filled.config.read_text().replace("[[roots]]", "[store]\nmin_free = 0\n[[roots]]")
    )
    told = {found[0]: found[1:] for found in sick.wrong()}
    assert told["room"][0] == "warning"
    assert "the images that are to do need about" in told["room"][1]


@needs_root
def test_a_full_disk_is_named_by_commands_that_need_the_catalog(small_disk: Path) -> None:
    file = small_disk / "featd.db"
    with contextlib.closing(sqlite3.connect(file)) as made:
        made.execute("PRAGMA journal_mode = WAL")
    with contextlib.suppress(OSError), (small_disk / "rest").open("wb", buffering=0) as rest:
        while rest.write(bytes(4096)):
            pass
    catalog = connect.open_catalog(f"sqlite:///{file}")
    full = f"the disk of {small_disk} is full: make room there"
    with pytest.raises(CatalogUnavailableError, match=full), connect.reading(catalog):
        pass
    catalog.dispose()


def test_a_model_that_makes_other_vectors(sick: Machine) -> None:
    write_images(sick.folder / "images", 1)
    filled = Filled(sick.folder / "instance", "sqlite:///featd.db", (sick.folder / "images",))
    filled.done(["a.jpg"])
    filled.catalog.dispose()
    sick.instance = Instance(filled.folder)
    (found,) = [one for one in sick.wrong() if one[0] == "fingerprint"]
    assert "this catalog holds vectors of fingerprint ffffffffffff" in found[2]
    assert found[3].startswith("Put the old values back")


def test_a_model_that_is_not_there(sick: Machine) -> None:
    sick.make(
        model__net="/models/deploy.prototxt", model__weights="/models/a.caffemodel", model__blobs=["fc7"]
    )
    check, level, text, way_out = sick.only()
    assert (check, level) == ("model", "error")
    assert "/models/deploy.prototxt" in text
    assert "check the path" in way_out


def test_roots_that_are_away_or_have_no_images(sick: Machine) -> None:
    missing, empty, other = (sick.folder / name for name in ("missing", "empty", "other"))
    sick.make(roots=(missing, empty, other))
    empty.mkdir()
    other.mkdir()
    (other / "a.jxl").touch()
    found = sick.wrong()
    assert [one[:2] for one in found] == [("root", "error"), ("root", "error"), ("root", "warning")]
    assert found[0][2] == f"{missing} is missing: its images keep their state"
    assert found[0][3] == "mount its disk, or correct its path in [[roots]]"
    assert found[1][2].startswith(f"{empty} is empty")
    assert "an empty root is taken for" in found[1][3]
    assert found[2][2] == f"{other} has no image that `include` wants: 1 ignored: jxl 1"


@needs_root
def test_roots_that_this_user_cannot_read(sick: Machine) -> None:
    closed, partly, files = (sick.folder / name for name in ("closed", "partly", "files"))
    sick.make(roots=(closed, partly, files))
    for root in (closed, partly, files):
        write_images(root, 2)
    (partly / "more").mkdir()
    for path in (closed, partly / "more", *files.iterdir()):
        path.chmod(0)
    found = sick.wrong(*WITHOUT_ROOTS_POWER)
    assert [one[:3] for one in found] == [
        ("root", "error", f"{closed} is unreadable: its images keep their state"),
        (
            "root",
            "warning",
            f"{partly}: 1 folder cannot be read, for example more; images there keep their state",
        ),
        ("root", "error", f"2 of the 2 images that were looked at cannot be read, such as {files}/0.jpg"),
    ]
    assert all("give featd's user the right to read" in one[3] for one in found)


def test_limits_of_inotify_that_are_too_low(sick: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    sick.make()
    for number in range(9):
        (sick.folder / f"images/{number}/@eaDir/excluded").mkdir(parents=True)
    limits = sick.folder / "inotify"
    limits.mkdir()
    for name, value in (("max_user_watches", 9), ("max_user_instances", 0), ("max_queued_events", 100)):
        (limits / name).write_text(f"{value}\n")
    monkeypatch.setattr(machine, "INOTIFY", limits)
    found = sick.wrong()
    assert {one[:2] for one in found} == {("inotify", "warning")}
    assert [one[2].partition(":")[0] for one in found] == [
        "10 folders to watch, and one user may watch 9",
        "1 roots to watch, and one user may have 0 inotify instances",
        "the kernel keeps 100 events, fewer than usual",
    ]
    assert "sysctl -w fs.inotify.max_user_watches=32" in found[0][3]
    assert "/etc/sysctl.d/" in found[0][3]


def test_two_runtimes(sick: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    sick.make()
    installed = sick.folder / "lib/onnxruntime_gpu-1.20.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.20.0\n")
    monkeypatch.syspath_prepend(installed.parent)
    check, level, text, way_out = sick.only()
    assert (check, level) == ("engines", "error")
    assert "onnxruntime and onnxruntime-gpu are both installed" in text
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in way_out


def test_the_page_is_wanted_and_its_extra_is_not_there(
    sick: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    version_of = engines.version_of
    monkeypatch.setattr(engines, "version_of", lambda name: "" if name == "starlette" else version_of(name))
    sick.make()
    assert (
        "web (the page and metrics)" in next(one for one in sick.doctor() if one["check"] == "extras")["text"]
    )
    sick.make(web__enabled=True)
    check, level, text, way_out = sick.only()
    assert (check, level) == ("extras", "error")
    assert text.startswith("web.enabled = true, and starlette is not installed")
    assert "`pip install 'featd[web]'`" in way_out


def test_caffe_is_wanted_and_not_there(sick: Machine) -> None:
    sick.make(model__engine="caffe")
    check, level, text, way_out = sick.only()
    assert (check, level) == ("engines", "error")
    assert "real Caffe is not importable" in text
    assert way_out.startswith("build it with script/build-caffe")


def test_no_engine_at_all(sick: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    sick.make()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    check, level, _, way_out = sick.only()
    assert (check, level) == ("engines", "error")
    assert "pip install 'featd[cpu]'" in way_out


def test_a_device_that_does_not_exist(sick: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    sick.make(workers__devices=["cuda:1", "cpu"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    check, level, text, way_out = sick.only()
    assert (check, level) == ("devices", "error")
    assert "there is no cuda:1: CUDA_VISIBLE_DEVICES has 1 GPUs" in text
    assert "workers.devices" in way_out


# What a check may do


def test_a_check_that_fails_crashes_or_hangs_is_a_line() -> None:
    def fails() -> list[Any]:
        raise KeyError("what")

    def prints() -> Iterator[Any]:
        os.write(1, b"a library says hello\n")
        raise FileNotFoundError(2, "No such file or directory", "/a/b")
        yield

    def crashes() -> list[Any]:
        os.kill(os.getpid(), signal.SIGSEGV)
        return []

    begin = time.monotonic()
    checks = [
        Check(About.MODEL, fails, "-"),
        Check(About.STORE, prints, "-"),
        Check(About.ENGINES, crashes, "-"),
        *[Check(About.ROOT, lambda: [signal.pause()], f"look at {number}", 1.0) for number in range(3)],  # type: ignore[list-item]
    ]
    found = list(run_all(checks))
    assert time.monotonic() - begin < 10
    assert [(one.check, one.level) for one in found] == [(check.about, Level.ERROR) for check in checks]
    assert found[0].text == "the check failed: KeyError: 'what'"
    assert (found[1].text, found[1].way_out) == (
        "/a/b: No such file or directory",
        "check its path, owner and mode",
    )
    assert "its process was ended by SIGSEGV" in found[2].text
    assert [(one.text, one.way_out) for one in found[3:]] == [
        ("no answer within 1 s", f"look at {number}") for number in range(3)
    ]


@pytest.fixture
def dead_mount(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system whose server never answers."""
    if os.geteuid() or not Path("/dev/fuse").exists():
        pytest.skip("needs root and /dev/fuse")
    place = tmp_path / "dead"
    place.mkdir()
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
    if ctypes.CDLL(None).mount(b"dead", bytes(place), b"fuse", 0, options):
        os.close(server)
        pytest.skip("FUSE cannot be mounted here")
    yield place
    os.close(server)
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_dead_mount_holds_up_nobody(sick: Machine, dead_mount: Path) -> None:
    instance = sick.make()
    text = instance.config.read_text()
    instance.config.write_text(
        text.replace(str(sick.folder / "images"), str(dead_mount)).replace(
            "[store]", f'[store]\npath = "{dead_mount}/s"'
        )
    )
    begin = time.monotonic()
    told = {found[0]: found[2:] for found in sick.wrong()}
    assert time.monotonic() - begin < 60
    assert told["root"][0].startswith(f"{dead_mount} is not answering")
    assert told["store"][0] == "no answer within 10 s"
    assert str(dead_mount) in told["store"][1]
    assert told.keys() == {"root", "store", "pairing"}
