"""Networks with random weights, and images for them, that the tests of packing share."""

from utils.deploy import networks

IMAGENET = {"arch": "resnet18", "dataset": "imagenet"}


RESNET20 = {"arch": "resnet20", "method": "bireal", "recovery": "cirec"}
VALUES = ("rbnn", "recu", "recu_twostage", "adabin")
"""Methods whose learned values may be negative."""


def size_of(network):
    if network.get("dataset") != "imagenet":
        return (32, 32)
    return (64, 64) if network.get("method") in VALUES else (224, 224)


def random_network(network, seed=0):
    return networks.random_network(network, size_of(network), seed)


def random_images(network, count, seed=0):
    return networks.random_images(size_of(network), count, seed)


def name_of(network):
    return "-".join(str(value) for value in network.values())


def relative_error(expected, logits):
    return ((expected - logits).abs().max() / expected.abs().max()).item()
