"""The table in docs/nets.md: every lowered type, every setting, and no error above the tolerance."""

from __future__ import annotations

from engines.layer_cases import CASES
from engines.write_table import BEGIN, END, PAGE
from featd.net import schema
from featd.net.layers.table import TYPES
from nets import TOLERANCE

NOT_COMPARED = {"Input", "Silence"}
"""The one is in every net, the other makes nothing."""
BLOCKS = {
    "Deconvolution": "convolution_param", "InnerProduct": "inner_product_param", "BatchNorm": "batch_norm_param",
    "SeLu": "selu_param",
    "Normalize": "norm_param", "ShuffleChannel": "shuffle_channel_param", "DummyData": "dummy_data_param",
}  # fmt: skip
NO_MATTER = {
    "engine",
    "filler",
    "weight_filler",
    "bias_filler",
    "scale_filler",
    "shift_filler",
    "slope_filler",
}
"""Settings of training, or of how the same is computed."""


def rows() -> dict[str, list[str]]:
    page = PAGE.read_text()
    table = page[page.index(BEGIN) : page.index(END)].splitlines()[3:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {cell[0]: cell for cell in cells}


def test_every_lowered_type_is_in_the_table() -> None:
    assert set(rows()) == set(TYPES) - NOT_COMPARED
    assert set(CASES) < set(TYPES)


def test_every_setting_is_covered() -> None:
    for kind, (_, _, covered, _) in rows().items():
        block = BLOCKS.get(kind, "")
        spec = schema.FIELDS["LayerParameter"].get(block or f"{kind.lower()}_param")
        wanted = set(schema.FIELDS[spec.type]) - NO_MATTER if spec else set()
        assert wanted <= set(covered.split(", ")), kind


def test_no_error_is_above_the_tolerance() -> None:
    for kind, (_, against, _, worst) in rows().items():
        assert float(worst) < TOLERANCE, kind
        assert against in ("Caffe", "restated")
