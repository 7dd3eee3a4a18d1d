"""A walk goes in one order, and goes on where it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featd.ingest.walk import PORTION_FILES, Walked, walk
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
    portions = walk(os.fsencode(root), EVERYTHING, False, Walked(), **span)  # type: ignore[arg-type]
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
    portions = list(walk(os.fsencode(tmp_path), EVERYTHING, False, Walked()))
    assert [(len(portion.files), portion.last) for portion in portions] == [(PORTION_FILES, False), (1, True)]
