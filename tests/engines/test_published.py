"""Published nets against real Caffe, and the table of them in docs/nets.md."""

from __future__ import annotations

import pytest

from architectures.compare import LIMIT, compare
from architectures.registry import FAMILIES, NETS, QUICK
from engines.write_nets import PAGE, rows
from nets import real_caffe


@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=() if key in QUICK else pytest.mark.long) for key in NETS]
)
def test_published_net(key: str) -> None:
    real_caffe()
    for blob, seen in compare(NETS[key]).blobs.items():
        assert seen.error < seen.limit, blob


def test_every_name_is_a_nets() -> None:
    assert set(NETS) >= QUICK
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
