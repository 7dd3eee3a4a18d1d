"""The instance and its one fingerprint."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from featd.catalog import instance
from featd.catalog.schema import shards
from featd.catalog.settle import Identity
from featd.errors import EXIT_BAD_CONFIG, FingerprintError
from featd.states import Failure, Kind, State, Unchanged

OTHER = Identity("0" * 64, {"net": "other"}, {"fc7": [2.0]})


def test_an_instance_has_one_id_for_life(desk: Any) -> None:
    first = desk.do(instance.instance_id)
    assert len(first) == 36
    assert desk.do(instance.create_instance) == first


def test_the_first_vectors_fix_the_fingerprint(desk: Any) -> None:
    desk.find("bad")
    lease = desk.lease()
    desk.fail(lease, desk.claim(lease)[0], Kind.DECODE_CORRUPT)
    assert desk.do(instance.fingerprint) is None, "a failure fixes nothing"
    desk.make_done("x")
    assert desk.do(instance.fingerprint) == desk.identity.fingerprint
    assert desk.do(instance.spec) == desk.identity.spec
    assert desk.do(instance.golden) == desk.identity.golden


@pytest.mark.parametrize("how", ["made", "unchanged", "failure"])
def test_a_worker_of_another_fingerprint_settles_nothing(desk: Any, how: str) -> None:
    desk.make_done("x")
    desk.find("x", mtime_ns=2)
    lease = desk.lease()
    (image,) = desk.claim(lease)
    before = desk.row("x")
    outcome: dict[str, Any] = {
        "made": {"made": [image]},
        "unchanged": {"unchanged": [Unchanged(image, image.known_content)]},
        "failure": {"failures": [Failure(image, Kind.DECODE_CORRUPT, "")]},
    }[how]
    with pytest.raises(FingerprintError, match="000000000000") as raised:
        desk.settle(lease, **outcome, identity=OTHER)
    assert raised.value.exit_code == EXIT_BAD_CONFIG
    assert desk.row("x") == before
    assert len(desk.rows(shards)) == 1


def test_two_first_settles_at_once_fix_one_fingerprint(desk: Any) -> None:
    """Whoever comes second finds the first's, though its transaction began before that was committed."""
    desk.find(*(f"{n}" for n in range(8)))
    leases = [desk.lease() for _ in range(8)]
    claimed = [desk.claim(lease, 1) for lease in leases]
    start = threading.Barrier(8)
    refused: list[Exception] = []

    def settle(at: int) -> None:
        start.wait(30)
        try:
            desk.settle(leases[at], claimed[at], identity=OTHER if at % 2 else desk.identity)
        except FingerprintError as error:
            refused.append(error)

    threads = [threading.Thread(target=settle, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(refused) == 4
    done = [image.id for image in desk.rows(shards)]
    assert len(done) == 4
    held = desk.do(instance.fingerprint)
    spec = desk.do(instance.spec)
    assert (held, spec) in [(OTHER.fingerprint, OTHER.spec), (desk.identity.fingerprint, desk.identity.spec)]
    winners = {at % 2 for at in range(8) if desk.state(str(at)) is State.DONE}
    assert winners == {1 if held == OTHER.fingerprint else 0}
