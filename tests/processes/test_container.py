"""The image of the Dockerfile, built by buildah, and run in namespaces as `docker run --read-only --cap-drop all` runs
it: no container engine is needed. What debootstrap makes stands for Debian's image."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from photographs import write_photographs
from running import kill_all

PROJECT = Path(__file__).resolve().parents[2]
BASE, IMAGE = "localhost/featd-test/debian:12", "localhost/featd-test/featd"
USER = 10001
INSIDE = """
set -e
root=$0
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --bind "$1" "$root/var/lib/featd"
mount -t tmpfs none "$root/tmp"
mount -t proc none "$root/proc"
mount --bind /dev "$root/dev"
hostname archive
shift
exec chroot "$root" setpriv --reuid=10001 --regid=10001 --clear-groups --bounding-set=-all --inh-caps=-all \\
    --no-new-privs env -i --chdir=/var/lib/featd "$@"
"""
"""Runs a command as the first process of a container. Needs the root file system, the folder for /var/lib/featd, and
the command with its environment."""

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("buildah") or not shutil.which("debootstrap"),
        reason="needs root, buildah and debootstrap",
    ),
]


def buildah(*arguments: str) -> str:
    done = subprocess.run(
        ["buildah", *arguments],
        env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout.strip()


def where_packages_come_from() -> Iterator[str]:
    """Options that show a build this machine's certificates and the files that pip's configuration names."""
    listed = subprocess.run(["pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    words = {word.strip("'\"").removeprefix("file://") for word in listed.replace("=", " ").split()}
    for path in sorted(
        {"/etc/ssl/certs", "/etc/pip.conf", *(word for word in words if word.startswith("/"))}
    ):
        if Path(path).exists():
            yield f"--volume={path}:{path}:ro"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, object]]]:
    """The root file system of the CPU's image, and its configuration."""
    if BASE.encode() not in subprocess.run(["buildah", "images"], capture_output=True, check=True).stdout:
        debian = tmp_path_factory.mktemp("debian") / "root"
        subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(debian)],
            check=True,
            capture_output=True,
        )
        empty = buildah("from", "scratch")
        buildah("add", "--quiet", empty, str(debian), "/")
        buildah("commit", "--quiet", "--rm", empty, BASE)
        shutil.rmtree(debian)
    buildah(
        *("build", "--quiet", "--network=host", "--target=cpu", f"--build-arg=BASE={BASE}"),
        *("-t", IMAGE, *where_packages_come_from(), "."),
    )
    container = buildah("from", "--pull-never", IMAGE)
    try:
        found = json.loads(buildah("inspect", "--type=image", IMAGE))["OCIv1"]["config"]
        yield Path(buildah("mount", container)), found
    finally:
        buildah("rm", container)
        buildah("rmi", IMAGE)


def run(image: tuple[Path, dict[str, object]], state: Path, *arguments: str) -> subprocess.Popen[str]:
    root, configuration = image
    environment: list[str] = configuration["Env"]  # type: ignore[assignment]
    entry: list[str] = configuration["Entrypoint"]  # type: ignore[assignment]
    return subprocess.Popen(
        [
            *("unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--net"),
            *("sh", "-c", INSIDE, str(root), str(state), *environment, *entry, *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return out


def test_a_container_that_may_write_nothing_else_drains_and_stops(
    image: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    assert image[1]["User"] == f"{USER}:{USER}"
    state = tmp_path / "state"
    count = len(write_photographs(state / "photos", 30))
    for path in (state, *state.rglob("*")):
        os.chown(path, USER, USER)

    finished(run(image, state, "init", ".", "--images", "photos"))
    finished(run(image, state, "run", "--drain"))
    status = json.loads(finished(run(image, state, "status", "--json")))
    assert status["images"]["done"] == count
    finished(run(image, state, "export", "--format", "npy", "vectors"))

    daemon = run(image, state, "run")
    try:
        assert daemon.stderr is not None
        assert any("worker-0 is ready" in line for line in daemon.stderr)
        (first,) = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)
        _, err = daemon.communicate(timeout=120)
        assert daemon.returncode == 0, err
    finally:
        kill_all(daemon)
