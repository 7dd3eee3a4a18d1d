"""Nets that find things, up to where boxes are made: SSD, OpenPose."""

from __future__ import annotations

from architectures.drawing import Drawing, Published


def ssd(size: int = 300) -> Drawing:
    """SSD (Liu et al., 2016) on VGG16: a dilated fc6, a Normalize with a factor per channel, boxes of six sizes."""
    net = Drawing(f"VGG_VOC0712_SSD_{size}x{size}_deploy", (3, size, size), old_input=True)
    for block, depth in enumerate((2, 2, 3, 3, 3), 1):
        for at in range(1, depth + 1):
            net.conv(f"conv{block}_{at}", min(64 * 2 ** (block - 1), 512), 3, pad=1)
            net.relu(f"relu{block}_{at}")
        if block < 5:
            net.pool(f"pool{block}", 2, 2)
        else:
            net.pool("pool5", 3, 1, 1)
    net.conv("fc6", 1024, 3, pad=6, dilation=6)
    net.relu("relu6")
    net.conv("fc7", 1024, 1)
    net.relu("relu7")
    tops = ["", "fc7"]
    for block, inner, outer, stride, pad in (
        (6, 256, 512, 2, 1),
        (7, 128, 256, 2, 1),
        (8, 128, 256, 1, 0),
        (9, 128, 256, 1, 0),
    ):
        net.conv(f"conv{block}_1", inner, 1)
        net.relu(f"conv{block}_1_relu")
        net.conv(f"conv{block}_2", outer, 3, stride, pad)
        tops.append(net.relu(f"conv{block}_2_relu"))
    tops[0] = net.add(
        "Normalize", "conv4_3_norm", "conv4_3", across_spatial=False, scale_filler='{ type: "constant" value: 20 }',
        channel_shared=False,
    )  # fmt: skip
    rows: dict[str, list[str]] = {"loc": [], "conf": []}
    for top, boxes in zip(tops, (4, 6, 6, 6, 4, 4), strict=True):
        for kind, numbers in (("loc", 4), ("conf", 21)):
            name = f"{top}_mbox_{kind}"
            net.conv(name, boxes * numbers, 3, pad=1, bottom=top)
            net.add("Permute", f"{name}_perm", order=[0, 2, 3, 1])
            rows[kind].append(net.add("Flatten", f"{name}_flat", axis=1))
    net.concat("mbox_loc", *rows["loc"], axis=1)
    net.concat("mbox_conf", *rows["conf"], axis=1)
    net.add("Reshape", "mbox_conf_reshape", shape="{ dim: 0 dim: -1 dim: 21 }")
    net.softmax("mbox_conf_softmax", axis=2)
    net.add("Flatten", "mbox_conf_flatten", axis=1)
    return net


def open_pose(
    stages: int, parts: tuple[tuple[int, int], ...], names: tuple[str, ...] = ("_L1", "_L2")
) -> Drawing:
    """The pose nets of Cao et al., 2017: each stage reads the features and what the stage before it believed."""
    net = Drawing("OpenPose", (3, 184, 184), old_input=True, data="image")
    for block, (depth, outputs) in enumerate(((2, 64), (2, 128), (4, 256), (2, 512)), 1):
        for step in range(1, depth + 1):
            net.conv(f"conv{block}_{step}", outputs, 3, pad=1)
            net.relu(f"relu{block}_{step}")
        if block < 4:
            net.pool(f"pool{block}_stage1", 2, 2)
    for step, outputs in ((3, 256), (4, 128)):
        net.conv(f"conv4_{step}_CPM", outputs, 3, pad=1)
        net.relu(f"relu4_{step}_CPM")
    features, beliefs = net.last, []
    for (outputs, _), name in zip(parts, names, strict=True):
        net.last = features
        for step in (1, 2, 3):
            net.conv(f"conv5_{step}_CPM{name}", 128, 3, pad=1)
            net.relu(f"relu5_{step}_CPM{name}")
        net.conv(f"conv5_4_CPM{name}", 512, 1)
        net.relu(f"relu5_4_CPM{name}")
        beliefs.append(net.conv(f"conv5_5_CPM{name}", outputs, 1))
    for stage in range(2, stages + 1):
        joined, beliefs_now = net.concat(f"concat_stage{stage}", *beliefs, features, axis=1), []
        for (outputs, width), name in zip(parts, names, strict=True):
            net.last = joined
            for step in range(1, 7):
                kernel = 7 if step < 6 else 1
                net.conv(f"Mconv{step}_stage{stage}{name}", width, kernel, pad=kernel // 2)
                net.relu(f"Mrelu{step}_stage{stage}{name}")
            beliefs_now.append(net.conv(f"Mconv7_stage{stage}{name}", outputs, 1))
        beliefs = beliefs_now
    net.concat("net_output", *reversed(beliefs), axis=1)
    return net


NETS = [
    Published("SSD300 trunk", ssd, ("conv4_3_norm", "fc7", "mbox_loc", "mbox_conf_flatten")),
    Published("OpenPose COCO", lambda: open_pose(6, ((38, 128), (19, 128))), ("conv4_4_CPM", "net_output")),
    Published("OpenPose MPI", lambda: open_pose(4, ((28, 128), (16, 128))), ("conv4_4_CPM", "net_output")),
]
