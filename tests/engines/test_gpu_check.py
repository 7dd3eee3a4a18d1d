"""script/gpu-check where there is no GPU: its parts on the CPU, and what it compares with against real Caffe."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import nvml
from nets import real_caffe
from nvml import GB

PROJECT = Path(__file__).resolve().parents[2]
sys.path.append(str(PROJECT / "benchmarks"))

from gpu_check import correctness, reference, seeded  # noqa: E402
from gpu_check.card import Card, Watched  # noqa: E402
from gpu_check.report import Report, Row  # noqa: E402

SCRIPT = PROJECT / "script" / "gpu-check"
WATCH = """
import json, sys
sys.path.append(%r)
from gpu_check.card import Card
card = Card(fake=False)
with card.watched(0.01) as seen:
    while len(seen.used) < 20: pass
print(json.dumps([card.machine(), seen.percent_busy(), seen.used[0]]))
"""


def script(name: str) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(PROJECT / "script" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_every_part_on_the_cpu(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    file.write_text('{"machine": {"device": "another card"}, "parts": {"old": {}}}')
    command = [sys.executable, str(SCRIPT), "--fake", "--json", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(file.read_text())
    assert found["machine"]["fake"]
    assert found["machine"]["device"] == "a CPU in place of a GPU"
    assert list(found["parts"]) == ["correctness", "runs", "behaviour", "memory"], (
        "another card's are dropped"
    )
    rows = {part: {row["what"]: row for row in told["rows"]} for part, told in found["parts"].items()}
    for key in seeded.SMALL:
        row = rows["correctness"][f"{key} float32"]
        assert row["ok"]
        assert 0 < row["figures"]["l2"] < correctness.LIMIT
    (run,) = rows["runs"].values()
    assert run["figures"]["featd"] > 0
    assert run["figures"]["bare"] > 0
    provoked = {what for what, row in rows["behaviour"].items() if row["ok"]}
    assert provoked == {
        "a number that is no GPU's", "such a number beside a right one", "two workers on one device",
        "SIGKILL amid forward",
    }  # fmt: skip
    (held,) = rows["memory"].values()
    assert held["figures"]["peak"] > held["figures"]["weights"] > 1_000_000
    for part in rows.values():
        for what in part:
            assert what in result.stdout


def test_what_is_bad_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = seeded.SMALL[0]
    monkeypatch.setattr(seeded, "SMALL", [net])
    monkeypatch.setattr(seeded, "prepared", lambda key, of=seeded.prepared: of(key) * np.float32(1.01))
    report = Report(tmp_path / "found.json", {"device": "this one"})
    report.begin("correctness")
    correctness.run(Card(fake=True), report)
    assert not report.end("correctness")
    # A later part, of the same card, keeps it.
    later = Report(tmp_path / "found.json", {"device": "this one"})
    later.begin("memory")
    later.add(Row("a net", "not run"))
    assert later.end("memory")
    assert set(json.loads((tmp_path / "found.json").read_text())["parts"]) == {"correctness", "memory"}


def test_the_vectors_are_real_caffes(tmp_path: Path) -> None:
    real_caffe()
    key = seeded.SMALL[0]
    theirs = np.load(seeded.VECTORS)
    assert set(theirs) == set(seeded.NETS) == set(json.loads(seeded.FACTORS.read_text()))
    assert len(seeded.NETS) == 12
    assert seeded.distance(reference.vectors(key, tmp_path), theirs[key]) < 1e-6
    for layer, factors in reference.find_factors(key, tmp_path).items():
        assert factors == pytest.approx(seeded.factors(key)[layer], rel=1e-2), layer


@pytest.mark.long
@pytest.mark.parametrize("key", seeded.NETS)
def test_all_vectors_on_the_cpu(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeded, "SMALL", [key])
    report = Report(tmp_path / "found.json", {"device": "this one"})
    report.begin("correctness")
    correctness.run(Card(fake=True), report)
    assert report.end("correctness")


def test_the_card_is_watched(tmp_path: Path) -> None:
    env = nvml.library(tmp_path, [nvml.Gpu("GPU-1", used=9 * GB)])
    command = [sys.executable, "-c", WATCH % str(PROJECT / "benchmarks")]
    said = subprocess.run(command, env=env, check=True, capture_output=True).stdout
    machine, busy, used = json.loads(said)
    assert (machine["device"], machine["driver"], machine["memory"]) == ("NVIDIA L4", "550.54.15", 24 * GB)
    assert (busy, used) == (96.0, 9 * GB)


def test_starts_and_ends_do_not_count_as_idle() -> None:
    percents = [0, 0, 10, *[90, 100] * 10, 20, 0]
    assert Watched([(float(at), percent) for at, percent in enumerate(percents)]).percent_busy() == 95.0
    assert Watched([(0.0, 100), (1.0, 100)]).percent_busy() is None


def test_what_is_missing_is_named() -> None:
    """Without any installed package."""
    result = subprocess.run([sys.executable, "-I", "-S", str(SCRIPT)], capture_output=True, text=True)
    assert result.returncode == 2
    told = result.stderr.partition("not installed: ")[2]
    assert {"sqlalchemy", "onnxruntime-gpu", "nvidia-ml-py", "opencv-python-headless"} <= set(
        told.partition(";")[0].split(", ")
    )
    assert "script/gpu-wheels" in told
    result = subprocess.run([sys.executable, str(SCRIPT), "speed"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "no part speed: there are correctness, runs, behaviour, memory" in result.stderr


def test_large_wheels_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = script("gpu-wheels")
    assert any(one.startswith("onnxruntime-gpu") for one in wheels.wanted())
    monkeypatch.setattr(wheels, "MOST", 10)
    small, large = tmp_path / "small-1.whl", tmp_path / "large-1.whl"
    small.write_bytes(b"12345")
    large.write_bytes(b"abcdefghijklmnopqrstuvwxyz")
    made = dict(wheels.pieces([small, large]))
    assert made.pop("small-1.whl") == b"12345"
    assert sorted(made) == [f"large-1.whl.{at:03}" for at in range(3)]
    assert b"".join(made[name] for name in sorted(made)) == large.read_bytes()
