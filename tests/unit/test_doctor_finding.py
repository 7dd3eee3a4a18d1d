"""What the doctor makes of the messages of errors: what is wrong, and what to do."""

from __future__ import annotations

import pytest
from rich.console import Console

from featd.doctor.finding import About, error, told
from featd.errors import FeatdError, FingerprintError
from featd.shards.store import RESTORED
from featd_cli.doctor import _show


@pytest.mark.parametrize(
    ("message", "text", "way_out"),
    [
        ("catalog x has schema 1, this featd needs 2: run `featd db upgrade`", "this featd needs 2", "run `"),
        ("/s: no store there: is the disk mounted?", "/s: no store there", "is the disk mounted?"),
        (
            RESTORED.format(store="/s"),
            "it was restored from a backup",
            "If it is to be used, run `featd db restored`",
        ),
        (
            "/s: the folder has no featd-store.json, which says whose store it is: is the right disk mounted? Where it"
            ' was removed by mistake, put it back: {"format": 1, "instance": "a"}',
            "says whose store it is",
            "is the right disk mounted?",
        ),
        (
            "roots: /a and /b are one folder, or one contains the other: keep one of them",
            "the other",
            "keep one",
        ),
        (
            "a.prototxt: has no blob 'fc9'; it has: fc7, prob",
            "it has: fc7, prob",
            "correct the section [model]",
        ),
    ],
)
def test_a_message_is_split_where_its_way_out_begins(message: str, text: str, way_out: str) -> None:
    found = told(About.MODEL, FeatdError(message))
    assert found.text.endswith(text)
    assert found.way_out.startswith(way_out)


def test_a_way_out_that_is_known_better_replaces_that_of_the_message() -> None:
    found = told(About.CATALOG, FingerprintError("no answer: run it again"), "start PostgreSQL")
    assert (found.text, found.way_out) == ("no answer: run it again", "start PostgreSQL")


@pytest.mark.parametrize("columns", [1, 20, 80])
def test_a_terminal_may_be_narrow(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", str(columns))
    _show([error(About.STORE, "a disk is not there", "mount the disk")])
    assert "a disk is not there → mount the disk" in " ".join(capsys.readouterr().out.split())
