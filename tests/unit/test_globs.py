"""Which files are images: include and exclude patterns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featd.config import DEFAULT_EXCLUDE, DEFAULT_INCLUDE
from featd.roots import Globs, _compile


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("a.jpg", True),
        ("A.JPG", True),
        ("sub/deep/b.Jpeg", True),
        ("notes.txt", False),
        (".hidden.jpg", False),
        ("sub/.trash/c.jpg", False),
        ("no-suffix", False),
        ("odd\\xff.tif", True),
        ("jpg", False),
        *((f"a.{ext}", True) for ext in ("jpe", "jfif", "ppm", "pgm", "pbm", "heic", "avif", "PNM")),
    ],
)
def test_the_default_patterns(path: str, wanted: bool) -> None:
    assert Globs(DEFAULT_INCLUDE).wants(path) is wanted


def test_what_is_excluded_is_not_walked() -> None:
    globs = Globs(["**/*.jpg"], ["Thumbs/**", "**/cache", "**/*-small.jpg"])
    assert not globs.wants("thumbs/a.jpg")
    assert not globs.wants("x/a-small.jpg")
    assert globs.wants("x/thumbs/a.jpg")
    assert globs.excludes_folder("thumbs")
    assert globs.excludes_folder("x/cache")
    assert not globs.excludes_folder("x")


@pytest.mark.parametrize(
    "folder",
    [
        *(
            "@eaDir",
            "#recycle",
            "#snapshot",
            "$RECYCLE.BIN",
            "@Recycle",
            ".Trash",
            ".Trash-1000",
            ".stversions",
        ),
        *("@Recently-Snapshot", "$Recycle.Bin", "System Volume Information"),
    ],
)
@pytest.mark.parametrize("above", ["", "2026/a/"])
def test_thumbnails_and_bins_are_left_out_by_default(folder: str, above: str) -> None:
    globs = Globs(DEFAULT_INCLUDE, DEFAULT_EXCLUDE)
    assert globs.excludes_folder(above + folder)
    assert not globs.takes(f"{above}{folder}/a.jpg/SYNOPHOTO_THUMB_M.jpg")
    assert globs.takes(f"{above}my {folder}/a.jpg")


def test_the_default_patterns_need_no_expression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would be compared with each of millions of files."""
    globs = Globs(DEFAULT_INCLUDE, DEFAULT_EXCLUDE)
    monkeypatch.setattr(globs, "_include", None)
    monkeypatch.setattr(globs, "_exclude", None)
    assert globs.wanted("a/", ["x.jpg", "x.txt", "@Recently-Snapshot", ".x.jpg"]) == ["x.jpg"]
    assert globs.excludes_folder("@Recently-Snapshot")


@given(
    include=st.lists(
        st.sampled_from(["**/*.jpg", "**/*.PNG", "**/*.tar.gz", "*.jpg", "**/a*.jpg"]), min_size=1
    ),
    exclude=st.lists(
        st.sampled_from(["**/@eaDir", "**/.Trash*", "**/Tmp", "**/@Tmp-2", "**/a b*", "x/**", "**/*.bak.jpg"])
    ),
    parts=st.lists(
        st.sampled_from(
            [
                "a.jpg",
                "a.JPG",
                ".jpg",
                "jpg",
                ".a.jpg",
                "a.png",
                "@EADIR",
                ".trash-1",
                ".Trash",
                "tmp",
                "tmp2",
                "@tmp-2",
                "x",
            ]
        )
        | st.sampled_from(
            ["a b", "A B.jpg", "a.bak.jpg", "a.tar.gz", "ſ.jpg", "a.jpg\n", "İ.PNG", "a..jpg", "..a.jpg"]
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_usual_patterns_mean_what_their_expressions_match(
    include: list[str], exclude: list[str], parts: list[str]
) -> None:
    globs, path = Globs(include, exclude), "/".join(parts)
    included = _compile(include).match(path) is not None
    for one in (path, f"{path}/"):
        assert globs.excludes(one) == (_compile(exclude, dots=True).match(one) is not None)
    assert globs.wants(path) == (included and not globs.excludes(path))
    prefix = path.removesuffix(parts[-1])
    assert globs.wanted(prefix, [parts[-1]]) == ([parts[-1]] if globs.wants(path) else [])
    folder = path.rpartition("/")[0]
    assert globs.takes(path) == globs.takes(path) == (globs.wants(path) and globs.takes_folder(folder))
