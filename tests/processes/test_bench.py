"""`featd bench` on a real net and real pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from featd.start.seat import hold_locks
from photographs import write_photographs
from running import Instance, make_instance


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    write_photographs(tmp_path / "images", 12)
    (tmp_path / "images" / "bad.jpg").write_bytes(b"no picture")
    return make_instance(tmp_path / "instance", tmp_path / "images", model__engine="onnxruntime")


def test_a_measurement_is_told_kept_written_and_used(instance: Instance) -> None:
    catalog = (instance.folder / "featd.db").read_bytes()
    done = instance.run("bench", "--seconds", "5", "--json", "--write")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    page = (Path(__file__).resolve().parents[2] / "docs/json.md").read_text(encoding="utf-8")
    section = page.split("\n## featd bench\n", 1)[1].split("\n## ", 1)[0]
    assert found.keys() == set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    assert found["engine"] == "onnxruntime"
    assert found["pictures"] == 13
    assert found["unreadable"] == 1
    assert found["limit"] in ("reading", "decoding", "forward", "writing")
    assert found["images_per_second"] > 0
    for part in ("decoding", "forward", "whole"):
        assert all(one["images_per_second"] > 0 for one in found[part]), part
    assert (instance.folder / "featd.db").read_bytes() == catalog
    assert json.loads(Path(found["kept"]).read_text())["fingerprint"] == found["fingerprint"]
    assert not list((instance.settings.store.path / "run").glob("bench-*"))

    chosen = found["settings"]
    workers = instance.settings.workers
    assert list(workers.devices) == chosen["devices"]
    assert (workers.batch, workers.threads, workers.decoders) == tuple(
        chosen[key] for key in ("batch", "threads", "decoders")
    )
    # The same without --write: the kept measurement says what "auto" is.
    text = instance.config.read_text()
    instance.config.write_text(text[: text.index("[workers]")])
    plan = instance.plan("worker-0")
    assert (plan.batch, plan.threads, plan.decoders) == (workers.batch, workers.threads, workers.decoders)


def test_it_does_not_measure_beside_a_running_featd(instance: Instance) -> None:
    with hold_locks(instance.settings):
        done = instance.run("bench")
    assert done.returncode == 1
    assert "featd runs here" in done.stderr


def test_without_pictures_it_says_what_to_name(instance: Instance, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.jpg").write_bytes(b"no picture")
    done = instance.run("bench", str(tmp_path / "none"))
    assert done.returncode == 1
    assert "bench FOLDER" in done.stderr
    done = instance.run("bench", str(tmp_path / "bad"))
    assert done.returncode == 1
    assert "could be decoded" in done.stderr
