"""Layers and settings that the Caffe built here lacks, against a restatement of their forks' code, number by number."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.layer_case import Case, number, shaped
from engines.layer_record import RESTATED, record
from featd.engines.onnxruntime import OnnxRuntimeEngine
from featd.engines.select import load_engine
from featd.errors import ModelError
from nets import (
    TOLERANCE,
    both_engines,
    by_caffe,
    distance,
    input_layer,
    layer,
    load,
    pictures,
    real_caffe,
    saved,
    write_weights,
)

Array = npt.NDArray[np.float32]

few = settings(max_examples=30, deadline=None, derandomize=True, database=None)
sizes = st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))


def ran(case: Case, *blobs: str) -> list[Array]:
    """Blobs of two pictures, as (2, ...) arrays."""
    with tempfile.TemporaryDirectory() as folder:
        net = load(saved(input_layer(*case.dims) + case.text(), Path(folder), blobs, engine="onnxruntime"))
        assert net.one_by_one is None
        vectors = OnnxRuntimeEngine(net, "cpu", 1).forward(pictures(net, 2))
        shapes = [net.shapes[blob] or () for blob in blobs]
        return [vectors[blob].reshape(2, *shape[1:]) for blob, shape in zip(blobs, shapes, strict=True)]


def check(case: Case, ours: Array, theirs: Array) -> None:
    error = distance(ours, theirs.astype(np.float32))
    record(case.kind, case.settings, error, RESTATED)
    assert error < TOLERANCE, case.text()


def test_this_caffe_still_lacks_them() -> None:
    """Else they belong into test_layers.py."""
    have = set(real_caffe().layer_type_list())
    forks = {"BN", "Flip", "Reorg", "SeLU", "SeLu", "Unpooling"}
    assert not have & {"Clip", "Swish", "Interp", "Axpy", "ShuffleChannel", *forks}


@few
@given(sizes, number(-2, 1), number(-1, 2), st.sampled_from(["out", "x"]))
def test_clip(dims: tuple[int, int, int], low: float, high: float, top: str) -> None:
    case = Case(
        "Clip", {"min": low, "max": high}, dims, shaped(0.02, name="y") + layer("x", "Power", "y"), "x", top
    )
    before, after = ran(case, "y", top)
    check(
        case,
        after,
        np.array([max(np.float32(low), min(x, np.float32(high))) for x in before.ravel()]).reshape(
            before.shape
        ),
    )


@few
@given(sizes, number(-2, 2), st.booleans())
def test_swish(dims: tuple[int, int, int], beta: float, default: bool) -> None:
    case = Case("Swish", {} if default else {"beta": beta}, dims, shaped(0.05), "x")
    before, after = ran(case, "x", "out")
    by = 1.0 if default else beta
    check(
        case,
        after,
        np.array([x / (1 + math.exp(-by * x)) for x in before.ravel().tolist()]).reshape(before.shape),
    )


@few
@given(sizes, st.sampled_from(["f", "g"]))
def test_axpy(dims: tuple[int, int, int], factor: str) -> None:
    """SENet: a factor per channel, as (n, c) or (n, c, 1, 1)."""
    pool = layer("g", "Pooling", "data", "pooling_param { pool: AVE global_pooling: true }") + layer(
        "f", "Flatten", "g"
    )
    case = Case("Axpy", {}, dims, pool + shaped(0.3), f"{factor} data x")
    a, x, y, after = ran(case, factor, "data", "x", "out")
    want = np.empty_like(x)
    for n in range(2):
        for c in range(dims[0]):
            want[n, c] = a.reshape(2, -1)[n, c] * x[n, c] + y[n, c]
    check(case, after, want)


@few
@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.booleans())
def test_shuffle_channel(group: int, rows: bool) -> None:
    bottoms = "r" if rows else "x"
    before = shaped(1) + layer("c", "Tile", "x", "tile_param { tiles: 12 }")
    before += layer("r", "Flatten", "c", "flatten_param { axis: 2 }")
    case = Case(
        "ShuffleChannel",
        {"group": group},
        (1, 3, 4),
        before,
        "c" if not rows else bottoms,
        block="shuffle_channel_param",
    )
    x, after = ran(case, case.bottoms, "out")
    want = np.empty_like(x)
    for at in range(group):
        for within in range(12 // group):
            want[:, within * group + at] = x[:, at * (12 // group) + within]
    check(case, after, want)


def bilinear(x: Array, height: int, width: int) -> Array:
    """caffe_cpu_interp2 of DeepLab, written from its description: corners on corners."""
    out = np.zeros((*x.shape[:2], height, width))
    for h in range(height):
        at_h = h * (x.shape[2] - 1) / (height - 1) if height > 1 else 0.0
        top = min(int(at_h + 1e-6), x.shape[2] - 1)
        below = min(top + 1, x.shape[2] - 1)
        for w in range(width):
            at_w = w * (x.shape[3] - 1) / (width - 1) if width > 1 else 0.0
            left = min(int(at_w + 1e-6), x.shape[3] - 1)
            right = min(left + 1, x.shape[3] - 1)
            dh, dw = at_h - top, at_w - left
            out[:, :, h, w] = (1 - dh) * ((1 - dw) * x[:, :, top, left] + dw * x[:, :, top, right]) + dh * (
                (1 - dw) * x[:, :, below, left] + dw * x[:, :, below, right]
            )
    return out.astype(np.float32)


@few
@given(sizes, st.data())
def test_interp(dims: tuple[int, int, int], data: st.DataObject) -> None:
    begin, end = (data.draw(st.integers(-((min(dims[1:]) - 1) // 2), 0)) for _ in range(2))
    inside = [size + begin + end for size in dims[1:]]
    pad = {"pad_beg": begin, "pad_end": end} if begin or end else {}
    form = data.draw(st.sampled_from(["size", "zoom", "shrink", "both"]))
    factor = data.draw(st.integers(1, 4))
    if form == "size":
        out = [data.draw(st.integers(1, 14)) for _ in range(2)]
        how = {"height": out[0], "width": out[1]}
    elif form == "zoom":
        out, how = [size + (size - 1) * (factor - 1) for size in inside], {"zoom_factor": factor}
    elif form == "shrink":
        out, how = [(size - 1) // factor + 1 for size in inside], {"shrink_factor": factor}
    else:
        out = [(size - 1) // 2 + 1 for size in inside]
        out = [size + (size - 1) * (factor - 1) for size in out]
        how = {"shrink_factor": 2, "zoom_factor": factor}
    case = Case("Interp", how | pad, dims)
    x, after = ran(case, "data", "out")
    cut = x[:, :, -begin : dims[1] + end, -begin : dims[2] + end]
    check(case, after, bilinear(cut, *out))


def test_interp_to_the_size_of_another_blob() -> None:
    case = Case(
        "Interp",
        {},
        (3, 5, 7),
        layer("p", "Pooling", "data", "pooling_param { kernel_size: 2 stride: 2 }"),
        "p data",
    )
    small, after = ran(case, "p", "out")
    check(case, after, bilinear(small, 5, 7))


@few
@given(sizes, st.booleans(), st.sampled_from(["SeLU", "SeLu"]))
def test_selu(dims: tuple[int, int, int], default: bool, kind: str) -> None:
    how = {} if default else {"lambda": 1.5, "alpha": 0.7}
    case = Case(kind, how, dims, shaped(0.05), "x", block="selu_param")
    before, after = ran(case, "x", "out")
    by, alpha = (1.050700987, 1.67326324) if default else (1.5, 0.7)
    made = [by * (x if x > 0 else alpha * (math.exp(x) - 1)) for x in before.ravel().tolist()]
    check(case, after, np.array(made).reshape(before.shape))


@few
@given(sizes, st.dictionaries(st.sampled_from(["flip_width", "flip_height"]), st.booleans()))
def test_flip(dims: tuple[int, int, int], how: dict[str, bool]) -> None:
    case = Case("Flip", how, dims)
    x, after = ran(case, "data", "out")
    if how.get("flip_width", True):
        x = x[..., ::-1]
    check(case, after, x[:, :, ::-1] if how.get("flip_height") else x)


@few
@given(st.sampled_from([1, 2, 3]), st.booleans(), st.integers(1, 3))
def test_reorg(stride: int, reverse: bool, size: int) -> None:
    """darknet's reorg_cpu, which counts channels as if the other side had more of them, number by number."""
    channels, height, width = 3 * stride * stride, size * stride, stride
    before = layer("c", "Tile", "data", f"tile_param {{ tiles: {stride * stride} }}")
    how = {"stride": stride} | ({"reverse": True} if reverse else {})
    x, after = ran(Case("Reorg", how, (3, height, width), before, "c"), "c", "out")
    few_channels, x = channels // stride**2, x.reshape(2, -1)
    want = np.empty_like(x)
    for c in range(channels):
        for h in range(height):
            for w in range(width):
                inside, place = c % few_channels, c // few_channels
                high, wide = h * stride + place // stride, w * stride + place % stride
                here = w + width * (h + height * c)
                there = wide + width * stride * (high + height * stride * inside)
                if reverse:
                    want[:, there] = x[:, here]
                else:
                    want[:, here] = x[:, there]
    case = Case("Reorg", how, (3, height, width), before, "c")
    shape = (2, 3, height * stride, width * stride) if reverse else (2, channels * stride**2, size, 1)
    assert after.shape == shape
    check(case, after, want.reshape(shape))


@few
@given(
    st.sampled_from([{}, {"eps": 0.1}, {"frozen": True, "momentum": 0.95}, {"bn_mode": "INFERENCE"}]),
    st.integers(0, 99),
    st.booleans(),
)
def test_bn(how: dict[str, Any], seed: int, folded: bool) -> None:
    """PSPNet's (slope, bias, mean, variance) and SegNet's (scale, shift)."""
    case = Case("BN", how, (3, 4, 5), shaped(0.1), "x", block="bn_param")
    rng = np.random.default_rng(seed)
    arrays = [
        rng.uniform(0.5, 2, (1, 3, 1, 1)).astype(np.float32) for _ in range(2 if "bn_mode" in how else 4)
    ]
    with tempfile.TemporaryDirectory() as folder:
        text = input_layer(3, 4, 5) + case.text() + (layer("r", "ReLU", "out", top="out") if folded else "")
        model = saved(text, Path(folder), ("x", "out"), engine="onnxruntime")
        write_weights(Path(folder, "net.caffemodel"), "", {"out": arrays})
        net = load(model)
        vectors = OnnxRuntimeEngine(net, "cpu", 1).forward(pictures(net, 2))
    x, after = (vectors[blob].reshape(2, 3, 4, 5) for blob in ("x", "out"))
    factor, shift, *rest = (one.astype(np.float64) for one in arrays)
    mean, variance = rest or (0.0, 1.0 - 1e-5)
    want = factor * (x - mean) / np.sqrt(variance + how.get("eps", 1e-5)) + shift
    check(case, after, np.maximum(want, 0) if folded else want)


UNPOOLS = {
    "Unpooling": [{"kernel_size": 2, "stride": 2}, {"kernel_h": 2, "kernel_w": 2, "stride": 2, "unpool": "MAX"},

                  {"unpool_size": 6}, {"unpool_h": 6, "unpool_w": 6},
                  {"kernel_size": 4, "stride_h": 2, "stride_w": 2, "pad": 1},
                  {"kernel_size": 4, "stride": 2, "pad_h": 1, "pad_w": 1}],
    "Upsample": [{"scale_h": 2, "scale_w": 2}, {"scale": 2, "upsample_h": 6, "upsample_w": 6},
                 {"scale_h": 3, "scale_w": 3, "pad_out_h": 3, "pad_out_w": 3}],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "how"), [(kind, how) for kind in UNPOOLS for how in UNPOOLS[kind]])
def test_unpooling(kind: str, how: dict[str, Any]) -> None:
    pool = layer("p", "Pooling", "data", "pooling_param { kernel_size: 2 stride: 2 }", top="p mask")
    case = Case(kind, how, (3, 6, 6), pool, "p mask")
    p, mask, after = ran(case, "p", "mask", "out")
    want = np.zeros((2, 3, 36), np.float32)
    for n in range(2):
        for c in range(3):
            for at, place in enumerate(mask[n, c].ravel().astype(int)):
                want[n, c, place] = p[n, c].ravel()[at]
    check(case, after, want.reshape(2, 3, 6, 6))


@few
@given(st.sampled_from(["ConvolutionDepthwise", "DepthwiseConvolution"]), st.integers(1, 3), st.booleans())
def test_depthwise_is_a_convolution(kind: str, kernel: int, bias: bool) -> None:
    """Of as many groups as channels: real Caffe runs it as that."""
    settings = f"num_output: 3 kernel_size: {kernel} bias_term: {str(bias).lower()} "
    group = "group: 3 " if kind == "DepthwiseConvolution" else ""
    plain = layer("x", "Convolution", "data", f"convolution_param {{ {settings} group: 3 }}")
    theirs = layer("x", kind, "data", f"convolution_param {{ {settings} {group} }}")
    with tempfile.TemporaryDirectory() as folder:
        model = saved(input_layer(3, 6, 5) + plain, Path(folder), ("x",))
        want = by_caffe(model, pictures(load(model), 2))["x"]
        Path(model.net).write_text(input_layer(3, 6, 5) + theirs)
        net = load(model)
        for engine in both_engines(net):
            assert distance(engine.forward(pictures(net, 2))["x"], want) < TOLERANCE


def pooled(x: Array, method: str, kernel: int, stride: int, pad: int) -> Array:
    """Pooling with sizes rounded down."""
    out = [(size + 2 * pad - kernel) // stride + 1 for size in x.shape[2:]]
    top = np.zeros((*x.shape[:2], *out), np.float32)
    for h in range(out[0]):
        for w in range(out[1]):
            start = [at * stride - pad for at in (h, w)]
            end = [min(one + kernel, size + pad) for one, size in zip(start, x.shape[2:], strict=True)]
            count = (end[0] - start[0]) * (end[1] - start[1])
            part = x[:, :, max(start[0], 0) : end[0], max(start[1], 0) : end[1]]
            top[:, :, h, w] = part.max((2, 3)) if method == "MAX" else part.sum((2, 3)) / count
    return top


@few
@given(
    st.sampled_from(["MAX", "AVE"]),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 3),
    st.tuples(st.just(3), st.integers(5, 12), st.integers(5, 12)),
    st.sampled_from([{"round_mode": "FLOOR"}, {"ceil_mode": False}]),
)
def test_pooling_rounded_down(
    method: str, kernel: int, stride: int, pad: int, dims: tuple[int, int, int], how: dict[str, Any]
) -> None:
    pad = min(pad, kernel - 1)
    case = Case("Pooling", {"pool": method, "kernel_size": kernel, "stride": stride, "pad": pad} | how, dims)
    x, after = ran(case, "data", "out")
    error = distance(after, pooled(x, method, kernel, stride, pad))
    record("Pooling", how, error)
    assert error < TOLERANCE, case.text()


def expected(x: Array, kernel: int, stride: int) -> Array:
    """StoPoolForwardTest, which Caffe has for GPUs only: what STOCHASTIC pooling expects, sizes rounded up."""
    out = [-(-(size - kernel) // stride) + 1 for size in x.shape[2:]]
    top = np.zeros((*x.shape[:2], *out), np.float32)
    for h in range(out[0]):
        for w in range(out[1]):
            part = x[:, :, h * stride : h * stride + kernel, w * stride : w * stride + kernel]
            weights = part.sum((2, 3), np.float64) + np.finfo(np.float32).tiny
            top[:, :, h, w] = (part.astype(np.float64) ** 2).sum((2, 3)) / weights
    return top


@few
@given(st.integers(1, 5), st.integers(1, 7), st.tuples(st.just(3), st.integers(5, 12), st.integers(5, 12)))
def test_stochastic_pooling(kernel: int, stride: int, dims: tuple[int, int, int]) -> None:
    case = Case(
        "Pooling",
        {"pool": "STOCHASTIC", "kernel_size": kernel, "stride": stride},
        dims,
        layer("x", "ReLU", "data", top="x"),
        "x",
    )
    x, after = ran(case, "x", "out")
    error = distance(after, expected(x, kernel, stride))
    record("Pooling", case.settings, error)
    assert error < TOLERANCE, case.text()


@pytest.mark.parametrize("kind", ["Pooling", "SPP"])
def test_stochastic_pooling_is_not_given_to_real_caffe(kind: str, tmp_path: Path) -> None:
    """It would abort in the middle of a forward."""
    block = "pooling_param { kernel_size: 2" if kind == "Pooling" else "spp_param { pyramid_height: 1"
    text = input_layer(3, 4, 4) + layer("out", kind, "data", block + " pool: STOCHASTIC }")
    model = saved(text, tmp_path, ("out",))
    assert load_engine(load(model), "auto", "cpu").name == "onnxruntime"
    with pytest.raises(ModelError, match="not do on the CPU"):
        load_engine(load(model), "caffe", "cpu")


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (Case("Clip", {"min": 1}), "needs min and max"),
        (Case("ShuffleChannel", {"group": 2}, block="shuffle_channel_param"), "group 2 does not divide"),
        (Case("Interp", {}), "needs height and width"),
        (Case("Interp", {"height": 5, "width": 0}), "empty blob"),
        (Case("Interp", {"zoom_factor": 2, "pad_beg": 1}), "must not be above zero"),
        (Case("BN", {"bn_mode": "LEARN"}), "from the batch"),
        (Case("Reorg", {"stride": 2}), "does not divide"),
        (
            Case(
                "Unpooling",
                {"kernel_size": 2},
                bottoms="data data2",
                before=layer("data2", "Flatten", "data"),
            ),
            "mask",
        ),
        (Case("Unpooling", {"kernel_size": 2, "unpool": "AVE"}, bottoms="data data"), "only MAX"),
        (Case("Upsample", {"scale_h": 2, "scale_w": 2}), "the mask of its pooling"),
        (Case("Axpy", {}, bottoms="data data data"), "needs a factor per channel"),
        (Case("Pooling", {"pool": "STOCHASTIC", "kernel_size": 3, "pad": 1}), "allows no pad"),
        (Case("SPP", {"pool": "STOCHASTIC", "pyramid_height": 2}, (3, 5, 7)), "allows no pad"),
    ],
)
def test_bad_settings(case: Case, says: str, tmp_path: Path) -> None:
    model = saved(input_layer(*case.dims), tmp_path, ("out",))
    Path(model.net).write_text(input_layer(*case.dims) + case.text())
    with pytest.raises(ModelError, match=says):
        load(model)
