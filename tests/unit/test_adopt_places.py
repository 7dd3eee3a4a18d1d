"""Which image a name of a script's file is: absolute, below the root, or the name of the file alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from featd.adopt.outcome import LeftRow, Outcome, Why
from featd.adopt.places import Places
from featd.adopt.script_file import ScriptFile
from featd.config import RootConfig
from scripts import script_file

FILES = (
    b"top.jpg",
    b"a/one.jpg",
    b"b/one.jpg",
    b"b/two.jpg",
    b"b/deep/top.jpg",
    b"c/caf\xe9\\.jpg",
    b"d/late.jpg",
)
MADE_AT = 2_000_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "images"
    for name in (*FILES, b"excluded/x.jpg", b"a/notes.txt"):
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (1, 3 if name == b"d/late.jpg" else 1))
    (folder / "link.jpg").symlink_to("top.jpg")
    return folder


def placed(
    root: Path, names: list[bytes], vectors: list[float] | None = None
) -> tuple[dict[int, str], dict[int, Why], Outcome]:
    """Row -> path for what has a place, row -> why for the others."""
    left: list[LeftRow] = []
    outcome = Outcome(tell=left.append)
    numbers = vectors or [float(row) for row in range(len(names))]
    path = script_file(root.parent / "part.h5", names, np.array(numbers, np.float32)[:, None])
    with (
        ScriptFile(path, "feats", "names", MADE_AT) as file,
        Places(RootConfig(path=root, exclude=("excluded",))) as places,
    ):
        assert places.scan(lambda *told: None) == (len(FILES), [])
        places.match([file], outcome, lambda *told: None)
        found = {one.row: one.found.path for block in places.blocks([file]) for one in block}
        assert places.count() == len(found)
        drawn = {one.row for one in places.drawn(2, 1)}
        assert (len(drawn), drawn <= found.keys()) == (min(2, len(found)), True)
    assert len(left) == outcome.left.total()
    assert {one.row for one in left}.isdisjoint(found)
    return found, {one.row: one.why for one in left}, outcome


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"%s/a/one.jpg", "a/one.jpg"),
        (b"%s//b/./one.jpg", "b/one.jpg"),
        (b"a/one.jpg", "a/one.jpg"),
        (b"./a/one.jpg\n", "a/one.jpg"),
        (b"images/a/one.jpg", "a/one.jpg"),  # relative to the folder above the root
        (b"data/images/b/one.jpg", "b/one.jpg"),
        (b"deep/top.jpg", "b/deep/top.jpg"),  # relative to a folder below it
        (b"/old/disk/a/one.jpg", "a/one.jpg"),  # of another machine
        (b"/old/two.jpg", Why.NOT_FOUND),  # a file of this name is elsewhere
        (b"two.jpg", "b/two.jpg"),
        (b"c/caf\xe9\\.jpg", "c/caf\\xe9\\\\.jpg"),
        (b"one.jpg", Why.IN_DOUBT),
        (b"top.jpg", Why.IN_DOUBT),  # perhaps the name alone of b/deep/top.jpg
        (b"x/one.jpg", Why.NOT_FOUND),
        (b"a/two.jpg", Why.NOT_FOUND),
        (b"%s/a/two.jpg", Why.NOT_FOUND),
        (b"none.jpg", Why.NOT_FOUND),
        (b"ne.jpg", Why.NOT_FOUND),
        (b"A/ONE.JPG", Why.NOT_FOUND),
        (b"d/late.jpg", Why.NEWER),
        (b"excluded/x.jpg", Why.LEFT_OUT),
        (b"a/notes.txt", Why.LEFT_OUT),
        (b"link.jpg", Why.LEFT_OUT),
        (b"a", Why.LEFT_OUT),
        (b"", Why.NO_PATH),
        (b"/", Why.NO_PATH),
        (b"a/../a/one.jpg", Why.NO_PATH),
        (b"%s/../images/a/one.jpg", Why.NO_PATH),
        (b"/etc/passwd", Why.NOT_FOUND),
        (b"/" * 5000, Why.NO_PATH),
        (b"x/" * 2100 + b"one.jpg", Why.NO_PATH),
        (b"\xff\xfe\x1b[2J", Why.NOT_FOUND),
        (b"%", Why.NOT_FOUND),
        (b"' OR 1=1 --", Why.NOT_FOUND),
    ],
)
def test_the_image_of_a_name(root: Path, name: bytes, path: str | Why) -> None:
    found, left, _ = placed(root, [name.replace(b"%s", os.fsencode(root))])
    assert (found.get(0) or left[0]) == path


def test_a_name_with_a_nul_is_none(root: Path) -> None:
    path = script_file(root.parent / "part.h5", [b"a/one\0.jpg"], np.zeros((1, 1), np.float32), fixed=True)
    outcome = Outcome()
    with ScriptFile(path, "feats", "names") as file, Places(RootConfig(path=root)) as places:
        places.scan(lambda *told: None)
        places.match([file], outcome, lambda *told: None)
    assert outcome.left == {Why.NO_PATH: 1}


def test_a_name_without_folder_among_names_with_folders_is_in_the_root(root: Path) -> None:
    assert placed(root, [b"top.jpg", b"a/one.jpg"])[0] == {0: "top.jpg", 1: "a/one.jpg"}


def test_the_root_behind_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert placed(tmp_path / "link", [os.fsencode(root / "b/one.jpg")])[0] == {0: "b/one.jpg"}


def test_an_image_that_is_named_twice(root: Path) -> None:
    """Equal vectors are one; of different ones, none is certain to be the image's, however many there are."""
    names = [b"a/one.jpg", b"b/two.jpg", b"a/one.jpg", b"b/one.jpg", b"b/two.jpg", b"b/two.jpg"]
    found, left, outcome = placed(root, names, [1, 2, 1, 3, 4, 2])
    assert found == {0: "a/one.jpg", 3: "b/one.jpg"}
    assert left == dict.fromkeys((1, 4, 5), Why.IN_DOUBT)
    assert outcome.same == 1
