"""Names of shards and blobs."""

from __future__ import annotations

from datetime import UTC, datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featd.errors import ConfigError
from featd.shards.layout import ShardName, check_blobs

NAMES = st.builds(
    ShardName,
    st.datetimes(
        timezones=st.sampled_from([UTC, timezone.min]),
        min_value=datetime(2, 1, 1),
        max_value=datetime(9998, 1, 1),
    ),
    st.integers(0, 2**63 - 1),
    st.text("0123456789abcdefABCDEF-_", min_size=1, max_size=40),
    st.integers(0, 10**6),
)


@given(NAMES)
def test_a_name_says_everything_back(name: ShardName) -> None:
    assert ShardName.parse(name.file_name) == name
    assert ShardName.parse_part(name.file_name + ".part") == name
    assert name.relative_path.startswith("shards/")
    assert name.relative_path.endswith("/" + name.file_name)


@given(NAMES, NAMES)
def test_names_are_ordered_by_time(one: ShardName, other: ShardName) -> None:
    if one.created_at < other.created_at:
        assert one.file_name < other.file_name
    assert (one == other) == (one.file_name == other.file_name)


@given(st.text(max_size=60))
def test_foreign_names_are_none(text: str) -> None:
    name = ShardName.parse(text)
    assert name is None or name.file_name == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.h5",
        "20261324T225501123456-1-a-1.h5",
        "20261124T225501123456-01-a-1.h5",
        "20261124T225501123456-1-a-1.h5.part",
        "20261124T225501123456-1-a/b-1.h5",
        "20261124T225501123456-1-a-1.h5\n",
    ],
)
def test_near_misses_are_none(text: str) -> None:
    assert ShardName.parse(text) is None


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["pool5", "pool5/7x7_s1"], "'pool5' and 'pool5/7x7_s1'"),
        (["pool5/7x7_s1", "pool5"], "'pool5/7x7_s1' and 'pool5'"),
        (["a", "a"], "twice"),
        (["a//b"], "empty part"),
        (["/a"], "empty part"),
        (["a/"], "empty part"),
        (["../a"], "empty part"),
        (["a/./b"], "empty part"),
        ([], "at least one"),
    ],
)
def test_blobs_that_cannot_stand_side_by_side(names: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check_blobs(names)
    assert "model.blobs" in str(caught.value)


def test_blobs_that_can() -> None:
    check_blobs(["pool5", "pool5_7x7", "inception/a", "inception/b", "..."])
