"""Every layer type that is lowered, as random settings that Caffe takes: what the differential tests draw from."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from engines.layer_case import (
    Case,
    Draw,
    flags,
    number,
    parameter,
    pictures,
    reshaped,
    shape,
    shaped,
    small,
    some,
    written,
)
from nets import layer


def neuron(kind: str, span: float = 0.02, block: str = "", middle: float = 0.0, **values: Any) -> Any:
    """A layer that looks at one number at a time, in place or not."""

    def made(draw: Draw) -> Case:
        tops = "out" if kind == "AbsVal" else draw(st.sampled_from(["out", "x"]))
        before = shaped(draw(st.sampled_from([span, span * 3])), middle)
        return Case(kind, some(draw, **values), draw(pictures), before, "x", tops, block)

    return made


def sigmoid(draw: Draw) -> Case:
    """Far below zero too, where a vector is all small numbers."""
    case: Case = neuron("Sigmoid", middle=draw(st.sampled_from([-20.0, 0.0])))(draw)
    return case


def power(draw: Draw) -> Case:
    before = shaped(draw(st.sampled_from([0.01, 0.5])), draw(st.sampled_from([0.0, 70.0])))
    settings = some(draw, scale=number(0.1, 2), shift=number(0, 3), power=st.sampled_from([0, 1, 2, 3, -1]))
    if draw(flags):
        before += layer("y", "AbsVal", "x")
        settings["power"], settings["shift"] = draw(st.sampled_from([0.5, -0.5, -0.75, 1.3, 2.5])), 0.01
        return Case("Power", settings, draw(pictures), before, "y")
    return Case("Power", settings, draw(pictures), before, "x", draw(st.sampled_from(["out", "x"])))


def log(draw: Draw) -> Case:
    before = shaped(0.01) + layer("y", "AbsVal", "x") + layer("z", "Power", "y", "power_param { shift: 1.5 }")
    settings = some(draw, base=st.sampled_from([-1, 2, 10, 0.5]), scale=number(0.5, 2), shift=number(0, 3))
    return Case("Log", settings, draw(pictures), before, "z")


def window(draw: Draw, spatial: int) -> dict[str, Any]:
    many = st.lists(small, min_size=spatial, max_size=spatial) | small
    out: dict[str, Any] = {"kernel_size": draw(many)}
    out |= some(draw, stride=many, dilation=many)
    if draw(flags):
        out["pad"] = draw(st.integers(0, 3))
    if spatial == 2 and draw(flags):
        for name, short in (("kernel_size", "kernel"), ("stride", "stride"), ("pad", "pad")):
            if name in out:
                value = out.pop(name)
                high, wide = value if isinstance(value, list) else (value, value)
                out |= {f"{short}_h": high, f"{short}_w": wide}
    return out


def convolution(kind: str) -> Any:
    def made(draw: Draw) -> Case:
        along = draw(st.sampled_from([1, 1, 1, 1, 0, 2]))
        if along != 1:
            return other_axis(kind, along, draw)
        spatial = draw(st.sampled_from([1, 2, 2, 2, 3]))
        settings = window(draw, spatial) | {"num_output": draw(st.sampled_from([3, 6]))}
        settings |= some(
            draw, bias_term=flags, group=st.sampled_from([1, 3]), force_nd_im2col=flags, axis=st.just(1)
        )
        before, bottoms, size = "", "data", {1: 12, 2: 12, 3: 12}[spatial]
        if spatial == 1:
            before = reshaped("0 3 -1")
        if spatial == 3:
            before = reshaped("0 3 12 12 -1")
        if spatial != 2:
            bottoms = "r"
        if draw(flags):
            before += layer("b", "Power", bottoms, "power_param { scale: 0.5 }")
            bottoms += " b"
        tops = "out" if " " not in bottoms else "out out2"
        dims = (3, size, 12 * 12 if spatial == 3 else size)
        return Case(kind, settings, dims, before, bottoms, tops, "convolution_param")

    return made


def other_axis(kind: str, along: int, draw: Draw) -> Case:
    """Channels that do not lie along axis 1; along axis 0 they are the images of the batch."""
    settings = window(draw, 3 - along) | {"num_output": draw(st.sampled_from([3, 6]))}
    settings |= {"axis": draw(st.sampled_from([along, along - 4]))} | some(draw, bias_term=flags)
    if kind == "Deconvolution":
        # It would take away more than there is.
        settings.pop("pad", None)
    if along == 2:
        settings |= some(draw, group=st.sampled_from([1, 3]))
    return Case(kind, settings, (3, 6, 7), block="convolution_param")


def pooling(draw: Draw) -> Case:
    size = draw(st.tuples(st.integers(1, 15), st.integers(1, 15)))
    settings: dict[str, Any] = some(draw, pool=st.sampled_from(["MAX", "AVE"]))
    if draw(st.integers(0, 5)) == 0:
        return Case("Pooling", settings | {"global_pooling": True}, (3, *size))
    kernel = [draw(st.integers(1, 6)) for _ in range(2)]
    stride = [draw(st.integers(1, 7)) for _ in range(2)]
    pad = [draw(st.integers(0, 5)) for _ in range(2)]
    for name, short, values in (
        ("kernel_size", "kernel", kernel),
        ("stride", "stride", stride),
        ("pad", "pad", pad),
    ):
        if draw(flags):
            values[:] = [min(values)] * 2
        if name == "pad":
            values[:] = [min(one, most - 1) for one, most in zip(values, kernel, strict=True)]
        if values[0] == values[1] and draw(flags):
            settings[name] = values[0]
        else:
            settings |= {f"{short}_h": values[0], f"{short}_w": values[1]}
    settings |= some(draw, ceil_mode=flags)
    return Case("Pooling", settings, (3, *size))


def inner_product(draw: Draw) -> Case:
    settings = {"num_output": draw(st.integers(1, 9))}
    settings |= some(draw, axis=st.sampled_from([0, 1, 2, 3, -1, -2]), transpose=flags, bias_term=flags)
    return Case("InnerProduct", settings, (3, 4, 5), block="inner_product_param")


def lrn(draw: Draw) -> Case:
    # Both engines keep a running sum of squares, whose rounding shows (2e-5 from the true value in each) where
    # alpha times a square is in the hundreds; in real nets it is below ten.
    before = layer("c", "Convolution", "data", "convolution_param { num_output: 12 kernel_size: 3 }")
    before += layer("x", "Power", "c", "power_param { scale: 0.05 }")
    settings = some(
        draw,
        local_size=st.sampled_from([1, 3, 5, 7, 9, 21, 31]),
        alpha=st.sampled_from([0, 1e-4]) | number(0, 0.1),
    )
    settings |= some(draw, beta=st.sampled_from([0, 0.75]) | number(0.2, 1.5), k=number(0.5, 3))
    settings |= some(draw, norm_region=st.sampled_from(["ACROSS_CHANNELS", "WITHIN_CHANNEL"]))
    return Case("LRN", settings, (3, *draw(st.tuples(st.integers(3, 13), st.integers(3, 13)))), before, "x")


def batch_norm(draw: Draw) -> Case:
    settings = some(draw, use_global_stats=flags, eps=number(1e-5, 1), moving_average_fraction=number(0.5, 1))
    before, bottoms = draw(
        st.sampled_from(
            [
                ("", "data"),
                (layer("r", "Flatten", "data"), "r"),
                (layer("r", "Flatten", "data", "flatten_param { axis: 2 }"), "r"),
            ]
        )
    )
    tops = draw(st.sampled_from(["out", bottoms]))
    return Case("BatchNorm", settings, (3, 5, 6), before, bottoms, tops, "batch_norm_param")


def column(kind: str) -> Any:
    """Scale or Bias: with weights, or with a second bottom."""

    def made(draw: Draw) -> Case:
        extra = some(draw, bias_term=flags) if kind == "Scale" else {}
        axis = draw(st.integers(-4, 3))
        if draw(flags):
            room = 4 - axis % 4
            settings = {"axis": axis, "num_axes": draw(st.integers(-1, room))}
            settings = {
                name: value
                for name, value in settings.items()
                if draw(st.integers(0, 3)) or name == "num_axes"
            }
            if "axis" not in settings:
                settings["num_axes"] = min(settings["num_axes"], 3)
            return Case(kind, settings | extra, (3, 4, 5), tops=draw(st.sampled_from(["out", "data"])))
        second, axis = draw(st.sampled_from([("f", 0), ("p", 0), ("q", 0), ("w", 1), ("v", 2), ("s", 0)]))
        before = {
            "f": layer("g", "Pooling", "data", "pooling_param { pool: AVE global_pooling: true }")
            + layer("f", "Flatten", "g"),
            "p": layer("p", "TanH", "data"),
            "q": layer("q", "Reduction", "data", "reduction_param { operation: MEAN axis: 3 }"),
            "w": parameter("w", "3"),
            "v": parameter("v", "4 5"),
            "s": parameter("s", ""),
        }[second]
        if extra.get("bias_term") and second == "s":
            extra = {}
        return Case(kind, {"axis": axis} | extra, (3, 4, 5), before, f"data {second}")

    return made


def eltwise(draw: Draw) -> Case:
    count = draw(st.integers(2, 4))
    before = "".join(shaped(0.3 - at, 0.2 * at, f"e{at}") for at in range(count))
    bottoms = " ".join(f"e{at}" for at in range(count))
    settings: dict[str, Any] = some(
        draw, operation=st.sampled_from(["SUM", "PROD", "MAX"]), stable_prod_grad=flags
    )
    if settings.get("operation", "SUM") == "SUM" and draw(flags):
        settings["coeff"] = [draw(number(-2, 2)) for _ in range(count)]
    in_place = settings.get("operation") == "PROD" and draw(flags)
    return Case("Eltwise", settings, draw(pictures), before, bottoms, "e0" if in_place else "out")


def concat(draw: Draw) -> Case:
    count = draw(st.integers(1, 3))
    before = "".join(shaped(0.3 - at, 0, f"e{at}") for at in range(count))
    settings = draw(
        st.sampled_from([{}, {"axis": 1}, {"axis": 2}, {"axis": -1}, {"axis": 0}, {"concat_dim": 1}])
    )
    return Case("Concat", settings, (3, 4, 5), before, " ".join(f"e{at}" for at in range(count)))


def slice_(draw: Draw) -> Case:
    axis = draw(st.sampled_from([1, 2, 3, -1, -2]))
    size = (3, 6, 6)[axis % 4 - 1]
    settings: dict[str, Any] = {"axis": axis}
    if axis > 0 and draw(flags):
        settings = {"slice_dim": axis}
    if axis == 1 and draw(flags):
        settings = {}
    points = sorted(draw(st.sets(st.integers(1, size - 1), max_size=3)))
    tops = len(points) + 1
    if not points:
        tops = draw(st.sampled_from([one for one in (1, 2, 3, 6) if size % one == 0]))
    else:
        settings["slice_point"] = points
    names = " ".join(["out", *(f"out{at}" for at in range(1, tops))])
    return Case("Slice", settings, (3, 6, 6), tops=names)


def split(draw: Draw) -> Case:
    return Case("Split", tops="out out1" if draw(flags) else "out")


def flatten(draw: Draw) -> Case:
    settings = some(draw, axis=st.sampled_from([0, 1, 2, 3, -1, -3]))
    axis = settings.get("axis", 1) % 4
    if draw(flags):
        settings["end_axis"] = draw(st.sampled_from([end for end in range(-4, 4) if end % 4 >= axis]))
    return Case("Flatten", settings, (3, 4, 5))


def reshape(draw: Draw) -> Case:
    shapes = ["0 -1", "0 0 -1", "0 3 -1 5", "0 4 3 5", "-1 0 0 0", "0 60", "1 -1", "1 60 1 1", "-1 5", "60"]
    inside = [("4 -1", 1, 2), ("12", 1, 2), ("1", -1, 0), ("-1", 2, -1), ("0 -1 1", 1, -1), ("-1 2 2", -3, 1)]
    if draw(flags):
        return Case("Reshape", {"shape": shape(draw(st.sampled_from(shapes)))}, (3, 4, 5))
    dims, axis, count = draw(st.sampled_from(inside))
    settings = {"shape": shape(dims), "axis": axis, "num_axes": count}
    return Case("Reshape", settings, (3, 4, 5))


def softmax(draw: Draw) -> Case:
    settings = some(draw, axis=st.sampled_from([0, 1, 2, 3, -1, -3]))
    return Case("Softmax", settings, draw(pictures), shaped(0.02), "x", draw(st.sampled_from(["out", "x"])))


def crop(draw: Draw) -> Case:
    settings = some(draw, axis=st.sampled_from([0, 1, 2, 3, -1, -2]))
    axis = settings.get("axis", 2) % 4
    inside = [1, 3, 9, 8]
    pad = draw(st.integers(0, 2))
    before = layer("p", "Deconvolution", "data", "convolution_param { num_output: 3 kernel_size: 3 }")
    offsets = [0 if at < 2 else draw(st.integers(0, 2)) for at in range(4)]
    if draw(flags) and axis > 1:
        settings["offset"] = [pad]
    elif draw(flags):
        settings["offset"] = offsets[axis:]
    del inside
    return Case("Crop", settings, (3, 7, 6), before, "p data")


def tile(draw: Draw) -> Case:
    settings = {"tiles": draw(st.integers(1, 3))} | some(draw, axis=st.sampled_from([0, 1, 2, 3, -1, -2]))
    return Case("Tile", settings, draw(pictures))


def argmax(draw: Draw) -> Case:
    settings = {"top_k": draw(st.integers(1, 3))} | some(draw, out_max_val=flags)
    # Rounded to few values, so that there are equal ones.
    before = layer("t", "Threshold", "data", "threshold_param { threshold: 20 }")
    before += layer("u", "Flatten", "data", "flatten_param { axis: 2 }")
    bottoms = draw(st.sampled_from(["data", "t", "u"]))
    if draw(flags):
        settings["axis"] = draw(st.sampled_from([1, 2, -1]))
    return Case("ArgMax", settings, (3, 4, 5), before, bottoms)


def reduction(draw: Draw) -> Case:
    # Far from zero: a sum that cancels is noise in both.
    settings: dict[str, Any] = some(draw, operation=st.sampled_from(["SUM", "ASUM", "SUMSQ", "MEAN"]))
    settings |= some(draw, axis=st.integers(-4, 3), coeff=number(-2, 2))
    return Case("Reduction", settings, draw(pictures), shaped(1, 200), "x")


def mvn(draw: Draw) -> Case:
    settings = some(draw, normalize_variance=flags, across_channels=flags, eps=number(1e-9, 0.5))
    before, bottoms = draw(
        st.sampled_from([("", "data"), (layer("r", "Flatten", "data", "flatten_param { axis: 2 }"), "r")])
    )
    tops = "data" if bottoms == "data" and draw(flags) else "out"
    return Case("MVN", settings, (3, 5, 6), before, bottoms, tops)


def embed(draw: Draw) -> Case:
    settings = {"num_output": draw(st.integers(1, 5)), "input_dim": 300} | some(draw, bias_term=flags)
    return Case("Embed", settings, draw(pictures), shaped(1, 125), "x")


def spp(draw: Draw) -> Case:
    # Sizes at which no level's padding is as large as its kernel: Caffe aborts there.
    sizes = {1: range(1, 12), 2: range(2, 12), 3: (4, 7, 8, 11, 12, 15)}
    height = draw(st.sampled_from([1, 2, 3]))
    side = st.sampled_from([s for s in sizes[height] if s % 2 == 0 or s > 2])
    settings = {"pyramid_height": height} | some(draw, pool=st.sampled_from(["MAX", "AVE"]))
    return Case("SPP", settings, (3, draw(side), draw(side)))


def normalize(draw: Draw) -> Case:
    settings = some(draw, across_spatial=flags, channel_shared=flags, eps=number(1e-10, 1))
    before, bottoms = draw(st.sampled_from([("", "data"), (layer("r", "Flatten", "data"), "r")]))
    return Case("Normalize", settings, (3, 4, 5), before, bottoms, block="norm_param")


def permute(draw: Draw) -> Case:
    order = draw(st.permutations([0, 1, 2, 3]))[: draw(st.integers(0, 4))]
    if draw(flags):
        order = [0, *[axis for axis in order if axis != 0]]
    return Case("Permute", {"order": order} if order else {}, (3, 4, 5))


def upsample(draw: Draw) -> Case:
    settings: dict[str, Any] = {"scale": draw(st.integers(1, 4))}
    if draw(flags):
        rows = layer("r", "Flatten", "data", "flatten_param { axis: 2 }")
        return Case("Upsample", settings | {"dims_num": 3}, draw(pictures), rows, "r")
    return Case("Upsample", settings | some(draw, dims_num=st.just(4)), draw(pictures))


def dummy(draw: Draw) -> Case:
    """A constant, put beside the picture."""
    settings: dict[str, Any] = draw(
        st.sampled_from([{"shape": shape("1 2 4 5")}, {"num": 1, "channels": 2, "height": 4, "width": 5}])
    )
    if draw(flags):
        settings["data_filler"] = "{ type: 'constant' value: " + str(draw(number(-3, 3))) + " }"
    before = layer("d", "DummyData", "", f"dummy_data_param {{ {written(settings)} }}")
    return Case("Concat", {}, (3, 4, 5), before, "data d", covers=frozenset(settings))


def constant(draw: Draw) -> Case:
    """A learned constant, added to the picture."""
    dims = draw(st.sampled_from(["3", "3 4", "3 4 5"]))
    return Case("Bias", {"axis": 1}, (3, 4, 5), parameter("w", dims), "data w", covers=frozenset({"shape"}))


CASES: dict[str, Any] = {
    "AbsVal": neuron("AbsVal"),
    "ArgMax": argmax,
    "BNLL": neuron("BNLL", 0.1, middle=-3),
    "BatchNorm": batch_norm,
    "Bias": column("Bias"),
    "Concat": concat,
    "Convolution": convolution("Convolution"),
    "Crop": crop,
    "Deconvolution": convolution("Deconvolution"),
    "Dropout": neuron("Dropout", dropout_ratio=number(0.1, 0.9)),
    "DummyData": dummy,
    "ELU": neuron("ELU", alpha=number(-1, 3)),
    "Eltwise": eltwise,
    "Embed": embed,
    "Exp": neuron("Exp", base=st.sampled_from([-1, 2, 10, 0.5]), scale=number(0.1, 2), shift=number(-2, 2)),
    "Flatten": flatten,
    "InnerProduct": inner_product,
    "LRN": lrn,
    "Log": log,
    "MVN": mvn,
    "Normalize": normalize,
    "PReLU": neuron("PReLU", channel_shared=flags),
    "Parameter": constant,
    "Permute": permute,
    "Pooling": pooling,
    "Power": power,
    "ReLU": neuron("ReLU", negative_slope=number(-1, 1)),
    "ReLU6": neuron("ReLU6", 0.1, negative_slope=number(0, 1), threshold=number(1, 9)),
    "Reduction": reduction,
    "Reshape": reshape,
    "SPP": spp,
    "Scale": column("Scale"),
    "Sigmoid": sigmoid,
    "Slice": slice_,
    "Softmax": softmax,
    "Split": split,
    "TanH": neuron("TanH"),
    "Threshold": neuron("Threshold", 1, threshold=number(-100, 100)),
    "Tile": tile,
    "Upsample": upsample,
}
"""Layer type -> a function that draws a case of it. Input and Silence are in every net or make nothing."""
