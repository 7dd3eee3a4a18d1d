"""Nets for faces: maxima of halves, PReLU, tanh, small pictures."""

from __future__ import annotations

from architectures.drawing import Drawing, Published


def _halves(net: Drawing, at: str) -> str:
    """The larger of the first and the second half of the channels."""
    net.split("Slice", f"slice{at}", (f"slice{at}_1", f"slice{at}_2"), slice_dim=1)
    return net.sum(f"etlwise{at}", f"slice{at}_1", f"slice{at}_2", operation="MAX")


def light_cnn_a() -> Drawing:
    """LightenedCNN A (Wu et al., 2015)."""
    net = Drawing("LightenedCNN_A", (1, 128, 128), old_input=True)
    for at, outputs, kernel in ((1, 96, 9), (2, 192, 5), (3, 256, 5), (4, 384, 4)):
        net.conv(f"conv{at}", outputs, kernel)
        _halves(net, f"{at}")
        net.pool(f"pool{at}", 2, 2)
    net.fully("fc1", 512)
    _halves(net, "_fc1")
    net.drop("drop1", 0.75)
    net.fully("fc2", 10575)
    net.softmax()
    return net


def light_cnn_b() -> Drawing:
    """LightenedCNN B: 1 x 1 convolutions between."""
    net = Drawing("LightenedCNN_B", (1, 128, 128), old_input=True)

    def conv(name: str, outputs: int, kernel: int, pad: int = 0) -> None:
        net.conv(f"conv{name}", outputs, kernel, pad=pad)
        _halves(net, name)

    conv("1", 96, 5, 2)
    net.pool("pool1", 2, 2)
    for at, inner, outer in ((2, 96, 192), (3, 192, 384), (4, 384, 256), (5, 256, 256)):
        conv(f"{at}a", inner, 1)
        conv(f"{at}", outer, 3, 1)
        if at != 4:
            net.pool(f"pool{at}", 2, 2)
    net.fully("fc1", 512)
    _halves(net, "_fc1")
    return net


def light_cnn_29() -> Drawing:
    """LightCNN-29: with residuals."""
    net = Drawing("DeepFace_set003", (1, 128, 128), old_input=True)

    def conv(name: str, outputs: int, kernel: int, pad: int = 0, bottom: str = "") -> str:
        net.conv(f"conv{name}", outputs, kernel, pad=pad, bottom=bottom)
        return _halves(net, name)

    conv("1", 96, 5, 2)
    net.pool("pool1", 2, 2)
    for at, inner, outer, count in ((2, 96, 192, 1), (3, 192, 384, 2), (4, 384, 256, 3), (5, 256, 256, 4)):
        for block in range(1, count + 1):
            bottom = net.last
            conv(f"{at}_r{block}_1", inner, 3, 1)
            residual = conv(f"{at}_r{block}_2", inner, 3, 1)
            net.sum(f"res{at}_{block}", residual, bottom, operation="SUM")
        conv(f"{at}a", inner, 1)
        conv(f"{at}", outer, 3, 1)
        if at != 4:
            net.pool(f"pool{at}", 2, 2)
    net.fully("fc1", 512)
    _halves(net, "_fc1")
    return net


def sphereface(depth: int) -> Drawing:
    """SphereFace (Liu et al., 2017): strided convolutions, PReLU, residuals of two convolutions."""
    counts = {4: (0, 0, 0, 0), 20: (1, 2, 4, 1), 36: (2, 4, 8, 2), 64: (3, 8, 16, 3)}[depth]
    net = Drawing(f"SpherefaceNet-{depth}", (3, 112, 96), old_input=True)

    def conv(at: str, outputs: int, stride: int = 1) -> str:
        net.conv(f"conv{at}", outputs, 3, stride, 1)
        return net.over("PReLU", f"relu{at}")

    for stage, (count, outputs) in enumerate(zip(counts, (64, 128, 256, 512), strict=True), 1):
        conv(f"{stage}_1", outputs, 2)
        for block in range(1, count + 1):
            bottom = net.last
            conv(f"{stage}_{2 * block}", outputs)
            residual = conv(f"{stage}_{2 * block + 1}", outputs)
            net.sum(f"res{stage}_{2 * block + 1}", bottom, residual, operation="SUM")
    net.fully("fc5", 512)
    return net


def center_loss() -> Drawing:
    """The net of the center loss (Wen et al., 2016)."""
    net = Drawing("face_model", (3, 112, 96), old_input=True)

    def conv(at: str, outputs: int, pad: int = 0) -> str:
        net.conv(f"conv{at}", outputs, 3, pad=pad)
        return net.over("PReLU", f"relu{at}")

    conv("1a", 32)
    conv("1b", 64)
    net.pool("pool1b", 2, 2)
    for stage, outputs, count, following in (
        (2, 64, 1, 128),
        (3, 128, 2, 256),
        (4, 256, 5, 512),
        (5, 512, 3, 0),
    ):
        for block in range(1, count + 1):
            bottom = net.last
            conv(f"{stage}_{2 * block}", outputs, 1)
            residual = conv(f"{stage}_{2 * block + 1}", outputs, 1)
            net.sum(f"res{stage}_{2 * block + 1}", bottom, residual, operation="SUM")
        if following:
            conv(f"{stage}", following)
            net.pool(f"pool{stage}", 2, 2)
    net.fully("fc5", 512)
    return net


def mobile_face() -> Drawing:
    """MobileFaceNet (Chen et al., 2018): a depthwise convolution over the whole picture instead of an average."""
    net = Drawing("MobileFaceNet", (3, 112, 112))

    def conv(
        name: str,
        outputs: int,
        kernel: int,
        stride: int = 1,
        group: int = 1,
        pad: int = -1,
        prelu: bool = True,
    ) -> str:
        more = {"group": group} if group > 1 else {}
        net.conv(name, outputs, kernel, stride, kernel // 2 if pad < 0 else pad, bias_term=False, **more)
        net.norm(f"{name}_batchnorm", f"{name}_scale", use_global_stats=True, eps=0.001)
        return net.over("PReLU", f"{name}_relu") if prelu else net.last

    conv("conv_1", 64, 3, 2)
    conv("conv_2_dw", 64, 3, group=64)
    channels = 64
    for at, outputs, inner, count, stride in (
        ("23", 64, 128, 1, 2), ("3", 64, 128, 4, 1), ("34", 128, 256, 1, 2), ("4", 128, 256, 6, 1),
        ("45", 128, 512, 1, 2), ("5", 128, 256, 2, 1),
    ):  # fmt: skip
        for block in range(count):
            p, bottom = f"res_{at}_block{block}", net.last
            conv(f"{p}_conv_sep", inner, 1)
            conv(f"{p}_conv_dw", inner, 3, stride, inner)
            residual = conv(f"{p}_conv_proj", outputs, 1, prelu=False)
            if stride == 1 and channels == outputs:
                net.sum(f"{p}_plus", bottom, residual)
            channels = outputs
    conv("conv_6sep", 512, 1)
    conv("conv_6dw7_7", 512, 7, group=512, pad=0, prelu=False)
    net.fully("pre_fc1", 128)
    net.over("BatchNorm", "fc1", use_global_stats=True, eps=2e-5)
    return net


def vanilla() -> Drawing:
    """Vanilla CNN for landmarks (Wu and Hassner, 2015): absolute values of hyperbolic tangents."""
    net = Drawing("VanillaCNN", (3, 40, 40), old_input=True)
    for at, (outputs, kernel, pad) in enumerate(((16, 5, 2), (48, 3, 1), (64, 3, 0), (64, 2, 0)), 1):
        net.conv(f"Conv{at}", outputs, kernel, pad=pad)
        net.add("TanH", f"ActivationTangH{at}")
        net.add("AbsVal", f"ActivationAbs{at}")
        if at < 4:
            net.pool(f"Pool{at}", 2, 2)
    net.fully("Dense1", 100)
    net.add("TanH", "ActivationTangH5")
    net.add("AbsVal", "ActivationAbs5")
    net.fully("Dense2", 10)
    return net


def mtcnn_p() -> Drawing:
    """The proposals of MTCNN (Zhang et al., 2016), on a picture of any size."""
    net = Drawing("PNet", (3, 60, 72), old_input=True)
    for at, outputs in enumerate((10, 16, 32), 1):
        net.conv(f"conv{at}", outputs, 3)
        net.over("PReLU", f"PReLU{at}")
        if at == 1:
            net.pool("pool1", 2, 2)
    top = net.last
    net.conv("conv4-2", 4, 1, bottom=top)
    net.conv("conv4-1", 2, 1, bottom=top)
    net.softmax("prob1")
    return net


def mtcnn(
    name: str, size: int, convs: tuple[tuple[int, int, int], ...], wide: int, heads: tuple[int, ...]
) -> Drawing:
    """The refining and the last net of MTCNN: convolutions (outputs, kernel, kernel of the pooling), several heads."""
    net = Drawing(name, (3, size, size), old_input=True)
    for at, (outputs, kernel, pool) in enumerate(convs, 1):
        net.conv(f"conv{at}", outputs, kernel)
        net.over("PReLU", f"prelu{at}")
        if pool:
            net.pool(f"pool{at}", pool, 2)
    at = len(convs) + 1
    net.fully(f"conv{at}", wide)
    top = net.over("PReLU", f"prelu{at}")
    for head, outputs in enumerate(heads, 1):
        net.fully(f"conv{at + 1}-{head}", outputs, top)
    net.softmax("prob1", f"conv{at + 1}-1")
    return net


_RNET = ((28, 3, 3), (48, 3, 3), (64, 2, 0))
_ONET = ((32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0))

NETS = [
    Published("LightCNN A", light_cnn_a, ("pool4", "etlwise_fc1", "prob")),
    Published("LightCNN B", light_cnn_b, ("pool5", "etlwise_fc1")),
    Published("LightCNN-29", light_cnn_29, ("pool5", "etlwise_fc1")),
    *(
        Published(f"SphereFace-{depth}", lambda depth=depth: sphereface(depth), ("conv4_1", "fc5"))
        for depth in (4, 20, 36, 64)
    ),
    Published("Center loss face", center_loss, ("pool4", "fc5")),
    Published("MobileFaceNet", mobile_face, ("conv_6sep", "pre_fc1")),
    Published("Vanilla landmarks", vanilla, ("Pool3", "Dense1", "Dense2")),
    Published("MTCNN P-Net", mtcnn_p, ("conv3", "conv4-2", "prob1")),
    Published("MTCNN R-Net", lambda: mtcnn("RNet", 24, _RNET, 128, (2, 4)), ("conv4", "conv5-2", "prob1")),
    Published(
        "MTCNN O-Net", lambda: mtcnn("ONet", 48, _ONET, 256, (2, 4, 10)), ("conv5", "conv6-3", "prob1")
    ),
]
