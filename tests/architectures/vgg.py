"""VGG16 and VGG19 (Simonyan and Zisserman, 2014), and nets that stand on them."""

from __future__ import annotations

from architectures.alexnet import region_proposals
from architectures.drawing import V1, Drawing, Published, old_forms

DEPTHS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def blocks(
    net: Drawing, depths: tuple[int, ...] = DEPTHS[16], first: int = 1, pool_last: bool = True
) -> None:
    """Blocks of 3 x 3 convolutions with a 2 x 2 pooling after each; `first`: the pad of the very first."""
    for block, depth in enumerate(depths, 1):
        for at in range(1, depth + 1):
            pad = first if (block, at) == (1, 1) else 1
            net.conv(f"conv{block}_{at}", min(64 * 2 ** (block - 1), 512), 3, pad=pad)
            net.relu(f"relu{block}_{at}")
        if pool_last or block < len(depths):
            net.pool(f"pool{block}", 2, 2)


def vgg(
    depth: int = 16, classes: int = 1000, last: str = "fc8", name: str = "VGG_ILSVRC_16_layers"
) -> Drawing:
    net = Drawing(name, batch=10, old_input=True)
    blocks(net, DEPTHS[depth])
    for at in (6, 7):
        net.fully(f"fc{at}", 4096)
        net.relu(f"relu{at}")
        net.drop(f"drop{at}")
    net.fully(last, classes)
    net.softmax()
    return net


def faster() -> Drawing:
    net = Drawing("VGG_ILSVRC_16_layers", (3, 224, 320), old_input=True)
    blocks(net, pool_last=False)
    return region_proposals(net, 9)


_FC = ("pool5", "fc6", "fc7", "prob")

NETS = [
    *old_forms(Published("VGG16", vgg, _FC), V1),
    *old_forms(Published("VGG19", lambda: vgg(19), _FC), V1),
    *old_forms(Published("VGG-Face", lambda: vgg(classes=2622, name="VGG_FACE_16_layers"), _FC), V1),
    Published("VGG16 Places365", lambda: vgg(classes=365, last="fc8a"), ("fc7", "prob")),
    Published("VGG16 Hybrid1365", lambda: vgg(classes=1365, last="fc8a"), ("fc7", "prob")),
    Published("DEX apparent age", lambda: vgg(classes=101, last="fc8-101"), ("fc7", "prob")),
    Published(
        "Faster R-CNN VGG16 trunk", faster, ("conv5_3", "rpn/output", "rpn_bbox_pred", "rpn_cls_prob_reshape")
    ),
]
