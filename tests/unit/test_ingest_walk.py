"""A walk goes in one order, and goes on where it was."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featd.ingest import walk as walk_module
from featd.ingest.walk import MOST_KINDS, PORTION_FILES, Walk
from featd.paths import open_folder_beneath
from featd.roots import Globs

FOLDERS = ["a", "a/b", "a/b/c", "a-b", "a-b/a", "b", "b/a", "c"]
EVERYTHING = Globs(["**"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ["", *FOLDERS]:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "x.jpg").touch()
    return tmp_path


def found(root: Path, **span: str | None) -> list[str]:
    portions = Walk(os.fsencode(root), EVERYTHING).portions(**span)  # type: ignore[arg-type]
    return [path for portion in portions for path, *_ in portion]


@pytest.mark.parametrize("most", [1, 2, walk_module.MOST_NAMES])
def test_files_come_in_order_of_path(root: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Also those of folders that are too large to be sorted at once."""
    monkeypatch.setattr(walk_module, "MOST_NAMES", most)
    for name in (
        b"\xc3\xa9.jpg",
        b"\xff.jpg",
        b"a.jpg",
        b"a\\b.jpg",
        b"a\nb.jpg",
        b"\xf0\x9f\x98\x80.jpg",
        b"a0",
    ):
        (root / "a" / os.fsdecode(name)).touch()
        (root / "b" / os.fsdecode(name)).mkdir()
        (root / "b" / os.fsdecode(name) / "x.jpg").touch()
    paths = found(root)
    assert len(paths) == len(set(paths)) == len(FOLDERS) + 1 + 14
    assert paths == sorted(paths, key=str.encode)
    assert paths[:2] == ["a-b/a/x.jpg", "a-b/x.jpg"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    cursor=st.one_of(
        st.sampled_from(["", "x.jpg", *(f"{one}/x.jpg" for one in FOLDERS)]), st.text("abc-/x", max_size=5)
    ),
    most=st.sampled_from([1, 3, 100]),
)
def test_two_spans_make_a_whole(root: Path, cursor: str, most: int) -> None:
    everything = found(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk_module, "MOST_NAMES", most)
        behind, upto = found(root, after=cursor), found(root, upto=cursor)
    assert behind == [path for path in everything if path > cursor]
    assert upto == [path for path in everything if path <= cursor]


def test_a_large_folder_comes_in_portions(tmp_path: Path) -> None:
    for number in range(PORTION_FILES + 1):
        (tmp_path / f"{number}.jpg").touch()
    portions = list(Walk(os.fsencode(tmp_path), EVERYTHING).portions())
    assert [len(portion) for portion in portions if portion] == [PORTION_FILES, 1]


def test_a_time_beyond_those_of_the_databases_is_limited(tmp_path: Path) -> None:
    """File systems know more years than a database's number of nanoseconds."""
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "a.jpg", (0, 12_000_000_000))
    [files] = [portion for portion in Walk(os.fsencode(tmp_path), EVERYTHING).portions() if portion]
    assert files[0][2] == 2**63 - 1
    assert files[1][2] == (tmp_path / "b.jpg").stat().st_mtime_ns


def test_a_file_that_vanishes_while_others_are_looked_at_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (tmp_path / name).touch()
    real = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        if path == "b":
            (tmp_path / "b").unlink(missing_ok=True)
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert found(tmp_path) == ["a", "c"]


def test_a_folder_that_is_swapped_for_a_link_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its listing and its opening."""
    (tmp_path / "root" / "folder").mkdir(parents=True)
    (tmp_path / "root" / "folder" / "mine.jpg").touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.jpg").touch()

    def swapped(root_fd: int, raw: bytes) -> int:
        if raw == b"folder":
            (tmp_path / "root" / "folder").rename(tmp_path / "root" / "elsewhere")
            (tmp_path / "root" / "folder").symlink_to(tmp_path / "outside")
        return open_folder_beneath(root_fd, raw)

    monkeypatch.setattr(walk_module, "open_folder_beneath", swapped)
    walk = Walk(os.fsencode(tmp_path / "root"), EVERYTHING)
    assert [path for portion in walk.portions() for path, *_ in portion] == []
    assert walk.unreadable == []


def test_what_is_passed_over_is_counted_by_extension(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.HEIC", "c.heic", "notes", ".d.jpg", "draft.jpg"):
        (tmp_path / name).touch()
    (tmp_path / ".trash").mkdir()
    (tmp_path / ".trash" / "e.jpg").touch()
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    walk = Walk(os.fsencode(tmp_path), Globs(["**/*.jpg"], ["draft*"]))
    assert [path for portion in walk.portions() for path, *_ in portion] == ["a.jpg"]
    assert walk.ignored == {"heic": 2, "no extension": 1, "dot names": 2, "links": 1}
    for number in range(200):
        (tmp_path / f"x.{number}").touch()
    walk = Walk(os.fsencode(tmp_path), Globs(["**/*.jpg"]))
    list(walk.portions())
    assert len(walk.ignored) <= MOST_KINDS + 1
    assert walk.ignored.total() == 206
