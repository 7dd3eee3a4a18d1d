"""docs/reliability.md is true: the tests, mutations and log events that it names are there, and fit each other."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
MUTATIONS = tomllib.loads((PROJECT / "tests" / "mutations.toml").read_text(encoding="utf-8"))
NOT_EVENTS = {
    "gone_after_seconds", "settle_seconds", "rescan_seconds", "stop_seconds", "max_pixels", "max_crashes",
    "max_user_watches", "protected_hardlinks", "held_back",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One fault."""

    fault: str
    seen: str
    tests: tuple[str, ...]
    mutations: tuple[str, ...]


def rows() -> Iterator[Row]:
    for line in (PROJECT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("|") and not line.startswith(("|---", "| what")):
            fault, _, seen, tests, mutations = [cell.strip() for cell in line.strip("|").split("|")]
            yield Row(fault, seen, tuple(quoted(tests)), tuple(quoted(mutations)))


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


ROWS = list(rows())


@cache
def source() -> str:
    return "\n".join(file.read_text(encoding="utf-8") for file in (PROJECT / "daemon").rglob("*.py"))


def exists(test: str) -> bool:
    """Whether there is such a test: `folder/file.py::name`, beneath tests/."""
    file, _, name = test.partition("::")
    path = PROJECT / "tests" / file
    return (
        path.is_file() and re.search(rf"^def {re.escape(name)}\(", path.read_text("utf-8"), re.M) is not None
    )


def names_of(mutation: str) -> set[str]:
    """The tests of a mutation, as the page writes them."""
    return {test.partition("[")[0].removeprefix("tests/") for test in MUTATIONS[mutation]["tests"]}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.fault[:60])
def test_what_a_row_names_is_there(row: Row) -> None:
    assert row.tests
    assert [test for test in row.tests if not exists(test)] == []
    for mutation in row.mutations:
        assert mutation in MUTATIONS
        assert names_of(mutation) & set(row.tests), f"{mutation} fails other tests"
    events = {word for word in quoted(row.seen) if re.fullmatch(r"[a-z]+(_[a-z]+)+", word)} - NOT_EVENTS
    assert [event for event in events if f'"{event}",' not in source()] == []


def test_every_mutation_stands_beside_a_fault() -> None:
    assert len(ROWS) > 70
    assert {mutation for row in ROWS for mutation in row.mutations} == set(MUTATIONS)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_fits_the_code(name: str) -> None:
    """`script/mutations` runs it; here only that the text is still there once, and that its tests are."""
    mutation = MUTATIONS[name]
    text = (PROJECT / mutation["file"]).read_text(encoding="utf-8")
    assert text.count(mutation["before"]) == 1
    assert mutation["before"] != mutation["after"]
    assert [test for test in names_of(name) if not exists(test)] == []
