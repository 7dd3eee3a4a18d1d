"""Published nets against real Caffe: a few that turn by the day, and the table of all in docs/nets.md.

FEATD_TEST_NETS=all runs every one; FEATD_TEST_NETS="VGG16,ResNet-50" runs those.
"""

from __future__ import annotations

import os
import time

import pytest

from architectures.compare import LIMIT, compare
from architectures.registry import DAYS, FAMILIES, NETS, chosen, on_turn
from engines.write_nets import PAGE, rows
from nets import real_caffe

DAY = int(time.time() // 86_400)
CHOSEN = chosen(os.environ.get("FEATD_TEST_NETS", ""), DAY)


@pytest.mark.parametrize("key", CHOSEN)
def test_published_net(key: str) -> None:
    real_caffe()
    for blob, seen in compare(NETS[key]).blobs.items():
        assert seen.error < seen.limit, blob


def test_every_net_has_its_turn() -> None:
    days = [on_turn(day) for day in range(DAYS)]
    assert set().union(*days) == set(NETS)
    assert len(NETS) == sum(len(family.NETS) for family in FAMILIES)


def test_the_table_holds_every_net() -> None:
    table = rows(PAGE.read_text())
    assert list(table) == list(NETS)
    for key, (name, form, layers, _, blobs, worst, limit) in table.items():
        net = NETS[key]
        assert (name, form) == (net.name, net.form)
        assert blobs == ", ".join(f"`{blob}`" for blob in net.blobs), key
        assert int(layers) == len(net.draw().layers), key
        assert float(worst) <= float(limit), key
        assert float(limit) >= LIMIT
