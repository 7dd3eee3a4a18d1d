"""featd under a real systemd: PID 1 in namespaces over an overlay of this machine."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from needs import missing
from postgres import PROGRAMS
from running import wait_for
from systemd_host import CHECKOUT, PROJECT, SystemdHost

pytestmark = pytest.mark.serial

PHOTOGRAPHS = 24
IMPATIENT = (
    f"{sys.executable} -c 'import sys; from featd.worker import pipeline; pipeline.MIN_HANG_SECONDS = 4.0;"
    " from featd_cli.main import main; sys.exit(main())'"
)
"""The real featd, but a worker that is silent for 4 s hangs."""
SECRET = "correct-horse"
QUICKER = f"""
[Service]
WatchdogSec=3
RestartSec=200ms
ExecStart=
ExecStart={IMPATIENT} run --config /etc/featd/featd.toml
"""


class Host(SystemdHost):
    """The host, and what the tests ask of it."""

    def featd(self, arguments: str, *, before: str = "") -> str:
        path = ":".join(one for one in (os.environ.get("PYTHONPATH"), *sys.path) if one)
        path = path.replace(str(PROJECT), CHECKOUT)
        command = f"{before} PYTHONPATH={path} {sys.executable} -m featd_cli.main {arguments}"
        return self.run(command).stdout

    def pid(self, unit: str = "featd") -> int:
        return int(self.show(unit, "MainPID"))

    def active(self, unit: str = "featd") -> bool:
        return self.show(unit, "SubState") == "running"

    def children(self, unit: str = "featd") -> dict[str, dict[str, Any]]:
        """What the supervisor tells of its children."""
        store = "/var/lib/featd/" + (unit.partition("@")[2] + "/" if "@" in unit else "") + "features"
        found = self.run(f"cat {store}/run/*/supervisor.json", check=False).stdout
        return {child["name"]: child for child in json.loads(found)["children"]} if found else {}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    try:
        host = Host()
    except RuntimeError as error:
        missing(str(error))
        raise
    try:
        host.run(
            f"cd {CHECKOUT}/tests && mkdir -p /srv/photos && {sys.executable} -c 'from photographs import *;"
            f' write_photographs(Path("/srv/photos"), {PHOTOGRAPHS})\''
        )
        host.featd("init /etc/featd --images /srv/photos")
        host.run(f"(umask 077; echo {SECRET} > /etc/featd/featd.password)")
        said = host.featd("service install")
        assert "wrote /etc/systemd/system/featd.service" in said
        drop_in(host, "featd", QUICKER)
        yield host
    finally:
        host.close()


@pytest.fixture
def service(host: Host) -> Host:
    """featd, at work."""
    host.run("systemctl reset-failed featd; systemctl start featd")
    return host


def drop_in(host: Host, unit: str, text: str) -> None:
    host.run(
        f"mkdir -p /run/systemd/system/{unit}.service.d;"
        f" cat > /run/systemd/system/{unit}.service.d/test.conf <<'END'\n{text}\nEND\nsystemctl daemon-reload"
    )


def edit_config(host: Host, before: str, after: str) -> None:
    host.run(
        f"grep -q '^{before}' /etc/featd/featd.toml && sed -i 's|^{before}|{after}|' /etc/featd/featd.toml"
    )


def test_a_start_is_over_when_a_worker_can_work_and_the_status_counts(host: Host) -> None:
    host.run("systemctl stop featd; systemctl start featd")
    assert host.children()["worker-0"]["state"] == "ready"
    status = f'Status: "{PHOTOGRAPHS} images done, 0 to do, 0 failed; '
    wait_for(lambda: status in host.run("systemctl status featd").stdout, 30, "the counts")


def test_a_stopped_supervisor_is_found_by_the_watchdog_and_replaced(service: Host) -> None:
    before = service.pid()
    service.run(f"kill -STOP {before}")
    wait_for(lambda: service.pid() not in (0, before) and service.active(), 40, "another supervisor")
    assert "Watchdog timeout" in service.run("journalctl -u featd -o cat --no-pager").stdout


def test_a_killed_supervisor_is_replaced_and_nothing_of_it_is_left(service: Host) -> None:
    before = service.pid()
    service.run(f"kill -KILL {before}")
    wait_for(lambda: service.pid() not in (0, before) and service.active(), 40, "another supervisor")
    workers = service.run("grep -c . /sys/fs/cgroup/system.slice/featd.service/cgroup.procs").stdout
    assert int(workers) <= 6  # the supervisor, three children, two decoders
    assert service.show("featd", "Result") == "success"


def test_a_hung_worker_is_replaced_while_the_rest_goes_on(service: Host) -> None:
    supervisor, worker = service.pid(), service.children()["worker-0"]["pid"]
    service.run(f"kill -STOP {worker}")

    def replaced() -> bool:
        child = service.children()["worker-0"]
        return bool(child["state"] == "ready" and child["pid"] != worker)

    wait_for(replaced, 40, "another worker")
    assert service.pid() == supervisor
    assert "makes no progress; killing it" in service.journal(
        "FEATD_EVENT=child_hung", "FEATD_CHILD=worker-0"
    )


def test_logs_are_those_of_the_unit(service: Host) -> None:
    text = service.featd("logs --since 1d --event model_loaded")
    assert re.search(r"^\S+ featd\[\d+\]: model_loaded: .* batch=", text, re.M)
    assert "shard_sealed" not in text
    (one,) = service.featd("logs --json -n 1 --event model_loaded").splitlines()
    record = json.loads(one)
    assert (record["FEATD_EVENT"], record["_SYSTEMD_UNIT"]) == ("model_loaded", "featd.service")
    worse = service.featd("logs --since 1d --priority warning --json").splitlines()
    assert {int(json.loads(line)["PRIORITY"]) for line in worse} <= {0, 1, 2, 3, 4}
    path = f"PYTHONPATH={CHECKOUT}/daemon:{CHECKOUT}/cli:{CHECKOUT}/migrations"
    none = service.run(f"{path} {sys.executable} -m featd_cli.main logs --instance none", check=False)
    assert none.returncode == 1
    assert "featd@none.service is not installed here" in none.stderr


def test_sigterm_drains_within_its_time(service: Host) -> None:
    service.run("systemctl stop featd")
    assert service.show("featd", "Result") == "success"
    assert service.show("featd", "ExecMainStatus") == "0"
    assert json.loads(service.featd("--config /etc/featd/featd.toml status --json"))["images"]["claimed"] == 0


def test_a_reload_applies_what_it_can_and_refuses_the_rest(service: Host) -> None:
    supervisor, worker = service.pid(), service.children()["worker-0"]["pid"]
    edit_config(service, 'batch = "auto"', "batch = 4")
    try:
        service.run("systemctl reload featd")
        wait_for(lambda: "batch=4 " in service.journal("FEATD_EVENT=model_loaded"), 40, "the new batch")
        wait_for(service.active, 20, "the reload's end")
        assert service.children()["worker-0"]["pid"] != worker
        assert service.pid() == supervisor
        edit_config(service, 'dtype = "float32"', 'dtype = "float16"')
        service.run("systemctl reload featd")
        text = "store.dtype: "  # and the way out, which depends on what the catalog holds
        wait_for(lambda: text in service.show("featd", "StatusText"), 40, "the refusal")
        wait_for(service.active, 20, "the reload's end")
    finally:
        edit_config(service, "batch = 4", 'batch = "auto"')
        edit_config(service, 'dtype = "float16"', 'dtype = "float32"')
        service.run("systemctl stop featd")


def test_it_runs_in_a_sandbox(service: Host) -> None:
    pid = service.pid()
    status = service.run(f"cat /proc/{pid}/status").stdout
    assert re.search(r"^CapEff:\s+0+$", status, re.M)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)
    assert re.search(r"^Seccomp:\s+2$", status, re.M)
    assert not re.search(r"^Uid:\s+0\b", status, re.M)
    inside = f"nsenter -t {pid} -m sh -c"
    for folder in ("/usr", "/etc", "/srv/photos"):
        refused = service.run(f"{inside} 'touch {folder}/x'", check=False)
        assert "Read-only file system" in refused.stderr, folder
    service.run(f"{inside} 'touch /var/lib/featd/x && rm /var/lib/featd/x'")
    assert service.run("stat -c '%U %a' /var/lib/featd").stdout.split() == ["featd", "750"]


def test_the_password_comes_as_a_credential_and_shows_nowhere(service: Host) -> None:
    pid = service.pid()
    environment = service.run(f"tr '\\0' '\\n' < /proc/{pid}/environ").stdout
    (folder,) = re.findall(r"^CREDENTIALS_DIRECTORY=(.*)$", environment, re.M)
    assert service.run(f"nsenter -t {pid} -m cat {folder}/database-password").stdout.strip() == SECRET
    commands = service.run("cat /proc/[0-9]*/cmdline").stdout
    assert SECRET not in environment + commands + service.run("journalctl -o export --no-pager").stdout


@pytest.mark.parametrize(("code", "ends"), [(2, True), (78, True), (75, False), (1, False)])
def test_what_only_a_person_can_mend_is_not_started_again(host: Host, code: int, ends: bool) -> None:
    drop_in(host, "featd", f"[Service]\nRestartSec=100ms\nExecStart=\nExecStart=/bin/sh -c 'exit {code}'\n")
    try:
        assert host.run("systemctl stop featd; systemctl start featd", check=False).returncode
        if ends:
            assert host.show("featd", "SubState") == "failed"
            assert host.show("featd", "NRestarts") == "0"
        else:
            wait_for(lambda: int(host.show("featd", "NRestarts")) >= 7, 20, "one start after another")
    finally:
        host.run("systemctl stop featd")
        drop_in(host, "featd", QUICKER)


def test_featd_itself_ends_with_those_codes(host: Host) -> None:
    host.run("systemctl stop featd; mv /var/lib/featd/features/featd-store.json /var/lib/featd/hidden")
    try:
        host.run("systemctl start featd", check=False)
        assert host.show("featd", "ExecMainStatus") == "75"
        host.run("mv /var/lib/featd/hidden /var/lib/featd/features/featd-store.json")
        wait_for(host.active, 40, "the start after the disk was mounted")
        edit_config(host, 'batch = "auto"', 'batsch = "auto"')
        host.run("systemctl restart featd", check=False)
        assert host.show("featd", "ExecMainStatus") == "78"
        assert host.show("featd", "SubState") == "failed"
        assert "workers.batsch: unknown key" in host.journal("-u", "featd")
    finally:
        edit_config(host, 'batsch = "auto"', 'batch = "auto"')


def told_of_the_service(host: Host) -> list[tuple[str, str]]:
    """Level and text of what doctor says of the service."""
    checks = json.loads(host.featd("doctor --json || true"))["checks"]
    return [(check["level"], check["text"]) for check in checks if check["check"] == "service"]


def test_doctor_tells_of_the_service(service: Host) -> None:
    not_enabled = ("warning", "featd does not start with the machine")
    assert told_of_the_service(service) == [("ok", "featd is active"), not_enabled]
    edit_config(service, "stop_seconds = 90", "stop_seconds = 60")
    try:
        service.run("systemctl stop featd; systemctl reset-failed featd", check=False)
        file = "/etc/systemd/system/featd.service.d/10-configuration.conf"
        assert told_of_the_service(service) == [
            ("warning", f"{file} is not what this installation and configuration need"),
            ("warning", "featd is inactive"),
            not_enabled,
        ]
    finally:
        edit_config(service, "stop_seconds = 60", "stop_seconds = 90")
    edit_config(service, 'batch = "auto"', 'batsch = "auto"')
    try:
        service.run("systemctl start featd", check=False)
        assert told_of_the_service(service) == [("error", "featd has failed: exit code 78"), not_enabled]
    finally:
        edit_config(service, 'batsch = "auto"', 'batch = "auto"')


def test_instances_run_side_by_side(service: Host) -> None:
    """The other one on PostgreSQL, whose password is a credential."""
    port = start_postgres(service)
    folder = "/var/lib/featd/other/"
    service.run(
        f"sed -e 's|/var/lib/featd/|{folder}|' -e 's|^url = .*|url ="
        f' "postgresql+psycopg://featd@127.0.0.1:{port}/postgres"|\' /etc/featd/featd.toml > /etc/featd/other.toml'
    )
    service.run("mkdir /run/mine; cp /etc/featd/featd.password /run/mine/database-password")
    service.featd("init /etc/featd/other.toml", before="CREDENTIALS_DIRECTORY=/run/mine")
    assert "systemctl enable --now featd@other" in service.featd("service install --instance other")
    supervisor = service.pid()
    refused = service.run("systemctl start featd@other", check=False)
    assert refused.returncode
    assert "no password supplied" in service.journal("-u", "featd@other")
    service.run(
        "systemctl stop featd@other; cp -p /etc/featd/featd.password /etc/featd/other.password;"
        " systemctl start featd@other"
    )
    assert service.active("featd@other")
    assert service.active()
    assert service.pid() == supervisor
    commands = service.run(f"cat /proc/{service.pid('featd@other')}/cmdline | tr '\\0' ' '").stdout
    assert commands.strip().endswith("run --config /etc/featd/other.toml")
    done = f"{PHOTOGRAPHS} images done"
    wait_for(lambda: done in service.show("featd@other", "StatusText"), 40, "its vectors")
    assert SECRET not in service.run("journalctl -o export --no-pager").stdout
    assert "kept: /etc/featd, /var/lib/featd" in service.featd("service uninstall --instance other")
    assert not service.active("featd@other")
    assert service.active()
    assert not service.run("ls /etc/systemd/system | grep featd@", check=False).stdout


def start_postgres(host: Host) -> int:
    """A server inside that asks for a password; returns its port."""
    if not PROGRAMS:
        missing("PostgreSQL's server programs are not installed (Debian: postgresql)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    initdb = f"{PROGRAMS[-1]}/initdb -D /run/pg/data -U featd -A scram-sha-256 --pwfile=/run/pg/password -N"
    start = f"{PROGRAMS[-1]}/pg_ctl -D /run/pg/data -l /run/pg/log -w -o"
    host.run(
        "mkdir /run/pg; cp /etc/featd/featd.password /run/pg/password; chown -R postgres /run/pg; cd /run/pg;"
        f" runuser -u postgres -- {initdb} >/dev/null; runuser -u postgres -- {start}"
        f" '-c listen_addresses=127.0.0.1 -p {port} -k /run/pg' start </dev/null >/dev/null 2>&1"
    )
    return port
