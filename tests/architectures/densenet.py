"""DenseNets (Huang et al., 2016): each layer reads all before it."""

from __future__ import annotations

from architectures.drawing import Drawing, Published

_BLOCKS = {121: (6, 12, 24, 16), 161: (6, 12, 36, 24), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}


def densenet(depth: int) -> Drawing:
    net = Drawing(f"DENSENET_{depth}")
    growth, channels = (48, 96) if depth == 161 else (32, 64)

    def norm(name: str, relu: str, bottom: str = "") -> None:
        net.add("BatchNorm", f"{name}/bn", bottom, eps=1e-5)
        net.over("Scale", f"{name}/scale", bias_term=True)
        net.relu(relu)

    net.conv("conv1", channels, 7, 2, 3, bias_term=False)
    norm("conv1", "relu1")
    net.pool("pool1", 3, 2, 1)
    for stage, count in enumerate(_BLOCKS[depth], 2):
        for at in range(1, count + 1):
            p, bottom = f"conv{stage}_{at}", net.last
            norm(f"{p}/x1", f"relu{stage}_{at}/x1", bottom)
            net.conv(f"{p}/x1", 4 * growth, 1, bias_term=False)
            norm(f"{p}/x2", f"relu{stage}_{at}/x2")
            net.conv(f"{p}/x2", growth, 3, pad=1, bias_term=False)
            net.concat(f"concat_{stage}_{at}", bottom, net.last)
            channels += growth
        norm(f"conv{stage}_blk", f"relu{stage}_blk")
        if stage < 5:
            channels //= 2
            net.conv(f"conv{stage}_blk", channels, 1, bias_term=False)
            net.pool(f"pool{stage}", 2, 2, how="AVE")
    net.average("pool5")
    net.conv("fc6", 1000, 1)
    net.softmax()
    return net


def densenet_cifar(depth: int = 40, growth: int = 12) -> Drawing:
    """Without bottlenecks; a Dropout after each convolution."""
    net = Drawing(f"DenseNet_{depth}_{growth}", (3, 32, 32))
    channels, names = 16, iter(range(1, 1000))

    def norm_conv(outputs: int, kernel: int) -> None:
        at = next(names)
        net.add("BatchNorm", f"BatchNorm{at}")
        net.over("Scale", f"Scale{at}", bias_term=True)
        net.relu(f"ReLU{at}")
        net.conv(f"Convolution{at + 1}", outputs, kernel, pad=kernel // 2, bias_term=False)
        net.drop(f"Dropout{at}", 0.2)

    net.conv("Convolution1", channels, 3, pad=1, bias_term=False)
    for stage in (1, 2, 3):
        for at in range((depth - 4) // 3):
            bottom = net.last
            norm_conv(growth, 3)
            net.concat(f"Concat{stage}_{at + 1}", bottom, net.last, axis=1)
            channels += growth
        if stage < 3:
            norm_conv(channels, 1)
            net.pool(f"Pooling{stage}", 2, 2, how="AVE")
    net.add("BatchNorm", "BatchNorm_last")
    net.over("Scale", "Scale_last", bias_term=True)
    net.relu("ReLU_last")
    net.average("Pooling3")
    net.fully("InnerProduct1", 10)
    net.softmax()
    return net


_POOL = ("pool5", "fc6", "prob")

NETS = [
    Published("DenseNet-121", lambda: densenet(121), ("concat_4_24", *_POOL)),
    Published("DenseNet-161", lambda: densenet(161), _POOL),
    Published("DenseNet-169", lambda: densenet(169), _POOL),
    Published("DenseNet-201", lambda: densenet(201), _POOL),
    Published("DenseNet-40 CIFAR", densenet_cifar, ("Pooling2", "Pooling3", "prob")),
]
