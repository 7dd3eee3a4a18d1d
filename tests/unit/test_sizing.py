"""Which sizes workers get: what the configuration says, else what was measured here, else a rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from featd import sizing
from featd.bench.figures import Decoding, Disk, Figures, Forward, Whole, best_batch, candidates, limit
from featd.config import ModelConfig, Settings, StoreConfig
from featd.sizing import Sizes, keep, sizes

MEASURED = Sizes(("cpu", "cpu"), 3, 8, 1)


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(4)))


def settings_in(store: Path, **workers: Any) -> Settings:
    return Settings(store=StoreConfig(path=store), workers=workers)  # type: ignore[arg-type]


def test_without_a_measurement_a_rule_decides(tmp_path: Path) -> None:
    assert sizes(settings_in(tmp_path)) == Sizes(("cpu",), 4, 32, 2)
    assert sizes(settings_in(tmp_path, devices=["cpu", "cpu"])).threads == 2


def test_a_measurement_is_used_where_the_configuration_says_auto(tmp_path: Path) -> None:
    keep(settings_in(tmp_path), {}, MEASURED)
    assert sizes(settings_in(tmp_path)) == MEASURED
    assert sizes(settings_in(tmp_path, batch=5, threads=1, decoders=7)) == Sizes(("cpu", "cpu"), 1, 5, 7)
    assert sizes(settings_in(tmp_path, devices=["cpu"])) == Sizes(("cpu",), 4, 32, 2)
    three = sizes(settings_in(tmp_path, per_device=3))
    assert three == Sizes(("cpu",) * 3, 1, 32, 2), "how many workers there are is said"


def test_a_measurement_of_something_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_in(tmp_path)
    keep(settings, {}, MEASURED)
    other = settings.model_copy(update={"model": ModelConfig(engine="onnxruntime")})
    assert sizes(other) == sizes(settings_in(tmp_path / "elsewhere"))
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("socket.gethostname", lambda: "another-host")
        assert sizes(settings) == sizes(settings_in(tmp_path / "elsewhere"))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(2)))
    assert sizes(settings) == Sizes(("cpu",), 2, 32, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 0},
        {"batch": "8"},
        {"threads": True},
        {"decoders": 10**9},
        {"devices": []},
        {"devices": [1]},
        {"devices": "cpu"},
        {"other": 1},
        None,
    ],
)
def test_whatever_is_in_the_file_a_start_goes_on(tmp_path: Path, wrong: dict[str, object] | None) -> None:
    settings = settings_in(tmp_path)
    file = keep(settings, {}, MEASURED)
    document = json.loads(file.read_text())
    document["settings"] = wrong if wrong is None else document["settings"] | wrong
    file.write_text(json.dumps(document))
    assert sizes(settings) == Sizes(("cpu",), 4, 32, 2)
    for text in ("", "[" * 100_000, "[1]", "\udcff"):
        file.write_bytes(text.encode(errors="surrogateescape"))
        assert sizes(settings) == Sizes(("cpu",), 4, 32, 2)


def test_a_start_that_cannot_use_a_gpu_takes_no_measurement_of_one(tmp_path: Path) -> None:
    keep(settings_in(tmp_path), {}, Sizes(("cuda:0",), 4, 64, 8))
    assert sizes(settings_in(tmp_path)).devices == ("cpu",)
    assert sizing.kept(settings_in(tmp_path)) is not None


# What follows from figures


def rows(rates: dict[int, float], devices: tuple[str, ...] = ("cpu",), threads: int = 4) -> list[Forward]:
    return [Forward(devices, threads, batch, rate) for batch, rate in rates.items()]


def test_the_smallest_batch_that_is_nearly_the_fastest() -> None:
    assert best_batch(rows({1: 20, 2: 38, 4: 39.5, 8: 40})).batch == 2
    assert best_batch(rows({1: 20, 2: 30, 4: 35, 8: 40})).batch == 8


def test_a_pass_is_not_shorter_than_the_work_around_it() -> None:
    assert best_batch(rows({1: 1000, 8: 800, 16: 990})).batch == 16
    assert best_batch(rows({1: 100_000, 8: 90_000, 16: 80_000})).batch == 16


def figures(**more: Any) -> Figures:
    forward = rows({1: 20, 8: 100}) + rows({1: 30, 8: 110}, ("cpu", "cpu"), 2)
    return Figures(cores=4, decoding=[Decoding(1, 50.0), Decoding(2, 90.0)], forward=forward, **more)


def test_decoders_keep_up_with_the_net_and_take_no_more_than_the_cores() -> None:
    found = candidates(figures())
    assert found == [Sizes(("cpu", "cpu"), 2, 8, 2), Sizes(("cpu",), 4, 8, 3)]


def test_more_workers_must_be_worth_their_memory() -> None:
    one, two = Sizes(("cpu",), 4, 8, 1), Sizes(("cpu", "cpu"), 2, 8, 1)
    assert figures(whole=[Whole(two, 105, {}), Whole(one, 100, {})]).best.sizes == one
    assert figures(whole=[Whole(two, 120, {}), Whole(one, 100, {})]).best.sizes == two


@pytest.mark.parametrize(
    ("reading", "writing", "share", "name", "words"),
    [
        (110.0, 900.0, {"forward": 0.9}, "reading", "the disk of the pictures gives 110 images/s"),
        (900.0, 50.0, {"forward": 0.9}, "writing", "the disk of the store gives 50 images/s"),
        (900.0, 900.0, {"forward": 0.3, "decode": 0.7}, "decoding", "the net waits for pictures 70%"),
        (900.0, 900.0, {"forward": 0.9, "decode": 0.1}, "forward", "the net limits (90% of the time)"),
    ],
)
def test_what_limits_is_named(
    reading: float, writing: float, share: dict[str, float], name: str, words: str
) -> None:
    found = figures(
        whole=[Whole(Sizes(("cpu",), 4, 8, 1), 100.0, share)],
        reading=Disk(reading, 1.0),
        writing=Disk(writing, 1.0),
    )
    assert limit(found)[0] == name
    assert words in limit(found)[1]
