"""The methods, as data: what each does in the binary convolution, and the network that it was published with."""

from dataclasses import dataclass, field
from functools import partial

from modules.activations import ImageScale, ImageStandardization, LearnedShift, SelfDistributionShift, ShiftedImageScale
from modules.binarize import EDE, AdaptiveSign, BiRealSTE, ClipSTE, IdentitySTE, TrainingAwareSTE
from modules.conv import BinaryConv2d
from modules.weights import ChannelDistribution, ChannelScale, LibraPB, RectifiedClamp, Rotation, SelfDistribution

CIFAR, IMAGENET = "cifar", "imagenet"


@dataclass(frozen=True)
class Method:
    """One entry per method.

    conv: {family: keyword arguments of BinaryConv2d}; a family that is left out has no networks of this method.
    network: {family: what the backbone has that others do not, of `models.description.RESNET`}; `act` names an
    activation of `modules.activations`. On top of it {(family, arch): ...} for one architecture.
    network_1w32a: the same, on top of all, where weights alone are binary.
    refused: {(weight_bits, activation_bits): why they make no sense for the method}.
    """

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
_RECU_CONV = {
    "weight_binarizer": IdentitySTE,
    "activation_binarizer": BiRealSTE,
    "weight_transform": RectifiedClamp,
    "input_transform": ImageScale,
}
# A shortcut around every convolution, BatchNorm gains that start at nearly nothing.
_QUIET_IMAGENET = {"act": "hardtanh", "shortcut": "conv", "norm_gain": 1e-8}

METHODS = {
    "bireal": Method(  # Bi-Real STE, no scale (IR²Net's baseline)
        conv=_both(weight_binarizer=ClipSTE, activation_binarizer=BiRealSTE),
        network={CIFAR: {"act": "hardtanh"}, IMAGENET: _BIREAL_IMAGENET},
    ),
    "bnn": Method(  # BNN: clipped STE on both
        conv=_both(weight_binarizer=ClipSTE, activation_binarizer=ClipSTE),
        network={CIFAR: {"act": "hardtanh"}, IMAGENET: _BIREAL_IMAGENET},
    ),
    "xnor": Method(  # XNOR-Net: BNN with a scale per output channel
        conv=_both(weight_binarizer=ClipSTE, activation_binarizer=ClipSTE, weight_transform=ChannelScale),
        network={CIFAR: {"act": "hardtanh"}, IMAGENET: _BIREAL_IMAGENET},
        refused={(32, 1): "xnor only adds a scale to binary weights: with real weights it is bnn; use --method bnn"},
    ),
    "irnet": Method(  # IR-Net: Libra-PB and EDE
        conv=_IRNET_CONV,
        network=_IRNET_NETWORK,
        network_1w32a=_IRNET_1W32A,
    ),
    "sdbnn": Method(  # SD-BNN: self-distribution of weights and activations
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
    "reactnet": Method(  # ReActNet: RSign, RPReLU, scale per output channel
        conv=_both(
            weight_binarizer=ClipSTE,
            activation_binarizer=BiRealSTE,
            weight_transform=partial(ChannelScale, detach=True),
            input_transform=LearnedShift,
        ),
        network={CIFAR: {"act": "rprelu"}, IMAGENET: {"act": "rprelu", **_BARE_IMAGENET}},
        refused={(1, 32): "reactnet learns where binary activations change sign: it needs --activation-bits 1"},
    ),
    "rbnn": Method(  # RBNN: weights rotated towards their signs
        conv=_both(
            weight_binarizer=TrainingAwareSTE,
            activation_binarizer=partial(TrainingAwareSTE, floor=1.0),
            weight_transform=Rotation,
            input_transform=ImageStandardization,
        ),
        network={
            CIFAR: {"act": "hardtanh"},
            (CIFAR, "resnet20"): {"norm_gain": 1e-8},
            (CIFAR, "resnet18"): {"shortcut": "binary", "stem_act": False, "kaiming": False},
            IMAGENET: _QUIET_IMAGENET,
        },
    ),
    "recu": Method(  # ReCU: weights in the tails brought back
        conv=_both(**_RECU_CONV),
        network={
            CIFAR: {"act": "hardtanh"},
            (CIFAR, "resnet20"): {"shortcut": "avgpool_pad"},
            (CIFAR, "resnet18"): {"shortcut": "avgpool_pad", "stem_act": False},
            IMAGENET: _QUIET_IMAGENET,
        },
    ),
    "recu_twostage": Method(  # ReCU in ReActNet's network, for two-stage training
        conv=_both(**{**_RECU_CONV, "input_transform": ShiftedImageScale}),
        network={CIFAR: {"act": "rprelu"}, IMAGENET: {"act": "rprelu", **_BARE_IMAGENET}},
        refused={(1, 32): "recu_twostage learns where binary activations change sign: it needs --activation-bits 1"},
    ),
    "adabin": Method(  # AdaBin: two values of its own for weights and activations
        conv=_both(weight_binarizer=EDE, activation_binarizer=AdaptiveSign, weight_transform=ChannelDistribution),
        network={
            CIFAR: {"act": "maxout"},
            (CIFAR, "resnet18"): {"structure": "bireal"},
            IMAGENET: {"act": "maxout", "shortcut": "avgpool"},
        },
    ),
}


def methods_of(family):
    """Names of the methods that have networks of a family."""
    return tuple(name for name, method in METHODS.items() if family in method.conv)
