"""Corrections of pixels: which a catalog's vectors lack, which images may be concerned, and having them read again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from featd.catalog import connect, corrections, migrate
from featd.catalog.schema import settings
from featd.errors import SchemaError
from featd.states import Correction, State, Unchanged

ROOTS = ("/data/a",)
ALL = dict.fromkeys(Correction, 1)


def read(desk: Any, work: Any, *arguments: Any) -> Any:
    with connect.reading(desk.engine) as conn:
        return work(conn, *arguments)


def made_before_corrections(desk: Any) -> None:
    """Make the catalog one that an earlier featd has left: its settings do not know of corrections."""
    desk.execute(sa.delete(settings).where(settings.c.name.in_([corrections.LACKED, corrections.REQUEUED])))


def upgrade(desk: Any) -> dict[Correction, int]:
    migrate.upgrade(desk.engine)
    return read(desk, corrections.undecided)  # type: ignore[no-any-return]


def old(desk: Any, *paths: str, orientation: str = "apply") -> None:
    """An earlier featd has made `paths` done, in shard 1."""
    made_before_corrections(desk)
    identity = replace(desk.identity, spec={"preprocess": {"orientation": orientation}})
    lease = desk.lease()
    desk.find(*paths)
    desk.settle(lease, desk.claim(lease), identity=identity)
    desk.end(lease)


def test_a_new_catalog_lacks_nothing(desk: Any) -> None:
    desk.end(desk.make_done("a.tif"))
    assert upgrade(desk) == {}
    lease = desk.lease()
    desk.find("a.tif", mtime_ns=2)
    assert desk.claim(lease)[0].lacks == ()


@pytest.mark.parametrize(
    ("orientation", "right"), [("apply", Correction.TIFF_ORIENTATION), ("ignore", Correction.EXIF_LONG)]
)
def test_an_old_catalog_lacks_what_its_preprocessing_has_to_do_with(
    desk: Any, orientation: str, right: Correction
) -> None:
    old(desk, "a.tif", orientation=orientation)
    assert upgrade(desk) == dict.fromkeys(set(Correction) - {right}, 1)


def test_an_old_catalog_without_vectors_lacks_nothing(desk: Any) -> None:
    desk.find("a.tif")
    made_before_corrections(desk)
    assert upgrade(desk) == {}


def test_no_upgrade_while_a_worker_may_make_vectors_without_a_correction(desk: Any) -> None:
    old(desk, "a.tif")
    lease = desk.lease()
    with pytest.raises(SchemaError, match="stop featd on every host"):
        migrate.upgrade(desk.engine)
    desk.end(lease)
    assert upgrade(desk)


def test_candidates_are_counted_by_the_ends_of_their_names(desk: Any) -> None:
    names = ["a.tif", "B.TIFF", "c.bmp", "d.jpg", "e.JPEG", "f.png", "g.webp", "h.gif", "tif", "x.d/no-end"]
    old(desk, *names, "failed.tif", "gone.tif")
    lease = desk.lease()
    desk.find("failed.tif", mtime_ns=2)
    desk.settle(lease, failures=[failure(image) for image in desk.claim(lease)])
    desk.vanish("gone.tif")
    desk.end(lease)
    lacked = upgrade(desk)
    later = desk.make_done("later.tif", "later.jpg")
    desk.find("elsewhere.tif", root=desk.other)
    desk.settle(later, desk.claim(later))
    counted = read(desk, corrections.count, lacked, ROOTS)
    assert counted == Counter({Correction.TIFF_ALPHA: 2 + 2, Correction.BMP_FIELDS: 1 + 2, Correction.EXIF_LONG: 4 + 2,
                               Correction.PNG_ANIMATION: 1 + 2})  # fmt: skip


def failure(image: Any) -> Any:
    from featd.states import Failure, Kind

    return Failure(image, Kind.DECODE_CORRUPT, "why")


def test_a_requeued_image_is_read_again_by_a_worker_that_knows_what_its_vector_lacks(desk: Any) -> None:
    old(desk, "a.tif", "b.tif", "c.gif", "claimed.tif", "no-end")
    lacked = upgrade(desk)
    lease = desk.lease()
    desk.find("claimed.tif", mtime_ns=2)
    (early,) = desk.claim(lease)
    desk.make_done("new.tif", lease=lease)
    chosen = {Correction.TIFF_ALPHA: lacked[Correction.TIFF_ALPHA]}
    assert corrections.requeue(desk.engine, chosen, ROOTS) == 3
    assert [desk.state(path) for path in ("a.tif", "b.tif", "no-end")] == [State.PENDING] * 3
    assert [desk.state(path) for path in ("c.gif", "new.tif", "claimed.tif")] == [
        State.DONE,
        State.DONE,
        State.CLAIMED,
    ]
    assert read(desk, corrections.undecided) == {one: 1 for one in lacked if one is not Correction.TIFF_ALPHA}

    # The worker that had claimed it did not know of the correction.
    desk.settle(lease, unchanged=[Unchanged(early, early.known_content)])
    assert desk.state("claimed.tif") is State.PENDING
    claimed = {image.path: image for image in desk.claim(lease)}
    assert {path: image.lacks for path, image in claimed.items()} == dict.fromkeys(
        ("a.tif", "b.tif", "claimed.tif", "no-end"), ("tiff-alpha",)
    )
    assert claimed["a.tif"].known_content == "hash of a.tif 1"
    desk.settle(
        lease, [claimed.pop("a.tif")], [Unchanged(one, one.known_content) for one in claimed.values()]
    )
    assert {desk.state(path) for path in ("a.tif", *claimed)} == {State.DONE}
    assert (desk.row("a.tif").shard_id, desk.row("b.tif").shard_id) == (3, 1)

    # From now on only the vector that was not made anew has to be looked at.
    desk.find("a.tif", "b.tif", mtime_ns=3)
    assert {image.path: image.lacks for image in desk.claim(lease)} == {"a.tif": (), "b.tif": ("tiff-alpha",)}


def test_an_interrupted_requeue_goes_on_when_it_is_repeated(
    desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old(desk, "a.tif", "b.tif", "c.tif")
    lacked = upgrade(desk)
    with monkeypatch.context() as patch:
        pages = iter([[desk.id("a.tif")]])
        patch.setattr(corrections, "_walk", lambda *_: pages_then_fail(pages))
        with pytest.raises(KeyboardInterrupt):
            corrections.requeue(desk.engine, lacked, ROOTS)
    assert read(desk, corrections.undecided) == lacked
    assert corrections.requeue(desk.engine, lacked, ROOTS) == 2
    assert [desk.row(path).version for path in ("a.tif", "b.tif", "c.tif")] == [2, 2, 2]
    assert read(desk, corrections.undecided) == {}


def pages_then_fail(pages: Any) -> Any:
    yield from pages
    raise KeyboardInterrupt


def test_a_page_of_candidates_does_not_sort_all_rows_of_a_root(desk: Any) -> None:
    if not desk.is_sqlite:
        pytest.skip("PostgreSQL chooses by its statistics, which a small table does not have")
    plans: list[str] = []
    with connect.reading(desk.engine) as conn:

        def explain(_conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            cursor.execute("EXPLAIN QUERY PLAN " + statement, parameters)
            plans.extend(row[3] for row in cursor.fetchall())

        sa.event.listen(desk.engine, "before_cursor_execute", explain)
        corrections.candidates(conn, 0, ALL, ROOTS, 10)
        sa.event.remove(desk.engine, "before_cursor_execute", explain)
    assert plans == ["SEARCH images USING INTEGER PRIMARY KEY (rowid>?)"]


def test_vectors_that_are_kept_are_not_asked_about_again(desk: Any) -> None:
    old(desk, "a.tif", "b.bmp")
    lacked = upgrade(desk)
    desk.do(corrections.keep, [Correction.TIFF_ALPHA])
    left = {one: newest for one, newest in lacked.items() if one is not Correction.TIFF_ALPHA}
    assert upgrade(desk) == left
    lease = desk.lease()
    desk.find("a.tif", mtime_ns=2)
    assert desk.claim(lease)[0].lacks == ()
