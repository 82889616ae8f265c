"""Networks by name: `build_model("resnet20", method="bireal", recovery="cirec")`."""

from functools import partial

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from models.description import ARCHS, RECOVERIES, VARIANTS, describe_network, family_of
from models.methods import CIFAR, IMAGENET, METHODS
from models.resnet import CIFAR_STAGES, IMAGENET_STAGES, STRUCTURES, ResNet
from models.vgg import VGGSmall
from modules.activations import ACTIVATIONS
from modules.recovery import CIRec, IRec

__all__ = [
    "ARCHS",
    "CIFAR",
    "IMAGENET",
    "METHODS",
    "RECOVERIES",
    "STRUCTURES",
    "VARIANTS",
    "NoRandomNumbers",
    "build_model",
    "describe_network",
    "family_of",
]


def recovery_factory(network, act):
    """Factory of the recovery head of a NetworkDescription, given the channels of the taps; None for none."""
    if network.recovery == "cirec":
        return partial(CIRec, ratio=network.ratio, groups=network.groups, act=act)
    return partial(IRec, act=act) if network.recovery == "irec" else None


def build_model(arch, dataset="cifar10", method="bireal", weight_bits=1, activation_bits=1, **network):
    """A network with random weights, in training mode: model(images (N, 3, H, W)) -> logits (N, num_classes).

    network: more of `describe_network`'s arguments, which says what they mean, and what those left out become.
    Raises ValueError for what does not exist or does not fit together.
    """
    network = describe_network(arch, dataset, method, weight_bits, activation_bits, **network)
    act = ACTIVATIONS[network.activation]
    kwargs = {
        "num_classes": network.num_classes,
        "conv": METHODS[method].conv_factory(network.family, network.weight_bits, network.activation_bits),
        "act": act,
        "recovery": recovery_factory(network, act),
        **dict(network.backbone),
    }
    if arch == "vgg_small":
        return VGGSmall(image_size=network.image_size, **kwargs)
    stages = IMAGENET_STAGES if network.family == IMAGENET else CIFAR_STAGES
    return ResNet(*stages[arch], **kwargs)


class NoRandomNumbers(TorchFunctionMode):
    """Within it tensors are not filled with random numbers, which take most of the time of building a network."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.normal_, torch.Tensor.uniform_, nn.init.kaiming_uniform_, nn.init.uniform_):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))
