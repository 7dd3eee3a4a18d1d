"""What goes wrong with a device and can be provoked: each must end as docs/operations.md says, and lose nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from featd.catalog import connect, schema
from gpu_check import seeded
from gpu_check.card import Card
from gpu_check.report import Report, Row
from gpu_check.runs import write_pictures
from running import Instance, check_promise, kill_all, make_instance, wait_for

MISSING = "cuda:63"
HUGE = 4096
"""Images in a batch whose blobs no GPU of today has room for: 26 GB for each blob of VGG16's first layers."""
HOLDER = "from gpu_check.memory import load_and_wait; load_and_wait({key!r}, {device!r})"


@dataclass
class Check:
    """One of these, in a folder of its own."""

    card: Card
    folder: Path

    def instance(self, key: str, images: int, root: Path | None = None, **workers: Any) -> Instance:
        """featd with a net and so many images in `images-N`, which is its root unless there is another."""
        definition, weights = self.folder / key / "net.prototxt", self.folder / key / "net.caffemodel"
        if not definition.is_file():
            definition.parent.mkdir()
            seeded.write_net(key, definition.parent)
        pictures = self.folder / f"images-{images}"
        if not pictures.is_dir():
            write_pictures(pictures, images)
        settings = {
            "devices": [self.card.device],
            "batch": 16,
            "decoders": max(1, self.card.cores - 2),
            **workers,
        }
        made = make_instance(
            self.folder / "instance",
            root or pictures,
            model__engine="onnxruntime",
            model__net=str(definition),
            model__weights=str(weights),
            model__blobs=[seeded.NETS[key]],
            **{f"workers__{name}": value for name, value in settings.items()},
        )
        if self.card.fake:
            made.env["CUDA_VISIBLE_DEVICES"] = ""  # so that it is known that there is no GPU
        return made

    @property
    def few(self) -> int:
        return 24 if self.card.fake else 2048


def run(card: Card, report: Report) -> None:
    began = time.monotonic()
    checks: list[tuple[str, Callable[[Check], str], bool]] = [
        ("a number that is no GPU's", _wrong_index, True),
        ("such a number beside a right one", _one_wrong, True),
        ("two workers on one device", _two_workers, True),
        ("SIGKILL amid forward", _kill, True),
        ("memory that another program has", _shared, False),
        ("a batch that is too large", _huge, False),
    ]
    for what, check, on_cpu in checks:
        if card.fake and not on_cpu:
            report.add(Row(what, "not run: needs a GPU"))
            continue
        if time.monotonic() - began > card.limit_seconds - 45:
            report.add(Row(what, "not run: no time is left"))
            continue
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
            try:
                report.add(Row(what, check(Check(card, Path(name))), True))
            except Exception as error:
                report.add(Row(what, f"{type(error).__name__}: {error}"[:300], False))


def _wrong_index(check: Check) -> str:
    result = check.instance("SqueezeNet 1.1", check.few, devices=[MISSING]).run("run", "--drain")
    _expect(result.returncode == 78, f"exit code {result.returncode}")
    _expect(f"there is no {MISSING}" in result.stderr, result.stderr[-200:])
    return "refused with exit code 78"


def _one_wrong(check: Check) -> str:
    instance = check.instance("SqueezeNet 1.1", check.few, devices=[MISSING, check.card.device])
    result = instance.run("run", "--drain")
    _expect(f"there is no {MISSING}" in result.stderr, result.stderr[-200:])
    _all_done(instance, check.few)
    return f"the other one did all {check.few} images"


def _two_workers(check: Check) -> str:
    root = check.folder / "root"
    root.mkdir()
    instance = check.instance("SqueezeNet 1.1", check.few, root, per_device=2, batch=4)
    with _running(instance) as daemon:
        wait_for(lambda: len(instance.live_workers()) == 2, 120, "two workers")
        (check.folder / f"images-{check.few}").rename(root / "all")
        wait_for(lambda: instance.count("done") == check.few, 120, "all images")
        daemon.send_signal(signal.SIGTERM)
        code = daemon.wait(60)
    _expect(code == 0, f"exit code {code}")
    _all_done(instance, check.few)
    # Both were ready; with few images, one of them may have taken all.
    done = _done_by_device(instance)
    _expect(len(done) == 2, f"only {sorted(done)}")
    return ", ".join(f"{device} {count}" for device, count in sorted(done.items())) + " images"


def _kill(check: Check) -> str:
    instance = check.instance("SqueezeNet 1.1", check.few, batch=4)
    with _running(instance, "--drain") as daemon:
        worker = wait_for(lambda: _in_forward(instance), 120, "a batch in the net")
        os.kill(worker, signal.SIGKILL)
        code = daemon.wait(check.card.limit_seconds)
    _expect(code == 0, f"exit code {code}")
    _all_done(instance, check.few)
    leases = len(_leases(instance))
    _expect(leases >= 2, "the worker was not replaced")
    return f"replaced; all {check.few} images done, none charged"


def _shared(check: Check) -> str:
    code = HOLDER.format(key="ResNet-50", device=check.card.device)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            instance = check.instance("SqueezeNet 1.1", check.few)
            result = instance.run("run", "--drain")
        finally:
            holder.kill()
    _all_done(instance, check.few)
    told = [line for line in result.stderr.splitlines() if " device_shared: " in line]
    _expect(bool(told), "no device_shared in the log: the driver may hide processes in a container")
    return told[0].partition(" device_shared: ")[2][:160]


def _huge(check: Check) -> str:
    instance = check.instance("VGG16", HUGE, batch=HUGE, lease_seconds=600)
    result = instance.run("run", "--drain", timeout=check.card.limit_seconds)
    _expect(result.returncode == 0, result.stderr[-300:])
    _all_done(instance, HUGE)
    halved = result.stderr.count(" memory_short: ") + result.stderr.count(" child_lacked_memory: ")
    return f"halved {halved} times, then all {HUGE} images done" if halved else f"a batch of {HUGE} fitted"


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def _all_done(instance: Instance, count: int) -> None:
    """Everything is done, catalog and store agree, and no image was charged."""
    _expect((found := check_promise(instance)) == Counter(done=count), str(dict(found)))
    charged = [row.path for row in instance.rows() if row.crashes or row.errors]
    _expect(not charged, f"charged: {charged[:3]}")


@contextmanager
def _running(instance: Instance, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    daemon = instance.start("run", *arguments)
    try:
        yield daemon
    finally:
        kill_all(daemon)


def _in_forward(instance: Instance) -> int | None:
    """The pid of a worker that has claimed images and settled none yet."""
    claimed = instance.count("claimed")
    workers = instance.live_workers() if claimed else []
    return next((worker["pid"] for worker in workers), None)


def _leases(instance: Instance) -> list[Any]:
    catalog = connect.open_catalog(instance.settings.catalog.url)
    try:
        with connect.reading(catalog) as conn:
            return list(conn.execute(sa.select(schema.leases).where(schema.leases.c.engine == "onnxruntime")))
    finally:
        catalog.dispose()


def _done_by_device(instance: Instance) -> Counter[str]:
    done: Counter[str] = Counter()
    for lease in _leases(instance):
        done[lease.device] += lease.done
    return done
