"""A walk goes in one order, and goes on where it was."""

from __future__ import annotations

import os
from pathlib import Path

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


def found(root: Path, **span: bytes | None) -> list[str]:
    portions = Walk(os.fsencode(root), EVERYTHING).portions(**span)  # type: ignore[arg-type]
    return [file.path for portion in portions for file in portion.files]


def test_a_folder_comes_before_those_in_it_in_order_of_name(root: Path) -> None:
    assert found(root) == ["x.jpg", *(f"{folder}/x.jpg" for folder in FOLDERS)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cursor=st.one_of(st.sampled_from(["", *FOLDERS]), st.text("abc-/", max_size=5)))
def test_two_spans_make_a_whole(root: Path, cursor: str) -> None:
    at = "/".join(part for part in cursor.split("/") if part).encode()
    behind, upto = found(root, after=at), found(root, upto=at)
    assert upto + behind == found(root)


def test_a_large_folder_comes_in_portions(tmp_path: Path) -> None:
    for number in range(PORTION_FILES + 1):
        (tmp_path / f"{number}.jpg").touch()
    portions = list(Walk(os.fsencode(tmp_path), EVERYTHING).portions())
    assert [(len(portion.files), portion.last) for portion in portions] == [(PORTION_FILES, False), (1, True)]


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
    assert [file.path for portion in walk.portions() for file in portion.files] == []
    assert walk.unreadable == []


def test_what_is_passed_over_is_counted_by_extension(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.HEIC", "c.heic", "notes", ".d.jpg", "draft.jpg"):
        (tmp_path / name).touch()
    (tmp_path / ".trash").mkdir()
    (tmp_path / ".trash" / "e.jpg").touch()
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    walk = Walk(os.fsencode(tmp_path), Globs(["**/*.jpg"], ["draft*"]))
    assert [file.path for portion in walk.portions() for file in portion.files] == ["a.jpg"]
    assert walk.ignored == {"heic": 2, "no extension": 1, "dot names": 2, "links": 1}
    for number in range(200):
        (tmp_path / f"x.{number}").touch()
    walk = Walk(os.fsencode(tmp_path), Globs(["**/*.jpg"]))
    list(walk.portions())
    assert len(walk.ignored) <= MOST_KINDS + 1
    assert walk.ignored.total() == 206
