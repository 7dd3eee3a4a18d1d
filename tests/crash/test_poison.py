"""Poison of every kind among a thousand good images: each bad file costs itself, and no name does harm."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import running
from corpus import Expected, write_corpus
from featd.paths import to_catalog
from photographs import originals, variants
from running import check_promise, make_instance

GOOD = 1000
SCRIPT = Path(__file__).parents[1] / "misbehaving.py"
SECRET = "the text of a secret file"
NAMES = (
    b"=cmd().jpg",
    b"'; DROP TABLE images; --.jpg",
    b"<img src=x onerror=alert(1)>.jpg",
    b"title \x1b]0;owned\x07.jpg",
    b"return\rline\nERROR forged.jpg",
    "left \u202egpj.exe".encode() + b".jpg",
    b"-rf %s %n $(reboot) `reboot`.jpg",
    b"x" * 251 + b".jpg",
)
"""Hostile names of good images."""


def write_good(folder: Path) -> dict[bytes, Expected]:
    folder.mkdir(parents=True)
    sources = [variants(picture, seed) for seed, picture in enumerate(originals().values())]
    names = [b"%04d.jpg" % n for n in range(GOOD - len(NAMES))] + list(NAMES)
    for at, name in enumerate(names):
        small = cv2.resize(next(sources[at % len(sources)]), (96, 72))
        (folder / os.fsdecode(name)).write_bytes(bytes(cv2.imencode(".jpg", small)[1]))
    return {b"good/" + name: Expected("done") for name in names}


def write_poison(folder: Path, outside: Path) -> dict[bytes, Expected]:
    """Beside the usual odd files: a picture that aborts the engine, links of both kinds, special files, a polyglot."""
    expected = write_corpus(folder, outside / "linked.jpg")
    magenta = np.full((50, 50, 3), (255, 0, 255), np.uint8)
    cv2.imwrite(str(folder / "aborts.png"), magenta)
    (outside / "secret.txt").write_text(SECRET)
    (folder / "hard link.jpg").hardlink_to(outside / "secret.txt")
    (folder / "folder").symlink_to(outside)
    (folder / "loop").symlink_to("loop")
    (folder / "null.jpg").symlink_to("/dev/null")
    (folder / "script.jpg").write_text("#!/bin/sh\nreboot\n")
    (folder / "drawing.png").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>'
    )
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "hole.jpg").write_bytes(whole[:600] + bytes(len(whole) - 1200) + whole[-600:])
    (folder / "archive.jpg").write_bytes(
        whole + b"PK\x03\x04" + bytes(100)
    )  # also a zip, for who looks at its end
    with socket.socket(socket.AF_UNIX) as listening:
        there = os.open(folder, os.O_PATH)
        listening.bind(f"/proc/self/fd/{there}/socket.jpg")  # a longer path does not fit
        os.close(there)
    unsupported = Expected("failed", "decode.unsupported")
    expected |= {
        b"aborts.png": Expected("failed", "crash"),
        b"hard link.jpg": unsupported,
        b"script.jpg": unsupported,
        b"drawing.png": unsupported,
        b"hole.jpg": Expected("failed", "decode.truncated"),
        b"archive.jpg": Expected("done"),
    }
    return {b"bad/" + name: fate for name, fate in expected.items() if fate.state}


def test_a_bad_file_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside").mkdir()
    images = tmp_path / "images"
    expected = write_good(images / "good") | write_poison(images / "bad", tmp_path / "outside")
    monkeypatch.setattr(running, "FEATD", (sys.executable, str(SCRIPT), "abort"))
    instance = make_instance(
        tmp_path / "instance",
        images,
        workers__devices=["cpu"],
        workers__batch=32,
        retry__backoff_seconds=0.1,
    )
    result = instance.run("run", "--drain", plain_user=True)
    assert result.returncode == 4, result.stderr
    rows = {row.path: (row.state, row.error_kind) for row in instance.rows()}
    assert rows == {to_catalog(name): (fate.state, fate.kind) for name, fate in expected.items()}
    assert check_promise(instance)["done"] == sum(fate.state == "done" for fate in expected.values())
    told = "".join(
        instance.run(*command).stdout for command in (["failures"], ["failures", "--json"], ["status"])
    )
    said = result.stderr + told
    assert SECRET not in said + "".join(row.error or "" for row in instance.rows())
    assert not {char for char in said if not char.isprintable()} - {"\n"}
    assert not any(line.startswith("ERROR forged") for line in said.splitlines())
