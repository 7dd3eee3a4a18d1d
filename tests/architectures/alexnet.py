"""AlexNet and what came of it until 2014: local response normalization, large strides, groups, wide inner products."""

from __future__ import annotations

from functools import partial

from architectures.drawing import V0, V1, Drawing, Published, old_forms


def _trunk(net: Drawing, pool_first: bool, pad: int = 0) -> None:
    """Five convolutions; CaffeNet pools before it normalizes."""

    def shrink(at: int) -> None:
        steps = [partial(net.pool, f"pool{at}", 3, 2), partial(net.lrn, f"norm{at}")]
        for step in steps if pool_first else reversed(steps):
            step()

    net.conv("conv1", 96, 11, 4, pad)
    net.relu("relu1")
    shrink(1)
    net.conv("conv2", 256, 5, pad=2, group=2)
    net.relu("relu2")
    shrink(2)
    for at, outputs, group in ((3, 384, 1), (4, 384, 2), (5, 256, 2)):
        net.conv(f"conv{at}", outputs, 3, pad=1, group=group)
        net.relu(f"relu{at}")
    net.pool("pool5", 3, 2)


def _top(
    net: Drawing, classes: int, last: str = "fc8", width: int = 4096, wide: int = 4096, prob: bool = True
) -> Drawing:
    for at, outputs in ((6, width), (7, wide)):
        net.fully(f"fc{at}", outputs)
        net.relu(f"relu{at}")
        net.drop(f"drop{at}")
    net.fully(last, classes)
    if prob:
        net.softmax()
    return net


def alexnet(classes: int = 1000, last: str = "fc8") -> Drawing:
    net = Drawing("AlexNet", (3, 227, 227), 10)
    _trunk(net, pool_first=False)
    return _top(net, classes, last)


def caffenet(classes: int = 1000, last: str = "fc8", prob: bool = True) -> Drawing:
    net = Drawing("CaffeNet", (3, 227, 227), 10)
    _trunk(net, pool_first=True)
    return _top(net, classes, last, prob=prob)


def hashing(bits: int) -> Drawing:
    """Binary codes of Lin et al., 2015: a layer of sigmoids between fc7 and the classes."""
    net = caffenet(bits, "fc8_kevin", prob=False)
    net.add("Sigmoid", "fc8_kevin_encode")
    net.fully("fc9_kevin", 10)
    net.softmax()
    return net


def fully_convolutional() -> Drawing:
    """CaffeNet with its inner products cast into convolutions (the net surgery example)."""
    net = Drawing("CaffeNetConv", (3, 451, 451))
    _trunk(net, pool_first=True)
    for at, outputs, kernel in ((6, 4096, 6), (7, 4096, 1)):
        net.conv(f"fc{at}-conv", outputs, kernel)
        net.relu(f"relu{at}")
        net.drop(f"drop{at}")
    net.conv("fc8-conv", 1000, 1)
    net.softmax()
    return net


def fcn_alexnet() -> Drawing:
    """FCN-AlexNet: padded by 100, upsampled 32 times at once, cropped."""
    net = Drawing("FCN-AlexNet", (3, 240, 320))
    _trunk(net, pool_first=True, pad=100)
    for at, kernel in ((6, 6), (7, 1)):
        net.conv(f"fc{at}", 4096, kernel)
        net.relu(f"relu{at}")
        net.drop(f"drop{at}")
    net.conv("score_fr", 21, 1)
    up = net.deconv("upscore", 21, 63, 32, bias_term=False)
    net.add("Crop", "score", (up, "data"), axis=2, offset=18)
    return net


def _zeiler(net: Drawing, region: bool) -> None:
    norm = {"norm_region": "WITHIN_CHANNEL"} if region else {}
    for at, outputs, kernel, stride, pad in ((1, 96, 7, 2, 3), (2, 256, 5, 2, 2)):
        net.conv(f"conv{at}", outputs, kernel, stride, pad)
        net.relu(f"relu{at}")
        net.lrn(f"norm{at}", 0.00005, 3, **norm)
        net.pool(f"pool{at}", 3, 2, 1)
    for at, outputs in ((3, 384), (4, 384), (5, 256)):
        net.conv(f"conv{at}", outputs, 3, pad=1)
        net.relu(f"relu{at}")


def zfnet() -> Drawing:
    net = Drawing("ZFNet", old_input=True)
    _zeiler(net, region=False)
    net.pool("pool5", 3, 2)
    return _top(net, 1000)


def zf_spp() -> Drawing:
    """ZF-5 with a pyramid of poolings instead of the last one (He et al., 2014)."""
    net = Drawing("ZF_SPP", (3, 224, 300))
    _zeiler(net, region=False)
    net.add("SPP", "spp5", pool="MAX", pyramid_height=3)
    return _top(net, 1000)


def region_proposals(net: Drawing, anchors: int) -> Drawing:
    """The head of Faster R-CNN that scores anchors, up to where proposals are made of it."""
    top = net.conv("rpn_conv/3x3", 256 if net.name == "ZF" else 512, 3, pad=1, top="rpn/output")
    net.relu("rpn_relu/3x3")
    net.conv("rpn_bbox_pred", 4 * anchors, 1, bottom=top)
    net.conv("rpn_cls_score", 2 * anchors, 1, bottom=top)
    net.add("Reshape", "rpn_cls_score_reshape", shape="{ dim: 0 dim: 2 dim: -1 dim: 0 }")
    net.softmax("rpn_cls_prob")
    net.add("Reshape", "rpn_cls_prob_reshape", shape=f"{{ dim: 0 dim: {2 * anchors} dim: -1 dim: 0 }}")
    return net


def zf_faster() -> Drawing:
    net = Drawing("ZF", (3, 224, 320), old_input=True)
    _zeiler(net, region=True)
    return region_proposals(net, 9)


_CHATFIELD = {
    "F": ((64, 11, 4, 0), (3, 2), (256, 5, 1, 2), (3, 2), 256, (3, 2)),
    "M": ((96, 7, 2, 0), (3, 2), (256, 5, 2, 1), (3, 2), 512, (3, 2)),
    "S": ((96, 7, 2, 0), (3, 3), (256, 5, 1, 0), (2, 2), 512, (3, 3)),
}
"""conv1, pool1, conv2, pool2, outputs of conv3 to conv5, pool5."""


def vgg_cnn(which: str, fc7: int = 4096, classes: int = 1000, last: str = "fc8") -> Drawing:
    """The fast, medium and slow nets of Chatfield et al., 2014."""
    net = Drawing(f"VGG_CNN_{which}", batch=10, old_input=True)
    conv1, pool1, conv2, pool2, outputs, pool5 = _CHATFIELD[which]
    for at, conv, pool in ((1, conv1, pool1), (2, conv2, pool2)):
        net.conv(f"conv{at}", *conv)
        net.relu(f"relu{at}")
        net.lrn(f"norm{at}", 0.0005, k=2)
        net.pool(f"pool{at}", *pool)
    for at in (3, 4, 5):
        net.conv(f"conv{at}", outputs, 3, pad=1)
        net.relu(f"relu{at}")
    net.pool("pool5", *pool5)
    return _top(net, classes, last, wide=fc7)


def adience(classes: int) -> Drawing:
    """The age and gender nets of Levi and Hassner, 2015."""
    net = Drawing("CaffeNet", (3, 227, 227), old_input=True)
    for at, outputs, kernel, stride, pad in ((1, 96, 7, 4, 0), (2, 256, 5, 1, 2)):
        net.conv(f"conv{at}", outputs, kernel, stride, pad)
        net.relu(f"relu{at}")
        net.pool(f"pool{at}", 3, 2)
        net.lrn(f"norm{at}")
    net.conv("conv3", 384, 3, pad=1)
    net.relu("relu3")
    net.pool("pool5", 3, 2)
    return _top(net, classes, width=512, wide=512)


def nin() -> Drawing:
    """Network in network for ImageNet: 1 x 1 convolutions between, averages instead of inner products."""
    net = Drawing("nin_imagenet", batch=10, old_input=True)
    relus = 0
    for conv, first, pool in (
        ((96, 11, 4), 1, "pool0"),
        ((256, 5, 1, 2), 3, "pool2"),
        ((384, 3, 1, 1), 5, "pool3"),
    ):
        net.conv(f"conv{first // 2 + 1}", *conv)
        net.relu(f"relu{relus}")
        for at in (first, first + 1):
            net.conv(f"cccp{at}", conv[0], 1)
            net.relu(f"relu{relus + at - first + 1}")
        relus += 3
        net.pool(pool, 3, 2)
    net.drop("drop")
    for name, top, outputs, kernel, pad in (
        ("conv4-1024", "conv4", 1024, 3, 1),
        ("cccp7-1024", "cccp7", 1024, 1, 0),
        ("cccp8-1024", "cccp8", 1000, 1, 0),
    ):
        net.conv(name, outputs, kernel, pad=pad, top=top)
        net.relu(f"relu{relus}")
        relus += 1
    net.pool("pool4", 6, 1, how="AVE")
    net.softmax()
    return net


def nin_cifar() -> Drawing:
    net = Drawing("CIFAR10_full", (3, 32, 32), old_input=True)
    for at, conv, mlp, pool in (
        (1, (192, 5, 1, 2), (160, 96), ("pool1", 3, 2)),
        (2, (192, 5, 1, 2), (192, 192), ("pool2", 3, 2, 0, "AVE")),
        (3, (192, 3, 1, 1), (192, 10), ("pool3", 8, 1, 0, "AVE")),
    ):
        net.conv(f"conv{at}", *conv)
        net.relu(f"relu{at}")
        for more, outputs in enumerate(mlp):
            net.conv(f"cccp{2 * at - 1 + more}", outputs, 1)
            net.relu(f"relu_cccp{2 * at - 1 + more}")
        net.pool(*pool)
        if at < 3:
            net.drop(f"drop{3 * at}")
    return net


_FC = ("pool5", "fc6", "fc7", "prob")

NETS = [
    *old_forms(Published("AlexNet", alexnet, _FC), V1, V0),
    *old_forms(Published("CaffeNet", caffenet, ("conv3", *_FC)), V1, V0),
    *old_forms(
        Published("R-CNN ILSVRC13", lambda: caffenet(200, "fc-rcnn", prob=False), ("fc7", "fc-rcnn")), V1, V0
    ),
    *old_forms(Published("Places205 CNN", lambda: caffenet(205), ("fc7", "prob")), V1),
    *old_forms(Published("Places Hybrid CNN", lambda: caffenet(1183), ("fc7", "prob")), V1),
    Published("AlexNet Places365", lambda: alexnet(365), ("fc7", "prob")),
    *old_forms(Published("Flickr style", lambda: caffenet(20, "fc8_flickr"), ("fc7", "prob")), V0),
    *old_forms(Published("Oxford 102 flowers", lambda: caffenet(102, "fc8_oxford_102"), ("fc7", "prob")), V1),
    Published("Object subitizing AlexNet", lambda: alexnet(5, "fc8-SOS"), ("fc7", "prob")),
    *old_forms(Published("Deep hashing 48", lambda: hashing(48), ("fc7", "fc8_kevin_encode", "prob")), V1),
    Published("Deep hashing 128", lambda: hashing(128), ("fc8_kevin_encode", "prob")),
    Published("CaffeNet convolutional", fully_convolutional, ("fc7-conv", "prob")),
    Published("FCN-AlexNet", fcn_alexnet, ("fc7", "score_fr", "score")),
    *old_forms(Published("ZFNet", zfnet, _FC), V1, V0),
    Published("ZF SPP", zf_spp, ("spp5", "fc7", "prob")),
    Published(
        "Faster R-CNN ZF trunk", zf_faster, ("conv5", "rpn/output", "rpn_bbox_pred", "rpn_cls_prob_reshape")
    ),
    *old_forms(Published("VGG CNN-F", lambda: vgg_cnn("F"), _FC), V1),
    *old_forms(Published("VGG CNN-M", lambda: vgg_cnn("M"), _FC), V1),
    *old_forms(Published("VGG CNN-S", lambda: vgg_cnn("S"), _FC), V1),
    Published("VGG CNN-M 128", lambda: vgg_cnn("M", 128), ("fc7", "prob")),
    Published("VGG CNN-M 1024", lambda: vgg_cnn("M", 1024), ("fc7", "prob")),
    Published("VGG CNN-M 2048", lambda: vgg_cnn("M", 2048), ("fc7", "prob")),
    Published("Emotions VGG-S", lambda: vgg_cnn("S", classes=7, last="fc8_cat"), ("fc7", "prob")),
    Published("Age net", lambda: adience(8), ("fc6", "fc7", "prob")),
    *old_forms(Published("Gender net", lambda: adience(2), ("fc6", "fc7", "prob")), V0),
    *old_forms(Published("NIN ImageNet", nin, ("cccp6", "pool4", "prob")), V1),
    *old_forms(Published("NIN CIFAR-10", nin_cifar, ("conv3", "pool3")), V1, V0),
]
