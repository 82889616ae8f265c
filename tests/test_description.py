"""The one place that decides what a network is where the user leaves it open."""

import pytest
import torch

from models import ARCHS, CIFAR, IMAGENET, METHODS, build_model, describe_network
from models.methods import Method, methods_of


@pytest.mark.parametrize(
    ("left_out", "written"),
    [
        ({"arch": "resnet20"}, {"structure": "bireal", "recovery": "none", "activation": "hardtanh"}),
        ({"arch": "resnet18"}, {"structure": "normal", "num_classes": 10, "image_size": 64, "dataset": "digits"}),
        ({"arch": "vgg_small", "recovery": "cirec"}, {"ratio": 32, "groups": "depthwise", "image_size": 32}),
        ({"arch": "resnet18", "dataset": "imagenet", "variant": "c"}, {"recovery": "cirec", "variant": None}),
        ({"arch": "resnet20", "method": "irnet", "activation_bits": 32}, {"structure": "normal", "activation": "relu"}),
    ],
)
def test_what_is_left_out_is_decided(left_out, written):
    assert describe_network(**left_out) == describe_network(**{**left_out, **written})


def test_other_networks_are_other_descriptions():
    usual = describe_network("resnet20")
    for other in ({"structure": "normal"}, {"method": "bnn"}, {"weight_bits": 32}, {"recovery": "irec"}):
        assert describe_network("resnet20", **other) != usual
    assert describe_network("vgg_small", image_size=64) != describe_network("vgg_small")


def test_nothing_stays_open():
    for family, method in ((f, m) for f in (CIFAR, IMAGENET) for m in methods_of(f)):
        for arch in ARCHS[family]:
            network = describe_network(arch, family, method, recovery="cirec")
            left_open = [name for name, value in vars(network).items() if value is None]
            assert left_open == ([] if arch == "vgg_small" else ["image_size"])
            assert network.structure == (None if arch == "vgg_small" else dict(network.backbone)["structure"])
            assert len({network}) == 1, "a description can be a key"


def test_arguments_of_checkpoints_written_with_open_ones_still_build():
    names = ("recovery", "ratio", "groups", "variant", "structure", "activation", "num_classes")
    network = {"arch": "resnet20", "dataset": "digits", "method": "irnet", **dict.fromkeys(names), "image_size": 32}
    with torch.device("meta"):
        assert str(build_model(**network)) == str(build_model("resnet20", method="irnet"))


def test_a_method_of_one_family_is_refused_in_the_other(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", Method(conv={CIFAR: {}}, network={CIFAR: {"act": "hardtanh"}}))
    assert describe_network("resnet20", method="mine").activation == "hardtanh"
    with pytest.raises(ValueError, match="no method 'mine' for imagenet networks; known: bireal"):
        describe_network("resnet18", IMAGENET, "mine")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({}, "method mine has no activation for cifar's resnet20"),
        ({"act": "swishy"}, "method mine has no activation for cifar's resnet20: 'swishy'"),
        ({"act": "relu", "shorcut": "conv"}, "method mine has options that no backbone knows: shorcut"),
    ],
)
def test_a_method_whose_network_is_misspelt_is_refused(monkeypatch, network, message):
    monkeypatch.setitem(METHODS, "mine", Method(conv={CIFAR: {}}, network={CIFAR: network}))
    with pytest.raises(ValueError, match=message):
        describe_network("resnet20", method="mine")
