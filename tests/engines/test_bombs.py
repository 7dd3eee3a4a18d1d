"""Nets that declare what no machine can hold: refused before anything is allocated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engines.test_hostile import TEXT
from nets import layer, saved

BOMBS: dict[str, str] = {
    "a convolution of 10^6 x 10^6": layer(
        "x",
        "Convolution",
        "data",
        "convolution_param { num_output: 1000000 kernel_size: 1000000 pad: 999999 }",
    ),
    "an inner product of 10^9": layer(
        "x", "InnerProduct", "data", "inner_product_param { num_output: 1000000000 }"
    ),
    "a tile": layer("x", "Tile", "data", "tile_param { tiles: 2000000000 }"),
    "tiles of tiles": "".join(
        layer(f"t{at}", "Tile", f"t{at - 1}" if at else "data", "tile_param { tiles: 60 }")
        for at in range(20)
    )
    + layer("x", "ReLU", "t19"),
    "many blobs": "".join(layer(f"t{at}", "Tile", "data", "tile_param { tiles: 900000 }") for at in range(9))
    + layer("x", "Concat", " ".join(f"t{at}" for at in range(9))),
    "a deconvolution": layer(
        "x",
        "Deconvolution",
        "data",
        "convolution_param { num_output: 3 kernel_size: 2 stride: 1000000 bias_term: false }",
    ),
    "an upsampling": layer("x", "Upsample", "data", "upsample_param { scale: 100000 }"),
    "an interpolation": layer("x", "Interp", "data", "interp_param { height: 2000000000 width: 2000000000 }"),
    "a constant": layer(
        "d", "DummyData", "", "dummy_data_param { shape { dim: 1 dim: 1000000000000 dim: 14 dim: 15 } }"
    )
    + layer("x", "Concat", "data d"),
    "a parameter": layer("d", "Parameter", "", "parameter_param { shape { dim: 3 dim: 9000000000 } }")
    + layer("x", "Bias", "data d"),
    "a pooling": layer(
        "x", "Pooling", "data", "pooling_param { pool: AVE kernel_size: 1000000 pad: 999999 stride: 1000000 }"
    ),
    "an LRN across": layer("x", "LRN", "data", "lrn_param { local_size: 4294967295 }"),
    "an LRN within": layer(
        "x", "LRN", "data", "lrn_param { local_size: 100001 norm_region: WITHIN_CHANNEL }"
    ),
    "an embedding": layer(
        "x", "Embed", "data", "embed_param { num_output: 4000000000 input_dim: 4000000000 }"
    ),
    "a pyramid": layer("x", "SPP", "data", "spp_param { pyramid_height: 4000000000 }"),
    "a dilation": layer(
        "x",
        "Convolution",
        "data",
        "convolution_param { num_output: 3 kernel_size: 2 dilation: 4000000000 pad: 4000000000 }",
    ),
    "a reshape": layer(
        "x", "Reshape", "data", "reshape_param { shape { dim: 4000000000 dim: 4000000000 dim: -1 } }"
    ),
    "nesting": "layer { a_param " + "{ a " * 5000 + "}" * 5001,
    "a long name": f'layer {{ name: "{"x" * 9_000_000}" }}',
}


@pytest.mark.parametrize("what", BOMBS)
def test_bombs(tmp_path: Path, what: str) -> None:
    """A net that declares what no machine can hold: refused before anything is allocated."""
    model = saved(TEXT, tmp_path, ("x",), engine="onnxruntime")
    Path(model.net).write_text(TEXT + BOMBS[what])
    code = (
        "import resource, sys; from pathlib import Path; "
        "import onnxruntime; from featd.net.load import load_net; from featd.net.describe import describe; "
        "from featd.engines.onnxruntime import OnnxRuntimeEngine; from featd.errors import ModelError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        "model = (sys.argv[1], Path(sys.argv[2]), ('x',))\n"
        "try: OnnxRuntimeEngine(load_net(*model), 'cpu', 1)\n"
        "except ModelError as error: print('refused', error)\n"
        "try: describe(sys.argv[1], Path(sys.argv[2]))\n"
        "except ModelError as error: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, model.net, str(model.weights)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith("refused"), (done.stdout[:300], done.stderr[-2000:])
