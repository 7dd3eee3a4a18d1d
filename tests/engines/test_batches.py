"""Any batch of any net; nets whose images would mix run them one by one, with a warning."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from featd.errors import ModelError
from nets import (
    TOLERANCE,
    agree,
    both_engines,
    by_caffe,
    disagreement,
    distance,
    input_layer,
    layer,
    load,
    pictures,
    saved,
)


def test_constants_beside_the_picture(tmp_path: Path) -> None:
    """As long as the batch of the file: any batch runs, one image at a time."""
    ones = (
        'layer { name: "d" type: "DummyData" top: "ones" dummy_data_param { shape { dim: 5 dim: 2 dim: 6 dim: 5 } '
        "data_filler { value: 2.5 } } }"
    )
    text = input_layer(3, 6, 5).replace("dim: 1 ", "dim: 5 ") + ones + layer("both", "Concat", "data ones")
    model = saved(text, tmp_path, ("both",))
    net = load(model)
    assert net.one_by_one is not None
    batch = pictures(net, 5)
    want = by_caffe(model, batch)["both"]
    for engine in both_engines(net):
        assert distance(engine.forward(batch)["both"], want) < TOLERANCE
        assert distance(engine.forward(batch[:2])["both"], want[:2]) < TOLERANCE
    random = text.replace("value: 2.5", "type: 'uniform'")
    with pytest.raises(ModelError, match="'uniform' is random"):
        load(saved(random, tmp_path, ("both",)))
    with pytest.raises(ModelError, match="'ones' does not depend on the picture"):
        load(saved(text, tmp_path, ("both", "ones")))
    inplace = text + layer("r", "Power", "ones", "power_param { shift: 1 }", top="ones")
    Path(model.net).write_text(inplace)
    with pytest.raises(ModelError, match="filled only once"):
        load(model)


def test_batch_of_the_file_in_a_reshape(tmp_path: Path) -> None:
    text = input_layer(3, 6, 5).replace("dim: 1 ", "dim: 4 ")
    text += layer("r", "Reshape", "data", "reshape_param { shape { dim: 4 dim: 30 dim: -1 } }")
    text += layer("ip", "InnerProduct", "r", "inner_product_param { num_output: 4 }") + layer(
        "p", "Softmax", "ip"
    )
    model = saved(text, tmp_path, ("r", "ip", "p"))
    net = load(model)
    assert net.one_by_one is None
    agree(model, 4)
    assert disagreement(model, 3) < TOLERANCE


MIXING = {
    "batch statistics": layer("m", "BatchNorm", "data", "batch_norm_param { use_global_stats: false }"),
    "rows": layer("m", "Reshape", "data", "reshape_param { shape { dim: -1 dim: 5 } }"),
    "softmax": layer("m", "Softmax", "data", "softmax_param { axis: 0 }"),
    "reduction": layer("m", "Reduction", "data", "reduction_param { operation: ASUM }"),
    "concat": layer("m", "Concat", "data data", "concat_param { axis: 0 }"),
    "weights": layer("m", "Scale", "data", "scale_param { axis: 0 num_axes: 2 }"),
    "permuted": layer("m", "Permute", "data", "permute_param { order: 1 }"),
}


@pytest.mark.parametrize("case", MIXING)
def test_images_that_mix_run_alone(tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture) -> None:
    text = input_layer(3, 6, 5) + MIXING[case] + layer("out", "TanH", "m")
    model = saved(text, tmp_path, ("m", "out"))
    caplog.set_level(logging.WARNING, "featd.engine")
    engines = both_engines(load(model))
    batch = pictures(engines[0], 3)  # type: ignore[arg-type]
    want = by_caffe(model, batch, alone=True)
    for engine in engines:
        for _ in range(2):
            for blob, vectors in engine.forward(batch).items():
                assert distance(vectors, want[blob]) < TOLERANCE, (engine.name, blob)
    assert [record.message for record in caplog.records] == [
        "images in a batch affect each other in this net; running each image alone, which is slower"
    ] * 2
