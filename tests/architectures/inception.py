"""Inception v3 and v4, Inception-ResNet v2, Xception: valid convolutions, kernels of 1 x 7, scaled residuals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from architectures.drawing import Drawing, Published


class _Normed:
    """Convolutions without bias, each with BatchNorm, Scale and ReLU, named as the ports from TensorFlow name them."""

    def __init__(self, net: Drawing) -> None:
        self.net = net

    def __call__(
        self, name: str, outputs: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = True,
        bottom: str = "", **more: Any,
    ) -> str:  # fmt: skip
        """`same`: padded so that the size stays. A kernel of two numbers is (height, width)."""
        net = self.net
        if isinstance(kernel, tuple):
            high, wide = kernel
            size = {"kernel_h": high, "kernel_w": wide, "pad_h": high // 2, "pad_w": wide // 2}
            net.add("Convolution", name, bottom, num_output=outputs, bias_term=False, **size)
        else:
            pad = kernel // 2 if same else 0
            net.conv(name, outputs, kernel, stride, pad, bottom=bottom, bias_term=False, **more)
        net.norm(f"{name}_bn", f"{name}_scale", use_global_stats=True, eps=0.001)
        return net.relu(f"{name}_relu")

    def chain(self, bottom: str, *steps: Sequence[Any]) -> str:
        """Several, one after the other; returns the last top."""
        top = bottom
        for step in steps:
            top = self(*step[:3], *step[3:], bottom=top)
        return top


def _classifier(net: Drawing) -> Drawing:
    net.drop("drop", 0.2)
    net.fully("classifier", 1000)
    net.softmax()
    return net


def inception_v3() -> Drawing:
    net = Drawing("Inception_v3", (3, 299, 299))
    conv = _Normed(net)
    conv("conv1_3x3_s2", 32, 3, 2, False)
    conv("conv2_3x3_s1", 32, 3, 1, False)
    conv("conv3_3x3_s1", 64, 3)
    net.pool("pool1_3x3_s2", 3, 2)
    conv("conv4_3x3_reduce", 80, 1)
    conv("conv4_3x3", 192, 3, 1, False)
    x = net.pool("pool2_3x3_s2", 3, 2)
    for at, proj in ((1, 32), (2, 64), (3, 64)):
        p = f"inception_a{at}"
        parts = [
            conv(f"{p}_1x1_2", 64, 1, bottom=x),
            conv.chain(x, (f"{p}_5x5_reduce", 48, 1), (f"{p}_5x5", 64, 5)),
            conv.chain(x, (f"{p}_3x3_reduce", 64, 1), (f"{p}_3x3_1", 96, 3), (f"{p}_3x3_2", 96, 3)),
            conv(f"{p}_1x1", proj, 1, bottom=net.pool(f"{p}_pool", 3, 1, 1, "AVE", x)),
        ]
        x = net.concat(f"{p}_concat", *parts)
    x = net.concat(
        "reduction_a_concat",
        conv("reduction_a_3x3", 384, 3, 2, False, x),
        conv.chain(
            x,
            ("reduction_a_3x3_2_reduce", 64, 1),
            ("reduction_a_3x3_2", 96, 3),
            ("reduction_a_3x3_3", 96, 3, 2, False),
        ),
        net.pool("reduction_a_pool", 3, 2, bottom=x),
    )
    for at, width in ((1, 128), (2, 160), (3, 160), (4, 192)):
        p = f"inception_b{at}"
        tall, wide = (7, 1), (1, 7)
        parts = [
            conv(f"{p}_1x1_2", 192, 1, bottom=x),
            conv.chain(x, (f"{p}_1x7_reduce", width, 1), (f"{p}_1x7", width, wide), (f"{p}_7x1", 192, tall)),
            conv.chain(
                x,
                (f"{p}_7x1_reduce", width, 1),
                (f"{p}_7x1_2", width, tall),
                (f"{p}_1x7_2", width, wide),
                (f"{p}_7x1_3", width, tall),
                (f"{p}_1x7_3", 192, wide),
            ),
            conv(f"{p}_1x1", 192, 1, bottom=net.pool(f"{p}_pool_ave", 3, 1, 1, "AVE", x)),
        ]
        x = net.concat(f"{p}_concat", *parts)
    x = net.concat(
        "reduction_b_concat",
        conv.chain(x, ("reduction_b_3x3_reduce", 192, 1), ("reduction_b_3x3", 320, 3, 2, False)),
        conv.chain(
            x,
            ("reduction_b_1x7_reduce", 192, 1),
            ("reduction_b_1x7", 192, (1, 7)),
            ("reduction_b_7x1", 192, (7, 1)),
            ("reduction_b_3x3_2", 192, 3, 2, False),
        ),
        net.pool("reduction_b_pool", 3, 2, bottom=x),
    )
    for at, how in ((1, "AVE"), (2, "MAX")):
        p = f"inception_c{at}"
        one = conv(f"{p}_1x1_2", 320, 1, bottom=x)
        three = conv(f"{p}_3x3_reduce", 384, 1, bottom=x)
        double = conv.chain(x, (f"{p}_3x3_2_reduce", 448, 1), (f"{p}_3x3_2", 384, 3))
        parts = [one]
        for bottom, tail in ((three, ""), (double, "_2")):
            parts += [
                conv(f"{p}_{kind}{tail}", 384, size, bottom=bottom)
                for kind, size in (("1x3", (1, 3)), ("3x1", (3, 1)))
            ]
        parts.append(conv(f"{p}_1x1", 192, 1, bottom=net.pool(f"{p}_pool", 3, 1, 1, how, x)))
        x = net.concat(f"{p}_concat", *parts)
    net.pool("pool_8x8_s1", 8, 1, how="AVE")
    return _classifier(net)


def _stem(net: Drawing, conv: _Normed) -> str:
    """The stem that Inception v4 begins with."""
    conv("conv1_3x3_s2", 32, 3, 2, False)
    conv("conv2_3x3_s1", 32, 3, 1, False)
    x = conv("conv3_3x3_s1", 64, 3)
    x = net.concat(
        "inception_stem1",
        net.pool("inception_stem1_pool", 3, 2, bottom=x),
        conv("inception_stem1_3x3_s2", 96, 3, 2, False, x),
    )
    p = "inception_stem2"
    x = net.concat(
        p,
        conv.chain(x, (f"{p}_3x3_reduce", 64, 1), (f"{p}_3x3", 96, 3, 1, False)),
        conv.chain(
            x,
            (f"{p}_1x7_reduce", 64, 1),
            (f"{p}_7x1", 64, (7, 1)),
            (f"{p}_1x7", 64, (1, 7)),
            (f"{p}_3x3_2", 96, 3, 1, False),
        ),
    )
    return net.concat(
        "inception_stem3",
        conv("inception_stem3_3x3_s2", 192, 3, 2, False, x),
        net.pool("inception_stem3_pool", 3, 2, bottom=x),
    )


def inception_v4() -> Drawing:
    net = Drawing("Inception_v4", (3, 299, 299))
    conv = _Normed(net)
    x = _stem(net, conv)
    for at in range(1, 5):
        p = f"inception_a{at}"
        parts = [
            conv(f"{p}_1x1_2", 96, 1, bottom=x),
            conv.chain(x, (f"{p}_3x3_reduce", 64, 1), (f"{p}_3x3", 96, 3)),
            conv.chain(x, (f"{p}_3x3_2_reduce", 64, 1), (f"{p}_3x3_2", 96, 3), (f"{p}_3x3_3", 96, 3)),
            conv(f"{p}_1x1", 96, 1, bottom=net.pool(f"{p}_pool_ave", 3, 1, 1, "AVE", x)),
        ]
        x = net.concat(f"{p}_concat", *parts)
    p = "reduction_a"
    parts = [
        conv(f"{p}_3x3", 384, 3, 2, False, x),
        conv.chain(
            x, (f"{p}_3x3_2_reduce", 192, 1), (f"{p}_3x3_2", 224, 3), (f"{p}_3x3_3", 256, 3, 2, False)
        ),
        net.pool(f"{p}_pool", 3, 2, bottom=x),
    ]
    x = net.concat(f"{p}_concat", *parts)
    for at in range(1, 8):
        p = f"inception_b{at}"
        parts = [
            conv(f"{p}_1x1_2", 384, 1, bottom=x),
            conv.chain(x, (f"{p}_1x7_reduce", 192, 1), (f"{p}_1x7", 224, (1, 7)), (f"{p}_7x1", 256, (7, 1))),
            conv.chain(
                x,
                (f"{p}_7x1_2_reduce", 192, 1),
                (f"{p}_7x1_2", 192, (7, 1)),
                (f"{p}_1x7_2", 224, (1, 7)),
                (f"{p}_7x1_3", 224, (7, 1)),
                (f"{p}_1x7_3", 256, (1, 7)),
            ),
            conv(f"{p}_1x1", 128, 1, bottom=net.pool(f"{p}_pool_ave", 3, 1, 1, "AVE", x)),
        ]
        x = net.concat(f"{p}_concat", *parts)
    p = "reduction_b"
    parts = [
        conv.chain(x, (f"{p}_3x3_reduce", 192, 1), (f"{p}_3x3", 192, 3, 2, False)),
        conv.chain(
            x,
            (f"{p}_1x7_reduce", 256, 1),
            (f"{p}_1x7", 256, (1, 7)),
            (f"{p}_7x1", 320, (7, 1)),
            (f"{p}_3x3_2", 320, 3, 2, False),
        ),
        net.pool(f"{p}_pool", 3, 2, bottom=x),
    ]
    x = net.concat(f"{p}_concat", *parts)
    for at in range(1, 4):
        p = f"inception_c{at}"
        parts = [conv(f"{p}_1x1_2", 256, 1, bottom=x)]
        forks = (
            (conv(f"{p}_1x1_3", 384, 1, bottom=x), ""),
            (
                conv.chain(
                    x, (f"{p}_1x1_4", 384, 1), (f"{p}_3x1_2", 448, (3, 1)), (f"{p}_1x3_2", 512, (1, 3))
                ),
                "_3",
            ),
        )
        for fork, tail in forks:
            parts += [
                conv(f"{p}_1x3{tail}", 256, (1, 3), bottom=fork),
                conv(f"{p}_3x1{tail}", 256, (3, 1), bottom=fork),
            ]
        parts.append(conv(f"{p}_1x1", 256, 1, bottom=net.pool(f"{p}_pool_ave", 3, 1, 1, "AVE", x)))
        x = net.concat(f"{p}_concat", *parts)
    net.pool("pool_8x8_s1", 8, 1, how="AVE")
    return _classifier(net)


def inception_resnet_v2() -> Drawing:
    net = Drawing("Inception_ResNet_v2", (3, 299, 299))
    conv = _Normed(net)
    conv("conv1_3x3_s2", 32, 3, 2, False)
    conv("conv2_3x3_s1", 32, 3, 1, False)
    conv("conv3_3x3_s1", 64, 3)
    net.pool("pool1_3x3_s2", 3, 2)
    conv("conv4_3x3_reduce", 80, 1)
    conv("conv4_3x3", 192, 3, 1, False)
    x = net.pool("pool2_3x3_s2", 3, 2)
    x = net.concat(
        "mixed_5b",
        conv("mixed_5b_1x1", 96, 1, bottom=x),
        conv.chain(x, ("mixed_5b_5x5_reduce", 48, 1), ("mixed_5b_5x5", 64, 5)),
        conv.chain(x, ("mixed_5b_3x3_reduce", 64, 1), ("mixed_5b_3x3", 96, 3), ("mixed_5b_3x3_2", 96, 3)),
        conv("mixed_5b_proj", 64, 1, bottom=net.pool("mixed_5b_pool", 3, 1, 1, "AVE", x)),
    )

    def add(name: str, channels: int, scale: float, *parts: str, relu: bool = True) -> str:
        """A residual, brought to the channels of what it is added to, and made smaller."""
        bottom = x
        net.concat(f"{name}_concat", *parts)
        up = net.conv(f"{name}_up", channels, 1)
        net.sum(name, bottom, up, operation="SUM", coeff=[1, scale])
        return net.relu(f"{name}_relu") if relu else net.last

    for at in range(1, 11):
        p = f"inception_resnet_v2_a{at}"
        x = add(
            p, 320, 0.17,
            conv(f"{p}_1x1", 32, 1, bottom=x),
            conv.chain(x, (f"{p}_3x3_reduce", 32, 1), (f"{p}_3x3", 32, 3)),
            conv.chain(x, (f"{p}_3x3_2_reduce", 32, 1), (f"{p}_3x3_2", 48, 3), (f"{p}_3x3_3", 64, 3)),
        )  # fmt: skip
    x = net.concat(
        "reduction_a_concat",
        conv("reduction_a_3x3", 384, 3, 2, False, x),
        conv.chain(
            x,
            ("reduction_a_3x3_2_reduce", 256, 1),
            ("reduction_a_3x3_2", 256, 3),
            ("reduction_a_3x3_3", 384, 3, 2, False),
        ),
        net.pool("reduction_a_pool", 3, 2, bottom=x),
    )
    for at in range(1, 21):
        p = f"inception_resnet_v2_b{at}"
        x = add(
            p, 1088, 0.1,
            conv(f"{p}_1x1", 192, 1, bottom=x),
            conv.chain(x, (f"{p}_1x7_reduce", 128, 1), (f"{p}_1x7", 160, (1, 7)), (f"{p}_7x1", 192, (7, 1))),
        )  # fmt: skip
    x = net.concat(
        "reduction_b_concat",
        conv.chain(x, ("reduction_b_3x3_reduce", 256, 1), ("reduction_b_3x3", 384, 3, 2, False)),
        conv.chain(x, ("reduction_b_3x3_2_reduce", 256, 1), ("reduction_b_3x3_2", 288, 3, 2, False)),
        conv.chain(
            x,
            ("reduction_b_3x3_3_reduce", 256, 1),
            ("reduction_b_3x3_3", 288, 3),
            ("reduction_b_3x3_4", 320, 3, 2, False),
        ),
        net.pool("reduction_b_pool", 3, 2, bottom=x),
    )
    for at in range(1, 11):
        p = f"inception_resnet_v2_c{at}"
        x = add(
            p, 2080, 0.2 if at < 10 else 1.0,
            conv(f"{p}_1x1", 192, 1, bottom=x),
            conv.chain(x, (f"{p}_1x3_reduce", 192, 1), (f"{p}_1x3", 224, (1, 3)), (f"{p}_3x1", 256, (3, 1))),
            relu=at < 10,
        )  # fmt: skip
    conv("conv6_1x1", 1536, 1)
    net.pool("pool_8x8_s1", 8, 1, how="AVE")
    return _classifier(net)


def xception() -> Drawing:
    net = Drawing("Xception", (3, 299, 299))
    conv = _Normed(net)
    conv("conv1", 32, 3, 2, False)
    conv("conv2", 64, 3, 1, False)
    width = 64

    def separable(name: str, outputs: int) -> None:
        """Depthwise, then pointwise with BatchNorm and Scale; the ReLU stands before, and not always."""
        nonlocal width
        net.conv(f"{name}_1", width, 3, pad=1, group=width, bias_term=False)
        net.conv(f"{name}_2", outputs, 1, bias_term=False)
        net.norm(f"{name}_bn", f"{name}_scale", use_global_stats=True, eps=0.001)
        width = outputs

    def fresh_relu(name: str, bottom: str) -> None:
        # Not in place: the sum reads the blob as it was.
        net.add("ReLU", name, bottom)

    for at, (one, other) in enumerate(((128, 128), (256, 256), (728, 728)), 1):
        p, bottom = f"xception{at}", net.last
        net.conv(f"{p}_match_conv", other, 1, 2, bottom=bottom, bias_term=False)
        match = net.norm(f"{p}_match_conv_bn", f"{p}_match_conv_scale", use_global_stats=True, eps=0.001)
        if at == 1:
            net.last = bottom
        else:
            fresh_relu(f"{p}_relu", bottom)
        separable(f"{p}_conv1", one)
        net.relu(f"{p}_conv1_relu")
        separable(f"{p}_conv2", other)
        # Where the picture has an odd size the pooling is padded to come out as the strided convolution does.
        net.sum(f"{p}_elewise", match, net.pool(f"{p}_pool", 3, 2, 0 if at == 2 else 1))
    for at in range(4, 12):
        p, bottom = f"xception{at}", net.last
        fresh_relu(f"{p}_relu", bottom)
        for step in (1, 2, 3):
            separable(f"{p}_conv{step}", 728)
            if step < 3:
                net.relu(f"{p}_conv{step}_relu")
        net.sum(f"{p}_elewise", bottom, net.last)
    p, bottom = "xception12", net.last
    net.conv(f"{p}_match_conv", 1024, 1, 2, bottom=bottom, bias_term=False)
    match = net.norm(f"{p}_match_conv_bn", f"{p}_match_conv_scale", use_global_stats=True, eps=0.001)
    fresh_relu(f"{p}_relu", bottom)
    separable(f"{p}_conv1", 728)
    net.relu(f"{p}_conv1_relu")
    separable(f"{p}_conv2", 1024)
    net.sum(f"{p}_elewise", match, net.pool(f"{p}_pool", 3, 2, 1))
    for name, outputs in (("conv3", 1536), ("conv4", 2048)):
        separable(name, outputs)
        net.relu(f"{name}_relu")
    net.average("pool_ave")
    return _classifier(net)


NETS = [
    Published("Inception v3", inception_v3, ("reduction_b_concat", "pool_8x8_s1", "prob")),
    Published("Inception v4", inception_v4, ("reduction_b_concat", "pool_8x8_s1", "prob")),
    Published("Inception-ResNet v2", inception_resnet_v2, ("reduction_b_concat", "pool_8x8_s1", "prob")),
    Published("Xception", xception, ("xception11_elewise", "pool_ave", "prob")),
]
