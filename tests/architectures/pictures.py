"""Nets whose output is a picture or has a number for every pixel: segmentation, edges, colour, larger pictures."""

from __future__ import annotations

from architectures.drawing import Drawing, Published
from architectures.vgg import blocks


def _crop(net: Drawing, name: str, bottom: str, like: str, offset: int) -> str:
    return net.add("Crop", name, (bottom, like), axis=2, offset=offset)


def fcn(stride: int) -> Drawing:
    """FCN-32s, 16s, 8s (Long et al., 2015): VGG16, padded by 100, scores of several depths upsampled and added."""
    net = Drawing(f"FCN-{stride}s", (3, 64, 96))
    blocks(net, first=100)
    for at, kernel in ((6, 7), (7, 1)):
        net.conv(f"fc{at}", 4096, kernel)
        net.relu(f"relu{at}")
        net.drop(f"drop{at}")
    net.conv("score_fr", 21, 1)
    if stride == 32:
        up = net.deconv("upscore", 21, 64, 32, bias_term=False)
        _crop(net, "score", up, "data", 19)
        return net
    up = net.deconv("upscore2", 21, 4, 2, bias_term=False)
    score = net.conv("score_pool4", 21, 1, bottom="pool4")
    fused = net.sum("fuse_pool4", up, _crop(net, "score_pool4c", score, up, 5), operation="SUM")
    if stride == 16:
        up = net.deconv("upscore16", 21, 32, 16, bias_term=False, bottom=fused)
        _crop(net, "score", up, "data", 27)
        return net
    up = net.deconv("upscore_pool4", 21, 4, 2, bias_term=False, bottom=fused)
    score = net.conv("score_pool3", 21, 1, bottom="pool3")
    fused = net.sum("fuse_pool3", up, _crop(net, "score_pool3c", score, up, 9), operation="SUM")
    up = net.deconv("upscore8", 21, 16, 8, bias_term=False, bottom=fused)
    _crop(net, "score", up, "data", 31)
    return net


def _dilated_vgg(net: Drawing, pad: int = 1) -> None:
    """Pools that overlap; the last two do not shrink the picture, and the convolutions between are dilated."""
    for block, depth in enumerate((2, 2, 3, 3, 3), 1):
        for at in range(1, depth + 1):
            holes = {"dilation": 2} if block == 5 else {}
            net.conv(
                f"conv{block}_{at}", min(64 * 2 ** (block - 1), 512), 3, pad=2 if block == 5 else 1, **holes
            )
            net.relu(f"relu{block}_{at}")
        net.pool(f"pool{block}", 3, 2 if block < 4 else 1, pad)


def deeplab_large_fov() -> Drawing:
    """DeepLab-LargeFOV (Chen et al., 2015) up to its scores; what resizes them follows."""
    net = Drawing("DeepLab-LargeFOV", (3, 161, 161))
    _dilated_vgg(net)
    net.pool("pool5a", 3, 1, 1, "AVE")
    net.conv("fc6", 1024, 3, pad=12, dilation=12)
    net.relu("relu6")
    net.drop("drop6")
    net.conv("fc7", 1024, 1)
    net.relu("relu7")
    net.drop("drop7")
    net.conv("fc8_voc12", 21, 1)
    return net


def dilation8() -> Drawing:
    """The front end of Yu and Koltun, 2016, and its context module: dilations up to 8, no pad in front."""
    net = Drawing("dilation8_pascal_voc", (3, 420, 420), old_input=True)
    for block, depth in enumerate((2, 2, 3, 3, 3), 1):
        for at in range(1, depth + 1):
            holes = {"dilation": 2} if block == 5 else {}
            net.conv(f"conv{block}_{at}", min(64 * 2 ** (block - 1), 512), 3, **holes)
            net.relu(f"relu{block}_{at}")
        if block < 4:
            net.pool(f"pool{block}", 2, 2)
    for at, kernel, holes in ((6, 7, {"dilation": 4}), (7, 1, {})):
        net.conv(f"fc{at}", 1024, kernel, **holes)
        net.relu(f"relu{at}")
        net.drop(f"drop{at}")
    net.conv("fc-final", 21, 1)
    for at, holes in enumerate((1, 1, 2, 4, 8), 1):
        more = {"dilation": holes} if holes > 1 else {}
        net.conv(f"ctx_conv1_{at}", 42, 3, pad=holes, **more)
        net.relu(f"ctx_relu1_{at}")
    net.conv("ctx_fc1", 42, 3, pad=1)
    net.relu("ctx_fc1_relu")
    net.conv("ctx_final", 21, 1)
    net.deconv("ctx_upsample", 21, 16, 8, 4, group=21, bias_term=False)
    net.softmax()
    return net


def hed() -> Drawing:
    """Holistically nested edges (Xie and Tu, 2015): edges out of every block, upsampled, cropped, weighted."""
    net = Drawing("HED", (3, 120, 160), old_input=True)
    blocks(net, first=35, pool_last=False)
    sides = []
    for at, top in enumerate(("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"), 1):
        score = net.conv(f"score-dsn{at}", 1, 1, bottom=top)
        stride = 2 ** (at - 1)
        if at > 1:
            score = net.deconv(
                f"upsample_{stride}", 1, 2 * stride, stride, bottom=score, top=f"score-dsn{at}-up"
            )
        # With 34 rows more on each side, and half a stride that the upsampling adds.
        side = _crop(net, f"crop{at}", score, "data", 34 + stride // 2)
        sides.append(side)
        net.add("Sigmoid", f"sigmoid-dsn{at}", side)
    net.concat("concat-upscore", *sides)
    net.conv("upscore-fuse", 1, 1)
    net.add("Sigmoid", "sigmoid-fuse")
    return net


def rcf() -> Drawing:
    """Richer features for edges (Liu et al., 2017): every convolution of a block adds to its side."""
    net = Drawing("RCF", (3, 120, 160), old_input=True)
    sides = []
    for block, depth in enumerate((2, 2, 3, 3, 3), 1):
        downs = []
        for at in range(1, depth + 1):
            holes = {"dilation": 2, "pad": 2} if block == 5 else {"pad": 35 if (block, at) == (1, 1) else 1}
            net.conv(f"conv{block}_{at}", min(64 * 2 ** (block - 1), 512), 3, **holes)
            top = net.relu(f"relu{block}_{at}")
            downs.append(net.conv(f"conv{block}_{at}_down", 21, 1, bottom=top))
            net.last = top
        net.sum(f"elt_fuse{block}", *downs, operation="SUM")
        score = net.conv(f"score_dsn{block}", 1, 1)
        factor = min(2 ** (block - 1), 8)
        if factor > 1:
            score = net.deconv(f"upsample_{block}", 1, 2 * factor, factor, bias_term=False)
        sides.append(_crop(net, f"crop{block}", score, "data", 34 + factor // 2))
        if block < 5:
            net.pool(f"pool{block}", 2, 2 if block < 4 else 1, bottom=top)
    net.concat("concat", *sides)
    net.conv("upscore-fuse", 1, 1)
    net.add("Sigmoid", "sigmoid-fuse")
    return net


def u_net() -> Drawing:
    """U-Net (Ronneberger et al., 2015): no pad anywhere, so what comes across is cropped."""
    net = Drawing("phseg_v5", (1, 252, 252), old_input=True)
    across = []
    for level in range(5):
        for one, other in ("ab", "bc"):
            net.conv(f"conv_d{level}{one}-{other}", 64 * 2**level, 3)
            net.relu(f"relu_d{level}{other}")
        if level == 4:
            break
        across.append(net.last)
        if level == 3:
            net.drop("dropout_d3c")
        net.pool(f"pool_d{level}c-{level + 1}a", 2, 2)
    net.drop("dropout_d4c")
    for level, offset in ((3, 4), (2, 16), (1, 40), (0, 88)):
        up = net.deconv(f"upconv_d{level + 1}c_u{level}a", 64 * 2**level, 2, 2)
        net.relu(f"relu_u{level}a")
        cropped = _crop(net, f"crop_d{level}c-d{level}cc", across[level], up, offset)
        net.concat(f"concat_d{level}cc_u{level}a-b", up, cropped)
        for one, other in ("bc", "cd"):
            net.conv(f"conv_u{level}{one}-{other}", 64 * 2**level, 3)
            net.relu(f"relu_u{level}{other}")
    net.conv("conv_u0d-score", 2, 1)
    return net


def segnet_encoder() -> Drawing:
    """SegNet up to where it would unpool: each pooling has its mask as a second top."""
    net = Drawing("segnet", (3, 180, 240), old_input=True)
    for block, depth in enumerate((2, 2, 3, 3, 3), 1):
        for at in range(1, depth + 1):
            net.conv(f"conv{block}_{at}", min(64 * 2 ** (block - 1), 512), 3, pad=1)
            net.norm(f"conv{block}_{at}_bn", f"conv{block}_{at}_bn_scale")
            net.relu(f"relu{block}_{at}")
        net.split(
            "Pooling",
            f"pool{block}",
            (f"pool{block}", f"pool{block}_mask"),
            pool="MAX",
            kernel_size=2,
            stride=2,
        )
    return net


def colorization() -> Drawing:
    """Colours for grey pictures (Zhang et al., 2016): BatchNorm without Scale, dilations, a scaled softmax."""
    net = Drawing("LtoAB", (1, 224, 224), old_input=True, data="data_l")
    plan = (
        (1, 64, 1, (1, 2)), (2, 128, 1, (1, 2)), (3, 256, 1, (1, 1, 2)), (4, 512, 1, (1, 1, 1)), (5, 512, 2, (1, 1, 1)),
        (6, 512, 2, (1, 1, 1)), (7, 512, 1, (1, 1, 1)),
    )  # fmt: skip
    for block, outputs, holes, strides in plan:
        for at, stride in enumerate(strides, 1):
            name = f"bw_conv{block}_{at}" if block == 1 and at == 1 else f"conv{block}_{at}"
            net.conv(name, outputs, 3, stride, holes, dilation=holes)
            net.relu(f"relu{block}_{at}")
        net.add("BatchNorm", f"conv{block}_{len(strides)}norm")
    net.deconv("conv8_1", 256, 4, 2, 1, dilation=1)
    net.relu("relu8_1")
    for at in (2, 3):
        net.conv(f"conv8_{at}", 256, 3, pad=1, dilation=1)
        net.relu(f"relu8_{at}")
    net.conv("conv8_313", 313, 1, dilation=1)
    net.add("Scale", "conv8_313_rh", bias_term=False)
    net.softmax("class8_313_rh")
    net.conv("class8_ab", 2, 1, dilation=1)
    return net


def srcnn() -> Drawing:
    """Larger pictures (Dong et al., 2014)."""
    net = Drawing("SRCNN", (1, 66, 90), old_input=True)
    for at, outputs, kernel in ((1, 64, 9), (2, 32, 1), (3, 1, 5)):
        net.conv(f"conv{at}", outputs, kernel)
        if at < 3:
            net.relu(f"relu{at}")
    return net


def fsrcnn() -> Drawing:
    """The same, faster (Dong et al., 2016): narrow inside, enlarged at the end."""
    net = Drawing("FSRCNN", (1, 40, 56), old_input=True)
    steps = (
        ("1", 56, 5),
        ("2", 12, 1),
        ("22", 12, 3),
        ("23", 12, 3),
        ("24", 12, 3),
        ("25", 12, 3),
        ("26", 56, 1),
    )
    for at, outputs, kernel in steps:
        net.conv(f"conv{at}", outputs, kernel, pad=kernel // 2)
        net.over("PReLU", f"relu{at}")
    net.deconv("conv3", 1, 9, 3, 4)
    return net


def vdsr() -> Drawing:
    """Twenty convolutions whose result is added to what came in (Kim et al., 2016)."""
    net = Drawing("VDSR", (1, 64, 80))
    for at in range(1, 20):
        net.conv(f"conv{at}", 64, 3, pad=1)
        net.relu(f"relu{at}")
    net.conv("conv20", 1, 3, pad=1)
    net.sum("sum", "data", net.last)
    return net


_FCN = ("fc7", "score_fr", "score")

NETS = [
    *(Published(f"FCN-{stride}s", lambda stride=stride: fcn(stride), _FCN) for stride in (32, 16, 8)),
    Published("DeepLab-LargeFOV", deeplab_large_fov, ("pool5a", "fc7", "fc8_voc12")),
    Published("Dilation8", dilation8, ("fc7", "ctx_final", "prob")),
    Published("HED", hed, ("conv5_3", "sigmoid-dsn3", "sigmoid-fuse")),
    Published("RCF", rcf, ("elt_fuse5", "sigmoid-fuse")),
    Published("U-Net", u_net, ("conv_d4b-c", "conv_u0d-score")),
    Published("SegNet encoder", segnet_encoder, ("conv5_3", "pool5")),
    Published("Colorization", colorization, ("conv7_3norm", "class8_313_rh", "class8_ab")),
    Published("SRCNN", srcnn, ("conv2", "conv3")),
    Published("FSRCNN", fsrcnn, ("conv26", "conv3")),
    Published("VDSR", vdsr, ("conv19", "sum")),
]
