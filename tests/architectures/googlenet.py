"""GoogLeNet (Szegedy et al., 2014), and Inception with BatchNorm."""

from __future__ import annotations

from architectures.drawing import V1, Drawing, Published, old_forms

_GOOGLENET = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64), "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64), "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128), "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip
"""Outputs of 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5 and pool_proj."""


def googlenet(classes: int = 1000, classifier: str = "loss3/classifier") -> Drawing:
    net = Drawing("GoogleNet", batch=10)

    def conv(
        block: str, part: str, outputs: int, kernel: int, stride: int = 1, pad: int = 0, bottom: str = ""
    ) -> str:
        net.conv(f"{block}/{part}", outputs, kernel, stride, pad, bottom=bottom)
        return net.relu(f"{block}/relu_{part.removesuffix('_s2')}")

    conv("conv1", "7x7_s2", 64, 7, 2, 3)
    net.pool("pool1/3x3_s2", 3, 2)
    net.lrn("pool1/norm1")
    conv("conv2", "3x3_reduce", 64, 1)
    conv("conv2", "3x3", 192, 3, pad=1)
    net.lrn("conv2/norm2")
    net.pool("pool2/3x3_s2", 3, 2)
    for block, (one, three_in, three, five_in, five, proj) in _GOOGLENET.items():
        name, bottom = f"inception_{block}", net.last
        parts = [conv(name, "1x1", one, 1, bottom=bottom)]
        conv(name, "3x3_reduce", three_in, 1, bottom=bottom)
        parts.append(conv(name, "3x3", three, 3, pad=1))
        conv(name, "5x5_reduce", five_in, 1, bottom=bottom)
        parts.append(conv(name, "5x5", five, 5, pad=2))
        net.pool(f"{name}/pool", 3, 1, 1, bottom=bottom)
        parts.append(conv(name, "pool_proj", proj, 1))
        net.concat(f"{name}/output", *parts)
        if block in ("3b", "4e"):
            net.pool(f"pool{block[0]}/3x3_s2", 3, 2)
    net.pool("pool5/7x7_s1", 7, 1, how="AVE")
    net.drop("pool5/drop_7x7_s1", 0.4)
    net.fully(classifier, classes)
    net.softmax()
    return net


_BN = {
    "3a": (64, 64, 64, 64, 96, 32), "3b": (64, 64, 96, 64, 96, 64), "3c": (0, 128, 160, 64, 96, 0),
    "4a": (224, 64, 96, 96, 128, 128), "4b": (192, 96, 128, 96, 128, 128), "4c": (160, 128, 160, 128, 160, 128),
    "4d": (96, 128, 192, 160, 192, 128), "4e": (0, 128, 192, 192, 256, 0), "5a": (352, 192, 320, 160, 224, 128),
    "5b": (352, 192, 320, 192, 224, 128),
}  # fmt: skip
"""Outputs of 1x1, 3x3_reduce, 3x3, double_3x3_reduce, double_3x3 and proj; 0: a block that halves the picture."""


def inception_bn(classes: int, squeeze: bool = False) -> Drawing:
    """Inception v2 (Ioffe and Szegedy, 2015). `squeeze`: with the gates of SENet after each block."""
    net = Drawing("Inception-BN")

    def conv(name: str, outputs: int, kernel: int, stride: int = 1, pad: int = 0, bottom: str = "") -> str:
        net.conv(f"conv_{name}", outputs, kernel, stride, pad, bottom=bottom)
        net.norm(f"bn_{name}", f"scale_{name}", eps=1e-10)
        return net.relu(f"relu_{name}")

    conv("1", 64, 7, 2, 3)
    net.pool("pool_1", 3, 2)
    conv("2_red", 64, 1)
    conv("2", 192, 3, pad=1)
    net.pool("pool_2", 3, 2)
    channels = 192
    for block, (one, three_in, three, double_in, double, proj) in _BN.items():
        bottom, stride = net.last, 1 if one else 2
        parts = [conv(f"{block}_1x1", one, 1, bottom=bottom)] if one else []
        conv(f"{block}_3x3_reduce", three_in, 1, bottom=bottom)
        parts.append(conv(f"{block}_3x3", three, 3, stride, 1))
        conv(f"{block}_double_3x3_reduce", double_in, 1, bottom=bottom)
        conv(f"{block}_double_3x3_0", double, 3, pad=1)
        parts.append(conv(f"{block}_double_3x3_1", double, 3, stride, 1))
        if one:
            how = "MAX" if block == "5b" else "AVE"
            net.pool(f"{how.lower()}_pool_{block}_pool", 3, 1, 1, how, bottom)
            parts.append(conv(f"{block}_proj", proj, 1))
        else:
            # Rounded up without a pad, as in Caffe; the framework it came from pads by 1 and rounds down.
            parts.append(net.pool(f"max_pool_{block}_pool", 3, 2, bottom=bottom))
        net.concat(f"ch_concat_{block}_chconcat", *parts)
        channels = three + double + (one + proj if one else channels)
        if squeeze:
            gate(net, block, channels)
    net.pool("global_pool", 7, 1, how="AVE")
    net.add("Flatten", "flatten")
    net.fully("fc1", classes)
    net.softmax("softmax")
    return net


def gate(net: Drawing, name: str, channels: int) -> None:
    """Squeeze and excitation over what was made last (Hu et al., 2017)."""
    block = net.last
    net.average(f"{name}_global_pool")
    net.fully(f"{name}_down", channels // 16)
    net.relu(f"{name}_down/relu")
    net.fully(f"{name}_up", channels)
    prob = net.add("Sigmoid", f"{name}_prob")
    net.add("Scale", f"{name}_gated", (block, prob), axis=0)


_V1_BLOBS = ("inception_4a/output", "pool5/7x7_s1", "prob")

NETS = [
    *old_forms(Published("GoogLeNet", googlenet, _V1_BLOBS), V1),
    *old_forms(Published("GoogLeNet Places205", lambda: googlenet(205), _V1_BLOBS), V1),
    Published("GoogLeNet Places365", lambda: googlenet(365), _V1_BLOBS),
    Published("GoogLeNet CompCars", lambda: googlenet(431, "loss3/classifier_model"), _V1_BLOBS),
    Published(
        "Inception-BN", lambda: inception_bn(1000), ("ch_concat_4e_chconcat", "global_pool", "softmax")
    ),
    Published("Inception-BN 21k", lambda: inception_bn(21841), ("global_pool", "softmax")),
    Published("SE-BN-Inception", lambda: inception_bn(1000, squeeze=True), ("global_pool", "softmax")),
]
