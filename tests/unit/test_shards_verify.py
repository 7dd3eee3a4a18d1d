"""Shards that are not as they were sealed: what is said of each, and that none of them blocks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featd.shards import verify
from featd.shards.checksum import checksum
from featd.shards.layout import ShardError
from featd.shards.verify import Fault, Verified


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "day" / "a.h5"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 100)
    return path


def spoil(shard: Path, how: str) -> None:
    data = shard.read_bytes()
    match how:
        case "flipped":
            shard.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
        case "cut":
            shard.write_bytes(data[:100])
        case "longer":
            shard.write_bytes(data + b"x")
        case _:
            shard.unlink()
    match how:
        case "a folder":
            shard.mkdir()
        case "a FIFO":
            os.mkfifo(shard)
        case "a link to itself":
            shard.symlink_to(shard)
        case "a dead link":
            shard.symlink_to("nowhere")
        case "its folder is a file":
            shard.parent.rmdir()
            shard.parent.touch()


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ("flipped", Fault.DAMAGED),
        ("cut", Fault.DAMAGED),
        ("longer", Fault.DAMAGED),
        ("deleted", Fault.MISSING),
        ("a folder", Fault.DAMAGED),
        ("a FIFO", Fault.DAMAGED),
        ("a link to itself", Fault.DAMAGED),
        ("a dead link", Fault.MISSING),
        ("its folder is a file", Fault.MISSING),
    ],
)
def test_what_is_wrong_is_said_and_nothing_blocks(shard: Path, how: str, fault: Fault) -> None:
    recorded, verified = checksum(shard), Verified()
    assert verified.fault(shard, recorded) is None
    spoil(shard, how)
    assert Verified().fault(shard, recorded) is fault
    with pytest.raises(FileNotFoundError if fault is Fault.MISSING else ShardError):
        Verified().check(shard, recorded)
    if how in ("flipped", "cut", "longer"):
        assert verified.fault(shard, recorded) is None, "compared once"
    else:
        assert verified.fault(shard, recorded) is fault, "looked at each time"


def test_a_shard_that_cannot_be_read_is_not_lost(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(verify, "checksum", fails)
    assert Verified().fault(shard, "x") is Fault.UNREADABLE
    assert not Fault.UNREADABLE.lost
    assert Fault.MISSING.lost
    assert Fault.DAMAGED.lost


def test_it_remembers_a_bounded_number(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "MOST", 2)
    verified, seen = Verified(), []
    real = checksum
    monkeypatch.setattr(verify, "checksum", lambda path: (seen.append(path), real(path))[1])
    recorded = checksum(shard)
    others = [shard.with_name(f"{n}.h5") for n in range(3)]
    for other in others:
        other.write_bytes(shard.read_bytes())
        verified.check(other, recorded)
    verified.check(others[2], recorded)
    verified.check(others[0], recorded)
    assert seen == [*others, others[0]]
