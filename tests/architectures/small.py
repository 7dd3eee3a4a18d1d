"""The nets of Caffe's own examples, and other small ones."""

from __future__ import annotations

from architectures.drawing import V0, V1, Drawing, Published, old_forms


def lenet(feat: bool = False) -> Drawing:
    """LeNet for MNIST; `feat`: one arm of the siamese net, which ends in two numbers."""
    net = Drawing("mnist_siamese" if feat else "LeNet", (1, 28, 28), 64)
    for at, outputs in ((1, 20), (2, 50)):
        net.conv(f"conv{at}", outputs, 5)
        net.pool(f"pool{at}", 2, 2)
    net.fully("ip1", 500)
    net.relu("relu1")
    net.fully("ip2", 10)
    if feat:
        net.fully("feat", 2)
    else:
        net.softmax()
    return net


def autoencoder() -> Drawing:
    """The MNIST autoencoder: sigmoids, 30 numbers in the middle."""
    net = Drawing("MNISTAutoencoder", (1, 28, 28))
    net.add("Flatten", "flatdata")
    widths = (1000, 500, 250, 30)
    for at, outputs in enumerate(widths, 1):
        net.fully(f"encode{at}", outputs)
        if outputs != 30:
            net.add("Sigmoid", f"encode{at}neuron")
    for at, outputs in ((4, 250), (3, 500), (2, 1000), (1, 784)):
        net.fully(f"decode{at}", outputs)
        if at > 1:
            net.add("Sigmoid", f"decode{at}neuron")
    net.add("Sigmoid", "decode1neuron")
    return net


def cifar_quick() -> Drawing:
    net = Drawing("CIFAR10_quick_test", (3, 32, 32), old_input=True)
    for at, outputs in ((1, 32), (2, 32), (3, 64)):
        net.conv(f"conv{at}", outputs, 5, pad=2)
        if at == 1:
            net.pool("pool1", 3, 2)
            net.relu("relu1")
        else:
            net.relu(f"relu{at}")
            net.pool(f"pool{at}", 3, 2, how="AVE")
    net.fully("ip1", 64)
    net.fully("ip2", 10)
    net.softmax()
    return net


def cifar_full(kind: str = "ReLU", normalize: str = "LRN") -> Drawing:
    """With LRN within channels; or with sigmoids, and then perhaps BatchNorm."""
    net = Drawing("CIFAR10_full_deploy", (3, 32, 32))
    for at, outputs in ((1, 32), (2, 32), (3, 64)):
        net.conv(f"conv{at}", outputs, 5, pad=2, bias_term=normalize != "BatchNorm")
        if at == 1:
            net.pool("pool1", 3, 2)
        if normalize == "BatchNorm":
            net.add("BatchNorm", f"bn{at}")
        net.over(kind, f"{kind.lower()}{at}")
        if at > 1:
            net.pool(f"pool{at}", 3, 2, how="AVE")
        if normalize == "LRN" and at < 3:
            net.lrn(f"norm{at}", 0.00005, 3, norm_region="WITHIN_CHANNEL")
    net.fully("ip1", 10)
    net.softmax()
    return net


def pilot() -> Drawing:
    """PilotNet, which steers a car (Bojarski et al., 2016)."""
    net = Drawing("PilotNet", (3, 66, 200))
    net.over("BatchNorm", "norm")
    for at, (outputs, kernel, stride) in enumerate(
        ((24, 5, 2), (36, 5, 2), (48, 5, 2), (64, 3, 1), (64, 3, 1)), 1
    ):
        net.conv(f"conv{at}", outputs, kernel, stride)
        net.over("ELU", f"elu{at}")
    for at, outputs in enumerate((1164, 100, 50, 10), 1):
        net.fully(f"fc{at}", outputs)
        net.over("ELU", f"elu_fc{at}")
    net.fully("angle", 1)
    net.add("TanH", "steering")
    return net


NETS = [
    *old_forms(Published("LeNet", lenet, ("pool2", "ip1", "prob")), V1, V0),
    *old_forms(Published("MNIST siamese arm", lambda: lenet(feat=True), ("ip1", "feat")), V1),
    Published("MNIST autoencoder", autoencoder, ("encode4", "decode1neuron")),
    *old_forms(Published("CIFAR-10 quick", cifar_quick, ("pool3", "ip1", "prob")), V1, V0),
    *old_forms(Published("CIFAR-10 full", cifar_full, ("norm2", "pool3", "prob")), V1),
    Published("CIFAR-10 full sigmoid", lambda: cifar_full("Sigmoid", ""), ("pool3", "prob")),
    Published("CIFAR-10 full sigmoid BN", lambda: cifar_full("Sigmoid", "BatchNorm"), ("pool3", "prob")),
    Published("PilotNet", pilot, ("conv5", "fc2", "fc4", "angle", "steering")),
]
