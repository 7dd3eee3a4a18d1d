"""Nets made to be small or fast: SqueezeNet, MobileNet, ShuffleNet, PVANet, the YOLO trunks."""

from __future__ import annotations

from collections.abc import Callable

from architectures.drawing import Drawing, Published


def _fire(net: Drawing, name: str, squeeze: int, expand: int) -> str:
    net.conv(f"{name}/squeeze1x1", squeeze, 1)
    bottom = net.relu(f"{name}/relu_squeeze1x1")
    parts = []
    for size in (1, 3):
        net.conv(f"{name}/expand{size}x{size}", expand, size, pad=size // 2, bottom=bottom)
        parts.append(net.relu(f"{name}/relu_expand{size}x{size}"))
    return net.concat(f"{name}/concat", *parts)


_FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))


def squeezenet(old: bool, bypass: bool = False) -> Drawing:
    """1.0 (`old`) and 1.1 (Iandola et al., 2016); `bypass`: with residuals around every second fire."""
    net = Drawing("SqueezeNet", (3, 227, 227), 10)
    net.conv("conv1", *((96, 7, 2) if old else (64, 3, 2)))
    net.relu("relu_conv1")
    net.pool("pool1", 3, 2)
    for at, (squeeze, expand) in enumerate(_FIRES, 2):
        bottom = net.last
        _fire(net, f"fire{at}", squeeze, expand)
        if bypass and at % 2:
            net.sum(f"bypass_{at}", bottom, net.last)
        if at in ((4, 8) if old else (3, 5)):
            net.pool(f"pool{at}", 3, 2)
    net.drop("drop9")
    net.conv("conv10", 1000, 1, pad=1 if old else 0)
    net.relu("relu_conv10")
    net.average("pool10")
    net.softmax()
    return net


def squeezedet() -> Drawing:
    """The trunk of SqueezeDet (Wu et al., 2016), for pictures of a road."""
    net = Drawing("SqueezeDet", (3, 192, 624))
    net.conv("conv1", 64, 3, 2, 1)
    net.relu("relu1")
    net.pool("pool1", 3, 2, 1)
    for at, (squeeze, expand) in enumerate((*_FIRES, (96, 384), (96, 384)), 2):
        _fire(net, f"fire{at}", squeeze, expand)
        if at in (3, 5):
            net.pool(f"pool{at}", 3, 2, 1)
    net.drop("drop11")
    net.conv("conv12", 72, 3, pad=1)
    return net


class _Slashed:
    """Convolutions without bias, BatchNorm and Scale, named NAME, NAME/bn, NAME/scale."""

    def __init__(self, net: Drawing, eps: float) -> None:
        self.net, self.eps = net, eps

    def __call__(
        self,
        name: str,
        outputs: int,
        kernel: int,
        stride: int = 1,
        group: int = 1,
        relu: str = "",
        bottom: str = "",
    ) -> str:
        net = self.net
        more = {"group": group} if group > 1 else {}
        top = net.conv(name, outputs, kernel, stride, kernel // 2, bottom=bottom, bias_term=False, **more)
        net.norm(f"{name}/bn", f"{name}/scale", eps=self.eps)
        return net.relu(relu) if relu else top


_SEPARABLE = (
    ("2_1", 64, 1), ("2_2", 128, 2), ("3_1", 128, 1), ("3_2", 256, 2), ("4_1", 256, 1), ("4_2", 512, 2),
    ("5_1", 512, 1), ("5_2", 512, 1), ("5_3", 512, 1), ("5_4", 512, 1), ("5_5", 512, 1), ("5_6", 1024, 2),
    ("6", 1024, 1),
)  # fmt: skip


def mobilenet(width: float = 1.0) -> Drawing:
    """Depthwise convolutions are groups of one channel (Howard et al., 2017)."""
    net = Drawing("MOBILENET")
    conv, channels = _Slashed(net, 1e-5), int(32 * width)
    conv("conv1", channels, 3, 2, relu="relu1")
    for at, outputs, stride in _SEPARABLE:
        conv(f"conv{at}/dw", channels, 3, stride, channels, f"relu{at}/dw")
        channels = int(outputs * width)
        conv(f"conv{at}/sep", channels, 1, relu=f"relu{at}/sep")
    net.average("pool6")
    net.conv("fc7", 1000, 1)
    net.softmax()
    return net


def mobilenet_ssd() -> Drawing:
    """MobileNet-SSD up to what its boxes are read from; BatchNorm is merged into the convolutions, as published."""
    net = Drawing("MobileNet-SSD", (3, 300, 300), old_input=True)
    channels, tops = 32, []

    def conv(name: str, outputs: int, kernel: int, stride: int = 1, group: int = 1, bottom: str = "") -> str:
        more = {"group": group} if group > 1 else {}
        net.conv(name, outputs, kernel, stride, kernel // 2, bottom=bottom, **more)
        return net.relu(f"{name}/relu")

    conv("conv0", channels, 3, 2)
    for at, (_, outputs, stride) in enumerate(_SEPARABLE, 1):
        conv(f"conv{at}/dw", channels, 3, stride, channels)
        channels = outputs
        top = conv(f"conv{at}", channels, 1)
        if at in (11, 13):
            tops.append((f"conv{at}", top))
    for at, (inner, outer) in enumerate(((256, 512), (128, 256), (128, 256), (64, 128)), 14):
        conv(f"conv{at}_1", inner, 1)
        tops.append((f"conv{at}_2", conv(f"conv{at}_2", outer, 3, 2)))
    rows = []
    for at, (name, top) in enumerate(tops):
        net.conv(f"{name}_mbox_loc", 12 if not at else 24, 1, bottom=top)
        net.add("Permute", f"{name}_mbox_loc_perm", order=[0, 2, 3, 1])
        rows.append(net.add("Flatten", f"{name}_mbox_loc_flat", axis=1))
    net.concat("mbox_loc", *rows, axis=1)
    return net


_INVERTED = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
"""Growth inside, outputs, blocks, stride (Sandler et al., 2018)."""


def mobilenet_v2(kind: str = "ReLU") -> Drawing:
    net = Drawing("MOBILENET_V2")
    conv, channels = _Slashed(net, 1e-5), 32

    def active(name: str, *rest: int) -> None:
        conv(name, *rest)
        net.over(kind, f"relu/{name}")

    active("conv1", 32, 3, 2)
    for stage, (grow, outputs, count, stride) in enumerate(_INVERTED, 1):
        for at in range(1, count + 1):
            p, bottom, inner = f"conv{stage}_{at}", net.last, channels * grow
            if grow > 1:
                active(f"{p}/expand", inner, 1)
            active(f"{p}/dwise", inner, 3, stride if at == 1 else 1, inner)
            conv(f"{p}/linear", outputs, 1)
            if at > 1:
                net.sum(f"block_{stage}_{at}", bottom, net.last)
            channels = outputs
    active("conv8", 1280, 1)
    net.average("pool8")
    net.conv("fc9", 1000, 1)
    net.softmax()
    return net


def _by_layer(net: Drawing, name: str, group: int, channels: int, size: int) -> None:
    net.add("ShuffleChannel", name, group=group)


def _by_permute(net: Drawing, name: str, group: int, channels: int, size: int) -> None:
    """The same out of layers of Caffe 1.0 with Permute."""
    rows = f"{{ dim: 0 dim: {group} dim: {channels // group} dim: {size * size} }}"
    net.add("Reshape", f"{name}_rows", shape=rows)
    net.add("Permute", f"{name}_turned", order=[0, 2, 1, 3])
    net.add("Reshape", name, shape=f"{{ dim: 0 dim: {channels} dim: {size} dim: {size} }}")


def shufflenet(shuffle: Callable[[Drawing, str, int, int, int], None], group: int = 3) -> Drawing:
    """ShuffleNet with 3 groups (Zhang et al., 2017)."""
    net, size, channels, at = Drawing("shufflenet"), 56, 24, 0

    def conv(name: str, outputs: int, kernel: int, stride: int = 1, groups: int = 1, bottom: str = "") -> str:
        more = {"group": groups} if groups > 1 else {}
        net.conv(name, outputs, kernel, stride, kernel // 2, bottom=bottom, bias_term=False, **more)
        return net.norm(f"{name}_bn", f"{name}_scale")

    conv("conv1", 24, 3, 2)
    net.relu("conv1_relu")
    net.pool("pool1", 3, 2)
    for outputs, count in ((240, 4), (480, 8), (960, 4)):
        for block in range(count):
            at += 1
            p, bottom, stride = f"resx{at}", net.last, 2 if block == 0 else 1
            short = net.pool(f"{p}_match_conv", 3, 2, how="AVE", bottom=bottom) if stride == 2 else bottom
            conv(f"{p}_conv1", outputs // 4, 1, groups=1 if at == 1 else group, bottom=bottom)
            net.relu(f"{p}_conv1_relu")
            shuffle(net, f"shuffle{at}", group, outputs // 4, size)
            size //= stride
            conv(f"{p}_conv2", outputs // 4, 3, stride, outputs // 4)
            # Where the picture is halved what comes in is joined on, so that less is to be made.
            residual = conv(f"{p}_conv3", outputs - channels if stride == 2 else outputs, 1, groups=group)
            join = net.concat if stride == 2 else net.sum
            join(f"{p}_elewise", short, residual)
            net.relu(f"{p}_elewise_relu")
            channels = outputs
    net.average("pool_ave")
    net.conv("fc1000", 1000, 1)
    net.softmax()
    return net


def pvanet() -> Drawing:
    """The trunk of PVANet (Kim et al., 2016): a ReLU of x and of -x at once, Inception, three scales joined."""
    net = Drawing("PVANET", (3, 192, 320), old_input=True)

    def norm(name: str, bottom: str = "") -> None:
        """On a copy of what is read from elsewhere too."""
        net.add("BatchNorm", f"{name}/bn", bottom, use_global_stats=True)
        net.over("Scale", f"{name}/bn_scale", bias_term=True)
        net.relu(f"{name}/relu")

    def both_signs(name: str, outputs: int, kernel: int, stride: int = 1) -> str:
        net.conv(f"{name}/conv", outputs, kernel, stride, kernel // 2, bias_term=False)
        net.over("BatchNorm", f"{name}/bn", use_global_stats=True)
        top = net.last
        negative = net.add("Power", f"{name}/neg", power=1.0, scale=-1.0, shift=0.0)
        net.concat(f"{name}/concat", top, negative)
        net.over("Scale", f"{name}/scale", bias_term=True)
        return net.relu(f"{name}/relu")

    both_signs("conv1_1", 16, 7, 2)
    net.pool("pool1", 3, 2)
    for stage, count, (inner, middle, out) in ((2, 3, (24, 24, 64)), (3, 4, (48, 48, 128))):
        for at in range(1, count + 1):
            p, bottom, stride = f"conv{stage}_{at}", net.last, 2 if stage == 3 and at == 1 else 1
            if (stage, at) != (2, 1):
                norm(f"{p}/1/pre", bottom)
            net.conv(f"{p}/1/conv", inner, 1, stride, bias_term=False)
            norm(f"{p}/2/pre")
            both_signs(f"{p}/2", middle, 3)
            residual = net.conv(f"{p}/3/conv", out, 1)
            short = bottom if at > 1 else net.conv(f"{p}/proj", out, 1, stride, bottom=bottom)
            net.sum(p, residual, short, operation="SUM", coeff=[1, 1])
    third = net.last
    for stage, (outer, first, three, five, proj) in (
        (4, (256, 64, (48, 128), (24, 48, 48), 128)),
        (5, (384, 64, (96, 192), (32, 64, 64), 128)),
    ):
        for at in range(1, 5):
            p, bottom, stride = f"conv{stage}_{at}", net.last, 2 if at == 1 else 1
            norm(f"{p}/incep/pre", bottom)
            pre = net.last
            parts = []
            for branch, widths in enumerate(((first,), three, five)):
                net.last = pre
                for step, outputs in enumerate(widths):
                    name = f"{p}/incep/{branch}_{step}"
                    kernel, strides = (1, stride) if step == 0 else (3, 1)
                    net.conv(f"{name}/conv", outputs, kernel, strides, kernel // 2, bias_term=False)
                    norm(name)
                parts.append(net.last)
            if at == 1:
                net.pool(f"{p}/incep/pool", 3, 2, bottom=pre)
                net.conv(f"{p}/incep/poolproj/conv", proj, 1, bias_term=False)
                norm(f"{p}/incep/poolproj")
                parts.append(net.last)
            net.concat(f"{p}/incep", *parts)
            residual = net.conv(f"{p}/out/conv", outer, 1)
            short = bottom if at > 1 else net.conv(f"{p}/proj", outer, 1, stride, bottom=bottom)
            net.sum(p, residual, short, operation="SUM", coeff=[1, 1])
        if stage == 4:
            fourth = net.last
    norm("conv5_4/last", net.last)
    fifth = net.last
    down = net.pool("downsample", 3, 2, bottom=third)
    up = net.deconv("upsample", 384, 4, 2, 1, bottom=fifth, group=384, bias_term=False)
    net.concat("concat", down, fourth, up)
    net.conv("convf", 256, 1)
    net.relu("reluf")
    return net


def yolo(widths: tuple[tuple[int, ...], ...], outputs: int, name: str, size: int) -> Drawing:
    """Darknet's convolutions as ported: BatchNorm, Scale, a ReLU that leaks; a pooling between the groups."""
    net = Drawing(name, (3, size, size))
    at = 0
    for group, channels in enumerate(widths):
        for step, width in enumerate(channels):
            at += 1
            kernel = 3 if step % 2 == 0 else 1
            net.conv(f"conv{at}", width, kernel, 1, kernel // 2, bias_term=False)
            net.norm(f"bn{at}", f"scale{at}", use_global_stats=True)
            net.relu(f"relu{at}", negative_slope=0.1)
        if group < len(widths) - 1:
            net.pool(f"pool{at}", 2, 2)
    net.conv("result", outputs, 1)
    return net


def darknet19() -> Drawing:
    widths = (
        (32,),
        (64,),
        (128, 64, 128),
        (256, 128, 256),
        (512, 256, 512, 256, 512),
        (1024, 512, 1024, 512, 1024),
    )
    net = yolo(widths, 1000, "Darknet19", 224)
    net.average("pool_global")
    net.softmax()
    return net


def tiny_yolo() -> Drawing:
    return yolo(((16,), (32,), (64,), (128,), (256,), (512,), (1024,)), 125, "tiny_yolo", 416)


_POOL6 = ("conv5_5/sep", "pool6", "prob")
_SHUFFLED = ("resx12_elewise", "pool_ave", "prob")

NETS = [
    Published("SqueezeNet 1.0", lambda: squeezenet(True), ("fire9/concat", "pool10", "prob")),
    Published("SqueezeNet 1.1", lambda: squeezenet(False), ("fire9/concat", "pool10", "prob")),
    Published("SqueezeNet residual", lambda: squeezenet(True, True), ("fire9/concat", "pool10", "prob")),
    Published("SqueezeDet trunk", squeezedet, ("fire11/concat", "conv12")),
    Published("MobileNet", mobilenet, _POOL6),
    Published("MobileNet 0.5", lambda: mobilenet(0.5), _POOL6),
    Published("MobileNet v2", mobilenet_v2, ("block_5_3", "pool8", "prob")),
    Published("MobileNet v2 ReLU6", lambda: mobilenet_v2("ReLU6"), ("block_5_3", "pool8", "prob")),
    Published("MobileNet-SSD trunk", mobilenet_ssd, ("conv11", "conv17_2", "mbox_loc")),
    Published(
        "ShuffleNet", lambda: shufflenet(_by_layer), _SHUFFLED, stand_in=lambda: shufflenet(_by_permute)
    ),
    Published("ShuffleNet by Permute", lambda: shufflenet(_by_permute), _SHUFFLED),
    Published("PVANet trunk", pvanet, ("conv3_4", "conv5_4", "convf")),
    Published("Darknet-19", darknet19, ("conv18", "pool_global", "prob")),
    Published("Tiny YOLO", tiny_yolo, ("conv7", "result")),
]
