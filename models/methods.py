"""The methods, as data: what each does in the binary convolution, and the network that it was published with."""

from dataclasses import dataclass, field
from functools import partial

from modules.activations import LearnedShift, SelfDistributionShift
from modules.binarize import EDE, BiRealSTE, ClipSTE
from modules.conv import BinaryConv2d
from modules.weights import ChannelScale, LibraPB, SelfDistribution

CIFAR, IMAGENET = "cifar", "imagenet"


@dataclass(frozen=True)
class Method:
    """One entry per method.

    conv: {family: keyword arguments of BinaryConv2d}.
    network: {family: what the backbone has that others do not, of `models.description.RESNET`}; `act` names an
    activation of `modules.activations`. On top of it {(family, arch): ...} for one architecture.
    network_1w32a: the same, on top of all, where weights alone are binary.
    refused: {(weight_bits, activation_bits): why they make no sense for the method}.
    """

    title: str
    conv: dict
    network: dict
    network_1w32a: dict = field(default_factory=dict)
    refused: dict = field(default_factory=dict)

    def check_bits(self, weight_bits, activation_bits):
        """Raises ValueError, with the reason, for bits that make no sense for the method."""
        if (weight_bits, activation_bits) in self.refused:
            raise ValueError(self.refused[weight_bits, activation_bits])

    def conv_factory(self, family, weight_bits, activation_bits):
        """BinaryConv2d with this method's estimators and transforms; no bias."""
        self.check_bits(weight_bits, activation_bits)
        kwargs = self.conv[family]
        return partial(BinaryConv2d, bias=False, weight_bits=weight_bits, activation_bits=activation_bits, **kwargs)

    def network_for(self, family, arch, weight_bits, activation_bits):
        """{"act": name, option of the backbone: value} of these bits."""
        tables = [self.network] + ([self.network_1w32a] if (weight_bits, activation_bits) == (1, 32) else [])
        chosen = {}
        for table in tables:
            chosen |= table.get(family, {}) | table.get((family, arch), {})
        return chosen


def _both(**kwargs):
    return {CIFAR: kwargs, IMAGENET: kwargs}


_BIREAL_IMAGENET = {"act": "prelu", "shortcut": "avgpool"}
# ReActNet's ResNet-18, which SD-BNN starts from: nothing after the stem's BatchNorm, nothing before the linear layer.
_BARE_IMAGENET = {"shortcut": "avgpool", "stem_act": False, "feature_norm": False}

_IRNET_CONV = _both(weight_binarizer=EDE, activation_binarizer=EDE, weight_transform=LibraPB)
_IRNET_NETWORK = {
    CIFAR: {"act": "hardtanh"},
    IMAGENET: {"act": "hardtanh", "shortcut": "conv", "log_softmax": True},
}
_IRNET_1W32A = {
    CIFAR: {"act": "relu", "structure": "normal", "stem_act": False, "feature_relu": True},
    IMAGENET: {"act": "relu", "structure": "normal"},
}

METHODS = {
    "bireal": Method(
        "Bi-Real STE, no scale (IR²Net's baseline)",
        conv=_both(weight_binarizer=ClipSTE, activation_binarizer=BiRealSTE),
        network={CIFAR: {"act": "hardtanh"}, IMAGENET: _BIREAL_IMAGENET},
    ),
    "bnn": Method(
        "BNN: clipped STE on both",
        conv=_both(weight_binarizer=ClipSTE, activation_binarizer=ClipSTE),
        network={CIFAR: {"act": "hardtanh"}, IMAGENET: _BIREAL_IMAGENET},
    ),
    "xnor": Method(
        "XNOR-Net: BNN with a scale per output channel",
        conv=_both(weight_binarizer=ClipSTE, activation_binarizer=ClipSTE, weight_transform=ChannelScale),
        network={CIFAR: {"act": "hardtanh"}, IMAGENET: _BIREAL_IMAGENET},
        refused={(32, 1): "xnor only adds a scale to binary weights: with real weights it is bnn; use --method bnn"},
    ),
    "irnet": Method("IR-Net: Libra-PB and EDE", conv=_IRNET_CONV, network=_IRNET_NETWORK, network_1w32a=_IRNET_1W32A),
    "sdbnn": Method(
        "SD-BNN: self-distribution of weights and activations",
        conv={
            CIFAR: {
                "weight_binarizer": EDE,
                "activation_binarizer": EDE,
                "weight_transform": SelfDistribution,
                "input_transform": SelfDistributionShift,
            },
            IMAGENET: {
                "weight_binarizer": ClipSTE,
                "activation_binarizer": BiRealSTE,
                "weight_transform": SelfDistribution,
                "input_transform": partial(SelfDistributionShift, reduction=8),
            },
        },
        network={CIFAR: {"act": "hardtanh"}, IMAGENET: {"act": "prelu", **_BARE_IMAGENET}},
    ),
    "reactnet": Method(
        "ReActNet: RSign, RPReLU, scale per output channel",
        conv=_both(
            weight_binarizer=ClipSTE,
            activation_binarizer=BiRealSTE,
            weight_transform=partial(ChannelScale, detach=True),
            input_transform=LearnedShift,
        ),
        network={CIFAR: {"act": "rprelu"}, IMAGENET: {"act": "rprelu", **_BARE_IMAGENET}},
        refused={(1, 32): "reactnet learns where binary activations change sign: it needs --activation-bits 1"},
    ),
}
