"""Residual nets: ResNet, its pre-activated, wide, grouped and gated kin, and dual paths."""

from __future__ import annotations

from collections.abc import Callable

from architectures.drawing import Drawing, Published

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class _Branches:
    """Convolutions named as He et al. named them: res2a_branch2a, bn2a_branch2a, scale2a_branch2a."""

    def __init__(self, net: Drawing) -> None:
        self.net = net

    def __call__(
        self,
        at: str,
        outputs: int,
        kernel: int,
        stride: int = 1,
        bottom: str = "",
        relu: bool = True,
        dilation: int = 1,
    ) -> str:
        net = self.net
        more = {"dilation": dilation} if dilation > 1 else {}
        pad = dilation * (kernel // 2)
        top = net.conv(f"res{at}", outputs, kernel, stride, pad, bottom=bottom, bias_term=False, **more)
        net.norm(f"bn{at}", f"scale{at}", use_global_stats=True)
        return net.relu(f"res{at}_relu") if relu else top


def _names(stage: int, count: int, depth: int) -> list[str]:
    """2a, 2b, 2c; in the deep nets 3a, 3b1, 3b2, ..."""
    if depth < 101 or count < 4:
        return [f"{stage}{chr(ord('a') + at)}" for at in range(count)]
    return [f"{stage}a", *(f"{stage}b{at}" for at in range(1, count))]


def residual_trunk(net: Drawing, depth: int, dilate: dict[int, int] | None = None) -> str:
    """conv1 to res5c; `dilate`: stages whose convolutions are dilated instead of strided."""
    # The net of 50 layers was published with a bias here, the others without.
    net.conv("conv1", 64, 7, 2, 3, bias_term=depth == 50)
    net.norm("bn_conv1", "scale_conv1", use_global_stats=True)
    net.relu("conv1_relu")
    net.pool("pool1", 3, 2)
    branch, wide = _Branches(net), depth >= 50
    for stage, count in enumerate(DEPTHS[depth], 2):
        width, holes = 64 * 2 ** (stage - 2), (dilate or {}).get(stage, 1)
        for block, at in enumerate(_names(stage, count, depth)):
            bottom = net.last
            stride = 2 if block == 0 and stage > 2 and holes == 1 else 1
            short = bottom
            if block == 0 and (wide or stage > 2):
                short = branch(f"{at}_branch1", width * (4 if wide else 1), 1, stride, bottom, relu=False)
            if wide:
                branch(f"{at}_branch2a", width, 1, stride, bottom)
                branch(f"{at}_branch2b", width, 3, dilation=holes)
                branch(f"{at}_branch2c", width * 4, 1, relu=False)
            else:
                branch(f"{at}_branch2a", width, 3, stride, bottom)
                branch(f"{at}_branch2b", width, 3, relu=False)
            net.sum(f"res{at}", short, net.last)
            net.relu(f"res{at}_relu")
    return net.last


def resnet(depth: int, classes: int = 1000) -> Drawing:
    net = Drawing(f"ResNet-{depth}", old_input=True)
    residual_trunk(net, depth)
    net.pool("pool5", 7, 1, how="AVE")
    net.fully(f"fc{classes}", classes)
    net.softmax()
    return net


def rfcn(depth: int) -> Drawing:
    """The trunk of R-FCN: a dilated last stage and the maps that its poolings would read."""
    net = Drawing(f"ResNet-{depth}", (3, 160, 224))
    residual_trunk(net, depth, {5: 2})
    net.conv("conv_new_1", 1024, 1)
    top = net.relu("conv_new_1_relu")
    net.conv("rfcn_bbox", 8 * 49, 1, bottom=top)
    net.conv("rfcn_cls", 21 * 49, 1, bottom=top)
    return net


def deeplab_resnet() -> Drawing:
    """DeepLab v2 on ResNet-101 up to the sum of its four dilated classifiers."""
    net = Drawing("deeplab_resnet101", (3, 161, 161))
    top = residual_trunk(net, 101, {4: 2, 5: 4})
    parts = [
        net.conv(f"fc1_voc12_c{at}", 21, 3, pad=holes, dilation=holes, bottom=top)
        for at, holes in enumerate((6, 12, 18, 24))
    ]
    net.sum("fc1_voc12", *parts, operation="SUM")
    return net


class _Plain:
    """Convolutions without bias and what follows them, named NAME, NAME_bn, NAME_scale, NAME_relu."""

    def __init__(self, net: Drawing) -> None:
        self.net = net

    def __call__(
        self,
        name: str,
        outputs: int,
        kernel: int,
        stride: int = 1,
        bottom: str = "",
        relu: bool = True,
        group: int = 1,
    ) -> str:
        net = self.net
        more = {"group": group} if group > 1 else {}
        top = net.conv(name, outputs, kernel, stride, kernel // 2, bottom=bottom, bias_term=False, **more)
        net.norm(f"{name}_bn", f"{name}_scale", use_global_stats=True)
        return net.relu(f"{name}_relu") if relu else top

    def head(self, width: int = 64) -> None:
        self("conv1", width, 7, 2)
        self.net.pool("pool1", 3, 2)

    def tail(self) -> Drawing:
        self.net.pool("pool_ave", 7, 1, how="AVE")
        self.net.fully("classifier", 1000)
        self.net.softmax()
        return self.net


def resnet_v2(depth: int) -> Drawing:
    """Pre-activated (He et al., 2016): BatchNorm and ReLU before the convolutions, and once more at the end."""
    net = Drawing(f"ResNet{depth}_v2")
    conv = _Plain(net)
    conv.head()
    at = 0
    for stage, count in enumerate(DEPTHS[depth]):
        width = 64 * 2**stage
        for block in range(count):
            at += 1
            bottom, stride = net.last, 2 if stage and not block else 1
            if at > 1:
                net.add("BatchNorm", f"res{at}_bn", bottom, use_global_stats=True)
                net.over("Scale", f"res{at}_scale", bias_term=True)
                net.relu(f"res{at}_relu")
            active = net.last
            conv(f"res{at}_conv1", width, 1, bottom=active)
            conv(f"res{at}_conv2", width, 3, stride)
            net.conv(f"res{at}_conv3", 4 * width, 1, bias_term=False)
            out, short = net.last, bottom
            if not block:
                short = net.conv(f"res{at}_match_conv", 4 * width, 1, stride, bottom=active, bias_term=False)
            net.sum(f"res{at}_eletwise", short, out, operation="SUM")
    net.norm("res_final_bn", "res_final_scale", use_global_stats=True)
    net.relu("res_final_relu")
    return conv.tail()


def bottlenecks(name: str, prefix: str, depth: int, inner: int, group: int = 1) -> Drawing:
    """Wide nets (Zagoruyko and Komodakis, 2016) and ResNeXt (Xie et al., 2016): `inner` channels in the first stage."""
    net = Drawing(name)
    conv = _Plain(net)
    conv.head()
    at = 0
    for stage, count in enumerate(DEPTHS[depth]):
        for block in range(count):
            at += 1
            bottom, stride = net.last, 2 if stage and not block else 1
            out, p = 256 * 2**stage, f"{prefix}{at}"
            conv(f"{p}_conv1", inner * 2**stage, 1, bottom=bottom)
            conv(f"{p}_conv2", inner * 2**stage, 3, stride, group=group)
            residual = conv(f"{p}_conv3", out, 1, relu=False)
            short = bottom if block else conv(f"{p}_match_conv", out, 1, stride, bottom, relu=False)
            net.sum(f"{p}_elewise", short, residual, operation="SUM")
            net.relu(f"{p}_elewise_relu")
    return conv.tail()


def _cvgj(net: Drawing, blocks: dict[int, int], bottleneck: bool) -> Drawing:
    """The pre-activated nets of Simon et al., 2016, which normalize their very input."""
    net.add("BatchNorm", "data_bn")
    net.over("Scale", "data_scale", bias_term=True)
    net.conv("conv1", 64, 7, 2, 3)
    net.norm("conv1_bn", "conv1_scale")
    net.relu("conv1_relu")
    net.pool("conv1_pool", 3, 2)
    for width, count in blocks.items():
        for block in range(1, count + 1):
            p, bottom = f"layer_{width}_{block}", net.last
            stride = 2 if block == 1 and width > 64 else 1
            if (width, block) != (64, 1):
                net.add("BatchNorm", f"{p}_bn1", bottom)
                net.over("Scale", f"{p}_scale1", bias_term=True)
                net.relu(f"{p}_relu1")
            active, out = net.last, width * (4 if bottleneck else 1)
            kernels = (1, 3, 1) if bottleneck else (3, 3)
            strides = (1, stride, 1) if bottleneck else (stride, 1)
            for step, (kernel, by) in enumerate(zip(kernels, strides, strict=True), 1):
                last = step == len(kernels)
                net.conv(f"{p}_conv{step}", out if last else width, kernel, by, kernel // 2, bias_term=False)
                if not last:
                    net.norm(f"{p}_bn{step + 1}", f"{p}_scale{step + 1}")
                    net.relu(f"{p}_relu{step + 1}")
            residual, short = net.last, bottom
            if block == 1 and (bottleneck or width > 64):
                short = net.conv(f"{p}_conv_expand", out, 1, stride, bottom=active, bias_term=False)
            net.sum(f"{p}_sum", residual, short)
    net.norm("last_bn", "last_scale")
    net.relu("last_relu")
    net.average("global_pool")
    net.fully("score", 1000)
    net.softmax()
    return net


def cvgj(depth: int) -> Drawing:
    counts = {10: (1, 1, 1, 1), 50: DEPTHS[50]}[depth]
    return _cvgj(Drawing(f"ResNet-{depth}"), dict(zip((64, 128, 256, 512), counts, strict=True)), depth == 50)


def _axpy(net: Drawing, name: str, prob: str, residual: str, short: str) -> None:
    net.add("Axpy", name, (prob, residual, short))


def _scaled(net: Drawing, name: str, prob: str, residual: str, short: str) -> None:
    """What Axpy computes, out of layers of Caffe 1.0."""
    column = net.add("Reshape", f"{name}_column", prob, shape="{ dim: 0 dim: 0 }")
    scaled = net.add("Scale", f"{name}_scale", (residual, column), axis=0)
    net.sum(name, scaled, short, operation="SUM")


def senet(depth: int, group: int, join: Callable[[Drawing, str, str, str, str], None]) -> Drawing:
    """SE-ResNet, and with groups SE-ResNeXt: each residual is gated per channel before it is added."""
    net = Drawing("SE-ResNeXt" if group > 1 else "SE-ResNet")

    def conv(
        name: str,
        outputs: int,
        kernel: int,
        stride: int = 1,
        bottom: str = "",
        relu: bool = True,
        groups: int = 1,
    ) -> str:
        more = {"group": groups} if groups > 1 else {}
        top = net.conv(name, outputs, kernel, stride, kernel // 2, bottom=bottom, bias_term=False, **more)
        net.norm(f"{name}/bn", f"{name}/bn/scale", use_global_stats=True)
        return net.relu(f"{name}/relu") if relu else top

    conv("conv1/7x7_s2", 64, 7, 2)
    net.pool("pool1/3x3_s2", 3, 2)
    for stage, count in enumerate(DEPTHS[depth], 2):
        width = 64 * 2 ** (stage - 2)
        inner, out = width * (2 if group > 1 else 1), width * 4
        for block in range(1, count + 1):
            p, bottom = f"conv{stage}_{block}", net.last
            stride = 2 if stage > 2 and block == 1 else 1
            # ResNet strides in its first convolution, ResNeXt in the one with the groups.
            conv(f"{p}_1x1_reduce", inner, 1, 1 if group > 1 else stride, bottom)
            conv(f"{p}_3x3", inner, 3, stride if group > 1 else 1, groups=group)
            residual = conv(f"{p}_1x1_increase", out, 1, relu=False)
            net.average(f"{p}_global_pool")
            net.conv(f"{p}_1x1_down", out // 16, 1)
            net.relu(f"{p}_1x1_down/relu")
            net.conv(f"{p}_1x1_up", out, 1)
            prob = net.add("Sigmoid", f"{p}_prob", top=f"{p}_1x1_up_prob")
            short = bottom if block > 1 else conv(f"{p}_1x1_proj", out, 1, stride, bottom, relu=False)
            join(net, p, prob, residual, short)
            net.relu(f"{p}/relu")
    net.pool("pool5/7x7_s1", 7, 1, how="AVE")
    net.fully("classifier", 1000)
    net.softmax()
    return net


_DUAL = {
    "DPN-68": ((10, 3), 128, 32, (3, 4, 12, 3), (16, 32, 32, 64), 64),
    "DPN-92": ((64, 7), 96, 32, (3, 4, 20, 3), (16, 32, 24, 128), 256),
}
"""First convolution, inner channels, groups, blocks, growth, width of the residual path in the first stage."""


def dual_path(name: str) -> Drawing:
    """Dual paths (Chen et al., 2017): part of each block is added, part is joined on."""
    (first, kernel), inner, group, counts, growth, residual = _DUAL[name]
    net = Drawing(name)
    net.conv("conv1_x_1", first, kernel, 2, kernel // 2, bias_term=False)
    net.norm("conv1_x_1__bn", "conv1_x_1__bn_scale", use_global_stats=True, eps=0.001)
    net.relu("conv1_x_1__relu")
    net.pool("pool1", 3, 2)

    def active(name: str, outputs: int, size: int, bottom: str, stride: int = 1, groups: int = 1) -> str:
        """BatchNorm, Scale and ReLU on a copy, then the convolution."""
        net.add("BatchNorm", f"{name}__bn", bottom, use_global_stats=True, eps=0.001)
        net.over("Scale", f"{name}__bn_scale", bias_term=True)
        net.relu(f"{name}__relu")
        more = {"group": groups} if groups > 1 else {}
        return net.conv(name, outputs, size, stride, size // 2, bias_term=False, **more)

    added, joined = net.last, ""
    for stage, (count, more) in enumerate(zip(counts, growth, strict=True), 2):
        width = residual * 2 ** (stage - 2)
        for block in range(1, count + 1):
            p, stride = f"conv{stage}_{block}", 2 if stage > 2 and block == 1 else 1
            bottom = net.concat(f"{p}_in", added, joined) if joined else added
            if block == 1:
                active(f"{p}_c1x1_w(s/{stride})", width + 2 * more, 1, bottom, stride)
                halves = [f"{p}_c1x1_w(s/{stride})_split{half}" for half in (1, 2)]
                net.split("Slice", f"{p}_c1x1_w(s/{stride})_split", halves, axis=1, slice_point=width)
                added, joined = halves
            active(f"{p}_c1x1_a", inner * 2 ** (stage - 2), 1, bottom)
            active(f"{p}_c3x3_b", inner * 2 ** (stage - 2), 3, net.last, stride, group)
            active(f"{p}_c1x1_c", width + more, 1, net.last)
            halves = [f"{p}_c1x1_c_split{half}" for half in (1, 2)]
            net.split("Slice", f"{p}_c1x1_c_split", halves, axis=1, slice_point=width)
            added = net.sum(f"{p}_ele", added, halves[0])
            joined = net.concat(f"{p}_concat", joined, halves[1])
    net.concat("conv5_x_x", added, joined)
    net.add("BatchNorm", "conv5_x_x__bn", use_global_stats=True, eps=0.001)
    net.over("Scale", "conv5_x_x__bn_scale", bias_term=True)
    net.relu("conv5_x_x__relu")
    net.pool("pool5", 7, 1, how="AVE")
    net.conv("fc6", 1000, 1)
    net.softmax()
    return net


def resnet_cifar(depth: int) -> Drawing:
    """The thin nets for CIFAR-10; where the width grows the shortcut is convolved."""
    net = Drawing(f"ResNet-{depth}-CIFAR", (3, 32, 32))
    conv = _Plain(net)
    conv("conv1", 16, 3)
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range(1, (depth - 2) // 6 + 1):
            p, bottom, stride = f"conv{stage}_{block}", net.last, 2 if stage > 1 and block == 1 else 1
            conv(f"{p}_1", width, 3, stride)
            residual = conv(f"{p}_2", width, 3, relu=False)
            short = conv(f"{p}_short", width, 1, stride, bottom, relu=False) if stride > 1 else bottom
            net.sum(f"{p}_sum", short, residual)
            net.relu(f"{p}_relu")
    net.average("pool_global")
    net.fully("score", 10)
    net.softmax()
    return net


_FC = ("res4a", "pool5", "fc1000", "prob")
_AVE = ("pool_ave", "classifier", "prob")

NETS = [
    *(Published(f"ResNet-{depth}", lambda depth=depth: resnet(depth), _FC) for depth in (18, 34, 50, 101, 152)),
    Published("ResNet-152 Places365", lambda: resnet(152, 365), ("pool5", "prob")),
    Published("ResNet-20 CIFAR", lambda: resnet_cifar(20), ("pool_global", "prob")),
    Published("ResNet-56 CIFAR", lambda: resnet_cifar(56), ("pool_global", "prob")),
    Published("ResNet-10 pre-activated", lambda: cvgj(10), ("layer_256_1_sum", "global_pool", "prob")),
    Published("ResNet-50 pre-activated", lambda: cvgj(50), ("layer_256_6_sum", "global_pool", "prob")),
    *(Published(f"ResNet-{depth} v2", lambda depth=depth: resnet_v2(depth), _AVE) for depth in (50, 101, 152)),
    Published("ResNeXt-50", lambda: bottlenecks("ResNeXt50", "resx", 50, 128, 32), _AVE),
    Published("ResNeXt-101", lambda: bottlenecks("ResNeXt101", "resx", 101, 128, 32), _AVE),
    Published("Wide ResNet-50-2", lambda: bottlenecks("WRN50_2", "res", 50, 128), _AVE),
    Published(
        "SE-ResNet-50", lambda: senet(50, 1, _axpy), ("conv4_6", "pool5/7x7_s1", "prob"),
        stand_in=lambda: senet(50, 1, _scaled),
    ),
    Published("SE-ResNet-50 by Scale", lambda: senet(50, 1, _scaled), ("conv4_6", "pool5/7x7_s1", "prob")),
    Published("SE-ResNeXt-50", lambda: senet(50, 32, _scaled), ("conv4_6", "pool5/7x7_s1", "prob")),
    Published("SE-ResNet-101", lambda: senet(101, 1, _scaled), ("pool5/7x7_s1", "prob")),
    Published("DPN-68", lambda: dual_path("DPN-68"), ("conv5_x_x__bn", "pool5", "prob")),
    Published("DPN-92", lambda: dual_path("DPN-92"), ("pool5", "prob")),
    Published("R-FCN ResNet-50 trunk", lambda: rfcn(50), ("res5c", "rfcn_bbox", "rfcn_cls")),
    Published("DeepLab v2 ResNet-101", deeplab_resnet, ("res5c", "fc1_voc12")),
]  # fmt: skip
